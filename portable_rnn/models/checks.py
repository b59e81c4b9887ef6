"""What `Model` refuses before it computes: numbers that are not finite, classes and settings that can't work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Array, namespace_of, to_numpy
from ..errors import InputError
from ..layers import Layer, check_streams
from ..training import Loss, all_finite, loss_function

__all__ = ["check_callbacks", "check_classes", "check_finite", "check_truncation"]


def check_finite(name: str, x: Array, lengths: np.ndarray[Any, Any] | None) -> None:
    """Raise InputError where floating data hold NaN or infinity before the rows' ends."""
    xp = namespace_of(x)
    if not xp.isdtype(x.dtype, "real floating") or all_finite(x):
        return
    bad = ~np.isfinite(to_numpy(x))
    if lengths is not None and bad.ndim > 1:
        valid = np.arange(bad.shape[1])[None, :] < lengths[:, None]
        bad &= valid.reshape(valid.shape + (1,) * (bad.ndim - 2))
    if bad.any():
        where = tuple(int(k) for k in np.argwhere(bad)[0])
        raise InputError(
            f"{name} holds {int(bad.sum())} NaN or infinite values, the first at index {where}: "
            "expected finite numbers; remove or fill them first"
        )


def check_classes(network: Layer, loss: Loss | None, y: Array, lengths: np.ndarray[Any, Any] | None) -> None:
    """Raise InputError where integer class targets lie outside the network's outputs."""
    classes = network.out_width(None)
    if loss is not loss_function("cross_entropy") or classes is None:
        return
    bad = _out_of_range(y, classes, lengths)
    if bad is not None:
        raise InputError(
            f"class targets must lie between 0 and {classes - 1} (the network has {classes} outputs), got {bad}"
        )


def _out_of_range(x: Array, count: int, lengths: np.ndarray[Any, Any] | None) -> int | None:
    """The first integer before the rows' ends that is not in [0, count)."""
    if not namespace_of(x).isdtype(x.dtype, "integral"):
        return None
    host = to_numpy(x)
    if lengths is not None:
        host = host[np.arange(host.shape[1])[None, :] < lengths[:, None]]
    bad = host[(host < 0) | (host >= count)]
    return int(bad[0]) if bad.size else None


def check_callbacks(callbacks: Any) -> None:
    """Raise InputError unless `callbacks` is a sequence of functions."""
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise InputError(
            f"callbacks must be a sequence of functions, such as [prnn.EarlyStopping()], got {type(callbacks).__name__}"
        )


def check_truncation(
    network: Layer, tbptt: int | None, stateful: bool, shuffle: bool, rows: int, batch_size: int
) -> None:
    """Raise InputError where a state can't be handed on from one update to the next."""
    if tbptt is not None and not network.keeps_time:
        raise InputError("tbptt needs targets for every step, but the network removes the time axis")
    if stateful and shuffle:
        raise InputError("stateful=True hands the state on from row to row: pass shuffle=False")
    if stateful and rows % batch_size:
        raise InputError(f"stateful=True needs batches of equal size, got {rows} rows in batches of {batch_size}")
    if tbptt is not None or stateful:
        check_streams(network)
