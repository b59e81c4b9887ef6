"""`to_onnx`: checked, run in onnxruntime, and back again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.layers import Activation, Ends, Flip, Masked, Merge, SharedDropout, Softmax

pytest.importorskip("onnx", reason="onnx is not installed")
import onnx
from onnx import numpy_helper

from portable_rnn.interop.onnx import Graph
from portable_rnn.interop.onnx.packing import unpacked

Seq = prnn.Sequential
FUNCTIONS = ("tanh", "relu", "sigmoid", "softsign", "softplus", "identity", "elu(0.7)", "leaky_relu(0.2)")
FUNCTIONS = (*FUNCTIONS, "thresholded_relu(0.3)", "affine(0.8, 0.1)", "scaled_tanh(1.2, 0.6)", "hard_sigmoid(0.3, 0.4)")

NETWORKS: dict[str, prnn.Layer] = {
    **{f"rnn-{name}": prnn.RNN(3, 4, nonlinearity=name) for name in FUNCTIONS},
    "rnn-unbiased": prnn.RNN(3, 4, 2, bias=False, bidirectional=True),
    "rnn-clip": prnn.RNN(3, 4, clip=0.5, reverse=True),
    "gru": prnn.GRU(3, 4, 2, bidirectional=True, dropout=0.5),
    "gru-before": prnn.GRU(3, 4, 2, reset_after=False, reverse=True),
    "gru-functions": prnn.GRU(3, 4, activation="elu(0.3)", recurrent_activation="hard_sigmoid", clip=0.7),
    "lstm": prnn.LSTM(3, 4, 3, bidirectional=True, recurrent_dropout=0.5),
    "lstm-reverse": prnn.LSTM(3, 4, reverse=True, bias=False),
    "lstm-peepholes": prnn.LSTM(3, 4, 2, bidirectional=True, peepholes=True),
    "lstm-coupled": prnn.LSTM(3, 4, 2, coupled=True),
    "lstm-coupled-peepholes": prnn.LSTM(3, 4, bidirectional=True, coupled=True, peepholes=True),
    "lstm-functions": prnn.LSTM(
        3, 4, activation="softsign", recurrent_activation="hard_sigmoid(0.25, 0.5)", output_activation="relu"
    ),
    "lstm-clip": prnn.LSTM(3, 4, clip=0.1, peepholes=True),
    "last": Seq(prnn.GRU(3, 4), prnn.Last(), prnn.Linear(4, 2)),
    "mean": Seq(prnn.Linear(3, 5), prnn.RNN(5, 4), prnn.Mean(), prnn.Linear(4, 2, bias=False)),
    "max": Seq(prnn.LSTM(3, 4), prnn.Max()),
    "max-first": Seq(prnn.Max(), prnn.Linear(3, 2)),
    "embedding": Seq(
        prnn.Embedding(7, 3),
        prnn.Dropout(0.5),
        prnn.LSTM(3, 4, bidirectional=True),
        Seq(prnn.Linear(8, 5), Seq(prnn.GRU(5, 3))),
        prnn.Linear(3, 7),
    ),
    "linear": prnn.Linear(3, 2),
    "small": Seq(
        SharedDropout(0.5),
        prnn.GRU(3, 4, bidirectional=True),
        Merge("ave"),
        Activation("scaled_tanh(1.5, 0.5)"),
        Activation("affine(2, 0.5)"),
        Softmax(log=True),
    ),
    "ends": Seq(prnn.GRU(3, 4, bidirectional=True), Ends(), Merge("mul"), Activation("relu"), Softmax()),
    "flip": Seq(prnn.RNN(3, 4, reverse=True), Flip()),
    "own-cell": prnn.Recurrent(prnn.cells.LSTMCell(coupled=True, clip=0.5), 3, 4, 2, bidirectional=True),
}
LENGTHS = [5, 2, 0, 3]
WITHOUT_LENGTHS = ("linear", "flip")  # refused: no time axis, and no operator
CASES = [
    (name, lengths) for name in NETWORKS for lengths in (None, LENGTHS) if not (lengths and name in WITHOUT_LENGTHS)
]
IDS = [f"{name}-{'lengths' if lengths else 'whole'}" for name, lengths in CASES]


def case(name: str, dtype: str) -> tuple[prnn.Model, np.ndarray]:
    """A model with weights larger than at its start, and its input."""
    network = NETWORKS[name]
    model = prnn.Model(network, dtype=dtype, seed=3)
    model.params = {n: 2 * p for n, p in model.params.items()}
    rng = np.random.default_rng(0)
    if network.takes_integers:
        return model, rng.integers(0, 7, (4, 5))
    shape = (4, 3) if name == "linear" else (4, 5, 3)
    return model, rng.standard_normal(shape).astype(dtype)


def inputs_of(x: np.ndarray, lengths: Any) -> dict[str, np.ndarray]:
    return {"x": x} if lengths is None else {"x": x, "lengths": np.asarray(lengths, dtype=np.int32)}


@pytest.mark.parametrize(("name", "lengths"), CASES, ids=IDS)
def test_onnxruntime_gives_the_same(name: str, lengths: Any) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, x = case(name, "float32")
    proto = prnn.to_onnx(model, lengths=lengths is not None)
    onnx.checker.check_model(proto, full_check=True)
    session = runtime.InferenceSession(proto.SerializeToString())
    (got,) = session.run(None, inputs_of(x, lengths))
    np.testing.assert_allclose(got, model.predict(x, lengths=lengths), rtol=0, atol=1e-5)
    # batch and time are open
    if name != "linear":
        x = np.concatenate([x, x], axis=1)[1:]
        lengths = lengths and [n + 4 for n in lengths[1:]]
        (got,) = session.run(None, inputs_of(x, lengths))
        np.testing.assert_allclose(got, model.predict(x, lengths=lengths), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "lengths"), CASES, ids=IDS)
def test_round_trip_gives_the_same_model(name: str, lengths: Any, tmp_path: Path) -> None:
    model, x = case(name, "float64")
    model.metadata = {"trained by": "a test"}
    prnn.to_onnx(model, tmp_path / "model.onnx", lengths=lengths is not None)
    back = prnn.from_onnx(tmp_path / "model.onnx")
    assert back.metadata == model.metadata
    assert back.backend == model.backend
    np.testing.assert_allclose(back.predict(x, lengths=lengths), model.predict(x, lengths=lengths), rtol=0, atol=1e-12)
    assert back.network == model.network
    for key, value in model.params.items():
        np.testing.assert_array_equal(back.params[key], value)


def test_graph_without_its_description_gives_the_same(backend: Any) -> None:
    """Outputs and every gradient through ONNX's operators equal the layers' own."""
    for name, lengths in CASES[:: 1 if backend.entry.examples > 20 else 7]:
        check_graph_against_layers(backend, name, lengths)


def check_graph_against_layers(backend: Any, name: str, lengths: Any) -> None:
    model, x = case(name, "float64")
    proto = prnn.to_onnx(model, lengths=lengths is not None)
    del proto.metadata_props[:]
    found = prnn.from_onnx(proto)
    graph = found.network
    assert isinstance(graph, Graph)
    assert bool(graph.lengths) == (lengths is not None and any(n.op in ("RNN", "GRU", "LSTM") for n in graph.nodes))
    if lengths is not None and not graph.lengths:
        return  # no recurrent node has them: they are an input that only `Graph.run` takes
    y = model.predict(x, lengths=lengths)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    _, _, pullback = model.network.vjp(model.params, x, lengths=lengths)
    dparams, dx, _ = pullback(dy)
    got = backend.vjp(graph, params=found.params, x=x, lengths=lengths, dy=dy)
    np.testing.assert_allclose(got[0], y, rtol=0, atol=1e-12, err_msg=name)
    if dx is not None:
        np.testing.assert_allclose(got[3], dx, rtol=0, atol=1e-12)
    own = unpacked(model.network, got[2])
    for key, value in dparams.items():
        np.testing.assert_allclose(own[key], value, rtol=0, atol=1e-11, err_msg=key)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (prnn.LSTM(3, 4, proj_size=2), "proj_size=2"),
        (prnn.GRU(3, 4, zoneout=0.1), r"zoneout=0\.1"),
        (prnn.RNN(3, 4, nonlinearity="exponential"), "exponential"),
        (Masked(prnn.RNN(3, 4)), "Masked"),
        (Seq(prnn.GRU(3, 4), prnn.MinGRU(4, 2)), "MinGRU"),
    ],
)
def test_what_onnx_cannot_express_is_refused(network: prnn.Layer, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.to_onnx(prnn.Model(network))


@pytest.mark.parametrize("name", WITHOUT_LENGTHS)
def test_lengths_are_refused(name: str) -> None:
    with pytest.raises(prnn.InputError, match="lengths"):
        prnn.to_onnx(case(name, "float32")[0], lengths=True)


def test_file_says_what_it_is(tmp_path: Path) -> None:
    model, _ = case("last", "float32")
    proto = prnn.to_onnx(model, tmp_path / "m.onnx")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    assert proto.producer_name == "portable_rnn"
    assert onnx.load(tmp_path / "m.onnx") == proto
    shape = proto.graph.input[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", "time", 3]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_changed_graph_is_not_taken_for_the_network_it_was() -> None:
    """The description counts only while exporting the network gives this very graph."""
    model, x = case("last", "float64")
    proto = prnn.to_onnx(model)
    node = next(n for n in proto.graph.node if n.op_type == "GRU")
    next(a for a in node.attribute if a.name == "linear_before_reset").i = 0
    back = prnn.from_onnx(proto)
    assert isinstance(back.network, Graph)
    other = prnn.Model(Seq(prnn.GRU(3, 4, reset_after=False), prnn.Last(), prnn.Linear(4, 2)), dtype="float64")
    other.params = model.params
    np.testing.assert_allclose(back.predict(x), other.predict(x), rtol=0, atol=1e-12)


def test_changed_weights_are_the_files() -> None:
    model, x = case("last", "float64")
    proto = prnn.to_onnx(model)
    bias = next(t for t in proto.graph.initializer if t.name == "2.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([5.0, 7.0]), "2.bias"))
    back = prnn.from_onnx(proto)
    assert back.network == model.network
    np.testing.assert_allclose(back.predict(x), model.predict(x) - model.params["2.bias"] + [5, 7], atol=1e-12)


def test_imported_graph_is_trained_and_written_back(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, x = case("embedding", "float32")
    proto = prnn.to_onnx(model)
    del proto.metadata_props[:]
    graph = prnn.from_onnx(proto)
    history = graph.fit(x, np.zeros((4, 5, 7), dtype="float32"), epochs=3, progress=False, optimizer=prnn.sgd(0.1))
    assert history.loss[-1] < history.loss[0]
    written = prnn.to_onnx(graph, tmp_path / "m.onnx")
    (y,) = runtime.InferenceSession(written.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(y, graph.predict(x), rtol=0, atol=1e-5)
    assert np.max(np.abs(y - model.predict(x))) > 1e-3
    # and in the other dtype
    double = prnn.to_onnx(graph.to("numpy", dtype="float64"))
    np.testing.assert_allclose(prnn.from_onnx(double).predict(x), y, rtol=0, atol=1e-5)


def test_every_backend_exports_the_same(backend: Any) -> None:
    model, _ = case("small", "float64")
    proto = prnn.to_onnx(model.to(backend.target))
    assert proto == prnn.to_onnx(model)


def test_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(prnn.InputError, match="can't write"):
        prnn.to_onnx(case("linear", "float32")[0], tmp_path / "nowhere" / "m.onnx")


def test_missing_onnx_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    load = importlib.import_module

    def without_onnx(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without_onnx)
    for call in (lambda: prnn.from_onnx(b""), lambda: prnn.to_onnx(case("linear", "float32")[0])):
        with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[onnx\]"):
            call()


def test_configuration_is_hashable_and_equal() -> None:
    proto = prnn.to_onnx(case("small", "float64")[0])
    del proto.metadata_props[:]
    first, second = (prnn.from_onnx(proto).network for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != dataclasses.replace(first, opset=18)
