"""The layers that act on every step alone: Linear, Embedding and Dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Marks, Params, Probability, Size, State, device_of, dtype_name, namespace_of
from ..errors import InputError
from .base import Layer, Stateless, zero_padding
from .drawing import inverse_sqrt, keep_mask, uniform

__all__ = ["Dropout", "Embedding", "Linear"]


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
