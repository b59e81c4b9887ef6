"""Models exported by torch.onnx, both exporters, and by Keras: the same outputs, and torch's own gradients."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn

pytest.importorskip("onnx", reason="onnx is not installed")
import onnx

from portable_rnn.interop.onnx import Graph

RECURRENT = ("RNN", "GRU", "LSTM")
# torch's gates -> ONNX's: LSTM i f g o -> i o f c, GRU r z n -> z r h
ORDERS = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


@pytest.fixture(scope="module")
def torch() -> Any:
    found = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript, which torch.onnx needs, is not installed")
    return found


def network(torch: Any, kind: str, embedding: bool, batch_first: bool, dtype: Any) -> Any:
    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(7, 4) if embedding else torch.nn.Identity()
            self.rnn = getattr(torch.nn, kind)(4, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
            self.head = torch.nn.Linear(10, 3)

        def forward(self, x: Any) -> Any:
            y, _ = self.rnn(self.embedding(x))
            return self.head(y)

    torch.manual_seed(0)
    return Network().to(dtype).eval()


def export(torch: Any, module: Any, x: Any, path: Path, dynamo: bool, static: bool = False) -> None:
    time_axis = 1 if module.rnn.batch_first else 0
    names = {1 - time_axis: "batch", time_axis: "time"}
    if static:
        del names[time_axis]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = {axis: torch.export.Dim(name) for axis, name in names.items()}
            torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=(dims,), verbose=False)
        else:
            axes = {"x": names, "y": names}
            torch.onnx.export(
                module, (x,), path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes
            )


def expected_gradients(module: Any, kind: str, graph: Graph) -> dict[str, np.ndarray]:
    """torch's gradients under the file's names, in ONNX's order."""
    own = {name: p.grad.numpy() for name, p in module.named_parameters()}
    found = {name: own[name] for name, _ in graph.weights if name in own}
    # a Linear of three axes: its weight stands transposed, without its name
    found |= {name: own["head.weight"].T for name, shape in graph.weights if shape == (10, 3)}
    nodes = [node for node in graph.nodes if node.op in RECURRENT]
    for k, node in enumerate(nodes):

        def stacked(*names: str, k: int = k) -> np.ndarray:
            sides = []
            for end in ("", "_reverse"):
                parts = []
                for name in names:
                    blocks = np.split(own[f"rnn.{name}_l{k}{end}"], len(ORDERS[kind]))
                    parts += [blocks[j] for j in ORDERS[kind]]
                sides.append(np.concatenate(parts))
            return np.stack(sides)

        found[node.inputs[1]] = stacked("weight_ih")
        found[node.inputs[2]] = stacked("weight_hh")
        found[node.inputs[3]] = stacked("bias_ih", "bias_hh")
    return found


# dynamo unrolls nn.RNN at the length it was given, and keeps the length in time-first files; the other exporter writes
# an RNN node with an open length, whichever
TORCH_CASES = [
    ("LSTM", False, True, True),
    ("GRU", False, True, True),
    ("RNN", False, True, True),
    ("LSTM", False, False, False),
    ("LSTM", True, True, True),
    ("GRU", True, False, False),
    ("RNN", True, True, True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dynamo", "embedding", "batch_first"), TORCH_CASES)
def test_torch_export(torch: Any, tmp_path: Path, kind: str, dynamo: bool, embedding: bool, batch_first: bool) -> None:
    static = dynamo and (kind == "RNN" or not batch_first)
    module = network(torch, kind, embedding, batch_first, torch.float64)

    def draw(batch: int, steps: int) -> np.ndarray:
        rng = np.random.default_rng(batch)
        shape = (batch, steps) if batch_first else (steps, batch)
        return rng.integers(0, 7, shape) if embedding else rng.standard_normal((*shape, 4))

    path = tmp_path / "model.onnx"
    export(torch, module, torch.from_numpy(draw(2, 6)), path, dynamo, static)
    model = prnn.from_onnx(path)
    graph = model.network
    assert isinstance(graph, Graph)
    assert model.backend.dtype_name == "float64"
    assert graph.time_first is not batch_first
    assert graph.keeps_time
    assert graph.out_width(None) == 3
    for batch, steps in ((2, 6), (3, 6 if static else 4), (1, 6 if static else 1)):
        raw = draw(batch, steps)
        x = torch.from_numpy(raw).requires_grad_(not embedding)
        y = module(x)
        dy = torch.from_numpy(np.random.default_rng(9).standard_normal(y.shape))
        module.zero_grad()
        y.backward(dy)
        # as a layer, batch first whatever the file has
        turned = raw if batch_first else np.swapaxes(raw, 0, 1)
        dturned = dy.numpy() if batch_first else np.swapaxes(dy.numpy(), 0, 1)
        got, _, pullback = graph.vjp(model.params, turned)
        expected = y.detach().numpy() if batch_first else np.swapaxes(y.detach().numpy(), 0, 1)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(model.predict(turned), expected, rtol=0, atol=1e-12)
        dparams, dx, _ = pullback(dturned)
        wanted = expected_gradients(module, kind, graph)
        assert (dynamo and kind == "RNN") or set(wanted) == set(dparams)
        for name, gradient in wanted.items():
            np.testing.assert_allclose(dparams[name], gradient, rtol=0, atol=1e-10, err_msg=name)
        if not embedding:
            dx = dx if batch_first else np.swapaxes(dx, 0, 1)
            np.testing.assert_allclose(dx, x.grad.numpy(), rtol=0, atol=1e-10)
        # by name, as the file has it
        (found,) = graph.run(model.params, {graph.inputs[0].name: raw}).values()
        np.testing.assert_allclose(found, y.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_float32_is_onnxruntimes(torch: Any, tmp_path: Path, dynamo: bool) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    module = network(torch, "GRU", True, True, torch.float32)
    x = np.random.default_rng(0).integers(0, 7, (3, 9))
    path = tmp_path / "model.onnx"
    export(torch, module, torch.from_numpy(x), path, dynamo)
    session = runtime.InferenceSession(path)
    (expected,) = session.run(None, {session.get_inputs()[0].name: x})
    model = prnn.from_onnx(path)
    assert model.backend.dtype_name == "float32"
    np.testing.assert_allclose(model.predict(x), expected, rtol=0, atol=1e-6)


def test_state_goes_in_and_out(torch: Any, tmp_path: Path) -> None:
    """A model with its state as inputs and outputs: chunked equals whole, also one step at a time, with gradients."""

    class Streaming(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.LSTM(4, 5, num_layers=2, batch_first=True)

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            y, (h, c) = self.rnn(x, (h, c))
            return y, h, c

    torch.manual_seed(0)
    module = Streaming().double().eval()
    raw = [np.random.default_rng(k).standard_normal(s) for k, s in enumerate(((3, 6, 4), (2, 3, 5), (2, 3, 5)))]
    x, h, c = (torch.from_numpy(a).requires_grad_() for a in raw)
    path = tmp_path / "model.onnx"
    axes = {"x": {0: "batch", 1: "time"}, "h": {1: "batch"}, "c": {1: "batch"}}
    axes |= {"y": axes["x"], "h2": axes["h"], "c2": axes["c"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["x", "h", "c"], "output_names": ["y", "h2", "c2"]}
        torch.onnx.export(module, (x, h, c), path, dynamo=False, dynamic_axes=axes, **names)
    model = prnn.from_onnx(path)
    graph = model.network
    outputs = module(x, h, c)
    douts = [torch.from_numpy(np.random.default_rng(7).standard_normal(o.shape)) for o in outputs]
    torch.autograd.backward(outputs, douts)
    y, state, pullback = graph.vjp(model.params, raw[0], tuple(raw[1:]))
    for got, expected in zip((y, *state), outputs, strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=0, atol=1e-12)
    _, dx, dstate = pullback(douts[0].numpy(), tuple(d.numpy() for d in douts[1:]))
    for got, of in zip((dx, *dstate), (x, h, c), strict=True):
        np.testing.assert_allclose(got, of.grad.numpy(), rtol=0, atol=1e-10)
    # from a zero state, in chunks, step by step
    whole = model.predict(raw[0])
    first, state = graph.apply(model.params, raw[0][:, :2])
    rest, _ = graph.apply(model.params, raw[0][:, 2:], state)
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), whole, rtol=0, atol=1e-12)
    state = None
    for t in range(6):
        y_t, state = model.step(raw[0][:, t], state)
        np.testing.assert_allclose(y_t, whole[:, t], rtol=0, atol=1e-12)
    with pytest.raises(prnn.InputError, match="state"):
        graph.apply(model.params, raw[0], raw[1])


def test_graph_without_state_does_not_stream(torch: Any, tmp_path: Path) -> None:
    module = network(torch, "GRU", False, True, torch.float32)
    export(torch, module, torch.zeros(2, 6, 4), tmp_path / "model.onnx", dynamo=False)
    model = prnn.from_onnx(tmp_path / "model.onnx")
    with pytest.raises(prnn.InputError, match="step"):
        model.step(np.zeros((2, 4), dtype="float32"))
    with pytest.raises(prnn.InputError, match="sequence_lens"):
        model.predict(np.zeros((2, 6, 4), dtype="float32"), lengths=[6, 2])
    with pytest.raises(prnn.InputError, match="resets"):
        model.predict(np.zeros((2, 6, 4), dtype="float32"), resets=np.zeros((2, 6), dtype=bool))


KERAS = """
import sys, numpy, keras
kind, path = sys.argv[1:]
cell = getattr(keras.layers, kind)
keras.utils.set_random_seed(0)
layers = [keras.layers.Bidirectional(cell(4, return_sequences=True)), cell(5), keras.layers.Dense(2)]
model = keras.Sequential([keras.layers.Input((6, 3)), *layers])
x = numpy.random.default_rng(0).standard_normal((4, 6, 3)).astype("float32")
y = numpy.asarray(model.predict(x, verbose=0))
model(x)
model.export(path, format="onnx", verbose=False)
numpy.savez(path + ".npz", x=x, y=y)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_keras_export(torch: Any, tmp_path: Path, kind: str) -> None:
    """On Keras' torch backend, which unrolls the time loop: T is fixed. The others need tensorflow or jax2onnx."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("keras is not installed")
    path = tmp_path / "model.onnx"
    environment = os.environ | {"KERAS_BACKEND": "torch", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", KERAS, kind, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    saved = np.load(f"{path}.npz")
    model = prnn.from_onnx(path)
    np.testing.assert_allclose(model.predict(saved["x"]), saved["y"], rtol=0, atol=1e-6)
    # it trains
    before = model.evaluate(saved["x"], np.zeros_like(saved["y"]))
    model.fit(saved["x"], np.zeros_like(saved["y"]), epochs=5, optimizer=prnn.sgd(0.1), progress=False)
    assert model.evaluate(saved["x"], np.zeros_like(saved["y"])) < before


def test_external_data_are_read_from_the_models_folder(torch: Any, tmp_path: Path) -> None:
    module = network(torch, "LSTM", True, True, torch.float64)
    x = np.random.default_rng(0).integers(0, 7, (3, 5))
    export(torch, module, torch.from_numpy(x), tmp_path / "inside.onnx", dynamo=False)
    proto = onnx.load(tmp_path / "inside.onnx")
    onnx.save(proto, tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size > 0
    y = prnn.from_onnx(tmp_path / "inside.onnx").predict(x)
    np.testing.assert_array_equal(prnn.from_onnx(tmp_path / "outside.onnx").predict(x), y)
