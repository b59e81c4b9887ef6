"""The small layers: values written out, gradients by finite differences on every library, and in a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import portable_rnn as prnn
from portable_rnn.layers import Activation, Ends, Flip, Masked, Merge, SharedDropout, Softmax

STACK = prnn.Sequential(prnn.GRU(2, 3, bidirectional=True), prnn.Linear(6, 4))
STEPS: dict[str, prnn.Layer] = {
    "activation": Activation("softplus"),
    "softmax": Softmax(),
    "log-softmax": Softmax(log=True),
    "shared-dropout": SharedDropout(0.4),
    "flip": Flip(),
    "ends": Ends(),
    **{f"merge-{mode}": Merge(mode) for mode in ("sum", "mul", "ave")},
    "masked-held": Masked(prnn.LSTM(2, 3)),
    "masked-zero": Masked(prnn.LSTM(2, 3), hold=False),
    "masked-reverse": Masked(prnn.Sequential(prnn.GRU(2, 3, reverse=True), Flip())),
    "masked-stack": Masked(STACK, hold=False),
    "masked-ends": Masked(prnn.Sequential(prnn.LSTM(2, 2, bidirectional=True), Ends(), Merge("ave"))),
    "masked-integers": Masked(prnn.Sequential(prnn.Embedding(4, 2), prnn.GRU(2, 2))),
}
ROWS = {name: STEPS[name] for name in ("activation", "softmax", "log-softmax", "merge-mul", "merge-ave")}


@dataclass(frozen=True)
class Inputs:
    """Everything a call takes, as NumPy arrays."""

    params: dict[str, np.ndarray]
    x: np.ndarray
    lengths: list[int] | None
    masks: Any
    dy: np.ndarray


def inputs_of(layer: prnn.Layer, lengths: list[int] | None, *, rank: int = 3, seed: int = 0) -> Inputs:
    """Random values with masked steps at the start, inside and at the end, and a row without any other."""
    rng = np.random.default_rng(seed)
    params = {name: 0.7 * rng.standard_normal(shape) for name, shape in layer.parameter_shapes().items()}
    width = 2 if isinstance(layer, Masked) else 4
    x: np.ndarray = rng.standard_normal((4, 5, width) if rank == 3 else (4, width))
    if isinstance(layer, Masked):
        x[0, [0, 3]] = x[1, 4] = x[2] = 0.0
        x[3, 1, 0] = 0.0  # one feature only: not masked
        if layer.takes_integers:
            x = np.where(np.any(x != 0, axis=-1), rng.integers(1, 4, (4, 5)), 0)
    masks = layer.dropout_masks(rng, x.shape)
    y = layer.apply(params, x, lengths=lengths)[0]
    return Inputs(params, x, lengths, None if masks is None else masks.astype("float64"), rng.standard_normal(y.shape))


def check_finite_differences(backend: Any, layer: prnn.Layer, given_: Inputs) -> None:
    """Every entry of the parameters and of x, on NumPy; the library's own gradient beside it."""
    _, _, dparams, dx, _ = backend.vjp(
        layer, params=given_.params, x=given_.x, lengths=given_.lengths, masks=given_.masks, dy=given_.dy
    )

    def loss(params: Any, x: Any) -> float:
        y, _ = layer.apply(params, x, lengths=given_.lengths, masks=given_.masks)
        return float(np.sum(y * given_.dy))

    def measured(array: np.ndarray, put: Any, changed: np.ndarray) -> np.ndarray:
        found = np.zeros_like(array)
        for index in zip(*np.nonzero(changed), strict=True):
            ends = []
            for step in (1e-5, -1e-5):
                moved = array.copy()
                moved[index] += step
                ends.append(loss(*put(moved)))
            found[index] = (ends[0] - ends[1]) / 2e-5
        return found

    for name, value in given_.params.items():
        expected = measured(value, lambda v, n=name: ({**given_.params, n: v}, given_.x), np.ones(value.shape))
        np.testing.assert_allclose(dparams[name], expected, atol=2e-8, rtol=2e-7)
    if dx is None:
        assert given_.x.dtype.kind == "i"
        return
    # a masked step that is moved at all is no longer masked
    moves = given_.x != 0 if isinstance(layer, Masked) else np.ones(given_.x.shape)
    expected = measured(given_.x, lambda v: (given_.params, v), moves)
    np.testing.assert_allclose(np.where(moves, dx, 0.0), expected, atol=2e-8, rtol=2e-7)
    if isinstance(layer, Masked):
        assert not np.any(dx[np.all(given_.x == 0, axis=-1)])


@pytest.mark.parametrize("lengths", [None, [5, 3, 0, 1]], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", STEPS)
def test_gradients_match_finite_differences(backend: Any, name: str, lengths: list[int] | None) -> None:
    check_finite_differences(backend, STEPS[name], inputs_of(STEPS[name], lengths))


@pytest.mark.parametrize("name", ROWS)
def test_gradients_of_rows_match_finite_differences(backend: Any, name: str) -> None:
    check_finite_differences(backend, ROWS[name], inputs_of(ROWS[name], None, rank=2))


@pytest.mark.feeds_nan
@pytest.mark.parametrize("name", STEPS)
def test_nothing_past_a_rows_end_is_looked_at(backend: Any, name: str) -> None:
    layer, given_ = STEPS[name], inputs_of(STEPS[name], [5, 3, 0, 1])
    x = given_.x.astype("float64" if given_.x.dtype.kind == "f" else "int64")
    for row, end in enumerate(given_.lengths or []):
        x[row, end:] = np.nan if x.dtype.kind == "f" else 10**6
    got = backend.vjp(layer, params=given_.params, x=x, lengths=given_.lengths, masks=given_.masks, dy=given_.dy)
    expected = layer.vjp(given_.params, given_.x, lengths=given_.lengths, masks=given_.masks)
    np.testing.assert_allclose(got[0], expected[0], atol=1e-13)
    for name_, gradient in expected[2](given_.dy)[0].items():
        np.testing.assert_allclose(got[2][name_], gradient, atol=1e-12)
    if layer.keeps_time:
        for row, end in enumerate(given_.lengths or []):
            assert isinstance(layer, Masked) or not np.any(got[0][row, end:])


# ---------------------------------------------------------------------- values


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=4), st.booleans())
def test_masked_steps_are_as_if_they_were_not_there(rows: list[list[bool]], hold: bool) -> None:
    steps = max(map(len, rows))
    shown = np.array([[*row, *[False] * (steps - len(row))] for row in rows])
    rng = np.random.default_rng(0)
    x = np.where(shown[..., None], rng.standard_normal((*shown.shape, 2)), -1.0)
    layer = prnn.LSTM(2, 3)
    params = layer.init(seed=1, backend=prnn.backend("numpy", dtype="float64"))
    y, (h, _) = Masked(layer, -1.0, hold).apply(params, x)
    for b in range(len(rows)):
        if not shown[b].any():
            assert not np.any(y[b])
            continue
        alone, (h_alone, _) = layer.apply(params, x[b : b + 1, shown[b]])
        np.testing.assert_allclose(h[:, b], h_alone[:, 0], atol=1e-14)
        seen = 0
        for t in range(steps):
            seen += int(shown[b, t])
            kept = seen and (hold or shown[b, t])
            np.testing.assert_allclose(y[b, t], alone[0, seen - 1] if kept else 0.0, atol=1e-14)


def test_flip_after_reverse_is_the_flipped_input() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 2))
    params = prnn.GRU(2, 4).init(seed=0, backend=prnn.backend("numpy", dtype="float64"))
    lengths = [5, 2, 0]
    flipped = Flip().apply({}, x, lengths=lengths)[0]
    expected, _ = prnn.GRU(2, 4).apply(params, flipped, lengths=lengths)
    y, _ = prnn.GRU(2, 4, reverse=True).apply(params, x, lengths=lengths)
    np.testing.assert_allclose(Flip().apply({}, y, lengths=lengths)[0], expected, atol=1e-15)


def test_ends_are_the_final_states() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 2))
    layer = prnn.GRU(2, 4, bidirectional=True)
    params = layer.init(seed=0, backend=prnn.backend("numpy", dtype="float64"))
    y, h = layer.apply(params, x, lengths=[5, 1, 3])
    np.testing.assert_array_equal(Ends().apply({}, y, lengths=[5, 1, 3])[0], np.concatenate([h[0], h[1]], axis=-1))


def test_softmax_neither_overflows_nor_vanishes() -> None:
    x = np.array([[1000.0, 0.0, -1000.0]])
    assert Softmax().apply({}, x)[0].tolist() == [[1.0, 0.0, 0.0]]
    assert Softmax(log=True).apply({}, x)[0].tolist() == [[0.0, -1000.0, -2000.0]]


# ---------------------------------------------------------------------- in a model


NETWORK = prnn.Sequential(
    Masked(prnn.Sequential(prnn.Embedding(6, 4), SharedDropout(0.2), prnn.LSTM(4, 3, bidirectional=True), Ends())),
    Merge("ave"),
    prnn.Dropout(0.2),
    prnn.Linear(3, 2),
    Activation("elu(0.5)"),
    Softmax(),
)


def test_a_model_of_them_trains_and_is_saved(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 6, (12, 7))
    y = np.eye(2, dtype="float32")[np.any(x == 3, axis=1).astype(int)]
    model = prnn.Model(NETWORK)
    history = model.fit(x, y, epochs=30, optimizer=prnn.adam(0.03), progress=False)
    assert history.loss[-1] < history.loss[0]
    model.save(tmp_path / "m.safetensors")
    again = prnn.load(tmp_path / "m.safetensors")
    assert again.network == NETWORK
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_dropout_after_a_nested_embedding_has_the_shape_of_its_input() -> None:
    network = prnn.Sequential(
        prnn.Sequential(prnn.Embedding(5, 3), prnn.LSTM(3, 4)), prnn.Dropout(0.5), prnn.Last(), prnn.Linear(4, 1)
    )
    masks = network.dropout_masks(np.random.default_rng(0), (6, 7))
    assert masks[1].shape == (6, 7, 4)
    history = prnn.Model(network).fit(
        np.ones((6, 7), dtype="int32"), np.zeros((6, 1), dtype="float32"), epochs=1, progress=False
    )
    assert np.isfinite(history.loss[0])


@pytest.mark.parametrize(
    "layer", [Flip(), Masked(prnn.RNN(2, 2)), prnn.LSTM(2, 2, reverse=True), prnn.Sequential(prnn.RNN(2, 2), Ends())]
)
def test_what_needs_the_whole_sequence_does_not_stream(layer: prnn.Layer) -> None:
    with pytest.raises(prnn.InputError, match="can't run step by step"):
        prnn.Model(layer).step(np.ones((1, 2), dtype="float32"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Activation("gelu"), "unknown activation"),
        (lambda: Merge("concat"), "mode: expected one of 'sum', 'mul', 'ave', got 'concat'"),
        (lambda: SharedDropout(1.0), "p: expected a number from 0 to below 1"),
        (lambda: Merge("sum").apply({}, np.ones((2, 3))), "even number"),
        (lambda: Ends().apply({}, np.ones((2, 2, 3))), "even number"),
        (lambda: Flip().apply({}, np.ones((2, 3))), "batch, time, features"),
        (lambda: Masked(prnn.Linear(3, 2)).apply(prnn.Linear(3, 2).init(), np.ones((2, 3), "float32")), "batch, time"),
        (
            lambda: Masked(prnn.RNN(1, 1)).apply(
                prnn.RNN(1, 1).init(), np.ones((1, 2, 1), "float32"), resets=np.zeros((1, 2), bool)
            ),
            "no resets",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        make()
