"""What commands print: lines, tables and errors, with nothing in them that a terminal obeys."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from ..errors import printable

__all__ = ["PROGRAM", "fail", "number", "say", "say_table", "write_csv"]

PROGRAM = "portable-rnn"


def say(text: str) -> None:
    """Print lines; what came from a file stands in them without control characters."""
    print("\n".join(printable(line, limit=10_000) for line in text.split("\n")), flush=True)


def fail(code: int, message: str) -> int:
    print(f"{PROGRAM}: {printable(' '.join(message.split()), limit=10_000)}", file=sys.stderr)
    return code


def say_table(rows: Sequence[Sequence[str]], right: Iterable[int]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.rjust if k in set(right) else str.ljust for k in range(len(widths))]
    for row in rows:
        cells = (align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        say("  ".join(cells).rstrip())


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def write_csv(file: TextIO, lines: Iterable[list[str]]) -> None:
    csv.writer(file, lineterminator="\n").writerows(lines)
