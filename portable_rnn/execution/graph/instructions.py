"""The parts that a recorded step is cut into: matrix products, sums over rows, and kernels of scalar operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .buffers import Place, Stack
from .trace import Value

__all__ = ["Access", "Kernel", "Product", "RowSum", "Stages", "Term", "rows_read", "writes"]


@dataclass(frozen=True)
class Access:
    """One row block of an array, element by element.

    Attributes
    ----------
    array : str
        A variable of the loop, as in `Place`; "h0" is made once before the loop.
    block : int
        Which block of as many rows as the kernel has.
    spread : "", "column" or "row"
        An array of one column, or of one row, stands for all.
    """

    array: str
    block: int
    spread: str = ""


@dataclass
class Kernel:
    """Scalar operations over `rows` x B elements.

    Attributes
    ----------
    loads : dict of Access to str
        The name of each loaded number.
    statements : list of (name, op, operands)
        Operands are names or numbers.
    stores : list of (Access, name)
    """

    rows: int
    loads: dict[Access, str] = field(default_factory=dict)
    statements: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list)
    stores: list[tuple[Access, str]] = field(default_factory=list)

    def arrays(self) -> list[str]:
        """What it reads and writes, each once."""
        return list(dict.fromkeys([a.array for a in self.loads] + [a.array for a, _ in self.stores]))


@dataclass
class Product:
    """``out = left @ right``; `left` is shared, or transposed from it."""

    left: str
    transposed: bool
    right: Place
    out: Place


@dataclass
class RowSum:
    """``out = sum(x, axis=0)``."""

    x: Place
    out: Place


@dataclass
class Term:
    """What a step adds to a sum over time: ``left @ right.T``, or ``sum(left, axis=1)`` where `right` is None."""

    left: Place
    right: Place | None


@dataclass
class Stages:
    """A step as stages, and where everything is.

    Attributes
    ----------
    stages : list of Product, RowSum and Kernel
        In the order of running.
    stacks, work, outputs : as in `planning.Plan`
    ends : list of str
        The variable of each carry after the step; "n0" alternates between two buffers.
    hoisted : list of Value
        What is made once before the loop, in the order of "h0", "h1", ...
    terms : list of Term
        Each is summed over the steps.
    """

    stages: list[Any]
    stacks: list[Stack]
    work: list[tuple[tuple[int, ...], bool]]
    outputs: list[tuple[str, int, int, int]]
    ends: list[str]
    hoisted: list[Value]
    terms: list[Term] = field(default_factory=list)


def rows_read(stage: Any, array: str) -> list[tuple[int, int]]:
    """(start, stop) of the rows of an array that a stage reads."""
    if isinstance(stage, Kernel):
        return [(a.block * stage.rows, (a.block + 1) * stage.rows) for a in stage.loads if a.array == array]
    place = stage.right if isinstance(stage, Product) else stage.x
    return [(place.start, place.start + place.rows)] if place.base == array else []


def writes(stage: Any, array: str) -> bool:
    """Whether a stage writes to an array."""
    if isinstance(stage, Kernel):
        return any(access.array == array for access, _ in stage.stores)
    return bool(stage.out.base == array)
