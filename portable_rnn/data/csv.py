"""CSV files as columns of numbers, strictly: a gap or a typing error is an error, not a NaN."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Table", "read_csv"]

_DELIMITERS = (",", ";", "\t")
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


@dataclass(frozen=True)
class _Cells:
    """The cells of a file as text, by column, with the line each row ends on."""

    path: str
    names: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def named(self, name: str) -> tuple[str, ...]:
        return self.columns[self.names.index(name)]

    def where(self, row: int) -> str:
        return f"row {row + 1} (line {self.lines[row]})"


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
    cells = _read_cells(path)
    for name in (target, *(inputs or ()), *(() if time is None else (time,))):
        _require_column(cells, name)
    times = _find_times(cells) if time is None else _times(cells, time)
    if inputs is None:
        chosen = tuple(
            name for name in cells.names if name == target or (name and name != time and _is_numeric(cells.named(name)))
        )
    else:
        chosen = tuple(inputs)
    targets = _numbers(cells, target)
    values = np.stack([_numbers(cells, name) for name in chosen], axis=1)
    return Table(chosen, values, times, target, targets)


def _short(text: str) -> str:
    """The text quoted, on one line, at most 40 characters of it."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"expected a CSV file, received the path {str(path)!r}, which does not exist: "
            f"check the name (the current folder is {str(Path.cwd())!r})"
        ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"expected a readable CSV file, received {str(path)!r}, which can't be read "
            f"({reason}): "
            "give the path of a file that you may read"
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, received byte 0x{content[error.start]:02x} at position "
            f'{error.start}: save the file as "CSV UTF-8"'
        ) from error
    if not text.strip():
        raise InputError(
            f"{path}: expected a header line and rows of numbers, received an empty file: "
            "check how the file was written"
        )
    return text


def _delimiter(text: str) -> str:
    """The delimiter that splits the first line into the most fields; a comma if none does."""
    line = text.lstrip("\r\n").splitlines()[0]
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([line], delimiter=mark), [])))


def _read_cells(path: str | os.PathLike[str]) -> _Cells:
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(
            f"{path}: expected CSV, received text that breaks its rules at line {reader.line_num} "
            f"({error}): close every quote and double a quote inside quotes"
        ) from error
    while not rows[-1][1]:  # blank lines at the end
        rows.pop()
    while not rows[0][1]:  # and at the start
        rows.pop(0)
    names = tuple(name.strip() for name in rows[0][1])
    _check_header(path, names)
    if len(rows) == 1:
        raise InputError(
            f"{path}: expected rows of numbers below the header, received the header only: "
            "check how the file was written"
        )
    for index, (line, row) in enumerate(rows[1:]):
        if len(row) != len(names) and not (len(names) == 1 and not row):
            raise InputError(
                f"{path}: expected {len(names)} cells in every row, as in the header, received "
                f"{len(row)} in row {index + 1} (line {line}): correct the row, "
                "quote cells that contain the delimiter"
            )
    body = [row or [""] for _, row in rows[1:]]
    return _Cells(
        path=str(path),
        names=names,
        columns=tuple(zip(*body, strict=True)),
        lines=tuple(line for line, _ in rows[1:]),
    )


def _check_header(path: str | os.PathLike[str], names: tuple[str, ...]) -> None:
    if all(not name or _number(name) is not None for name in names):
        raise InputError(
            f"{path}: expected column names in the first line, received {_short(', '.join(names))}: add a header line"
        )
    for name in names:
        if name and names.count(name) > 1:
            raise InputError(
                f"{path}: expected each column name once, received {_short(name)} "
                f"{names.count(name)} times: rename the columns"
            )


def _require_column(cells: _Cells, name: str) -> None:
    names = [known for known in cells.names if known]
    if name in names:
        return
    import difflib  # only here: it takes a millisecond to import

    folded = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), folded, n=1)
    advice = f"did you mean {folded[near[0]]!r}?" if near else "name one of these"
    listed = ", ".join(repr(known) for known in names[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise InputError(f"{cells.path}: expected a column of the file ({listed}{more}), received {name!r}: {advice}")


def _number(text: str) -> float | None:
    """The number, NaN and infinity included, or None for text. Python's 1_000 is text here."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _is_missing(text: str) -> bool:
    return text.strip().lower() in _MISSING


def _is_numeric(column: Sequence[str]) -> bool:
    """Whether a cell is a number; a column of gaps alone counts, so that its gaps are reported."""
    present = [cell for cell in column if not _is_missing(cell)]
    return not present or any(_number(cell) is not None for cell in present)


def _numbers(cells: _Cells, name: str) -> NDArray[np.float64]:
    column = cells.named(name)
    numbers = [_number(cell) for cell in column]
    for row, (cell, number) in enumerate(zip(column, numbers, strict=True)):
        if number is not None and math.isfinite(number):
            continue
        text = cell.strip()
        if not text:
            problem, advice = "an empty cell", "fill in the value or remove the row"
        elif _is_missing(text):
            problem, advice = f"the missing value {text!r}", "fill in the value or remove the row"
        elif number is not None:
            problem, advice = f"the infinity {_short(text)}", "correct the value or remove the row"
        elif _DECIMAL_COMMA.fullmatch(text):
            problem, advice = f"the text {text!r}", "write numbers with a decimal point"
        else:
            problem, advice = (
                f"the text {_short(text)}",
                "correct it, or leave this column out of inputs",
            )
        raise InputError(
            f"{cells.path}: expected a finite number in column {name!r}, received {problem} in "
            f"{cells.where(row)}: {advice}"
        )
    return np.array(numbers, dtype=np.float64)


def _time(text: str) -> datetime | None:
    """A date or date-time, in UTC if it has an offset; the first moment of a month or a year."""
    text = text.strip().replace("/", "-")
    for candidate in (text, text + "-01", text + "-01-01"):
        try:
            time = datetime.fromisoformat(candidate)
            return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
        except (ValueError, OverflowError):
            continue
    return None


def _find_times(cells: _Cells) -> NDArray[np.datetime64] | None:
    for name, column in zip(cells.names, cells.columns, strict=True):
        if _time(column[0]) is None or _is_numeric(column):
            continue
        times = [time for time in map(_time, column) if time is not None]
        if len(times) == len(column):
            return _in_order(cells, name, times)
    return None


def _times(cells: _Cells, name: str) -> NDArray[np.datetime64]:
    times = []
    for row, cell in enumerate(cells.named(name)):
        time = _time(cell)
        if time is None:
            raise InputError(
                f"{cells.path}: expected an ISO 8601 time such as 2010-01-31 or 2010-01-31T13:00 "
                "in "
                f"column {name!r}, received {_short(cell)} in {cells.where(row)}: rewrite the "
                "times, "
                "or leave time out and name the columns to use with inputs"
            )
        times.append(time)
    return _in_order(cells, name, times)


def _in_order(cells: _Cells, name: str, times: list[datetime]) -> NDArray[np.datetime64]:
    """The times as an array; rows that are not in order would make windows that run backwards."""
    for row in range(1, len(times)):
        if times[row] < times[row - 1]:
            raise InputError(
                f"{cells.path}: expected the oldest row first, received {times[row]} after "
                f"{times[row - 1]} in column {name!r}, {cells.where(row)}: sort the rows by time"
            )
    return np.array(times, dtype="datetime64[us]")
