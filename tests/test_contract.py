"""What every layer promises about lengths, padding, resets, states and seeds, on every array library."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cases import OTHERS, RECURRENT, Case, hard_case, make_case, random_cases
from hypothesis import strategies as st
from trees import flat, inner, mapped, relative_error

import portable_rnn as prnn
from portable_rnn.verify import Textbook

# One of each cell, each with other options: what is tested here is the time loop, which they share.
FAMILIES = ("rnn-tanh", "lstm-everything", "gru-before-clipped")
WITH_LENGTHS = (*FAMILIES, *(n for n in OTHERS if n not in ("linear-rows", "dropout-rows")))


def run(backend: Any, case: Case) -> Any:
    """(y, final state, dparams, dx, dstate)."""
    return backend.vjp(case.layer, **case.inputs, **case.cotangents)


def past_the_end(case: Case) -> np.ndarray:
    """Booleans (B, T): the padding."""
    return np.arange(case.x.shape[1])[None, :] >= np.asarray(case.lengths)[:, None]


def assert_identical(got: Any, expected: Any) -> None:
    """Bit for bit, NaN included."""
    for a, b in zip(flat(got), flat(expected), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


# ---------------------------------------------------------------------- textbook formulas


def test_recurrent_layers_match_the_textbook(backend: Any) -> None:
    @backend.for_all(st.sampled_from(sorted(RECURRENT)).flatmap(random_cases))
    def check(case: Case) -> None:
        expected = Textbook(case.layer, case.params).run(case.x, case.state, case.lengths, case.resets, case.masks)
        assert relative_error(backend.apply(case.layer, **case.inputs), expected) < 1e-12


@pytest.mark.parametrize("name", RECURRENT)
def test_every_kind_of_layer_matches_the_textbook(name: str) -> None:
    case = hard_case(name)
    expected = Textbook(case.layer, case.params).run(case.x, case.state, case.lengths, case.resets, case.masks)
    assert relative_error(case.layer.apply(**case.inputs), expected) < 1e-12


def test_other_layers_match_their_formulas(backend: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 2))
    ends = [3, 0, 4]
    rows = [row[:end] for row, end in zip(x, ends, strict=True)]
    zero = np.zeros(2)
    for layer, pooled in (
        (prnn.Last(), [row[-1] if len(row) else zero for row in rows]),
        (prnn.Mean(), [row.mean(0) if len(row) else zero for row in rows]),
        (prnn.Max(), [row.max(0) if len(row) else zero for row in rows]),
    ):
        y, state = backend.apply(layer, params={}, x=x, lengths=ends)
        np.testing.assert_allclose(y, pooled, rtol=1e-15)
        assert state is None
        whole, _ = backend.apply(layer, params={}, x=x)
        alike, _ = backend.apply(layer, params={}, x=x, lengths=[4, 4, 4])
        np.testing.assert_allclose(whole, alike, rtol=1e-15)
    weight, bias = np.arange(6.0).reshape(3, 2), np.ones(3)
    y, _ = backend.apply(prnn.Linear(2, 3), params={"weight": weight, "bias": bias}, x=x)
    np.testing.assert_allclose(y, np.einsum("oi,bti->bto", weight, x) + bias, rtol=1e-14, atol=1e-15)
    tokens = np.array([[4, 0, 2], [1, 1, 3]])
    table = np.arange(10.0).reshape(5, 2)
    y, _ = backend.apply(prnn.Embedding(5, 2), params={"weight": table}, x=tokens)
    np.testing.assert_array_equal(y, table[tokens])


def test_max_sends_its_gradient_to_the_first_of_equal_steps(backend: Any) -> None:
    x = np.array([[[1.0], [2.0], [2.0]]])
    _, _, _, dx, _ = backend.vjp(prnn.Max(), params={}, x=x, dy=np.array([[3.0]]))
    np.testing.assert_array_equal(dx, [[[0.0], [3.0], [0.0]]])


@pytest.mark.feeds_nan
@pytest.mark.parametrize("layer", [prnn.Last(), prnn.Mean(), prnn.Max()], ids=repr)
def test_pooling_does_not_hide_a_nan(backend: Any, layer: prnn.Layer) -> None:
    x = np.array([[[1.0], [2.0], [np.nan]], [[1.0], [2.0], [np.nan]]])
    y, _ = backend.apply(layer, params={}, x=x, lengths=[3, 2])
    assert np.isnan(y[0, 0])
    assert np.isfinite(y[1, 0])


@pytest.mark.feeds_nan
@pytest.mark.parametrize("nonlinearity", prnn.activations.ACTIVATIONS)
def test_activations_do_not_hide_a_nan(backend: Any, nonlinearity: str) -> None:
    x = np.array([[[np.nan]]])
    layer = prnn.RNN(1, 1, nonlinearity=nonlinearity)
    y, _ = backend.apply(layer, params=layer.init(0, prnn.backend("numpy", dtype="float64")), x=x)
    assert np.isnan(y).all()


# ---------------------------------------------------------------------- lengths


@pytest.mark.feeds_nan
@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_what_stands_behind_a_rows_end_is_never_looked_at(backend: Any, name: str) -> None:
    case = hard_case(name)
    padding = past_the_end(case)

    def spoiled(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind in "ib":
            return np.where(padding, 99 if array.dtype.kind == "i" else True, array)
        return np.where(padding[..., None], np.nan, array)

    resets = None if case.resets is None else spoiled(case.resets)
    dy = spoiled(case.dy) if case.layer.keeps_time else case.dy
    worse = dataclasses.replace(case, x=spoiled(case.x), dy=dy, resets=resets)
    got = run(backend, worse)
    assert_identical(got, run(backend, case))
    y, dx = got[0], got[3]
    if case.layer.keeps_time:
        assert not y[padding].any()
    if dx is not None:
        assert not dx[padding].any()


@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_permuting_the_rows_permutes_the_results(backend: Any, name: str) -> None:
    case = dataclasses.replace(hard_case(name), masks=None)
    order = [3, 0, 2, 1]

    def states(tree: Any) -> Any:
        return mapped(lambda a: a[:, order], tree)

    def rows(array: Any) -> Any:
        return None if array is None else array[order]

    shuffled = dataclasses.replace(
        case,
        x=rows(case.x),
        dy=rows(case.dy),
        resets=rows(case.resets),
        lengths=[case.lengths[k] for k in order],
        state=states(case.state),
        dstate=states(case.dstate),
    )
    y, final, dparams, dx, dstate = run(backend, case)
    expected = (rows(y), states(final), dparams, rows(dx), states(dstate))
    assert relative_error(run(backend, shuffled), expected) < 1e-13


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_length_zero_keep_their_state(backend: Any, name: str) -> None:
    case = hard_case(name)
    empty = case.lengths.index(0)
    _, final, _, dx, dstate = run(backend, case)
    for got, given in ((final, case.state), (dstate, case.dstate)):
        assert_identical(mapped(lambda a: a[:, empty], got), mapped(lambda a: a[:, empty], given))
    assert not dx[empty].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_each_row_runs_as_if_it_were_alone(backend: Any, name: str) -> None:
    # so the second direction starts at the row's own end
    case = dataclasses.replace(hard_case(name), masks=None)
    y, final, dparams, dx, dstate = run(backend, case)
    total = mapped(np.zeros_like, dparams)
    for b, end in enumerate(case.lengths):
        if not end:
            continue

        def row(tree: Any, b: int = b) -> Any:
            return mapped(lambda a: a[:, b : b + 1], tree)

        def steps(array: np.ndarray, b: int = b, end: int = end) -> np.ndarray:
            return array[b : b + 1, :end]

        alone = dataclasses.replace(
            case,
            x=steps(case.x),
            dy=steps(case.dy),
            resets=steps(case.resets),
            lengths=None,
            state=row(case.state),
            dstate=row(case.dstate),
        )
        got = run(backend, alone)
        expected = (steps(y), row(final), steps(dx), row(dstate))
        assert relative_error((*got[:2], *got[3:]), expected) < 1e-12
        total = mapped(np.add, total, got[2])
    assert relative_error(total, dparams) < 1e-12


def test_lengths_may_be_any_kind_of_integers(backend: Any) -> None:
    if backend.entry.jitted:
        pytest.skip("a traced call takes an array of lengths, as the other tests give it")
    case = hard_case("gru")
    expected, _ = backend.apply(case.layer, **case.inputs)
    inputs = {k: backend.array(v) for k, v in case.inputs.items() if k != "lengths"}
    for lengths in (
        tuple(case.lengths),
        np.asarray(case.lengths, dtype="uint8"),
        backend.array(np.asarray(case.lengths, dtype="int64")),
        backend.array(np.asarray(case.lengths, dtype="int32")),
    ):
        y, _ = case.layer.apply(**inputs, lengths=lengths)
        assert_identical(backend.numpy(y), expected)


def test_a_list_of_sequences_is_a_padded_batch(backend: Any) -> None:
    if backend.entry.jitted:
        pytest.skip("shapes of a list differ from call to call: pad before tracing")
    case = dataclasses.replace(hard_case("lstm"), resets=None, masks=None)
    rows = [row[:end] for row, end in zip(case.x, case.lengths, strict=True)]
    params, state, dy, dstate = backend.array((case.params, case.state, case.dy, case.dstate))
    y, final, pullback = case.layer.vjp(params, backend.array(rows), state)
    assert_identical(backend.numpy((y, final, *pullback(dy, dstate))), run(backend, case))


# ---------------------------------------------------------------------- states, chunks, resets


@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_with_the_state_carried_over_equal_the_whole(backend: Any, name: str) -> None:
    kind, options = RECURRENT[name]
    case = make_case(kind(2, 3, 2, **options), (2, 4, 2), with_masks=False, seed=1)
    y, final, *_ = run(backend, case)
    chunks, state = [], case.state
    for start in (0, 2):
        part, state = backend.apply(case.layer, params=case.params, x=case.x[:, start : start + 2], state=state)
        chunks.append(part)
    assert relative_error((np.concatenate(chunks, axis=1), state), (y, final)) < 1e-13


@pytest.mark.parametrize("direction", [{}, {"reverse": True}, {"bidirectional": True}], ids=str)
def test_a_reset_separates_sequences_in_one_row(backend: Any, direction: dict[str, bool]) -> None:
    case = make_case(prnn.LSTM(2, 3, 2, **direction), (1, 4, 2), with_state=False, seed=5)
    resets = np.array([[True, False, True, False]])
    y, _ = backend.apply(case.layer, params=case.params, x=case.x, resets=resets)
    parts = case.x.reshape(2, 2, 2)  # the same two sequences, one under the other
    expected, _ = backend.apply(case.layer, params=case.params, x=parts)
    assert relative_error(y.reshape(expected.shape), expected) < 1e-13


def test_reverse_is_the_same_layer_on_reversed_rows(backend: Any) -> None:
    case = make_case(prnn.GRU(2, 3), (2, 3, 2), seed=4)
    backward = dataclasses.replace(case.layer, reverse=True)
    y, final = backend.apply(backward, **{**case.inputs, "x": case.x[:, ::-1]})
    forward = backend.apply(case.layer, **case.inputs)
    assert relative_error((y[:, ::-1], final), forward) < 1e-14


# ---------------------------------------------------------------------- a cell of one's own


@dataclass(frozen=True)
class LeakyCell:
    """``h' = (1 - rate) * h + rate * tanh(Wx @ x + Wh @ h)``."""

    rate: float

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Any:
        return prnn.cells.weight_shapes(hidden_size, input_size, hidden_size, bias)

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        return (hidden_size,)

    def prepare(self, xp: Any, p: Any) -> Any:
        return {"Wx": p["weight_ih"], "Wh": p["weight_hh"]}

    def step(self, xp: Any, w: Any, z: Any, state: Any, drop: Any) -> Any:
        (h,) = state
        n = xp.tanh(z + w["Wh"] @ h)
        return (h + self.rate * (n - h),), {"n": n}

    def step_backward(self, xp: Any, w: Any, residual: Any, dstate: Any, drop: Any) -> Any:
        (dh,) = dstate
        da = self.rate * dh * (1 - residual["n"] ** 2)
        return ((1 - self.rate) * dh + w["Wh"].T @ da,), da, {}

    def parameter_gradients(self, xp: Any, dz: Any, h_before: Any, residuals: Any, emitted: Any) -> Any:
        return {"weight_hh": prnn.cells.summed_outer(xp, dz, h_before)}


def test_a_cell_of_ones_own(backend: Any) -> None:
    layer = prnn.Recurrent(LeakyCell(0.3), 2, 3, 2, bias=False, bidirectional=True)
    case = make_case(layer, (3, 3, 2), lengths=[3, 0, 2], seed=6)
    _, _, dparams, _, _ = run(backend, case)
    step = 1e-5
    for name in ("weight_ih_l0", "weight_hh_l1_reverse"):
        ends = []
        for sign in (step, -step):
            moved = {**case.params, name: case.params[name] + sign * dparams[name]}
            y, final = backend.apply(layer, **{**case.inputs, "params": moved})
            ends.append(inner(y, case.dy) + inner(final, case.dstate))
        measured = (ends[0] - ends[1]) / (2 * step)
        assert measured == pytest.approx(inner(dparams[name], dparams[name]), rel=1e-6)


def test_recurrent_with_a_cell_is_that_cells_layer(backend: Any) -> None:
    case = hard_case("gru")
    options = {f.name: getattr(case.layer, f.name) for f in dataclasses.fields(prnn.Recurrent)[1:]}
    layer = prnn.Recurrent(case.layer.cell, **options)
    expected = backend.apply(case.layer, **case.inputs)
    assert_identical(backend.apply(layer, **case.inputs), expected)


# ---------------------------------------------------------------------- seeds


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_seed_gives_the_same_weights_on_every_library(backend: Any, dtype: str) -> None:
    network = prnn.Sequential(
        prnn.Embedding(7, 3),
        prnn.LSTM(3, 4, 2, bidirectional=True, peepholes=True),
        prnn.GRU(8, 3),
        prnn.Linear(3, 2),
    )
    target = prnn.backend(backend.target, dtype=dtype)
    got = backend.numpy(network.init(seed=11, backend=target))
    expected = network.init(seed=11, backend=prnn.backend("numpy", dtype=dtype))
    assert list(got) == list(network.parameter_shapes())
    assert_identical(got, expected)
    assert not np.array_equal(
        got["3.weight"],
        network.init(seed=12, backend=prnn.backend("numpy", dtype=dtype))["3.weight"],
    )


def test_initial_weights_have_torchs_bounds() -> None:
    for layer, bound in ((prnn.LSTM(3, 16), 0.25), (prnn.Linear(25, 400), 0.2)):
        for value in layer.init(seed=0).values():
            assert 0.8 * bound < np.max(np.abs(value)) <= bound
    table = prnn.Embedding(200, 50).init(seed=0)["weight"]
    assert np.std(table) == pytest.approx(1.0, abs=0.02)


def test_the_first_weights_of_seed_zero_are_these() -> None:
    # a seed must mean the same run next year
    weight = prnn.Linear(2, 2).init(seed=0, backend=prnn.backend("numpy", dtype="float64"))["weight"]
    rng, bound = np.random.Generator(np.random.Philox(0)), 1 / np.sqrt(2)
    np.testing.assert_array_equal(weight, rng.uniform(-bound, bound, (2, 2)))


def test_dropout_masks_follow_the_seed_and_the_probability() -> None:
    layer = prnn.LSTM(2, 30, 2, dropout=0.25, recurrent_dropout=0.5, zoneout=0.1)
    drawn = [layer.dropout_masks(np.random.Generator(np.random.Philox(s)), (20, 40, 2)) for s in (1, 1, 2)]
    assert_identical(drawn[0], drawn[1])
    between, recurrent, zoneout = drawn[0]
    assert not np.array_equal(between[0], drawn[2].between[0])
    for masks, values, share in (
        (between, [0, 1 / 0.75], 0.25),
        (recurrent, [0, 2], 0.5),
        ([1 - part for parts in zoneout for part in parts], [0, 1], 0.1),
    ):
        for mask in masks:
            np.testing.assert_allclose(np.unique(mask), values, rtol=1e-6)
            assert np.mean(mask == 0) == pytest.approx(share, abs=0.05)
    assert prnn.LSTM(2, 3, 1, dropout=0.0).dropout_masks(np.random.default_rng(0), (2, 3, 2)) is None


def test_inputs_are_left_as_they_were(backend: Any) -> None:
    case = hard_case("lstm-everything")
    arrays = backend.array({k: v for k, v in case.inputs.items() if k != "lengths"})
    cotangents = backend.array(case.cotangents)
    if backend.entry.jitted:
        pytest.skip("a traced function has no arrays to write to")
    _, _, pullback = case.layer.vjp(**arrays, lengths=case.lengths)
    pullback(**cotangents)
    expected = {k: v for k, v in case.inputs.items() if k != "lengths"}
    assert_identical(mapped(prnn.to_numpy, arrays), expected)
    assert_identical(mapped(prnn.to_numpy, cotangents), case.cotangents)
