"""The rows of a CSV file, a block at a time, so that a file takes little more memory than the numbers in it."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, TextIO

from ..errors import InputError

__all__ = ["Rows", "number", "opened", "quoted"]

MAX_COLUMNS = 100_000
_DELIMITERS = (",", ";", "\t")
_BLOCK = 1 << 16  # cells
_LONG = 1 << 16  # characters of a line whose cells are counted before they are split


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A file of UTF-8 text, with or without a byte order mark; InputError where it can't be read as one."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            try:
                yield file
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: expected UTF-8 text, received byte 0x{error.object[error.start]:02x} at position "
                    f'{_position(file, error)}: save the file as "CSV UTF-8"'
                ) from error
    except FileNotFoundError as error:
        raise InputError(
            f"expected a CSV file, received the path {str(path)!r}, which does not exist: "
            f"check the name (the current folder is {str(Path.cwd())!r})"
        ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"expected a readable CSV file, received {str(path)!r}, which can't be read "
            f"({reason}): give the path of a file that you may read"
        ) from error


def _position(file: TextIO, error: UnicodeDecodeError) -> int:
    """Where in the file the byte stands: `error` knows the piece that was decoded last."""
    with contextlib.suppress(OSError):  # a pipe has no positions
        return file.buffer.tell() - len(error.object) + error.start
    return error.start


@dataclass(frozen=True)
class Block:
    """Some rows of a file.

    Attributes
    ----------
    first : int
        Number of the first row, from 0.
    columns : int
    cells : list of str
        Row after row.
    line : int
        The line before the first row.
    """

    first: int
    columns: int
    cells: list[str]
    line: int

    def where(self, row: int) -> str:
        """A row by its number and the line it ends on; cells may hold line ends."""
        rows = row - self.first + 1
        breaks = sum(cell.count("\n") for cell in self.cells[: rows * self.columns])
        return f"row {row + 1} (line {self.line + rows + breaks})"


class _Piece(NamedTuple):
    """Rows of any length, without blank lines at the end: the line before them, their cells, how many each has."""

    line: int
    cells: list[str]
    lengths: list[int]
    blank: int  # the line before blank ones at the end, or -1


class Rows:
    """The header and the rows of a CSV file.

    Lines are split by hand up to the first one with a quote, which takes a third of the time of `csv.reader`.

    Parameters
    ----------
    path : path
        For errors.
    file : text file

    Attributes
    ----------
    names : tuple of str
        The header.
    """

    def __init__(self, path: str | os.PathLike[str], file: TextIO) -> None:
        self.path = str(path)
        self.names: tuple[str, ...] = ()
        self._file = file
        self._line = 0  # the last one that was read
        first = self._first_line()
        self._check_long(first, _DELIMITERS)
        try:
            self._mark = max(_DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
            reader = csv.reader(itertools.chain([first], self._checked(file)), delimiter=self._mark, strict=True)
            self.names = tuple(name.strip() for name in next(reader))
        except csv.Error as error:
            raise self._broken(self._line, error) from error
        self._line += reader.line_num - 1
        self._check_header()

    def blocks(self) -> Iterator[Block]:
        """The rows, each of as many cells as the header.

        Raises
        ------
        InputError
            A row is longer or shorter, or breaks the rules of CSV; there is no row.
        """
        columns, first, blank = len(self.names), 0, -1
        for piece in itertools.chain(self._plain(), self._quoted()):
            if piece.lengths and blank >= 0:  # lines that are blank may stand at the end only
                piece = _Piece(blank, [""], [int(columns == 1)], -1)
            blank = piece.blank if blank < 0 else blank
            if set(piece.lengths) - {columns}:
                self._refuse_length(piece, first)
            if piece.lengths:
                yield Block(first, columns, piece.cells, piece.line)
            first += len(piece.lengths)
        if not first:
            raise InputError(
                f"{self.path}: expected rows of numbers below the header, received the header only: "
                "check how the file was written"
            )

    def _plain(self) -> Iterator[_Piece]:
        """The rows up to a line with a quote, or one that is very long; what follows is left in `_rest`."""
        size = min(max(64 * len(self.names), 1 << 17), 1 << 20)
        empty = int(len(self.names) == 1)  # a blank line is a row with an empty cell there
        while text := self._file.read(size):
            text += self._file.readline()
            filled = text.rstrip("\n")
            lines = filled.split("\n") if filled else []
            if '"' in text or max(map(len, lines), default=0) > _LONG:
                self._rest = text
                return
            lengths = [line.count(self._mark) + 1 if line else empty for line in lines]
            cells = filled.replace("\n", self._mark).split(self._mark) if filled else []
            has_blank = len(text) - len(filled) > bool(filled)
            yield _Piece(self._line, cells, lengths, self._line + len(lines) if has_blank else -1)
            self._line += text.count("\n")
        self._rest = ""

    def _quoted(self) -> Iterator[_Piece]:
        """The rows that `_plain` has left."""
        if not self._rest:
            return
        lines = self._checked(itertools.chain(io.StringIO(self._rest), self._file))
        reader = csv.reader(lines, delimiter=self._mark, strict=True)
        one = len(self.names) == 1
        start = self._line
        while True:
            line = start + reader.line_num
            try:
                rows = list(itertools.islice(reader, max(1, _BLOCK // len(self.names))))
            except csv.Error as error:
                raise self._broken(start + reader.line_num, error) from error
            if not rows:
                return
            blank = sum(1 for _ in itertools.takewhile(lambda row: not row, reversed(rows)))
            rows = [row or [""] for row in rows[: len(rows) - blank]] if one else rows[: len(rows) - blank]
            cells = [*itertools.chain.from_iterable(rows)]
            yield _Piece(line, cells, list(map(len, rows)), start + reader.line_num - blank if blank else -1)

    def _first_line(self) -> str:
        """The first line that is not blank."""
        for line in self._file:
            self._line += 1
            if line != "\n":
                return line
        raise self._empty()

    def _empty(self) -> InputError:
        return InputError(
            f"{self.path}: expected a header line and rows of numbers, received an empty file: "
            "check how the file was written"
        )

    def _checked(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._check_long(line, (self._mark,))
            yield line

    def _check_long(self, line: str, marks: Sequence[str]) -> None:
        """Count the cells of a long line before it is split: no more than the header has, or than a header can have."""
        if len(line) > _LONG:
            cells, most = max(_cells(line, mark) for mark in marks), len(self.names) or MAX_COLUMNS
            if cells > most:
                raise InputError(
                    f"{self.path}: expected at most {most:,} cells in a row, received {cells:,} in one line: "
                    "check how the file was written"
                )

    def _broken(self, line: int, error: csv.Error) -> InputError:
        return InputError(
            f"{self.path}: expected CSV, received text that breaks its rules at line {line} "
            f"({error}): close every quote and double a quote inside quotes"
        )

    def _check_header(self) -> None:
        names = self.names
        if not any(names) and not any(line.strip() for line in self._file):
            raise self._empty()
        if all(not name or number(name) is not None for name in names):
            raise InputError(
                f"{self.path}: expected column names in the first line, received {quoted(', '.join(names[:20]))}: "
                "add a header line"
            )
        for name, count in Counter(names).items():
            if name and count > 1:
                raise InputError(
                    f"{self.path}: expected each column name once, received {quoted(name)} {count} times: "
                    "rename the columns"
                )

    def _refuse_length(self, piece: _Piece, first: int) -> NoReturn:
        index = next(k for k, length in enumerate(piece.lengths) if length != len(self.names))
        breaks = sum(cell.count("\n") for cell in piece.cells[: sum(piece.lengths[: index + 1])])
        raise InputError(
            f"{self.path}: expected {len(self.names)} cells in every row, as in the header, received "
            f"{piece.lengths[index]} in row {first + index + 1} (line {piece.line + index + 1 + breaks}): "
            "correct the row, quote cells that contain the delimiter"
        )


def _cells(line: str, mark: str) -> int:
    """At least how many cells a line has: delimiters within quotes don't count, whichever way the quotes are read."""
    parts = line.split('"')
    return 1 + min(sum(part.count(mark) for part in parts[start::2]) for start in (0, 1 if len(parts) > 1 else 0))


def quoted(text: str) -> str:
    """The text quoted, on one line, at most 40 characters of it."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def number(text: str) -> float | None:
    """The number, NaN and infinity included, or None for text. Python's 1_000 is text here."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None
