"""Large NumPy arrays whose memory is used again once nobody refers to them.

A training step needs the same large arrays again and again. From the system they come as fresh pages, which have to be
mapped and cleared: at (64, 100, 64, 256) a step spends a quarter of its time on that. Here a block of memory is free
when the list that keeps it holds the only reference: an array made of it, and every view of that, holds another.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["empty", "forget"]

SMALLEST = 1 << 16  # bytes: less comes from the allocator's own lists
MOST = 1 << 28  # bytes to keep
_ALIGNMENT = 64  # a cache line, and the widest vector

HostArray: TypeAlias = npt.NDArray[np.generic]

_lock = threading.Lock()
blocks: list[HostArray] = []


def _references(blocks: list[HostArray], k: int) -> int:
    """References to a block while this function looks at it."""
    block = blocks[k]
    return sys.getrefcount(block) if hasattr(sys, "getrefcount") else 0


_FREE = _references([np.empty(0)], 0)  # of one that only its list refers to; interpreters count differently


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> HostArray:
    """An uninitialised array; its memory may have been another's."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST or not hasattr(sys, "getrefcount"):
        return np.empty(shape, dtype=dtype)
    with _lock:
        block = _fitting(size)
        if block is None:
            block = _new_block(size)
        found: HostArray = block[:size].view(dtype).reshape(shape)
        del block
    return found


def forget() -> None:
    """Give all memory back that is not in use."""
    with _lock:
        blocks.clear()


def _fitting(size: int) -> HostArray | None:
    """The smallest free block that is large enough, and not much larger."""
    best = None
    for k in range(len(blocks)):
        held = blocks[k].nbytes
        fits = size <= held <= 2 * size and (best is None or held < blocks[best].nbytes)
        if fits and _references(blocks, k) == _FREE:
            best = k
    if best is None:
        return None
    block = blocks.pop(best)
    blocks.append(block)  # the last used stand last
    return block


def _new_block(size: int) -> HostArray:
    raw = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    # `frombuffer` makes the block the owner in the eyes of its views, so that they refer to it and not to `raw`
    block = np.frombuffer(raw.data[start : start + size], dtype=np.uint8)
    kept = sum(other.nbytes for other in blocks)
    while blocks and kept + size > MOST:
        kept -= blocks[0].nbytes
        del blocks[0]  # those that refer to it keep it
    if size <= MOST:
        blocks.append(block)
    return block
