"""Memory of compiled loops while they run, and the arguments that say to each thread where everything is."""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from ...arrays import Array
from .. import memory_pool
from ..graph.buffers import Buffer, Kind
from .arguments import Argument, Role, argument_of
from .thread_pool import run_in_threads

if TYPE_CHECKING:
    from .program import CompiledProgram

__all__ = ["CARRY", "SHARED", "XS", "Layout", "Read", "Workspace", "address_of"]

CARRY, XS, SHARED = range(3)  # groups of a loop's arguments

COLLECTED = 512  # columns that are taken together for the sums over time
LINE = 64  # bytes of the cache
_SMALL = 1 << 16  # bytes: workspaces of less are kept


class Layout(Enum):
    """How a loop reads an array."""

    OVER_TIME = "over time"
    MATRIX = "matrix"  # the left side of a product
    PLAIN = "plain"


@dataclass(frozen=True)
class Read:
    """An array that a loop reads."""

    argument: Argument
    buffer: Buffer
    group: int  # of a step's arguments: carry, xs, or shared and behind it what is hoisted
    number: int
    layout: Layout
    size: int  # of an element
    transposed: bool = False
    spread: bool = False  # one column for all


class Workspace:
    """Memory of a loop while it runs, and the arguments of each thread; runs use it one after the other.

    Attributes
    ----------
    shares : list of (start, stop)
        The columns of each thread.
    strides : list of tuple of int
        Of the arrays for which the arguments are set.
    buffers : dict of Buffer to array
        Where the carry goes.
    """

    def __init__(self, program: CompiledProgram, shares: list[tuple[int, int]]) -> None:
        self.program, self.shares, batch = program, shares, program.batch
        self.function = program.library.functions[program.name]
        self.entry = program.library.addresses[program.name]
        self.strides: list[tuple[int, ...]] = []
        steps = [stop - start if program.own_sums else batch for start, stop in shares]  # columns of one
        capacities = [max(COLLECTED // width, 1) * width for width in steps]
        self.buffers = {
            Buffer(kind, k): np.empty(shape, dtype)
            for k, (shape, dtype) in enumerate(program.carry_forms)
            for kind in (Kind.NEXT, Kind.SPARE)
            if argument_of(Buffer(kind, k)) in program.index
        }
        self.counter = np.zeros(1, dtype=np.int64)
        self.table = np.zeros((len(shares), len(program.index)), dtype=np.int64)
        self.rows = np.array([address_of(row) for row in self.table])
        self.first = int(self.rows[0])
        self.starts = np.array(shares)[:, :1]
        for n, (start, stop) in enumerate(shares):
            scalars = {
                Role.BATCH: batch,
                Role.FIRST: start,
                Role.WIDTH: stop - start,
                Role.PART: n,
                Role.PARTS: len(shares),
                Role.CAPACITY: capacities[n],
                Role.COUNTER: address_of(self.counter),
            }
            known = {Argument(role): value for role, value in scalars.items()}
            known |= {argument_of(b): address_of(a) + start * a.itemsize for b, a in self.buffers.items()}
            for argument, value in known.items():
                self.table[n, program.index[argument]] = value
        self.given = self.table[:, : len(program.given)]
        self.write: Callable[..., None] = struct.Struct(f"{len(program.given)}q").pack_into
        self.sums = np.array(
            [program.index[Argument(Role.SUM, number=k)] for k in range(len(program.sum_forms))], dtype=np.int64
        )
        self.sum_starts = np.array(program.sum_ends[:-1]) * program.dtype.itemsize
        # bytes between the columns of what is given, by which a thread's first one is found
        self.columns = np.zeros(len(program.given), dtype=np.int64)
        first = len(program.reads)
        self.columns[first : first + len(program.written)] = [size for *_, size in program.written]
        self._lay_out(program.workspace_sizes(shares, capacities), program.dtype.itemsize)

    def _lay_out(self, sizes: dict[tuple[Argument, int | None], int], size: int) -> None:
        """Decide where in one piece of memory everything stands."""
        ends = list(itertools.accumulate((-(-n * size // LINE) * LINE for n in sizes.values()), initial=0))
        self.bytes = ends[-1] + LINE
        self.memory: npt.NDArray[np.generic] | None = None
        index = self.program.index
        moving = dict.fromkeys(name for name, _ in sizes)
        self.moving = np.array([index[name] for name in moving], dtype=np.int64)
        where = dict(zip(sizes, ends, strict=False))
        threads = range(len(self.shares))
        self.offsets = np.array([[where.get((name, n), where.get((name, None))) for name in moving] for n in threads])

    def arrange(self, strides: list[tuple[int, ...]]) -> None:
        """Set the arguments for arrays with these strides."""
        self.strides = strides
        for k, (read, found) in enumerate(zip(self.program.reads, strides, strict=True)):
            self.columns[k], values = self.program.distances(read, found)
            for argument, value in values.items():
                self.table[:, self.program.index[argument]] = value

    def run(self, addresses: list[int], steps: int, reverse: bool, sums: Array) -> None:
        """The loop, with the arrays at these addresses; `sums` are among them."""
        several = len(self.rows) > 1
        if several:
            self.given[...] = np.array([*addresses, steps, reverse]) + self.starts * self.columns
        else:
            self.write(self.table, 0, *addresses, steps, reverse)
        if self.memory is None:
            self.memory = memory_pool.empty((self.bytes,), np.uint8)
            base = -(-address_of(self.memory) // LINE) * LINE
            self.table[:, self.moving] = base + self.offsets
        others = self._sums_of_others(sums) if several and self.program.own_sums and sums.size else None
        self.counter[0] = 0
        if several:
            run_in_threads(self.entry, self.rows)
        else:
            self.function(self.first)
        if others is not None:
            for part in others:
                sums += part
        if self.bytes > _SMALL:  # worth giving back
            self.memory = None

    def _sums_of_others(self, sums: Array) -> Array:
        """Memory where all threads but the first add up."""
        others = memory_pool.empty((len(self.rows) - 1, sums.size), sums.dtype)
        starts = address_of(others) + np.arange(len(others))[:, None] * others.strides[0]
        self.table[1:, self.sums] = starts + self.sum_starts
        return others


def address_of(array: npt.NDArray[np.generic]) -> int:
    """Where the first number of an array stands, or 0 if that is not where a number can stand."""
    flags = array.flags
    if flags.carray:
        return ctypes.addressof(_byte_of(array))
    if flags.f_contiguous and flags.behaved:
        return ctypes.addressof(_byte_of(array.T))
    return int(array.__array_interface__["data"][0]) if flags.aligned else 0


# the short way, for arrays in one piece of memory that may be written to
_byte_of = cast(Callable[[npt.NDArray[np.generic]], ctypes.c_char], ctypes.c_char.from_buffer)
