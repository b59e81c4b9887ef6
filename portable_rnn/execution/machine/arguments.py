"""What a compiled loop is made for and what it takes: machine words, most of them addresses, for each thread."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ..graph.buffers import Buffer, Kind, RowBlock
from ..graph.instructions import CutGraph, Kernel, Product
from ..graph.trace import Shape

__all__ = [
    "Argument",
    "LoopForm",
    "Matrix",
    "Role",
    "argument_of",
    "arguments_of",
    "collected",
    "is_given",
    "matrices_of",
]


class LoopForm(NamedTuple):
    """What a loop depends on beside its instructions.

    Attributes
    ----------
    shapes : dict of Buffer to tuple of int
        Of a step of each input, and of what is the same at each step.
    booleans : set of Buffer
        Which are of booleans.
    dtype : "float32" or "float64"
    lanes : int
        Numbers in a vector: see `vector_lanes`.
    single : bool
        A batch of one column.
    by_rows : bool
        Threads share the rows of each instruction, not the columns; there is no `RowSum` then.
    few : int
        So many columns are the whole batch for each thread, and products take vectors of rows; or 0.
    own_sums : bool
        Each thread adds up the sums over time of its own columns, elsewhere. Otherwise each adds up some of their rows.
    """

    shapes: dict[Buffer, Shape]
    booleans: set[Buffer]
    dtype: str
    lanes: int
    single: bool
    by_rows: bool
    few: int
    own_sums: bool


class Matrix(NamedTuple):
    """The left side of products: (rows, columns), which stands in its buffer as it is or transposed."""

    buffer: Buffer
    transposed: bool
    rows: int
    columns: int


class Role(Enum):
    """What an argument of a loop means; those that are set for each call come first, up to `REVERSE`."""

    # addresses of what the loop reads (of the thread's first column, but for matrices), of its stacks and its sums
    READ = "read"
    MATRIX = "matrix"  # the left side of a product
    STACK = "stack"
    SUM = "sum"  # of a term; with `own_sums` each thread has its own
    STEPS = "steps"
    REVERSE = "reverse"
    # set for a workspace
    BATCH = "batch"
    FIRST = "first"  # of the thread's columns
    WIDTH = "width"  # how many they are
    PART = "part"  # which share of rows is the thread's own, where they are shared
    PARTS = "parts"
    COUNTER = "counter"  # the address of a word that is 0
    CAPACITY = "capacity"  # columns taken together for the sums over time: a multiple of the batch, or with `own_sums`
    #                        of the width
    # distances in an input over time, in numbers
    STEP = "step"
    ROW = "row"
    APART = "apart"  # if not 0, its columns are not side by side: `ROW` is their distance, and a step is transposed
    TRANSPOSED = "transposed"  # to this address
    # distances in a matrix, of which one is 1, and where it is laid out
    MATRIX_ROW = "matrix row"
    MATRIX_COLUMN = "matrix column"
    PANELS = "panels"
    # addresses of memory for the loop alone: what other buffers are, and where columns for the sums are collected
    MEMORY = "memory"
    LEFT = "left"
    RIGHT = "right"


class Argument(NamedTuple):
    """One machine word: its meaning, and the buffer or the number of the sum or collection that it belongs to.

    `MEMORY` of `Kind.WORK` and `TRANSPOSED` are a thread's own, but with `by_rows` all share the former; `LEFT` and
    `RIGHT` are with `own_sums`.
    """

    role: Role
    buffer: Buffer | None = None
    number: int = 0
    transposed: bool = False

    @classmethod
    def of_matrix(cls, role: Role, matrix: Matrix) -> Argument:
        return cls(role, matrix.buffer, transposed=matrix.transposed)


_READ = (Kind.INPUT, Kind.SHARED, Kind.HOISTED, Kind.CARRY)
_GIVEN = (Role.READ, Role.MATRIX, Role.STACK, Role.SUM, Role.STEPS, Role.REVERSE)


def is_given(argument: Argument) -> bool:
    """Whether it is set for each call."""
    return argument.role in _GIVEN


def argument_of(buffer: Buffer) -> Argument:
    """The address of a buffer."""
    role = Role.READ if buffer.kind in _READ else Role.STACK if buffer.kind is Kind.STACK else Role.MEMORY
    return Argument(role, buffer)


def arguments_of(cut: CutGraph) -> list[Argument]:
    """What the loop of a cut step takes, in the order in which it does."""
    scalars = (Role.STEPS, Role.REVERSE, Role.BATCH, Role.FIRST, Role.WIDTH, Role.PART, Role.PARTS, Role.COUNTER)
    found = dict.fromkeys(Argument(role) for role in (*scalars, Role.CAPACITY))
    buffers: dict[Buffer, None] = {}
    for made in cut.instructions:
        if isinstance(made, Kernel):
            buffers |= dict.fromkeys(made.buffers())
        else:
            buffers |= {block.buffer: None for block in (made.right if isinstance(made, Product) else made.x, made.out)}
    for matrix in matrices_of(cut):
        roles = (Role.PANELS, Role.MATRIX, Role.MATRIX_ROW, Role.MATRIX_COLUMN)
        found |= dict.fromkeys(Argument.of_matrix(role, matrix) for role in roles)
    for term in cut.terms:
        buffers |= dict.fromkeys(block.buffer for block in (term.left, term.right) if block is not None)
    for k, end in enumerate(cut.ends):
        buffers |= dict.fromkeys((Buffer(Kind.CARRY, k), end))
        if end.kind is Kind.NEXT:
            buffers[Buffer(Kind.SPARE, k)] = None
    for buffer in buffers:
        found[argument_of(buffer)] = None
        if buffer.kind is Kind.INPUT:
            found |= dict.fromkeys(Argument(r, buffer) for r in (Role.STEP, Role.ROW, Role.APART, Role.TRANSPOSED))
    for role, blocks in ((Role.LEFT, collected(cut, Role.LEFT)), (Role.RIGHT, collected(cut, Role.RIGHT))):
        found |= dict.fromkeys(Argument(role, number=k) for k in range(len(blocks)))
    found |= dict.fromkeys(Argument(Role.SUM, number=k) for k in range(len(cut.terms)))
    return sorted(found, key=_rank)


def _rank(argument: Argument) -> tuple[int, int]:
    """Where an argument stands in their order."""
    role, buffer = argument.role, argument.buffer
    if role in (Role.READ, Role.MATRIX):
        return 0, 0
    if role in _GIVEN:
        return 1 + _GIVEN.index(role), buffer.index if buffer is not None else argument.number
    return 1 + len(_GIVEN), 0


def matrices_of(cut: CutGraph) -> list[Matrix]:
    """The left sides of the products, each once."""
    products = [made for made in cut.instructions if isinstance(made, Product)]
    return list(dict.fromkeys(Matrix(p.left, p.transposed, p.out.rows, p.right.rows) for p in products))


def collected(cut: CutGraph, side: Role) -> list[RowBlock]:
    """What is collected of each step, for the `Role.LEFT` or the `Role.RIGHT` sides of the terms."""
    blocks = [term.left if side is Role.LEFT else term.right for term in cut.terms]
    return list(dict.fromkeys(block for block in blocks if block is not None))
