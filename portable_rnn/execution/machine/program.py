"""Programs of machine code: compiled loops for arguments of one form (extra ``[fast]``)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, TypeAlias, cast

import array_api_compat.numpy as numpy_namespace
import numpy as np
import numpy.typing as npt

from ...arrays import Array, map_leaves
from .. import memory_pool
from ..graph.arguments import Arguments, Form, Leaves, Program, Programs, Results, Structures, recorded
from ..graph.buffers import Buffer, Kind
from ..graph.cut import cut
from ..graph.hoist import Hoister
from ..graph.instructions import RowSum, boolean_buffers
from ..graph.memory import outputs_over_time
from ..graph.pytrees import Known, PyTree, expression
from ..graph.report import dump, say_fallback, show_cut, show_graph
from ..graph.trace import Graph, Shape, Step, Untraceable, Value
from .arguments import Argument, LoopForm, Role, argument_of, collected, is_given, matrices_of
from .compiler import forget as forget_compiler
from .gemm import routines, takes_rows
from .loop import compiled_loop, forget_loops, vector_lanes
from .thread_pool import several, thread_count
from .workspace import CARRY, SHARED, XS, Layout, Read, Workspace, address_of

__all__ = ["CompiledProgram", "Memory", "TorchProgram", "as_it_is", "compiled_scan", "forget", "programs"]

WORTH_A_THREAD = 1 << 21  # multiplications of a loop
WORTH_WAITING = 1 << 18  # multiplications of a step, after which threads wait for each other
MOST_OWN_SUMS = 1 << 20  # numbers of all sums over time, up to which each thread has its own
FEWEST_COLUMNS = (
    32  # columns of all steps: a product with some of them takes as long as it takes to lay its weights out
)
LINE = 64  # bytes of the cache

HostArray: TypeAlias = npt.NDArray[np.generic]
ArrayForm: TypeAlias = tuple[Shape, np.dtype[np.generic]]


class Memory(NamedTuple):
    """Where a loop writes: a stack over time for each of `CutGraph.stacks`, and all sums, one after the other."""

    stacks: list[Array]
    sums: Array


class CompiledProgram:
    """A loop of machine code for arguments of one form."""

    def __init__(self, graph: Graph, dtype: str) -> None:
        self.cut = made = cut(graph, donate=False)
        self.sum_forms = [(t.left.rows, t.right.rows) if t.right else (t.left.rows,) for t in made.terms]
        self.sum_ends = list(itertools.accumulate(map(math.prod, self.sum_forms), initial=0))
        self.dtype = np.dtype(dtype)
        self.batch = graph.inputs.carry[0].shape[1]
        self.inputs, self.constants = len(graph.inputs.xs), len(graph.inputs.shared)
        self.carry_forms: list[ArrayForm] = [
            (v.shape, np.dtype(bool) if v.boolean else self.dtype) for v in graph.inputs.carry
        ]
        inputs = {Buffer(Kind.INPUT, k): value for k, value in enumerate(graph.inputs.xs)}
        inputs |= {Buffer(Kind.SHARED, k): value for k, value in enumerate(graph.inputs.shared)}
        inputs |= {Buffer(Kind.HOISTED, k): value for k, value in enumerate(made.hoisted)}
        booleans = boolean_buffers(graph, made)
        self.hoist = Hoister(made.hoisted) if made.hoisted else None
        self.matrices = matrices_of(made)
        self.collected = {side: collected(made, side) for side in (Role.LEFT, Role.RIGHT)}

        sizes = [matrix.rows * matrix.columns for matrix in self.matrices]
        sizes += [term.left.rows * term.right.rows for term in made.terms if term.right is not None]
        self.multiplications = sum(sizes) * self.batch  # of a step
        lanes = vector_lanes(dtype, self.batch)
        sums_rows = any(isinstance(instruction, RowSum) for instruction in made.instructions)
        few = self.batch < 2 * lanes and self.multiplications >= WORTH_WAITING and not sums_rows
        self.by_rows = few and thread_count() > 1
        self.routines = routines(dtype, lanes)
        shapes = {buffer: value.shape for buffer, value in inputs.items()}
        self.own_sums = not self.by_rows and self.sum_ends[-1] <= MOST_OWN_SUMS
        self.lanes = max(lanes, LINE // self.dtype.itemsize)  # of a thread at least: none writes to another's line
        whole = self.by_rows or self.batch <= self.lanes  # every thread takes all columns
        self.few = self.batch if whole and takes_rows(dtype, self.batch) else 0
        form = LoopForm(shapes, booleans, dtype, lanes, self.batch == 1, self.by_rows, self.few, self.own_sums)
        self.name, self.library, arguments = compiled_loop(made, form)
        self.index = {argument: k for k, argument in enumerate(arguments)}
        self.reads = self._find_reads(inputs, booleans)
        # of the stacks that are written to: number, carry, bytes of a number
        self.written = [
            (k, stack.carry, form[1].itemsize)
            for k, (stack, form) in enumerate(zip(made.stacks, self.stack_forms(0), strict=True))
            if argument_of(Buffer(Kind.STACK, k)) in self.index
        ]
        self.loose_ends = [k for k, end in enumerate(made.ends) if end.kind is Kind.NEXT]
        self.given = [argument for argument in arguments if is_given(argument)]
        # rows of the inputs that may have to be transposed
        self.apart = {
            read.buffer: inputs[read.buffer].shape[0]
            for read in self.reads
            if read.layout is Layout.OVER_TIME and read.buffer not in booleans and self.batch > 1
        }
        before = (0, len(self.carry_forms), len(self.carry_forms) + self.inputs)  # among all leaves
        self.positions = [before[read.group] + read.number for read in self.reads]
        self.make_results = {reverse: self._results(graph, reverse) for reverse in (False, True)}
        self.idle: list[Workspace] = []

    def _find_reads(self, inputs: dict[Buffer, Value], booleans: set[Buffer]) -> list[Read]:
        size = self.dtype.itemsize
        found = []
        for buffer, value in inputs.items():
            argument = argument_of(buffer)
            if argument in self.index:
                of_it = 1 if buffer in booleans else size
                if buffer.kind is Kind.INPUT:
                    found.append(Read(argument, buffer, XS, buffer.index, Layout.OVER_TIME, of_it))
                else:
                    spread = value.shape[1] != self.batch or self.batch == 1
                    number = self._number(buffer)
                    found.append(Read(argument, buffer, SHARED, number, Layout.PLAIN, of_it, spread=spread))
        for matrix in self.matrices:
            argument, number = Argument.of_matrix(Role.MATRIX, matrix), self._number(matrix.buffer)
            found.append(Read(argument, matrix.buffer, SHARED, number, Layout.MATRIX, size, matrix.transposed))
        for k, (_, dtype) in enumerate(self.carry_forms):
            buffer = Buffer(Kind.CARRY, k)
            if argument_of(buffer) in self.index:
                found.append(Read(argument_of(buffer), buffer, CARRY, k, Layout.PLAIN, dtype.itemsize))
        return sorted(found, key=lambda read: self.index[read.argument])

    def _number(self, buffer: Buffer) -> int:
        """Where something the same at every step is found, hoisted values behind what is given."""
        return buffer.index + (self.constants if buffer.kind is Kind.HOISTED else 0)

    def _results(self, graph: Graph, reverse: bool) -> Callable[..., Results]:
        """What `run` returns, as a function of the leaves, the memory and the carries that end elsewhere."""
        made = self.cut
        known: Known = {"Results": Results}
        outputs = iter(outputs_over_time(made.outputs, made.stacks, graph.inputs.xs, reverse))
        last = 0 if reverse else -1  # a part of a stack would keep all of it

        def final(k: int, end: Buffer) -> str:
            if end.kind is Kind.STACK:
                return f"stacks[{end.index}][{last}].copy()"
            return f"ends[{k}]" if end.kind is Kind.NEXT else f"carry[{k}].copy()"

        bounds = itertools.pairwise(self.sum_ends)
        terms = [f"sums[{a}:{b}].reshape({form})" for (a, b), form in zip(bounds, self.sum_forms, strict=True)]
        numbers = {term.number: k for k, term in enumerate(graph.terms())}

        def put_together(value: Value) -> str:
            if value.number in numbers:
                return terms[numbers[value.number]]
            parts = [put_together(part) for part in value.operands if isinstance(part, Value)]
            return f"xp.concat([{', '.join(parts)}])"

        trees = [
            expression(graph.output_structure, outputs, known),
            expression(graph.sum_structure, map(put_together, graph.sums), known),
        ]
        carry = ", ".join(final(k, end) for k, end in enumerate(made.ends))
        text = f"lambda xp, carry, xs, stacks, sums, ends: Results([{carry}], {', '.join(trees)})"
        return cast(Callable[..., Results], eval(text, known))

    # ------------------------------------------------------------------ a run

    def run(
        self, xp: ModuleType, carry: list[Array], xs: list[Array], shared: list[Array], *, reverse: bool
    ) -> Results:
        """As of `graph.arguments.Program`."""
        stacks = [memory_pool.empty(*form) for form in self.stack_forms(xs[0].shape[0])]
        memory = Memory(stacks, memory_pool.empty((self.sum_ends[-1],), self.dtype))
        ends = self.compute(carry, xs, shared, memory, reverse=reverse)
        return self.results(xp, carry, xs, memory, ends, reverse=reverse)

    def stack_forms(self, steps: int) -> list[ArrayForm]:
        """Shape and dtype of each stack; one that begins with a carry has a step more."""
        return [
            ((steps + (stack.carry is not None), *stack.shape), np.dtype(bool) if stack.boolean else self.dtype)
            for stack in self.cut.stacks
        ]

    def end_forms(self) -> dict[int, ArrayForm]:
        """Shape and dtype of the carries that end neither in a stack nor as they began, by their number."""
        return {k: self.carry_forms[k] for k in self.loose_ends}

    def compute(
        self, carry: list[Array], xs: list[Array], shared: list[Array], memory: Memory, *, reverse: bool
    ) -> dict[int, HostArray]:
        """Run the loop over NumPy arrays. Returns the carries of `end_forms`."""
        most = thread_count() if self.multiplications * xs[0].shape[0] >= WORTH_A_THREAD else 1
        if most == 1:
            return self._compute(1, carry, xs, shared, memory, reverse)
        with several(most) as count:
            return self._compute(count, carry, xs, shared, memory, reverse)

    def _compute(
        self, most: int, carry: list[Array], xs: list[Array], shared: list[Array], memory: Memory, reverse: bool
    ) -> dict[int, HostArray]:
        shares = self._shares(most)
        space = self.idle.pop() if self.idle else None  # other threads make their own
        if space is None or space.shares != shares:
            space = Workspace(self, shares)
        if self.hoist is not None:
            shared = [*shared, *self.hoist(numpy_namespace, shared, carry[0])]
        leaves = [*carry, *xs, *shared]
        arrays = [leaves[k] for k in self.positions]
        addresses = list(map(address_of, arrays))
        strides = [array.strides for array in arrays]
        if strides != space.strides or 0 in addresses:
            arrays = [self._readable(*pair) for pair in zip(self.reads, arrays, strict=True)]
            addresses = [address_of(array) for array in arrays]
            space.arrange([array.strides for array in arrays])
        for k, start, _ in self.written:
            block = memory.stacks[k]
            addresses.append(address_of(block))
            if start is not None:
                block[-1 if reverse else 0] = carry[start]
                addresses[-1] += 0 if reverse else block.strides[0]
        if self.sum_forms:
            base, size = address_of(memory.sums), self.dtype.itemsize
            addresses += [base + size * start for start in self.sum_ends[:-1]]
        steps = xs[0].shape[0]
        space.run(addresses, steps, reverse, memory.sums)
        kind = Kind.NEXT if steps % 2 else Kind.SPARE
        ends = {k: space.buffers[Buffer(kind, k)].copy() for k in self.loose_ends}
        self.idle.append(space)
        return ends

    def results(
        self,
        xp: ModuleType,
        carry: list[Array],
        xs: list[Array],
        memory: Memory,
        ends: dict[int, Array],
        *,
        reverse: bool,
    ) -> Results:
        """What `run` returns, of arrays of any library."""
        return self.make_results[reverse](xp, carry, xs, memory.stacks, memory.sums, ends)

    # ------------------------------------------------------------------ how it runs

    def workspace_sizes(
        self, shares: list[tuple[int, int]], capacities: list[int]
    ) -> dict[tuple[Argument, int | None], int]:
        """Numbers of the memory that a run needs beside arrays, by argument and by the thread whose it is, or None."""
        height, most = self.routines.tile_rows, self.routines.tile_columns
        length = self.routines.few(self.few).tile_rows if self.few else height
        sizes: dict[tuple[Argument, int | None], int] = {}
        for matrix in self.matrices:
            panels = Argument.of_matrix(Role.PANELS, matrix)
            sizes[panels, None] = -(-matrix.rows // length) * length * matrix.columns
        for side, blocks in self.collected.items():
            for k, block in enumerate(blocks):
                size = height if side is Role.LEFT else min(most, block.rows)
                rows = -(-block.rows // size) * size
                for n, capacity in enumerate(capacities):
                    sizes[Argument(side, number=k), n if self.own_sums else None] = rows * capacity
        buffers = {argument_of(Buffer(Kind.WORK, k)): shape[0] for k, (shape, _) in enumerate(self.cut.work)}
        work = {argument: rows for argument, rows in buffers.items() if argument in self.index}
        own = {Argument(Role.TRANSPOSED, buffer): rows for buffer, rows in self.apart.items()}
        if self.by_rows:
            sizes |= {(argument, None): rows * self.batch for argument, rows in work.items()}
        else:
            own |= work
        for n, (start, stop) in enumerate(shares):
            sizes |= {(argument, n): rows * (stop - start) for argument, rows in own.items()}
        return sizes

    def _shares(self, most: int) -> list[tuple[int, int]]:
        """The columns of each thread."""
        batch = self.batch
        if most == 1 or self.by_rows:
            return [(0, batch)] * most
        vectors = -(-batch // self.lanes)
        count = min(most, vectors)
        bounds = [min(vectors * k // count * self.lanes, batch) for k in range(count + 1)]
        return list(itertools.pairwise(bounds))

    def _readable(self, read: Read, array: HostArray) -> HostArray:
        """The array, or a copy in order where the loop can't read it as it is."""
        size, flags = read.size, array.flags
        if read.layout is Layout.PLAIN:
            fits = flags.c_contiguous
        elif read.layout is Layout.MATRIX:
            fits = size in array.strides
        else:
            fits = self._is_direct(array.strides, size) or (array.strides[1] == size and read.buffer in self.apart)
        return array if fits and flags.aligned else np.array(array, order="C")

    def _is_direct(self, strides: tuple[int, ...], size: int) -> bool:
        """Whether the numbers that a vector takes of an input stand side by side."""
        return strides[1 if self.batch == 1 else 2] == size

    def distances(self, read: Read, strides: tuple[int, ...]) -> tuple[int, dict[Argument, int]]:
        """Of a readable array with these strides: bytes between the columns of two threads, and arguments."""
        buffer, size = read.buffer, read.size
        if read.layout is Layout.PLAIN:
            return 0 if read.spread else size, {}
        if read.layout is Layout.MATRIX:
            row, column = reversed(strides) if read.transposed else strides
            found = ((Role.MATRIX_ROW, row // size), (Role.MATRIX_COLUMN, column // size))
            return 0, {Argument(role, buffer, transposed=read.transposed): value for role, value in found}
        step, row, column = strides
        direct = self._is_direct(strides, size)
        values = {
            Role.STEP: step // size,
            Role.ROW: (row if direct else column) // size,
            Role.APART: int(not direct),
        }
        return size if direct else column, {Argument(role, buffer): value for role, value in values.items()}


class TorchProgram:
    """A compiled loop over torch's tensors on the CPU, whose memory NumPy arrays share."""

    def __init__(self, program: CompiledProgram) -> None:
        self.program = program

    def run(
        self, xp: ModuleType, carry: list[Array], xs: list[Array], shared: list[Array], *, reverse: bool
    ) -> Results:
        """As of `graph.arguments.Program`."""
        groups = ([leaf.numpy() for leaf in leaves] for leaves in (carry, xs, shared))
        final, *trees = self.program.run(np, *groups, reverse=reverse)
        outputs, sums = (map_leaves(xp.from_numpy, tree) for tree in trees)
        return Results([xp.from_numpy(leaf) for leaf in final], outputs, sums)


Wrap: TypeAlias = Callable[[CompiledProgram], Program]  # for the arrays of a library


def as_it_is(program: CompiledProgram) -> Program:
    """For NumPy's arrays."""
    return program


@functools.lru_cache(maxsize=64)
def programs(xp: ModuleType, wrap: Wrap, step: Step, summing: bool) -> Programs[Program]:
    """The programs of a step: of each what `wrap` makes of a `CompiledProgram`, or None where there can be none."""

    def make(structures: Structures, form: Form) -> Program | None:
        try:
            graph = recorded(xp, step, structures, form, summing=summing)
            dump("graph", step, show_graph(graph))
            program = CompiledProgram(graph, str(form[0][0][1]).rpartition(".")[2])
        except Untraceable as reason:
            say_fallback(step, "compiled loop", reason)
            return None
        dump("stages", step, show_cut(program.cut))
        dump("source", step, program.library.source)
        return wrap(program)

    return Programs(make)


def forget() -> None:
    """Drop all programs; machine code that nothing refers to is freed, and ``PORTABLE_RNN_COMPILE`` is read again."""
    programs.cache_clear()
    forget_loops()
    forget_compiler()


def compiled_scan(
    xp: ModuleType,
    wrap: Wrap,
    step: Step,
    carry: PyTree,
    xs: PyTree,
    shared: PyTree,
    *,
    reverse: bool,
    summing: bool,
) -> tuple[PyTree, PyTree, PyTree] | None:
    """The carry, the outputs and the sums of a step's loop by machine code, or None where there can be none."""
    try:
        known = programs(xp, wrap, step, summing)
    except TypeError:  # a user's cell may hold what has no hash
        say_fallback(step, "compiled loop", "the step has no hash")
        return None
    found = known.find(carry, xs, shared)
    if found is None:
        given = Arguments(step, carry, xs, shared)
        if given.hindrance is not None or not _fits(given.leaves):
            return None
        found = known.add(given)
    program, build_carry, leaves = found
    if program is None or not _fits(leaves):
        return None
    final, outputs, sums = program.run(xp, *leaves, reverse=reverse)
    return build_carry(final), outputs, sums


def _fits(leaves: Leaves) -> bool:
    """Whether there is enough to do."""
    columns: int = leaves[1][0].shape[0] * leaves[0][0].shape[-1]
    return columns >= FEWEST_COLUMNS
