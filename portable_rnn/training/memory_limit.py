"""Memory of a training step: an estimate, and the segment length that stays within a limit."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from ..errors import InputError
from ..layers import Layer, RecurrentLayer, map_layers, state_sizes, walk

__all__ = ["limited", "parse_bytes"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(size: int | str) -> int:
    """A number of bytes, or such as "512MB" and "2 GiB".

    Examples
    --------
    >>> parse_bytes("512MB"), parse_bytes("1.5 KiB")
    (512000000, 1536)
    """
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
        if found is None or found[2].upper() not in _UNITS:
            raise InputError(f"expected a size such as '512MB' or '2GiB', got {size!r}")
        return int(float(found[1]) * _UNITS[found[2].upper()])
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise InputError(f"expected a positive number of bytes, or such as '512MB', got {size!r}")
    return int(size)


def limited(network: Layer, shape: tuple[int, ...], dtype: str, limit: int | str | None) -> Layer:
    """The network with `recompute_every` chosen so that an update on an x of this shape stays within a limit.

    Raises
    ------
    InputError
        No segment length does; the message says what the smallest need is.
    """
    if limit is None:
        return network
    allowed, steps = parse_bytes(limit), shape[1]
    need = _bytes(network, shape, dtype, steps)
    if need <= allowed:
        return network
    # the largest segment that fits: the fewer the segments, the less is copied at their ends
    needs = {k: _bytes(network, shape, dtype, k) for k in _candidates(steps)}
    fitting = [k for k, bytes_needed in needs.items() if bytes_needed <= allowed]
    if not fitting:
        least = min(needs.values())
        raise InputError(
            f"an update needs about {least / 1e6:.3g} MB for inputs, outputs and states alone, more than "
            f"memory_limit={limit!r}: use smaller batches, or tbptt"
        )
    return _with_segments(network, fitting[-1])


def _candidates(steps: int) -> list[int]:
    """Segment lengths 1, 2, 3, 4, 6, 8, 12, ... below `steps`."""
    powers = [1 << k for k in range(steps.bit_length())]
    return sorted({length for p in powers for length in (p, p * 3 // 2) if length < steps})


def _bytes(network: Layer, shape: tuple[int, ...], dtype: str, every: int) -> int:
    """About what an update takes when segments of `every` steps are kept.

    Each step keeps its input and output and their cotangents; each step of a segment also pre-activations, gates,
    states and their cotangents, about five arrays of all gates; each segment keeps its first state.
    """
    batch, steps = shape[:2]
    kept = inside = 0
    for layer in (layer for _, layer in walk(network) if isinstance(layer, RecurrentLayer)):
        runs = layer.num_layers * layer.directions
        sizes = state_sizes(layer)
        rows = layer.parameter_shapes()["weight_ih_l0"][0]
        kept += 2 * layer.input_size + runs * (3 * sizes[0] + math.ceil(sum(sizes) / every))
        inside = max(inside, 5 * rows) if every < steps else inside + 5 * rows * runs
    return int(np.dtype(dtype).itemsize * batch * (steps * kept + every * inside))


def _with_segments(network: Layer, every: int) -> Layer:
    def changed(layer: Layer) -> Layer:
        return dataclasses.replace(layer, recompute_every=every) if isinstance(layer, RecurrentLayer) else layer

    return map_layers(changed, network)
