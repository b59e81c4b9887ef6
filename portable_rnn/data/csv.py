"""CSV files as columns of numbers, strictly: a gap or a typing error is an error, not a NaN."""

from __future__ import annotations

import itertools
import math
import operator
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ..errors import InputError
from .rows import Block, Rows, number, opened, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Table", "read_csv"]

_MISSING = frozenset({"", "na", "n/a", "nan", "+nan", "-nan", "null", "none"})
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True, eq=False)
class Table:
    """The numeric columns of a CSV file, oldest row first.

    Attributes
    ----------
    columns : tuple of str
        The names of the columns of `values`.
    values : ndarray of float64, shape (rows, columns)
        The inputs, all finite.
    times : ndarray of datetime64[us], shape (rows,), or None
        The time column, in UTC where the file states an offset; None for a file without one.
    target : str
        The name of the column to predict.
    targets : ndarray of float64, shape (rows,)
        The column to predict, all finite. It is one of `values` too if it is named in `columns`.
    """

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    times: NDArray[np.datetime64] | None
    target: str
    targets: NDArray[np.float64]


def read_csv(
    path: str | os.PathLike[str],
    *,
    target: str,
    inputs: Sequence[str] | None = None,
    time: str | None = None,
) -> Table:
    r"""Read a CSV file of numbers with a header line.

    The file is UTF-8, with or without a byte order mark. The delimiter is the one of comma,
    semicolon and tab that splits the header into the most columns. Numbers have a decimal point. A
    column without a name (as pandas writes its index) is never an input, but it can be the time
    column.

    Parameters
    ----------
    path : str or path
        The file.
    target : str
        The column to predict.
    inputs : sequence of str, optional
        The columns to predict from, in this order. Default: every numeric column of the file but
        the time, `target` included. A column is numeric if at least one of its cells is a number.
    time : str, optional
        The column with the time: ISO 8601 dates or date-times (``2010-01-31``, ``2010-01-31
        13:00``, ``2010-01-31T13:00Z``), also with ``/`` for ``-``, months ``2010-01`` and years
        ``2010``. Default: the first column that is not numeric and holds only such times, if there
        is one.

    Returns
    -------
    Table
        `values` (rows, columns), `targets` (rows,) and `times` (rows,) or None.

    Raises
    ------
    InputError
        If the file can't be read, is not UTF-8, is empty or has no rows; if a column does not exist
        or appears twice; if a row is longer or shorter than the header; if a numeric column has a
        cell that is empty, text, NaN or infinite; if the times can't be read or go back.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from portable_rnn.data import read_csv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "sales.csv")
    ...     _ = path.write_text("day,sold,price\n2024-05-01,3,1.5\n2024-05-02,5,1.25\n")
    ...     table = read_csv(path, target="sold")
    >>> table.columns, table.values.tolist(), table.targets.tolist()
    (('sold', 'price'), [[3.0, 1.5], [5.0, 1.25]], [3.0, 5.0])
    >>> table.times.astype("datetime64[D]").tolist()
    [datetime.date(2024, 5, 1), datetime.date(2024, 5, 2)]
    """
    if isinstance(inputs, str):
        raise InputError(
            f"inputs: expected a list of column names, received the text {inputs!r}: write inputs=[{inputs!r}]"
        )
    if inputs is not None and not inputs:
        raise InputError(
            "inputs: expected at least one column name, received none: "
            "name the columns, or leave inputs out for every numeric column"
        )
    with opened(path) as file:
        rows = Rows(path, file)
        for name in (target, *(inputs or ()), *(() if time is None else (time,))):
            _require_column(rows, name)
        columns = _Columns(rows, target, inputs, time)
        for block in rows.blocks():
            columns.add(block)
    return columns.table()


class _Columns:
    """The columns of a file as they come: those with numbers, and those that may turn out to be the time.

    Which are which is seen in the first row. A column of numbers must have one in every row, so what has none in the
    first is no input, or an error.
    """

    def __init__(self, rows: Rows, target: str, inputs: Sequence[str] | None, time: str | None) -> None:
        self.rows, self.target, self.inputs, self.time = rows, target, inputs, time
        self.stored: list[int] = []
        self.others: list[_Other] = []
        self.values = array("d")

    def add(self, block: Block) -> None:
        """Take some rows."""
        cells, columns = block.cells, block.columns
        if not block.first:
            self._begin(cells[:columns])
        if self.stored != list(range(columns)):
            pick = operator.itemgetter(*self.stored, self.stored[0])  # of two at least, so that it is a tuple
            starts = range(0, len(cells), columns)
            cells = [*itertools.chain.from_iterable(pick(cells[k : k + columns])[:-1] for k in starts)]
        try:
            found = np.array(list(map(float, cells)))
            whole = bool(np.isfinite(found).all()) and "_" not in "".join(cells)
        except ValueError:
            whole = False
        if not whole:
            self._refuse(block, cells)
        self.values.frombytes(found.tobytes())
        for other in self.others:
            other.add(block)

    def _begin(self, row: list[str]) -> None:
        names = self.rows.names
        index = {name: k for k, name in enumerate(names)}
        if self.inputs is None:
            chosen = [
                k
                for k, (name, cell) in enumerate(zip(names, row, strict=True))
                if name == self.target or (name and name != self.time and is_finite(cell))
            ]
        else:
            chosen = [index[name] for name in self.inputs]
        self.chosen = len(chosen)
        self.place = chosen.index(index[self.target]) if index[self.target] in chosen else len(chosen)
        self.stored = chosen if self.place < len(chosen) else [*chosen, index[self.target]]
        stored = set(self.stored)
        for k, (name, cell) in enumerate(zip(names, row, strict=True)):
            if name == self.time:
                self.others.append(_Other(self.rows, k, cell, must_be_time=True))
            elif k not in stored:
                may_be_input = self.inputs is None and bool(name)
                may_be_time = self.time is None and as_time(cell) is not None
                if may_be_input or may_be_time:
                    self.others.append(_Other(self.rows, k, cell, may_be_input=may_be_input, may_be_time=may_be_time))

    def _refuse(self, block: Block, cells: list[str]) -> NoReturn:
        for k, cell in enumerate(cells):
            if not is_finite(cell):
                row, column = divmod(k, len(self.stored))
                raise not_a_number(self.rows, self.stored[column], cell, block.where(block.first + row))
        raise AssertionError("a block that is no block of numbers has a cell that is no number")

    def table(self) -> Table:
        """What all rows gave."""
        times = None
        for other in self.others:
            other.finish()
            if times is None and other.is_time:
                times = other.times()
        values = np.frombuffer(self.values, dtype=np.float64).reshape(-1, len(self.stored))
        names = tuple(self.rows.names[k] for k in self.stored[: self.chosen])
        targets = values[:, self.place].copy()
        if self.chosen < len(self.stored):
            values = values[:, : self.chosen].copy()
        return Table(names, values, times, self.target, targets)


class _Other:
    """A column that has no number in the first row, or was named as the time.

    Its cells are looked at for times, and for a number, which makes the first row's cell an error.
    """

    def __init__(
        self,
        rows: Rows,
        index: int,
        cell: str,
        *,
        may_be_input: bool = False,
        may_be_time: bool = False,
        must_be_time: bool = False,
    ) -> None:
        self.rows, self.index, self.first = rows, index, cell
        self.may_be_input, self.must_be_time = may_be_input, must_be_time
        self.is_time = may_be_time or must_be_time
        self._empty = True
        self._texts: set[str] = set()
        self._blocks: list[NDArray[np.datetime64]] = []
        self._disorder = ""

    def add(self, block: Block) -> None:
        """Take the column's cells of some rows."""
        cells = block.cells[self.index :: block.columns]
        if not block.first:
            self._where = block.where(0)
        if self.is_time:
            self._add_times(block, cells)
        if self.must_be_time or not (self.may_be_input or self.is_time):
            return
        for cell in cells:
            if cell in self._texts or _is_date(cell):
                self._empty = False
            elif not is_missing(cell):
                self._empty = False
                if number(cell) is not None:  # a column of numbers
                    if self.may_be_input:
                        raise not_a_number(self.rows, self.index, self.first, self._where)
                    self.is_time = False
                    return
                if len(self._texts) < 1000:
                    self._texts.add(cell)

    def _add_times(self, block: Block, cells: list[str]) -> None:
        found = list(map(as_time, cells))
        if None in found:
            if self.must_be_time:
                row = found.index(None)
                raise InputError(
                    f"{self.rows.path}: expected an ISO 8601 time such as 2010-01-31 or 2010-01-31T13:00 in column "
                    f"{self._name}, received {quoted(cells[row])} in {block.where(block.first + row)}: rewrite the "
                    "times, or leave time out and name the columns to use with inputs"
                )
            self.is_time = False
            return
        times = np.array(found, dtype="datetime64[us]")
        whole = np.concatenate([self._blocks[-1][-1:], times]) if self._blocks else times
        back = np.flatnonzero(whole[1:] < whole[:-1])
        if back.size and not self._disorder:
            k = int(back[0])
            row = block.first + k + 1 - (len(whole) - len(times))
            self._disorder = (
                f"{self.rows.path}: expected the oldest row first, received {whole[k + 1].item()} after "
                f"{whole[k].item()} in column {self._name}, {block.where(row)}: sort the rows by time"
            )
        self._blocks.append(times)

    @property
    def _name(self) -> str:
        return quoted(self.rows.names[self.index])

    def finish(self) -> None:
        """After the last row: gaps alone count as numbers, so that they are reported."""
        if self._empty and self.may_be_input:
            raise not_a_number(self.rows, self.index, self.first, self._where)

    def times(self) -> NDArray[np.datetime64]:
        """The column as times; rows that are not in order would make windows that run backwards."""
        if self._disorder:
            raise InputError(self._disorder)
        return np.concatenate(self._blocks)


def not_a_number(rows: Rows, index: int, cell: str, where: str) -> InputError:
    """The error for a cell that is no finite number."""
    text, value = cell.strip(), number(cell)
    if not text:
        problem, advice = "an empty cell", "fill in the value or remove the row"
    elif is_missing(text):
        problem, advice = f"the missing value {text!r}", "fill in the value or remove the row"
    elif value is not None:
        problem, advice = f"the infinity {quoted(text)}", "correct the value or remove the row"
    elif _DECIMAL_COMMA.fullmatch(text):
        problem, advice = f"the text {quoted(text)}", "write numbers with a decimal point"
    else:
        problem, advice = f"the text {quoted(text)}", "correct it, or leave this column out of inputs"
    name = quoted(rows.names[index])
    return InputError(
        f"{rows.path}: expected a finite number in column {name}, received {problem} in {where}: {advice}"
    )


def is_finite(cell: str) -> bool:
    """Whether a cell is a finite number."""
    value = number(cell)
    return value is not None and math.isfinite(value)


def is_missing(text: str) -> bool:
    """Whether a cell says that there is no value."""
    return len(text) < 100 and text.strip().lower() in _MISSING


def _is_date(text: str) -> bool:
    """Whether a cell begins as a date does, and so is no number: only to save the time of trying."""
    return text[4:5] == "-" and text[:4].isdigit()


def as_time(text: str) -> datetime | None:
    """A date or date-time, in UTC if it has an offset; the first moment of a month or a year."""
    text = text.strip().replace("/", "-")
    if len(text) == 4:
        text += "-01-01"
    elif len(text) == 7 and text[4] == "-":
        text += "-01"
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
    except (ValueError, OverflowError):
        return None


def _require_column(rows: Rows, name: str) -> None:
    names = [known for known in rows.names if known]
    if name in names:
        return
    import difflib  # only here: it takes a millisecond to import

    folded = {known.lower(): known for known in names[:1000] if len(known) <= 60}  # more would take long
    near = difflib.get_close_matches(str(name).lower(), folded, n=1)
    advice = f"did you mean {folded[near[0]]!r}?" if near else "name one of these"
    listed = ", ".join(map(quoted, names[:20]))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise InputError(f"{rows.path}: expected a column of the file ({listed}{more}), received {name!r}: {advice}")
