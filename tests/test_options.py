"""What the recurrent layers' options mean, each said another way: values and every gradient."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from cases import Case, make_case
from hypothesis import given
from hypothesis import strategies as st
from trees import flat, mapped, relative_error

import portable_rnn as prnn
from portable_rnn.arrays import on_their_device
from portable_rnn.cells import ACTIVATIONS, activation
from portable_rnn.layers import chosen, keep_mask, random_generator

KINDS: dict[str, tuple[type[prnn.Layer], dict[str, Any]]] = {
    "rnn": (prnn.RNN, {}),
    "lstm": (prnn.LSTM, {}),
    "lstm-everything": (prnn.LSTM, {"peepholes": True, "coupled": True, "proj_size": 2, "clip": 0.9}),
    "gru": (prnn.GRU, {}),
    "gru-before": (prnn.GRU, {"reset_after": False}),
    "layer-norm-lstm": (prnn.LayerNormLSTM, {"epsilon": 0.01}),
    "min-lstm": (prnn.MinLSTM, {}),
}


def everything(case: Case) -> list[Any]:
    """y, final state, dparams, dx, dstate."""
    y, final, pullback = case.layer.vjp(**case.inputs)
    return [y, final, *pullback(**case.cotangents)]


def flipped(x: np.ndarray, ends: list[int]) -> np.ndarray:
    """Each row of (B, T, F) from its own end to its start; what stands behind the end stays."""
    return np.stack([np.concatenate([row[:end][::-1], row[end:]]) for row, end in zip(x, ends, strict=True)])


# ---------------------------------------------------------------------- directions


@pytest.mark.parametrize("name", KINDS)
def test_reverse_flips_each_row_by_its_own_length(name: str) -> None:
    kind, options = KINDS[name]
    ends = [4, 0, 5, 1]
    case = make_case(kind(2, 3, 2, reverse=True, **options), (4, 5, 2), lengths=ends, seed=1)
    y, final, dparams, dx, dstate = everything(case)
    forward = dataclasses.replace(
        case,
        layer=dataclasses.replace(case.layer, reverse=False),
        x=flipped(case.x, ends),
        dy=flipped(case.dy, ends),
    )
    got = [flipped(y, ends), final, dparams, flipped(dx, ends), dstate]
    assert relative_error(got, everything(forward)) < 1e-12


@pytest.mark.parametrize("name", KINDS)
def test_bidirectional_is_a_forward_and_a_reverse_layer(name: str) -> None:
    kind, options = KINDS[name]
    case = make_case(kind(2, 3, bidirectional=True, **options), (4, 5, 2), lengths=[4, 0, 5, 1], seed=2)
    y, final, dparams, dx, dstate = everything(case)
    out = y.shape[2] // 2
    dxs = []
    for k, end in enumerate(("_l0", "_l0_reverse")):
        columns = slice(k * out, (k + 1) * out)
        own = {n: p for n, p in case.params.items() if n.endswith(end)}
        alone = dataclasses.replace(
            case,
            layer=dataclasses.replace(case.layer, bidirectional=False, reverse=k == 1),
            params={n.removesuffix("_reverse"): p for n, p in own.items()},
            state=mapped(lambda s, k=k: s[k : k + 1], case.state),
            dy=case.dy[:, :, columns],
            dstate=mapped(lambda s, k=k: s[k : k + 1], case.dstate),
        )
        expected = everything(alone)
        dxs.append(expected.pop(3))
        got = [y[:, :, columns], *mapped(lambda s, k=k: s[k : k + 1], [final, dstate])]
        got.insert(2, {n.removesuffix("_reverse"): dparams[n] for n in own})
        assert relative_error(got, expected) < 1e-12
    assert relative_error(dx, sum(dxs)) < 1e-12


# ---------------------------------------------------------------------- resets


@st.composite
def reset_cases(draw: st.DrawFn) -> Case:
    """Any marks and lengths, in one direction, the other, or both."""
    kind, options = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    batch, steps = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    direction = draw(st.sampled_from([{}, {"bidirectional": True}, {"reverse": True}]))
    layer = kind(2, 3, draw(st.integers(1, 2)), **direction, **options)
    ends = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    marks = draw(st.lists(st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=batch, max_size=batch))
    case = make_case(layer, (batch, steps, 2), lengths=ends, seed=draw(st.integers(0, 2**16)))
    return dataclasses.replace(case, resets=np.array(marks))


@given(reset_cases())
def test_resets_are_pieces_that_run_one_by_one(case: Case) -> None:
    """Every piece of every row by itself, from a zero state; at the row's ends the states are those of the row."""
    layer = case.layer
    count = next(iter(flat(case.state))).shape[0]
    both = getattr(layer, "bidirectional", False)
    backward = np.array([layer.reverse or (both and k % 2 == 1) for k in range(count)])[:, None, None]
    y, final, dparams, dx, dstate = everything(case)
    total: Any = mapped(np.zeros_like, case.params)
    expected = [np.zeros_like(y), mapped(np.array, case.state), total, np.zeros_like(dx), mapped(np.array, case.dstate)]
    for b, end in enumerate(case.lengths or []):
        cuts = [0, *[t for t in range(1, end) if case.resets is not None and case.resets[b, t]], end]
        if end and case.resets is not None and case.resets[b, 0]:
            _assign(expected[4], b, ~backward, mapped(np.zeros_like, case.state))  # its state is never looked at
        for first, last in itertools.pairwise(cuts):
            if first == last:
                continue
            starts = {False: first == 0 and not case.resets[b, 0], True: last == end}
            stops = {False: last == end, True: first == 0}
            takes, gives = (np.where(backward, at[True], at[False]) for at in (starts, stops))
            piece = Case(
                layer,
                case.params,
                case.x[b : b + 1, first:last],
                mapped(lambda s, b=b, m=takes: m * s[:, b : b + 1], case.state),
                None,
                None,
                None,
                case.dy[b : b + 1, first:last],
                mapped(lambda s, b=b, m=gives: m * s[:, b : b + 1], case.dstate),
            )
            part = everything(piece)
            expected[0][b, first:last], expected[3][b, first:last] = part[0][0], part[3][0]
            _assign(expected[1], b, gives, part[1])
            _assign(expected[4], b, takes, part[4])
            expected[2] = mapped(np.add, expected[2], part[2])
    assert relative_error([y, final, dparams, dx, dstate], expected) < 1e-11


def _assign(states: Any, row: int, which: np.ndarray, values: Any) -> None:
    """Set the row's states of some directions, in place."""
    for state, value in zip(flat(states), flat(values), strict=True):
        given_row = value if value.shape[1] == 1 else value[:, row : row + 1]
        state[:, row : row + 1] = np.where(which, given_row, state[:, row : row + 1])


# ---------------------------------------------------------------------- gates


def test_coupled_gates_are_the_full_cell_with_opposite_weights(backend: Any) -> None:
    """``1 - sigmoid(a) = sigmoid(-a)``: the forget gate has minus the weights of the input gate."""
    case = make_case(prnn.LSTM(2, 3, coupled=True, peepholes=True), (3, 4, 2), lengths=[4, 2, 0], seed=3)

    def full(name: str, p: np.ndarray) -> np.ndarray:
        return np.concatenate([p[:3], -p[:3], p[3:]])

    def half(name: str, dp: np.ndarray) -> np.ndarray:
        return np.concatenate([dp[:3] - dp[3:6], dp[6:]])

    layer = prnn.LSTM(2, 3, peepholes=True)
    params = {name: full(name, p) for name, p in case.params.items()}
    expected = backend.vjp(layer, **{**case.inputs, "params": params}, **case.cotangents)
    expected = [*expected[:2], {n: half(n, dp) for n, dp in expected[2].items()}, *expected[3:]]
    assert relative_error(backend.vjp(case.layer, **case.inputs, **case.cotangents), expected) < 1e-12


def test_peepholes_of_zero_see_nothing() -> None:
    case = make_case(prnn.LSTM(2, 3, peepholes=True), (3, 4, 2), lengths=[4, 2, 0], seed=4)
    closed = {**case.params, "weight_peephole_l0": np.zeros(9)}
    got = everything(dataclasses.replace(case, params=closed))
    assert np.all(got[2].pop("weight_peephole_l0") != 0)
    del closed["weight_peephole_l0"]
    plain = dataclasses.replace(case, layer=prnn.LSTM(2, 3), params=closed)
    assert relative_error(got, everything(plain)) < 1e-12


# ---------------------------------------------------------------------- clip


CLIPPED = [(prnn.RNN, {}), (prnn.LSTM, {}), (prnn.LSTM, {"peepholes": True}), (prnn.GRU, {"reset_after": False})]


@pytest.mark.parametrize(("kind", "options"), CLIPPED, ids=str)
def test_a_clip_out_of_reach_is_none(kind: type[prnn.Layer], options: dict[str, Any]) -> None:
    case = make_case(kind(2, 3, 2, **options), (3, 4, 2), seed=5)
    wide = dataclasses.replace(case, layer=dataclasses.replace(case.layer, clip=1e6))
    assert relative_error(everything(wide), everything(case)) < 1e-13


@pytest.mark.parametrize(("kind", "options"), CLIPPED, ids=str)
def test_no_gradient_passes_a_saturated_clip(backend: Any, kind: type[prnn.Layer], options: dict[str, Any]) -> None:
    case = make_case(kind(2, 3, clip=0.5, **options), (3, 1, 2), seed=6)
    # one step, every pre-activation far outside
    params = {name: 1e3 * np.sign(p) for name, p in case.params.items()}
    inputs = {**case.inputs, "params": params, "x": np.ones((3, 1, 2))}
    params["bias_ih_l0"] = 1e7 * np.sign(params["bias_ih_l0"])
    y, _, dparams, dx, _ = backend.vjp(case.layer, **inputs, **case.cotangents)
    assert np.max(np.abs(y)) > 0
    for gradient in flat([{n: g for n, g in dparams.items() if "peephole" not in n}, dx]):
        np.testing.assert_array_equal(gradient, 0)
    if kind is prnn.RNN:
        expected = np.tanh(0.5) * np.sign(params["bias_ih_l0"])
        np.testing.assert_allclose(y, np.broadcast_to(expected, y.shape), rtol=1e-15)


# ---------------------------------------------------------------------- activations

SETTINGS = {
    "elu": ("elu(0.3)", "elu(2)"),
    "leaky_relu": ("leaky_relu(0.3)", "leaky_relu(1.5)"),
    "thresholded_relu": ("thresholded_relu(0.25)", "thresholded_relu(0)"),
    "scaled_tanh": ("scaled_tanh(1.7159, 0.6667)", "scaled_tanh(0.5)"),
    "hard_sigmoid": ("hard_sigmoid(0.5, 0.1)", "hard_sigmoid(0.16667)"),
    "affine": ("affine(-2, 0.3)", "affine(0.5)"),
}
SPECS = [spec for name in ACTIVATIONS for spec in (name, *SETTINGS.get(name, ()))]


@pytest.mark.parametrize("spec", SPECS)
@on_their_device
def test_derivatives_from_the_output_match_finite_differences(backend: Any, spec: str) -> None:
    points = np.linspace(-4, 4, 1601) + 1e-3  # 5e-3 apart: none near the kinks, which are all at round numbers
    step = 1e-6
    function = activation(spec)
    xp = backend.target.xp

    def value(a: np.ndarray) -> np.ndarray:
        return backend.numpy(function.forward(xp, backend.array(a)))

    measured = (value(points + step) - value(points - step)) / (2 * step)
    derived = backend.numpy(function.derivative(xp, function.forward(xp, backend.array(points))))
    kinks = np.abs(np.diff(measured, prepend=measured[0], append=measured[-1])) > 0.1
    smooth = ~(kinks[1:] | kinks[:-1])  # settings such as 0.16667 put a kink anywhere
    assert np.mean(smooth) > 0.99 or spec == "exponential"
    np.testing.assert_allclose(derived[smooth], measured[smooth], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("spec", [s for s in SPECS if s != "exponential"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@on_their_device
def test_activations_stay_finite_far_out(backend: Any, spec: str, dtype: str) -> None:
    a = backend.array(np.array([-1e4, -89.0, 0.0, 89.0, 1e4], dtype=dtype))
    function, xp = activation(spec), backend.target.xp
    y = function.forward(xp, a)
    for values in (y, function.derivative(xp, y)):
        assert np.all(np.isfinite(backend.numpy(values)))
        assert backend.numpy(values).dtype == dtype


@pytest.mark.parametrize("spec", SPECS)
def test_every_activation_in_every_place(spec: str) -> None:
    """In a cell the pullback agrees with differences in all parameters, wherever the activation stands."""
    for layer in (
        prnn.RNN(2, 3, nonlinearity=spec),
        prnn.LSTM(2, 3, activation=spec),
        prnn.LSTM(2, 3, recurrent_activation=spec, peepholes=True),
        prnn.LSTM(2, 3, output_activation=spec, coupled=True),
        prnn.GRU(2, 3, activation=spec, reset_after=False),
        prnn.GRU(2, 3, recurrent_activation=spec),
    ):
        case = make_case(layer, (2, 2, 2), seed=7)
        case = dataclasses.replace(case, params=mapped(lambda p: 0.4 * p, case.params))
        _, _, dparams, _, _ = everything(case)
        step = 1e-6
        for name, gradient in dparams.items():
            for index in list(np.ndindex(*gradient.shape))[::3]:
                ends = []
                for sign in (step, -step):
                    moved = case.params[name].copy()
                    moved[index] += sign
                    y, final = layer.apply({**case.params, name: moved}, case.x, case.state)
                    ends.append(
                        sum(np.sum(a * b) for a, b in zip(flat([y, final]), flat([case.dy, case.dstate]), strict=True))
                    )
                measured = (ends[0] - ends[1]) / (2 * step)
                assert abs(measured - gradient[index]) < 1e-6 * (1 + np.max(np.abs(gradient))), (layer, name, index)


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("name", ["rnn", "lstm-everything", "gru", "gru-before"])
def test_a_recurrent_mask_scales_the_columns_of_weight_hh(name: str) -> None:
    """One mask for all steps of a sequence is, for that sequence, another recurrent weight."""
    kind, options = KINDS[name]
    case = make_case(kind(2, 3, recurrent_dropout=0.5, **options), (1, 6, 2), seed=11)
    drawn = case.masks.recurrent[0]
    assert set(np.unique(drawn)) <= {0.0, 2.0}
    mask = np.array([0.0, 2.0, 2.0])[: len(drawn)]
    case = dataclasses.replace(case, masks=case.masks._replace(recurrent=[mask[:, None]]))
    got = everything(case)
    params = {**case.params, "weight_hh_l0": case.params["weight_hh_l0"] * mask}
    expected = everything(dataclasses.replace(case, masks=None, params=params))
    expected[2]["weight_hh_l0"] = expected[2]["weight_hh_l0"] * mask
    assert relative_error(got, expected) < 1e-12


def with_zoneout_masks(case: Case, fill: Any) -> Case:
    """The case with every zoneout mask replaced."""
    filled = [tuple(fill(m) for m in masks) for masks in case.masks.zoneout]
    return dataclasses.replace(case, masks=case.masks._replace(zoneout=filled))


@pytest.mark.parametrize("name", KINDS)
def test_zoneout_of_nothing_and_of_everything(name: str) -> None:
    kind, options = KINDS[name]
    case = make_case(kind(2, 3, 2, zoneout=0.4, **options), (3, 4, 2), lengths=[4, 0, 2], seed=9)
    plain = dataclasses.replace(case, layer=dataclasses.replace(case.layer, zoneout=0.0), masks=None)
    assert relative_error(everything(with_zoneout_masks(case, np.zeros_like)), everything(plain)) < 1e-13
    y, final, dparams, dx, dstate = everything(with_zoneout_masks(case, np.ones_like))
    first = flat(case.state)[0]
    np.testing.assert_allclose(y[0], np.broadcast_to(first[-1, 0], y[0].shape), rtol=1e-14)
    assert relative_error(final, case.state) < 1e-14
    for gradient in flat([dparams, dx]):
        np.testing.assert_array_equal(gradient, 0)
    dh = np.array(flat(case.dstate)[0])
    dh[-1] += np.sum(case.dy * (np.arange(4)[None, :] < np.array(case.lengths)[:, None])[..., None], axis=1)
    np.testing.assert_allclose(flat(dstate)[0], dh, rtol=1e-14)


@pytest.mark.parametrize("name", KINDS)
def test_without_masks_zoneout_is_its_expectation(name: str) -> None:
    """After one step the outputs are linear in the masks, so the expected mask gives the expected output."""
    kind, options = KINDS[name]
    case = make_case(kind(2, 3, zoneout=0.3, **options), (3, 1, 2), seed=10)
    all_new, all_old = (everything(with_zoneout_masks(case, f)) for f in (np.zeros_like, np.ones_like))
    expected = mapped(lambda new, old: 0.7 * new + 0.3 * old, all_new, all_old)
    assert relative_error(everything(dataclasses.replace(case, masks=None)), expected) < 1e-13


@pytest.mark.parametrize("p", [0.5, 0.3, 1e-6, 1 / 3])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (100, 50, 40)])
def test_masks_have_their_probability(p: float, shape: tuple[int, ...]) -> None:
    dropped = keep_mask(random_generator(0), shape, p)
    assert dropped.dtype == np.float32
    assert dropped.shape == shape
    assert set(np.unique(dropped)) <= {np.float32(0), np.float32(1 / (1 - p))}
    share = np.mean(dropped == 0)
    assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / dropped.size) + 1 / dropped.size


def test_a_probability_finer_than_its_random_bits() -> None:
    """16 bits leave one entry in 65,536 open, and p may be smaller than that."""
    p = 0.4 / 65536
    count = sum(np.count_nonzero(chosen(random_generator(seed), (10**6,), p)) for seed in range(10))
    assert abs(count - 1e7 * p) < 5 * np.sqrt(1e7 * p)


def test_masks_of_a_seed_are_the_same_everywhere() -> None:
    found = chosen(random_generator(0), (20,), 0.3)
    assert "".join("01"[int(c)] for c in found) == "11011011000000111100"


def test_zoneout_masks_follow_the_probability_and_the_state() -> None:
    layer = prnn.LSTM(2, 40, 2, proj_size=10, bidirectional=True, zoneout=0.2)
    masks = layer.dropout_masks(np.random.default_rng(0), (30, 20, 2))
    assert masks.recurrent is None
    assert [[m.shape for m in pair] for pair in masks.zoneout] == 4 * [[(20, 10, 30), (20, 40, 30)]]
    for mask in flat(masks.zoneout):
        assert set(np.unique(mask)) == {0.0, 1.0}
        assert abs(mask.mean() - 0.2) < 5 * np.sqrt(0.16 / mask.size)


@pytest.mark.parametrize(
    "kind",
    [
        *(prnn.RNN, prnn.LSTM, prnn.GRU, prnn.Recurrent),
        *(prnn.LayerNormLSTM, prnn.LayerNormGRU, prnn.MinLSTM, prnn.MinGRU),
    ],
)
def test_a_recurrent_layer_is_one_layer_that_reads_forward_unless_told(kind: type[prnn.Layer]) -> None:
    options = {"num_layers": 1, "bias": True, "bidirectional": False, "reverse": False, "dropout": 0.0}
    options |= {"recompute_every": None}
    found = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    assert {name: found[name] for name in options} == options
