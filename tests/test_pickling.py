"""Everything pickles, is copied deeply, and crosses processes, before and after it has computed something."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_settings import EXAMPLES

import portable_rnn as prnn
from portable_rnn import activations, errors
from portable_rnn.errors import MissingDependencyError, NonFiniteError

Copy = Callable[[Any], Any]
COPIES: dict[str, Copy] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
}
X = np.random.default_rng(0).standard_normal((2, 4, 2))

LAYERS = [cls(**settings) for cls, settings in EXAMPLES.items() if issubclass(cls, prnn.Layer)]
LAYERS += [prnn.Last(), prnn.Mean(), prnn.Max(), prnn.Flip(), prnn.Ends()]
LAYERS += [
    prnn.LSTM(2, 3, peepholes=True),
    prnn.Sequential(prnn.Masked(prnn.Sequential(prnn.GRU(2, 3), prnn.LayerNormLSTM(3, 2))), prnn.Linear(2, 2)),
]


@pytest.fixture(params=["pickle", "deepcopy"])
def copied(request: pytest.FixtureRequest) -> Copy:
    return COPIES[request.param]


def used(layer: prnn.Layer) -> prnn.Layer:
    """After a call forward and one backward."""
    x = np.ones((2, 4), dtype="int64") if layer.takes_integers else X[:, :, : layer.in_width or 2]
    y, _, pull = layer.vjp(layer.init(0, prnn.backend("numpy", dtype="float64")), x)
    pull(np.ones_like(y))
    return layer


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_layer_before_and_after_its_first_call(layer: prnn.Layer, copied: Copy) -> None:
    fresh = dataclasses.replace(layer) if type(layer) is not prnn.Sequential else prnn.Sequential(*layer.layers)
    before = pickle.dumps(fresh)
    assert copied(fresh) == layer
    again = copied(used(fresh))
    assert again == layer
    assert hash(again) == hash(layer)
    assert repr(again) == repr(layer)
    used(again)
    assert len(pickle.dumps(again)) == len(before)  # what it has computed for itself stays behind


@pytest.mark.parametrize("cls", [cls for cls in EXAMPLES if not issubclass(cls, prnn.Layer)], ids=lambda c: c.__name__)
def test_cells_optimizers_and_callbacks(cls: type[Any], copied: Copy) -> None:
    made = cls(**EXAMPLES[cls])
    assert copied(made) == made


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations(name: str, copied: Copy) -> None:
    assert copied(activations.activation(name)) is activations.activation(name)


def test_schedules_and_losses(copied: Copy) -> None:
    schedules = [
        prnn.cosine_decay(0.5, 10),
        prnn.warmup_cosine_decay(0.5, 2, 10),
        prnn.exponential_decay(0.5, 0.5),
        prnn.piecewise_constant(0.5, {3: 0.5}),
    ]
    for made in (*schedules, *map(prnn.adam, schedules), prnn.losses.huber(0.5), prnn.losses.mse):
        assert copied(made) == made


# ---------------------------------------------------------------------- exceptions

MADE: dict[str, Callable[[type[Any]], Exception]] = {
    "MissingDependencyError": lambda cls: cls("torch", "torch", "from_torch"),
    "NonFiniteError": lambda cls: cls("the loss is nan", step=3, layer="layer 0 (GRU)", good_params={"w": np.ones(2)}),
}
EXCEPTIONS = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, Exception)]


@pytest.mark.parametrize("cls", EXCEPTIONS, ids=lambda cls: cls.__name__)
def test_exceptions_keep_what_they_say(cls: type[Any], copied: Copy) -> None:
    error = MADE.get(cls.__name__, lambda cls: cls("x: expected 1, got 2: pass 1"))(cls)
    again = copied(error)
    assert type(again) is cls
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again).keys() == vars(error).keys()
    for name, value in vars(error).items():
        np.testing.assert_equal(getattr(again, name), value)
    if isinstance(error, MissingDependencyError):
        assert again.name == error.name == "torch"


# ---------------------------------------------------------------------- what holds arrays, on every library


def network() -> prnn.Layer:
    return prnn.Sequential(prnn.LSTM(2, 3), prnn.Dropout(0.1), prnn.Linear(3, 2))


def test_a_backend(backend: Any, copied: Copy) -> None:
    again = copied(backend.target)
    assert again == backend.target
    assert hash(again) == hash(backend.target)
    assert again.xp is backend.target.xp
    assert {again: 1}[backend.target] == 1


def test_a_backend_whose_device_has_no_hash_has_one() -> None:
    device: list[int] = []
    first, second = (dataclasses.replace(prnn.backend("numpy"), device=device) for _ in range(2))
    assert hash(first) == hash(second)


def test_a_model(backend: Any, copied: Copy) -> None:
    model = prnn.Model(network(), backend.target)
    model.metadata["of"] = "somebody"
    x, y = backend.array(X), backend.array(np.zeros((2, 4, 2)))
    model.fit(x, y, epochs=1, progress=False)
    again = copied(model)
    expected = backend.numpy(model.predict(x))
    np.testing.assert_array_equal(backend.numpy(again.predict(x)), expected)
    assert again.network == model.network
    assert again.backend == model.backend
    assert again.metadata == model.metadata
    assert again.loss == model.loss
    again.fit(x, y, epochs=1, progress=False)
    np.testing.assert_array_equal(backend.numpy(model.predict(x)), expected)  # the copy stands by itself


def test_a_stream_in_its_middle(backend: Any, copied: Copy) -> None:
    model = prnn.Model(network(), backend.target)
    stream = prnn.Stream(model, batch_size=2)
    steps = [backend.array(X[:, t]) for t in range(4)]
    stream.step(steps[0])
    again = copied(stream)
    for x_t in steps[1:]:
        np.testing.assert_array_equal(backend.numpy(again.step(x_t)), backend.numpy(stream.step(x_t)))
    again.reset([True, False])


@pytest.mark.parametrize("steps", [3, 3000])  # few as the notebook runs them, many as a layer does
def test_a_simple_rnn_between_its_passes(backend: Any, copied: Copy, steps: int) -> None:
    steps = steps if backend.name in ("numpy", "torch") else 3
    rnn = prnn.SimpleRNN(2, 12, 1, backend=backend.target, seed=0)
    rnn.train([np.ones((2, 1))] * 2, [[1.0]])
    inputs = [np.full((2, 1), 0.1)] * steps
    rnn.forward(inputs)
    again = copied(rnn)
    found, expected = again.backward([[1.0]]), rnn.backward([[1.0]])
    for name, gradient in expected.items():
        np.testing.assert_allclose(backend.numpy(found[name]), backend.numpy(gradient), rtol=1e-12)
    np.testing.assert_allclose(again.predict(inputs), rnn.predict(inputs), rtol=1e-12)


def test_a_loss_that_exploded(backend: Any, copied: Copy) -> None:
    params = backend.array({"w": np.ones((2, 1))})
    again = copied(NonFiniteError("the loss is nan", step=1, layer="", good_params=params))
    np.testing.assert_array_equal(backend.numpy(again.good_params["w"]), np.ones((2, 1)))


# ---------------------------------------------------------------------- other processes


POOL = """
import multiprocessing, sys
import numpy as np, portable_rnn as prnn

def explode(step):
    raise prnn.NonFiniteError("the loss is nan", step=step, layer="here", good_params={"w": np.ones(1)})

if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal((2, 4, 2), dtype="float32")
    model = prnn.Model(prnn.Sequential(prnn.LSTM(2, 3), prnn.Linear(3, 2)))
    expected = [model.predict(k * x) for k in (1, 2, 3)]
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        found = pool.map(model.predict, [k * x for k in (1, 2, 3)])
        assert all(map(np.array_equal, found, expected))
        try:
            pool.map(explode, [7])
        except prnn.NonFiniteError as error:
            print(error, error.step, error.layer, error.good_params["w"])
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_pool_of_processes(method: str, tmp_path: Path) -> None:
    """In a process of its own, as JAX, which may be imported here, forbids a fork."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on {sys.platform}")
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    done = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "the loss is nan 7 here [1.]\n", done.stderr


def test_joblib() -> None:
    joblib = pytest.importorskip("joblib")
    model = prnn.Model(network(), dtype="float64")
    (found,) = joblib.Parallel(n_jobs=2)([joblib.delayed(model.predict)(X)])
    np.testing.assert_array_equal(found, model.predict(X))
