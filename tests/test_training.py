"""`Model.fit`: the same run on every library, compiled once, early stopping, progress, and losses that turn NaN."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from trees import mapped

import portable_rnn as prnn
from portable_rnn.training import Buckets, batching


def new_model(backend: Any, network: prnn.Layer, *, dtype: str = "float64", seed: int = 0) -> prnn.Model:
    """A model on the backend; its parameters refuse writes where the backend's arrays do."""
    model = prnn.Model(network, backend.target, dtype=dtype, seed=seed)
    if backend.entry.read_only:
        model.params = backend.array(model.params)
    return model


@contextlib.contextmanager
def as_entered(backend: Any) -> Iterator[None]:
    """Eager JAX for the backend "jax": the model compiles by itself, which is what "jax-jit" tests."""
    if backend.entry.library == "jax" and not backend.entry.jitted:
        import jax

        # a check of every result for NaN takes three times as long as the result
        with jax.disable_jit(), jax.debug_nans(False):
            yield
    else:
        yield


def on_numpy(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Parameters on NumPy, in an order that does not depend on the library."""
    return {name: prnn.to_numpy(params[name]) for name in sorted(params)}


def assert_close(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Every parameter within `tolerance`, absolute: they are of order 1."""
    got, expected = on_numpy(got), on_numpy(expected)
    assert list(got) == list(expected)
    for name, p in expected.items():
        np.testing.assert_allclose(got[name], p, rtol=0, atol=tolerance, err_msg=name)


def assert_identical(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every parameter equal to the last bit."""
    np.testing.assert_equal(on_numpy(got), on_numpy(expected))


# ---------------------------------------------------------------------- the same seed, the same run


@dataclasses.dataclass(frozen=True)
class Run:
    """A network with data and settings."""

    network: prnn.Layer
    x: np.ndarray
    y: np.ndarray
    settings: dict[str, Any]

    def fit(self, backend: Any) -> tuple[prnn.Model, prnn.History]:
        """Train on a backend."""
        model = new_model(backend, self.network, seed=3)
        with as_entered(backend):
            x, y = backend.array((self.x, self.y))
            settings = dict(self.settings)
            if "validation" in settings:
                settings["validation_data"] = (*backend.array(settings.pop("validation")), [4, 0, 2])
            return model, model.fit(x, y, progress=False, **settings)


def runs() -> dict[str, Run]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((14, 4, 2))
    per_step = Run(
        prnn.Sequential(
            prnn.LSTM(2, 3, 2, bidirectional=True, dropout=0.3, recurrent_dropout=0.2),
            prnn.Dropout(0.1),
            prnn.Linear(6, 1),
        ),
        x,
        np.cumsum(x, axis=1)[..., :1],
        {
            "lengths": [4, 1, 0, 3, 2, 4, 4, 1, 2, 0, 3, 4, 1, 3],
            "loss": "huber",
            "optimizer": prnn.adam(prnn.warmup_cosine_decay(0.05, 5, 60)),
            "epochs": 10,
            "batch_size": 3,  # five updates an epoch, the last of two rows
            "clip_norm": 0.2,
            "validation": (x[:3] * 0.5, np.cumsum(x[:3], axis=1)[..., :1]),
        },
    )
    last_step = Run(
        prnn.Sequential(prnn.GRU(2, 4, recurrent_dropout=0.25), prnn.Dropout(0.2), prnn.Last(), prnn.Linear(4, 3)),
        x,
        rng.integers(0, 3, 14),
        {
            "lengths": [4, 1, 0, 3, 2, 4, 4, 1, 2, 0, 3, 4, 1, 3],
            "loss": "cross_entropy",
            "optimizer": prnn.sgd(0.1, momentum=0.9, nesterov=True),
            "epochs": 10,
            "batch_size": 3,
            "clip_norm": 0.5,
        },
    )
    return {"bidirectional-lstm": per_step, "gru": last_step}


@dataclasses.dataclass(frozen=True)
class PlainNumpy:
    """What `Run.fit` needs of a backend, without the fixture."""

    class entry:  # noqa: N801
        library, jitted, read_only = "numpy", False, False

    target: Any = dataclasses.field(default_factory=lambda: prnn.backend("numpy", dtype="float64"))

    def array(self, tree: Any) -> Any:
        return tree


@functools.cache
def reference(name: str) -> tuple[prnn.Model, prnn.History]:
    return runs()[name].fit(PlainNumpy())


@pytest.mark.parametrize("name", runs())
def test_the_same_seed_gives_the_same_run_on_every_library(backend: Any, name: str) -> None:
    expected_model, expected = reference(name)
    model, history = runs()[name].fit(backend)
    assert len(history.step_loss) == 50
    np.testing.assert_allclose(history.step_loss, expected.step_loss, rtol=0, atol=1e-9)
    np.testing.assert_allclose(history.gradient_norm, expected.gradient_norm, rtol=0, atol=1e-9)
    np.testing.assert_allclose(history.loss, expected.loss, rtol=0, atol=1e-9)
    np.testing.assert_allclose(history.val_loss, expected.val_loss, rtol=0, atol=1e-9)
    assert_close(model.params, expected_model.params, 1e-9)


def test_the_reference_run_uses_what_it_claims() -> None:
    for name, run in runs().items():
        _, history = reference(name)
        limit = run.settings["clip_norm"]
        clipped = sum(norm > limit for norm in history.gradient_norm)
        assert 5 <= clipped <= 45, (name, clipped)  # the limit cuts some steps and not others
        assert len(set(history.step_loss)) == 50
        for change in (
            {"clip_norm": None},
            {"lengths": None},
            {"seed": 4},
            {"shuffle": False},
            {"optimizer": "adam"},
        ):
            other = dataclasses.replace(run, settings=run.settings | change).fit(PlainNumpy())[1]
            assert abs(other.step_loss[-1] - history.step_loss[-1]) > 1e-6, change


def test_every_kind_of_dropout_changes_the_run() -> None:
    run = runs()["bidirectional-lstm"]
    lstm, dropout, linear = run.network.layers
    for layers in (
        (dataclasses.replace(lstm, dropout=0.0), dropout, linear),
        (dataclasses.replace(lstm, recurrent_dropout=0.0), dropout, linear),
        (lstm, prnn.Dropout(0.0), linear),
    ):
        other = dataclasses.replace(run, network=prnn.Sequential(*layers)).fit(PlainNumpy())[1]
        assert abs(other.step_loss[0] - reference("bidirectional-lstm")[1].step_loss[0]) > 1e-6


def test_the_same_run_twice_is_bit_identical(backend: Any) -> None:
    if backend.entry.library == "dpnp":
        pytest.skip("its OpenCL reductions may add in another order; the curves are compared within 1e-9")
    run = runs()["gru"]
    run = dataclasses.replace(run, settings=run.settings | {"epochs": 1})
    (first, one), (second, two) = run.fit(backend), run.fit(backend)
    assert one.step_loss == two.step_loss
    assert_identical(first.params, second.params)


def test_padding_for_the_compiler_changes_no_dropout_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of many different lengths, which JAX pads in time, still draw NumPy's masks."""
    pytest.importorskip("jax")
    monkeypatch.setattr(Buckets, "exact", 1)  # padding from the second length on
    rng = np.random.default_rng(2)
    lengths = [5, 3, 0, 2, 5, 1, 4, 3]
    x = rng.standard_normal((8, 5, 2))
    y = rng.standard_normal((8, 5, 1))
    network = prnn.Sequential(
        prnn.LSTM(2, 3, 2, dropout=0.4, recurrent_dropout=0.2, zoneout=0.1), prnn.Dropout(0.3), prnn.Linear(3, 1)
    )
    settings = {"lengths": lengths, "batch_size": 2, "epochs": 2, "progress": False}
    histories = []
    for library in ("numpy", "jax"):
        model = prnn.Model(network, library, dtype="float64")
        histories.append(model.fit(*(prnn.asarray(a, model.backend) for a in (x, y)), **settings))
    np.testing.assert_allclose(histories[1].step_loss, histories[0].step_loss, rtol=0, atol=1e-9)


@pytest.mark.parametrize("stateful", [False, True])
def test_truncated_updates_are_the_same_where_batches_are_padded(
    monkeypatch: pytest.MonkeyPatch, stateful: bool
) -> None:
    pytest.importorskip("jax")
    monkeypatch.setattr(Buckets, "exact", 0)
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((4, 10, 2)), rng.standard_normal((4, 10, 1))
    network = prnn.Sequential(prnn.GRU(2, 3, zoneout=0.2), prnn.Dropout(0.3), prnn.Linear(3, 1))
    settings = {"lengths": [5, 3, 0, 1], "batch_size": 2, "epochs": 2, "tbptt": 2, "stateful": stateful}
    histories = []
    for library in ("numpy", "jax"):
        model = prnn.Model(network, library, dtype="float64")
        data = (prnn.asarray(a, model.backend) for a in (x, y))
        histories.append(model.fit(*data, shuffle=False, progress=False, **settings))
    assert len(histories[0].step_loss) == 2 * (3 + 1)  # pieces 0-2, 2-4, 4-5 of the first batch, 0-1 of the second
    np.testing.assert_allclose(histories[1].step_loss, histories[0].step_loss, rtol=0, atol=1e-9)


def test_inputs_are_left_as_they_are(backend: Any) -> None:
    run = runs()["gru"]
    model = new_model(backend, run.network)
    before = dict(model.params)
    values = {name: p.copy() for name, p in on_numpy(before).items()}
    x, y = backend.array((run.x.copy(), run.y.copy()))
    model.fit(x, y, lengths=run.settings["lengths"], loss="cross_entropy", epochs=1, progress=False)
    np.testing.assert_equal(backend.numpy((x, y)), (run.x, run.y))
    assert_identical(before, values)
    assert not np.array_equal(on_numpy(model.params)["3.bias"], values["3.bias"])


# ---------------------------------------------------------------------- JAX: transfers and compilations


class Compilations:
    """How often JAX compiled functions of a name while this was watching."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __enter__(self) -> Compilations:
        import jax

        self._context = contextlib.ExitStack()
        self._context.enter_context(self._caplog.at_level(logging.WARNING))
        self._context.enter_context(jax.log_compiles())
        self._start = len(self._caplog.records)
        return self

    def __exit__(self, *details: Any) -> None:
        self.messages = [record.getMessage() for record in self._caplog.records[self._start :]]
        self._context.close()

    def count(self, name: str = r"\w+") -> int:
        return sum(bool(re.match(rf"Compiling (jit\()?{name}\)? with ", message)) for message in self.messages)


def tiny_jax_model(**settings: Any) -> prnn.Model:
    network = prnn.Sequential(prnn.GRU(2, 3, **settings), prnn.Linear(3, 1))
    return prnn.Model(network, "jax", dtype="float64")


def test_the_whole_fit_moves_nothing_unasked() -> None:
    jax = pytest.importorskip("jax")
    run = runs()["bidirectional-lstm"]
    target = prnn.backend("jax", dtype="float64")
    x, y = (prnn.asarray(a, target) for a in (run.x, run.y))
    settings = {k: v for k, v in run.settings.items() if k != "validation"}
    model = prnn.Model(run.network, target, seed=3)
    few = (x[:3], y[:3], [4, 0, 2])
    with jax.transfer_guard("disallow"):
        history = model.fit(
            x,
            y,
            validation_data=few,
            callbacks=[prnn.EarlyStopping()],
            progress=False,
            **settings | {"epochs": 3},
        )
        np.testing.assert_allclose(history.step_loss, reference("bidirectional-lstm")[1].step_loss[:15], atol=1e-9)


def test_nothing_is_moved_unasked_where_batches_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(Buckets, "exact", 0)
    rng = np.random.default_rng(0)
    model = tiny_jax_model(recurrent_dropout=0.2)
    twin = model.to("numpy")
    host = rng.standard_normal((5, 5, 2)), rng.standard_normal((5, 5, 1))
    x, y = (prnn.asarray(a, model.backend) for a in host)
    x_t = x[:, 0, :]
    with jax.transfer_guard("disallow"):
        model.fit(x, y, epochs=2, batch_size=2, validation_data=(x, y), progress=False)
        loss = model.evaluate(x, y, batch_size=2)
        whole = model.predict(x, batch_size=2)
        by_row = model.predict(x, lengths=[5, 4, 3, 2, 1])
        value, _ = model.loss_and_grad(x, y)
        first, state = model.step(x_t)
        model.step(x_t, state)
    twin.fit(*host, epochs=2, batch_size=2, progress=False)
    assert loss == pytest.approx(twin.evaluate(*host), abs=1e-12)
    assert float(value) == pytest.approx(loss, abs=1e-12)
    np.testing.assert_allclose(prnn.to_numpy(whole), twin.predict(host[0]), atol=1e-12)
    np.testing.assert_allclose(prnn.to_numpy(by_row), twin.predict(host[0], lengths=[5, 4, 3, 2, 1]), atol=1e-12)
    np.testing.assert_allclose(prnn.to_numpy(first), twin.predict(host[0])[:, 0], atol=1e-12)


def test_the_training_step_is_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("jax")
    model = tiny_jax_model()
    rng = np.random.default_rng(0)
    x, y = (prnn.asarray(rng.standard_normal(s), model.backend) for s in ((12, 7, 2), (12, 7, 1)))
    settings = {"batch_size": 4, "clip_norm": 1.0, "progress": False, "validation_data": (x, y)}
    with Compilations(caplog) as first:
        model.fit(x, y, epochs=4, optimizer=prnn.adam(prnn.cosine_decay(0.01, 50)), **settings)
    assert first.count("train_step") == 1
    with Compilations(caplog) as second:
        model.fit(x, y, epochs=4, optimizer=prnn.adam(prnn.cosine_decay(0.01, 50)), **settings)
    assert second.count() == 0, second.messages


def one_of(kind: str, dropout: float = 0.2) -> prnn.Layer:
    """A network with targets for every step, for every row, and without a time axis."""
    if kind == "rows":
        return prnn.Linear(2, 2)
    end = () if kind == "steps" else (prnn.Mean(),)
    return prnn.Sequential(prnn.RNN(2, 2, recurrent_dropout=dropout), *end, prnn.Linear(2, 2))


def test_lengths_are_rounded_up_to_powers_of_two_and_three_times_those() -> None:
    allowed = sorted(size * 2**k for k in range(11) for size in (1, 3))
    for steps in range(1, 1025):
        assert batching.round_up(steps) == min(length for length in allowed if length >= steps)


@pytest.mark.parametrize("in_host_memory", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("kind", ["steps", "last", "rows"])
def test_new_shapes_are_compiled_a_bounded_number_of_times(
    kind: str, in_host_memory: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls with 1 to 12 rows and 1 to 24 steps: NumPy's numbers, from one shape as it is and 2 * 2 padded ones."""
    pytest.importorskip("jax")
    monkeypatch.setattr(Buckets, "exact", 1)
    if not in_host_memory:  # as on a GPU
        monkeypatch.setattr(batching, "in_host_memory", lambda x: False)
    rng = np.random.default_rng(1)
    loss = {"steps": "huber", "last": "cross_entropy", "rows": "mse"}[kind]
    model = prnn.Model(one_of(kind), "jax", dtype="float64")
    twin = model.to("numpy")
    settings = {"loss": loss, "epochs": 1, "batch_size": 5, "progress": False, "optimizer": prnn.sgd(0.01)}
    with Compilations(caplog) as found:
        for k in range(16 if in_host_memory else 5):
            rows, steps = int(rng.integers(1, 13)), int(rng.integers(1, 25))
            x = rng.standard_normal((rows, 2) if kind == "rows" else (rows, steps, 2))
            y = rng.integers(0, 2, rows) if kind == "last" else rng.standard_normal((*x.shape[:-1], 2))
            lengths = rng.integers(0, steps + 1, rows) if k % 2 and kind != "rows" else None
            results = []
            for m in (model, twin):
                data, target = (prnn.asarray(a, m.backend) for a in (x, y))
                value, gradients = m.loss_and_grad(data, target, lengths=lengths, loss=loss)
                history = m.fit(data, target, lengths=lengths, **settings)
                found_loss = m.evaluate(data, target, lengths=lengths, batch_size=5)
                prediction = m.predict(data, lengths=lengths, batch_size=None if k % 3 else 5)
                assert prediction.shape[: prediction.ndim - 1] == (x.shape[:2] if kind == "steps" else (rows,))
                results.append([value, on_numpy(gradients), history.loss, found_loss, prediction])
            for got, expected in zip(mapped(prnn.to_numpy, results[0]), results[1], strict=True):
                np.testing.assert_equal(*mapped(lambda a: np.round(a, 9), (got, expected)))
    assert_close(model.params, twin.params, 1e-9)
    bound = 1 + (1 if kind == "rows" else 2) * 2
    kept = 2 if kind == "rows" else 3  # batches of 5 rows stay as they are
    for name in ("_predict", "loss_value", "loss_and_gradients", "train_step"):
        assert found.count(name) <= bound + kept, (name, found.count(name))
    if in_host_memory:  # and nothing else is compiled for every shape
        assert found.count() <= 4 * (bound + kept) + 6, found.messages


def test_the_bound_on_shapes_holds() -> None:
    rng = np.random.default_rng(0)
    buckets, most_rows, most_steps = Buckets(), 39, 399
    for _ in range(3000):
        rows, steps, ragged = int(rng.integers(1, 40)), int(rng.integers(1, 400)), bool(rng.integers(0, 2))
        padded = buckets.shape(rows, steps, ragged=ragged)
        assert rows <= padded[0] < max(2 * rows, 9)
        assert steps <= padded[1] <= max(1.5 * steps, 16)
        assert padded[2] or padded == (rows, steps, ragged)
    bound = Buckets.exact + (np.log2(most_rows / 8) + 2) * (2 * np.log2(most_steps / 16) + 3)
    assert 8 + 4 * 11 == len(buckets._met) <= bound


def test_what_a_users_loss_sees_is_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not know of lengths that nobody gave it."""
    pytest.importorskip("jax")
    monkeypatch.setattr(Buckets, "exact", 0)

    def loss(prediction: Any, target: Any, lengths: Any) -> Any:
        error = prediction - target
        return (error * error).mean(), 2 * error / error.size

    rng = np.random.default_rng(0)
    model = prnn.Model(one_of("last"), "jax", dtype="float64")
    twin = model.to("numpy")
    host = rng.standard_normal((7, 5, 2)), rng.standard_normal((7, 2))
    data = [prnn.asarray(a, model.backend) for a in host]
    settings = {"loss": loss, "epochs": 1, "batch_size": 4, "progress": False}
    assert model.fit(*data, **settings).loss == pytest.approx(twin.fit(*host, **settings).loss, rel=1e-9)
    assert model.evaluate(*data) == pytest.approx(twin.evaluate(*host), rel=1e-9)


# ---------------------------------------------------------------------- it learns


def test_it_learns_to_remember_the_first_symbol() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (90, 8))
    lengths = rng.integers(1, 9, 90)
    network = prnn.Sequential(prnn.Embedding(3, 4), prnn.LSTM(4, 12), prnn.Last(), prnn.Linear(12, 3))
    model = prnn.Model(network, dtype="float64")
    settings = {"loss": "cross_entropy", "optimizer": prnn.adam(0.02), "batch_size": 15}
    history = model.fit(x, x[:, 0], lengths=lengths, epochs=60, progress=False, **settings)
    assert 0.9 < history.loss[0] < 1.3  # log(3) = 1.1 is a guess
    new = rng.integers(0, 3, (60, 8))
    ends = rng.integers(1, 9, 60)
    assert model.evaluate(new, new[:, 0], lengths=ends) < 0.05
    assert np.mean(np.argmax(model.predict(new, lengths=ends), axis=1) == new[:, 0]) == 1


def test_it_learns_a_running_mean_of_every_step() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 10, 1))
    y = np.cumsum(x, axis=1) / np.arange(1, 11)[:, None]
    model = prnn.Model(prnn.Sequential(prnn.GRU(1, 12), prnn.Linear(12, 1)), dtype="float64")
    before = model.evaluate(x, y)
    history = model.fit(
        x, y, optimizer=prnn.adam(prnn.cosine_decay(0.02, 320)), epochs=40, batch_size=8, clip_norm=1.0, progress=False
    )
    assert history.loss[-1] < 0.003 < 0.2 < before
    fresh = rng.standard_normal((32, 10, 1))
    assert model.evaluate(fresh, np.cumsum(fresh, axis=1) / np.arange(1, 11)[:, None]) < 0.006


def test_it_fits_on_every_library(backend: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((8, 3, 1))
    model = new_model(backend, prnn.Sequential(prnn.RNN(1, 4), prnn.Mean(), prnn.Linear(4, 1)))
    history = model.fit(
        *backend.array((x, x.mean(axis=1))), optimizer=prnn.adam(0.1), epochs=40, batch_size=8, progress=False
    )
    assert history.loss[-1] < 0.05 * history.loss[0]


# ---------------------------------------------------------------------- history, callbacks, early stopping


def line(value: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """One constant input, one constant target."""
    return np.ones((2, 1, 1)), np.full((2, 1, 1), value)


def line_model(start: float = 0.0) -> prnn.Model:
    model = prnn.Model(prnn.Linear(1, 1, bias=False), dtype="float64")
    model.params = {"weight": np.array([[start]])}
    return model


def weight(model: prnn.Model) -> float:
    return float(model.params["weight"][0, 0])


# The weight w goes from 0 towards 1, w <- w - 0.1 * 2 * (w - 1): 0.2, 0.36, 0.488, 0.59, 0.672, 0.738, ...
SETTINGS: dict[str, Any] = {"optimizer": prnn.sgd(0.1), "batch_size": 2, "progress": False}


def test_history_has_one_entry_for_everything(backend: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = backend.array((rng.standard_normal((5, 2, 1)), rng.standard_normal((5, 1))))
    model = new_model(backend, prnn.Sequential(prnn.RNN(1, 2), prnn.Last(), prnn.Linear(2, 1)))
    history = model.fit(x, y, epochs=3, batch_size=2, validation_data=(x, y), progress=False)
    assert len(history.loss) == len(history.val_loss) == len(history.seconds) == 3
    assert len(history.step_loss) == len(history.gradient_norm) == 9
    assert all(type(v) is float for v in history.loss + history.val_loss + history.step_loss + history.gradient_norm)
    assert all(s > 0 for s in history.seconds)
    assert history.stopped == ""
    # the third batch has one row
    expected = np.reshape(history.step_loss, (3, 3)) @ [0.4, 0.4, 0.2]
    np.testing.assert_allclose(history.loss, expected, rtol=1e-14)
    assert history.val_loss[-1] == model.evaluate(x, y)
    without = model.fit(x, y, epochs=1, batch_size=5, progress=False)
    assert without.val_loss == []


@st.composite
def _loss_cases(draw: st.DrawFn) -> tuple[str, str, tuple[int, int], list[int] | None, dict[str, Any], int]:
    kind = draw(st.sampled_from(["steps", "last", "rows"]))
    rows, steps = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    lengths = draw(st.none() | st.lists(st.integers(0, steps), min_size=rows, max_size=rows))
    settings: dict[str, Any] = {"batch_size": draw(st.integers(1, 8)), "shuffle": draw(st.booleans())}
    if kind == "steps":
        settings["tbptt"] = draw(st.none() | st.integers(1, 6))
    loss = draw(st.sampled_from(["mse", "mae", "huber", "cross_entropy", "binary_cross_entropy"]))
    return kind, loss, (rows, steps), None if kind == "rows" else lengths, settings, draw(st.integers(1, 8))


def test_the_loss_of_an_epoch_is_that_of_evaluate(numpy_backend: Any) -> None:
    """With a learning rate that changes nothing: batches, pieces and lengths of any size weigh as in `evaluate`."""

    @numpy_backend.for_all(_loss_cases())
    def check(case: Any) -> None:
        kind, loss, (rows, steps), lengths, settings, other = case
        rng = np.random.default_rng(rows)
        model = prnn.Model(one_of(kind, dropout=0.0), dtype="float64")
        x = rng.standard_normal((rows, 2) if kind == "rows" else (rows, steps, 2))
        leading = x.shape[:-1] if kind == "steps" else (rows,)
        y = rng.integers(0, 2, leading) if loss == "cross_entropy" else rng.random((*leading, 2))
        history = model.fit(
            x,
            y,
            lengths=lengths,
            loss=loss,
            optimizer=prnn.sgd(1e-300),
            epochs=1,
            progress=False,
            validation_data=(x, y, lengths),
            **settings,
        )
        expected = model.evaluate(x, y, lengths=lengths, batch_size=other)
        assert history.loss == pytest.approx([expected], rel=1e-12)
        assert history.val_loss == pytest.approx([expected], rel=1e-12)


def test_one_row_more_than_a_batch_weighs_as_one_row() -> None:
    """65 rows in batches of 64: the last row's error is large."""
    x = np.ones((65, 1))
    y = np.concatenate([np.zeros((64, 1)), np.full((1, 1), 101.0)])
    model = line_model(1.0)
    stopping = prnn.EarlyStopping(monitor="loss")
    settings = SETTINGS | {"batch_size": 64, "optimizer": prnn.sgd(1e-300)}
    history = model.fit(x, y, epochs=1, shuffle=False, callbacks=[stopping], **settings)
    assert history.step_loss == [1.0, 1e4]
    assert history.loss == pytest.approx([(64 + 1e4) / 65], rel=1e-14)
    assert stopping.best == history.loss[0] == pytest.approx(model.evaluate(x, y), rel=1e-14)


def test_recorded_losses_and_norms_are_those_before_the_update() -> None:
    model = line_model()
    history = model.fit(*line(), epochs=3, **SETTINGS)
    w = [0.0, 0.2, 0.36]
    np.testing.assert_allclose(history.step_loss, [(v - 1) ** 2 for v in w], rtol=1e-13)
    np.testing.assert_allclose(history.gradient_norm, [2 * (1 - v) for v in w], rtol=1e-13)
    assert weight(model) == pytest.approx(0.488, rel=1e-13)


def test_the_recorded_norm_is_that_before_clipping() -> None:
    model = line_model()
    history = model.fit(*line(), epochs=1, clip_norm=0.5, **SETTINGS)
    assert history.gradient_norm == [2.0]
    assert weight(model) == pytest.approx(0.05, rel=1e-13)


def test_early_stopping_gives_back_the_best_weights(backend: Any) -> None:
    model = new_model(backend, prnn.Linear(1, 1, bias=False))
    model.params = backend.array({"weight": np.array([[0.0]])})
    stopping = prnn.EarlyStopping(patience=2)
    history = model.fit(
        *backend.array(line()),
        epochs=20,
        validation_data=backend.array(line(0.5)),  # best at 0.488, after epoch 3
        callbacks=[stopping],
        **SETTINGS,
    )
    assert stopping.best_epoch == 3
    assert stopping.best == pytest.approx(0.012**2, rel=1e-9)
    assert len(history.val_loss) == len(history.loss) == 5
    assert history.stopped == "EarlyStopping"
    assert backend.numpy(model.params)["weight"][0, 0] == pytest.approx(0.488, rel=1e-12)
    assert model.evaluate(*backend.array(line(0.5))) == pytest.approx(min(history.val_loss), rel=1e-12)


def test_early_stopping_settings() -> None:
    def run(epochs: int = 20, **settings: Any) -> tuple[prnn.Model, prnn.History]:
        model = line_model()
        stopping = prnn.EarlyStopping(**settings)
        return model, model.fit(*line(), epochs=epochs, validation_data=line(0.5), callbacks=[stopping], **SETTINGS)

    model, history = run(patience=2, restore_best=False)
    assert len(history.loss) == 5
    assert weight(model) == pytest.approx(0.67232, rel=1e-12)
    model, history = run(patience=5)
    assert len(history.loss) == 8
    assert weight(model) == pytest.approx(0.488, rel=1e-12)
    # the epochs run out before the patience does: the best weights all the same
    model, history = run(epochs=4, patience=5)
    assert history.stopped == ""
    assert weight(model) == pytest.approx(0.488, rel=1e-12)
    # val_loss 0.09, 0.0196, 0.000144: the last gains less than 0.05, and so does every later one
    model, history = run(patience=1, min_delta=0.05)
    assert len(history.loss) == 3
    assert weight(model) == pytest.approx(0.36, rel=1e-12)
    # the training loss falls to the end
    model, history = run(patience=1, monitor="loss", epochs=6)
    assert len(history.loss) == 6
    assert weight(model) == pytest.approx(1 - 0.8**6, rel=1e-12)


def test_early_stopping_forgets_an_earlier_run() -> None:
    stopping = prnn.EarlyStopping(patience=2)
    line_model().fit(*line(), epochs=20, validation_data=line(0.36), callbacks=[stopping], **SETTINGS)
    assert stopping.best < 1e-20
    model = line_model()
    model.fit(*line(), epochs=20, validation_data=line(0.5), callbacks=[stopping], **SETTINGS)
    assert stopping.best_epoch == 3
    assert stopping.best > 1e-5
    assert weight(model) == pytest.approx(0.488, rel=1e-12)


def test_early_stopping_needs_something_to_watch() -> None:
    with pytest.raises(prnn.InputError, match="pass validation_data="):
        line_model().fit(*line(), callbacks=[prnn.EarlyStopping()], **SETTINGS)
    with pytest.raises(prnn.InputError, match="monitor: expected one of 'val_loss', 'loss', got 'accuracy'"):
        prnn.EarlyStopping(monitor="accuracy")
    for patience in (0, -1, "3", 1.5):
        with pytest.raises(prnn.InputError, match="patience: expected an integer of at least 1, got"):
            prnn.EarlyStopping(patience=patience)


def test_callbacks_see_every_epoch_and_stop_training() -> None:
    seen = []

    def enough(epoch: Any) -> bool:
        seen.append((epoch.number, weight(epoch.model), len(epoch.history.loss)))
        return epoch.number == 2

    model = line_model()
    history = model.fit(*line(), epochs=9, callbacks=[enough, lambda epoch: None], **SETTINGS)
    assert [(number, count) for number, _, count in seen] == [(1, 1), (2, 2)]
    assert [w for _, w, _ in seen] == pytest.approx([0.2, 0.36], rel=1e-13)
    assert history.stopped == "enough"
    assert len(history.loss) == 2
    assert weight(model) == pytest.approx(0.36, rel=1e-13)


def test_callbacks_with_a_start_and_a_finish() -> None:
    events = []

    class Recorder:
        def start(self, model: Any) -> None:
            events.append(("start", weight(model)))

        def __call__(self, epoch: Any) -> None:
            events.append(("epoch", epoch.number))

        def finish(self, model: Any) -> None:
            events.append(("finish", weight(model)))

    line_model().fit(*line(), epochs=2, callbacks=(Recorder(),), **SETTINGS)
    assert events == [("start", 0.0), ("epoch", 1), ("epoch", 2), ("finish", pytest.approx(0.36, rel=1e-13))]


# ---------------------------------------------------------------------- progress


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    line_model().fit(*line(), epochs=3, validation_data=line(0.5), **SETTINGS | {"progress": True})
    captured = capsys.readouterr()
    last = captured.err.split("\r")[-1]
    assert captured.out == ""
    assert "3/3" in last
    assert "loss 0.4096" in last  # (1 - 0.36)**2
    assert "val_loss 0.000144" in last
    assert re.search(r"\d\d:\d\d<\d\d:\d\d, .*(step/s|s/step)", last)


def test_progress_without_tqdm_is_a_line_an_epoch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    line_model().fit(*line(), epochs=3, validation_data=line(0.5), **SETTINGS | {"progress": True})
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 3
    assert re.fullmatch(r"epoch 1/3: loss 1, val_loss 0.09, \d+ s left", lines[0])
    assert lines[2] == "epoch 3/3: loss 0.4096, val_loss 0.000144, 0 s left"


def test_no_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    line_model().fit(*line(), epochs=3, **SETTINGS)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


# ---------------------------------------------------------------------- losses that turn NaN


def finite(model: prnn.Model) -> bool:
    return all(np.all(np.isfinite(p)) for p in on_numpy(model.params).values())


@pytest.mark.parametrize("library", ["numpy", "torch", "array_api_strict"])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_loss_that_turns_nan_keeps_the_last_good_weights(library: str, rows: int) -> None:
    """NaN from the third update on: within an epoch (a row at a time), and with an update an epoch."""
    module = pytest.importorskip(library)
    calls = 0

    def breaks(prediction: Any, target: Any, lengths: Any) -> Any:
        nonlocal calls
        calls += 1
        value, gradient = prnn.losses.mse(prediction, target, lengths)
        return (value * float("nan") if calls >= 3 else value), gradient

    rng = np.random.default_rng(0)
    network = prnn.Sequential(prnn.RNN(1, 2), prnn.Linear(2, 1))
    model = prnn.Model(network, prnn.backend(module, dtype="float64"))
    x, y = (prnn.asarray(rng.standard_normal((4, 3, 1)), model.backend) for _ in range(2))
    settings = {"batch_size": rows, "optimizer": prnn.sgd(0.1), "shuffle": False, "progress": False}
    expected = prnn.Model(network, model.backend)
    expected.fit(x[:rows, ...], y[:rows, ...], epochs=1, **settings)
    with pytest.raises(prnn.NonFiniteError, match="the loss is nan at step 3, first in the loss; training") as caught:
        model.fit(x, y, loss=breaks, epochs=6, **settings)
    assert caught.value.step == 3
    assert caught.value.layer == "the loss"
    assert "\n" not in str(caught.value)
    # the loss of update 2 was the last that was finite: of the weights after update 1
    assert_identical(model.params, expected.params)


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_a_huge_target_is_found_in_the_loss(library: str) -> None:
    pytest.importorskip(library)
    rng = np.random.default_rng(0)
    network = prnn.Sequential(prnn.LSTM(1, 2), prnn.Linear(2, 1))
    model = prnn.Model(network, library, dtype="float64")
    x, y = rng.standard_normal((2, 8, 3, 1))
    y[5, 1, 0] = 1e200  # in the third batch; its square is infinite
    settings = {"batch_size": 2, "shuffle": False, "progress": False}
    expected = prnn.Model(network, model.backend)
    expected.fit(*(prnn.asarray(a[:2], model.backend) for a in (x, y)), epochs=1, **settings)
    with pytest.raises(prnn.NonFiniteError, match="the loss is inf at step 3, first in the loss") as caught:
        model.fit(*(prnn.asarray(a, model.backend) for a in (x, y)), epochs=3, **settings)
    assert (caught.value.step, caught.value.layer) == (3, "the loss")
    assert_close(model.params, expected.params, 1e-12)
    assert finite(model)


@pytest.mark.parametrize(("library", "rows"), [("numpy", 2), ("numpy", 4), ("torch", 2), ("torch", 4), ("jax", 4)])
def test_weights_that_explode_are_taken_back(library: str, rows: int) -> None:
    """The first update makes weights of 1e307, on which the second loss is not finite."""
    pytest.importorskip(library)
    rng = np.random.default_rng(0)
    network = prnn.Sequential(prnn.RNN(1, 2), prnn.Linear(2, 2), prnn.Linear(2, 1))
    model = prnn.Model(network, library, dtype="float64")
    before = on_numpy(model.params)
    x, y = (prnn.asarray(rng.standard_normal((4, 3, 1)), model.backend) for _ in range(2))
    settings = {"batch_size": rows, "epochs": 4, "progress": False}
    with pytest.raises(prnn.NonFiniteError, match="at step 2, first in layer 2") as caught:
        model.fit(x, y, optimizer=prnn.sgd(1e307), **settings)
    assert (caught.value.step, caught.value.layer) == (2, "layer 2 (Linear), output")
    assert_identical(model.params, before)
    assert_identical(caught.value.good_params, before)
    model.fit(x, y, optimizer=prnn.sgd(0.01), **settings)  # and training can go on
    assert finite(model)


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_a_gradient_that_explodes_is_found_in_its_layer(library: str) -> None:
    """h stays 0, but the bias sees 10**k from k steps away."""
    pytest.importorskip(library)
    network = prnn.Sequential(prnn.RNN(1, 1, nonlinearity="identity"), prnn.Last(), prnn.Linear(1, 1))
    model = prnn.Model(network, library, dtype="float64")
    start = {name: np.zeros(shape) for name, shape in network.parameter_shapes().items()}
    start |= {"0.weight_hh_l0": np.array([[10.0]]), "2.weight": np.ones((1, 1))}
    model.params = {name: prnn.asarray(p, model.backend) for name, p in start.items()}
    x, y = (prnn.asarray(a, model.backend) for a in (np.zeros((2, 320, 1)), np.ones((2, 1))))
    with pytest.raises(prnn.NonFiniteError, match=r"the gradient is (inf|nan) at step 1, first in layer 0") as caught:
        model.fit(x, y, epochs=2, clip_norm=1.0, progress=False)
    assert (caught.value.step, caught.value.layer) == (1, "layer 0 (RNN), gradient")
    assert_identical(model.params, start)


def test_a_gradient_whose_norm_overflows_is_found_in_its_layer() -> None:
    """Every entry is finite, the square of the largest is not."""
    network = prnn.Sequential(prnn.Linear(1, 1, bias=False), prnn.Linear(1, 1, bias=False))
    model = prnn.Model(network, dtype="float64")
    model.params = {"0.weight": np.array([[1e-200]]), "1.weight": np.array([[1e-3]])}
    start = on_numpy(model.params)
    with pytest.raises(prnn.NonFiniteError, match=r"the gradient is inf at step 1, first in layer 0 \(Linear\)"):
        model.fit(np.full((1, 1), 1e200), np.zeros((1, 1)), loss="mae", epochs=1, progress=False)
    assert_identical(model.params, start)


def test_nan_weights_are_named() -> None:
    model = prnn.Model(prnn.Sequential(prnn.RNN(1, 2), prnn.Linear(2, 1)), dtype="float64")
    model.params["1.weight"] = model.params["1.weight"] * np.nan
    with pytest.raises(prnn.NonFiniteError, match=r"layer 1 \(Linear\), parameter '1.weight'"):
        model.fit(np.ones((2, 3, 1)), np.ones((2, 3, 1)), epochs=1, progress=False)
