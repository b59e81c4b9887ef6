"""Pooling over time: the last step, the mean and the maximum of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arrays import Array, backend_of
from .base import Stateless, valid_steps, zero_padding

__all__ = ["Last", "Max", "Mean"]


def _step_numbers(xp: Any, x: Array) -> Array:
    return xp.arange(x.shape[1], dtype=xp.int32, device=backend_of(x).device)[None, :, None]


def _valid(xp: Any, x: Array, lengths: Array | None) -> Array | None:
    return None if lengths is None else valid_steps(xp, lengths, x.shape[1], x)[:, :, None]


@dataclass(frozen=True, repr=False)
class Last(Stateless):
    """The output at each row's last step: (B, T, F) -> (B, F). A row of length zero gives zeros.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> x = np.arange(6.0).reshape(2, 3, 1)
    >>> prnn.Last().apply({}, x, lengths=[3, 1])[0].tolist()
    [[2.0], [3.0]]
    """

    keeps_time = False

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        steps = _step_numbers(xp, x)
        if lengths is None:
            # a copy, and one that torch differentiates: a view would keep all steps in memory until the backward pass
            return x[:, -1, :] * 1, steps == x.shape[1] - 1
        last = steps == xp.astype(lengths, steps.dtype)[:, None, None] - 1
        return xp.sum(xp.where(last, x, xp.zeros_like(x)), axis=1), last

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        dy = dy[:, None, :]
        return xp.where(residuals, dy, xp.zeros_like(dy))


@dataclass(frozen=True, repr=False)
class Mean(Stateless):
    """The mean over each row's steps: (B, T, F) -> (B, F). A row of length zero gives zeros.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> x = np.arange(6.0).reshape(2, 3, 1)
    >>> prnn.Mean().apply({}, x, lengths=[3, 2])[0].tolist()
    [[1.0], [3.5]]
    """

    keeps_time = False
    streams = False

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        valid = _valid(xp, x, lengths)
        ones = xp.ones_like(x[:, :, :1])
        if valid is None:
            weights = ones / x.shape[1]
        else:
            counts = xp.astype(lengths, x.dtype)[:, None, None]
            weights = xp.where(valid, ones, xp.zeros_like(ones)) / xp.maximum(counts, xp.ones_like(counts))
        return xp.sum(zero_padding(xp, x, lengths) * weights, axis=1), weights

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        return residuals * dy[:, None, :]


@dataclass(frozen=True, repr=False)
class Max(Stateless):
    """The largest value over each row's steps: (B, T, F) -> (B, F). A row of length zero gives zeros.

    The gradient goes to one step for each feature, the first where several are equal.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> x = np.arange(6.0).reshape(2, 3, 1)
    >>> prnn.Max().apply({}, x, lengths=[3, 2])[0].tolist()
    [[2.0], [4.0]]
    """

    keeps_time = False
    streams = False

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        valid = _valid(xp, x, lengths)
        candidates = x if valid is None else xp.where(valid, x, xp.full_like(x, -xp.inf))
        steps = _step_numbers(xp, x)
        largest = candidates == xp.max(candidates, axis=1, keepdims=True)
        largest = xp.logical_or(largest, xp.isnan(candidates))  # a NaN is the maximum, not hidden
        # argmax does not promise the first of equal values on every library
        first = xp.min(xp.where(largest, steps, xp.full_like(steps, x.shape[1])), axis=1, keepdims=True)
        chosen = steps == first
        if valid is not None:
            chosen = xp.logical_and(chosen, valid)
        return xp.sum(xp.where(chosen, x, xp.zeros_like(x)), axis=1), chosen

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        dy = dy[:, None, :]
        return xp.where(residuals, dy, xp.zeros_like(dy))
