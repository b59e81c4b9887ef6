"""A time loop as one function of machine code (extra ``[fast]``), which several threads run.

The columns of a batch don't look at each other: each thread takes some of them from the first step to the last. Only
for large sums over time, of which each takes some rows, do they wait for each other, every few steps. Where a batch has
too few columns (two threads must not write to one line of the cache), each takes some of the rows of every
instruction, and they wait for each other between a product and what depends on it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..graph.buffers import Buffer, Kind, RowBlock
from ..graph.instructions import Access, CutGraph, Instruction, Kernel, Operand, Product, RowSum, Spread, Term
from ..graph.trace import Untraceable
from .arguments import Argument, LoopForm, Matrix, Role, argument_of, arguments_of, collected, matrices_of
from .compiler import NUMBER_BYTES, Library, machine
from .elementwise import apply
from .emitter import Emitter, Word
from .gemm import INNER, SUMMED, routines

if TYPE_CHECKING:
    from llvmlite import ir

__all__ = ["compiled_loop", "forget_loops", "vector_lanes"]


def compiled_loop(cut: CutGraph, form: LoopForm) -> tuple[str, Library, list[Argument]]:
    """Compile the loop of a step: its name, of what it does, the library that holds it, and what it takes.

    The arguments are those of `arguments_of`, in their order.

    Raises
    ------
    Untraceable
        A product of something else than numbers.
    """
    return _LoopWriter(cut, form).write()


def vector_lanes(dtype: str, batch: int) -> int:
    """Numbers in a vector for a batch of this size."""
    widest = machine().vector_bytes // NUMBER_BYTES[dtype]
    return max(widest // 2, 2) if 1 < batch <= widest // 2 else widest


@functools.lru_cache(maxsize=256)
def _library(source: str, uses: tuple[Library, ...]) -> tuple[str, Library]:
    """The library of a module with one loop, and the loop's name, which stands for its text."""
    name = f"loop_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    return name, Library(source.replace("loop_of_steps", name), uses)


def forget_loops() -> None:
    """Drop the compiled loops that are kept for programs to come."""
    _library.cache_clear()


_CARRIED = (Kind.CARRY, Kind.NEXT, Kind.SPARE)


class _LoopWriter:
    def __init__(self, cut: CutGraph, form: LoopForm) -> None:
        from llvmlite import ir

        self.cut, self.shapes, self.booleans = cut, form.shapes, form.booleans
        self.single, self.by_rows, self.own_sums = form.single, form.by_rows, form.own_sums
        self.routines = routines(form.dtype, form.lanes)
        self.few = self.routines.few(form.few) if form.few else None
        self.panel_rows = self.few.tile_rows if self.few else self.routines.tile_rows  # of weights
        self.arguments = arguments_of(cut)
        buffers = dict.fromkeys(a.buffer for a in self.arguments if a.buffer is not None)
        self.buffers = [b for b in buffers if argument_of(b) in self.arguments]
        self.e = Emitter(ir.Module(), "loop_of_steps", ["words"], form.dtype, form.lanes)
        self.words: dict[Argument, ir.Value] = {}
        self.memory: dict[Buffer, tuple[Word, Word]] = {}  # at this step: address, row length

    def write(self) -> tuple[str, Library, list[Argument]]:
        e = self.e
        words = e.arguments["words"]
        self.words = {argument: e.load_word(e.address(words, k, 8)) for k, argument in enumerate(self.arguments)}
        carried = {b: self._word(argument_of(b)) for b in self.buffers if b.kind in _CARRIED}
        with e.tiny_as_zero():
            self._lay_weights_out()
            self._write_steps(carried)
        e.finish()
        uses = (self.routines.library, *((self.few.library,) if self.few else ()))
        return (*_library(str(e.module), uses), self.arguments)

    def _word(self, argument: Argument | Role) -> ir.Value:
        return self.words[Argument(argument) if isinstance(argument, Role) else argument]

    def _lay_weights_out(self) -> None:
        """The left sides of the products as panels, of which each thread writes some."""
        e, height = self.e, self.panel_rows
        self.counted = e.word(0)
        for matrix in matrices_of(self.cut):
            roles = (Role.MATRIX, Role.MATRIX_ROW, Role.MATRIX_COLUMN, Role.PANELS)
            address, row, column, panels = (self._word(Argument.of_matrix(role, matrix)) for role in roles)
            start, stop = self._share(matrix.rows, height)
            source, to = e.address(address, e.times(start, row)), e.address(panels, e.times(start, matrix.columns))
            size = matrix.columns * height
            self._call("panels", source, row, column, to, size, height, e.minus(stop, start), matrix.columns)
        self._wait()

    def _write_steps(self, carried: dict[Buffer, ir.Value]) -> None:
        e = self.e
        none, steps = e.word(0), self._word(Role.STEPS)
        named = {buffer.name: word for buffer, word in carried.items()}
        with e.loop(0, steps, 1, filled=none, adding=none, counted=self.counted, **named) as (k, at):
            self.counted = at.counted
            backwards = e.minus(e.minus(steps, 1), k)
            t = e.builder.select(e.is_set(self._word(Role.REVERSE)), backwards, k)
            before = {buffer: getattr(at, buffer.name) for buffer in carried}
            self._find_memory(t, before)
            earlier: Instruction | None = None
            for made in self.cut.instructions:
                if self.by_rows and earlier is not None and type(made) is not type(earlier):
                    self._wait()
                self._write_instruction(made)
                earlier = made
            if self.cut.terms:
                if self.by_rows:
                    self._wait()
                at.filled, at.adding = self._collect(k, at.filled, at.adding)
            if self.by_rows:
                self._wait()
            at.counted = self.counted
            for number, end in enumerate(self.cut.ends):
                if end.kind is not Kind.CARRY:
                    setattr(at, Buffer(Kind.CARRY, number).name, self.memory[end][0])
                if end.kind is Kind.NEXT:
                    spare = Buffer(Kind.SPARE, number)
                    setattr(at, end.name, before[spare])
                    setattr(at, spare.name, before[end])

    def _wait(self) -> None:
        """What other threads write before it is there afterwards."""
        self.counted = self.e.plus(self.counted, self._word(Role.PARTS))
        self.e.wait_for_others(self._word(Role.COUNTER), self.counted)

    def _own(self, rows: int, together: int | None = None) -> tuple[Word, Word]:
        """(start, stop) of the rows of an instruction that this thread takes of so many; some of them stay together."""
        return self._share(rows, together) if self.by_rows else (0, rows)

    def _share(self, rows: int, together: int | None = None) -> tuple[Word, Word]:
        e, part, parts = self.e, self._word(Role.PART), self._word(Role.PARTS)

        def bound(k: Word) -> Word:
            return e.rounded_down(e.builder.sdiv(e.times(k, rows), parts), together or self.routines.tile_rows)

        last = e.builder.icmp_signed("==", e.plus(part, 1), parts)
        return bound(part), e.builder.select(last, e.word(rows), bound(e.plus(part, 1)))

    # ------------------------------------------------------------------ memory

    def _find_memory(self, t: ir.Value, carried: dict[Buffer, ir.Value]) -> None:
        """Address and row length of everything at step t."""
        e = self.e
        batch: Word = 1 if self.single else self._word(Role.BATCH)
        width: Word = 1 if self.single else self._word(Role.WIDTH)
        for buffer in self.buffers:
            address = carried[buffer] if buffer in carried else self._word(argument_of(buffer))
            if buffer.kind is Kind.INPUT:
                self.memory[buffer] = self._input_at(buffer, t)
            elif buffer.kind is Kind.STACK:
                step = e.times(batch, self.cut.stacks[buffer.index].shape[0])
                self.memory[buffer] = (self._address(buffer, address, e.times(t, step)), batch)
            elif buffer.kind is Kind.WORK:
                self.memory[buffer] = (address, width)
            elif buffer.kind in (Kind.SHARED, Kind.HOISTED):
                self.memory[buffer] = (address, 1 if self.shapes[buffer][1] == 1 else batch)
            else:
                self.memory[buffer] = (address, batch)

    def _input_at(self, buffer: Buffer, t: ir.Value) -> tuple[Word, Word]:
        """An input of this step, transposed to other memory where its columns are not side by side."""
        e = self.e
        roles = (Role.READ, Role.STEP, Role.ROW, Role.APART, Role.TRANSPOSED)
        start, step, row, apart, to = (self._word(Argument(role, buffer)) for role in roles)
        here = self._address(buffer, start, e.times(t, step))
        if buffer in self.booleans:
            return here, row
        width = self._word(Role.WIDTH)
        with e.when(e.is_set(apart)):
            self._call("transpose", here, row, to, width, width, e.word(self.shapes[buffer][0]))
        address = e.builder.select(e.is_set(apart), to, here)
        return address, 1 if self.single else e.builder.select(e.is_set(apart), width, row)

    def _address(self, buffer: Buffer, base: Word, index: Word) -> Word:
        return self.e.address(base, index, 1 if buffer in self.booleans else None)

    def _rows(self, block: RowBlock) -> tuple[Word, Word]:
        base, row = self.memory[block.buffer]
        return self._address(block.buffer, base, self.e.times(row, block.start)), row

    def _call(self, kind: str, *words: Word) -> None:
        self.e.call(self.routines.names[kind], *words)

    # ------------------------------------------------------------------ instructions

    def _write_instruction(self, made: Instruction) -> None:
        if isinstance(made, Kernel):
            self._write_kernel(made)
        elif isinstance(made, Product):
            self._write_product(made)
        else:
            self._write_row_sum(made)

    def _write_product(self, made: Product) -> None:
        (right, right_row), (out, out_row) = self._rows(made.right), self._rows(made.out)
        if made.right.buffer in self.booleans:
            raise Untraceable("a product of booleans")
        e, inner = self.e, made.right.rows
        start, stop = self._own(made.out.rows, self.panel_rows)
        matrix = Matrix(made.left, made.transposed, made.out.rows, inner)
        panels = self._word(Argument.of_matrix(Role.PANELS, matrix))
        panels = e.address(panels, e.times(start, inner))  # a panel is as large as its rows
        out, rows = e.address(out, e.times(start, out_row)), e.minus(stop, start)
        if self.single:
            self._call("column_product", panels, right, out, rows, inner)
            return
        if self.few is not None:
            e.call(self.few.name, panels, right, right_row, out, rows, inner)
            return
        size, together = self.routines.tile_rows * inner, self.routines.tile_columns
        width = self._word(Role.WIDTH)
        self._call("product", panels, size, right, right_row, together, out, out_row, rows, inner, width, INNER, 0)

    def _write_row_sum(self, made: RowSum) -> None:
        e = self.e
        (x, x_row), (out, _) = self._rows(made.x), self._rows(made.out)
        if self.single:
            full = made.x.rows // e.lanes * e.lanes
            with e.loop(0, full, e.lanes, total=e.constant(0)) as (r, at):
                at.total = e.builder.fadd(at.total, e.load(e.address(x, r)))
            total = at.total
            if full < made.x.rows:
                total = e.builder.fadd(total, e.load(e.address(x, full), e.mask(made.x.rows - full)))
            e.store_number(e.total(total), out)
            return

        def columns(start: Word, mask: ir.Value | None) -> None:
            with e.loop(0, made.x.rows, 1, total=e.constant(0)) as (r, at):
                element = e.address(x, e.plus(e.times(r, x_row), start))
                at.total = e.builder.fadd(at.total, e.load(element, mask))
            e.store(at.total, e.address(out, start), mask)

        self._over_columns(0, self._word(Role.WIDTH), columns)

    def _over_columns(self, first: Word, last: Word, write: Callable[[Word, ir.Value | None], None]) -> None:
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
            self._over_columns(
                0, self._word(Role.WIDTH), lambda start, mask: self._write_elements(kernel, r, start, mask)
            )

    def _write_elements(self, kernel: Kernel, row: Word, column: Word, mask: ir.Value | None) -> None:
        e = self.e
        known: dict[str, ir.Value] = {}

        def value(operand: Operand) -> ir.Value:
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
            if access.buffer in self.booleans:
                found = e.builder.zext(found, e.vector(e.byte))
            e.store(found, address, mask)

    def _element(self, access: Access, rows: int, row: Word, column: Word) -> Word:
        e = self.e
        base, length = self.memory[access.buffer]
        if access.spread is Spread.ROW:
            return self._address(access.buffer, base, 0 if self.single else column)
        block = e.times(access.block * rows, length)
        index = e.plus(block, e.times(row, length))
        if access.spread is not Spread.COLUMN:
            index = e.plus(index, column)
        return self._address(access.buffer, base, index)

    def _load(self, access: Access, rows: int, row: Word, column: Word, mask: ir.Value | None) -> ir.Value:
        e = self.e
        address = self._element(access, rows, row, column)
        boolean = access.buffer in self.booleans
        one = access.spread is Spread.COLUMN or (access.spread is Spread.ROW and self.single)
        if boolean:
            if one:
                return e.spread(e.builder.icmp_unsigned("!=", e.load_number(address, e.byte), e.byte(0)))
            found = e.load(address, mask, e.byte)
            return e.builder.icmp_unsigned("!=", found, e.ir.Constant(found.type, None))
        return e.spread(e.load_number(address)) if one else e.load(address, mask)

    # ------------------------------------------------------------------ sums over time

    def _collect(self, k: ir.Value, filled: ir.Value, adding: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Put this step's columns beside those of earlier ones; when they are full, add their product to the sums.

        The first product becomes the sums: what stands there before may be anything.
        """
        e, capacity = self.e, self._word(Role.CAPACITY)
        width: Word = 1 if self.single else self._word(Role.WIDTH)
        # columns of a step in one collection
        together = width if self.single or self.own_sums else self._word(Role.BATCH)
        height = self.routines.tile_rows
        panel = e.times(capacity, height)
        lefts, rights = collected(self.cut, Role.LEFT), collected(self.cut, Role.RIGHT)
        column = filled if self.own_sums else e.plus(filled, self._word(Role.FIRST))
        for number, block in enumerate(lefts):
            source, row = self._rows(block)
            start, stop = self._own(block.rows)
            to = e.plus(e.times(start, capacity), e.times(column, height))
            source, to = (
                e.address(source, e.times(start, row)),
                e.address(self._word(Argument(Role.LEFT, number=number)), to),
            )
            self._call("panels", source, row, 1, to, panel, height, e.minus(stop, start), width)
        for number, block in enumerate(rights):
            self._collect_right(block, self._word(Argument(Role.RIGHT, number=number)), column, width)
        now = e.plus(filled, together)
        full = e.less(capacity, e.plus(now, together))
        last = e.builder.icmp_signed("==", e.plus(k, 1), self._word(Role.STEPS))
        flush = e.builder.or_(full, last)
        before = self.counted
        with e.when(flush):
            if not self.own_sums:
                self._wait()
            for number, term in enumerate(self.cut.terms):
                left = self._word(Argument(Role.LEFT, number=lefts.index(term.left)))
                right = None
                if term.right is not None:
                    right = self._word(Argument(Role.RIGHT, number=rights.index(term.right)))
                self._add_term(term, left, panel, right, self._word(Argument(Role.SUM, number=number)), now, adding)
            if not self.own_sums:
                self._wait()
        waits = 0 if self.own_sums else e.builder.select(flush, e.times(self._word(Role.PARTS), 2), e.word(0))
        self.counted = e.plus(before, waits)
        return e.builder.select(flush, e.word(0), now), e.builder.select(flush, e.word(1), adding)

    def _add_term(
        self, term: Term, left: Word, panel: Word, right: Word | None, out: Word, columns: Word, adding: Word
    ) -> None:
        """What so many collected columns give of a term, added to its sum or, at first, in place of it."""
        e, all_rows = self.e, term.left.rows
        start, stop = (0, e.word(all_rows)) if self.own_sums else self._share(all_rows)
        rows = e.minus(stop, start)
        length = term.right.rows if term.right is not None else 1
        left, out = e.address(left, e.times(start, self._word(Role.CAPACITY))), e.address(out, e.times(start, length))
        if right is None:
            self._call("totals", left, panel, out, rows, columns, adding)
            return
        row, distance = self._right_panels(length)
        sizes = rows, columns, length, SUMMED
        self._call("product", left, panel, right, row, distance, out, length, *sizes, adding)

    def _right_panels(self, rows: int) -> tuple[int, Word]:
        """Row length of the panels in which so many rows of a step are collected for a right side; their distance."""
        most = self.routines.tile_columns
        return (rows, most) if rows <= most else (most, self.e.times(self._word(Role.CAPACITY), most))

    def _collect_right(self, block: RowBlock, out: Word, column: Word, width: Word) -> None:
        """Transpose this step's columns of a right side to its panels."""
        e, most = self.e, self.routines.tile_columns
        source, row = self._rows(block)
        start, stop = self._own(block.rows)
        length, distance = self._right_panels(block.rows)
        first = e.times(e.builder.sdiv(e.integer(start), e.word(most)), most)
        with e.loop(first, stop, most) as (panel, _):
            own = e.builder.select(e.less(panel, start), e.integer(start), panel)
            rows = e.minus(e.smaller(e.plus(panel, most), stop), own)
            to = e.plus(e.times(e.builder.sdiv(panel, e.word(most)), distance), e.minus(own, panel))
            to = e.address(out, e.plus(to, e.times(column, length)))
            self._call("transpose", e.address(source, e.times(own, row)), row, to, length, rows, width)
