"""Arrays over time as the loops want them in memory, and what loops return as one array."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from ..arrays import Array
from .libraries import library_of

__all__ = ["Collected", "in_order", "in_segments", "product", "side_by_side", "stacked"]


def in_order(xp: ModuleType, x: Array) -> Array:
    """Steps of columns (T, F, B), each in one piece of memory where that makes the time loop faster.

    They usually are a view of sequences (B, T, F).
    """
    return library_of(xp).in_order(xp, x)


def in_segments(xp: ModuleType, array: Array, start: int, stop: int, size: int) -> Sequence[Array] | Array:
    """The steps from `start` to `stop` of an array (T, ...) in segments of `size`, as a scan takes them."""
    return library_of(xp).in_segments(xp, array, start, stop, size)


class Collected:
    """Blocks of time steps that become one array (T, ...).

    Where arrays can be written to they go into it one by one, so that they are never there twice.
    """

    def __init__(self, xp: ModuleType, steps: int) -> None:
        self.xp, self.steps = xp, steps
        self.blocks: list[tuple[int, Array]] = []
        self.whole: Array | None = None

    def add(self, start: int, block: Array) -> None:
        """Put a block at its place."""
        if self.whole is None and block.shape[0] < self.steps:
            self.whole = library_of(self.xp).empty((self.steps, *block.shape[1:]), block.dtype)
        if self.whole is None:
            self.blocks.append((start, block))
        else:
            self.whole[start : start + block.shape[0]] = block

    def result(self) -> Array:
        """All steps."""
        if self.whole is not None:
            return self.whole
        blocks = [block for _, block in sorted(self.blocks, key=lambda pair: pair[0])]
        return blocks[0] if len(blocks) == 1 else self.xp.concat(blocks, axis=0)


def side_by_side(xp: ModuleType, a: Array) -> Array:
    """The same (T, M, B), where it helps with the columns of all steps side by side in memory: (M, T * B)."""
    return library_of(xp).side_by_side(xp, a)


def product(xp: ModuleType, left: Array, right: Array) -> Array:
    """``xp.matmul``, for a large result that is soon done with."""
    return library_of(xp).product(xp, left, right)


def stacked(xp: ModuleType, column: Array | list[Array]) -> Array:
    """An output of `scan` as one array (T, ...)."""
    return xp.stack(column) if isinstance(column, list) else column
