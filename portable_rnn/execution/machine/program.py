"""Programs of machine code: compiled loops for arguments of one form (extra ``[fast]``)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...arrays import map_leaves
from .. import memory_pool
from ..graph.arguments import Arguments, Programs, hoisting, outputs_over_time, recorded
from ..graph.cut import make_stages
from ..graph.instructions import RowSum
from ..graph.pytrees import expression
from ..graph.trace import Graph, Untraceable
from ..python_loop.calls import dialect
from .arguments import Form, collected, matrices_of, panels_of
from .gemm import routines, takes_rows
from .loop import compiled_loop, forget_loops, vector_lanes
from .thread_pool import several, thread_count
from .workspace import CARRY, SHARED, XS, Read, Workspace, address_of

__all__ = ["CompiledProgram", "Memory", "compiled_scan", "forget", "programs"]

_WORTH_A_THREAD = 1 << 21  # multiplications of a loop
_WORTH_WAITING = 1 << 18  # multiplications of a step, after which threads wait for each other
_OWN_SUMS = 1 << 20  # numbers of all sums over time, up to which each thread has its own
_FEWEST = 32  # columns of all steps: a product with some of them takes as long as it takes to lay its weights out
_LINE = 64  # bytes of the cache


class Memory(NamedTuple):
    """Where a loop writes: a stack over time for each of `Stages.stacks`, and all sums, one after the other."""

    stacks: list[Any]
    sums: Any


class CompiledProgram:
    """A loop of machine code for arguments of one form."""

    def __init__(self, graph: Graph, dtype: str) -> None:
        self.stages = stages = make_stages(graph, donate=False)
        self.sum_forms = [(t.left.rows, t.right.rows) if t.right else (t.left.rows,) for t in stages.terms]
        self.sum_ends = list(itertools.accumulate(map(math.prod, self.sum_forms), initial=0))
        self.dtype = np.dtype(dtype)
        self.batch = graph.inputs["carry"][0].shape[1]
        self.inputs, self.constants = len(graph.inputs["xs"]), len(graph.inputs["shared"])
        self.carry_forms = [(v.shape, np.dtype(bool) if v.boolean else self.dtype) for v in graph.inputs["carry"]]
        inputs = {f"{kind[0]}{k}": v for kind in ("xs", "shared") for k, v in enumerate(graph.inputs[kind])}
        inputs |= {f"h{k}": value for k, value in enumerate(stages.hoisted)}
        booleans = {name for name, value in inputs.items() if value.boolean}
        booleans |= {f"y{k}" for k, stack in enumerate(stages.stacks) if stack.boolean}
        booleans |= {f"w{k}" for k, (_, boolean) in enumerate(stages.work) if boolean}
        booleans |= {f"{which}{k}" for k, v in enumerate(graph.inputs["carry"]) if v.boolean for which in "cnm"}
        self.hoist = hoisting(stages.hoisted, dialect("numpy")) if stages.hoisted else None
        self.matrices = matrices_of(stages)
        self.collected = {kind: collected(stages, kind) for kind in ("left", "right")}

        sizes = [rows * inner for _, _, rows, inner in self.matrices]
        sizes += [term.left.rows * term.right.rows for term in stages.terms if term.right is not None]
        self.multiplications = sum(sizes) * self.batch  # of a step
        lanes = vector_lanes(dtype, self.batch)
        sums_rows = any(isinstance(stage, RowSum) for stage in stages.stages)
        few = self.batch < 2 * lanes and self.multiplications >= _WORTH_WAITING and not sums_rows
        self.by_rows = few and thread_count() > 1
        self.routines = routines(dtype, lanes)
        shapes = {name: value.shape for name, value in inputs.items()}
        self.own_sums = not self.by_rows and self.sum_ends[-1] <= _OWN_SUMS
        self.lanes = max(lanes, _LINE // self.dtype.itemsize)  # of a thread at least: none writes to another's line
        whole = self.by_rows or self.batch <= self.lanes  # every thread takes all columns
        self.few = self.batch if whole and takes_rows(dtype, self.batch) else 0
        form = Form(shapes, booleans, dtype, lanes, self.batch == 1, self.by_rows, self.few, self.own_sums)
        self.name, self.library, words = compiled_loop(stages, form)
        self.index = {name: k for k, name in enumerate(words)}
        self.reads = self._find_reads(inputs, booleans, self.constants)
        forms = self.stack_forms(0)
        # of the stacks that stages write to: number, carry, bytes of a number
        self.written = [
            (k, stack.carry, forms[k][1].itemsize) for k, stack in enumerate(stages.stacks) if f"y{k}" in self.index
        ]
        self.loose_ends = [k for k, end in enumerate(stages.ends) if end[0] == "n"]
        self.given = words[: words.index("reverse") + 1]
        # rows of the inputs that may have to be transposed
        self.apart = {
            r.word: inputs[r.word].shape[0]
            for r in self.reads
            if r.kind == "input" and r.word not in booleans and self.batch > 1
        }
        before = (0, len(self.carry_forms), len(self.carry_forms) + self.inputs)  # among all leaves
        self.positions = [before[read.group] + read.number for read in self.reads]
        self.make_results = {reverse: self._results(graph, reverse) for reverse in (False, True)}
        self.idle: list[Workspace] = []

    def _find_reads(self, inputs: dict[str, Any], booleans: set[str], shared: int) -> list[Read]:
        size = self.dtype.itemsize
        found = []
        for name, value in inputs.items():
            if name in self.index:
                of_it = 1 if name in booleans else size
                if name[0] == "x":
                    found.append(Read(name, XS, int(name[1:]), "input", of_it))
                else:
                    spread = value.shape[1] != self.batch or self.batch == 1
                    found.append(Read(name, SHARED, _number(name, shared), "plain", of_it, spread=spread))
        for name, transposed, _, _ in self.matrices:
            word = f"{panels_of(name, transposed)}_of"
            found.append(Read(word, SHARED, _number(name, shared), "product", size, transposed))
        for k, (_, dtype) in enumerate(self.carry_forms):
            if f"c{k}" in self.index:
                found.append(Read(f"c{k}", CARRY, k, "plain", dtype.itemsize))
        return sorted(found, key=lambda read: self.index[read.word])

    def _results(self, graph: Graph, reverse: bool) -> Callable[..., Any]:
        """What `run` returns, as a function of the leaves, the memory and the carries that end elsewhere."""
        stages = self.stages
        known: dict[str, Any] = {}
        outputs = iter(outputs_over_time(stages.outputs, stages.stacks, graph.inputs["xs"], reverse))
        last = 0 if reverse else -1  # a part of a stack would keep all of it
        ends = {"n": "ends[{k}]", "c": "carry[{k}].copy()", "y": f"stacks[{{of}}][{last}].copy()"}
        final = [ends[end[0]].format(k=k, of=end[1:]) for k, end in enumerate(stages.ends)]
        bounds = itertools.pairwise(self.sum_ends)
        terms = [f"sums[{a}:{b}].reshape({form})" for (a, b), form in zip(bounds, self.sum_forms, strict=True)]
        numbers = {term.number: k for k, term in enumerate(graph.terms())}

        def put_together(value: Any) -> str:
            if value.number in numbers:
                return terms[numbers[value.number]]
            return f"xp.concat([{', '.join(map(put_together, value.operands))}])"

        nests = [
            expression(graph.output_structure, outputs, known),
            expression(graph.sum_structure, map(put_together, graph.sums), known),
        ]
        text = f"lambda xp, carry, xs, stacks, sums, ends: ([{', '.join(final)}], {', '.join(nests)})"
        found: Callable[..., Any] = eval(text, known)
        return found

    # ------------------------------------------------------------------ a run

    def run(
        self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool
    ) -> tuple[list[Any], Any, Any]:
        """(leaves of the final carry, nest of the outputs, nest of the sums)."""
        stacks = [memory_pool.empty(*form) for form in self.stack_forms(xs[0].shape[0])]
        memory = Memory(stacks, memory_pool.empty((self.sum_ends[-1],), self.dtype))
        ends = self.compute(carry, xs, shared, memory, reverse=reverse)
        return self.results(xp, carry, xs, memory, ends, reverse=reverse)

    def stack_forms(self, steps: int) -> list[tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each stack; one that begins with a carry has a step more."""
        return [
            ((steps + (stack.carry is not None), *stack.shape), np.dtype(bool) if stack.boolean else self.dtype)
            for stack in self.stages.stacks
        ]

    def end_forms(self) -> dict[int, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of the carries that end neither in a stack nor as they began, by their number."""
        return {k: self.carry_forms[k] for k in self.loose_ends}

    def compute(
        self, carry: list[Any], xs: list[Any], shared: list[Any], memory: Memory, *, reverse: bool
    ) -> dict[int, Any]:
        """Run the loop over NumPy arrays. Returns the carries of `end_forms`."""
        most = thread_count() if self.multiplications * xs[0].shape[0] >= _WORTH_A_THREAD else 1
        if most == 1:
            return self._compute(1, carry, xs, shared, memory, reverse)
        with several(most) as count:
            return self._compute(count, carry, xs, shared, memory, reverse)

    def _compute(
        self, most: int, carry: list[Any], xs: list[Any], shared: list[Any], memory: Memory, reverse: bool
    ) -> dict[int, Any]:
        shares = self._shares(most)
        space = self.idle.pop() if self.idle else None  # other threads make their own
        if space is None or space.shares != shares:
            space = Workspace(self, shares)
        if self.hoist is not None:
            shared = [*shared, *self.hoist(shared, self.dtype.type)]
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
        which = "n" if steps % 2 else "m"
        ends = {k: space.buffers[f"{which}{k}"].copy() for k in self.loose_ends}
        self.idle.append(space)
        return ends

    def results(
        self, xp: Any, carry: list[Any], xs: list[Any], memory: Memory, ends: dict[int, Any], *, reverse: bool
    ) -> tuple[list[Any], Any, Any]:
        """What `run` returns, of arrays of any library."""
        found: tuple[list[Any], Any, Any] = self.make_results[reverse](xp, carry, xs, memory.stacks, memory.sums, ends)
        return found

    # ------------------------------------------------------------------ how it runs

    def workspace_sizes(
        self, shares: list[tuple[int, int]], capacities: list[int]
    ) -> dict[tuple[str, int | None], int]:
        """Numbers of the memory that a run needs beside arrays, by its word and the thread it belongs to, or None."""
        height, most = self.routines.tile_rows, self.routines.tile_columns
        length = self.routines.few(self.few).tile_rows if self.few else height
        sizes: dict[tuple[str, int | None], int] = {}
        for name, transposed, rows, inner in self.matrices:
            sizes[panels_of(name, transposed), None] = -(-rows // length) * length * inner
        for kind, places in self.collected.items():
            for k, place in enumerate(places):
                size = height if kind == "left" else min(most, place.rows)
                rows = -(-place.rows // size) * size
                for n, capacity in enumerate(capacities):
                    sizes[f"{kind}{k}", n if self.own_sums else None] = rows * capacity
        work = {f"w{k}": shape[0] for k, (shape, _) in enumerate(self.stages.work) if f"w{k}" in self.index}
        own = {f"{name}_buffer": rows for name, rows in self.apart.items()}
        if self.by_rows:
            sizes |= {(name, None): rows * self.batch for name, rows in work.items()}
        else:
            own |= work
        for n, (start, stop) in enumerate(shares):
            sizes |= {(name, n): rows * (stop - start) for name, rows in own.items()}
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

    def _readable(self, read: Read, array: Any) -> Any:
        """The array, or a copy in order where the loop can't read it as it is."""
        size, flags = read.size, array.flags
        if read.kind == "plain":
            fits = flags.c_contiguous
        elif read.kind == "product":
            fits = size in array.strides
        else:
            fits = self._is_direct(array.strides, size) or (array.strides[1] == size and read.word in self.apart)
        return array if fits and flags.aligned else np.array(array, order="C")

    def _is_direct(self, strides: tuple[int, ...], size: int) -> bool:
        """Whether the numbers that a vector takes of an input stand side by side."""
        return strides[1 if self.batch == 1 else 2] == size

    def layout(self, read: Read, strides: tuple[int, ...]) -> tuple[int, dict[str, int]]:
        """Of a readable array with these strides: bytes between the columns of two threads, and words."""
        name, size = read.word, read.size
        if read.kind == "plain":
            return 0 if read.spread else size, {}
        if read.kind == "product":
            row, column = reversed(strides) if read.transposed else strides
            name = name.removesuffix("_of")
            return 0, {f"{name}_row": row // size, f"{name}_column": column // size}
        step, row, column = strides
        direct = self._is_direct(strides, size)
        words = {"step": step // size, "row": (row if direct else column) // size, "apart": int(not direct)}
        return size if direct else column, {f"{name}_{word}": value for word, value in words.items()}


class TorchProgram:
    """A compiled loop over torch's tensors on the CPU, whose memory NumPy arrays share."""

    def __init__(self, program: CompiledProgram) -> None:
        self.program = program

    def run(
        self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool
    ) -> tuple[list[Any], Any, Any]:
        """As `CompiledProgram.run`."""
        groups = ([leaf.numpy() for leaf in leaves] for leaves in (carry, xs, shared))
        final, *nests = self.program.run(np, *groups, reverse=reverse)
        outputs, sums = (map_leaves(xp.from_numpy, nest) for nest in nests)
        return [xp.from_numpy(leaf) for leaf in final], outputs, sums


def _number(name: str, shared: int) -> int:
    """Where something the same at every step is found, hoisted values behind what is given."""
    return int(name[1:]) + (shared if name[0] == "h" else 0)


@functools.lru_cache(maxsize=64)
def programs(xp: Any, library: str, step: Any, summing: bool) -> Programs:
    """The programs of a step: of each a `CompiledProgram`, a `TorchProgram` or, where there can be none, None."""

    def make(structures: Any, forms: Any) -> CompiledProgram | TorchProgram | None:
        try:
            dtype = str(forms[0][0][1]).rpartition(".")[2]
            program = CompiledProgram(recorded(xp, step, structures, forms, summing=summing), dtype)
        except Untraceable:
            return None
        return TorchProgram(program) if library == "torch" else program

    return Programs(make)


def forget() -> None:
    """Drop all programs; machine code that nothing refers to is freed."""
    programs.cache_clear()
    forget_loops()


def compiled_scan(
    xp: Any, library: str, step: Any, carry: Any, xs: Any, shared: Any, *, reverse: bool, summing: bool
) -> tuple[Any, Any, Any] | None:
    """The carry, the outputs and the sums of a step's loop by machine code, or None where there can be none."""
    try:
        known = programs(xp, library, step, summing)
    except TypeError:  # a user's cell may hold what has no hash
        return None
    found = known.find(carry, xs, shared)
    if found is None:
        given = Arguments(step, carry, xs, shared)
        if given.forms is None or not _fits(library, given.leaves):
            return None
        found = known.add(given)
    program, build_carry, leaves = found
    if program is None or not _fits(library, leaves):
        return None
    final, outputs, sums = program.run(xp, *leaves, reverse=reverse)
    return build_carry(final), outputs, sums


def _fits(library: str, leaves: tuple[list[Any], ...]) -> bool:
    """Whether there is enough to do, on the processor."""
    first, over_time = leaves[0][0], leaves[1][0]
    columns: int = over_time.shape[0] * first.shape[-1]
    return columns >= _FEWEST and (library == "numpy" or first.device.type == "cpu")
