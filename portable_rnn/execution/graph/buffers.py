"""Where a value of a recorded step stands: rows of a buffer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .operations import Op
from .trace import Value

__all__ = ["Buffer", "Kind", "Output", "RowBlock", "Source", "Stack", "is_straight", "is_whole", "memory_of", "root_of"]


class Kind(Enum):
    """What a buffer is for; its value is the letter that source code has for it."""

    INPUT = "x"  # of this step, from an array over time
    STACK = "y"  # of this step, of what is kept over time
    WORK = "w"
    CARRY = "c"  # before this step
    NEXT = "n"  # the carry after this step
    SPARE = "m"  # of two that take turns, the one that NEXT is not
    SHARED = "s"
    HOISTED = "h"  # made once before the loop


@dataclass(frozen=True)
class Buffer:
    """Memory of a loop: the leaf of an argument, a stack, a workspace."""

    kind: Kind
    index: int

    @property
    def name(self) -> str:
        """Of a variable in source code."""
        return f"{self.kind.value}{self.index}"


@dataclass(frozen=True)
class RowBlock:
    """Rows of a buffer: `rows` from `start`, of `total`."""

    buffer: Buffer
    start: int
    rows: int
    total: int

    @classmethod
    def whole(cls, buffer: Buffer, rows: int) -> RowBlock:
        return cls(buffer, 0, rows, rows)

    def inside(self, start: int, rows: int) -> RowBlock:
        return RowBlock(self.buffer, self.start + start, rows, self.total)


@dataclass
class Stack:
    """An array over all time steps: what an output becomes.

    `carry` is the carry whose first value stands before the first step's (T + 1 rows), else None. `donated` is the
    row at which it stands in the first input, which the caller donated, else None.
    """

    shape: tuple[int, ...]
    boolean: bool
    carry: int | None = None
    donated: int | None = None


class Source(Enum):
    """What an output over time is a part of."""

    STACK = "stack"
    BEFORE = "before"  # a stack, one step earlier
    INPUT = "input"


class Output(NamedTuple):
    """An output over time: the rows from `start` to `stop` of a stack, or of an input."""

    source: Source
    number: int
    start: int
    stop: int


def root_of(value: Value) -> tuple[Value, int, int]:
    """What a chain of row blocks is taken from, and which rows of it."""
    start, stop = 0, value.shape[0] if value.shape else 1
    while value.op is Op.ROWS:
        start, stop = start + value.detail[0], stop + value.detail[0]
        (operand,) = value.operands
        assert isinstance(operand, Value)
        value = operand
    return value, start, stop


def memory_of(value: Value) -> tuple[Value, int, int]:
    """`root_of` that looks through transposes: what stands in the memory that is read, and which rows of it."""
    root, start, stop = root_of(value)
    while root.op is Op.TRANSPOSE:
        (operand,) = root.operands
        assert isinstance(operand, Value)
        root, start, stop = root_of(operand)
    return root, start, stop


def is_whole(value: Value) -> bool:
    root, start, stop = root_of(value)
    return (start, stop) == (0, root.shape[0])


def is_straight(value: Value) -> bool:
    """Whether it stands in its memory as it is, not transposed."""
    return root_of(value)[0].op is not Op.TRANSPOSE
