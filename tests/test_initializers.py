"""Initial weights: exact properties, statistics, Keras's own, and the numbers that a seed has always given."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import portable_rnn as prnn
from portable_rnn.layers import initializers

FLOAT64 = prnn.backend("numpy", dtype="float64")
RECURRENT = (prnn.RNN, prnn.LSTM, prnn.GRU, prnn.LayerNormLSTM, prnn.LayerNormGRU, prnn.MinGRU, prnn.MinLSTM)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def init(layer: prnn.Layer, seed: int = 0) -> dict[str, np.ndarray]:
    return layer.init(seed, FLOAT64)


# ---------------------------------------------------------------------- the functions


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 1000))
def test_orthogonal(rows: int, columns: int, seed: int) -> None:
    W = initializers.orthogonal(rng(seed), (rows, columns))
    assert W.shape == (rows, columns)
    gram = W.T @ W if rows >= columns else W @ W.T
    np.testing.assert_allclose(gram, np.eye(min(rows, columns)), atol=1e-14)


def test_orthogonal_is_uniformly_distributed() -> None:
    """A uniform 2 x 2 one has an angle from U(0, 2 pi) and either determinant: every entry has mean 0, variance 1/2."""
    generator = rng()
    drawn = np.stack([initializers.orthogonal(generator, (2, 2)) for _ in range(4000)])
    # of 4,000: five standard errors, of a mean of variance 1/2 and of a square of variance 1/8
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=5 * np.sqrt(1 / 2 / 4000))
    np.testing.assert_allclose((drawn**2).mean(axis=0), 0.5, atol=5 * np.sqrt(1 / 8 / 4000))
    assert abs(np.mean(np.linalg.det(drawn) > 0) - 0.5) < 5 * np.sqrt(1 / 4 / 4000)
    angles = np.sort(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0])) / (2 * np.pi) + 0.5
    assert np.max(np.abs(angles - np.arange(4000) / 4000)) < 1.95 / np.sqrt(4000)  # Kolmogorov's 0.1 %


@pytest.mark.parametrize("shape", [(400, 30), (30, 400)])
def test_glorot_uniform(shape: tuple[int, int]) -> None:
    W = initializers.glorot_uniform(rng(), shape)
    limit = np.sqrt(6 / 430)
    assert 0.999 * limit < np.max(np.abs(W)) <= limit
    assert abs(W.mean()) < 5 * limit / np.sqrt(3 * W.size)
    assert abs(W.var() - 2 / 430) < 0.05 * 2 / 430  # 2 / (rows + columns), what Glorot and Bengio ask for


def test_identity() -> None:
    np.testing.assert_array_equal(initializers.identity(rng(), (3, 3)), np.eye(3))
    np.testing.assert_array_equal(initializers.identity(rng(), (6, 3)), np.vstack([np.eye(3), np.eye(3)]))
    with pytest.raises(prnn.InputError, match=r"square gates, got a matrix of shape \(4, 3\)"):
        initializers.identity(rng(), (4, 3))


# ---------------------------------------------------------------------- torch: the default


@pytest.mark.parametrize(
    ("layer", "last", "numbers"),
    [
        (prnn.RNN(2, 3), "bias_hh_l0", [-0.4468127215554254, -0.5303383169938262, -0.2719836111348594]),
        (
            prnn.LSTM(2, 3, 2, bidirectional=True),
            "bias_hh_l1_reverse",
            [-0.4007346202626405, -0.4548337955012889, 0.3768482675617826],
        ),
        (prnn.GRU(2, 3), "bias_hh_l0", [0.025994720067497035, 0.12226891954583807, -0.44823261409671805]),
        (
            prnn.LSTM(2, 3, proj_size=2, peepholes=True),
            "weight_peephole_l0",
            [-0.3331710078183592, 0.21272993645002214, -0.08348511235863137],
        ),
    ],
)
def test_a_seed_gives_the_numbers_it_always_gave(layer: prnn.Layer, last: str, numbers: list[float]) -> None:
    params = init(layer)
    assert list(params)[-1] == last
    assert params["weight_ih_l0"].ravel()[:3].tolist() == [
        -0.5611070555331023,
        -0.27970629189034296,
        -0.03283346985025393,
    ]
    assert params[last].ravel()[:3].tolist() == numbers


@pytest.mark.parametrize("kind", RECURRENT)
def test_torch_bound(kind: type[prnn.Layer]) -> None:
    layer = kind(40, 64)
    assert layer.initializer == "torch"
    for name, p in init(layer).items():
        if p.ndim == 2:
            assert 0.99 / 8 < np.max(np.abs(p)) <= 1 / 8, name
            assert abs(p.var() - 1 / 64 / 3) < 0.05 / 64 / 3, name


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_torch_has_the_same_range(kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = dict(getattr(torch.nn, kind)(40, 64).named_parameters())
    ours = init(getattr(prnn, kind)(40, 64))
    for name, p in ours.items():
        their = theirs[name].detach().numpy()
        assert their.shape == p.shape
        assert abs(np.max(np.abs(their)) / np.max(np.abs(p)) - 1) < 0.05, name


# ---------------------------------------------------------------------- Keras


@pytest.mark.parametrize("kind", [prnn.RNN, prnn.LSTM, prnn.GRU])
def test_keras_scheme(kind: type[prnn.Layer]) -> None:
    inputs, hidden = 30, 40
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[kind.__name__]
    params = init(kind(inputs, hidden, bidirectional=True, initializer="keras"))
    for end in ("_l0", "_l0_reverse"):
        limit = np.sqrt(6 / (inputs + gates * hidden))
        assert 0.99 * limit < np.max(np.abs(params[f"weight_ih{end}"])) <= limit
        W = params[f"weight_hh{end}"]
        np.testing.assert_allclose(W.T @ W, np.eye(hidden), atol=1e-13)
        forget = np.zeros((gates, hidden))
        if kind is prnn.LSTM:
            forget[1] = 1
        np.testing.assert_array_equal(params[f"bias_ih{end}"], forget.ravel())
        np.testing.assert_array_equal(params[f"bias_hh{end}"], np.zeros(gates * hidden))


KERAS = """
import json, keras
found = {}
for kind in ("SimpleRNN", "LSTM", "GRU"):
    keras.utils.set_random_seed(0)
    layer = getattr(keras.layers, kind)(40)
    layer.build((None, None, 30))
    found[kind] = [keras.ops.convert_to_numpy(w).tolist() for w in layer.weights if "seed" not in w.path]
print("found:" + json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed")
def test_keras_has_the_same_limits_and_biases() -> None:
    # in a process of its own: Keras reads its backend once
    result = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ['KERAS_BACKEND'] = 'numpy'\n{KERAS}"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(result.stdout.partition("found:")[2])
    for kind, ours in (("SimpleRNN", prnn.RNN), ("LSTM", prnn.LSTM), ("GRU", prnn.GRU)):
        kernel, recurrent, bias = map(np.array, found[kind])
        params = init(ours(30, 40, initializer="keras"))
        ranges = [np.max(np.abs(w)) for w in (kernel, params["weight_ih_l0"])]
        assert abs(ranges[0] / ranges[1] - 1) < 0.01, kind
        for W in (recurrent, params["weight_hh_l0"].T):  # Keras has (H, G * H)
            np.testing.assert_allclose(W @ W.T, np.eye(40), atol=1e-5)
            assert abs(W.var() * W.shape[1] - 1) < 0.01
        own = params["bias_ih_l0"] + params["bias_hh_l0"]
        np.testing.assert_array_equal(np.ravel(bias.sum(axis=0) if bias.ndim == 2 else bias), own)


# ---------------------------------------------------------------------- IRNN and parts


def test_irnn_starts_as_a_sum_of_its_inputs() -> None:
    """Identity, no bias, relu: h_t is h_{t-1} plus what comes in, as long as it is positive."""
    layer = prnn.RNN(2, 50, nonlinearity="relu", initializer="irnn")
    params = init(layer)
    np.testing.assert_array_equal(params["weight_hh_l0"], np.eye(50))
    assert not np.any(params["bias_ih_l0"])
    assert not np.any(params["bias_hh_l0"])
    assert 0.0007 < params["weight_ih_l0"].std() < 0.0013
    positive = {**params, "weight_ih_l0": np.abs(params["weight_ih_l0"])}
    x = rng().random((3, 20, 2))
    y, _ = layer.apply(positive, x)
    np.testing.assert_allclose(y, np.cumsum(x, axis=1) @ positive["weight_ih_l0"].T, rtol=1e-12)


def test_irnn_neither_vanishes_nor_explodes() -> None:
    layer = prnn.RNN(2, 8, nonlinearity="relu", initializer="irnn")
    params = {**init(layer), "weight_ih_l0": np.abs(init(layer)["weight_ih_l0"])}
    y, _, pullback = layer.vjp(params, rng().random((1, 500, 2)))
    last = np.zeros_like(y)
    last[:, -1] = 1
    _, dx, _ = pullback(last)
    np.testing.assert_allclose(dx[0, 0], dx[0, -1], rtol=1e-12)  # 500 steps apart


@pytest.mark.parametrize("bias", ["uniform", "zeros"])
@pytest.mark.parametrize("value", [1.0, -2.5, 0.0])
def test_forget_bias_is_the_sum_of_both_biases(bias: str, value: float) -> None:
    plain = init(prnn.LSTM(3, 4, 2, initializer=f"torch(bias={bias})"))
    params = init(prnn.LSTM(3, 4, 2, initializer=f"torch(bias={bias}, forget_bias={value})"))
    assert params.keys() == plain.keys()
    for name, p in params.items():
        assert name.startswith("bias") or np.array_equal(p, plain[name])
    for end in ("_l0", "_l1"):
        total = params[f"bias_ih{end}"] + params[f"bias_hh{end}"]
        np.testing.assert_array_equal(total[4:8], value)
        others = np.r_[0:4, 8:16]
        np.testing.assert_array_equal(total[others], (plain[f"bias_ih{end}"] + plain[f"bias_hh{end}"])[others])


def test_forget_bias_finds_the_gate_of_every_cell() -> None:
    spec = "torch(bias=zeros, forget_bias=3)"
    assert init(prnn.MinLSTM(3, 2, initializer=spec))["bias_ih_l0"].tolist() == [3, 3, 0, 0, 0, 0]
    assert init(prnn.LayerNormLSTM(3, 2, initializer=spec))["bias_ih_l0"].tolist() == [0, 0, 3, 3, 0, 0, 0, 0]
    peepholes = init(prnn.LSTM(3, 2, peepholes=True, proj_size=1, initializer=spec))
    assert peepholes["bias_ih_l0"].tolist() == [0, 0, 3, 3, 0, 0, 0, 0]
    assert not np.any(peepholes["weight_peephole_l0"])
    for without in (
        prnn.RNN(3, 2, initializer=spec),
        prnn.GRU(3, 2, initializer=spec),
        prnn.MinGRU(3, 2, initializer=spec),
        prnn.LSTM(3, 2, coupled=True, initializer=spec),
    ):
        assert not np.any(init(without)["bias_ih_l0"])
    assert "bias_ih_l0" not in init(prnn.LSTM(3, 2, bias=False, initializer=spec))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("torch", initializers.Scheme()),
        (" keras ( ) ", initializers.Scheme("glorot_uniform", "orthogonal", "zeros", 1.0)),
        ("irnn(input=uniform)", initializers.Scheme("uniform", "identity", "zeros")),
        (
            "torch(recurrent=orthogonal,bias = zeros, forget_bias=5e-1)",
            initializers.Scheme("uniform", "orthogonal", "zeros", 0.5),
        ),
    ],
)
def test_a_scheme_is_written_as_a_string(spec: str, expected: initializers.Scheme) -> None:
    assert initializers.scheme(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("he", "unknown initializer 'he': expected one of torch, keras, irnn"),
        (None, "initializer: expected a string, got None"),
        ("keras(", "unknown initializer"),
        ("keras(0.5)", "no part '0.5': expected input=, recurrent=, bias= or forget_bias="),
        ("torch(input=zeros)", "input of initializer 'torch\\(input=zeros\\)' must be one of uniform, glorot_uniform"),
        ("torch(bias=orthogonal)", "bias of initializer .* must be one of uniform, zeros"),
        ("torch(forget_bias=one)", "must be a finite number"),
        ("torch(gain=2)", "no part 'gain=2'"),
    ],
)
def test_bad_schemes_are_refused_where_the_layer_is_made(spec: Any, message: str) -> None:
    for kind in RECURRENT:
        with pytest.raises(prnn.InputError, match=message):
            kind(3, 4, initializer=spec)


# ---------------------------------------------------------------------- with models


@pytest.mark.parametrize("spec", ["torch", "keras", "irnn"])
def test_equal_on_every_library(backend: Any, spec: str) -> None:
    layer = prnn.LSTM(3, 4, 2, bidirectional=True, initializer=spec)
    got = backend.numpy(layer.init(7, backend.target))
    expected = init(layer, 7)
    assert list(got) == list(expected)
    for name, p in expected.items():
        np.testing.assert_array_equal(got[name], p)


def test_every_layer_of_a_network_has_its_own(tmp_path: Any) -> None:
    network = prnn.Sequential(
        prnn.RNN(3, 4, nonlinearity="relu", initializer="irnn"),
        prnn.LSTM(4, 4, initializer="keras"),
        prnn.Last(),
        prnn.Linear(4, 1),
    )
    model = prnn.Model(network, seed=2)
    np.testing.assert_array_equal(model.params["0.weight_hh_l0"], np.eye(4))
    np.testing.assert_array_equal(model.params["1.bias_ih_l0"][4:8], 1)
    model.save(tmp_path / "m.safetensors")
    assert prnn.load(tmp_path / "m.safetensors").network == network
    assert "initializer='irnn'" in repr(network)
    assert "initializer" not in repr(prnn.LSTM(3, 4))


def test_a_cell_of_ones_own_is_drawn_too() -> None:
    layer = prnn.Recurrent(prnn.cells.ElmanCell("relu"), 3, 4, initializer="irnn")
    np.testing.assert_array_equal(init(layer)["weight_hh_l0"], np.eye(4))
