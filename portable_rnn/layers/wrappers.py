"""Small layers that other frameworks' models are made of: activations, reversed time, both directions' ends, masks.

Like every layer they give hand-written backward passes; `Masked` is the only one with a layer inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Marks, Params, State, device_of, namespace_of
from ..cells import activation
from ..errors import InputError
from ..execution import scan, stacked
from .base import Layer, check_rank_and_features, keep_mask, valid_steps, zero_padding
from .recurrent import check_probability

__all__ = ["Activation", "Ends", "Flip", "Masked", "Merge", "SharedDropout", "Softmax"]


def _no_parameters(self: Any) -> dict[str, tuple[int, ...]]:
    return {}


def _check_rows_or_steps(self: Any, x: Array, xp: Any) -> None:
    check_rank_and_features(x, xp, (2, 3), None, type(self).__name__)


# ---------------------------------------------------------------------- functions of every step


@dataclass(frozen=True, repr=False)
class Activation(Layer):
    """``y = f(x)``, entry by entry: (B, T, F) or (B, F), the shape stays. With lengths, what is past an end is zero.

    Parameters
    ----------
    function : str
        One of `portable_rnn.activations.ACTIVATIONS`, such as "relu" or "elu(0.5)".

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.layers import Activation
    >>> Activation("relu").apply({}, np.array([[-1.0, 2.0]]))[0].tolist()
    [[0.0, 2.0]]
    """

    function: str

    needs_time = False
    parameter_shapes = _no_parameters
    check_input = _check_rows_or_steps

    def __post_init__(self) -> None:
        activation(self.function)

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        xp = namespace_of(x)
        y = activation(self.function).forward(xp, zero_padding(xp, x, marks.lengths))
        return zero_padding(xp, y, marks.lengths), None, (y, marks.lengths)

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array, State]:
        y, lengths = residuals
        xp = namespace_of(y)
        return {}, zero_padding(xp, dy, lengths) * activation(self.function).derivative(xp, y), None


@dataclass(frozen=True, repr=False)
class Softmax(Layer):
    """``y = exp(x) / sum(exp(x))`` over the features, or its logarithm: (B, T, F) or (B, F), the shape stays.

    Parameters
    ----------
    log : bool
        The logarithm, ``x - log(sum(exp(x)))``.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.layers import Softmax
    >>> Softmax().apply({}, np.array([[1.0, 1.0]]))[0].tolist()
    [[0.5, 0.5]]
    """

    log: bool = False

    needs_time = False
    parameter_shapes = _no_parameters
    check_input = _check_rows_or_steps

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        xp = namespace_of(x)
        x = zero_padding(xp, x, marks.lengths)
        x = x - xp.max(x, axis=-1, keepdims=True)
        e = xp.exp(x)
        total = xp.sum(e, axis=-1, keepdims=True)
        p = e / total
        y = x - xp.log(total) if self.log else p
        return zero_padding(xp, y, marks.lengths), None, (p, marks.lengths)

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array, State]:
        p, lengths = residuals
        xp = namespace_of(p)
        dy = zero_padding(xp, dy, lengths)
        if self.log:
            return {}, dy - p * xp.sum(dy, axis=-1, keepdims=True), None  # y = x - log(sum(exp(x)))
        return {}, p * (dy - xp.sum(p * dy, axis=-1, keepdims=True)), None  # y = p


@dataclass(frozen=True, repr=False)
class SharedDropout(Layer):
    """Dropout of whole features: in training, one mask for all steps of a sequence.

    (B, T, F), the shape stays. Keras has it as `SpatialDropout1D` and as its recurrent layers' ``dropout``.

    Parameters
    ----------
    p : float
        In [0, 1).

    Source: Gal and Ghahramani (2016), A theoretically grounded application of dropout in recurrent neural networks.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.layers import SharedDropout
    >>> SharedDropout(0.5).dropout_masks(np.random.default_rng(0), (4, 7, 3)).shape
    (4, 1, 3)
    """

    p: float

    parameter_shapes = _no_parameters

    def __post_init__(self) -> None:
        check_probability("p", self.p)

    def check_input(self, x: Array, xp: Any) -> None:
        check_rank_and_features(x, xp, (3,), None, "SharedDropout")

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return keep_mask(rng, (shape[0], 1, shape[-1]), self.p) if self.p else None

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        y = x if masks is None else x * masks
        return zero_padding(namespace_of(x), y, marks.lengths), None, (masks, marks.lengths)

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array, State]:
        masks, lengths = residuals
        dx = zero_padding(namespace_of(dy), dy, lengths)
        return {}, dx if masks is None else dx * masks, None


# ---------------------------------------------------------------------- time and directions


@dataclass(frozen=True, repr=False)
class Flip(Layer):
    """Each row's steps in reversed order: ``y[t] = x[length - 1 - t]``, (B, T, F), the shape stays.

    What a layer with ``reverse=True`` gives stands at its own time step; followed by `Flip` it stands in the order of
    computation, as from Keras' ``go_backwards=True``.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.layers import Flip
    >>> Flip().apply({}, np.arange(6.0).reshape(2, 3, 1), lengths=[3, 2])[0][..., 0].tolist()
    [[2.0, 1.0, 0.0], [4.0, 3.0, 0.0]]
    """

    streams = False
    parameter_shapes = _no_parameters

    def check_input(self, x: Array, xp: Any) -> None:
        check_rank_and_features(x, xp, (3,), None, "Flip")

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        return _flipped(x, marks.lengths), None, marks.lengths

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array, State]:
        return {}, _flipped(dy, residuals), None


@dataclass(frozen=True, repr=False)
class Ends(Layer):
    """The output where each direction of a bidirectional layer ends: (B, T, 2 * H) -> (B, 2 * H).

    The first half of the features is taken at the row's last step, the second at its first. `Last` takes both at the
    last, where the second direction has seen one step only. A row of length zero gives zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.layers import Ends
    >>> Ends().apply({}, np.arange(6.0).reshape(1, 3, 2))[0].tolist()
    [[4.0, 1.0]]
    """

    keeps_time = False
    streams = False
    parameter_shapes = _no_parameters

    def check_input(self, x: Array, xp: Any) -> None:
        _check_halves(x, xp, (3,), "Ends")

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        xp = namespace_of(x)
        steps = xp.arange(x.shape[1], dtype=xp.int32, device=device_of(x))[None, :, None]
        features = xp.arange(x.shape[2], dtype=xp.int32, device=device_of(x))[None, None, :]
        if marks.lengths is None:
            last = steps == x.shape[1] - 1
            first = steps == 0
        else:
            lengths = xp.astype(marks.lengths, steps.dtype)[:, None, None]
            last = steps == lengths - 1
            first = xp.logical_and(steps == 0, lengths > 0)
        half = features < x.shape[2] // 2
        chosen = xp.logical_or(xp.logical_and(half, last), xp.logical_and(xp.logical_not(half), first))
        return xp.sum(xp.where(chosen, x, xp.zeros_like(x)), axis=1), None, chosen

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array, State]:
        xp = namespace_of(dy)
        dy = dy[:, None, :]
        return {}, xp.where(residuals, dy, xp.zeros_like(dy)), None


@dataclass(frozen=True, repr=False)
class Merge(Layer):
    """The two halves of the features as one: (B, T, 2 * H) -> (B, T, H), or (B, 2 * H) -> (B, H).

    After a bidirectional layer the halves are its directions.

    Parameters
    ----------
    mode : str
        "sum", "mul" or "ave", the mean.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.layers import Merge
    >>> Merge("mul").apply({}, np.array([[1.0, 2.0, 3.0, 4.0]]))[0].tolist()
    [[3.0, 8.0]]
    """

    mode: str

    needs_time = False
    parameter_shapes = _no_parameters

    def __post_init__(self) -> None:
        if self.mode not in ("sum", "mul", "ave"):
            raise InputError(f"mode of Merge must be 'sum', 'mul' or 'ave', got {self.mode!r}")

    def out_width(self, features: int | None) -> int | None:
        return None if features is None else features // 2

    def check_input(self, x: Array, xp: Any) -> None:
        _check_halves(x, xp, (2, 3), "Merge")

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        x = zero_padding(namespace_of(x), x, marks.lengths)
        left, right = _halves(x)
        y = left * right if self.mode == "mul" else left + right
        return y / 2 if self.mode == "ave" else y, None, (x, marks.lengths)

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array, State]:
        x, lengths = residuals
        xp = namespace_of(x)
        dy = zero_padding(xp, dy, lengths)
        left, right = _halves(x)
        if self.mode == "mul":
            return {}, xp.concat([dy * right, dy * left], axis=-1), None
        dy = dy / 2 if self.mode == "ave" else dy
        return {}, xp.concat([dy, dy], axis=-1), None


# ---------------------------------------------------------------------- masks from the data


@dataclass(frozen=True, repr=False)
class Masked(Layer):
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
    >>> from portable_rnn.layers import Masked
    >>> layer = Masked(prnn.RNN(1, 1, nonlinearity="identity", bias=False))
    >>> params = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.ones((1, 1))}
    >>> layer.apply(params, np.array([[[0.0], [1.0], [0.0], [2.0]]]))[0][..., 0].tolist()
    [[0.0, 1.0, 1.0, 3.0]]
    """

    layer: Layer
    value: float = 0.0
    hold: bool = True

    streams = False

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        """As the layer inside."""
        return self.layer.keeps_time

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """As the layer inside."""
        return self.layer.takes_integers

    @property
    def in_width(self) -> int | None:
        return self.layer.in_width

    def out_width(self, features: int | None) -> int | None:
        return self.layer.out_width(features)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.layer.parameter_shapes()

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        return self.layer.draw(rng)

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return self.layer.dropout_masks(rng, shape)

    def check_input(self, x: Array, xp: Any) -> None:
        self.layer.check_input(x, xp)
        if x.ndim == 2 and not self.takes_integers:
            raise InputError(f"Masked expects x of shape (batch, time, features), got shape {tuple(x.shape)}")

    def check_values(self, x: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None) -> None:
        self.layer.check_values(np.where(x == self.value, 0, x), lengths)  # masked steps are not looked at

    def check_state(self, state: State, batch_size: int) -> None:
        self.layer.check_state(state, batch_size)

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
        inner, shown, order, counts = residuals
        xp = namespace_of(dy)
        if self.layer.keeps_time:
            dy = _steps_at(xp, _held_sums(xp, dy, shown) if self.hold else dy, order)
            dy = zero_padding(xp, dy, counts[:, -1])
        grads, dx, dinitial = self.layer.backward(params, inner, dy, dstate)
        return grads, None if dx is None else _unpacked(xp, dx, counts, shown), dinitial


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


def _check_halves(x: Array, xp: Any, ranks: tuple[int, ...], who: str) -> None:
    check_rank_and_features(x, xp, ranks, None, who)
    if x.shape[-1] % 2:
        raise InputError(f"{who} expects an even number of features, one half for each direction, got {x.shape[-1]}")
