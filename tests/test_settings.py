"""Every setting of every public constructor: wrong ones are one clear error, NumPy's numbers become Python's."""

from __future__ import annotations

import dataclasses
import json
import math
import pkgutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.arrays import Configuration
from portable_rnn.forecasting import Settings
from portable_rnn.layers import Layer
from portable_rnn.models import network_to_config

STACK: dict[str, Any] = {
    "input_size": 2,
    "hidden_size": 3,
    "num_layers": 2,
    "bias": True,
    "bidirectional": False,
    "reverse": True,
    "dropout": 0.25,
    "recurrent_dropout": 0.5,
    "zoneout": 0.125,
    "recompute_every": 4,
    "initializer": "keras",
}
MINIMAL = {name: value for name, value in STACK.items() if name != "recurrent_dropout"}
GATES: dict[str, Any] = {"activation": "relu", "recurrent_activation": "hard_sigmoid(0.25, 0.5)", "clip": 1.5}
LSTM: dict[str, Any] = {**GATES, "proj_size": 2, "peepholes": True, "coupled": False, "output_activation": "softsign"}
GRU: dict[str, Any] = {**GATES, "reset_after": False}
ELMAN: dict[str, Any] = {"nonlinearity": "relu", "clip": 2.0}

# Every class with settings that a user may make, with a value for each field
EXAMPLES: dict[type[Any], dict[str, Any]] = {
    prnn.RNN: STACK | ELMAN,
    prnn.LSTM: STACK | LSTM,
    prnn.GRU: STACK | GRU,
    prnn.LayerNormLSTM: STACK | {"epsilon": 0.125},
    prnn.LayerNormGRU: STACK | {"epsilon": 0.125},
    prnn.MinGRU: MINIMAL | {"positive": True},
    prnn.MinLSTM: MINIMAL | {"positive": True},
    prnn.Recurrent: {"cell": prnn.cells.ElmanCell(), **STACK},
    prnn.Linear: {"in_features": 2, "out_features": 3, "bias": False},
    prnn.Embedding: {"num_embeddings": 5, "embedding_dim": 2},
    prnn.Dropout: {"p": 0.25},
    prnn.SharedDropout: {"p": 0.25},
    prnn.Activation: {"function": "elu(0.5)"},
    prnn.Softmax: {"log": True},
    prnn.Merge: {"mode": "ave"},
    prnn.Masked: {"layer": prnn.Linear(2, 3), "value": -1.0, "hold": False},
    prnn.cells.ElmanCell: ELMAN,
    prnn.cells.LSTMCell: LSTM,
    prnn.cells.GRUCell: GRU,
    prnn.cells.LayerNormLSTMCell: {"epsilon": 0.125},
    prnn.cells.LayerNormGRUCell: {"epsilon": 0.125},
    prnn.cells.MinGRUCell: {"positive": True},
    prnn.cells.MinLSTMCell: {"positive": True},
    prnn.training.Sgd: {"learning_rate": 0.5, "momentum": 0.25, "nesterov": True},
    prnn.training.RMSprop: {"learning_rate": 0.5, "decay": 0.25, "eps": 0.125},
    prnn.training.Adam: {"learning_rate": 0.5, "beta1": 0.5, "beta2": 0.75, "eps": 0.125, "weight_decay": 0.25},
    prnn.losses.Huber: {"delta": 0.5},
    prnn.EarlyStopping: {"patience": 2, "min_delta": 0.5, "monitor": "loss", "restore_best": False},
    Settings: {
        "cell": "lstm",
        "hidden_size": 4,
        "layers": 2,
        "window": 25,
        "horizon": 3,
        "period": 12,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.25,
        "test_fraction": 0.25,
        "seed": 1,
    },
}
# Those with nothing to set, bases, and an ONNX graph, which is read from a file
WITHOUT = {"Layer", "Stateless", "Wrapper", "RecurrentLayer", "Sequential", "Last", "Mean", "Max", "Flip", "Ends"}
WITHOUT |= {"Graph", "_Watched", "_Rule"}

# What a function takes beside classes: (call with one setting, its name, a value)
CALLS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "sgd learning_rate": (lambda v: prnn.sgd(learning_rate=v), 0.5),
    "sgd nesterov": (lambda v: prnn.sgd(0.1, 0.9, nesterov=v), True),
    "adam beta1": (lambda v: prnn.adam(beta1=v), 0.5),
    "adamw weight_decay": (lambda v: prnn.adamw(weight_decay=v), 0.5),
    "rmsprop decay": (lambda v: prnn.rmsprop(decay=v), 0.5),
    "cosine_decay initial": (lambda v: prnn.cosine_decay(v, 10), 0.5),
    "cosine_decay steps": (lambda v: prnn.cosine_decay(0.5, v), 10),
    "cosine_decay final": (lambda v: prnn.cosine_decay(0.5, 10, v), 0.25),
    "warmup_cosine_decay peak": (lambda v: prnn.warmup_cosine_decay(v, 5, 10), 0.5),
    "warmup_cosine_decay warmup_steps": (lambda v: prnn.warmup_cosine_decay(0.5, v, 10), 5),
    "warmup_cosine_decay steps": (lambda v: prnn.warmup_cosine_decay(0.5, 5, v), 10),
    "exponential_decay initial": (lambda v: prnn.exponential_decay(v, 0.5), 0.5),
    "exponential_decay rate": (lambda v: prnn.exponential_decay(0.5, v), 0.5),
    "exponential_decay steps": (lambda v: prnn.exponential_decay(0.5, 0.5, v), 0.5),
    "piecewise_constant initial": (lambda v: prnn.piecewise_constant(v, {10: 0.5}), 0.5),
    "piecewise_constant factors": (lambda v: prnn.piecewise_constant(0.5, {10: v}), 0.5),
    "SimpleRNN hidden_size": (lambda v: prnn.SimpleRNN(hidden_size=v, seed=0).lr, 3),
    "SimpleRNN learning_rate": (lambda v: prnn.SimpleRNN(learning_rate=v, seed=0).lr, 0.5),
    "Stream batch_size": (lambda v: prnn.Stream(prnn.Model(prnn.Linear(2, 3)), v).batch_size, 2),
    "fit epochs": (lambda v: fit(epochs=v), 1),
    "fit batch_size": (lambda v: fit(batch_size=v), 1),
    "fit clip_norm": (lambda v: fit(clip_norm=v), 0.5),
    "fit tbptt": (lambda v: fit(tbptt=v), 1),
    "fit shuffle": (lambda v: fit(shuffle=v), True),
    "fit stateful": (lambda v: fit(shuffle=False, batch_size=1, stateful=v), True),
    "fit progress": (lambda v: fit(progress=v), False),
    "predict batch_size": (lambda v: prnn.Model(prnn.Linear(2, 3)).predict(X, batch_size=v).tolist(), 1),
}
X = np.ones((2, 3, 2), "float32")


def fit(**settings: Any) -> list[float]:
    model = prnn.Model(prnn.RNN(2, 2))
    return model.fit(X, X, **{"epochs": 1, "progress": False, **settings}).loss


def wrong(value: Any) -> Iterator[Any]:
    """Values of other types than this one, and some of its type that no setting here takes."""
    yield from ([value], {}, object(), 1j, b"tanh", np.array([1.0, 2.0]))
    if isinstance(value, bool):
        yield from ("no", "False", 1, 0, 1.0, None, np.int64(1), np.float64(0))
    elif isinstance(value, int):
        yield from ("1", 1.5, True, np.True_, math.nan, -5, 10**30, 10**5000, np.float64(2))
    elif isinstance(value, float):
        yield from ("0.5", True, np.True_, math.nan, math.inf, np.float32("nan"), 10**400)
    elif isinstance(value, str):
        yield from (1, True, None, "no such thing", "\x1b[2J")
    else:
        yield from (1, "Linear", None, type(value))


def numpys(value: Any) -> Iterator[Any]:
    """The same value in NumPy's types and others that count as numbers."""
    if isinstance(value, bool):
        yield np.bool_(value)
    elif isinstance(value, int):
        yield from (np.int64(value), np.uint8(value), np.int16(value))
    elif isinstance(value, float):
        yield from (np.float64(value), np.float32(value), Fraction(value))
    elif isinstance(value, str):
        yield np.str_(value)


OPTIONAL = {"output_activation"}  # of those that are a string here; of numbers `wrong` has no None
FIELDS = [(cls, name) for cls, settings in EXAMPLES.items() for name in settings]


def field_id(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__


def test_every_class_with_settings_is_tested() -> None:
    for module in pkgutil.walk_packages(prnn.__path__, "portable_rnn."):
        if not module.name.endswith(("__main__", "torch_modules", "estimators")):
            import_module(module.name)
    found, left = set(), [Configuration]
    while left:
        inside = [cls for cls in left.pop().__subclasses__() if cls.__module__.startswith("portable_rnn")]
        found |= set(inside)
        left += inside
    assert {cls.__name__ for cls in found - set(EXAMPLES)} <= WITHOUT
    for cls, settings in EXAMPLES.items():
        assert set(settings) == {field.name for field in dataclasses.fields(cls) if field.init}


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=field_id)
def test_a_setting_of_a_wrong_type_is_one_clear_line(cls: type[Any], name: str) -> None:
    settings = EXAMPLES[cls]
    for value in wrong(settings[name]):
        if value is None and name in OPTIONAL:
            continue
        with pytest.raises(prnn.InputError) as caught:
            cls(**{**settings, name: value})
        message = str(caught.value)
        assert message.startswith(f"{name}: "), message
        assert message.isprintable(), message
        assert len(message) < 300


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=field_id)
def test_a_number_of_numpy_becomes_python_s(cls: type[Any], name: str) -> None:
    settings = EXAMPLES[cls]
    plain = cls(**settings)
    for value in numpys(settings[name]):
        made = cls(**{**settings, name: value})
        assert made == plain
        assert type(getattr(made, name)) is type(settings[name])
        assert repr(made) == repr(plain)
        if isinstance(made, Layer) and not isinstance(made, prnn.Recurrent):
            assert json.dumps(network_to_config(made)) == json.dumps(network_to_config(plain))


@pytest.mark.parametrize("call", CALLS)
def test_functions_check_alike(call: str) -> None:
    make, value = CALLS[call]
    name = call.partition(" ")[2]
    for bad in wrong(value):
        with pytest.raises(prnn.InputError) as caught:
            make(bad)
        assert str(caught.value).startswith(f"{name}: "), str(caught.value)
    expected = make(value)
    for same in numpys(value):
        assert make(same) == expected


def test_a_layer_of_numpy_s_numbers_is_saved_after_training(tmp_path: Any) -> None:
    model = prnn.Model(prnn.GRU(np.int64(2), np.uint8(3), bias=np.bool_(True), dropout=np.float32(0.5)))
    model.fit(X, np.zeros((2, 3, 3), "float32"), epochs=1, progress=False)
    model.save(tmp_path / "m.safetensors")
    assert prnn.load(tmp_path / "m.safetensors").network == prnn.GRU(2, 3, dropout=0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: prnn.Linear(10**12, 10**12).init(),
        lambda: prnn.Linear(10**6, 10**6).init(),
        lambda: prnn.Embedding(2**62, 2**62).init(),
        lambda: prnn.Model(prnn.Sequential(prnn.LSTM(1, 10**9), prnn.Last())),
        lambda: prnn.SimpleRNN(hidden_size=10**7),
    ],
)
def test_a_size_that_no_memory_holds_is_named(make: Callable[[], Any]) -> None:
    with pytest.raises(prnn.InputError, match=r"need .* GB, expected at most .* the largest is '\w.*' of shape \("):
        make()


def test_a_depth_that_no_memory_holds_is_refused_before_its_parameters_are_named() -> None:
    with pytest.raises(prnn.InputError, match="num_layers: expected an integer from 1 to 10000"):
        prnn.GRU(1, 1, 10**9)


def test_a_mask_of_integers_has_an_integer_value() -> None:
    with pytest.raises(prnn.InputError, match="value: expected an integer, as the layer inside takes integers"):
        prnn.Masked(prnn.Embedding(3, 2), 0.5)
