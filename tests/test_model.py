"""`Model`: gradients, evaluation, prediction, streams, moves between libraries, and its file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import portable_rnn as prnn
from portable_rnn.layers import wrappers as composite
from portable_rnn.layers.registry import LIBRARY
from portable_rnn.models import checkpoint, network_from_config, network_to_config


def new_model(backend: Any, network: prnn.Layer, *, dtype: str = "float64", seed: int = 0) -> prnn.Model:
    """A model on the backend; its parameters refuse writes where the backend's arrays do."""
    model = prnn.Model(network, backend.target, dtype=dtype, seed=seed)
    if backend.entry.read_only:
        model.params = backend.array(model.params)
    return model


def on_numpy(params: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: prnn.to_numpy(params[name]) for name in sorted(params)}


def assert_identical(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every parameter equal to the last bit, and of the same dtype."""
    got, expected = on_numpy(got), on_numpy(expected)
    np.testing.assert_equal(got, expected)
    assert {k: p.dtype for k, p in got.items()} == {k: p.dtype for k, p in expected.items()}


LENGTHS = [3, 0, 4, 1, 2]
RNG = np.random.default_rng(8)
X = RNG.standard_normal((5, 4, 2))
STEPS = RNG.standard_normal((5, 4, 3))  # targets for every step
ROWS = RNG.standard_normal((5, 3))  # targets for the last
PER_STEP = prnn.Sequential(prnn.GRU(2, 3, bidirectional=True, recurrent_dropout=0.3), prnn.Linear(6, 3))
LAST_STEP = prnn.Sequential(prnn.LSTM(2, 3, dropout=0.0), prnn.Dropout(0.5), prnn.Last(), prnn.Linear(3, 3))
NETWORKS = {"per-step": (PER_STEP, STEPS), "last-step": (LAST_STEP, ROWS)}


def mean_squared(prediction: np.ndarray, target: np.ndarray, lengths: list[int] | None) -> float:
    """The loss by its definition: over the steps that count."""
    if lengths is not None and prediction.ndim == 3:
        prediction = np.concatenate([p[:end] for p, end in zip(prediction, lengths, strict=True)])
        target = np.concatenate([t[:end] for t, end in zip(target, lengths, strict=True)])
    return float(np.mean((prediction - target) ** 2))


# ---------------------------------------------------------------------- loss_and_grad


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_grad_is_the_layers_vjp(backend: Any, name: str, lengths: Any) -> None:
    network, target = NETWORKS[name]
    model = new_model(backend, network)
    loss, grads = model.loss_and_grad(*backend.array((X, target)), lengths=lengths)
    params = on_numpy(model.params)
    prediction, _, pullback = network.vjp(params, X, lengths=lengths)
    assert float(backend.numpy(loss)) == pytest.approx(mean_squared(prediction, target, lengths), rel=1e-12)
    if name == "per-step" and lengths is not None:
        counts = (np.arange(4) < np.array(lengths)[:, None])[:, :, None]
        cotangent = 2 * (prediction - target) * counts / (3 * sum(lengths))
    else:
        cotangent = 2 * (prediction - target) / target.size
    expected, _, _ = pullback(cotangent)
    for key, gradient in backend.numpy(grads).items():
        np.testing.assert_allclose(gradient, expected[key], rtol=1e-10, atol=1e-13, err_msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_grad_matches_finite_differences(backend: Any, name: str) -> None:
    network, target = NETWORKS[name]
    model = new_model(backend, network)
    x, y = backend.array((X, target))
    grads = backend.numpy(model.loss_and_grad(x, y, lengths=LENGTHS, loss="huber")[1])
    rng = np.random.default_rng(0)
    start = on_numpy(model.params)
    for along in (grads, {key: rng.standard_normal(g.shape) for key, g in grads.items()}):
        norm = np.sqrt(sum(np.sum(g**2) for g in along.values()))
        ends = []
        for sign in (1, -1):
            model.params = backend.array({k: p + sign * 1e-5 * along[k] / norm for k, p in start.items()})
            ends.append(float(backend.numpy(model.loss_and_grad(x, y, lengths=LENGTHS, loss="huber")[0])))
        measured = (ends[0] - ends[1]) / 2e-5
        derived = sum(np.sum(g * along[k]) for k, g in grads.items()) / norm
        size = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        assert abs(measured - derived) < 1e-6 * size


# ---------------------------------------------------------------------- evaluate and predict


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluate_is_the_loss_over_everything(backend: Any, name: str, lengths: Any) -> None:
    network, target = NETWORKS[name]
    model = new_model(backend, network)
    x, y = backend.array((X, target))
    expected = mean_squared(network.apply(on_numpy(model.params), X, lengths=lengths)[0], target, lengths)
    for batch_size in (1, 2, 3, 5, 99):
        loss = model.evaluate(x, y, lengths=lengths, batch_size=batch_size)
        assert type(loss) is float
        assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_predict_in_batches_is_predict(backend: Any, name: str) -> None:
    network, _ = NETWORKS[name]
    model = new_model(backend, network)
    (x,) = backend.array((X,))
    expected = network.apply(on_numpy(model.params), X, lengths=LENGTHS)[0]
    for batch_size in (None, 1, 2, 5, 99):
        y = backend.numpy(model.predict(x, lengths=LENGTHS, batch_size=batch_size))
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)


def test_predict_drops_nothing(backend: Any) -> None:
    model = new_model(backend, LAST_STEP)
    (x,) = backend.array((X,))
    np.testing.assert_array_equal(backend.numpy(model.predict(x)), backend.numpy(model.predict(x)))


def test_rows_without_a_time_axis(backend: Any) -> None:
    """(N, F) through layers that need no time axis; more outputs than inputs."""
    network = prnn.Sequential(prnn.Linear(2, 5), prnn.Dropout(0.2), prnn.Linear(5, 4))
    model = new_model(backend, network)
    x, y = backend.array((X[:, 0], STEPS[:, :, 0]))
    prediction = backend.numpy(model.predict(x, batch_size=2))
    np.testing.assert_allclose(prediction, network.apply(on_numpy(model.params), X[:, 0])[0], atol=1e-14)
    assert prediction.shape == (5, 4)
    before = model.evaluate(x, y)
    model.fit(x, y, epochs=5, batch_size=5, optimizer=prnn.adam(0.02), progress=False)
    assert model.evaluate(x, y) < before
    assert model.evaluate(x, y) == pytest.approx(
        mean_squared(backend.numpy(model.predict(x)), backend.numpy(y), None), rel=1e-12
    )


def test_resets_reach_every_method(backend: Any) -> None:
    """Two sequences in one row are two rows."""
    network = prnn.Sequential(prnn.GRU(2, 3), prnn.Linear(3, 3))
    resets = np.zeros((2, 4), dtype=bool)
    resets[:, 2] = True
    rows = {"x": X[:4, :2], "y": STEPS[:4, :2]}
    joined = {k: v.reshape(2, 4, -1) for k, v in rows.items()}
    model = new_model(backend, network)
    whole = backend.array((joined["x"], joined["y"]))
    parts = backend.array((rows["x"], rows["y"]))
    (marks,) = backend.array((resets,))
    got = backend.numpy(model.predict(whole[0], resets=marks, batch_size=1))
    np.testing.assert_allclose(got.reshape(4, 2, 3), backend.numpy(model.predict(parts[0])), atol=1e-14)
    assert model.evaluate(*whole, resets=marks) == pytest.approx(model.evaluate(*parts), rel=1e-12)
    assert model.evaluate(*whole) != pytest.approx(model.evaluate(*parts), rel=1e-6)
    (_, a), (_, b) = model.loss_and_grad(*whole, resets=marks), model.loss_and_grad(*parts)
    twin = model.to(backend.target)
    settings = {"epochs": 2, "progress": False, "optimizer": prnn.sgd(0.1)}
    model.fit(*whole, resets=marks, batch_size=2, **settings)
    twin.fit(*parts, batch_size=4, **settings)
    for key in a:
        np.testing.assert_allclose(backend.numpy(a[key]), backend.numpy(b[key]), atol=1e-13)
        np.testing.assert_allclose(backend.numpy(model.params[key]), backend.numpy(twin.params[key]), atol=1e-12)


# ---------------------------------------------------------------------- lists of sequences


@pytest.mark.parametrize("name", NETWORKS)
def test_a_list_of_sequences_is_a_padded_batch_with_lengths(backend: Any, name: str) -> None:
    network, target = NETWORKS[name]
    sequences = backend.array([row[:end] for row, end in zip(X, LENGTHS, strict=True)])
    x, y = backend.array((X, target))
    model = new_model(backend, network)
    np.testing.assert_array_equal(
        backend.numpy(model.predict(sequences)), backend.numpy(model.predict(x, lengths=LENGTHS))
    )
    assert model.evaluate(sequences, y) == model.evaluate(x, y, lengths=LENGTHS)
    by_list, padded = model.loss_and_grad(sequences, y), model.loss_and_grad(x, y, lengths=LENGTHS)
    np.testing.assert_equal(backend.numpy(by_list), backend.numpy(padded))
    twin = model.to(backend.target)
    settings = {"epochs": 2, "batch_size": 2, "progress": False}
    one = model.fit(sequences, y, validation_data=(sequences, y), **settings)
    two = twin.fit(x, y, lengths=LENGTHS, validation_data=(x, y, LENGTHS), **settings)
    assert one.step_loss == two.step_loss
    assert one.val_loss == two.val_loss
    assert_identical(model.params, twin.params)


# ---------------------------------------------------------------------- one step at a time


@pytest.mark.parametrize("name", ["embedding", "last", "cells"])
def test_step_by_step_is_the_whole_call(backend: Any, name: str) -> None:
    network = {
        "embedding": prnn.Sequential(
            prnn.Embedding(6, 3), prnn.LSTM(3, 4, num_layers=2), prnn.Dropout(0.3), prnn.Linear(4, 2)
        ),
        "last": prnn.Sequential(prnn.GRU(2, 3), prnn.Last(), prnn.Linear(3, 2)),
        "cells": prnn.Sequential(
            prnn.Linear(2, 3), prnn.Sequential(prnn.RNN(3, 2), prnn.LSTM(2, 3, proj_size=2)), prnn.GRU(2, 2)
        ),
    }[name]
    x = np.random.default_rng(1).integers(0, 6, (3, 5)) if name == "embedding" else X[:3]
    model = new_model(backend, network)
    state = None
    for t in range(x.shape[1]):
        y, state = model.step(*backend.array((x[:, t],)), state)
        whole, final = network.apply(on_numpy(model.params), x[:, : t + 1])
        expected = whole if name == "last" else whole[:, -1]
        np.testing.assert_allclose(backend.numpy(y), expected, rtol=0, atol=1e-14)
    np.testing.assert_equal(json.dumps(shapes(backend.numpy(state))), json.dumps(shapes(final)))


def shapes(state: Any) -> Any:
    """The structure of a state."""
    if state is None:
        return None
    return [shapes(part) for part in state] if isinstance(state, (tuple, list)) else list(state.shape)


def test_steps_give_back_the_final_state(backend: Any) -> None:
    network = prnn.LSTM(2, 3)
    model = new_model(backend, network)
    state = None
    for t in range(4):
        _, state = model.step(*backend.array((X[:, t],)), state)
    _, (h, c) = network.apply(on_numpy(model.params), X)
    np.testing.assert_allclose(backend.numpy(state)[0], h, atol=1e-14)
    np.testing.assert_allclose(backend.numpy(state)[1], c, atol=1e-14)


@pytest.mark.parametrize(
    "layer",
    [
        prnn.RNN(2, 3, bidirectional=True),
        prnn.GRU(2, 3, reverse=True),
        prnn.Sequential(prnn.LSTM(2, 3), prnn.Mean()),
        prnn.Sequential(prnn.Sequential(prnn.LSTM(2, 3)), prnn.Max()),
    ],
    ids=repr,
)
def test_what_needs_the_whole_sequence_has_no_step(layer: prnn.Layer) -> None:
    with pytest.raises(prnn.InputError, match="it can't run step by step"):
        prnn.Model(layer, dtype="float64").step(X[:, 0])


# ---------------------------------------------------------------------- to


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moving_a_model_keeps_every_bit(backend: Any, dtype: str) -> None:
    source = prnn.Model(PER_STEP, "numpy", dtype=dtype, seed=9)
    source.metadata["about"] = "a test"
    source.fit(X.astype(dtype), STEPS.astype(dtype), loss="mae", epochs=1, progress=False)
    there = source.to(backend.target.xp if backend.entry.device is None else backend.target, dtype=dtype)
    assert there.backend.xp is backend.target.xp
    assert there.backend.dtype_name == dtype
    backend.numpy(there.params)  # checks library and device
    back = there.to("numpy")
    assert_identical(back.params, source.params)
    assert back.metadata == {"about": "a test"}
    assert back.seed == 9
    assert back.loss is source.loss
    assert back.evaluate(X.astype(dtype), STEPS.astype(dtype)) == source.evaluate(X.astype(dtype), STEPS.astype(dtype))


def test_moving_to_another_dtype() -> None:
    source = prnn.Model(PER_STEP, "numpy", dtype="float64")
    narrow = source.to("numpy", dtype="float32")
    assert {p.dtype.name for p in narrow.params.values()} == {"float32"}
    assert_identical(narrow.params, {k: p.astype("float32") for k, p in source.params.items()})
    assert narrow.to(prnn.backend("numpy", dtype="float64")).backend.dtype_name == "float64"


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_moved_model_is_a_copy(library: str) -> None:
    """Writing into one model's arrays must not reach the other's."""
    pytest.importorskip(library)
    source = prnn.Model(PER_STEP, library, dtype="float64")
    kept = {name: p.copy() for name, p in on_numpy(source.params).items()}
    for other in ("numpy", library):
        moved = source.to(other)
        for p in moved.params.values():
            p[...] = 7.0
        moved.metadata["about"] = "changed"
        assert_identical(source.params, kept)
        assert source.metadata == {}


# ---------------------------------------------------------------------- save and load

EVERY_LAYER: dict[str, prnn.Layer] = {
    "RNN": prnn.RNN(2, 3, 2, nonlinearity="relu", bias=False, bidirectional=True, dropout=0.1, clip=2.0),
    "LSTM": prnn.LSTM(2, 3, recurrent_dropout=0.2, proj_size=2, peepholes=True, zoneout=0.1),
    "GRU": prnn.GRU(2, 3, reset_after=False, reverse=True, recompute_every=2),
    "LayerNormLSTM": prnn.LayerNormLSTM(2, 3),
    "LayerNormGRU": prnn.LayerNormGRU(2, 3),
    "MinGRU": prnn.MinGRU(2, 3),
    "MinLSTM": prnn.MinLSTM(2, 3),
    "Recurrent": prnn.Recurrent(prnn.cells.GRUCell(reset_after=False), 2, 3, bias=False),
    "Linear": prnn.Linear(2, 3, bias=False),
    "Embedding": prnn.Embedding(5, 3),
    "Last": prnn.Last(),
    "Mean": prnn.Mean(),
    "Max": prnn.Max(),
    "Dropout": prnn.Dropout(0.25),
    "Activation": composite.Activation("relu"),
    "Softmax": composite.Softmax(log=True),
    "SharedDropout": composite.SharedDropout(0.25),
    "Flip": composite.Flip(),
    "Ends": composite.Ends(),
    "Merge": composite.Merge("mul"),
    "Masked": composite.Masked(prnn.GRU(2, 3), value=-1.0),
    "Sequential": prnn.Sequential(
        prnn.Embedding(5, 2),
        prnn.Sequential(prnn.GRU(2, 3), prnn.Sequential(prnn.Dropout(0.5), prnn.LSTM(3, 4, peepholes=True))),
        prnn.Last(),
        prnn.Linear(4, 2),
    ),
}


def test_every_kind_of_layer_has_an_example() -> None:
    assert EVERY_LAYER.keys() == {name for name, cls in LIBRARY.items() if issubclass(cls, prnn.Layer)}


@pytest.mark.parametrize("name", EVERY_LAYER)
def test_every_layer_can_be_described(name: str) -> None:
    layer = EVERY_LAYER[name]
    described = json.loads(json.dumps(network_to_config(layer)))
    assert described["type"] == name
    assert network_from_config(described) == layer
    changed = {f.name for f in dataclasses.fields(layer) if getattr(layer, f.name) != f.default}
    assert changed <= described.keys()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_save_and_load(backend: Any, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for name, layer in EVERY_LAYER.items():
        model = new_model(backend, layer, dtype=dtype, seed=4)
        model.metadata = {"window": "24", "name": "Sääsk 🦟"}
        model.loss = prnn.losses.mae
        model.save(path)
        loaded = prnn.load(path, backend.target, dtype=dtype)
        assert loaded.network == layer, name
        assert_identical(loaded.params, model.params)
        backend.numpy(loaded.params)  # checks library and device
        assert loaded.backend.dtype_name == dtype
        assert loaded.metadata == model.metadata
        assert loaded.loss is prnn.losses.mae
        assert prnn.load(path).backend == prnn.backend("numpy", dtype=dtype if model.params else "float32")


def test_a_loaded_model_goes_on(backend: Any, tmp_path: Path) -> None:
    model = new_model(backend, LAST_STEP)
    x, y = backend.array((X, ROWS))
    model.fit(x, y, epochs=1, progress=False)
    model.save(tmp_path / "model")
    loaded = prnn.load(tmp_path / "model", backend.target)
    np.testing.assert_array_equal(backend.numpy(loaded.predict(x)), backend.numpy(model.predict(x)))
    settings = {"epochs": 2, "batch_size": 5, "progress": False, "seed": 1}
    assert loaded.fit(x, y, **settings).loss == model.fit(x, y, **settings).loss


def test_the_passport_says_what_the_arrays_mean(tmp_path: Path) -> None:
    model = prnn.Model(prnn.Sequential(prnn.LSTM(2, 3), prnn.GRU(3, 2), prnn.GRU(2, 2, reset_after=False)), seed=0)
    model.metadata["about"] = "weather"
    model.loss = prnn.losses.huber()
    model.save(tmp_path / "model")
    with safetensors.safe_open(tmp_path / "model", framework="numpy") as file:
        passport = file.metadata()
    assert passport["format"] == "portable_rnn"
    assert passport["format_version"] == checkpoint.FORMAT_VERSION
    assert passport["library_version"] == prnn.__version__
    assert json.loads(passport["network"])["layers"][1]["reset_after"] is True
    orders = json.loads(passport["gate_order"])
    assert (orders["LSTM"], orders["GRU"]) == ("i f g o", "r z n")
    assert passport["gru_variant"] == "reset_after (torch, cuDNN, Keras 3), reset_before (Cho et al. 2014)"
    assert "bias_ih and bias_hh" in passport["bias_convention"]
    assert "torch" in passport["array_layout"]
    assert passport["loss"] == "huber"
    assert passport["user.about"] == "weather"


def test_a_loss_of_ones_own_is_not_saved(tmp_path: Path) -> None:
    model = prnn.Model(prnn.Linear(1, 1))
    model.loss = lambda p, t, n: (p, p)
    model.save(tmp_path / "model")
    assert prnn.load(tmp_path / "model").loss is prnn.losses.mse


def test_numpy_reads_the_file_as_a_plain_dict(tmp_path: Path) -> None:
    model = prnn.Model(PER_STEP, seed=1)
    model.save(tmp_path / "model")
    assert_identical(safetensors.numpy.load_file(tmp_path / "model"), model.params)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (prnn.LSTM(2, 3, 2, bidirectional=True), {"num_layers": 2, "bidirectional": True}),
        (prnn.LSTM(2, 4, proj_size=3), {"proj_size": 3}),
        (prnn.GRU(2, 3, bias=False), {"bias": False}),
        (prnn.RNN(2, 3, nonlinearity="relu"), {"nonlinearity": "relu"}),
    ],
    ids=repr,
)
def test_the_file_is_a_state_dict_of_torchs_own_module(backend: Any, layer: Any, options: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    model = new_model(backend, layer, seed=2)
    model.save(tmp_path / "model")
    peer = getattr(torch.nn, type(layer).__name__)
    module = peer(layer.input_size, layer.hidden_size, batch_first=True, dtype=torch.float64, **options)
    module.load_state_dict(load_file(tmp_path / "model"), strict=True)
    with torch.no_grad():
        expected = module(torch.asarray(X.copy()))[0].numpy()
    (x,) = backend.array((X,))
    np.testing.assert_allclose(backend.numpy(model.predict(x)), expected, rtol=0, atol=1e-12)


def test_a_whole_network_has_torchs_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    network = prnn.Sequential(
        prnn.Embedding(5, 2), prnn.GRU(2, 3), prnn.Sequential(prnn.Dropout(0.1), prnn.Linear(3, 2))
    )
    prnn.Model(network).save(tmp_path / "model")
    modules = torch.nn.Sequential(
        torch.nn.Embedding(5, 2),
        torch.nn.GRU(2, 3, batch_first=True),
        torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(3, 2)),
    )
    modules.load_state_dict(load_file(tmp_path / "model"), strict=True)


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    prnn.Model(prnn.RNN(1, 2)).save(path)
    model = prnn.Model(prnn.GRU(1, 4), seed=1)
    model.save(str(path))
    assert_identical(prnn.load(path).params, model.params)
    assert os.listdir(tmp_path) == ["model"]


# ---------------------------------------------------------------------- files that are no models


def message_of(path: Path) -> str:
    """The error of loading a file: an InputError in one line that names the file."""
    with pytest.raises(prnn.InputError) as caught:
        prnn.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    prnn.Model(prnn.Sequential(prnn.GRU(2, 3), prnn.Linear(3, 1))).save(path)
    return path


def rewritten(path: Path, change: Any) -> Path:
    """The file with its parameters and passport changed by `change(params, passport)`."""
    params = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        passport = dict(file.metadata())
    change(params, passport)
    safetensors.numpy.save_file(params, path, passport)
    return path


def test_a_file_cut_short_anywhere(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in [*range(0, len(whole), 50), *range(1, 10), len(whole) - 1]:
        saved.write_bytes(whole[:size])
        assert "not a whole safetensors file" in message_of(saved)
    saved.write_bytes(whole)
    prnn.load(saved)


def test_a_file_with_something_behind_it(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert "not a whole safetensors file" in message_of(saved)


def test_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for seed in range(20):
        path.write_bytes(np.random.default_rng(seed).bytes(200 * seed))
        assert "not a whole safetensors file" in message_of(path)
    path.write_text("not a model\n")
    assert "not a whole safetensors file" in message_of(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "no model file at" in message_of(tmp_path / "missing")
    assert "no model file at" in message_of(tmp_path)


def test_a_safetensors_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model"
    safetensors.numpy.save_file({"weight": np.ones((2, 3))}, path)
    assert "not a portable_rnn model: expected metadata format='portable_rnn', got None" in message_of(path)
    safetensors.numpy.save_file({"weight": np.ones((2, 3))}, path, {"format": "pt"})
    assert "got 'pt'" in message_of(path)


@pytest.mark.parametrize("version", ["2.0", "10.3", "", "one", "²"])
def test_a_newer_format(saved: Path, version: str) -> None:
    rewritten(saved, lambda params, passport: passport.update(format_version=version))
    assert f"format version {version!r}, this portable_rnn reads up to 1.0: upgrade" in message_of(saved)


def test_a_later_minor_format_is_read(saved: Path) -> None:
    before = prnn.load(saved).params
    rewritten(saved, lambda params, passport: passport.update(format_version="1.9", something="new"))
    assert_identical(prnn.load(saved).params, before)


def test_parameters_that_do_not_fit(saved: Path) -> None:
    whole = saved.read_bytes()

    def after(change: Any) -> str:
        saved.write_bytes(whole)
        return message_of(rewritten(saved, change))

    assert "missing 1.bias; unexpected none" in after(lambda params, _: params.pop("1.bias"))
    assert "missing none; unexpected extra" in after(lambda params, _: params.update(extra=np.ones(1, "float32")))
    message = after(lambda params, _: params.update({"1.bias": np.ones(2, "float32")}))
    assert "'1.bias' must have shape (1,), got (2,)" in message
    for dtype in ("int64", "float16", "complex64"):
        message = after(lambda params, _, dtype=dtype: params.update({"1.bias": np.ones(1, dtype)}))
        assert "1.bias" in message
        assert dtype in message


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ('{"type": "Transformer", "layers": 12}', "unknown layer 'Transformer'"),
        ('{"type": ["GRU"]}', "unknown layer ['GRU']"),
        ('{"type": "Sequential", "layers": [{"type": "Lost"}]}', "unknown layer 'Lost'"),
        ('{"type": "Sequential", "layers": 3}', "network.layers: expected a list, got 3"),
        ('{"type": "Sequential", "layers": []}', "at least one layer"),
        ('{"type": "GRU", "input_size": 2}', "network: expected a field 'hidden_size'"),
        ('{"type": "GRU", "input_size": 2, "hidden_size": 3, "future": 1}', "got unknown field 'future'"),
        ('{"type": "GRU", "input_size": 2, "hidden_size": "3"}', "hidden_size: expected an integer"),
        ('{"type": "RNN", "input_size": 2, "hidden_size": 3, "nonlinearity": "swish"}', "swish"),
        (
            '{"type": "RNN", "input_size": 2, "hidden_size": 3, "nonlinearity": ["tanh"]}',
            "nonlinearity: expected a string",
        ),
        ('{"type": "Masked", "value": 1.0}', "network: expected a field 'layer'"),
        ("[1, 2]", "unknown layer [1, 2]"),
        ("not json", "no readable description"),
        ("[" * 100_000, "no readable description"),
    ],
)
def test_a_network_that_is_not_known(saved: Path, network: str, expected: str) -> None:
    rewritten(saved, lambda params, passport: passport.update(network=network))
    assert expected in message_of(saved)


def test_a_loss_that_is_not_known(saved: Path) -> None:
    rewritten(saved, lambda params, passport: passport.update(loss="focal"))
    assert "unknown loss 'focal'" in message_of(saved)


def test_a_passport_without_a_network(saved: Path) -> None:
    rewritten(saved, lambda params, passport: passport.pop("network"))
    assert "no readable description of its network" in message_of(saved)


# ---------------------------------------------------------------------- writing that fails


class DiskFullError(OSError):
    def __init__(self) -> None:
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize("function", ["replace", "fsync", "fchmod", "open"])
@pytest.mark.parametrize("error", [DiskFullError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: Any
) -> None:
    before = saved.read_bytes()
    model = prnn.Model(prnn.LSTM(4, 5))

    def fails(*args: Any, **settings: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fails)
        if error is DiskFullError:
            with pytest.raises(prnn.InputError, match=r"can't write .*model.safetensors': No space left on device"):
                model.save(saved)
        else:
            with pytest.raises(KeyboardInterrupt):
                model.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    model.save(saved)
    assert prnn.load(saved).network == model.network


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prnn.Model(prnn.RNN(1, 1))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "model", tmp_path / "file" / "model", tmp_path / "folder"):
        with pytest.raises(prnn.InputError, match="can't write") as caught:
            model.save(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def refuses(*args: Any, **settings: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuses)
    with pytest.raises(prnn.InputError, match=r"can't write .*: Permission denied"):
        model.save(tmp_path / "model")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_metadata_is_text(saved: Path) -> None:
    before = saved.read_bytes()
    model = prnn.Model(prnn.RNN(1, 1))
    model.metadata["window"] = 24  # type: ignore[assignment]
    with pytest.raises(prnn.InputError, match="metadata must be texts by text, got 24 for 'window'"):
        model.save(saved)
    assert saved.read_bytes() == before


def test_a_layer_of_ones_own_cannot_be_saved(tmp_path: Path) -> None:
    class Own(prnn.RNN):
        pass

    with pytest.raises(prnn.InputError, match=r"got a Own: call prnn.register\(Own\) before"):
        prnn.Model(Own(1, 2)).save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_a_network_is_a_layer() -> None:
    for network in ("GRU", None, prnn.GRU, [prnn.GRU(1, 2)]):
        with pytest.raises(prnn.InputError, match="network must be a layer such as"):
            prnn.Model(network)  # type: ignore[arg-type]


def test_a_model_shows_what_it_is() -> None:
    text = repr(prnn.Model(prnn.Sequential(prnn.GRU(1, 8), prnn.Linear(8, 1))))
    assert text == "Model(Sequential(GRU(1, 8), Linear(8, 1)), numpy float32 on cpu, 273 parameters)"
