"""Layer-normalised LSTM and GRU, minGRU and minLSTM: textbook formulas, gradients, and what the papers promise."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import Case, lengths, make_case
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_gradients import (
    MARGIN,
    check_against_finite_differences,
    check_against_torch_autograd,
    loss_of,
    pulled_back,
)
from trees import flat, relative_error

import portable_rnn as prnn
from portable_rnn.cells import normalize, normalize_backward
from portable_rnn.verify import Textbook

# Their own epsilon is 1e-5. In the random cases it is larger: the step of a finite difference has to be small beside
# the root of variance and epsilon.
WIDE = {"epsilon": 0.01}
FAMILIES: dict[str, tuple[type[prnn.Layer], dict[str, Any]]] = {
    "layer-norm-lstm": (prnn.LayerNormLSTM, {}),
    "layer-norm-lstm-zoneout": (prnn.LayerNormLSTM, {"zoneout": 0.3}),
    "layer-norm-gru": (prnn.LayerNormGRU, {}),
    "min-gru": (prnn.MinGRU, {}),
    "min-gru-positive": (prnn.MinGRU, {"positive": True, "zoneout": 0.3}),
    "min-lstm": (prnn.MinLSTM, {}),
    "min-lstm-positive": (prnn.MinLSTM, {"positive": True}),
}
NORMALIZED = (prnn.LayerNormLSTM, prnn.LayerNormGRU)


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def textbook(case: Case) -> tuple[Any, float]:
    """((y, final state), how far the case is from where a derivative jumps)."""
    reference = Textbook(case.layer, case.params)
    found = reference.run(case.x, case.state, case.lengths, case.resets, case.masks)
    return found, reference.kink_margin


def dropout_of(kind: type[prnn.Layer], *probabilities: float) -> dict[str, float]:
    """A cell without a recurrent product has nothing to drop in it."""
    names = ("dropout", "recurrent_dropout") if kind in NORMALIZED else ("dropout",)
    return dict(zip(names, probabilities, strict=False))


def hard_case(name: str) -> Case:
    """Two layers, both directions, rows of every kind of length, state, resets, every kind of mask."""
    kind, options = FAMILIES[name]
    layer = kind(2, 3, 2, bidirectional=True, **dropout_of(kind, 0.4, 0.3), **options)
    return make_case(layer, (4, 3, 2), lengths=[2, 0, 3, 1], with_resets=True, seed=27)


@st.composite
def random_cases(draw: st.DrawFn, name: str) -> Case:
    """Any shape, depth, direction, lengths, state, resets and masks."""
    kind, options = FAMILIES[name]
    batch, steps, features = (draw(st.integers(1, n)) for n in (4, 5, 3))
    layer = kind(
        features,
        draw(st.integers(1, 4)),
        draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        **draw(st.sampled_from([{}, {"bidirectional": True}, {"reverse": True}])),
        **(dropout_of(kind, 0.5, 0.25) if draw(st.booleans()) else {}),
        **(WIDE if kind in NORMALIZED else {}),
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


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("name", FAMILIES)
def test_hard_case_is_the_textbook(backend: Any, name: str) -> None:
    case = hard_case(name)
    expected, margin = textbook(case)
    assert margin > MARGIN
    assert relative_error(backend.apply(case.layer, **case.inputs), expected) < 1e-12


@pytest.mark.parametrize("name", FAMILIES)
def test_random_cases_are_the_textbook(name: str) -> None:
    @settings(max_examples=50)
    @given(random_cases(name))
    def check(case: Case) -> None:
        expected, _ = textbook(case)
        assert relative_error(case.layer.apply(**case.inputs), expected) < 1e-11

    check()


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_match_finite_differences(backend: Any, name: str) -> None:
    check_against_finite_differences(backend, hard_case(name))


def test_random_gradients_match_finite_differences(backend: Any) -> None:
    @backend.for_all(st.sampled_from(sorted(FAMILIES)).flatmap(random_cases))
    def check(case: Case) -> None:
        assume(textbook(case)[1] > MARGIN)
        check_against_finite_differences(backend, case)


@pytest.mark.parametrize("name", FAMILIES)
def test_values_and_gradients_are_equal_across_libraries(backend: Any, name: str) -> None:
    case = hard_case(name)
    y, final, pullback = case.layer.vjp(**case.inputs)
    expected = (y, final, *pullback(**case.cotangents))
    got = backend.vjp(case.layer, **case.inputs, **case.cotangents)
    assert relative_error(got, expected) < 1e-11


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_agrees_with_float64(name: str) -> None:
    case = hard_case(name)
    narrow = case.astype("float32")
    results = []
    for c in (narrow, case):
        y, final, pullback = c.layer.vjp(**c.inputs)
        results.append((y, final, *pullback(**c.cotangents)))
    assert {a.dtype.name for a in flat(results[0])} == {"float32"}
    assert relative_error(*results) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_match_torch_autograd(name: str) -> None:
    @settings(max_examples=10)
    @example(hard_case(name))
    @given(random_cases(name))
    def check(case: Case) -> None:
        assume(textbook(case)[1] > 0)
        check_against_torch_autograd(case)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_match_jax_grad(name: str) -> None:
    jax = pytest.importorskip("jax")
    case = hard_case(name)
    place = jax.tree.map
    others = place(jax.numpy.asarray, (case.resets, case.masks, case.dy, case.dstate))
    inputs = place(jax.numpy.asarray, (case.params, case.x, case.state))
    loss = jax.jit(jax.grad(lambda *leaves: loss_of(case, jax.numpy, *leaves, others), argnums=(0, 1, 2)))
    assert relative_error(pulled_back(case), list(loss(*inputs))) < 1e-10


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_segments_give_the_same_gradients(name: str) -> None:
    case = hard_case(name)
    other = dataclasses.replace(case, layer=dataclasses.replace(case.layer, recompute_every=2))
    assert relative_error(pulled_back(other), pulled_back(case)) < 1e-12


# ---------------------------------------------------------------------- the normalisation


@pytest.mark.parametrize("rows", [2, 3, 7])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_normalisation_is_torch_layer_norm(rows: int, epsilon: float) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(rows)
    a, dy = rng.normal(3.0, 2.0, (2, rows, 4))
    a_hat, scale = normalize(np, a, epsilon)
    module = torch.nn.LayerNorm(rows, eps=epsilon, elementwise_affine=False)
    x = torch.asarray(a.T.copy()).requires_grad_()
    y = module(x)
    y.backward(torch.asarray(dy.T.copy()))
    np.testing.assert_allclose(a_hat, y.detach().numpy().T, rtol=0, atol=1e-14)
    np.testing.assert_allclose(normalize_backward(np, dy, a_hat, scale), x.grad.numpy().T, atol=1e-13)


@pytest.mark.parametrize("kind", NORMALIZED)
@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])
def test_a_rescaled_weight_changes_nothing(kind: type[prnn.Layer], weight: str) -> None:
    """The paper's section 5.1: without an epsilon the output is invariant to the scale of a weight matrix."""
    case = make_case(kind(3, 4, epsilon=1e-300), (2, 5, 3))
    scaled = {**case.params, weight: 1000 * case.params[weight]}
    y = case.layer.apply(case.params, case.x, case.state)[0]
    assert relative_error(case.layer.apply(scaled, case.x, case.state)[0], y) < 1e-10
    _, _, pullback = case.layer.vjp(scaled, case.x, case.state)
    gradient = pullback(case.dy)[0][weight]
    assert abs(np.sum(gradient * scaled[weight])) < 1e-9 * np.linalg.norm(scaled[weight])


@pytest.mark.parametrize("kind", NORMALIZED)
@pytest.mark.parametrize("initializer", ["torch", "keras", "torch(bias=uniform)"])
def test_gains_start_at_one_and_biases_at_zero(kind: type[prnn.Layer], initializer: str) -> None:
    params = kind(3, 4, 2, bidirectional=True, initializer=initializer).init(seed=1)
    forget = 1.0 if kind is prnn.LayerNormLSTM and initializer == "keras" else 0.0
    for name, value in params.items():
        if name.startswith("gain"):
            assert np.all(value == 1)
        elif name.startswith("bias_ih"):
            assert np.all(value[4:8] == forget)
            assert np.all(value[:4] == 0)
            assert np.all(value[8:] == 0)
        elif name.startswith("bias"):
            assert np.all(value == 0)
        else:
            assert np.std(value) > 0.05


@pytest.mark.parametrize("epsilon", [0, -1e-5, float("nan"), True, "small"])
@pytest.mark.parametrize("kind", NORMALIZED)
def test_epsilon_must_be_positive(kind: type[prnn.Layer], epsilon: Any) -> None:
    with pytest.raises(prnn.InputError, match="epsilon: expected a finite number above 0"):
        kind(3, 4, epsilon=epsilon)


# ---------------------------------------------------------------------- the linear recurrence


@pytest.mark.parametrize("kind", [prnn.MinGRU, prnn.MinLSTM])
def test_the_state_is_a_weighted_sum_of_candidates(kind: type[prnn.Layer]) -> None:
    """``h_t = (prod_s a_s) h_0 + sum_s (prod_{r > s} a_r) (1 - a_s) n_s``: no step by step at all."""
    case = make_case(kind(3, 4), (2, 6, 3))
    z = case.x @ case.params["weight_ih_l0"].T + case.params["bias_ih_l0"]
    if kind is prnn.MinGRU:
        keep, n = 1 - sigmoid(z[..., :4]), z[..., 4:]
    else:
        f, i, n = sigmoid(z[..., :4]), sigmoid(z[..., 4:8]), z[..., 8:]
        keep = f / (f + i)
    logs = np.cumsum(np.log(keep), axis=1)
    h = np.exp(logs) * (case.state[0][:, None] + np.cumsum(np.exp(-logs) * (1 - keep) * n, axis=1))
    y, _ = case.layer.apply(case.params, case.x, case.state)
    np.testing.assert_allclose(y, h, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("closed", [-200.0, -2000.0])
def test_min_lstm_with_both_gates_closed(backend: Any, dtype: str, closed: float) -> None:
    """f and i are zero in any dtype, but f / (f + i) is sigmoid(z_f - z_i) in the limit."""
    layer = prnn.MinLSTM(1, 1)
    params = {
        "weight_ih_l0": np.array([[1.0], [0.0], [0.0]], dtype=dtype),
        "bias_ih_l0": np.array([closed, closed, 3.0], dtype=dtype),
    }
    x, state = np.full((1, 1, 1), 0.5, dtype=dtype), np.full((1, 1, 1), 7.0, dtype=dtype)
    y, _, dparams, dx, _ = backend.vjp(layer, params=params, x=x, state=state, dy=np.ones_like(x))
    k = sigmoid(np.float64(0.5))
    # the two gates are logarithms of about 2000, of which float32 keeps 1e-4
    accuracy = {"rtol": 3e-4 if dtype == "float32" else 1e-12}
    np.testing.assert_allclose(y, [[[k * 7 + (1 - k) * 3]]], **accuracy)
    np.testing.assert_allclose(dx, [[[(7 - 3) * k * (1 - k)]]], **accuracy)
    np.testing.assert_allclose(dparams["bias_ih_l0"][2], 1 - k, **accuracy)


@pytest.mark.parametrize("kind", [prnn.MinGRU, prnn.MinLSTM])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_positive_candidates_keep_the_state_positive(kind: type[prnn.Layer], size: float) -> None:
    case = make_case(kind(3, 4, positive=True), (3, 20, 3), with_state=False)
    y, _, pullback = case.layer.vjp(case.params, size * case.x)
    assert np.all(y >= 0)
    assert np.all(np.isfinite(y))
    for gradient in flat(pullback(case.dy)):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("kind", [prnn.MinGRU, prnn.MinLSTM])
def test_there_is_no_recurrent_dropout(kind: type[prnn.Layer]) -> None:
    with pytest.raises(TypeError, match="recurrent_dropout"):
        kind(3, 4, recurrent_dropout=0.5)


# ---------------------------------------------------------------------- as layers of a model


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_unchanged(name: str, tmp_path: Any) -> None:
    kind, options = FAMILIES[name]
    layer = kind(2, 3, 2, bidirectional=True, initializer="keras", **options)
    model = prnn.Model(prnn.Sequential(layer, prnn.Last(), prnn.Linear(6, 1)), dtype="float64", seed=3)
    model.save(tmp_path / "m.safetensors")
    loaded = prnn.load(tmp_path / "m.safetensors")
    assert loaded.network == model.network
    x = np.random.default_rng(0).standard_normal((4, 5, 2))
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_learns(name: str) -> None:
    kind, options = FAMILIES[name]
    x = np.random.default_rng(0).standard_normal((64, 6, 2))
    y = np.mean(x[:, :, 0], axis=1, keepdims=True)
    network = prnn.Sequential(kind(2, 8, **options), prnn.Last(), prnn.Linear(8, 1))
    model = prnn.Model(network, dtype="float64", seed=0)
    history = model.fit(x, y, epochs=30, batch_size=16, optimizer=prnn.adam(0.02), progress=False)
    assert history.loss[-1] < 0.4 * history.loss[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_flow_sees_the_gates(name: str) -> None:
    kind, options = FAMILIES[name]
    network = prnn.Sequential(kind(2, 3, **options), prnn.Last(), prnn.Linear(3, 1))
    model = prnn.Model(network, dtype="float64", seed=0)
    for p in model.params:
        if p.startswith(("0.bias_ih", "0.gain")):
            model.params[p] = 50 * np.ones_like(model.params[p])  # every gate far open
    x = np.random.default_rng(0).standard_normal((4, 5, 2))
    (flow,) = prnn.gradient_flow(model, x, np.zeros((4, 1))).layers
    wanted = {"LayerNormLSTM": "ifo", "LayerNormGRU": "rz", "MinGRU": "u", "MinLSTM": ["f / (f + i)"]}
    assert list(flow.saturation) == list(wanted[kind.__name__])
    if kind is not prnn.MinLSTM:  # of which both gates are open
        assert all(high > 0.4 for low, high in flow.saturation.values())
