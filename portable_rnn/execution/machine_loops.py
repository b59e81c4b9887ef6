"""Programs of machine code: the memory and the threads of compiled loops (extra ``[fast]``)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..namespace import map_leaves
from . import reuse
from .compiled import collected, compiled_loop, vector_lanes
from .dialects import dialect
from .kernels import make_stages
from .matrices import routines
from .recording import Arguments, hoisting, outputs_over_time, recorded
from .stages import Product, RowSum
from .tracing import Graph, Untraceable, rebuilt
from .workers import at_once, threads, waiting_for_each_other

__all__ = ["compiled_scan"]

_WORTH_A_THREAD = 1 << 21  # multiplications of a loop
_WORTH_WAITING = 1 << 18  # multiplications of a step, after which threads wait for each other
_COLLECTED = 256  # columns that are taken together for the sums over time
_LINE = 64  # bytes of the cache


class CompiledProgram:
    """A loop of machine code for arguments of one form."""

    def __init__(self, graph: Graph, dtype: str) -> None:
        self.stages = stages = make_stages(graph, donate=False)
        self.output_structure, self.sum_structure = graph.output_structure, graph.sum_structure
        self.sums = _sum_places(graph)
        self.batch = graph.inputs["carry"][0].shape[1]
        inputs = {f"{kind[0]}{k}": v for kind in ("xs", "shared") for k, v in enumerate(graph.inputs[kind])}
        inputs |= {f"h{k}": value for k, value in enumerate(stages.hoisted)}
        self.booleans = {name for name, value in inputs.items() if value.boolean}
        self.booleans |= {f"y{k}" for k, stack in enumerate(stages.stacks) if stack.boolean}
        self.booleans |= {f"w{k}" for k, (_, boolean) in enumerate(stages.work) if boolean}
        self.booleans |= {f"{which}{k}" for k, v in enumerate(graph.inputs["carry"]) if v.boolean for which in "cnm"}
        self.hoist = hoisting(stages.hoisted, dialect("numpy"))
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
        self.loop = compiled_loop(
            stages,
            {name: value.shape for name, value in inputs.items()},
            self.booleans,
            dtype,
            lanes=lanes,
            single=self.batch == 1,
            by_rows=self.by_rows,
        )
        self.words = set(self.loop.words)
        self.routines = routines(dtype, lanes)

    def run(
        self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool
    ) -> tuple[list[Any], Any, Any]:
        """(leaves of the final carry, nest of the outputs, nest of the sums)."""
        most = threads() if self.multiplications * xs[0].shape[0] >= _WORTH_A_THREAD else 1
        run = _Run(self, xp, carry, xs, shared, reverse)
        if not self.by_rows:
            return run.results(most)
        with waiting_for_each_other(most) as count:
            return run.results(count)


class _Run:
    """One run: arrays and their addresses."""

    def __init__(
        self, program: CompiledProgram, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], reverse: bool
    ) -> None:
        self.program, self.xp, self.carry, self.xs, self.reverse = program, xp, carry, xs, reverse
        self.steps, self.dtype = xs[0].shape[0], carry[0].dtype
        self.held: list[Any] = []  # what the addresses belong to
        self.same = {"steps": self.steps, "reverse": int(reverse), "batch": program.batch}  # words of all threads
        self.moving: dict[str, tuple[int, int]] = {}  # address, bytes from one column to the next
        self.private: dict[str, int] = {}  # numbers for each column of a thread
        self._take_inputs(xs)
        self._take_shared(shared)
        self._make_stacks()
        self._take_carry()

    def _address(self, array: Any) -> int:
        self.held.append(array)
        return int(array.__array_interface__["data"][0])

    def _take_inputs(self, xs: list[Any]) -> None:
        for k, x in enumerate(xs):
            name = f"x{k}"
            if name not in self.program.words:
                continue
            step, row, column = x.strides
            size, together = x.itemsize, x.shape[2] == 1
            direct = (row if together else column) == size
            if not direct and (together or row != size or name in self.program.booleans):
                x, direct = self.xp.array(x, order="C"), True
                step, row, column = x.strides
            self.moving[name] = (self._address(x), size if direct else column)
            self.same[f"{name}_step"] = step // size
            self.same[f"{name}_row"] = (row if direct else column) // size
            self.same[f"{name}_buffer"] = 0
            if not direct:
                self.private[f"{name}_buffer"] = x.shape[1]

    def _take_shared(self, shared: list[Any]) -> None:
        program = self.program
        arrays = {f"s{k}": leaf for k, leaf in enumerate(shared)}
        if program.stages.hoisted:
            arrays |= {f"h{k}": leaf for k, leaf in enumerate(program.hoist(shared, self.dtype.type))}
        write = program.routines.functions[program.routines.names["panels"]]
        height = program.routines.tile_rows
        for name, transposed, rows, inner in program.matrices:
            matrix = arrays[name].T if transposed else arrays[name]
            if matrix.itemsize not in matrix.strides:
                matrix = np.ascontiguousarray(matrix)
            row, column = (stride // matrix.itemsize for stride in matrix.strides)
            if inner == 1:  # a row of one number has any stride
                column = 1
            panels = reuse.empty((program.routines.panels(rows), inner, height), self.dtype)
            to = self._address(panels)
            write(self._address(matrix), row, column, to, inner * height, rows, inner)
            self.same[f"{name}{'_T' if transposed else ''}_panels"] = to
        for name, leaf in arrays.items():
            if name in program.words:
                leaf = _plain(self.xp, leaf)
                self.moving[name] = (self._address(leaf), leaf.itemsize if leaf.shape[1] == program.batch > 1 else 0)

    def _make_stacks(self) -> None:
        self.whole: list[Any] = []
        self.after: list[Any] = []
        for k, stack in enumerate(self.program.stages.stacks):
            shape = (self.steps + (stack.carry is not None), *stack.shape)
            memory = reuse.empty(shape, np.bool if stack.boolean else self.dtype)
            self.whole.append(memory)
            if stack.carry is not None:
                memory[-1 if self.reverse else 0, ...] = self.carry[stack.carry]
                memory = memory[:-1] if self.reverse else memory[1:]
            self.after.append(memory)
            if f"y{k}" in self.program.words:
                self.moving[f"y{k}"] = (self._address(memory), memory.itemsize)

    def _take_carry(self) -> None:
        self.buffers: dict[str, Any] = {}
        for k, leaf in enumerate(self.carry):
            self.buffers[f"c{k}"] = _plain(self.xp, leaf)
            for name in (f"n{k}", f"m{k}"):
                if name in self.program.words:
                    self.buffers[name] = np.empty(leaf.shape, leaf.dtype)
        for name, array in self.buffers.items():
            self.moving[name] = (self._address(array), array.itemsize)

    # ------------------------------------------------------------------ threads

    def _shares(self, most: int) -> list[tuple[int, int]]:
        """The columns of each thread."""
        program, batch = self.program, self.program.batch
        if program.by_rows:
            return [(0, batch)] * most
        lanes = max(program.loop.lanes, _LINE // self.dtype.itemsize)  # none writes to a line of another
        vectors = -(-batch // lanes)
        count = max(min(most, vectors), 1)
        bounds = [min(vectors * k // count * lanes, batch) for k in range(count + 1)]
        return list(itertools.pairwise(bounds))

    def results(self, most: int) -> tuple[list[Any], Any, Any]:
        """Run it, in so many threads at most."""
        program, terms = self.program, self.program.stages.terms
        shares = self._shares(most)
        apart = 1 if program.by_rows else len(shares)
        sums = [np.zeros((apart, t.left.rows, t.right.rows if t.right else 1), self.dtype) for t in terms]
        totals = [self._address(each) for each in sums]
        if program.by_rows:
            self.same["counter"] = self._address(np.zeros(1, dtype=np.int64))
            self.same["parts"] = len(shares)
        work: dict[str, int] = {}
        calls = []
        for number, (start, stop) in enumerate(shares):
            width = stop - start
            own = self.same | {name: base + start * column for name, (base, column) in self.moving.items()}
            own["width"], own["part"] = width, number
            own["capacity"] = max(_COLLECTED // width, 1) * width
            which = 0 if program.by_rows else number
            own |= {
                f"sum{k}": base + which * each.strides[0]
                for k, (base, each) in enumerate(zip(totals, sums, strict=True))
            }
            if number == 0 or not program.by_rows:
                work = self._placed(self._work(width))
            own |= work | self._placed(self._own_memory(width, own["capacity"]))
            words = np.array([own[name] for name in program.loop.words], dtype=np.int64)
            calls.append(functools.partial(program.loop.function, self._address(words)))
        if len(calls) == 1:
            calls[0]()
        else:
            at_once(calls)
        outputs = outputs_over_time(program.stages.outputs, self.xs, self.whole, self.after, self.reverse)
        added = [total[0] if apart == 1 else total.sum(axis=0) for total in sums]
        added = [total if term.right else total[:, 0] for total, term in zip(added, terms, strict=True)]
        found_sums = [_put_together(place, added) for place in program.sums]
        return (
            self._final(),
            rebuilt(program.output_structure, iter(outputs)),
            rebuilt(program.sum_structure, iter(found_sums)),
        )

    def _work(self, width: int) -> Iterator[tuple[str, int]]:
        """Numbers of each workspace of so many columns."""
        for k, (shape, _) in enumerate(self.program.stages.work):
            if f"w{k}" in self.program.words:
                yield f"w{k}", shape[0] * width

    def _own_memory(self, width: int, capacity: int) -> Iterator[tuple[str, int]]:
        """Numbers of what each thread has for itself."""
        for name, rows in self.private.items():
            yield name, rows * width
        height = self.program.routines.tile_rows
        for kind, places in self.program.collected.items():
            for k, place in enumerate(places):
                yield f"{kind}{k}", (-(-place.rows // height) * height if kind == "left" else place.rows) * capacity

    def _placed(self, sizes: Iterator[tuple[str, int]]) -> dict[str, int]:
        """Addresses in one piece of memory."""
        offsets, end = {}, 0
        for name, numbers in sizes:
            offsets[name] = end
            end += -(-numbers * self.dtype.itemsize // _LINE) * _LINE
        if not offsets:
            return {}
        memory = reuse.empty((end + _LINE,), np.uint8)
        base = -(-self._address(memory) // _LINE) * _LINE
        return {name: base + offset for name, offset in offsets.items()}

    def _final(self) -> list[Any]:
        final = []
        for k, end in enumerate(self.program.stages.ends):
            if end[0] == "y":
                final.append(self.after[int(end[1:])][0 if self.reverse else -1].copy())
            elif end[0] == "n":
                final.append(self.buffers[f"{'n' if self.steps % 2 else 'm'}{k}"])
            else:
                final.append(self.carry[k].copy())
        return final


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
    return array if array.flags.c_contiguous else xp.array(array, order="C")


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
    library: str, dtype: str, step: Any, structures: Any, specs: Any, summing: bool
) -> CompiledProgram | TorchProgram | None:
    """The program of a step for arguments of this form, or None where there can be none."""
    try:
        program = CompiledProgram(recorded(step, structures, specs, summing=summing), dtype)
    except Untraceable:
        return None
    return TorchProgram(program) if library == "torch" else program


def compiled_scan(
    xp: Any, library: str, step: Any, carry: Any, xs: Any, shared: Any, *, reverse: bool, summing: bool
) -> tuple[Any, Any, Any] | None:
    """The carry, the outputs and the sums of a step's loop by machine code, or None where there can be none."""
    given = Arguments(xp, step, carry, xs, shared)
    first = given.leaves[0][0]
    if given.specs is None or not (library == "numpy" or first.device.type == "cpu"):
        return None
    dtype = str(given.floating).rpartition(".")[2]
    program = _compiled_program(library, dtype, step, given.structures, given.specs, summing)
    if program is None or given.leaves[1][0].shape[0] == 0:
        return None
    final, outputs, sums = program.run(xp, *given.leaves, reverse=reverse)
    return rebuilt(given.structures[0], iter(final)), outputs, sums
