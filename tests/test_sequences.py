"""Chunked equals whole: pieces of a sequence with the state handed on, recomputed segments, truncation, streams."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from cases import RECURRENT, Case, hard_case, random_cases
from hypothesis import strategies as st
from trees import flat, mapped, relative_error

import portable_rnn as prnn

FAMILIES = ("rnn-relu", "lstm-everything", "gru-before-clipped")
ONE_DIRECTION = (prnn.RNN, prnn.LSTM, prnn.GRU)


def forward_only(case: Case) -> Case:
    """The case's layer without a second or reversed direction, and without masks, which belong to whole sequences."""
    layer = dataclasses.replace(case.layer, bidirectional=False, reverse=False)
    rng = np.random.default_rng(5)
    params = {name: case.params[name] for name in layer.parameter_shapes() if "_l0" in name}
    for name, shape in layer.parameter_shapes().items():
        params.setdefault(name, 0.7 * rng.standard_normal(shape))
        if params[name].shape != shape:
            params[name] = 0.7 * rng.standard_normal(shape)
    like = layer.apply(params, case.x)
    state, dstate = (mapped(lambda part: rng.standard_normal(part.shape), like[1]) for _ in range(2))
    dy = rng.standard_normal(like[0].shape)
    return dataclasses.replace(case, layer=layer, params=params, state=state, dstate=dstate, dy=dy, masks=None)


def chunked(backend: Any, case: Case, cuts: list[int]) -> Any:
    """(y, final state, dparams, dx, dstate) from pieces, states handed on and their cotangents handed back."""
    steps = case.x.shape[1]
    edges = [0, *cuts, steps]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]
    state, starts, outputs, lengths = case.state, [], [], []
    for piece in pieces:
        starts.append(state)
        own = None
        if case.lengths is not None:
            own = [min(max(n - piece.start, 0), piece.stop - piece.start) for n in case.lengths]
        lengths.append(own)
        resets = None if case.resets is None else case.resets[:, piece]
        y, state = backend.apply(
            case.layer, params=case.params, x=case.x[:, piece], state=state, lengths=own, resets=resets
        )
        outputs.append(y)
    dstate, dx, dparams = case.dstate, [], None
    for piece, start, own in list(zip(pieces, starts, lengths, strict=True))[::-1]:
        resets = None if case.resets is None else case.resets[:, piece]
        _, _, grads, dpiece, dstate = backend.vjp(
            case.layer,
            params=case.params,
            x=case.x[:, piece],
            state=start,
            lengths=own,
            resets=resets,
            dy=case.dy[:, piece],
            dstate=dstate,
        )
        dx.insert(0, dpiece)
        dparams = grads if dparams is None else mapped(lambda a, b: a + b, dparams, grads)
    return np.concatenate(outputs, axis=1), state, dparams, np.concatenate(dx, axis=1), dstate


def whole(backend: Any, case: Case, layer: prnn.Layer | None = None) -> Any:
    """(y, final state, dparams, dx, dstate) from one call."""
    return backend.vjp(layer or case.layer, **case.inputs, **case.cotangents)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_equal_the_whole(backend: Any, family: str) -> None:
    case = forward_only(hard_case(family))
    for cuts in ([1], [1, 2]):
        assert relative_error(chunked(backend, case, cuts), whole(backend, case)) < 1e-12


def test_any_chunks_equal_the_whole(numpy_backend: Any) -> None:
    cases = st.sampled_from(sorted(RECURRENT)).flatmap(random_cases)

    @numpy_backend.for_all(st.tuples(cases, st.lists(st.integers(0, 5), max_size=3)))
    def check(drawn: tuple[Case, list[int]]) -> None:
        case = forward_only(drawn[0])
        cuts = sorted(cut for cut in drawn[1] if cut <= case.x.shape[1])
        assert relative_error(chunked(numpy_backend, case, cuts), whole(numpy_backend, case)) < 1e-11


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_segments_change_nothing(backend: Any, family: str) -> None:
    case = hard_case(family)  # both directions, lengths, resets and masks
    expected = whole(backend, case)
    for every in (1, 2, 5):
        layer = dataclasses.replace(case.layer, recompute_every=every)
        assert relative_error(whole(backend, case, layer), expected) < 1e-12


def test_recomputation_keeps_less(numpy_backend: Any) -> None:
    """What the forward pass keeps for the backward is a small part of what it keeps without."""
    layer = prnn.LSTM(4, 16)
    params, x = layer.init(0), np.zeros((2, 400, 4), dtype="float32")

    def kept(layer: prnn.Layer) -> int:
        _, _, residuals = layer.forward(params, x, None, prnn.arrays.Marks(), None)
        return sum(leaf.nbytes for leaf in flat(residuals))

    assert kept(dataclasses.replace(layer, recompute_every=20)) < kept(layer) / 10


def test_a_stream_allocates_nothing_that_stays(numpy_backend: Any) -> None:
    import tracemalloc

    stream = prnn.Stream(prnn.Model(prnn.LSTM(4, 8)))
    x = np.zeros((1, 4), dtype="float32")
    for _ in range(200):
        stream.step(x)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(5000):
        stream.step(x)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4096  # 5,000 states would be 320 kB


# ---------------------------------------------------------------------- truncation and memory in fit


def data(steps: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, steps, 2))
    return x, 0.1 * np.cumsum(x, axis=1)[:, :, :1]


def network() -> prnn.Layer:
    return prnn.Sequential(prnn.GRU(2, 6), prnn.Linear(6, 1))


def fitted(backend: Any, x: np.ndarray, y: np.ndarray, **options: Any) -> prnn.Model:
    model = prnn.Model(network(), backend.target, seed=1)
    settings = {"optimizer": prnn.sgd(0.1), "epochs": 2, "batch_size": 2, "shuffle": False, "progress": False}
    model.history = model.fit(backend.array(x), backend.array(y), **{**settings, **options})  # type: ignore[attr-defined]
    return model


def test_truncated_backpropagation_hands_the_state_on(backend: Any) -> None:
    """Against a loop by hand over the pieces: the state of one is the start of the next, the gradient stops there."""
    x, y = data()
    model = fitted(backend, x, y, tbptt=5)
    layer, params = network(), {k: np.asarray(v) for k, v in network().init(1, numpy64()).items()}
    losses = []
    for _ in range(2):
        for rows in (slice(0, 2), slice(2, 4)):
            state = None
            for piece in (slice(0, 5), slice(5, 10), slice(10, 12)):
                out, state, pullback = layer.vjp(params, x[rows, piece], state)
                value, dout = prnn.losses.mse(out, y[rows, piece])
                grads, _, _ = pullback(dout)
                params = {k: p - 0.1 * grads[k] for k, p in params.items()}
                losses.append(float(value))
    assert relative_error(backend.numpy(model.params), params) < 1e-12
    np.testing.assert_allclose(model.history.step_loss, losses, rtol=1e-12)


def test_stateful_batches_go_on_where_the_batch_before_ended(backend: Any) -> None:
    """Two streams of 12 steps, cut into batches of 4 steps that follow each other."""
    x, y = data()
    cut = [np.concatenate([a[:2, k : k + 4] for k in (0, 4, 8)]) for a in (x, y)]
    stateful = fitted(backend, *cut, stateful=True)
    truncated = fitted(backend, x[:2], y[:2], tbptt=4)
    assert relative_error(backend.numpy(stateful.params), backend.numpy(truncated.params)) < 1e-12


@pytest.mark.feeds_nan
def test_lengths_under_truncation(backend: Any) -> None:
    x, y = data()
    lengths = [12, 7, 0, 5]
    garbage = x.copy()
    for row, end in enumerate(lengths):
        garbage[row, end:] = np.nan
    clean = fitted(backend, x, y, tbptt=5, lengths=lengths)
    dirty = fitted(backend, garbage, y, tbptt=5, lengths=lengths)
    assert relative_error(backend.numpy(dirty.params), backend.numpy(clean.params)) == 0
    unmarked = fitted(backend, x, y, tbptt=5)
    assert clean.history.step_loss[0] == pytest.approx(unmarked.history.step_loss[0])  # no row ends in these 5 steps
    assert abs(clean.history.step_loss[1] - unmarked.history.step_loss[1]) > 1e-6


def test_a_memory_limit_changes_the_memory_and_nothing_else(backend: Any) -> None:
    x, y = data(steps=64)
    plain = fitted(backend, x, y, epochs=1)
    limited = fitted(backend, x, y, epochs=1, memory_limit="60 kB")
    assert relative_error(backend.numpy(limited.params), backend.numpy(plain.params)) < 1e-12


def test_truncation_and_memory_refuse_what_can_not_work(numpy_backend: Any) -> None:
    x, y = data()
    with pytest.raises(prnn.InputError, match="at least 1, or None, got 0"):
        fitted(numpy_backend, x, y, tbptt=0)
    with pytest.raises(prnn.InputError, match="shuffle=False"):
        fitted(numpy_backend, x, y, stateful=True, shuffle=True)
    with pytest.raises(prnn.InputError, match="4 rows in batches of 3"):
        fitted(numpy_backend, x, y, stateful=True, batch_size=3)
    with pytest.raises(prnn.InputError, match=r"needs about .* MB"):
        fitted(numpy_backend, x, y, memory_limit=100)
    with pytest.raises(prnn.InputError, match="'512MB'"):
        fitted(numpy_backend, x, y, memory_limit="lots")
    pooled = prnn.Model(prnn.Sequential(prnn.GRU(2, 3), prnn.Last(), prnn.Linear(3, 1)), dtype="float64")
    with pytest.raises(prnn.InputError, match="targets for every step"):
        pooled.fit(x, y[:, -1], tbptt=4, progress=False)
    both = prnn.Model(prnn.Sequential(prnn.GRU(2, 3, bidirectional=True), prnn.Linear(6, 1)), dtype="float64")
    with pytest.raises(prnn.InputError, match="bidirectional"):
        both.fit(x, y, tbptt=4, progress=False)


def numpy64() -> prnn.Backend:
    return prnn.backend("numpy", dtype="float64")


# ---------------------------------------------------------------------- what the backward pass shows


def test_gradient_flow_norms_are_those_of_the_loss(backend: Any) -> None:
    """||dL/dh_t|| against the derivative with respect to the state handed from step t to step t + 1."""
    x, y = data(steps=6)
    model = prnn.Model(network(), backend.target, seed=1)
    flow = prnn.gradient_flow(model, backend.array(x), backend.array(y))
    layer, params = network().layers[0], {k[2:]: np.asarray(v) for k, v in host(model).items() if k.startswith("0.")}
    head = network().layers[1]
    out, _, pullback = head.vjp(
        {"weight": host(model)["1.weight"], "bias": host(model)["1.bias"]}, layer.apply(params, x)[0]
    )
    dh = pullback(prnn.losses.mse(out, y)[1])[1]
    for t in range(6):
        # the total derivative with respect to h_t: direct, and through every later step
        total = dh[:, t]
        if t < 5:
            state = layer.apply(params, x[:, : t + 1])[1]
            _, _, later = layer.vjp(params, x[:, t + 1 :], state)
            total = total + later(dh[:, t + 1 :])[2][0]
        np.testing.assert_allclose(flow.layers[0].norms[t], np.linalg.norm(total), rtol=1e-10)
    loss, grads = model.loss_and_grad(backend.array(x), backend.array(y))
    assert relative_error(backend.numpy(flow.gradients), backend.numpy(grads)) < 1e-12
    assert flow.loss == pytest.approx(float(prnn.to_numpy(loss)), rel=1e-12)


def test_gradient_flow_counts_saturated_gates_and_dead_units(numpy_backend: Any) -> None:
    model = prnn.Model(prnn.LSTM(2, 4), dtype="float64")
    x, _ = data()
    bias = np.zeros(16)
    bias[0:4], bias[4:8] = 50.0, -50.0  # input gates open, forget gates shut
    model.params = {**model.params, "bias_ih_l0": bias}
    flow = prnn.gradient_flow(model, x, np.zeros((4, 12, 4)))
    saturation = flow.layers[0].saturation
    assert saturation["i"] == (0.0, 1.0)
    assert saturation["f"] == (1.0, 0.0)
    assert max(saturation["o"]) < 1.0
    relu = prnn.Model(prnn.RNN(2, 3, nonlinearity="relu"), dtype="float64")
    relu.params = {**relu.params, "bias_ih_l0": np.array([0.0, -50.0, 0.0])}
    assert prnn.gradient_flow(relu, x, np.zeros((4, 12, 3))).layers[0].dead_units == (1,)


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        (prnn.LSTM, {"i": 0, "f": 1, "o": 3}),
        (prnn.LayerNormLSTM, {"i": 0, "f": 1, "o": 3}),
        (prnn.GRU, {"r": 0, "z": 1}),
        (prnn.LayerNormGRU, {"r": 0, "z": 1}),
    ],
)
def test_gradient_flow_has_each_gates_own_values(kind: type[prnn.Layer], blocks: dict[str, int]) -> None:
    x, _ = data()
    for gate, block in blocks.items():
        model = prnn.Model(kind(2, 4), dtype="float64")
        bias = np.zeros_like(model.params["bias_ih_l0"])
        bias[4 * block : 4 * block + 4] = 50.0  # this gate is open, the others are not
        model.params = {**model.params, "bias_ih_l0": bias}
        saturation = prnn.gradient_flow(model, x, np.zeros((4, 12, 4))).layers[0].saturation
        assert list(saturation) == list(blocks)
        assert saturation[gate] == (0.0, 1.0)
        assert max(high for name, (_, high) in saturation.items() if name != gate) < 0.5


def test_gradient_flow_names_every_layer_and_direction(backend: Any) -> None:
    layer = prnn.Sequential(prnn.LSTM(2, 3, 2, bidirectional=True), prnn.GRU(6, 2, recompute_every=2), prnn.Last())
    model = prnn.Model(layer, backend.target)
    flow = prnn.gradient_flow(model, backend.array(data()[0]), backend.array(np.zeros((4, 2))), lengths=[12, 3, 0, 5])
    names = [part.name for part in flow.layers]
    assert names == ["0.LSTM l0", "0.LSTM l0 reverse", "0.LSTM l1", "0.LSTM l1 reverse", "1.GRU"]
    assert all(part.norms.shape == (12,) and np.isfinite(part.norms).all() for part in flow.layers)


def host(model: prnn.Model) -> dict[str, np.ndarray]:
    return {name: prnn.to_numpy(p) for name, p in model.params.items()}
