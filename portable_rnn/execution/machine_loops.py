"""Programs of machine code: the memory and the threads of compiled loops (extra ``[fast]``)."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np

from ..namespace import map_leaves
from . import reuse
from .compiled import Form, collected, compiled_loop, panels_of, vector_lanes
from .dialects import dialect
from .kernels import make_stages
from .llvm import entry_of
from .matrices import routines
from .recording import Arguments, hoisting, outputs_over_time, recorded
from .stages import Product, RowSum
from .tracing import Graph, Untraceable, rebuilt
from .workers import at_once, several, threads

__all__ = ["compiled_scan"]

_WORTH_A_THREAD = 1 << 21  # multiplications of a loop
_WORTH_WAITING = 1 << 18  # multiplications of a step, after which threads wait for each other
_FEWEST = 32  # columns of all steps: a product with some of them takes as long as it takes to lay its weights out
_COLLECTED = 512  # columns that are taken together for the sums over time
_LINE = 64  # bytes of the cache
_SMALL = 1 << 16  # bytes: workspaces of less are kept


class CompiledProgram:
    """A loop of machine code for arguments of one form."""

    def __init__(self, graph: Graph, dtype: str) -> None:
        self.stages = stages = make_stages(graph, donate=False)
        self.output_structure, self.sum_structure = graph.output_structure, graph.sum_structure
        self.sums = _sum_places(graph)
        self.dtype = np.dtype(dtype)
        self.batch = graph.inputs["carry"][0].shape[1]
        self.carry_forms = [(v.shape, np.dtype(bool) if v.boolean else self.dtype) for v in graph.inputs["carry"]]
        inputs = {f"{kind[0]}{k}": v for kind in ("xs", "shared") for k, v in enumerate(graph.inputs[kind])}
        inputs |= {f"h{k}": value for k, value in enumerate(stages.hoisted)}
        booleans = {name for name, value in inputs.items() if value.boolean}
        booleans |= {f"y{k}" for k, stack in enumerate(stages.stacks) if stack.boolean}
        booleans |= {f"w{k}" for k, (_, boolean) in enumerate(stages.work) if boolean}
        booleans |= {f"{which}{k}" for k, v in enumerate(graph.inputs["carry"]) if v.boolean for which in "cnm"}
        self.hoist = hoisting(stages.hoisted, dialect("numpy")) if stages.hoisted else None
        products = [stage for stage in stages.stages if isinstance(stage, Product)]
        self.matrices = list(dict.fromkeys((p.left, p.transposed, p.out.rows, p.right.rows) for p in products))
        self.collected = {kind: collected(stages, kind) for kind in ("left", "right")}

        sizes = [rows * inner for _, _, rows, inner in self.matrices]
        sizes += [term.left.rows * term.right.rows for term in stages.terms if term.right is not None]
        self.multiplications = sum(sizes) * self.batch  # of a step
        lanes = vector_lanes(dtype, self.batch)
        sums_rows = any(isinstance(stage, RowSum) for stage in stages.stages)
        few = self.batch < 2 * lanes and self.multiplications >= _WORTH_WAITING and not sums_rows
        self.by_rows = few and threads() > 1
        self.routines = routines(dtype, lanes)
        shapes = {name: value.shape for name, value in inputs.items()}
        form = Form(shapes, booleans, dtype, lanes, single=self.batch == 1, by_rows=self.by_rows)
        self.function, words = compiled_loop(stages, form)
        self.index = {name: k for k, name in enumerate(words)}
        self.lanes = max(lanes, _LINE // self.dtype.itemsize)  # of a thread at least: none writes to another's line
        # by number, the inputs that are read, and how many rows those have that may have to be transposed
        self.read = [k for k in range(len(graph.inputs["xs"])) if f"x{k}" in self.index]
        self.apart = {k: inputs[f"x{k}"].shape[0] for k in self.read if f"x{k}" not in booleans and self.batch > 1}
        self.same = [name for name in inputs if name[0] in "sh" and name in self.index]
        self.idle: list[_Workspace] = []

    def run(
        self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool
    ) -> tuple[list[Any], Any, Any]:
        """(leaves of the final carry, nest of the outputs, nest of the sums)."""
        arguments = (xp, carry, xs, shared, reverse)
        most = threads() if self.multiplications * xs[0].shape[0] >= _WORTH_A_THREAD else 1
        if most == 1:
            return self._run(1, *arguments)
        with several(most) as count:
            return self._run(count, *arguments)

    def _run(
        self, most: int, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], reverse: bool
    ) -> tuple[list[Any], Any, Any]:
        shares = self._shares(most)
        space = self.idle.pop() if self.idle else None  # other threads make their own
        if space is None or space.shares != shares:
            space = _Workspace(self, shares)
        steps = xs[0].shape[0]
        space.begin(steps, reverse)
        self._give_inputs(space, xp, xs)
        self._give_shared(space, xp, shared)
        self._give_carry(space, xp, carry)
        whole, after = self._make_stacks(space, carry, steps, reverse)
        sums = self._make_sums(space)
        space.run()
        outputs = outputs_over_time(self.stages.outputs, xs, whole, after, reverse)
        found = (
            self._final(space, carry, after, steps, reverse),
            rebuilt(self.output_structure, iter(outputs)),
            rebuilt(self.sum_structure, iter([_put_together(place, sums) for place in self.sums])),
        )
        space.end()
        self.idle.append(space)
        return found

    def workspace_sizes(self, shares: list[tuple[int, int]], capacity: int) -> dict[tuple[str, int | None], int]:
        """Numbers of the memory that a run needs beside arrays, by its word and the thread it belongs to, or None."""
        height, panels = self.routines.tile_rows, self.routines.panels
        sizes: dict[tuple[str, int | None], int] = {}
        for name, transposed, rows, inner in self.matrices:
            sizes[panels_of(name, transposed), None] = panels(rows) * height * inner
        for kind, places in self.collected.items():
            for k, place in enumerate(places):
                rows = panels(place.rows) * height if kind == "left" else place.rows
                sizes[f"{kind}{k}", None] = rows * capacity
        work = {f"w{k}": shape[0] for k, (shape, _) in enumerate(self.stages.work) if f"w{k}" in self.index}
        own = {f"x{k}_buffer": rows for k, rows in self.apart.items()}
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

    def _give_inputs(self, space: _Workspace, xp: Any, xs: list[Any]) -> None:
        for k in self.read:
            x = xs[k]
            size, together = x.itemsize, self.batch == 1
            step, row, column = x.strides
            direct = (row if together else column) == size
            if not (direct or (row == size and k in self.apart)) or not x.flags.aligned:
                x, direct = xp.array(x, order="C"), True
                step, row, column = x.strides
            space.give(f"x{k}", x, size if direct else column)
            space.set(f"x{k}_step", step // size)
            space.set(f"x{k}_row", (row if direct else column) // size)
            space.use_buffer(k, not direct)

    def _give_shared(self, space: _Workspace, xp: Any, shared: list[Any]) -> None:
        arrays = {f"s{k}": leaf for k, leaf in enumerate(shared)}
        if self.hoist is not None:
            arrays |= {f"h{k}": leaf for k, leaf in enumerate(self.hoist(shared, self.dtype.type))}
        write = self.routines.functions[self.routines.names["panels"]]
        for name, transposed, rows, inner in self.matrices:
            matrix = arrays[name].T if transposed else arrays[name]
            size = matrix.itemsize
            row, column = matrix.strides
            if (column != size and row != size) or not matrix.flags.aligned:
                matrix = np.array(matrix, order="C")
                row, column = matrix.strides
            to = space.base + space.offset[panels_of(name, transposed), None]
            write(address_of(matrix), row // size, column // size, to, inner * self.routines.tile_rows, rows, inner)
        for name in self.same:
            leaf = _plain(xp, arrays[name])
            space.give(name, leaf, leaf.itemsize if leaf.shape[1] == self.batch > 1 else 0)

    def _give_carry(self, space: _Workspace, xp: Any, carry: list[Any]) -> None:
        for k, leaf in enumerate(carry):
            leaf = _plain(xp, leaf)
            space.give(f"c{k}", leaf, leaf.itemsize)

    def _make_stacks(
        self, space: _Workspace, carry: list[Any], steps: int, reverse: bool
    ) -> tuple[list[Any], list[Any]]:
        whole: list[Any] = []
        after: list[Any] = []
        for k, stack in enumerate(self.stages.stacks):
            dtype = np.bool if stack.boolean else self.dtype
            memory = reuse.empty((steps + (stack.carry is not None), *stack.shape), dtype)
            whole.append(memory)
            if stack.carry is not None:
                memory[-1 if reverse else 0] = carry[stack.carry]
                memory = memory[:-1] if reverse else memory[1:]
            after.append(memory)
            if f"y{k}" in self.index:
                space.give(f"y{k}", memory, memory.itemsize)
        return whole, after

    def _make_sums(self, space: _Workspace) -> list[Any]:
        """Zeros, one after the other in one array."""
        forms = [(t.left.rows, t.right.rows) if t.right else (t.left.rows,) for t in self.stages.terms]
        if not forms:
            return []
        sizes = [math.prod(form) for form in forms]
        ends = list(itertools.accumulate(sizes))
        together = np.zeros(ends[-1], self.dtype)
        base = address_of(together)
        space.held.append(together)
        for k, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            space.set(f"sum{k}", base + (end - size) * self.dtype.itemsize)
        return [together[e - s : e].reshape(f) for s, e, f in zip(sizes, ends, forms, strict=True)]

    def _final(self, space: _Workspace, carry: list[Any], after: list[Any], steps: int, reverse: bool) -> list[Any]:
        final = []
        for k, end in enumerate(self.stages.ends):
            if end[0] == "y":
                final.append(after[int(end[1:])][0 if reverse else -1].copy())
            elif end[0] == "n":
                final.append(space.buffers[f"{'n' if steps % 2 else 'm'}{k}"].copy())
            else:
                final.append(carry[k].copy())
        return final


class _Workspace:
    """Memory of a loop while it runs, and the words of each thread; runs use it one after the other.

    Attributes
    ----------
    shares : list of (start, stop)
        The columns of each thread.
    buffers : dict of str to array
        Where the carry goes.
    """

    def __init__(self, program: CompiledProgram, shares: list[tuple[int, int]]) -> None:
        self.shares, self.index, batch = shares, program.index, program.batch
        capacity = max(_COLLECTED // batch, 1) * batch
        self.buffers = {
            f"{which}{k}": np.empty(shape, dtype)
            for k, (shape, dtype) in enumerate(program.carry_forms)
            for which in "nm"
            if f"{which}{k}" in self.index
        }
        self.counter = np.zeros(1, dtype=np.int64)
        self.held: list[Any] = []  # what belongs to the addresses of a run
        self.words = [[0] * len(self.index) for _ in shares]  # as arrays only when it runs: lists are faster to fill
        self.arrays = [np.zeros(len(self.index), dtype=np.int64) for _ in shares]
        self.addresses = np.array([address_of(array) for array in self.arrays])
        self.function, self.entry = program.function, entry_of(program.function)
        for n, (words, (start, stop)) in enumerate(zip(self.words, shares, strict=True)):
            known = {"batch": batch, "first": start, "width": stop - start, "part": n, "parts": len(shares)}
            known |= {"capacity": capacity, "counter": address_of(self.counter)}
            known |= {name: address_of(array) + start * array.itemsize for name, array in self.buffers.items()}
            for name, word in known.items():
                words[self.index[name]] = word
        self._lay_out(program.workspace_sizes(shares, capacity), program.dtype.itemsize)

    def _lay_out(self, sizes: dict[tuple[str, int | None], int], size: int) -> None:
        """Decide where in one piece of memory everything stands."""
        ends = list(itertools.accumulate((-(-n * size // _LINE) * _LINE for n in sizes.values()), initial=0))
        self.offset = dict(zip(sizes, ends, strict=False))
        self.bytes = ends[-1] + _LINE
        self.base = 0
        self.memory: Any = None
        self.moving: list[dict[int, int]] = []  # for each thread, the words that stand in that memory, and where
        for n in range(len(self.shares)):
            found = {self.index[name]: o for (name, thread), o in self.offset.items() if thread in (None, n)}
            self.moving.append(found)

    def begin(self, steps: int, reverse: bool) -> None:
        """Have memory for a run."""
        if self.memory is None:
            self.memory = reuse.empty((self.bytes,), np.uint8)
            self.base = -(-address_of(self.memory) // _LINE) * _LINE
            for words, moving in zip(self.words, self.moving, strict=True):
                for k, offset in moving.items():
                    words[k] = self.base + offset
        self.set("steps", steps)
        self.set("reverse", int(reverse))
        self.counter[0] = 0

    def end(self) -> None:
        """Let go of what belongs to a run, and of memory that is worth giving back."""
        self.held = []
        if self.bytes > _SMALL:
            self.memory = None

    def set(self, name: str, value: int) -> None:
        """A word that is the same for all threads."""
        k = self.index[name]
        for words in self.words:
            words[k] = value

    def give(self, name: str, array: Any, column: int) -> None:
        """The address of an array whose columns are so many bytes apart."""
        if name not in self.index:
            return
        self.held.append(array)
        k, base = self.index[name], address_of(array)
        for words, (start, _) in zip(self.words, self.shares, strict=True):
            words[k] = base + start * column

    def use_buffer(self, k: int, used: bool) -> None:
        """Whether an input is transposed into a buffer of each thread."""
        index = self.index[f"x{k}_buffer"]
        for n, words in enumerate(self.words):
            words[index] = self.base + self.offset[f"x{k}_buffer", n] if used else 0

    def run(self) -> None:
        for array, words in zip(self.arrays, self.words, strict=True):
            array[:] = words
        if len(self.arrays) == 1:
            self.function(int(self.addresses[0]))
        else:
            at_once(self.entry, self.addresses)


def address_of(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


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


def _plain(xp: Any, array: Any) -> Any:
    """An array whose rows stand one after the other in memory."""
    return array if array.flags.c_contiguous and array.flags.aligned else xp.array(array, order="C")


def _sum_places(graph: Graph) -> list[Any]:
    """How each sum is put together from the terms: the number of a term, or a list of such."""
    numbers = {term.number: k for k, term in enumerate(graph.terms())}

    def place(value: Any) -> Any:
        if value.number in numbers:
            return numbers[value.number]
        return [place(operand) for operand in value.operands]

    return [place(value) for value in graph.sums]


def _put_together(place: Any, added: list[Any]) -> Any:
    if isinstance(place, list):
        return np.concatenate([_put_together(part, added) for part in place])
    return added[place]


@functools.lru_cache(maxsize=256)
def _compiled_program(
    xp: Any, library: str, step: Any, structures: Any, forms: Any, summing: bool
) -> CompiledProgram | TorchProgram | None:
    """The program of a step for arguments of this form, or None where there can be none."""
    try:
        dtype = str(forms[0][0][1]).rpartition(".")[2]
        program = CompiledProgram(recorded(xp, step, structures, forms, summing=summing), dtype)
    except Untraceable:
        return None
    return TorchProgram(program) if library == "torch" else program


def compiled_scan(
    xp: Any, library: str, step: Any, carry: Any, xs: Any, shared: Any, *, reverse: bool, summing: bool
) -> tuple[Any, Any, Any] | None:
    """The carry, the outputs and the sums of a step's loop by machine code, or None where there can be none."""
    given = Arguments(step, carry, xs, shared)
    columns = given.leaves[1][0].shape[0] * given.leaves[0][0].shape[-1] if given.forms else 0
    if columns < _FEWEST or not (library == "numpy" or given.leaves[0][0].device.type == "cpu"):
        return None
    program = _compiled_program(xp, library, step, given.structures, given.forms, summing)
    if program is None:
        return None
    final, outputs, sums = program.run(xp, *given.leaves, reverse=reverse)
    return rebuilt(given.structures[0], iter(final)), outputs, sums
