"""The time loop on CuPy: each kernel of a step is one launch, written as CUDA C that NVRTC compiles.

The loop is Python: one call for each product, sum and kernel of a step. Kernels take whole arrays and the number of
the step, so that nothing is sliced for them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import NamedTuple, TypeAlias

from ...arrays import Array
from ..graph.arguments import Results
from ..graph.buffers import Buffer, Kind, RowBlock, Source
from ..graph.cut import cut
from ..graph.hoist import Hoister
from ..graph.instructions import CutGraph, Kernel, Product, boolean_buffers
from ..graph.pytrees import rebuilt
from ..graph.report import dump, say_fallback, show_cut
from ..graph.trace import Graph, Step, Untraceable
from .source import NUMBER_TYPES, cuda_source

__all__ = ["Calls", "CudaProgram", "cuda_program", "library_calls"]

_THREADS = 128  # of a block
MOST_ELEMENTS = 1 << 31  # an element's number in a row block is an int


Launch: TypeAlias = Callable[..., None]  # kernel(grid, block, arguments)


class Calls(NamedTuple):
    """What the loop calls of CuPy.

    Attributes
    ----------
    dot : ``dot(left, right, out)``
    sum : ``sum(x, axis, dtype, out, keepdims)``
    in_order : ``in_order(x)``, a copy where it isn't C-contiguous
    kernel : ``kernel(source, name)(grid, block, arguments)``
    """

    dot: Callable[..., Array]
    sum: Callable[..., Array]
    in_order: Callable[[Array], Array]
    kernel: Callable[[str, str], Launch]


def library_calls() -> Calls:
    """CuPy's own."""
    import cupy

    return Calls(cupy.dot, cupy.sum, cupy.ascontiguousarray, cupy.RawKernel)


class CudaProgram:
    """A loop whose pointwise work is done by kernels of its own.

    Parameters
    ----------
    cut : CutGraph
    graph : Graph
        What it was made of.
    dtype : "float32" or "float64"

    Raises
    ------
    Untraceable
        It has numbers that C can't write, or too many of them.
    """

    def __init__(self, cut: CutGraph, graph: Graph, dtype: str) -> None:
        self.cut, self.output_structure = cut, graph.output_structure
        self.hoist = Hoister(cut.hoisted)
        self.calls = library_calls()
        self.starts: dict[int, int] = {}  # a stack -> the carry whose first value stands before its first row
        for k, end in enumerate(cut.ends):
            if end.kind is Kind.STACK and self.starts.setdefault(end.index, k) != k:
                raise Untraceable("one array for two carries")
        booleans = boolean_buffers(graph, cut)
        self.batch = graph.inputs.carry[0].shape[1]
        self.kernels: list[tuple[Launch, list[Buffer]]] = []
        kernels = [made for made in cut.instructions if isinstance(made, Kernel)]
        for k, kernel in enumerate(kernels):
            numbers = [o for _, _, operands in kernel.statements for o in operands] + [n for _, n in kernel.stores]
            if not all(isinstance(n, str) or abs(n) < float("inf") for n in numbers):
                raise Untraceable("a number that is not finite")
            if kernel.rows * self.batch >= MOST_ELEMENTS:
                raise Untraceable("more elements than fit an int")
            source = cuda_source(kernel, f"step_kernel{k}", dtype, booleans)
            self.kernels.append((self.calls.kernel(source, f"step_kernel{k}"), kernel.buffers()))

    def run(
        self, xp: ModuleType, carry: list[Array], xs: list[Array], shared: list[Array], *, reverse: bool
    ) -> Results:
        """As of `graph.arguments.Program`."""
        device = carry[0].device
        with device if hasattr(device, "__enter__") else nullcontext():  # kernels run on the current device
            memory = _Memory(self, xp, carry, xs, shared, reverse)
            alternating = [self._calls(memory, parity) for parity in (0, 1)]
            steps = xs[0].shape[0]
            for k in range(steps):
                t = steps - 1 - k if reverse else k
                for call in alternating[k % 2]:
                    call(t)
            return Results(memory.final(steps % 2), rebuilt(self.output_structure, memory.outputs()))

    def _calls(self, memory: _Memory, parity: int) -> list[Callable[[int], object]]:
        """What every second step calls, with the number of the step."""
        calls: list[Callable[[int], object]] = []
        kernels = iter(self.kernels)
        for made in self.cut.instructions:
            if isinstance(made, Kernel):
                kernel, buffers = next(kernels)
                if made.rows * self.batch:
                    arguments = [part for buffer in buffers for part in memory.argument(buffer, parity)]
                    calls.append(_launch(kernel, made.rows, self.batch, arguments))
            elif isinstance(made, Product):
                blocks = memory.rows(made.right, parity), memory.rows(made.out, parity)
                calls.append(_product(self.calls.dot, memory.left(made), *blocks))
            else:
                calls.append(_row_sum(self.calls.sum, memory.rows(made.x, parity), memory.rows(made.out, parity)))
        return calls


Rows: TypeAlias = Callable[[int], Array]  # of step t


def _launch(kernel: Launch, rows: int, batch: int, arguments: list[Array | int]) -> Callable[[int], object]:
    grid, block = (-(-rows * batch // _THREADS),), (_THREADS,)
    fixed = (*arguments, rows, batch)
    return lambda t: kernel(grid, block, (*fixed, t))


def _product(dot: Callable[..., Array], left: Array, right: Rows, out: Rows) -> Callable[[int], object]:
    return lambda t: dot(left, right(t), out(t))


def _row_sum(sum_: Callable[..., Array], x: Rows, out: Rows) -> Callable[[int], object]:
    return lambda t: sum_(x(t), axis=0, out=out(t), keepdims=True)


class _Memory:
    """The arrays of one run, by their buffers."""

    def __init__(
        self,
        program: CudaProgram,
        xp: ModuleType,
        carry: list[Array],
        xs: list[Array],
        shared: list[Array],
        reverse: bool,
    ) -> None:
        self.cut, self.carry, self.xs, self.reverse = program.cut, carry, xs, reverse
        in_order, like, steps = program.calls.in_order, carry[0], xs[0].shape[0]

        def empty(shape: tuple[int, ...], boolean: bool) -> Array:
            return xp.empty(shape, dtype=xp.bool if boolean else like.dtype, device=like.device)

        # Steps may stand apart in memory, as those of some rows of a stack do; a step itself must not.
        self.over_time = {
            Buffer(Kind.INPUT, k): x if not steps or x[0].flags.c_contiguous else in_order(x) for k, x in enumerate(xs)
        }
        self.constants = {Buffer(Kind.SHARED, k): array for k, array in enumerate(shared)}
        hoisted = program.hoist(xp, shared, like)
        self.constants |= {Buffer(Kind.HOISTED, k): array for k, array in enumerate(hoisted)}
        self.whole: list[Array] = []  # of each stack, with the first value of a carry
        for k, stack in enumerate(program.cut.stacks):
            start = program.starts.get(k)
            if stack.donated is not None and start is None:
                whole = self.over_time[Buffer(Kind.INPUT, 0)][:, stack.donated : stack.donated + stack.shape[0]]
            else:
                whole = empty((steps + (start is not None), *stack.shape), stack.boolean)
            self.whole.append(whole)
            if start is not None:
                whole[-1 if reverse else 0, ...] = carry[start]
                self.over_time[Buffer(Kind.CARRY, start)] = self._before(k)
            after = whole if start is None else whole[:-1] if reverse else whole[1:]
            self.over_time[Buffer(Kind.STACK, k)] = after
        # of each buffer, the array of even and of odd steps
        self.fixed: dict[Buffer, tuple[Array, Array]] = {}
        for k, form in enumerate(program.cut.work):
            self.fixed[Buffer(Kind.WORK, k)] = (empty(*form),) * 2
        loaded = {buffer for _, buffers in program.kernels for buffer in buffers}
        self.fixed |= {buffer: (in_order(a),) * 2 for buffer, a in self.constants.items() if buffer in loaded}
        for k, end in enumerate(program.cut.ends):
            if end.kind is Kind.CARRY:
                self.fixed[end] = (in_order(carry[k]),) * 2
            elif end.kind is Kind.NEXT:  # one buffer is read while the other is written
                one, other = (empty(carry[k].shape, carry[k].dtype != like.dtype) for _ in range(2))
                one[...] = carry[k]
                self.fixed[Buffer(Kind.CARRY, k)], self.fixed[end] = (one, other), (other, one)

    def _before(self, stack: int) -> Array:
        """A stack one step earlier, in the direction of running."""
        return self.whole[stack][1:] if self.reverse else self.whole[stack][:-1]

    def argument(self, buffer: Buffer, parity: int) -> tuple[Array, int]:
        """An array for a kernel, and how many elements lie between two steps."""
        if buffer in self.over_time:
            array = self.over_time[buffer]
            return array, array.strides[0] // array.itemsize
        return self.fixed[buffer][parity], 0

    def rows(self, block: RowBlock, parity: int) -> Rows:
        """The function that takes some rows at step t."""
        rows = slice(block.start, block.start + block.rows)
        if block.buffer in self.over_time:
            array = self.over_time[block.buffer]
            of_step: Rows = (array if array.shape[1] == block.rows else array[:, rows]).__getitem__
            return of_step
        array = self.fixed[block.buffer][parity][rows]
        return lambda t: array

    def left(self, product: Product) -> Array:
        """The left side of a product, which CuPy takes transposed as it is."""
        array = self.constants[product.left]
        return array.T if product.transposed else array

    def final(self, parity: int) -> list[Array]:
        """The leaves of the carry after the last step."""
        found = []
        for k, end in enumerate(self.cut.ends):
            if end.kind is Kind.STACK:
                found.append(self.whole[end.index][0 if self.reverse else -1])
            else:
                found.append(self.fixed[Buffer(Kind.CARRY, k)][parity])
        return found

    def outputs(self) -> list[Array]:
        """Each output over time."""
        found = []
        for source, k, start, stop in self.cut.outputs:
            if source is Source.INPUT:
                array = self.xs[k]
            else:
                array = self._before(k) if source is Source.BEFORE else self.over_time[Buffer(Kind.STACK, k)]
            found.append(array if stop - start == array.shape[1] else array[:, start:stop])
        return found


def cuda_program(graph: Graph, step: Step, dtype: str, *, donate: bool) -> CudaProgram | None:
    """The program of a recorded step, or None where it can't be cut into kernels."""
    if dtype not in NUMBER_TYPES:
        return None
    try:
        found = cut(graph, donate=donate)
        dump("stages", step, show_cut(found))
        return CudaProgram(found, graph, dtype)
    except Untraceable as reason:
        say_fallback(step, "loop of kernels", reason)
        return None
