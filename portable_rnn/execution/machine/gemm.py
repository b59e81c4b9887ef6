"""Matrix products and transposes as compiled loops call them: of few columns, with weights laid out once.

A library's product lays its left side out anew in every call, which for the few columns of a time step takes a good
part of its time. Here a left matrix stands as *panels* of a few rows, column after column (R, K), and a tile of the
result, R rows by up to three vectors, stays in registers while the product runs over K. A right matrix may stand as
panels, too, of so many columns: rows that are far apart, by a power of 2 above all, share few lines of the cache.

Source: Goto and van de Geijn (2008), Anatomy of high-performance matrix multiplication, ACM TOMS 34(3).
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from .compiler import NUMBER_BYTES, Library, machine
from .emitter import Emitter, Word

if TYPE_CHECKING:
    from llvmlite import ir

__all__ = ["INNER", "SUMMED", "FewColumns", "Routines", "routines", "takes_rows"]

_IN_CACHE = 1 << 16  # numbers of a left matrix which are taken for one tile's columns after the other
_VECTORS = 3  # of a tile
_FEW = 1.1  # what a product with few columns takes of the time of one whose vectors are full, for each column
INNER = 512  # of K that are taken at once: so many rows of the right side stay in the cache
SUMMED = 64  # of K in a sum over time: what is added one by one loses digits with the number of terms
_TOTALLED = 32  # the same for sums without a product


class Routines:
    """The functions for one dtype and width of vectors; a compiled loop calls them by name.

    Attributes
    ----------
    tile_rows : int
        R, the rows of a panel. Panel p of a matrix (M, K) holds its rows from R * p, as (K, R).
    tile_columns : int
        C, the columns of a panel of a right matrix (K, N), which holds those from C * p, as (K, C).
    names : dict of str to str
        Of "product", "column_product", "transpose", "panels", "totals".
    """

    def __init__(self, dtype: str, lanes: int, tile_rows: int) -> None:
        from llvmlite import ir

        self.dtype, self.lanes = dtype, lanes
        self.tile_rows, self.tile_columns = tile_rows, _VECTORS * lanes
        self._few: dict[int, FewColumns] = {}
        kinds = {
            "product": _write_product,
            "column_product": _write_column_product,
            "transpose": _write_transpose,
            "panels": _write_panels,
            "totals": _write_totals,
        }
        self.names = {kind: _name(kind, dtype, lanes, self.tile_rows) for kind in kinds}
        module = ir.Module()
        for kind, write in kinds.items():
            write(module, self.names[kind], dtype, lanes, self.tile_rows)
        self.library = Library(str(module))

    def few(self, columns: int) -> FewColumns:
        """The product with so many columns, compiled at first use."""
        if columns not in self._few:
            self._few[columns] = FewColumns(self, columns)
        return self._few[columns]


class FewColumns:
    """A product with few columns.

    Attributes
    ----------
    columns : int
    lanes, vectors : int
        Numbers in a vector, and vectors in a tile.
    tile_rows : int
        Rows of a panel of its left side.
    name : str
        Of the function.
    """

    def __init__(self, others: Routines, columns: int) -> None:
        from llvmlite import ir

        self.columns = columns
        self.lanes = machine().vector_bytes // NUMBER_BYTES[others.dtype]
        self.vectors = 4 if columns < 4 else 2  # enough sums that none waits for the one before
        self.tile_rows = self.vectors * self.lanes
        self.name = f"few_{columns}_{_name('product', others.dtype, others.lanes, others.tile_rows)}"
        module = ir.Module()
        _write_few_product(module, self.name, others.dtype, others.lanes, others.tile_rows, self)
        self.library = Library(str(module), [others.library])


def takes_rows(dtype: str, columns: int) -> bool:
    """Whether a product with so many columns is faster with vectors of rows than with vectors of columns."""
    lanes = machine().vector_bytes // NUMBER_BYTES[dtype]
    return columns > 1 and _FEW * columns < -(-columns // lanes) * lanes


def _name(kind: str, dtype: str, lanes: int, height: int) -> str:
    return f"{kind}_{dtype}_{lanes}_{height}"


def routines(dtype: str, lanes: int) -> Routines:
    """Compiled at first use."""
    return _routines(dtype, lanes, machine().tile_rows)


@functools.lru_cache(maxsize=16)
def _routines(dtype: str, lanes: int, tile_rows: int) -> Routines:
    return Routines(dtype, lanes, tile_rows)


def _write_product(module: ir.Module, name: str, dtype: str, lanes: int, height: int) -> None:
    """``out = left @ right``, or ``out += left @ right``.

    Arguments: left, the panels; panel_size, their distance; right (inner, columns) with its row length and the distance
    of two panels (of C columns, if it does not stand as panels); out (rows, columns) with its row length; rows, inner,
    columns; how many of `inner` are added up before they are added to `out`; and whether to add.
    """
    words = ["left", "panel_size", "right", "right_row", "right_panel", "out", "out_row", "rows", "inner", "columns"]
    words += ["at_once", "adding"]
    e = Emitter(module, name, words, dtype, lanes)
    a = e.arguments
    with e.loop(0, a["inner"], a["at_once"]) as (k, _):
        inner = e.smaller(a["at_once"], e.minus(a["inner"], k))
        adding = e.builder.or_(e.less(0, k), e.builder.icmp_signed("!=", a["adding"], e.word(0)))
        left, right = e.address(a["left"], e.times(k, height)), e.address(a["right"], e.times(k, a["right_row"]))
        _write_part(_Part(e, left, right, inner, adding, height))
    e.finish()


class _Part(NamedTuple):
    """A product over a part of K, by the routine's own arguments beside what is given."""

    e: Emitter
    left: Word
    right: Word
    inner: Word
    adding: Word
    height: int


def _write_part(part: _Part) -> None:
    e, height = part.e, part.height
    a = e.arguments
    at_once = e.plus(e.builder.sdiv(e.word(_IN_CACHE // height), e.plus(part.inner, 1)), 1)
    block = e.times(at_once, height)
    with e.loop(0, a["rows"], block) as (first, _):
        last = e.smaller(e.plus(first, block), a["rows"])

        def rows_of_tiles(column: Word, vectors: int, mask: ir.Value | None) -> None:
            with e.loop(first, last, height) as (row, _):
                _write_tile(part, row, column, vectors, mask)

        start = e.word(0)
        for vectors in range(_VECTORS, 0, -1):
            width = vectors * e.lanes
            spare = e.minus(a["columns"], start)
            fits = spare
            if vectors == _VECTORS:  # four vectors are two and two, not three and one, unless a panel has three
                four = e.equal(e.rounded_down(spare, e.lanes), (_VECTORS + 1) * e.lanes)
                together = e.equal(a["right_panel"], width)
                fits = e.builder.select(e.builder.and_(four, together), e.word(0), spare)
            stop = e.plus(start, e.minus(fits, e.builder.srem(fits, e.word(width))))
            with e.loop(start, stop, width) as (column, _):
                rows_of_tiles(column, vectors, None)
            start = stop
        with e.when(e.less(start, a["columns"])):
            rows_of_tiles(start, 1, e.mask(e.minus(a["columns"], start)))


def _write_tile(part: _Part, row: Word, column: Word, vectors: int, mask: ir.Value | None) -> None:
    """A tile of the result: the rows of a panel, as far as there are rows, of so many vectors."""
    e, height = part.e, part.height
    a, b, size = e.arguments, e.builder, e.number_bytes
    panel = e.address(part.left, e.times(b.sdiv(row, e.word(height)), a["panel_size"]))
    width = e.word(_VECTORS * e.lanes)
    before = e.times(b.sdiv(column, width), a["right_panel"])
    right = e.address(part.right, e.plus(before, b.srem(column, width)))
    out = e.address(a["out"], e.plus(e.times(row, a["out_row"]), column))
    step = e.times(a["right_row"], size)
    zero = e.constant(0)
    sums = {f"s{i}_{j}": zero for i in range(height) for j in range(vectors)}
    with e.loop(0, part.inner, 1, left=panel, right=right, **sums) as (_, at):
        columns = [e.load(e.address(at.right, j * e.lanes), mask) for j in range(vectors)]
        for i in range(height):
            weight = e.spread(e.load_number(e.address(at.left, i)))
            for j, value in enumerate(columns):
                name = f"s{i}_{j}"
                setattr(at, name, e.multiply_add(weight, value, getattr(at, name)))
        at.left, at.right = e.plus(at.left, height * size), e.plus(at.right, step)

    def put(i: int) -> None:
        for j in range(vectors):
            place = e.address(out, e.plus(e.times(a["out_row"], i), j * e.lanes))
            value = getattr(at, f"s{i}_{j}")
            so_far = b.select(part.adding, e.load(place, mask), zero)  # it may be anything, NaN too, if it isn't wanted
            e.store(b.fadd(value, so_far), place, mask)

    rows = e.minus(a["rows"], row)
    for i in range(height):
        with e.when(e.less(i, rows)):
            put(i)


def _write_column_product(module: ir.Module, name: str, dtype: str, lanes: int, height: int) -> None:
    """``out = left @ right`` for one column. Arguments: left, the panels; right (inner,); out (rows,); rows, inner."""
    e = Emitter(module, name, ["left", "right", "out", "rows", "inner"], dtype, lanes)
    a, at_once = e.arguments, 4  # sums that don't wait for each other
    with e.loop(0, a["rows"], height) as (row, _):
        panel = e.address(a["left"], e.times(row, a["inner"]))
        zero = e.constant(0, height)
        most = e.rounded_down(a["inner"], at_once)

        def add(at: SimpleNamespace, k: Word, count: int) -> None:
            for j in range(count):
                spread = e.spread(e.load_number(e.address(a["right"], e.plus(k, j))), height)
                left = e.load(e.address(panel, e.times(e.plus(k, j), height)), lanes=height)
                setattr(at, f"s{j}", e.multiply_add(left, spread, getattr(at, f"s{j}")))

        with e.loop(0, most, at_once, **{f"s{j}": zero for j in range(at_once)}) as (k, at):
            add(at, k, at_once)
        with e.loop(most, a["inner"], 1, s0=at.s0) as (k, rest):
            add(rest, k, 1)
        b = e.builder
        total = b.fadd(b.fadd(rest.s0, at.s1), b.fadd(at.s2, at.s3))
        for i in range(height):
            with e.when(e.less(e.plus(row, i), a["rows"])):
                place = e.address(a["out"], e.plus(row, i))
                e.store_number(b.extract_element(total, e.ir.IntType(32)(i)), place)
    e.finish()


def _write_few_product(module: ir.Module, name: str, dtype: str, lanes: int, height: int, few: FewColumns) -> None:
    """``out = left @ right`` for few columns, known beforehand: vectors are of rows, since columns don't fill one.

    Arguments: left, the panels; right (inner, columns) with its row length; out (rows, columns); rows, inner.
    """
    wide, vectors, columns, length = few.lanes, few.vectors, few.columns, few.tile_rows
    e = Emitter(module, name, ["left", "right", "right_row", "out", "rows", "inner"], dtype, wide)
    a, size = e.arguments, e.number_bytes
    tile = e.local(length * columns)
    with e.loop(0, a["rows"], length) as (row, _):
        panel, some = e.address(a["left"], e.times(row, a["inner"])), e.smaller(length, e.minus(a["rows"], row))
        out = e.address(a["out"], e.times(row, columns))
        sums: dict[tuple[int, int], ir.Value] = {}
        count = -(-columns // (_VECTORS * height // vectors))  # of parts, each of as many columns as the registers hold
        for part in range(count):
            own = range(part * columns // count, (part + 1) * columns // count)
            zeros = {f"s{j}_{v}": e.constant(0) for j in own for v in range(vectors)}
            with e.loop(0, a["inner"], 1, left=panel, right=a["right"], **zeros) as (_, at):
                weights = [e.load(e.address(at.left, v * wide)) for v in range(vectors)]
                for j in own:
                    number = e.spread(e.load_number(e.address(at.right, j)))
                    for v, weight in enumerate(weights):
                        setattr(at, f"s{j}_{v}", e.multiply_add(weight, number, getattr(at, f"s{j}_{v}")))
                at.left, at.right = e.plus(at.left, length * size), e.plus(at.right, e.times(a["right_row"], size))
            sums |= {(j, v): getattr(at, f"s{j}_{v}") for j in own for v in range(vectors)}
        put = functools.partial(
            _put_by_transposing, e, sums, few, tile, out, some, _name("transpose", dtype, lanes, height)
        )
        if columns not in (2, 4):
            put()
        else:
            with e.builder.if_else(e.equal(some, length)) as (all_of_it, part_of_it):
                with all_of_it:
                    _put_interleaved(e, sums, few, out)
                with part_of_it:
                    put()
    e.finish()


def _put_interleaved(e: Emitter, sums: dict[tuple[int, int], ir.Value], few: FewColumns, out: Word) -> None:
    """Columns as vectors to the rows of an output, which are as many as a panel has."""
    for v in range(few.vectors):
        for i, line in enumerate(_interleaved(e, [sums[j, v] for j in range(few.columns)])):
            e.store(line, e.address(out, (v * few.columns + i) * few.lanes))


def _put_by_transposing(
    e: Emitter,
    sums: dict[tuple[int, int], ir.Value],
    few: FewColumns,
    tile: Word,
    out: Word,
    rows: Word,
    transpose: str,
) -> None:
    """Columns as vectors to so many rows of an output."""
    for (j, v), value in sums.items():
        e.store(value, e.address(tile, j * few.tile_rows + v * few.lanes))
    e.call(transpose, tile, few.tile_rows, out, few.columns, few.columns, rows)


def _interleaved(e: Emitter, lines: list[ir.Value]) -> list[ir.Value]:
    """The first numbers of each of the vectors, two or four or so, then the second ones, and so on."""
    index, lanes = e.ir.IntType(32), lines[0].type.count
    halves = [
        e.ir.Constant(e.vector(index, lanes), [k for pair in range(lanes // 2) for k in (s + pair, s + pair + lanes)])
        for s in (0, lanes // 2)
    ]
    for _ in range(len(lines).bit_length() - 1):  # each time a perfect shuffle
        pairs = zip(lines[: len(lines) // 2], lines[len(lines) // 2 :], strict=True)
        lines = [e.builder.shuffle_vector(p, q, half) for p, q in pairs for half in halves]
    return lines


def _write_transpose(module: ir.Module, name: str, dtype: str, lanes: int, height: int) -> None:
    """``out[c, r] = x[r, c]``. Arguments: x (rows, columns) with its row length; out with its own; rows, columns.

    By squares of `height` rows, whose transpose is three (or two) times a perfect shuffle of their rows.
    """
    e = Emitter(module, name, ["x", "x_row", "out", "out_row", "rows", "columns"], dtype, lanes)
    a = e.arguments

    def x_at(row: Word, column: Word) -> Word:
        return e.address(a["x"], e.plus(e.times(row, a["x_row"]), column))

    def out_at(column: Word, row: Word) -> Word:
        return e.address(a["out"], e.plus(e.times(column, a["out_row"]), row))

    def one_by_one(first: Word, last: Word, row: Word, row_end: Word) -> None:
        with e.loop(first, last) as (column, _), e.loop(row, row_end) as (r, _):
            e.store_number(e.load_number(x_at(r, column)), out_at(column, r))

    rows, columns = e.rounded_down(a["rows"], height), e.rounded_down(a["columns"], height)
    with e.loop(0, rows, height) as (row, _):
        with e.loop(0, columns, height) as (column, _):
            square = [e.load(x_at(e.plus(row, i), column), lanes=height) for i in range(height)]
            for i, line in enumerate(_interleaved(e, square)):
                e.store(line, out_at(e.plus(column, i), row))
        one_by_one(columns, a["columns"], row, e.plus(row, height))
    one_by_one(0, a["columns"], rows, a["rows"])
    e.finish()


def _write_panels(module: ir.Module, name: str, dtype: str, lanes: int, height: int) -> None:
    """A matrix as panels, of `height` rows or of a multiple of that.

    Arguments: x, the distance of its rows and of its columns, of which one is 1; out; panel_size; panel_rows; rows,
    columns.
    """
    words = ["x", "x_row", "x_column", "out", "panel_size", "panel_rows", "rows", "columns"]
    e = Emitter(module, name, words, dtype, lanes)
    a, b = e.arguments, e.builder
    with e.loop(0, a["rows"], height) as (row, _):
        source = e.address(a["x"], e.times(row, a["x_row"]))
        before = e.times(b.sdiv(row, a["panel_rows"]), a["panel_size"])
        panel = e.address(a["out"], e.plus(before, b.srem(row, a["panel_rows"])))
        some = e.smaller(height, e.minus(a["rows"], row))
        across = b.icmp_signed("==", a["x_column"], e.word(1))
        with b.if_else(across) as (then, otherwise):
            with then:
                transpose = _name("transpose", dtype, lanes, height)
                e.call(transpose, source, a["x_row"], panel, a["panel_rows"], some, a["columns"])
            with otherwise:
                full = b.icmp_signed("==", some, e.word(height))
                with e.loop(0, a["columns"]) as (column, _):
                    line, to = (
                        e.address(start, e.times(column, length))
                        for start, length in ((source, a["x_column"]), (panel, a["panel_rows"]))
                    )
                    with b.if_else(full) as (all_of_it, part):
                        with all_of_it:
                            e.store(e.load(line, lanes=height), to)
                        with part, e.loop(0, some) as (k, _):
                            e.store_number(e.load_number(e.address(line, k)), e.address(to, k))
    e.finish()


def _write_totals(module: ir.Module, name: str, dtype: str, lanes: int, height: int) -> None:
    """``out = sum(left, axis=1)``, or ``out += sum(left, axis=1)``.

    Arguments: left, the panels; panel_size; out (rows,); rows, inner; and whether to add.
    """
    e = Emitter(module, name, ["left", "panel_size", "out", "rows", "inner", "adding"], dtype, lanes)
    a, b = e.arguments, e.builder
    adding = b.icmp_signed("!=", a["adding"], e.word(0))
    with e.loop(0, a["rows"], height) as (row, _):
        panel = e.address(a["left"], e.times(b.sdiv(row, e.word(height)), a["panel_size"]))
        zero = e.constant(0, height)
        with e.loop(0, a["inner"], _TOTALLED, total=zero) as (first, at):
            last = e.smaller(e.plus(first, _TOTALLED), a["inner"])
            with e.loop(first, last, 1, total=zero) as (k, part):
                part.total = b.fadd(part.total, e.load(e.address(panel, e.times(k, height)), lanes=height))
            at.total = b.fadd(at.total, part.total)
        for i in range(height):
            with e.when(e.less(e.plus(row, i), a["rows"])):
                place = e.address(a["out"], e.plus(row, i))
                so_far = b.select(adding, e.load_number(place), e.number(0.0))
                e.store_number(b.fadd(so_far, b.extract_element(at.total, e.ir.IntType(32)(i))), place)
    e.finish()
