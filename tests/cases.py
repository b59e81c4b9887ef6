"""Random layers with everything a call of theirs takes, as NumPy arrays in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from trees import mapped

import portable_rnn as prnn


@dataclass(frozen=True)
class Case:
    """A layer, its inputs, and cotangents for its outputs."""

    layer: prnn.Layer
    params: dict[str, np.ndarray]
    x: np.ndarray
    state: Any
    lengths: list[int] | None
    resets: np.ndarray | None
    masks: Any
    dy: np.ndarray
    dstate: Any

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of `apply`."""
        names = ("params", "x", "state", "lengths", "resets", "masks")
        return {name: getattr(self, name) for name in names}

    @property
    def cotangents(self) -> dict[str, Any]:
        """The arguments of the pullback."""
        return {"dy": self.dy, "dstate": self.dstate}

    def astype(self, dtype: str) -> Case:
        """The same with every floating array in `dtype`."""

        def cast(array: Any) -> Any:
            return array.astype(dtype) if array.dtype.kind == "f" else array

        names = ("params", "x", "state", "masks", "dy", "dstate")
        return dataclasses.replace(self, **{n: mapped(cast, getattr(self, n)) for n in names})

    def __repr__(self) -> str:
        return f"Case({self.layer}, x {self.x.shape}, lengths={self.lengths}, resets={self.resets})"


def make_case(
    layer: prnn.Layer,
    shape: tuple[int, ...],
    *,
    lengths: list[int] | None = None,
    with_state: bool = True,
    with_resets: bool = False,
    with_masks: bool = True,
    seed: int = 0,
) -> Case:
    """Random values for a layer; `shape` is that of x."""
    rng = np.random.default_rng(seed)
    params = {name: 0.7 * rng.standard_normal(size) for name, size in layer.parameter_shapes().items()}
    first = layer
    while isinstance(first, prnn.Sequential):
        first = first.layers[0]
    if isinstance(first, prnn.Embedding):
        x = rng.integers(0, first.num_embeddings, shape)
    else:
        x = rng.standard_normal(shape)
    masks = None
    if with_masks:
        masks = mapped(lambda m: m.astype("float64"), layer.dropout_masks(rng, shape))
    y, final = layer.apply(params, x)
    like_final = [mapped(lambda part: rng.standard_normal(part.shape), final) for _ in range(2)]
    return Case(
        layer,
        params,
        x,
        like_final[0] if with_state else None,
        lengths,
        rng.random(shape[:2]) < 0.4 if with_resets else None,
        masks,
        rng.standard_normal(y.shape),
        like_final[1],
    )


# ---------------------------------------------------------------------- recurrent layers

HARD_SEED = 300  # of those that keep every argument away from where a derivative jumps

RECURRENT: dict[str, tuple[type[prnn.Layer], dict[str, Any]]] = {
    "rnn-tanh": (prnn.RNN, {}),
    "rnn-relu": (prnn.RNN, {"nonlinearity": "relu"}),
    "rnn-sigmoid": (prnn.RNN, {"nonlinearity": "sigmoid"}),
    "rnn-identity": (prnn.RNN, {"nonlinearity": "identity"}),
    "rnn-softsign": (prnn.RNN, {"nonlinearity": "softsign"}),
    "rnn-softplus": (prnn.RNN, {"nonlinearity": "softplus"}),
    "rnn-elu": (prnn.RNN, {"nonlinearity": "elu(0.5)"}),
    "rnn-leaky_relu": (prnn.RNN, {"nonlinearity": "leaky_relu(0.2)"}),
    "rnn-thresholded_relu": (prnn.RNN, {"nonlinearity": "thresholded_relu(0.3)"}),
    "rnn-scaled_tanh": (prnn.RNN, {"nonlinearity": "scaled_tanh(1.5, 0.7)"}),
    "rnn-hard_sigmoid": (prnn.RNN, {"nonlinearity": "hard_sigmoid"}),
    "rnn-exponential": (prnn.RNN, {"nonlinearity": "exponential", "clip": 1.5}),
    "rnn-affine": (prnn.RNN, {"nonlinearity": "affine(0.8, 0.1)"}),
    "rnn-clipped": (prnn.RNN, {"clip": 0.6}),
    "lstm": (prnn.LSTM, {}),
    "lstm-projected": (prnn.LSTM, {"proj_size": 1}),
    "lstm-peepholes": (prnn.LSTM, {"peepholes": True}),
    "lstm-coupled": (prnn.LSTM, {"coupled": True}),
    "lstm-everything": (
        prnn.LSTM,
        {"peepholes": True, "coupled": True, "proj_size": 2, "clip": 0.9, "zoneout": 0.25},
    ),
    "lstm-others": (
        prnn.LSTM,
        {
            "activation": "softsign",
            "recurrent_activation": "hard_sigmoid",
            "output_activation": "softplus",
            "clip": 0.8,
        },
    ),
    "lstm-peepholes-others": (
        prnn.LSTM,
        {
            "peepholes": True,
            "activation": "elu",
            "recurrent_activation": "softsign",
            "output_activation": "scaled_tanh(1.5, 0.7)",
        },
    ),
    "lstm-swapped": (prnn.LSTM, {"activation": "sigmoid", "recurrent_activation": "tanh"}),
    "lstm-zoneout": (prnn.LSTM, {"zoneout": 0.4}),
    "gru": (prnn.GRU, {}),
    "gru-before": (prnn.GRU, {"reset_after": False}),
    "gru-others": (
        prnn.GRU,
        {"activation": "relu", "recurrent_activation": "softsign", "clip": 0.7},
    ),
    "gru-before-others": (
        prnn.GRU,
        {"reset_after": False, "activation": "softplus", "recurrent_activation": "tanh"},
    ),
    "gru-before-clipped": (prnn.GRU, {"reset_after": False, "clip": 0.5, "zoneout": 0.3}),
}


def _hard_recurrent_case(family: str) -> Case:
    """Two layers, both directions, rows of every kind of length, state, resets, every kind of mask."""
    kind, options = RECURRENT[family]
    dropout = {"dropout": 0.4, "recurrent_dropout": 0.3}
    layer = kind(2, 3, 2, bidirectional=True, **dropout, **options)
    return make_case(layer, (4, 3, 2), lengths=[2, 0, 3, 1], with_resets=True, seed=HARD_SEED)


@st.composite
def _recurrent_cases(draw: st.DrawFn, family: str) -> Case:
    """Any shape, depth, direction, lengths, state, resets and masks."""
    kind, options = RECURRENT[family]
    batch, steps, features = (draw(st.integers(1, n)) for n in (4, 5, 3))
    dropped = draw(st.booleans())
    layer = kind(
        features,
        draw(st.integers(1 + options.get("proj_size", 0), 4)),
        draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        **draw(st.sampled_from([{}, {"bidirectional": True}, {"reverse": True}])),
        dropout=0.5 if dropped else 0.0,
        recurrent_dropout=0.25 if dropped else 0.0,
        **options,
    )
    return make_case(
        layer,
        (batch, steps, features),
        lengths=draw(lengths(batch, steps)),
        with_state=draw(st.booleans()),
        with_resets=draw(st.booleans()),
        with_masks=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def lengths(batch: int, steps: int) -> st.SearchStrategy[list[int] | None]:
    """None or any lengths, zero included, in any order."""
    return st.none() | st.lists(st.integers(0, steps), min_size=batch, max_size=batch)


# ---------------------------------------------------------------------- the other layers


def _sequential(features: int, hidden: int) -> prnn.Layer:
    return prnn.Sequential(
        prnn.GRU(features, hidden, bidirectional=True),
        prnn.Dropout(0.3),
        prnn.Sequential(prnn.LSTM(2 * hidden, hidden), prnn.Linear(hidden, 2)),
    )


# name: (layer from its numbers of features and hidden features, rank of x)
OTHERS: dict[str, tuple[Callable[[int, int], prnn.Layer], int]] = {
    "linear-rows": (lambda features, hidden: prnn.Linear(features, hidden), 2),
    "linear-steps": (lambda features, hidden: prnn.Linear(features, hidden), 3),
    "linear-unbiased": (lambda features, hidden: prnn.Linear(features, hidden, bias=False), 3),
    "embedding": (lambda features, hidden: prnn.Embedding(5, hidden), 2),
    "last": (lambda features, hidden: prnn.Last(), 3),
    "mean": (lambda features, hidden: prnn.Mean(), 3),
    "max": (lambda features, hidden: prnn.Max(), 3),
    "dropout": (lambda features, hidden: prnn.Dropout(0.4), 3),
    "dropout-rows": (lambda features, hidden: prnn.Dropout(0.4), 2),
    "sequential": (_sequential, 3),
    "classifier": (
        lambda features, hidden: prnn.Sequential(
            prnn.Embedding(5, features),
            prnn.LSTM(features, hidden, bidirectional=True),
            prnn.Last(),
            prnn.Dropout(0.2),
            prnn.Linear(2 * hidden, 3),
        ),
        2,
    ),
    "pooled-mean": (
        lambda features, hidden: prnn.Sequential(prnn.RNN(features, hidden), prnn.Mean()),
        3,
    ),
}


def _hard_other_case(name: str) -> Case:
    """Rows of every kind of length."""
    build, rank = OTHERS[name]
    return _other_case(build, rank, 4, 3, 2, 3, [2, 0, 3, 1], seed=2)


@st.composite
def _other_cases(draw: st.DrawFn, name: str) -> Case:
    """Any shape and lengths."""
    build, rank = OTHERS[name]
    batch, steps, features, hidden = (draw(st.integers(1, n)) for n in (4, 5, 3, 4))
    seed = draw(st.integers(0, 2**16))
    return _other_case(build, rank, batch, steps, features, hidden, draw(lengths(batch, steps)), seed=seed)


def _other_case(
    build: Any,
    rank: int,
    batch: int,
    steps: int,
    features: int,
    hidden: int,
    ends: Any,
    *,
    seed: int,
) -> Case:
    layer = build(features, hidden)
    integers = isinstance(layer, prnn.Embedding) or (
        isinstance(layer, prnn.Sequential) and isinstance(layer.layers[0], prnn.Embedding)
    )
    if integers:
        return make_case(layer, (batch, steps), lengths=ends, seed=seed)
    if rank == 2:
        return make_case(layer, (batch, features), seed=seed)
    return make_case(layer, (batch, steps, features), lengths=ends, seed=seed)


# ---------------------------------------------------------------------- both


def hard_case(name: str) -> Case:
    """One case that has everything at once."""
    return _hard_recurrent_case(name) if name in RECURRENT else _hard_other_case(name)


def random_cases(name: str) -> st.SearchStrategy[Case]:
    """Any case of this name."""
    return _recurrent_cases(name) if name in RECURRENT else _other_cases(name)
