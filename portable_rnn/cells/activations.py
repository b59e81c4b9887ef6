"""Activation functions, each with its derivative written in terms of its own output.

The backward pass then needs the output only, which the next step holds anyway: with ``y = tanh(a)`` the derivative
is ``1 - y**2``. Evaluating it at ``tanh(y)`` instead is the first fault of the notebook this library came from.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from ..arrays import Array, Backend, backend_of, named
from ..errors import InputError
from ..execution import compiles, fuse

__all__ = ["ACTIVATIONS", "Activation", "ActivationName", "GateBlock", "activation", "split_rows"]

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

    def __reduce__(self) -> Any:
        return activation, (self.name,)


def sigmoid(xp: Any, a: Array) -> Array:
    """``1 / (1 + exp(-a))``, as one tanh: no overflow, and NumPy's tanh is vector code."""
    return xp.tanh(a / 2) / 2 + 0.5


def relu(xp: Any, a: Array) -> Array:
    """``max(a, 0)``."""
    return xp.maximum(a, xp.zeros_like(a))  # not `where`: a NaN must stay one


def _positive(xp: Any, y: Array) -> Array:
    return xp.astype(y > 0, y.dtype)


def _softsign(xp: Any, a: Array) -> Array:
    return a / (1 + xp.abs(a))


def _softplus(xp: Any, a: Array) -> Array:
    return xp.log1p(xp.exp(-xp.abs(a))) + relu(xp, a)


def _simple(name: str) -> Activation:
    forward, derivative = {
        "tanh": (lambda xp, a: xp.tanh(a), lambda xp, y: 1 - y * y),
        "sigmoid": (sigmoid, lambda xp, y: y * (1 - y)),
        "relu": (relu, _positive),
        "identity": (lambda xp, a: a, lambda xp, y: xp.ones_like(y)),
        "softsign": (_softsign, lambda xp, y: (1 - xp.abs(y)) ** 2),
        "softplus": (_softplus, lambda xp, y: 1 - xp.exp(-y)),
        "exponential": (lambda xp, a: xp.exp(a), lambda xp, y: y),
    }[name]
    return Activation(name, forward, derivative)


def _elu(alpha: float) -> tuple[Forward, Forward]:
    return (
        lambda xp, a: xp.where(a > 0, a, alpha * (xp.exp(xp.minimum(a, xp.zeros_like(a))) - 1)),
        lambda xp, y: xp.where(y > 0, xp.ones_like(y), y + alpha),
    )


def _leaky_relu(alpha: float) -> tuple[Forward, Forward]:
    if not alpha > 0:
        raise InputError(f"leaky_relu needs a positive slope, got {alpha!r}: use relu for 0")
    return (
        lambda xp, a: xp.where(a < 0, alpha * a, a),
        lambda xp, y: xp.where(y < 0, alpha * xp.ones_like(y), xp.ones_like(y)),
    )


def _thresholded_relu(alpha: float) -> tuple[Forward, Forward]:
    # a <= alpha, not a > alpha: a NaN must stay one
    return (
        lambda xp, a: xp.where(a <= alpha, xp.zeros_like(a), a),
        lambda xp, y: xp.astype(y != 0, y.dtype),
    )


def _scaled_tanh(alpha: float, beta: float) -> tuple[Forward, Forward]:
    return (
        lambda xp, a: alpha * xp.tanh(beta * a),
        lambda xp, y: beta * (alpha - y * y / alpha),
    )


def _hard_sigmoid(alpha: float, beta: float) -> tuple[Forward, Forward]:
    return (
        lambda xp, a: xp.clip(alpha * a + beta, 0.0, 1.0),
        lambda xp, y: alpha * xp.astype(xp.logical_and(y > 0, y < 1), y.dtype),
    )


def _affine(alpha: float, beta: float) -> tuple[Forward, Forward]:
    return lambda xp, a: alpha * a + beta, lambda xp, y: alpha * xp.ones_like(y)


_SIMPLE = ("tanh", "sigmoid", "relu", "identity", "softsign", "softplus", "exponential")
# name -> (constructor, its defaults, as ONNX has them)
_WITH_SETTINGS: dict[str, tuple[Callable[..., tuple[Forward, Forward]], tuple[float, ...]]] = {
    "elu": (_elu, (1.0,)),
    "leaky_relu": (_leaky_relu, (0.01,)),
    "thresholded_relu": (_thresholded_relu, (1.0,)),
    "scaled_tanh": (_scaled_tanh, (1.0, 1.0)),
    "hard_sigmoid": (_hard_sigmoid, (0.2, 0.5)),
    "affine": (_affine, (1.0, 0.0)),
}
ACTIVATIONS = (*_SIMPLE, *_WITH_SETTINGS)


@functools.lru_cache(maxsize=256)
def activation(spec: str) -> Activation:
    """Look an activation up by its name, with settings in brackets where it has some.

    Parameters
    ----------
    spec : str
        One of `ACTIVATIONS`, such as "tanh", "elu" or "hard_sigmoid(0.2, 0.5)".

    Raises
    ------
    InputError
        No activation has this name or these settings.

    Examples
    --------
    >>> import numpy as np
    >>> activation("leaky_relu(0.1)").forward(np, np.array([-2.0, 3.0])).tolist()
    [-0.2, 3.0]
    """
    found = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", spec) if isinstance(spec, str) else None
    name = found[1] if found else None
    if found is None or name not in ACTIVATIONS:
        raise InputError(f"unknown activation {spec!r}: expected one of {', '.join(ACTIVATIONS)}")
    try:
        given = tuple(float(part) for part in (found[2] or "").split(",") if part.strip())
    except ValueError:
        given = (math.nan,)
    if not all(map(math.isfinite, given)):
        raise InputError(f"the settings of activation {spec!r} must be finite numbers")
    if name in _SIMPLE:
        if given:
            raise InputError(f"activation {name!r} has no settings, got {spec!r}")
        return _simple(str(name))
    make, defaults = _WITH_SETTINGS[str(name)]
    if len(given) > len(defaults):
        raise InputError(f"activation {name!r} has {len(defaults)} settings, got {spec!r}")
    forward, derivative = make(*given, *defaults[len(given) :])
    return Activation(spec, forward, derivative)


ActivationName = Annotated[str, named(activation)]


@dataclasses.dataclass(frozen=True)
class GateBlock:
    """The activations of k gates that stand as k row blocks of one (k * H, B) array.

    Neighbours of one kind are one pass. For a single column, where a pass is nothing but the cost of a call, all gates
    are: sigmoid and tanh are one function up to scale and shift, ``y = s * tanh(s * a) + b`` with (s, b) = (1/2, 1/2)
    or (1, 0), and their derivative is ``s**2 - (y - b)**2``.

    Attributes
    ----------
    names : tuple of str
        One activation for each row block.
    """

    names: tuple[str, ...]

    def columns(self, xp: Any, like: Array, size: int) -> tuple[Array, ...] | None:
        """The columns (s, b, s**2), each (k * H, 1), or None where the gates are not one pass."""
        if set(self.names) != {"sigmoid", "tanh"} or compiles(xp):  # XLA fuses the passes by itself
            return None
        return _columns(backend_of(like), self.names, size)

    def forward(self, xp: Any, a: Array, columns: tuple[Array, ...] | None) -> Array:
        """Activate pre-activations `a` (k * H, B)."""
        if columns is None or a.shape[1] > 1:
            parts = [activation(n).forward(xp, rows) for n, rows in self._neighbours(a)]
            return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        scale, shift, _ = columns
        return fuse(xp, _scaled_tanh_gate)(a, scale, shift)

    def derivative(self, xp: Any, y: Array, columns: tuple[Array, ...] | None) -> Array:
        """The derivative at outputs `y` (k * H, B)."""
        if columns is None or y.shape[1] > 1:
            parts = [activation(n).derivative(xp, rows) for n, rows in self._neighbours(y)]
            return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        _, shift, scale_squared = columns
        return fuse(xp, _scaled_tanh_slope)(y, shift, scale_squared)

    def _neighbours(self, a: Array) -> list[tuple[str, Array]]:
        """Each run of equal activations with its rows."""
        size = a.shape[0] // len(self.names)
        runs, start = [], 0
        for name, group in itertools.groupby(self.names):
            stop = start + len(list(group)) * size
            runs.append((name, a if stop - start == a.shape[0] else a[start:stop, ...]))
            start = stop
        return runs


@functools.lru_cache(maxsize=64)
def _columns(target: Backend, names: tuple[str, ...], size: int) -> tuple[Array, ...]:
    xp = target.xp

    def column(sigmoid: float, tanh: float) -> Array:
        gates = [[[sigmoid if name == "sigmoid" else tanh]] for name in names]
        spread = xp.broadcast_to(xp.asarray(gates, dtype=target.dtype, device=target.device), (len(gates), size, 1))
        return xp.reshape(spread, (len(gates) * size, 1))

    return column(0.5, 1.0), column(0.5, 0.0), column(0.25, 1.0)


def _scaled_tanh_gate(xp: Any, a: Array, scale: Array, shift: Array) -> Array:
    return scale * xp.tanh(scale * a) + shift


def _scaled_tanh_slope(xp: Any, y: Array, shift: Array, scale_squared: Array) -> Array:
    centred = y - shift
    return scale_squared - centred * centred


def split_rows(a: Array, blocks: int) -> list[Array]:
    """`blocks` equal row blocks of an array (blocks * H, ...), as views."""
    size = a.shape[0] // blocks
    return [a[k * size : (k + 1) * size, ...] for k in range(blocks)]
