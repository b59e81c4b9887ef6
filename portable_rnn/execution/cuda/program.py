"""Stages on CuPy: each kernel of a step is one launch, written as CUDA C that NVRTC compiles.

The loop is Python: one call for each product, sum and kernel of a step. Kernels take whole arrays and the number of
the step, so that nothing is sliced for them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from ..graph.buffers import Place
from ..graph.cut import make_stages
from ..graph.instructions import Kernel, Product, RowSum, Stages
from ..graph.pytrees import rebuilt
from ..graph.trace import Graph, Untraceable, Value
from .source import NUMBER_TYPES, cuda_source

__all__ = ["Calls", "CudaProgram", "cuda_program", "library_calls"]

_THREADS = 128  # of a block
_MOST_ELEMENTS = 1 << 31  # an element's number in a row block is an int


class Calls(NamedTuple):
    """What the loop calls of CuPy.

    Attributes
    ----------
    dot : ``dot(left, right, out)``
    sum : ``sum(x, axis, dtype, out, keepdims)``
    in_order : ``in_order(x)``, a copy where it isn't C-contiguous
    kernel : ``kernel(source, name)(grid, block, arguments)``
    """

    dot: Callable[..., Any]
    sum: Callable[..., Any]
    in_order: Callable[..., Any]
    kernel: Callable[[str, str], Callable[..., Any]]


def library_calls() -> Calls:
    """CuPy's own."""
    import cupy

    return Calls(cupy.dot, cupy.sum, cupy.ascontiguousarray, cupy.RawKernel)


class CudaProgram:
    """A loop whose pointwise work is done by kernels of its own.

    Parameters
    ----------
    stages : Stages
    graph : Graph
        What they were made of.
    dtype : "float32" or "float64"

    Raises
    ------
    Untraceable
        It has numbers that C can't write, or too many of them.
    """

    def __init__(self, stages: Stages, graph: Graph, dtype: str) -> None:
        self.stages, self.output_structure = stages, graph.output_structure
        self.calls = library_calls()
        self.starts: dict[int, int] = {}  # a stack -> the carry whose first value stands before its first row
        for k, end in enumerate(stages.ends):
            if end[0] == "y" and self.starts.setdefault(int(end[1:]), k) != k:
                raise Untraceable("one array for two carries")
        booleans = {f"y{k}" for k, stack in enumerate(stages.stacks) if stack.boolean}
        booleans |= {f"w{k}" for k, (_, boolean) in enumerate(stages.work) if boolean}
        booleans |= {f"h{k}" for k, value in enumerate(stages.hoisted) if value.boolean}
        for kind, letters in (("carry", "cn"), ("xs", "x"), ("shared", "s")):
            booleans |= {f"{a}{k}" for k, value in enumerate(graph.inputs[kind]) if value.boolean for a in letters}
        self.batch = graph.inputs["carry"][0].shape[1]
        self.kernels: list[tuple[Any, list[str]]] = []
        kernels = [stage for stage in stages.stages if isinstance(stage, Kernel)]
        for k, kernel in enumerate(kernels):
            numbers = [o for _, _, operands in kernel.statements for o in operands] + [n for _, n in kernel.stores]
            if not all(isinstance(n, str) or abs(n) < float("inf") for n in numbers):
                raise Untraceable("a number that is not finite")
            if kernel.rows * self.batch >= _MOST_ELEMENTS:
                raise Untraceable("more elements than fit an int")
            source = cuda_source(kernel, f"step_kernel{k}", dtype, booleans)
            self.kernels.append((self.calls.kernel(source, f"step_kernel{k}"), kernel.arrays()))

    def run(self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool) -> tuple[Any, Any]:
        """(leaves of the final carry, nest of the outputs, each a stack over time)."""
        device = carry[0].device
        with device if hasattr(device, "__enter__") else nullcontext():  # kernels run on the current device
            memory = _Memory(self, xp, carry, xs, shared, reverse)
            alternating = [self._calls(memory, parity) for parity in (0, 1)]
            steps = xs[0].shape[0]
            for k in range(steps):
                t = steps - 1 - k if reverse else k
                for call in alternating[k % 2]:
                    call(t)
            return memory.final(steps % 2), rebuilt(self.output_structure, memory.outputs())

    def _calls(self, memory: _Memory, parity: int) -> list[Callable[[int], Any]]:
        """What every second step calls, with the number of the step."""
        calls: list[Callable[[int], Any]] = []
        kernels = iter(self.kernels)
        for stage in self.stages.stages:
            if isinstance(stage, Kernel):
                kernel, arrays = next(kernels)
                if stage.rows * self.batch:
                    arguments = [part for array in arrays for part in memory.argument(array, parity)]
                    calls.append(_launch(kernel, stage.rows, self.batch, arguments))
            elif isinstance(stage, Product):
                places = memory.rows(stage.right, parity), memory.rows(stage.out, parity)
                calls.append(_product(self.calls.dot, memory.left(stage), *places))
            else:
                assert isinstance(stage, RowSum)
                calls.append(_row_sum(self.calls.sum, memory.rows(stage.x, parity), memory.rows(stage.out, parity)))
        return calls


Rows = Callable[[int], Any]


def _launch(kernel: Any, rows: int, batch: int, arguments: list[Any]) -> Callable[[int], Any]:
    grid, block = (-(-rows * batch // _THREADS),), (_THREADS,)
    fixed = (*arguments, rows, batch)
    return lambda t: kernel(grid, block, (*fixed, t))


def _product(dot: Any, left: Any, right: Rows, out: Rows) -> Callable[[int], Any]:
    return lambda t: dot(left, right(t), out(t))


def _row_sum(sum_: Any, x: Rows, out: Rows) -> Callable[[int], Any]:
    return lambda t: sum_(x(t), axis=0, out=out(t), keepdims=True)


class _Memory:
    """The arrays of one run, by the names in `kernels.Place`."""

    def __init__(self, program: CudaProgram, xp: Any, carry: Any, xs: Any, shared: Any, reverse: bool) -> None:
        self.stages, self.carry, self.xs, self.shared, self.reverse = program.stages, carry, xs, shared, reverse
        in_order, like, steps = program.calls.in_order, carry[0], xs[0].shape[0]

        def empty(shape: tuple[int, ...], boolean: bool) -> Any:
            return xp.empty(shape, dtype=xp.bool if boolean else like.dtype, device=like.device)

        # Steps may stand apart in memory, as those of some rows of a stack do; a step itself must not.
        self.over_time = {f"x{k}": x if not steps or x[0].flags.c_contiguous else in_order(x) for k, x in enumerate(xs)}
        self.hoisted = _hoisted(xp, program.stages.hoisted, shared, like)
        self.whole: list[Any] = []  # of each stack, with the first value of a carry
        for k, stack in enumerate(program.stages.stacks):
            start = program.starts.get(k)
            if stack.given is not None and start is None:
                whole = self.over_time["x0"][:, stack.given : stack.given + stack.shape[0]]
            else:
                whole = empty((steps + (start is not None), *stack.shape), stack.boolean)
            self.whole.append(whole)
            if start is not None:
                whole[-1 if reverse else 0, ...] = carry[start]
                self.over_time[f"c{start}"] = self._before(k)
            self.over_time[f"y{k}"] = whole if start is None else whole[:-1] if reverse else whole[1:]
        # by name, the array of even and of odd steps
        self.fixed: dict[str, tuple[Any, Any]] = {}
        for k, form in enumerate(program.stages.work):
            self.fixed[f"w{k}"] = (empty(*form),) * 2
        loaded = {name for _, arrays in program.kernels for name in arrays}
        for letter, arrays in (("s", shared), ("h", self.hoisted)):
            named = {f"{letter}{k}": array for k, array in enumerate(arrays)}
            self.fixed |= {name: (in_order(array),) * 2 for name, array in named.items() if name in loaded}
        for k, end in enumerate(program.stages.ends):
            if end == f"c{k}":
                self.fixed[end] = (in_order(carry[k]),) * 2
            elif end == f"n{k}":  # one buffer is read while the other is written
                one, other = (empty(carry[k].shape, carry[k].dtype != like.dtype) for _ in range(2))
                one[...] = carry[k]
                self.fixed[f"c{k}"], self.fixed[end] = (one, other), (other, one)

    def _before(self, stack: int) -> Any:
        """A stack one step earlier, in the direction of running."""
        return self.whole[stack][1:] if self.reverse else self.whole[stack][:-1]

    def argument(self, name: str, parity: int) -> tuple[Any, int]:
        """An array for a kernel, and how many elements lie between two steps."""
        if name in self.over_time:
            array = self.over_time[name]
            return array, array.strides[0] // array.itemsize
        return self.fixed[name][parity], 0

    def rows(self, place: Place, parity: int) -> Rows:
        """The function that takes some rows at step t."""
        rows = slice(place.start, place.start + place.rows)
        if place.base in self.over_time:
            array = self.over_time[place.base]
            of_step: Rows = (array if array.shape[1] == place.rows else array[:, rows]).__getitem__
            return of_step
        array = self.fixed[place.base][parity][rows]
        return lambda t: array

    def left(self, product: Product) -> Any:
        """The left side of a product, which CuPy takes transposed as it is."""
        number = int(product.left[1:])
        array = self.shared[number] if product.left[0] == "s" else self.hoisted[number]
        return array.T if product.transposed else array

    def final(self, parity: int) -> list[Any]:
        """The leaves of the carry after the last step."""
        found = []
        for k, end in enumerate(self.stages.ends):
            if end[0] == "y":
                found.append(self.whole[int(end[1:])][0 if self.reverse else -1])
            else:
                found.append(self.fixed[f"c{k}"][parity])
        return found

    def outputs(self) -> list[Any]:
        """Each output over time."""
        found = []
        for kind, k, start, stop in self.stages.outputs:
            array = self.xs[k] if kind == "input" else self._before(k) if kind == "before" else self.over_time[f"y{k}"]
            found.append(array if stop - start == array.shape[1] else array[:, start:stop])
        return found


def _hoisted(xp: Any, values: list[Value], shared: list[Any], like: Any) -> list[Any]:
    """The values that are the same at every step."""
    made: dict[int, Any] = {}

    def evaluated(value: Any) -> Any:
        if not isinstance(value, Value):
            return xp.asarray(value, dtype=like.dtype, device=like.device)
        if value.number not in made:
            made[value.number] = compute(value)
        return made[value.number]

    def compute(value: Value) -> Any:
        if value.op == "shared":
            return shared[value.detail[0]]
        operands = [evaluated(operand) for operand in value.operands]
        if value.op == "rows":
            return operands[0][value.detail[0] : value.detail[1]]
        if value.op == "transpose":
            return operands[0].T
        if value.op == "fill":
            return xp.broadcast_to(operands[0], value.shape)
        if value.op == "concat":
            return xp.concat(operands, axis=0)
        if value.op == "sum":
            return xp.sum(operands[0], axis=0, keepdims=True)
        if value.op == "float":
            return xp.astype(operands[0], like.dtype)
        return getattr(xp, value.op)(*operands)

    return [evaluated(value) for value in values]


def cuda_program(graph: Graph, dtype: str, *, donate: bool) -> CudaProgram | None:
    """The program of a recorded step, or None where it can't be cut into kernels."""
    if dtype not in NUMBER_TYPES:
        return None
    try:
        return CudaProgram(make_stages(graph, donate=donate), graph, dtype)
    except Untraceable:
        return None
