"""What a recorded step is cut into: matrix products, sums over rows, and kernels of scalar operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeAlias

from .buffers import Buffer, Kind, Output, RowBlock, Stack
from .operations import Op
from .trace import Graph, Shape, Value

__all__ = [
    "Access",
    "CutGraph",
    "Instruction",
    "Kernel",
    "Operand",
    "Product",
    "RowSum",
    "Spread",
    "Statement",
    "Term",
    "boolean_buffers",
    "rows_read",
    "writes",
]


Operand: TypeAlias = str | float  # the name of a loaded or computed number, or a number


class Spread(Enum):
    """How an array's elements stand for those of a row block."""

    NONE = "none"  # each for itself
    COLUMN = "column"  # the one column for all
    ROW = "row"  # the one row for all


@dataclass(frozen=True)
class Access:
    """One row block of an array, element by element.

    Attributes
    ----------
    buffer : Buffer
    block : int
        Which block of as many rows as the kernel has.
    spread : Spread
    """

    buffer: Buffer
    block: int
    spread: Spread = Spread.NONE


class Statement(NamedTuple):
    """One scalar operation of a kernel."""

    name: str
    op: Op
    operands: tuple[Operand, ...]


@dataclass
class Kernel:
    """Scalar operations over `rows` x B elements.

    Attributes
    ----------
    loads : dict of Access to str
        The name of each loaded number.
    statements : list of Statement
    stores : list of (Access, operand)
    """

    rows: int
    loads: dict[Access, str] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)
    stores: list[tuple[Access, Operand]] = field(default_factory=list)

    def buffers(self) -> list[Buffer]:
        """What it reads and writes, each once."""
        return list(dict.fromkeys([a.buffer for a in self.loads] + [a.buffer for a, _ in self.stores]))


@dataclass
class Product:
    """``out = left @ right``; `left` is shared, or transposed from it."""

    left: Buffer
    transposed: bool
    right: RowBlock
    out: RowBlock


@dataclass
class RowSum:
    """``out = sum(x, axis=0)``."""

    x: RowBlock
    out: RowBlock


@dataclass
class Term:
    """What a step adds to a sum over time: ``left @ right.T``, or ``sum(left, axis=1)`` where `right` is None."""

    left: RowBlock
    right: RowBlock | None


Instruction: TypeAlias = Kernel | Product | RowSum


@dataclass
class CutGraph:
    """A step as instructions, and where everything stands.

    Attributes
    ----------
    instructions : list of Kernel, Product and RowSum
        In the order of running.
    stacks : list of Stack
    work : list of (shape, whether boolean)
    outputs : list of Output
    ends : list of Buffer
        Where each carry is found after the step.
    hoisted : list of Value
        What is made once before the loop.
    terms : list of Term
        Each is summed over the steps.
    """

    instructions: list[Instruction]
    stacks: list[Stack]
    work: list[tuple[Shape, bool]]
    outputs: list[Output]
    ends: list[Buffer]
    hoisted: list[Value]
    terms: list[Term] = field(default_factory=list)


def rows_read(instruction: Instruction, buffer: Buffer) -> list[tuple[int, int]]:
    """(start, stop) of the rows of a buffer that an instruction reads."""
    if isinstance(instruction, Kernel):
        rows = instruction.rows
        return [(a.block * rows, (a.block + 1) * rows) for a in instruction.loads if a.buffer == buffer]
    block = instruction.right if isinstance(instruction, Product) else instruction.x
    return [(block.start, block.start + block.rows)] if block.buffer == buffer else []


def writes(instruction: Instruction, buffer: Buffer) -> bool:
    """Whether an instruction writes to a buffer."""
    if isinstance(instruction, Kernel):
        return any(access.buffer == buffer for access, _ in instruction.stores)
    return instruction.out.buffer == buffer


def boolean_buffers(graph: Graph, cut: CutGraph) -> set[Buffer]:
    """Which buffers of a step are of booleans."""
    values = {
        Kind.INPUT: graph.inputs.xs,
        Kind.SHARED: graph.inputs.shared,
        Kind.HOISTED: cut.hoisted,
        **dict.fromkeys((Kind.CARRY, Kind.NEXT, Kind.SPARE), graph.inputs.carry),
    }
    found = {Buffer(kind, k) for kind, group in values.items() for k, value in enumerate(group) if value.boolean}
    found |= {Buffer(Kind.STACK, k) for k, stack in enumerate(cut.stacks) if stack.boolean}
    return found | {Buffer(Kind.WORK, k) for k, (_, boolean) in enumerate(cut.work) if boolean}
