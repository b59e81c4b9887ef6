"""Stages as one function of machine code (extra ``[fast]``), which several threads run.

The columns of a batch don't look at each other: each thread takes some of them from the first step to the last. Only
for large sums over time, of which each takes some rows, do they wait for each other, every few steps. Where a batch has
too few columns (two threads must not write to one line of the cache), each takes some of the rows of every stage, and
they wait for each other between a product and what depends on it.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from ..graph.buffers import Place
from ..graph.instructions import Access, Kernel, Product, RowSum, Stages, Term
from ..graph.trace import Untraceable
from .arguments import Form, collected, matrices_of, panels_of, words_of
from .compiler import NUMBER_BYTES, Library, machine
from .elementwise import apply
from .emitter import Emitter
from .gemm import INNER, SUMMED, routines

__all__ = ["compiled_loop", "forget_loops", "vector_lanes"]


def compiled_loop(stages: Stages, form: Form) -> tuple[str, Library, list[str]]:
    """Compile the loop of `stages`: its name, of what it does, the library with it, and the words it takes of a thread.

    The words are those of `words.words_of`, in their order.

    Raises
    ------
    Untraceable
        A product of something else than numbers.
    """
    return _LoopWriter(stages, form).write()


def vector_lanes(dtype: str, batch: int) -> int:
    """Numbers in a vector for a batch of this size."""
    widest = machine().vector_bytes // NUMBER_BYTES[dtype]
    return max(widest // 2, 2) if 1 < batch <= widest // 2 else widest


@functools.lru_cache(maxsize=256)
def _library(source: str, uses: tuple[Library, ...]) -> tuple[str, Library]:
    """The library of a module with one loop, and the loop's name, which stands for its text."""
    name = f"loop_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    return name, Library(source.replace("loop_of_stages", name), uses)


def forget_loops() -> None:
    """Drop the compiled loops that are kept for programs to come."""
    _library.cache_clear()


class _LoopWriter:
    def __init__(self, stages: Stages, form: Form) -> None:
        from llvmlite import ir

        self.stages, self.shapes, self.booleans = stages, form.shapes, form.booleans
        self.single, self.by_rows, self.own_sums = form.single, form.by_rows, form.own_sums
        self.routines = routines(form.dtype, form.lanes)
        self.few = self.routines.few(form.few) if form.few else None
        self.panel_rows = self.few.tile_rows if self.few else self.routines.tile_rows  # of weights
        self.words = words_of(stages)
        self.e = Emitter(ir.Module(), "loop_of_stages", ["words"], form.dtype, form.lanes)
        self.word: dict[str, Any] = {}
        self.memory: dict[str, tuple[Any, Any]] = {}  # at this step: address, row length

    def write(self) -> tuple[str, Library, list[str]]:
        e = self.e
        words = e.arguments["words"]
        self.word = {name: e.load_word(e.address(words, k, 8)) for k, name in enumerate(self.words)}
        carried = {name: self.word[name] for name in self.words if name[0] in "cnm" and name[1:].isdigit()}
        with e.tiny_as_zero():
            self._lay_weights_out()
            self._write_steps(carried)
        e.finish()
        uses = (self.routines.library, *((self.few.library,) if self.few else ()))
        return (*_library(str(e.module), uses), self.words)

    def _lay_weights_out(self) -> None:
        """The left sides of the products as panels, of which each thread writes some."""
        e, word, height = self.e, self.word, self.panel_rows
        self.counted = e.word(0)
        for left, transposed, rows, inner in matrices_of(self.stages):
            name = panels_of(left, transposed)
            start, stop = self._share(rows, height)
            source = e.address(word[f"{name}_of"], e.times(start, word[f"{name}_row"]))
            to = e.address(word[name], e.times(start, inner))
            distances = word[f"{name}_row"], word[f"{name}_column"]
            self._call("panels", source, *distances, to, inner * height, height, e.minus(stop, start), inner)
        self._wait()

    def _write_steps(self, carried: dict[str, Any]) -> None:
        e = self.e
        none = e.word(0)
        with e.loop(0, self.word["steps"], 1, filled=none, adding=none, counted=self.counted, **carried) as (k, at):
            self.counted = at.counted
            backwards = e.minus(e.minus(self.word["steps"], 1), k)
            t = e.builder.select(e.builder.icmp_signed("!=", self.word["reverse"], e.word(0)), backwards, k)
            self._find_memory(t, {name: getattr(at, name) for name in carried})
            earlier: Any = None
            for stage in self.stages.stages:
                if self.by_rows and earlier is not None and type(stage) is not type(earlier):
                    self._wait()
                self._write_stage(stage)
                earlier = stage
            if self.stages.terms:
                if self.by_rows:
                    self._wait()
                at.filled, at.adding = self._collect(k, at.filled, at.adding)
            if self.by_rows:
                self._wait()
            at.counted = self.counted
            before = {name: getattr(at, name) for name in carried}
            for number, end in enumerate(self.stages.ends):
                if end != f"c{number}":
                    setattr(at, f"c{number}", self.memory[end][0])
                if end == f"n{number}":
                    setattr(at, f"n{number}", before[f"m{number}"])
                    setattr(at, f"m{number}", before[f"n{number}"])

    def _wait(self) -> None:
        """What other threads write before it is there afterwards."""
        self.counted = self.e.plus(self.counted, self.word["parts"])
        self.e.wait_for_others(self.word["counter"], self.counted)

    def _own(self, rows: int, together: int | None = None) -> tuple[Any, Any]:
        """(start, stop) of the rows of a stage that this thread takes of so many; some of them stay together."""
        return self._share(rows, together) if self.by_rows else (0, rows)

    def _share(self, rows: int, together: int | None = None) -> tuple[Any, Any]:
        e, part, parts = self.e, self.word["part"], self.word["parts"]

        def bound(k: Any) -> Any:
            return e.rounded_down(e.builder.sdiv(e.times(k, rows), parts), together or self.routines.tile_rows)

        last = e.builder.icmp_signed("==", e.plus(part, 1), parts)
        return bound(part), e.builder.select(last, e.word(rows), bound(e.plus(part, 1)))

    # ------------------------------------------------------------------ memory

    def _find_memory(self, t: Any, carried: dict[str, Any]) -> None:
        """Address and row length of everything at step t."""
        e, word = self.e, self.word
        batch = 1 if self.single else word["batch"]
        width = 1 if self.single else word["width"]
        for name in self.words:
            if not name[1:].isdigit() or name[0] not in "xycnmwsh":
                continue
            if name[0] == "x":
                self.memory[name] = self._input_at(name, t)
            elif name[0] == "y":
                step = e.times(batch, self.stages.stacks[int(name[1:])].shape[0])
                self.memory[name] = (self._address(name, word[name], e.times(t, step)), batch)
            elif name[0] == "w":
                self.memory[name] = (word[name], width)
            elif name[0] in "sh":
                self.memory[name] = (word[name], 1 if self.shapes[name][1] == 1 else batch)
            else:
                self.memory[name] = (carried[name], batch)

    def _input_at(self, name: str, t: Any) -> tuple[Any, Any]:
        """An input of this step, transposed into a buffer where its columns are not side by side."""
        e, word = self.e, self.word
        here = self._address(name, word[name], e.times(t, word[f"{name}_step"]))
        if name in self.booleans:
            return here, word[f"{name}_row"]
        apart = e.builder.icmp_signed("!=", word[f"{name}_apart"], e.word(0))
        with e.when(apart):
            rows = e.word(self.shapes[name][0])
            self._call(
                "transpose", here, word[f"{name}_row"], word[f"{name}_buffer"], word["width"], word["width"], rows
            )
        address = e.builder.select(apart, word[f"{name}_buffer"], here)
        return address, 1 if self.single else e.builder.select(apart, word["width"], word[f"{name}_row"])

    def _address(self, name: str, base: Any, index: Any) -> Any:
        return self.e.address(base, index, 1 if name in self.booleans else None)

    def _rows(self, place: Place) -> tuple[Any, Any]:
        base, row = self.memory[place.base]
        return self._address(place.base, base, self.e.times(row, place.start)), row

    def _call(self, kind: str, *words: Any) -> None:
        self.e.call(self.routines.names[kind], *words)

    # ------------------------------------------------------------------ stages

    def _write_stage(self, stage: Kernel | Product | RowSum) -> None:
        if isinstance(stage, Kernel):
            self._write_kernel(stage)
        elif isinstance(stage, Product):
            self._write_product(stage)
        else:
            self._write_row_sum(stage)

    def _write_product(self, stage: Product) -> None:
        (right, right_row), (out, out_row) = self._rows(stage.right), self._rows(stage.out)
        if stage.right.base in self.booleans:
            raise Untraceable("a product of booleans")
        e, inner = self.e, stage.right.rows
        start, stop = self._own(stage.out.rows, self.panel_rows)
        panels = e.address(
            self.word[panels_of(stage.left, stage.transposed)], e.times(start, inner)
        )  # a panel is as large as its rows
        out, rows = e.address(out, e.times(start, out_row)), e.minus(stop, start)
        if self.single:
            self._call("column_product", panels, right, out, rows, inner)
            return
        if self.few is not None:
            e.call(self.few.name, panels, right, right_row, out, rows, inner)
            return
        size, together = self.routines.tile_rows * inner, self.routines.tile_columns
        width = self.word["width"]
        self._call("product", panels, size, right, right_row, together, out, out_row, rows, inner, width, INNER, 0)

    def _write_row_sum(self, stage: RowSum) -> None:
        e = self.e
        (x, x_row), (out, _) = self._rows(stage.x), self._rows(stage.out)
        if self.single:
            full = stage.x.rows // e.lanes * e.lanes
            with e.loop(0, full, e.lanes, total=e.constant(0)) as (r, at):
                at.total = e.builder.fadd(at.total, e.load(e.address(x, r)))
            total = at.total
            if full < stage.x.rows:
                total = e.builder.fadd(total, e.load(e.address(x, full), e.mask(stage.x.rows - full)))
            e.store_number(e.total(total), out)
            return

        def columns(start: Any, mask: Any) -> None:
            with e.loop(0, stage.x.rows, 1, total=e.constant(0)) as (r, at):
                element = e.address(x, e.plus(e.times(r, x_row), start))
                at.total = e.builder.fadd(at.total, e.load(element, mask))
            e.store(at.total, e.address(out, start), mask)

        self._over_columns(0, self.word["width"], columns)

    def _over_columns(self, first: Any, last: Any, write: Any) -> None:
        """``write(start, mask)`` for all vectors of a row: the last with a mask, where it is not full."""
        e = self.e
        full = e.plus(first, e.rounded_down(e.minus(last, first), e.lanes))
        with e.loop(first, full, e.lanes) as (start, _):
            write(start, None)
        with e.when(e.less(full, last)):
            write(full, e.mask(e.minus(last, full)))

    def _write_kernel(self, kernel: Kernel) -> None:
        e = self.e
        first, last = self._own(kernel.rows)
        if self.single:  # a column is a row
            self._over_columns(first, last, lambda start, mask: self._write_elements(kernel, 0, start, mask))
            return
        with e.loop(first, last) as (r, _):
            self._over_columns(0, self.word["width"], lambda start, mask: self._write_elements(kernel, r, start, mask))

    def _write_elements(self, kernel: Kernel, row: Any, column: Any, mask: Any) -> None:
        e = self.e
        known: dict[str, Any] = {}

        def value(operand: Any) -> Any:
            if isinstance(operand, str):
                return known[operand]
            return e.constant(operand)

        for access, name in kernel.loads.items():
            known[name] = self._load(access, kernel.rows, row, column, mask)
        for name, op, operands in kernel.statements:
            known[name] = apply(e, op, *map(value, operands))
        for access, stored in kernel.stores:
            address = self._element(access, kernel.rows, row, column)
            found = value(stored)
            if access.array in self.booleans:
                found = e.builder.zext(found, e.vector(e.byte))
            e.store(found, address, mask)

    def _element(self, access: Access, rows: int, row: Any, column: Any) -> Any:
        e = self.e
        base, length = self.memory[access.array]
        if access.spread == "row":
            return self._address(access.array, base, 0 if self.single else column)
        block = e.times(access.block * rows, length)
        index = e.plus(block, e.times(row, length))
        if access.spread != "column":
            index = e.plus(index, column)
        return self._address(access.array, base, index)

    def _load(self, access: Access, rows: int, row: Any, column: Any, mask: Any) -> Any:
        e = self.e
        address = self._element(access, rows, row, column)
        boolean = access.array in self.booleans
        one = access.spread == "column" or (access.spread == "row" and self.single)
        if boolean:
            if one:
                return e.spread(e.builder.icmp_unsigned("!=", e.load_number(address, e.byte), e.byte(0)))
            found = e.load(address, mask, e.byte)
            return e.builder.icmp_unsigned("!=", found, e.ir.Constant(found.type, None))
        return e.spread(e.load_number(address)) if one else e.load(address, mask)

    # ------------------------------------------------------------------ sums over time

    def _collect(self, k: Any, filled: Any, adding: Any) -> tuple[Any, Any]:
        """Put this step's columns beside those of earlier ones; when they are full, add their product to the sums.

        The first product becomes the sums: what stands there before may be anything.
        """
        e, word = self.e, self.word
        width = 1 if self.single else word["width"]
        together = width if self.single or self.own_sums else word["batch"]  # columns of a step in one collection
        height = self.routines.tile_rows
        panel = e.times(word["capacity"], height)
        lefts, rights = collected(self.stages, "left"), collected(self.stages, "right")
        column = filled if self.own_sums else e.plus(filled, word["first"])
        for number, place in enumerate(lefts):
            source, row = self._rows(place)
            start, stop = self._own(place.rows)
            to = e.plus(e.times(start, word["capacity"]), e.times(column, height))
            source, to = e.address(source, e.times(start, row)), e.address(word[f"left{number}"], to)
            self._call("panels", source, row, 1, to, panel, height, e.minus(stop, start), width)
        for number, place in enumerate(rights):
            self._collect_right(place, word[f"right{number}"], column, width)
        now = e.plus(filled, together)
        full = e.less(word["capacity"], e.plus(now, together))
        last = e.builder.icmp_signed("==", e.plus(k, 1), word["steps"])
        flush = e.builder.or_(full, last)
        before = self.counted
        with e.when(flush):
            if not self.own_sums:
                self._wait()
            for number, term in enumerate(self.stages.terms):
                left = word[f"left{lefts.index(term.left)}"]
                right = word[f"right{rights.index(term.right)}"] if term.right is not None else None
                self._add_term(term, left, panel, right, word[f"sum{number}"], now, adding)
            if not self.own_sums:
                self._wait()
        waits = 0 if self.own_sums else e.builder.select(flush, e.times(word["parts"], 2), e.word(0))
        self.counted = e.plus(before, waits)
        return e.builder.select(flush, e.word(0), now), e.builder.select(flush, e.word(1), adding)

    def _add_term(self, term: Term, left: Any, panel: Any, right: Any, out: Any, columns: Any, adding: Any) -> None:
        """What so many collected columns give of a term, added to its sum or, at first, in place of it."""
        e, all_rows = self.e, term.left.rows
        start, stop = (0, e.word(all_rows)) if self.own_sums else self._share(all_rows)
        rows = e.minus(stop, start)
        length = term.right.rows if term.right is not None else 1
        left, out = e.address(left, e.times(start, self.word["capacity"])), e.address(out, e.times(start, length))
        if term.right is None:
            self._call("totals", left, panel, out, rows, columns, adding)
            return
        row, distance = self._right_panels(length)
        sizes = rows, columns, length, SUMMED
        self._call("product", left, panel, right, row, distance, out, length, *sizes, adding)

    def _right_panels(self, rows: int) -> tuple[int, Any]:
        """Row length of the panels in which so many rows of a step are collected for a right side; their distance."""
        most = self.routines.tile_columns
        return (rows, most) if rows <= most else (most, self.e.times(self.word["capacity"], most))

    def _collect_right(self, place: Place, out: Any, column: Any, width: Any) -> None:
        """Transpose this step's columns of a right side to its panels."""
        e, most = self.e, self.routines.tile_columns
        source, row = self._rows(place)
        start, stop = self._own(place.rows)
        length, distance = self._right_panels(place.rows)
        first = e.times(e.builder.sdiv(e.integer(start), e.word(most)), most)
        with e.loop(first, stop, most) as (panel, _):
            own = e.builder.select(e.less(panel, start), e.integer(start), panel)
            rows = e.minus(e.smaller(e.plus(panel, most), stop), own)
            to = e.plus(e.times(e.builder.sdiv(panel, e.word(most)), distance), e.minus(own, panel))
            to = e.address(out, e.plus(to, e.times(column, length)))
            self._call("transpose", e.address(source, e.times(own, row)), row, to, length, rows, width)
