"""Activation functions, each with its derivative written in terms of its own output.

The backward pass then needs the output only, which the next step holds anyway: with ``y = tanh(a)`` the derivative
is ``1 - y**2``. Evaluating it at ``tanh(y)`` instead is the first fault of the notebook this library came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .errors import InputError
from .namespace import device_of
from .typing import Array

__all__ = ["Activation", "GateBlock", "activation"]

Forward = Callable[[Any, Array], Array]


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function of one array and its derivative.

    Attributes
    ----------
    name : str
    forward : callable (xp, a) -> y
    derivative : callable (xp, y) -> dy/da
        A function of the output ``y = forward(a)``, not of `a`.
    """

    name: str
    forward: Forward
    derivative: Forward


def sigmoid(xp: Any, a: Array) -> Array:
    """``1 / (1 + exp(-a))``, as one tanh: no overflow, and NumPy's tanh is vector code."""
    return xp.tanh(a / 2) / 2 + 0.5


def relu(xp: Any, a: Array) -> Array:
    """``max(a, 0)``."""
    return xp.maximum(a, xp.zeros_like(a))  # not `where`: a NaN must stay one


def _step(xp: Any, y: Array) -> Array:
    return xp.where(y > 0, xp.ones_like(y), xp.zeros_like(y))


def _softsign(xp: Any, a: Array) -> Array:
    return a / (1 + xp.abs(a))


def _softplus(xp: Any, a: Array) -> Array:
    return xp.log1p(xp.exp(-xp.abs(a))) + relu(xp, a)


_ACTIVATIONS = {
    entry.name: entry
    for entry in (
        Activation("tanh", lambda xp, a: xp.tanh(a), lambda xp, y: 1 - y * y),
        Activation("sigmoid", sigmoid, lambda xp, y: y * (1 - y)),
        Activation("relu", relu, _step),
        Activation("identity", lambda xp, a: a, lambda xp, y: xp.ones_like(y)),
        Activation("softsign", _softsign, lambda xp, y: (1 - xp.abs(y)) ** 2),
        Activation("softplus", _softplus, lambda xp, y: 1 - xp.exp(-y)),
    )
}


def activation(name: str) -> Activation:
    """Look an activation up by its name.

    Raises
    ------
    InputError
        No activation has this name; the message lists them.
    """
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        raise InputError(f"unknown activation {name!r}: expected one of {', '.join(_ACTIVATIONS)}") from None


@dataclasses.dataclass(frozen=True)
class GateBlock:
    """The activations of k gates that stand as k row blocks of one (k * H, B) array.

    Sigmoid and tanh are one function up to scale and shift, ``y = s * tanh(s * a) + b`` with (s, b) = (1/2, 1/2) or
    (1, 0), and their derivative is ``s**2 - (y - b)**2``. So a block of those takes one pass of tanh for all gates.

    Attributes
    ----------
    names : tuple of str
        One activation for each row block.
    """

    names: tuple[str, ...]

    def columns(self, xp: Any, like: Array, size: int) -> tuple[Array, ...] | None:
        """The columns (s, b, s**2), each (k * H, 1), or None where another function is among the gates."""
        if not set(self.names) <= {"sigmoid", "tanh"}:
            return None
        half = [name == "sigmoid" for name in self.names for _ in range(size)]
        scale, shift = ([[low if h else high] for h in half] for low, high in ((0.5, 1.0), (0.5, 0.0)))
        columns = (scale, shift, [[s * s] for (s,) in scale])
        device = device_of(like)
        return tuple(xp.asarray(column, dtype=like.dtype, device=device) for column in columns)

    def forward(self, xp: Any, a: Array, columns: tuple[Array, ...] | None) -> Array:
        """Activate pre-activations `a` (k * H, B)."""
        if columns is None:
            return xp.concat([activation(n).forward(xp, rows) for n, rows in self._rows(a)], axis=0)
        scale, shift, _ = columns
        return scale * xp.tanh(scale * a) + shift

    def derivative(self, xp: Any, y: Array, columns: tuple[Array, ...] | None) -> Array:
        """The derivative at outputs `y` (k * H, B)."""
        if columns is None:
            return xp.concat([activation(n).derivative(xp, rows) for n, rows in self._rows(y)], axis=0)
        _, shift, scale_squared = columns
        centred = y - shift
        return scale_squared - centred * centred

    def _rows(self, a: Array) -> list[tuple[str, Array]]:
        return list(zip(self.names, split_rows(a, len(self.names)), strict=True))


def split_rows(a: Array, blocks: int) -> list[Array]:
    """`blocks` equal row blocks of an array (blocks * H, ...), as views."""
    size = a.shape[0] // blocks
    return [a[k * size : (k + 1) * size, ...] for k in range(blocks)]
