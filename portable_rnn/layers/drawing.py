"""Random numbers for weights and masks, drawn on the host, so that a seed gives the same on every library."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..arrays import (
    Backend,
    from_host,
    map_leaves,
)
from ..errors import InputError

__all__ = [
    "check_memory",
    "choice_mask",
    "chosen",
    "inverse_sqrt",
    "keep_mask",
    "physical_memory",
    "place_masks",
    "random_generator",
    "uniform",
]


def random_generator(seed: int | np.random.Generator) -> np.random.Generator:
    """NumPy's Philox generator: the same stream on every machine and NumPy version that has it."""
    if isinstance(seed, np.random.Generator):
        return seed
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed must be a non-negative integer or a numpy Generator, got {seed!r}")
    return np.random.Generator(np.random.Philox(int(seed)))


def check_memory(shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise InputError where arrays of float64, as they are drawn, are larger than this machine's memory."""
    if not shapes:
        return
    entries = {name: math.prod(shape) for name, shape in shapes.items()}
    needed, allowed = 8 * sum(entries.values()), physical_memory()
    if needed > allowed:
        largest = max(entries, key=lambda name: entries[name])
        raise InputError(
            f"{what} need {needed / 1e9:.3g} GB, expected at most the {allowed / 1e9:.3g} GB of this machine: "
            f"make the sizes smaller; the largest is {largest!r} of shape {shapes[largest]}"
        )


@functools.cache
def physical_memory() -> int:
    """Bytes of memory of this machine; where it does not say so, what an address can reach."""
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return sys.maxsize


def uniform(
    rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], bound: float
) -> dict[str, np.ndarray[Any, Any]]:
    """Every parameter from U(-bound, bound), in the order of `shapes`."""
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def inverse_sqrt(size: int) -> float:
    """``1 / sqrt(size)``: the bound of torch's uniform initialisation."""
    return 1 / math.sqrt(size)


def chosen(rng: np.random.Generator, shape: Iterable[int], p: float) -> np.ndarray[Any, Any]:
    """Booleans, true with probability `p`.

    An entry takes 16 random bits. Where those leave it open, once in 65,536, a float is drawn: the probability is `p`
    itself, at less than half the cost of a float for each entry.
    """
    shape = tuple(shape)
    count = math.prod(shape)
    words = rng.integers(0, 2**64 - 1, -(-count // 4), dtype=np.uint64, endpoint=True)
    bits = words.astype("<u8", copy=False).view("<u2")[:count]  # the same on a machine of either byte order
    whole, rest = divmod(p * 2**16, 1)
    found = bits < int(whole)
    undecided = np.flatnonzero(bits == int(whole))
    found[undecided] = rng.random(undecided.size) < rest
    return found.reshape(shape)


def keep_mask(rng: np.random.Generator, shape: Iterable[int], p: float) -> np.ndarray[Any, Any]:
    """A dropout mask, 0 with probability `p` and else ``1 / (1 - p)``; float32, which every backend widens exactly."""
    kept: np.ndarray[Any, Any] = ~chosen(rng, shape, p)
    return kept.astype(np.float32) * np.float32(1 / (1 - p))


def choice_mask(rng: np.random.Generator, shape: Iterable[int], p: float) -> np.ndarray[Any, Any]:
    """1 with probability `p`, else 0."""
    return chosen(rng, shape, p).astype(np.float32)


def place_masks(masks: Any, target: Backend) -> Any:
    """Masks from `Layer.dropout_masks` as arrays of the backend."""
    return map_leaves(lambda mask: from_host(mask.astype(target.dtype_name, copy=False), target), masks)
