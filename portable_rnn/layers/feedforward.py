"""The layers around the recurrent ones: Linear, Embedding, pooling over time, Dropout, Sequential."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Marks, Params, Probability, Size, State, backend_of, device_of, dtype_name, namespace_of
from ..errors import InputError
from .base import (
    Layer,
    Stateless,
    inverse_sqrt,
    keep_mask,
    own_parameters,
    prefixed,
    uniform,
    valid_steps,
    walk,
    zero_padding,
)

__all__ = ["Dropout", "Embedding", "Last", "Linear", "Max", "Mean", "Sequential"]


@dataclass(frozen=True, repr=False)
class Linear(Layer):
    """``y = x @ weight.T + bias``, for every step.

    x (B, T, I) or (B, I) -> y (B, T, O) or (B, O). Parameters as in `torch.nn.Linear`:
    ``weight`` (O, I), ``bias`` (O,). With lengths, outputs past a row's end are zero.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.Linear(3, 2)
    >>> layer.apply(layer.init(seed=0), np.ones((4, 3), dtype="float32"))[0].shape
    (4, 2)
    """

    in_features: Size
    out_features: Size
    bias: bool = True

    needs_time = False

    @property
    def in_width(self) -> int:
        return self.in_features

    def out_width(self, features: int | None) -> int:
        return self.out_features

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        return shapes | {"bias": (self.out_features,)} if self.bias else shapes

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        return uniform(rng, self.parameter_shapes(), inverse_sqrt(self.in_features))

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        xp = namespace_of(x)
        x = zero_padding(xp, x, marks.lengths)
        y = xp.matmul(x, params["weight"].T)
        if self.bias:
            bias = xp.reshape(params["bias"], (1,) * (y.ndim - 1) + (self.out_features,))
            y = zero_padding(xp, y + bias, marks.lengths)
        return y, None, (x, marks.lengths)

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        x, lengths = residuals
        xp = namespace_of(x)
        dy = zero_padding(xp, dy, lengths)
        leading = tuple(range(x.ndim - 1))
        grads = {"weight": xp.tensordot(dy, x, axes=(leading, leading))}
        if self.bias:
            grads["bias"] = xp.sum(dy, axis=leading)
        return grads, xp.matmul(dy, params["weight"]), None


@dataclass(frozen=True, repr=False)
class Embedding(Layer):
    """Rows of a table: ``y[b, t] = weight[x[b, t]]``.

    x (B, T) integers in [0, num_embeddings) -> y (B, T, E). ``weight`` (num_embeddings, embedding_dim), drawn from
    N(0, 1) as in `torch.nn.Embedding`. Integers past a row's end are not looked at. `dx` is None.

    Parameters
    ----------
    num_embeddings, embedding_dim : int

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.Embedding(10, 4)
    >>> layer.apply(layer.init(seed=0), np.array([[1, 2, 9]]))[0].shape
    (1, 3, 4)
    """

    num_embeddings: Size
    embedding_dim: Size

    takes_integers = True

    def out_width(self, features: int | None) -> int:
        return self.embedding_dim

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.num_embeddings, self.embedding_dim)}

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        return {"weight": rng.standard_normal((self.num_embeddings, self.embedding_dim))}

    def check_input(self, x: Array, xp: Any) -> None:
        if x.ndim != 2 or 0 in x.shape:
            raise InputError(f"Embedding expects x of shape (batch, time), not empty, got {tuple(x.shape)}")
        if not xp.isdtype(x.dtype, "integral"):
            raise InputError(f"Embedding expects integers, got {dtype_name(xp, x.dtype)}")

    def check_values(self, x: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None) -> None:
        seen = x if lengths is None else x[np.arange(x.shape[1]) < lengths[:, None]]
        bad = seen[(seen < 0) | (seen >= self.num_embeddings)]
        if bad.size:
            raise InputError(f"Embedding expects integers from 0 to {self.num_embeddings - 1}, got {int(bad[0])}")

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        weight = params["weight"]
        xp = namespace_of(weight)
        x = zero_padding(xp, x, marks.lengths)
        y = xp.reshape(xp.take(weight, xp.reshape(x, (-1,)), axis=0), (*x.shape, self.embedding_dim))
        return zero_padding(xp, y, marks.lengths), None, (x, marks.lengths)

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        x, lengths = residuals
        weight = params["weight"]
        xp = namespace_of(weight)
        # The standard has no scatter-add; a product with the one-hot rows is the same sum.
        flat = xp.reshape(zero_padding(xp, dy, lengths), (-1, self.embedding_dim))
        rows = xp.arange(self.num_embeddings, dtype=x.dtype, device=device_of(x))
        one_hot = xp.astype(rows[:, None] == xp.reshape(x, (1, -1)), weight.dtype)
        return {"weight": one_hot @ flat}, None, None


# ---------------------------------------------------------------------- pooling over time


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


# ---------------------------------------------------------------------- dropout and composition


@dataclass(frozen=True, repr=False)
class Dropout(Stateless):
    """In training, zero each entry with probability `p` and scale the others by 1 / (1 - p).

    Without masks (`Layer.dropout_masks` draws them, `Model.fit` does so for each batch) it returns x.

    Parameters
    ----------
    p : float
        In [0, 1).
    """

    p: Probability

    needs_time = False

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return keep_mask(rng, shape, self.p) if self.p else None

    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        y = x if mask is None else x * mask
        return zero_padding(xp, y, lengths), (mask, lengths)

    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        mask, lengths = residuals
        dx = zero_padding(xp, dy, lengths)
        return dx if mask is None else dx * mask


@dataclass(frozen=True, init=False, repr=False)
class Sequential(Layer):
    """Layers one after another.

    Parameters carry the layer's number as a prefix, as in `torch.nn.Sequential`: ``0.weight_ih_l0``, ``2.bias``. The
    state is a tuple with one element for each layer, None for those without state.

    Parameters
    ----------
    *layers : Layer

    Raises
    ------
    InputError
        A layer does not take what the one before gives.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> network = prnn.Sequential(prnn.LSTM(3, 8), prnn.Last(), prnn.Linear(8, 2))
    >>> params = network.init(seed=0)
    >>> y, state = network.apply(params, np.ones((4, 6, 3), dtype="float32"), lengths=[6, 2, 0, 5])
    >>> y.shape, [part is None for part in state]
    ((4, 2), [False, True, True])
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        object.__setattr__(self, "layers", tuple(layers))
        if not layers:
            raise InputError("Sequential expects at least one layer, got none")
        given: tuple[Any, ...] = layers
        for k, layer in enumerate(given):
            if not isinstance(layer, Layer):
                hint = "; pass the layers one by one, not as a list" if isinstance(layer, (list, tuple)) else ""
                raise InputError(f"layer {k} of Sequential must be a layer, got {type(layer).__name__}{hint}")
        features, has_time = layers[0].in_width, True
        for k, layer in enumerate(layers):
            if k and layer.in_width is not None and features is not None and layer.in_width != features:
                raise InputError(
                    f"layer {k} ({type(layer).__name__}) takes {layer.in_width} features, "
                    f"but layer {k - 1} ({type(layers[k - 1]).__name__}) gives {features}"
                )
            if layer.needs_time and not has_time:
                raise InputError(
                    f"layer {k} ({type(layer).__name__}) needs a time axis, which an earlier layer has removed"
                )
            if k and layer.takes_integers:
                raise InputError(
                    f"layer {k} ({type(layer).__name__}) takes integers, "
                    f"but layer {k - 1} ({type(layers[k - 1]).__name__}) gives floats"
                )
            features, has_time = layer.out_width(features), has_time and layer.keeps_time

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        """Whether no layer removes the time axis."""
        return all(layer.keeps_time for layer in self.layers)

    @property
    def needs_time(self) -> bool:  # type: ignore[override]
        """Whether any layer needs a time axis."""
        return any(layer.needs_time for layer in self.layers)

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """As the first layer."""
        return self.layers[0].takes_integers

    @property
    def in_width(self) -> int | None:
        for layer in self.layers:
            if layer.in_width is not None or layer.out_width(2) != 2:  # those before keep the number of features
                return layer.in_width
        return None

    def out_width(self, features: int | None) -> int | None:
        for layer in self.layers:
            features = layer.out_width(features)
        return features

    def children(self) -> dict[str, Layer]:
        return {str(k): layer for k, layer in enumerate(self.layers)}

    def map_children(self, function: Callable[[Layer], Layer]) -> Sequential:
        return Sequential(*map(function, self.layers))

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        masks = []
        for layer in self.layers:
            masks.append(layer.dropout_masks(rng, shape))
            leading = shape if layer.takes_integers else shape[:-1]
            shape = (*(leading if layer.keeps_time else shape[:1]), layer.out_width(shape[-1]) or shape[-1])
        return masks if any(mask is not None for mask in masks) else None

    def check_input(self, x: Array, xp: Any) -> None:
        self.layers[0].check_input(x, xp)
        if x.ndim == 2 and self.needs_time and not self.takes_integers:
            raise InputError(f"{self} expects x of shape (batch, time, features), got shape {tuple(x.shape)}")

    def check_values(self, x: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None) -> None:
        self.layers[0].check_values(x, lengths)

    def check_state(self, state: State, batch_size: int) -> None:
        if state is None:
            return
        if not isinstance(state, (tuple, list)) or len(state) != len(self.layers):
            got = f"{len(state)} elements" if isinstance(state, (tuple, list)) else type(state).__name__
            raise InputError(
                f"state of Sequential must be a tuple with one element for each of its {len(self.layers)} layers, "
                f"as it returns, got {got}"
            )
        for layer, part in zip(self.layers, state, strict=True):
            layer.check_state(part, batch_size)

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        count = len(self.layers)
        states = (None,) * count if state is None else state
        all_masks = (None,) * count if masks is None else masks
        finals, residuals = [], []
        for k, layer in enumerate(self.layers):
            x, final, saved = layer.forward(own_parameters(params, f"{k}."), x, states[k], marks, all_masks[k])
            if not layer.keeps_time:
                marks = Marks()
            finals.append(final)
            residuals.append(saved)
        return x, tuple(finals), residuals

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        dinitials: list[State] = [None] * len(self.layers)
        grads: Params = {}
        dx: Array | None = dy
        for k, own, dfinal in self._backwards(params, dstate):
            found, dx, dinitials[k] = self.layers[k].backward(own, residuals[k], dx, dfinal)
            grads |= {f"{k}.{name}": g for name, g in found.items()}
        return {name: grads[name] for name in params}, dx, tuple(dinitials)

    def parameter_gradients(self, params: Params, residuals: Any, dy: Array, dstate: State) -> Params:
        grads: Params = {}
        first = min((int(name.partition(".")[0]) for name in params), default=0)  # of the layers that have any
        dx: Array | None = dy
        for k, own, dfinal in self._backwards(params, dstate):
            if k == first:
                found = self.layers[k].parameter_gradients(own, residuals[k], dx, dfinal)
            elif k > first:
                found, dx, _ = self.layers[k].backward(own, residuals[k], dx, dfinal)
            else:
                break
            grads |= {f"{k}.{name}": g for name, g in found.items()}
        return {name: grads[name] for name in params}

    def _backwards(self, params: Params, dstate: State) -> Iterator[tuple[int, Params, State]]:
        """Number, parameters and cotangent of the final state of each layer, from the last."""
        dfinals = (None,) * len(self.layers) if dstate is None else dstate
        for k in reversed(range(len(self.layers))):
            yield k, own_parameters(params, f"{k}."), dfinals[k]

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"


def flat_layers(network: Layer) -> list[tuple[str, Any]]:
    """The links of a chain, nested Sequentials taken apart, in order, each with the prefix of its parameters."""
    return list(_links(network, ""))


def _links(network: Layer, prefix: str) -> Iterator[tuple[str, Layer]]:
    if not isinstance(network, Sequential):
        yield prefix, network
        return
    for child, layer in network.children().items():
        yield from _links(layer, prefix + prefixed(child, ""))


def check_streams(network: Layer) -> None:
    """Raise InputError where a network can't run one step at a time."""
    for _, layer in walk(network):
        if not layer.streams:
            raise InputError(
                f"{layer} needs the whole sequence: it can't run step by step; use layers that run forward in time, "
                "with Last as the pooling, or call predict with the whole sequence"
            )
