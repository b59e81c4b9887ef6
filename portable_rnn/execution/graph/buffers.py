"""Where a value of a recorded step stands: rows of some memory."""

from __future__ import annotations

from dataclasses import dataclass

from .trace import Value

__all__ = ["Place", "Stack", "is_straight", "is_whole", "memory_of", "root_of"]


@dataclass(frozen=True)
class Place:
    """Rows of some memory.

    Attributes
    ----------
    base : str
        The name of a variable of the loop: "x0" (an input of this step), "y0" (a row of a stack), "w0" (workspace),
        "n0" (where the carry goes).
    start, rows, total : int
        The rows taken, of how many.
    """

    base: str
    start: int
    rows: int
    total: int

    def inside(self, start: int, rows: int) -> Place:
        return Place(self.base, self.start + start, rows, self.total)


@dataclass
class Stack:
    """An array over all time steps: what an output becomes.

    `carry` is the carry whose first value stands before the first step's (T + 1 rows), else None. `given` is the
    row at which it stands in the first input, which the caller gave away, else None.
    """

    shape: tuple[int, ...]
    boolean: bool
    carry: int | None = None
    given: int | None = None


def root_of(value: Value) -> tuple[Value, int, int]:
    """What a chain of row blocks is taken from, and which rows of it."""
    start, stop = 0, value.shape[0] if value.shape else 1
    while value.op == "rows":
        start, stop = start + value.detail[0], stop + value.detail[0]
        (operand,) = value.operands
        assert isinstance(operand, Value)
        value = operand
    return value, start, stop


def memory_of(value: Value) -> tuple[Value, int, int]:
    """`root_of` that looks through transposes: what stands in the memory that is read, and which rows of it."""
    root, start, stop = root_of(value)
    while root.op == "transpose":
        (operand,) = root.operands
        assert isinstance(operand, Value)
        root, start, stop = root_of(operand)
    return root, start, stop


def is_whole(value: Value) -> bool:
    root, start, stop = root_of(value)
    return (start, stop) == (0, root.shape[0])


def is_straight(value: Value) -> bool:
    """Whether it stands in its memory as it is, not transposed."""
    return root_of(value)[0].op != "transpose"
