"""Arrays over time as the loops want them in memory, and what loops return as one array."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array, library_name
from . import memory_pool

__all__ = ["Collected", "in_order", "in_segments", "product", "side_by_side", "stacked"]


def in_order(xp: Any, x: Array) -> Array:
    """Steps of columns (T, F, B), each in one piece of memory where that makes the time loop faster.

    They usually are a view of sequences (B, T, F).
    """
    if library_name(xp) != "numpy" or x[0].flags.c_contiguous:
        return x
    steps, features, batch = x.shape
    out = memory_pool.empty(x.shape, x.dtype)
    if batch < 64:
        out[...] = x
        return out
    # Many rows that stand far apart share a few lines of the cache: reading across them takes 8 ms at (64, 50, 512),
    # and 0.8 ms by way of a few steps at a time, in rows a little longer.
    few = max((1 << 15) // (batch * features), 1)
    near = xp.empty((few, batch, features + 16), dtype=x.dtype)[:, :, :features]
    for start in range(0, steps, few):
        part = xp.permute_dims(x[start : start + few], (0, 2, 1))
        near[: part.shape[0]] = part
        out[start : start + few] = xp.permute_dims(near[: part.shape[0]], (0, 2, 1))
    return out


def in_segments(xp: Any, array: Array, start: int, stop: int, size: int) -> Any:
    """The steps from `start` to `stop` of an array (T, ...) in segments of `size`, as a scan takes them."""
    if library_name(xp) == "jax":  # as one array, since it takes no lists
        return xp.reshape(array[start:stop, ...], ((stop - start) // size, size, *array.shape[1:]))
    return [array[k : k + size, ...] for k in range(start, stop, size)]  # without a copy


class Collected:
    """Blocks of time steps that become one array (T, ...).

    NumPy's go into it one by one, so that they are never there twice.
    """

    def __init__(self, xp: Any, steps: int) -> None:
        self.xp, self.steps = xp, steps
        self.blocks: list[tuple[int, Array]] = []
        self.whole: Array | None = None

    def add(self, start: int, block: Array) -> None:
        """Put a block at its place."""
        if block.shape[0] == self.steps or library_name(self.xp) != "numpy":
            self.blocks.append((start, block))
            return
        if self.whole is None:
            self.whole = memory_pool.empty((self.steps, *block.shape[1:]), block.dtype)
        self.whole[start : start + block.shape[0]] = block

    def result(self) -> Array:
        """All steps."""
        if self.whole is not None:
            return self.whole
        blocks = [block for _, block in sorted(self.blocks, key=lambda pair: pair[0])]
        return blocks[0] if len(blocks) == 1 else self.xp.concat(blocks, axis=0)


def side_by_side(xp: Any, a: Array) -> Array:
    """The same (T, M, B), where it helps with the columns of all steps side by side in memory: (M, T * B)."""
    if library_name(xp) != "numpy":
        return a
    steps, rows, batch = a.shape
    columns = memory_pool.empty((rows, steps, batch), a.dtype)
    columns[...] = xp.permute_dims(a, (1, 0, 2))
    return xp.permute_dims(columns, (1, 0, 2))


def product(xp: Any, left: Array, right: Array) -> Array:
    """``xp.matmul``, for a large result that is soon done with."""
    if library_name(xp) != "numpy":
        return xp.matmul(left, right)
    shape = (*right.shape[:-2], left.shape[-2], right.shape[-1])
    return np.matmul(left, right, out=memory_pool.empty(shape, right.dtype))


def stacked(xp: Any, column: Any) -> Array:
    """An output of `scan` as one array (T, ...)."""
    return xp.stack(column) if isinstance(column, list) else column
