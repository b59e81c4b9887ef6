"""Small layers that other frameworks' models are made of: activations, reversed time, both directions' ends, masks.

Like every layer they give hand-written backward passes; `Masked` is the only one with a layer inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from ..arrays import Array, Marks, Params, Probability, State, device_of, namespace_of, one_of
from ..cells import ActivationName, activation
from ..errors import InputError, unexpected
from ..execution import scan, stacked
from .base import Stateless, Wrapper, valid_steps, zero_padding
from .drawing import keep_mask

__all__ = ["Activation", "Ends", "Flip", "Masked", "Merge", "SharedDropout", "Softmax"]


# ---------------------------------------------------------------------- functions of every step


@dataclass(frozen=True, repr=False)
class Activation(Stateless):
    """``y = f(x)``, entry by entry: (B, T, F) or (B, F), the shape stays. With lengths, what is past an end is zero.

    Parameters
    ----------
    function : str
        One of `portable_rnn.activations.ACTIVATIONS`, such as "relu" or "elu(0.5)".

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> prnn.Activation("relu").apply({}, np.array([[-1.0, 2.0]]))[0].tolist()
    [[0.0, 2.0]]
    """

    function: ActivationName

    needs_time = False

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        y = activation(self.function).forward(xp, zero_padding(xp, x, lengths))
        return zero_padding(xp, y, lengths), (y, lengths)

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        y, lengths = residuals
        return zero_padding(xp, dy, lengths) * activation(self.function).derivative(xp, y)


@dataclass(frozen=True, repr=False)
class Softmax(Stateless):
    """``y = exp(x) / sum(exp(x))`` over the features, or its logarithm: (B, T, F) or (B, F), the shape stays.

    Parameters
    ----------
    log : bool
        The logarithm, ``x - log(sum(exp(x)))``.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> prnn.Softmax().apply({}, np.array([[1.0, 1.0]]))[0].tolist()
    [[0.5, 0.5]]
    """

    log: bool = False

    needs_time = False

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        x = zero_padding(xp, x, lengths)
        x = x - xp.max(x, axis=-1, keepdims=True)
        e = xp.exp(x)
        total = xp.sum(e, axis=-1, keepdims=True)
        p = e / total
        y = x - xp.log(total) if self.log else p
        return zero_padding(xp, y, lengths), (p, lengths)

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        p, lengths = residuals
        dy = zero_padding(xp, dy, lengths)
        if self.log:
            return dy - p * xp.sum(dy, axis=-1, keepdims=True)  # y = x - log(sum(exp(x)))
        return p * (dy - xp.sum(p * dy, axis=-1, keepdims=True))  # y = p


@dataclass(frozen=True, repr=False)
class SharedDropout(Stateless):
    """Dropout of whole features: in training, one mask for all steps of a sequence.

    (B, T, F), the shape stays. Keras has it as `SpatialDropout1D` and as its recurrent layers' ``dropout``.

    Parameters
    ----------
    p : float
        In [0, 1).

    Source: Gal and Ghahramani (2016), A theoretically grounded application of dropout in recurrent neural networks.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> prnn.SharedDropout(0.5).dropout_masks(np.random.default_rng(0), (4, 7, 3)).shape
    (4, 1, 3)
    """

    p: Probability

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return keep_mask(rng, (shape[0], 1, shape[-1]), self.p) if self.p else None

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        y = x if mask is None else x * mask
        return zero_padding(xp, y, lengths), (mask, lengths)

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        mask, lengths = residuals
        dx = zero_padding(xp, dy, lengths)
        return dx if mask is None else dx * mask


# ---------------------------------------------------------------------- time and directions


@dataclass(frozen=True, repr=False)
class Flip(Stateless):
    """Each row's steps in reversed order: ``y[t] = x[length - 1 - t]``, (B, T, F), the shape stays.

    What a layer with ``reverse=True`` gives stands at its own time step; followed by `Flip` it stands in the order of
    computation, as from Keras' ``go_backwards=True``.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> prnn.Flip().apply({}, np.arange(6.0).reshape(2, 3, 1), lengths=[3, 2])[0][..., 0].tolist()
    [[2.0, 1.0, 0.0], [4.0, 3.0, 0.0]]
    """

    streams = False

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        return _flipped(x, lengths), lengths

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        return _flipped(dy, residuals)


@dataclass(frozen=True, repr=False)
class Ends(Stateless):
    """The output where each direction of a bidirectional layer ends: (B, T, 2 * H) -> (B, 2 * H).

    The first half of the features is taken at the row's last step, the second at its first. `Last` takes both at the
    last, where the second direction has seen one step only. A row of length zero gives zeros.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> prnn.Ends().apply({}, np.arange(6.0).reshape(1, 3, 2))[0].tolist()
    [[4.0, 1.0]]
    """

    keeps_time = False
    streams = False

    def check_input(self, x: Array, xp: Any) -> None:
        super().check_input(x, xp)
        _check_even(x, type(self).__name__)

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        steps = xp.arange(x.shape[1], dtype=xp.int32, device=device_of(x))[None, :, None]
        features = xp.arange(x.shape[2], dtype=xp.int32, device=device_of(x))[None, None, :]
        if lengths is None:
            last = steps == x.shape[1] - 1
            first = steps == 0
        else:
            lengths = xp.astype(lengths, steps.dtype)[:, None, None]
            last = steps == lengths - 1
            first = xp.logical_and(steps == 0, lengths > 0)
        half = features < x.shape[2] // 2
        chosen = xp.logical_or(xp.logical_and(half, last), xp.logical_and(xp.logical_not(half), first))
        return xp.sum(xp.where(chosen, x, xp.zeros_like(x)), axis=1), chosen

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        dy = dy[:, None, :]
        return xp.where(residuals, dy, xp.zeros_like(dy))


@dataclass(frozen=True, repr=False)
class Merge(Stateless):
    """The two halves of the features as one: (B, T, 2 * H) -> (B, T, H), or (B, 2 * H) -> (B, H).

    After a bidirectional layer the halves are its directions.

    Parameters
    ----------
    mode : str
        "sum", "mul" or "ave", the mean.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> prnn.Merge("mul").apply({}, np.array([[1.0, 2.0, 3.0, 4.0]]))[0].tolist()
    [[3.0, 8.0]]
    """

    mode: Annotated[str, one_of("sum", "mul", "ave")]

    needs_time = False

    def out_width(self, features: int | None) -> int | None:
        return None if features is None else features // 2

    def check_input(self, x: Array, xp: Any) -> None:
        super().check_input(x, xp)
        _check_even(x, type(self).__name__)

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        x = zero_padding(xp, x, lengths)
        left, right = _halves(x)
        y = left * right if self.mode == "mul" else left + right
        return y / 2 if self.mode == "ave" else y, (x, lengths)

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        x, lengths = residuals
        dy = zero_padding(xp, dy, lengths)
        left, right = _halves(x)
        if self.mode == "mul":
            return xp.concat([dy * right, dy * left], axis=-1)
        dy = dy / 2 if self.mode == "ave" else dy
        return xp.concat([dy, dy], axis=-1)


# ---------------------------------------------------------------------- masks from the data


@dataclass(frozen=True, repr=False)
class Masked(Wrapper):
    """A layer that never sees the steps which hold one value only, wherever they stand: Keras' `Masking`.

    A step (b, t) is masked where every feature of ``x[b, t]`` equals `value`, or where the integer ``x[b, t]`` does.
    The other steps are moved together, the layer runs over those, and its outputs are moved back: that the state is
    held over a masked step is the same as that the step isn't there. With lengths, steps past a row's end are masked.
    Parameters, state and features are those of the layer inside.

    Parameters
    ----------
    layer : Layer
    value : float
    hold : bool
        Outputs at masked steps repeat the one before (zeros if there is none); False: they are zeros.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.Masked(prnn.RNN(1, 1, nonlinearity="identity", bias=False))
    >>> params = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.ones((1, 1))}
    >>> layer.apply(params, np.array([[[0.0], [1.0], [0.0], [2.0]]]))[0][..., 0].tolist()
    [[0.0, 1.0, 1.0, 3.0]]
    """

    value: float = 0.0
    hold: bool = True

    needs_time = True
    streams = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.takes_integers and self.value != int(self.value):
            raise unexpected("value", "an integer, as the layer inside takes integers", self.value, "pass value=0")

    def check_input(self, x: Array, xp: Any) -> None:
        super().check_input(x, xp)
        if x.ndim == 2 and not self.takes_integers:
            raise InputError(f"Masked expects x of shape (batch, time, features), got shape {tuple(x.shape)}")

    def check_values(self, x: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None) -> None:
        super().check_values(np.where(x == self.value, 0, x), lengths)  # masked steps are not looked at

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        if marks.resets is not None:
            raise InputError("Masked takes no resets: a step that starts a sequence could itself be masked")
        xp = namespace_of(x)
        shown = x != int(self.value) if self.takes_integers else xp.any(x != self.value, axis=-1)
        steps = x.shape[1]
        if marks.lengths is not None:
            shown = xp.logical_and(shown, valid_steps(xp, marks.lengths, steps, x))
        times = xp.arange(steps, dtype=xp.int32, device=device_of(x))[None, :]
        # shown steps first, in their order, then the masked ones
        order = xp.argsort(xp.where(shown, times, times + steps), axis=1)
        counts = xp.cumulative_sum(xp.astype(shown, xp.int32), axis=1)
        packed = _steps_at(xp, x, order)
        inner = Marks(counts[:, -1])
        y, final, residuals = self.layer.forward(params, packed, state, inner, masks)
        if self.layer.keeps_time:
            y = _unpacked(xp, y, counts, counts > 0 if self.hold else shown)
        return y, final, (residuals, shown, order, counts)

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        inner, shown, _, counts = residuals
        grads, dx, dinitial = self.layer.backward(params, inner, self._packed(residuals, dy), dstate)
        return grads, None if dx is None else _unpacked(namespace_of(dy), dx, counts, shown), dinitial

    def parameter_gradients(self, params: Params, residuals: Any, dy: Array, dstate: State) -> Params:
        return self.layer.parameter_gradients(params, residuals[0], self._packed(residuals, dy), dstate)

    def _packed(self, residuals: Any, dy: Array) -> Array:
        """The cotangent of the inner layer's output."""
        if not self.layer.keeps_time:
            return dy
        _, shown, order, counts = residuals
        xp = namespace_of(dy)
        dy = _steps_at(xp, _held_sums(xp, dy, shown) if self.hold else dy, order)
        return zero_padding(xp, dy, counts[:, -1])


def _flipped(x: Array, lengths: Array | None) -> Array:
    xp = namespace_of(x)
    if lengths is None:
        return xp.flip(x, axis=1)
    times = xp.arange(x.shape[1], dtype=xp.int32, device=device_of(x))[None, :]
    index = xp.astype(lengths, times.dtype)[:, None] - 1 - times
    return zero_padding(xp, _steps_at(xp, x, xp.maximum(index, xp.zeros_like(index))), lengths)


def _steps_at(xp: Any, x: Array, index: Array) -> Array:
    """``y[b, t] = x[b, index[b, t]]``. The standard's `take` knows one dimension only, so the rows stand in a line."""
    batch, steps = index.shape
    starts = xp.arange(batch, dtype=index.dtype, device=device_of(index))[:, None] * steps
    line = xp.reshape(x, (batch * steps, *x.shape[2:]))
    return xp.reshape(xp.take(line, xp.reshape(index + starts, (-1,)), axis=0), x.shape)


def _unpacked(xp: Any, packed: Array, counts: Array, shown: Array) -> Array:
    """Steps back at their own time: the counts[t]-th of `packed`, zero where not `shown`."""
    index = counts - 1
    y = _steps_at(xp, packed, xp.maximum(index, xp.zeros_like(index)))
    return xp.where(shown[:, :, None], y, xp.zeros_like(y))


def _held_sums(xp: Any, dy: Array, shown: Array) -> Array:
    """At each shown step, the sum of dy there and at the masked steps that repeat it."""

    def step(xp: Any, shared: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
        dy_t, shown_t = inputs
        total = carry[0] + dy_t
        return (xp.where(shown_t, xp.zeros_like(total), total),), (total,)

    columns = (xp.permute_dims(dy, (1, 0, 2)), xp.permute_dims(shown, (1, 0))[:, :, None])
    _, (totals,) = scan(xp, step, (xp.zeros_like(dy[:, 0, :]),), columns, reverse=True)
    return xp.permute_dims(stacked(xp, totals), (1, 0, 2))


def _halves(x: Array) -> tuple[Array, Array]:
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


def _check_even(x: Array, who: str) -> None:
    if x.shape[-1] % 2:
        raise InputError(f"{who} expects an even number of features, one half for each direction, got {x.shape[-1]}")
