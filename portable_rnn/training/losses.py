"""Losses: each returns its value and its gradient with respect to the prediction.

A loss is the mean over all elements that count. With `lengths`, a prediction (B, T, F) counts only in the steps before
each row's end, whatever stands behind them in prediction or target.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..arrays import (
    Array,
    Configuration,
    Positive,
    as_before,
    backend_of,
    checked_loss_arguments,
    device_of,
    dtype_name,
    is_array,
    namespace_of,
    on_their_device,
)
from ..cells import sigmoid
from ..errors import InputError
from ..layers import valid_steps

__all__ = [
    "Huber",
    "Loss",
    "binary_cross_entropy",
    "counts_valid_steps",
    "cross_entropy",
    "huber",
    "loss_function",
    "loss_name",
    "loss_of_rows",
    "mae",
    "mse",
    "unchecked",
]

# (prediction, target, lengths) -> (value, gradient with respect to the prediction)
Loss: TypeAlias = Callable[[Array, Array, Array | None], tuple[Array, Array]]


def _checked(loss: Any) -> Any:
    """A loss that checks its arguments; `unchecked` finds the one inside."""

    @on_their_device
    @functools.wraps(loss)
    def checked(prediction: Array, target: Array, lengths: Array | None = None) -> tuple[Array, Array]:
        found: tuple[Array, Array] = loss(*checked_loss_arguments(prediction, target, lengths))
        return found

    checked.unchecked = loss  # type: ignore[attr-defined]
    return checked


def unchecked(loss: Loss) -> Loss:
    """The loss without checks of its arguments, for those that have passed the public edge."""
    inside: Loss = getattr(loss, "unchecked", loss)
    return inside


@_checked
def mse(prediction: Array, target: Array, lengths: Array | None = None) -> tuple[Array, Array]:
    """Mean squared error, ``mean((prediction - target)**2)``.

    Parameters
    ----------
    prediction : array (B, F) or (B, T, F)
    target : array of the same shape, or without the last axis where F is 1
    lengths : B integers, optional

    Returns
    -------
    value : array ()
    gradient : array, as the prediction

    Raises
    ------
    InputError
        Shapes, dtypes or lengths don't fit.
    BackendError
        The target or the lengths are of another library or device than the prediction.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> value, gradient = prnn.losses.mse(np.array([[1.0], [4.0]]), np.array([[1.0], [2.0]]))
    >>> float(value), gradient.tolist()
    (2.0, [[0.0], [2.0]])
    """
    return _elementwise(prediction, target, lengths, lambda xp, p, t: ((p - t) ** 2, 2 * (p - t)))


@_checked
def mae(prediction: Array, target: Array, lengths: Array | None = None) -> tuple[Array, Array]:
    """Mean absolute error, ``mean(abs(prediction - target))``.

    The gradient where the two are equal is zero. Shapes and result as in `mse`.
    """
    return _elementwise(prediction, target, lengths, lambda xp, p, t: (xp.abs(p - t), xp.sign(p - t)))


@dataclass(frozen=True)
class Huber(Configuration):
    """``e**2 / 2`` where ``|e| <= delta``, else ``delta * (|e| - delta / 2)``; shapes as in `mse`.

    Source: Huber (1964), Robust estimation of a location parameter; `torch.nn.HuberLoss`.
    """

    delta: Positive = 1.0

    @on_their_device
    def __call__(self, prediction: Array, target: Array, lengths: Array | None = None) -> tuple[Array, Array]:
        """The loss and its gradient."""
        return self.unchecked(*checked_loss_arguments(prediction, target, lengths))

    def unchecked(self, prediction: Array, target: Array, lengths: Array | None = None) -> tuple[Array, Array]:
        """The same without checks."""

        def value_and_slope(xp: Any, p: Array, t: Array) -> tuple[Array, Array]:
            error = p - t
            slope = xp.clip(error, -self.delta, self.delta)
            return slope * (error - slope / 2), slope

        return _elementwise(prediction, target, lengths, value_and_slope)


def huber(delta: float = 1.0) -> Huber:
    """The Huber loss with a threshold of its own; the name "huber" means ``delta=1``."""
    return Huber(delta)


@_checked
def binary_cross_entropy(prediction: Array, target: Array, lengths: Array | None = None) -> tuple[Array, Array]:
    """Cross-entropy of Bernoulli outputs, from logits.

    ``mean(log(1 + exp(p)) - t * p)`` with targets in [0, 1], integers or floats; shapes as in `mse`. As
    `torch.nn.BCEWithLogitsLoss`.
    """

    def value_and_slope(xp: Any, p: Array, t: Array) -> tuple[Array, Array]:
        # (1 - t) * softplus(p) + t * softplus(-p); a term of weight 0 is left out, since it may be infinite
        zero = xp.zeros_like(p)
        rest = xp.log1p(xp.exp(-xp.abs(p)))
        wrong = xp.where(t == 1, zero, xp.maximum(p, zero) + rest)
        right = xp.where(t == 0, zero, xp.maximum(-p, zero) + rest)
        return (1 - t) * wrong + t * right, sigmoid(xp, p) - t

    return _elementwise(prediction, target, lengths, value_and_slope)


@on_their_device
@_checked
def cross_entropy(prediction: Array, target: Array, lengths: Array | None = None) -> tuple[Array, Array]:
    """Cross-entropy of classes, from logits: ``mean(-log_softmax(prediction)[target])``.

    Parameters
    ----------
    prediction : array (B, C) or (B, T, C)
        Logits of C classes, for each row or each step.
    target : array
        Integer classes (B,) or (B, T); or probabilities such as one-hot rows, shaped as the prediction.
    lengths : B integers, optional

    Returns
    -------
    value : array ()
    gradient : array, as the prediction

    Raises
    ------
    InputError
        Shapes, dtypes or lengths don't fit.
    BackendError
        The target or the lengths are of another library or device than the prediction.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> value, _ = prnn.losses.cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(float(value), 4)
    1.3863
    """
    xp = namespace_of(prediction)
    shape = tuple(prediction.shape)
    if tuple(target.shape) not in (shape, shape[:-1]):
        raise InputError(
            f"targets of cross_entropy must have shape {shape[:-1]} (integer classes) or {shape} (one-hot), "
            f"got {tuple(target.shape)}"
        )
    if target.ndim < prediction.ndim:
        if not xp.isdtype(target.dtype, "integral"):
            raise InputError(
                f"class targets of cross_entropy must be integers, got {dtype_name(xp, target.dtype)}: "
                f"pass integers of shape {shape[:-1]} or one-hot rows of shape {shape}"
            )
        if xp.iinfo(target.dtype).max < shape[-1]:  # uint8 can't count 300 classes
            target = xp.astype(target, xp.int32)
        classes = xp.arange(shape[-1], dtype=target.dtype, device=backend_of(target).device)
        target = target[..., None] == xp.reshape(classes, (1,) * target.ndim + shape[-1:])
    valid = _valid(xp, prediction, lengths)
    prediction, target = _before_the_ends(xp, valid, prediction), _before_the_ends(xp, valid, target)
    target = xp.astype(target, prediction.dtype)
    with np.errstate(over="ignore"):  # a logit that is too far below the largest becomes -inf: its probability is 0
        shifted = prediction - xp.max(prediction, axis=-1, keepdims=True)
    exponentials = xp.exp(shifted)
    total = xp.sum(exponentials, axis=-1, keepdims=True)
    log_probabilities = shifted - xp.log(total)
    # of the classes that count: the logarithm of another one may be infinite
    values = -target * xp.where(target == 0, xp.zeros_like(target), log_probabilities)
    slopes = exponentials / total * xp.sum(target, axis=-1, keepdims=True) - target
    return _mean(xp, values, slopes, lengths, valid, elements=1)


_LOSSES: dict[str, Loss] = {
    "mse": mse,
    "mae": mae,
    "huber": Huber(),
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}


def loss_function(loss: str | Loss) -> Loss:
    """A loss by its name; a callable is returned as it is.

    Raises
    ------
    InputError
        No loss has this name.
    """
    if callable(loss):
        return loss
    if not isinstance(loss, str) or loss not in _LOSSES:
        raise InputError(f"unknown loss {loss!r}: expected one of {', '.join(_LOSSES)}, or a function")
    return _LOSSES[loss]


def loss_name(loss: Loss) -> str | None:
    """The name under which a checkpoint can find the loss again, or None."""
    return next((name for name, known in _LOSSES.items() if known == loss), None)


def counts_valid_steps(loss: Loss) -> bool:
    """Whether a loss is one of this library's, for which steps past the rows' ends are as if they were not there."""
    return isinstance(loss, Huber) or any(loss is known for known in _LOSSES.values())


def loss_of_rows(
    loss: Loss, prediction: Array, target: Array, lengths: Array | None, rows: Array | None = None
) -> tuple[Array, Array]:
    """The value and gradient of a loss as arrays of the prediction's dtype, whatever a user's function computes in.

    Parameters
    ----------
    loss : callable
    prediction, target, lengths
        What it takes.
    rows : integer array (1,), optional
        How many rows count, where there are no lengths to say so.

    Raises
    ------
    InputError
        A loss of the user's returns something else.
    """
    xp, shape = namespace_of(prediction), tuple(prediction.shape)
    loss = unchecked(loss)
    if rows is not None and lengths is None and tuple(target.shape) in (shape, shape[:-1]):
        # the rows as the time steps of one row, which has a length
        steps = math.prod(shape[1:-1])
        line = xp.reshape(target, (1, shape[0] * steps, *target.shape[len(shape) - 1 :]))
        found = loss(xp.reshape(prediction, (1, shape[0] * steps, shape[-1])), line, rows * steps)
        return found[0], xp.reshape(found[1], shape)
    found = loss(prediction, target, lengths)
    if not isinstance(found, tuple) or len(found) != 2 or tuple(getattr(found[1], "shape", ())) != shape:
        raise InputError(
            f"loss: expected (value, gradient with respect to the prediction {shape}), got "
            f"{_described(found)}: return both, as prnn.losses.mse does"
        )
    value, gradient = found
    if not is_array(value):
        value = xp.asarray(value, dtype=prediction.dtype, device=device_of(prediction))
    return as_before(value, prediction), as_before(gradient, prediction)


def _described(found: Any) -> str:
    parts = found if isinstance(found, tuple) else (found,)
    names = [f"an array {tuple(p.shape)}" if is_array(p) else type(p).__name__ for p in parts]
    return f"({', '.join(names)})" if isinstance(found, tuple) else names[0]


@on_their_device
def _elementwise(
    prediction: Array,
    target: Array,
    lengths: Array | None,
    value_and_slope: Callable[[Any, Array, Array], tuple[Array, Array]],
) -> tuple[Array, Array]:
    xp = namespace_of(prediction)
    shape = tuple(prediction.shape)
    if tuple(target.shape) == shape[:-1] and shape[-1] == 1:
        target = target[..., None]
    if tuple(target.shape) != shape:
        raise InputError(f"targets must have the shape of the prediction, {shape}, got {tuple(target.shape)}")
    valid = _valid(xp, prediction, lengths)
    prediction, target = _before_the_ends(xp, valid, prediction), _before_the_ends(xp, valid, target)
    values, slopes = value_and_slope(xp, prediction, xp.astype(target, prediction.dtype))
    return _mean(xp, values, slopes, lengths, valid, elements=shape[-1])


def _valid(xp: Any, prediction: Array, lengths: Array | None) -> Array | None:
    """Booleans (B, T, 1), the steps that count; None where all do."""
    if lengths is None or prediction.ndim < 3:
        return None
    return valid_steps(xp, lengths, prediction.shape[1], prediction)[:, :, None]


def _before_the_ends(xp: Any, valid: Array | None, x: Array) -> Array:
    """`x` with zeros past the rows' ends, so that NaN and infinity there are no part of the arithmetic."""
    return x if valid is None else xp.where(valid, x, xp.zeros_like(x))


def _mean(
    xp: Any, values: Array, slopes: Array, lengths: Array | None, valid: Array | None, elements: int
) -> tuple[Array, Array]:
    """Sum over count: `elements` is how many a step counts for."""
    if valid is None:
        count = elements
        for size in values.shape[:-1]:
            count *= size
        return xp.sum(values) / count, slopes / count
    total = xp.astype(xp.sum(lengths), values.dtype) * elements
    total = xp.maximum(total, xp.ones_like(total))
    values, slopes = _before_the_ends(xp, valid, values), _before_the_ends(xp, valid, slopes)
    return xp.sum(values) / total, slopes / total
