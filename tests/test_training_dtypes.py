"""A model's arrays keep their library, device, dtype and type, whatever it is trained with."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.arrays import device_of, leaves
from portable_rnn.execution.machine import program as machine_program
from portable_rnn.training import clip_by_global_norm

RULES = {
    "sgd": prnn.sgd,
    "momentum": lambda rate: prnn.sgd(rate, momentum=0.9),
    "nesterov": lambda rate: prnn.sgd(rate, momentum=0.9, nesterov=True),
    "rmsprop": prnn.rmsprop,
    "adam": prnn.adam,
    "adamw": lambda rate: prnn.adamw(rate, weight_decay=np.float64(0.1)),
}
SCHEDULES = {
    "number": 0.01,
    "NumPy number": np.float64(0.01),
    "cosine": prnn.cosine_decay(0.01, 10),
    "warm-up": prnn.warmup_cosine_decay(0.01, 2, 10),
    "exponential": prnn.exponential_decay(0.01, 0.5, 5),
    "piecewise": prnn.piecewise_constant(0.01, {1: 0.5}),
    "of the count": lambda count: 0.01 / (1 + count),
    "Python's": lambda count: 0.01,
    "an integer": lambda count: 1,
    "NumPy's float64": lambda count: np.float64(0.01),
    "NumPy's float32": lambda count: np.float32(0.01),
    "NumPy's array": lambda count: np.asarray(0.01),
}


class Wide:
    """A user's optimizer that computes in float64 where NumPy lets it."""

    def init(self, params: Any) -> Any:
        return ()

    def update(self, grads: Any, state: Any, params: Any) -> Any:
        wide = np.float64(0.01) if isinstance(next(iter(params.values())), np.ndarray) else 0.01
        return {name: p - wide * grads[name] for name, p in params.items()}, state


def wide_loss(prediction: Any, target: Any, lengths: Any) -> Any:
    """A user's loss whose value and gradient are float64 on NumPy."""
    value, gradient = prnn.losses.mse(prediction, target, lengths)
    wide = np.float64(1.0) if isinstance(prediction, np.ndarray) else 1.0
    return value * wide, gradient * wide


# ---------------------------------------------------------------------- one update


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_update_keeps_what_an_array_is(backend: Any, dtype: str) -> None:
    """Every rule with every schedule, clipped; parameters of rank 0 too."""
    rng = np.random.default_rng(0)
    shapes = {"weight": (2, 3), "scale": ()}
    params, grads = (
        backend.array({k: rng.standard_normal(shape).astype(dtype) for k, shape in shapes.items()}) for _ in range(2)
    )
    kinds = {(type(p), p.dtype, str(device_of(p))) for p in params.values()}
    assert len(kinds) == 1
    for rule, schedule in itertools.product(RULES, SCHEDULES):
        optimizer = RULES[rule](SCHEDULES[schedule])
        new, state = params, optimizer.init(params)
        for _ in range(2):
            new, state = optimizer.update(clip_by_global_norm(grads, 0.1), state, new)
        found = {(type(a), a.dtype, str(device_of(a))) for a in leaves((new, state, clip_by_global_norm(grads, 0.1)))}
        assert found == kinds, (rule, schedule)


@pytest.mark.parametrize("rate", ["fast", None, np.array([0.1]), 0.1j, np.array(True)])
def test_a_schedule_that_returns_no_number_is_an_error(rate: Any) -> None:
    optimizer = prnn.adam(lambda count: rate)
    params = {"w": np.ones(2)}
    with pytest.raises(prnn.InputError, match="learning_rate: expected a schedule returning a number") as caught:
        optimizer.update(params, optimizer.init(params), params)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- whole runs


@pytest.fixture(params=["0", "1"], ids=["planned", "compiled"])
def _loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loops as every installation has them, and as machine code (extra ``[fast]``)."""
    if request.param == "1" and importlib.util.find_spec("llvmlite") is None:
        pytest.skip("llvmlite is not installed")
    monkeypatch.setenv("PORTABLE_RNN_COMPILE", request.param)
    monkeypatch.setattr(machine_program, "FEWEST_COLUMNS", 1)
    execution.forget()
    yield
    execution.forget()


# (optimizer, loss, clip_norm, tbptt, recurrent layer): all values of each beside most of the others
RUNS: list[tuple[Any, Any, float | None, int | None, Any]] = [
    (prnn.adam(SCHEDULES["cosine"]), "mse", None, None, prnn.GRU),
    (prnn.adamw(SCHEDULES["warm-up"]), "mae", 0.1, 2, prnn.LSTM),
    (prnn.rmsprop(SCHEDULES["exponential"]), "huber", 0.1, None, prnn.RNN),
    (prnn.sgd(SCHEDULES["piecewise"], momentum=0.9), "binary_cross_entropy", None, 2, prnn.GRU),
    (prnn.sgd(SCHEDULES["of the count"]), "cross_entropy", np.float64(0.1), 2, prnn.RNN),
    (prnn.adam(SCHEDULES["NumPy's float64"]), prnn.losses.huber(np.float64(0.5)), 0.1, 2, prnn.GRU),
    (Wide(), wide_loss, None, None, prnn.LSTM),
    (prnn.rmsprop(SCHEDULES["NumPy's array"]), wide_loss, 0.1, 2, prnn.GRU),
]


@pytest.mark.usefixtures("_loops")
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_run_keeps_what_an_array_is(backend: Any, number: int) -> None:
    if backend.entry.library in ("jax", "dpnp") and number not in (0, 4):
        pytest.skip("compiles or runs slowly; an update is tested with everything above")
    optimizer, loss, clip_norm, tbptt, kind = RUNS[number]
    model = prnn.Model(prnn.Sequential(kind(2, 3), prnn.Linear(3, 2)), backend.target, dtype="float32")
    kinds = {(type(p), p.dtype, str(device_of(p))) for p in model.params.values()}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 4, 2)).astype("float32")
    y = rng.integers(0, 2, (5, 4)) if loss == "cross_entropy" else rng.random((5, 4, 2)).astype("float32")
    data = backend.array((x, y))
    settings = {"loss": loss, "optimizer": optimizer, "clip_norm": clip_norm, "tbptt": tbptt, "batch_size": 3}
    model.fit(*data, epochs=2, progress=False, lengths=[4, 1, 2, 0, 3], **settings)
    assert {(type(p), p.dtype, str(device_of(p))) for p in model.params.values()} == kinds
    value, gradients = model.loss_and_grad(*data, loss=loss)
    assert {(a.dtype, str(device_of(a))) for a in leaves((value, gradients, model.predict(data[0])))} == {
        kind[1:] for kind in kinds
    }


def test_a_model_trained_with_a_schedule_takes_its_own_data_from_a_file(tmp_path: Path) -> None:
    model = prnn.Model(prnn.Sequential(prnn.LSTM(1, 2), prnn.Linear(2, 1)))
    x = np.ones((4, 3, 1), dtype="float32")
    model.fit(x, x, optimizer=prnn.adam(prnn.cosine_decay(1e-2, 10)), epochs=2, progress=False)
    model.save(tmp_path / "m.safetensors")
    again = prnn.load(tmp_path / "m.safetensors")
    assert {p.dtype.name for p in again.params.values()} == {"float32"}
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


@pytest.mark.parametrize(
    "loss",
    [
        lambda prediction, target, lengths: 0.5,
        lambda prediction, target, lengths: (0.5, prediction[0]),
        lambda prediction, target, lengths: None,
    ],
)
def test_a_loss_without_its_gradient_is_an_error(loss: Any) -> None:
    model = prnn.Model(prnn.Linear(1, 1))
    x = np.ones((2, 1), dtype="float32")
    with pytest.raises(prnn.InputError, match=r"loss: expected \(value, gradient with respect to .*, got ") as caught:
        model.fit(x, x, loss=loss, progress=False)
    assert "\n" not in str(caught.value)


def test_a_loss_may_return_its_value_as_a_number() -> None:
    pytest.importorskip("torch")
    for library in ("numpy", "torch"):
        model = prnn.Model(prnn.Linear(1, 1), library)
        x = prnn.asarray([[1.0], [2.0]], model.backend)
        history = model.fit(x, x, loss=lambda p, t, lengths: (0.25, p * 0), epochs=1, progress=False)
        assert history.loss == [0.25]
