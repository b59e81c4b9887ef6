"""Streams: for every kind of network, Stream = predict = chained Model.step, or a refusal."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn import cells
from portable_rnn.arrays import leaves
from portable_rnn.interop.onnx.graph import Graph
from portable_rnn.interop.onnx.nodes import Constant, Node, Port
from portable_rnn.layers import Activation, Ends, Flip, Masked, Merge, SharedDropout, Softmax

BATCH, STEPS = 2, 5


def graph(*tail: Node, outputs: tuple[str, ...] = ("h1", "c1"), time: Any = "T", **options: Any) -> Graph:
    """An LSTM of ONNX, time first, whose state are inputs and outputs: x (T, B, 3) -> y (T, B, 4)."""
    attributes = tuple(sorted({"hidden_size": 4, **options}.items()))
    state = (1, "B", 4)
    return Graph(
        nodes=(
            Node("LSTM", ("x", "W", "R", "", "", "h0", "c0"), ("Y", "h1", "c1"), attributes),
            Node("Squeeze", ("Y", "axis"), ("Ys",)),
            *(tail or (Node("Tanh", ("Ys",), ("y",)),)),
        ),
        inputs=(Port("x", "float32", (time, "B", 3)), Port("h0", "float32", state), Port("c0", "float32", state)),
        outputs=(Port("y", "float32", (time, "B", 4)), *(Port(name, "float32", state) for name in outputs)),
        weights=(("W", (1, 16, 3)), ("R", (1, 16, 4))),
        constants=(("axis", Constant.of(np.array([1]))), ("last", Constant.of(np.array(-1)))),
        time_first=True,
        y_axes=(1, 0),
    )


LAST = Node("Gather", ("Ys", "last"), ("y",), (("axis", 0),))
MEAN = Node("ReduceMean", ("Ys",), ("y",), (("axes", (0,)), ("keepdims", 0)))
NETWORKS: dict[str, prnn.Layer] = {
    "zoneout": prnn.LSTM(3, 4, 2, zoneout=0.2),
    "nested": prnn.Sequential(prnn.Sequential(prnn.GRU(3, 4, reset_after=False), prnn.RNN(4, 5)), prnn.Linear(5, 2)),
    "embedding": prnn.Sequential(prnn.Embedding(7, 3), prnn.Dropout(0.5), prnn.LSTM(3, 4, peepholes=True)),
    "any width": prnn.Sequential(Activation("tanh"), SharedDropout(0.5), prnn.GRU(3, 4), Softmax()),
    "no parameters": prnn.Sequential(Activation("tanh"), prnn.Dropout(0.5)),
    "user's cell": prnn.Sequential(prnn.Recurrent(cells.LSTMCell(), 3, 4, 2), Merge("mul")),
    "last": prnn.Sequential(prnn.LSTM(3, 4, proj_size=2), prnn.Last(), prnn.Linear(2, 3)),
    "rnn": prnn.RNN(3, 4, 2, nonlinearity="relu", bias=False),
    "clip, coupled": prnn.LSTM(3, 4, coupled=True, clip=1.0),
    "gru, zoneout": prnn.GRU(3, 4, 2, zoneout=0.1, recompute_every=2),
    "MinGRU": prnn.MinGRU(3, 4, 2),
    "MinLSTM": prnn.MinLSTM(3, 4),
    "LayerNormLSTM": prnn.LayerNormLSTM(3, 4, 2),
    "LayerNormGRU": prnn.LayerNormGRU(3, 4),
    "linear": prnn.Linear(3, 2),
    "embedding only": prnn.Embedding(7, 3),
    "graph": graph(),
    "graph, last step": dataclasses.replace(graph(LAST), y_axes=(0, None)),
    "graph among layers": prnn.Sequential(prnn.Linear(2, 3), graph(), prnn.GRU(4, 2)),
}
EVERYWHERE = (*tuple(NETWORKS)[:6], "graph")  # the others differ in their cell only
REFUSED = {
    "bidirectional": prnn.Sequential(prnn.Sequential(prnn.LSTM(3, 4, bidirectional=True)), prnn.Linear(8, 2)),
    "reverse": prnn.GRU(3, 4, reverse=True),
    "mean": prnn.Sequential(prnn.RNN(3, 4), prnn.Mean()),
    "max": prnn.Sequential(prnn.RNN(3, 4), prnn.Max()),
    "ends": prnn.Sequential(prnn.RNN(3, 4), Ends()),
    "flip": prnn.Sequential(prnn.RNN(3, 4), Flip()),
    "masked": prnn.Sequential(Masked(prnn.LSTM(3, 4)), prnn.Linear(4, 2)),
    "graph, reverse": graph(direction="reverse"),
    "graph, mean": dataclasses.replace(graph(MEAN), y_axes=(0, None)),
    "graph, states exchanged": graph(outputs=("c1", "h1")),
    "graph, one state not given back": graph(outputs=("h1",)),
    "graph, no state given back": graph(outputs=()),
    "graph, another output": graph(outputs=("h1", "Ys")),
    "graph, time fixed": graph(time=5),
}


def data(network: prnn.Layer) -> np.ndarray:
    """Input (B, T, features), or (B, T) integers."""
    rng = np.random.default_rng(0)
    width = 2 if isinstance(network, prnn.Sequential) and isinstance(network.layers[0], prnn.Linear) else 3
    return rng.integers(0, 7, (BATCH, STEPS)) if network.takes_integers else rng.standard_normal((BATCH, STEPS, width))


def check(backend: Any, network: prnn.Layer) -> None:
    """Each step of the stream and of the model is what predict says, and so are the states."""
    model = prnn.Model(network, backend.target, seed=3)
    x = data(network)
    stream, state = prnn.Stream(model, BATCH), None
    for t in range(STEPS):
        whole = backend.numpy(model.predict(backend.array(x[:, : t + 1])))
        expected = whole[:, t] if network.keeps_time else whole
        y, state = model.step(backend.array(x[:, t]), state)
        np.testing.assert_allclose(backend.numpy(y), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(backend.numpy(stream.step(backend.array(x[:, t]))), expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(leaves(backend.numpy(stream.state)), leaves(backend.numpy(state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    stream.reset()
    again = backend.numpy(stream.step(backend.array(x[:, 0])))
    first, _ = model.step(backend.array(x[:, 0]))
    np.testing.assert_allclose(again, backend.numpy(first), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_stream_is_predict_is_chained_steps(backend: Any, name: str) -> None:
    check(backend, NETWORKS[name])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in EVERYWHERE])
def test_a_stream_is_predict_is_chained_steps_with_every_cell(numpy_backend: Any, name: str) -> None:
    check(numpy_backend, NETWORKS[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_run_step_by_step_is_refused(numpy_backend: Any, name: str) -> None:
    model = prnn.Model(REFUSED[name], numpy_backend.target)
    with pytest.raises(prnn.InputError, match="step by step"):
        prnn.Stream(model)
    with pytest.raises(prnn.InputError, match="step by step"):
        model.step(np.zeros((1, 3)))


def test_a_graph_of_one_step_runs_step_by_step(numpy_backend: Any) -> None:
    """A file that was exported with one time step can't be run over five: its steps are the whole model's."""
    whole, one = (prnn.Model(graph(time=time), numpy_backend.target, seed=1) for time in ("T", 1))
    x = data(one.network)
    stream = prnn.Stream(one, BATCH)
    steps = [stream.step(x[:, t]) for t in range(STEPS)]
    np.testing.assert_allclose(np.stack(steps, axis=1), whole.predict(x), rtol=0, atol=1e-12)


def test_some_streams_go_back_to_the_start(backend: Any) -> None:
    network = NETWORKS["zoneout"]
    model = prnn.Model(network, backend.target, seed=3)
    stream, x = prnn.Stream(model, 3), np.random.default_rng(0).standard_normal((3, 3))
    first = backend.numpy(stream.step(backend.array(x)))
    stream.reset([True, False, True])
    mixed = backend.numpy(stream.step(backend.array(x)))
    np.testing.assert_allclose(mixed[[0, 2]], first[[0, 2]], rtol=1e-12)
    assert np.abs(mixed[1] - first[1]).max() > 1e-3  # the one that was not reset


def test_streams_of_a_graph_go_back_together(numpy_backend: Any) -> None:
    stream, x = prnn.Stream(prnn.Model(graph(), numpy_backend.target), 2), np.ones((2, 3))
    first = stream.step(x)
    with pytest.raises(prnn.InputError, match="rows: expected None"):
        stream.reset([True, False])
    assert np.abs(stream.step(x) - first).max() > 1e-3
    stream.reset()
    np.testing.assert_array_equal(stream.step(x), first)


def test_a_step_of_another_shape_is_refused(numpy_backend: Any) -> None:
    stream = prnn.Stream(prnn.Model(prnn.RNN(2, 3)))
    with pytest.raises(prnn.InputError, match=r"must have shape \(1, 2\), got \(1, 3\)"):
        stream.step(np.zeros((1, 3), dtype="float32"))
    with pytest.raises(prnn.BackendError, match="float64"):
        stream.step(np.zeros((1, 2)))
    with pytest.raises(prnn.InputError, match="rows must be 1 booleans"):
        stream.reset([True, False])
    open_width = prnn.Stream(prnn.Model(NETWORKS["no parameters"]))
    for bad in ((2, 3), (1,), (1, 2, 3)):
        with pytest.raises(prnn.InputError, match=r"must have shape \(1, None\)"):
            open_width.step(np.zeros(bad, dtype="float32"))
    open_width.step(np.zeros((1, 3), dtype="float32"))
    with pytest.raises(prnn.InputError, match=r"must have shape \(1, 3\), got \(1, 4\)"):
        open_width.step(np.zeros((1, 4), dtype="float32"))
    tokens = prnn.Stream(prnn.Model(prnn.Embedding(4, 2)))
    with pytest.raises(prnn.InputError, match=r"must have shape \(1,\), got \(2,\)"):
        tokens.step(np.zeros(2, dtype="int64"))
