"""ONNX's operators: its own node tests, every option of its recurrent nodes, and every pullback."""

from __future__ import annotations

import unittest
import warnings
from typing import Any

import array_api_compat
import numpy as np
import pytest

import portable_rnn as prnn

pytest.importorskip("onnx", reason="onnx is not installed")
import onnx
import onnx.backend.test
from onnx import TensorProto, helper, numpy_helper

from portable_rnn.interop.onnx import Graph
from portable_rnn.interop.onnx import backend as onnx_backend
from portable_rnn.interop.onnx.operators import OPERATORS
from portable_rnn.interop.onnx.reading import graph_of

RECURRENT = "^test_(gru|lstm|rnn|simple_rnn).*_cpu$"
EVERY_OPSET = 22


# ---------------------------------------------------------------------- ONNX's own tests


@pytest.fixture(scope="module")
def node_tests() -> Any:
    """What `onnx.backend.test` collects; making it computes every expected output, with warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return onnx.backend.test.BackendTest


def test_every_recurrent_node_test_of_onnx(backend: Any, node_tests: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = type("Adapter", (onnx_backend.GraphBackend,), {"library": backend.target})
        runner = node_tests(adapter, __name__)
    runner.include(RECURRENT)
    result = unittest.TestResult()
    runner.test_suite.run(result)
    failed = [str(case) for case, _ in (*result.failures, *result.errors)]
    assert not failed
    assert result.testsRun - len(result.skipped) == 18


def test_every_node_test_of_onnx_that_can_be_read(node_tests: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [t for t in onnx.backend.test.loader.load_model_tests(kind="node") if t.model is not None]
    ran = 0
    for case in cases:
        if not onnx_backend.is_compatible(case.model) or case.name.startswith("test_training_dropout"):
            continue
        for inputs, expected in case.data_sets:
            arrays = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for x in inputs]
            with np.errstate(all="ignore"):
                got = onnx_backend.run_model(case.model, arrays)
            assert len(got) == len(expected)
            for a, b in zip(got, expected, strict=True):
                assert (a.dtype, a.shape) == (b.dtype, b.shape), case.name
                np.testing.assert_allclose(a, b, rtol=case.rtol, atol=case.atol, err_msg=case.name)
        ran += 1
    assert ran > 450


def test_run_node_and_devices() -> None:
    node = helper.make_node("Add", ["a", "b"], ["y"])
    (y,) = onnx_backend.run_node(node, [np.ones(3, "float32"), np.arange(3, dtype="float32")])
    np.testing.assert_array_equal(y, [1, 2, 3])
    assert not onnx_backend.supports_device("CUDA:0")
    with pytest.raises(prnn.InputError, match="CUDA"):
        onnx_backend.prepare(one_node("Neg", [[2]])[0], "CUDA")


# ---------------------------------------------------------------------- graphs of one node


def one_node(
    op: str,
    shapes: list[Any],
    outputs: int = 1,
    opset: int = EVERY_OPSET,
    constants: dict[int, Any] | None = None,
    **attributes: Any,
) -> tuple[Any, list[str]]:
    """A model of one node in float64: inputs x0, x1, ... of these shapes, None left out, constants given by number."""
    constants = constants or {}
    names = ["" if s is None and k not in constants else f"x{k}" for k, s in enumerate(shapes)]
    node = helper.make_node(op, names, [f"y{k}" for k in range(outputs)], **attributes)
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT32 if isinstance(s, str) else TensorProto.DOUBLE, None)
        for k, (n, s) in enumerate(zip(names, shapes, strict=True))
        if n and k not in constants
    ]
    initializers = [numpy_helper.from_array(np.asarray(v), f"x{k}") for k, v in constants.items()]
    results = [helper.make_tensor_value_info(f"y{k}", TensorProto.DOUBLE, None) for k in range(outputs)]
    graph = helper.make_graph([node], "g", inputs, results, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), [i.name for i in inputs]


def graph_from(model: Any) -> Graph:
    return graph_of(model, None, onnx)[0]


def check_pullback(backend: Any, graph: Graph, inputs: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    """Cotangents of every floating input against central differences along a random direction, on this library."""
    rng = np.random.default_rng(1)

    def run(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: np.asarray(y) for n, y in backend.numpy(graph.run({}, backend.array(given))).items()}

    douts = {name: rng.standard_normal(y.shape) for name, y in run(inputs).items()}
    _, pullback = graph.run_vjp({}, backend.array(inputs))
    _, found = pullback(backend.array(douts))
    found = backend.numpy(found)
    assert set(found) == {n for n, x in inputs.items() if x.dtype.kind == "f"}

    def loss(given: dict[str, np.ndarray]) -> float:
        return sum(float(np.sum(y * douts[name])) for name, y in run(given).items())

    for name, gradient in found.items():
        along = rng.standard_normal(gradient.shape)
        step = 1e-6
        ends = [loss(inputs | {name: inputs[name] + sign * step * along}) for sign in (1, -1)]
        measured = (ends[0] - ends[1]) / (2 * step)
        assert measured == pytest.approx(float(np.sum(gradient * along)), rel=tolerance, abs=tolerance), name


# op: (shapes of the floating inputs, constants by number of the input, attributes)
PULLBACKS: dict[str, tuple[str, list[Any], dict[int, Any], dict[str, Any]]] = {
    **{op: (op, [(3, 4)], {}, {}) for op in ("Abs", "Neg", "Exp", "Tanh", "Sigmoid", "Relu", "Softplus", "Softsign")},
    **{op: (op, [(3, 4)], {}, {}) for op in ("Elu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu", "Identity")},
    **{op + "+": (op, [(3, 4)], {}, {}) for op in ("Log", "Sqrt", "Reciprocal")},
    **{op: (op, [(2, 3, 4), (3, 1)], {}, {}) for op in ("Add", "Sub", "Mul", "Max", "Min")},
    "Div+": ("Div", [(3, 1), (2, 3, 4)], {}, {}),
    "Pow+": ("Pow", [(3, 4), (4,)], {}, {}),
    "Sum": ("Sum", [(3, 4), (4,), (3, 1)], {}, {}),
    "Clip": ("Clip", [(3, 4), None, None], {1: np.float64(-0.5), 2: np.float64(0.5)}, {}),
    "Where": ("Where", [None, (3, 4), (4,)], {0: np.arange(12).reshape(3, 4) % 2 == 0}, {}),
    "Cast": ("Cast", [(3, 4)], {}, {"to": TensorProto.DOUBLE}),
    "Dropout": ("Dropout", [(3, 4)], {}, {}),
    "Transpose": ("Transpose", [(2, 3, 4)], {}, {"perm": [2, 0, 1]}),
    "Reshape": ("Reshape", [(2, 3, 4), None], {1: np.array([0, -1])}, {}),
    "Flatten": ("Flatten", [(2, 3, 4)], {}, {"axis": 2}),
    "Squeeze": ("Squeeze", [(2, 1, 4), None], {1: np.array([1])}, {}),
    "Unsqueeze": ("Unsqueeze", [(2, 4), None], {1: np.array([0, -1])}, {}),
    "Expand": ("Expand", [(3, 1), None], {1: np.array([2, 1, 4])}, {}),
    "Tile": ("Tile", [(2, 3), None], {1: np.array([2, 2])}, {}),
    "Concat": ("Concat", [(2, 3), (2, 1)], {}, {"axis": -1}),
    "Slice": ("Slice", [(7, 5), None, None, None, None], {1: [1, -1], 2: [7, -99], 3: [0, 1], 4: [2, -2]}, {}),
    "Slice-all": ("Slice", [(4, 5), None, None], {1: [1, 2], 2: [3, 1000]}, {}),
    "Slice-none": ("Slice", [(4, 5), None, None], {1: [3, 0], 2: [3, 5]}, {}),
    "Gather": ("Gather", [(5, 3, 2), None], {1: np.array([[0, -1], [2, 2]])}, {"axis": 1}),
    "Gather-one": ("Gather", [(5, 3, 2), None], {1: np.array(-1)}, {"axis": 0}),
    "Gemm": ("Gemm", [(3, 2), (3, 4), (4,)], {}, {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    "Gemm-plain": ("Gemm", [(3, 2), (4, 2)], {}, {"transB": 1}),
    "MatMul": ("MatMul", [(2, 5, 3), (3, 4)], {}, {}),
    "MatMul-batch": ("MatMul", [(2, 1, 5, 3), (4, 3, 2)], {}, {}),
    "MatMul-left": ("MatMul", [(3,), (2, 3, 4)], {}, {}),
    "MatMul-right": ("MatMul", [(2, 5, 3), (3,)], {}, {}),
    "MatMul-dot": ("MatMul", [(3,), (3,)], {}, {}),
    "Softmax": ("Softmax", [(2, 3, 4)], {}, {"axis": 1}),
    "LogSoftmax": ("LogSoftmax", [(2, 3, 4)], {}, {}),
    "ReduceSum": ("ReduceSum", [(2, 3, 4), None], {1: np.array([0, -1])}, {}),
    "ReduceSum-noop": ("ReduceSum", [(2, 3)], {}, {"noop_with_empty_axes": 1}),
    "ReduceMean": ("ReduceMean", [(2, 3, 4), None], {1: np.array([1])}, {"keepdims": 0}),
    "ReduceMax": ("ReduceMax", [(2, 3, 4), None], {1: np.array([2, 0])}, {"keepdims": 0}),
    "ReduceMin": ("ReduceMin", [(2, 3, 4)], {}, {}),
}
COVERED_ELSEWHERE = {"RNN", "GRU", "LSTM", "Split"}
WITHOUT_GRADIENT = {"And", "Or", "Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
WITHOUT_GRADIENT |= {"Shape", "Size", "Constant", "ConstantOfShape", "Range"}


def test_every_operator_has_a_gradient_test() -> None:
    assert {name for name, *_ in PULLBACKS.values()} | COVERED_ELSEWHERE | WITHOUT_GRADIENT == set(OPERATORS)


@pytest.mark.parametrize("name", PULLBACKS)
def test_pullback(backend: Any, name: str) -> None:
    op, shapes, constants, attributes = PULLBACKS[name]
    model, names = one_node(op, shapes, constants=constants, **attributes)
    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal(shapes[int(n[1:])]) for n in names}
    if name.endswith("+"):
        inputs = {n: np.abs(x) + 0.5 for n, x in inputs.items()}
    check_pullback(backend, graph_from(model), inputs)


def test_cotangents_of_broadcast_inputs_have_their_shapes() -> None:
    model, names = one_node("Add", [(2, 3, 4), (3, 1)])
    inputs = {name: np.ones(shape) for name, shape in zip(names, [(2, 3, 4), (3, 1)], strict=True)}
    outputs, pullback = graph_from(model).run_vjp({}, inputs)
    _, found = pullback({name: np.ones_like(y) for name, y in outputs.items()})
    assert [found[name].shape for name in names] == [(2, 3, 4), (3, 1)]


def test_pullback_of_split(backend: Any) -> None:
    model, _ = one_node("Split", [(5, 3), None], 2, constants={1: np.array([2, 3])})
    check_pullback(backend, graph_from(model), {"x0": np.random.default_rng(0).standard_normal((5, 3))})


def test_equal_entries_give_their_gradient_to_the_first(backend: Any) -> None:
    model, _ = one_node("ReduceMax", [(2, 3), None], constants={1: np.array([1])})
    _, pullback = graph_from(model).run_vjp({}, backend.array({"x0": np.array([[1.0, 2.0, 2.0], [3.0, 3.0, 0.0]])}))
    _, found = pullback(backend.array({"y0": np.array([[5.0], [7.0]])}))
    np.testing.assert_array_equal(backend.numpy(found)["x0"], [[0, 5, 0], [7, 0, 0]])


# ---------------------------------------------------------------------- recurrent nodes


FUNCTIONS = {
    "Tanh": lambda x, a, b: np.tanh(x),
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "Softplus": lambda x, a, b: np.log1p(np.exp(x)),
    "Elu": lambda x, a, b: np.where(x >= 0, x, a * (np.exp(x) - 1)),
    "LeakyRelu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "ThresholdedRelu": lambda x, a, b: np.where(x >= a, x, 0),
    "Affine": lambda x, a, b: a * x + b,
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.minimum(np.maximum(a * x + b, 0), 1),
}
GATE_COUNT = {"RNN": 1, "GRU": 3, "LSTM": 4}
ACTIVATION_COUNT = {"RNN": 1, "GRU": 2, "LSTM": 3}


def reference(
    op: str,
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    lengths: Any,
    h0: Any,
    c0: Any,
    p: Any,
    functions: list[Any],
    direction: str = "forward",
    clip: float | None = None,
    input_forget: int = 0,
    linear_before_reset: int = 0,
) -> list[np.ndarray]:
    """The specification's equations, one row and one step at a time; layout 0."""
    steps, batch, _ = x.shape
    hidden = r.shape[2]
    count = ACTIVATION_COUNT[op]

    def bounded(a: np.ndarray) -> np.ndarray:
        return a if clip is None else np.clip(a, -clip, clip)

    y = np.zeros((steps, len(w), batch, hidden))
    y_h, y_c = np.zeros((2, len(w), batch, hidden))
    for d in range(len(w)):
        f, *rest = functions[d * count : (d + 1) * count]
        wb, rb = np.split(b[d], 2)
        for n in range(batch):
            h, c = h0[d, n], c0[d, n]
            order = range(lengths[n])
            for t in reversed(order) if direction == "reverse" or d == 1 else order:
                a, ah = w[d] @ x[t, n] + wb, r[d] @ h + rb
                if op == "RNN":
                    h = f(bounded(a + ah))
                elif op == "GRU":
                    z, reset = (f(bounded(u)) for u in np.split((a + ah)[: 2 * hidden], 2))
                    if linear_before_reset:
                        new = a[2 * hidden :] + reset * ah[2 * hidden :]
                    else:
                        new = a[2 * hidden :] + r[d][2 * hidden :] @ (reset * h) + rb[2 * hidden :]
                    h = (1 - z) * rest[0](bounded(new)) + z * h
                else:
                    ai, ao, af, ac = np.split(a + ah, 4)
                    pi, po, pf = np.split(p[d], 3)
                    i = f(bounded(ai + pi * c))
                    forget = 1 - i if input_forget else f(bounded(af + pf * c))
                    c = forget * c + i * rest[0](bounded(ac))
                    h = f(bounded(ao + po * c)) * rest[1](c)
                y[t, d, n] = h
            y_h[d, n], y_c[d, n] = h, c
    return [y, y_h, y_c] if op == "LSTM" else [y, y_h]


ALL = ("B", "sequence_lens", "initial_h", "initial_c", "P")
# name: (operator, its optional inputs, attributes, settings (alpha, beta) of each activation)
UNITS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "rnn": ("RNN", (), {}),
    "rnn-everything": ("RNN", ALL[:3], {"direction": "bidirectional", "clip": 0.6, "layout": 1}),
    "rnn-relu-reverse": ("RNN", ("B", "sequence_lens"), {"direction": "reverse", "activations": ["Relu"]}),
    "rnn-two-functions": (
        "RNN",
        ("B",),
        {
            "direction": "bidirectional",
            "activations": ["LeakyRelu", "Affine"],
            "activation_alpha": [0.3, 0.7],
            "activation_beta": [0.1],
        },
    ),
    **{
        f"rnn-{name}": ("RNN", (), {"activations": [name], "activation_alpha": [0.8], "activation_beta": [0.4]})
        for name in FUNCTIONS
    },
    "gru": ("GRU", (), {}),
    "gru-linear": ("GRU", ("B",), {"linear_before_reset": 1}),
    "gru-everything": (
        "GRU",
        ALL[:3],
        {
            "direction": "bidirectional",
            "layout": 1,
            "clip": 0.5,
            "linear_before_reset": 1,
            "activations": ["HardSigmoid", "Tanh", "Sigmoid", "ScaledTanh"],
            "activation_alpha": [0.25, 1.5],
            "activation_beta": [0.45, 0.5],
        },
    ),
    "gru-clip": ("GRU", ALL[:3], {"direction": "reverse", "clip": 0.4}),
    "lstm": ("LSTM", (), {}),
    "lstm-state": ("LSTM", ("initial_c",), {"direction": "bidirectional"}),
    "lstm-peepholes": ("LSTM", ALL, {"direction": "bidirectional"}),
    "lstm-coupled": ("LSTM", ALL, {"input_forget": 1, "direction": "reverse", "layout": 1}),
    "lstm-coupled-plain": ("LSTM", ("B",), {"input_forget": 1}),
    "lstm-clip": ("LSTM", ("B",), {"clip": 0.3}),
    "lstm-everything": (
        "LSTM",
        ALL,
        {
            "direction": "bidirectional",
            "layout": 1,
            "clip": 0.7,
            "activations": ["Sigmoid", "Elu", "Softsign", "HardSigmoid", "Tanh", "LeakyRelu"],
            "activation_alpha": [0.9, 0.3, 0.05],
            "activation_beta": [0.55],
        },
    ),
}


def recurrent_case(name: str, dtype: str = "float64") -> tuple[Any, dict[str, np.ndarray], list[np.ndarray]]:
    """The model, its inputs by name, and what the reference gives for them."""
    op, optional, attributes = UNITS[name]
    rng = np.random.default_rng(3)
    steps, batch, features, hidden = 5, 3, 2, 3
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATE_COUNT[op] * hidden
    full = {
        "X": rng.standard_normal((steps, batch, features)),
        "W": rng.standard_normal((directions, rows, features)),
        "R": rng.standard_normal((directions, rows, hidden)) / 2,
        "B": rng.standard_normal((directions, 2 * rows)),
        "sequence_lens": np.array([3, 5, 1], dtype=np.int32),
        "initial_h": rng.standard_normal((directions, batch, hidden)),
        "initial_c": rng.standard_normal((directions, batch, hidden)),
        "P": rng.standard_normal((directions, 3 * hidden)),
    }
    order = [*full][: 8 if op == "LSTM" else 6]
    inputs = {n: x for n, x in full.items() if n in (*order[:3], *optional)}
    names = [n if n in inputs else "" for n in order]
    kinds = attributes.get(
        "activations", {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"]}.get(op, ["Sigmoid", "Tanh", "Tanh"])
    )
    kinds = kinds if "activations" in attributes else kinds * directions
    alphas, betas = iter(attributes.get("activation_alpha", ())), iter(attributes.get("activation_beta", ()))
    with_alpha = ("Elu", "LeakyRelu", "ThresholdedRelu", "Affine", "ScaledTanh", "HardSigmoid")
    functions = []
    for kind in kinds:
        proper = next(n for n in FUNCTIONS if n.lower() == kind.lower())
        alpha = next(alphas) if proper in with_alpha else 0
        beta = next(betas) if proper in with_alpha[3:] else 0
        functions.append(lambda a, f=FUNCTIONS[proper], s=alpha, t=beta: f(a, s, t))
    zero = {n: np.zeros_like(x) for n, x in full.items()} | {"sequence_lens": np.full(batch, steps)}
    options = {
        k: attributes[k] for k in ("direction", "clip", "input_forget", "linear_before_reset") if k in attributes
    }
    expected = reference(op, *(inputs.get(n, zero[n]) for n in full), functions, **options)
    if attributes.get("layout"):
        inputs |= {n: np.swapaxes(inputs[n], 0, 1) for n in ("X", "initial_h", "initial_c") if n in inputs}
        expected = [expected[0].transpose(2, 0, 1, 3), *(np.swapaxes(e, 0, 1) for e in expected[1:])]
    kind = TensorProto.DOUBLE if dtype == "float64" else TensorProto.FLOAT
    outputs = ["Y", "Y_h", "Y_c"][: len(expected)]
    node = helper.make_node(op, names, outputs, hidden_size=hidden, **attributes)
    graph = helper.make_graph(
        [node],
        name,
        [
            helper.make_tensor_value_info(n, TensorProto.INT32 if n == "sequence_lens" else kind, x.shape)
            for n, x in inputs.items()
        ],
        [helper.make_tensor_value_info(n, kind, e.shape) for n, e in zip(outputs, expected, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, {n: x.astype(dtype) if x.dtype.kind == "f" else x for n, x in inputs.items()}, expected


@pytest.mark.parametrize("name", UNITS)
def test_recurrent_node_is_the_specification(backend: Any, name: str) -> None:
    model, inputs, expected = recurrent_case(name)
    graph = graph_from(model)
    found = backend.numpy(graph.run({}, backend.array(inputs)))
    for port, e in zip(graph.outputs, expected, strict=True):
        np.testing.assert_allclose(found[port.name], e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", UNITS)
def test_pullback_of_recurrent_node(backend: Any, name: str) -> None:
    model, inputs, _ = recurrent_case(name)
    check_pullback(backend, graph_from(model), inputs)


@pytest.mark.parametrize("name", [n for n, unit in UNITS.items() if not unit[2].get("layout")])
def test_recurrent_node_is_onnxruntimes(name: str) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, inputs, _ = recurrent_case(name, "float32")
    onnx.checker.check_model(model, full_check=True)
    graph = graph_from(model)
    expected = runtime.InferenceSession(model.SerializeToString()).run(None, inputs)
    found = graph.run({}, inputs)
    for port, e in zip(graph.outputs, expected, strict=True):
        np.testing.assert_allclose(found[port.name], e, rtol=0, atol=1e-5)


def test_settings_can_be_given_one_by_one() -> None:
    """As many alphas as activations: each has its own, whether it needs one or not."""
    model, inputs, _ = recurrent_case("gru-linear")
    node = model.graph.node[0]
    node.attribute.append(helper.make_attribute("activations", ["Sigmoid", "LeakyRelu"]))
    outputs = []
    for alphas in ([0.2], [0.0, 0.2]):
        del node.attribute[3:]
        node.attribute.append(helper.make_attribute("activation_alpha", alphas))
        outputs.append(graph_from(model).run({}, inputs)["Y"])
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": ["Sin"]}, "Sin"),
        ({"activations": ["tanh", "Tanh"], "direction": "forward"}, None),
        ({"direction": "sideways"}, "sideways"),
        ({"layout": 2}, "layout"),
        ({"clip": -1.0}, "clip"),
        ({"hidden_size": 4}, "hidden_size"),
    ],
)
def test_unknown_settings_are_refused(change: dict[str, Any], message: str | None) -> None:
    model, inputs, expected = recurrent_case("rnn")
    node = model.graph.node[0]
    kept = [a for a in node.attribute if a.name not in change]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in change.items())])
    if message is None:
        np.testing.assert_allclose(graph_from(model).run({}, inputs)["Y"], expected[0], atol=1e-12)
        return
    with pytest.raises(prnn.InputError, match=message):
        graph_from(model).run({}, inputs)


def test_wrong_shapes_name_the_node_and_the_input() -> None:
    model, inputs, _ = recurrent_case("lstm-peepholes")
    with pytest.raises(prnn.InputError, match=r"LSTM node 'Y': P must have shape \(2, 9\), got \(2, 8\)"):
        graph_from(model).run({}, inputs | {"P": np.zeros((2, 8))})
    with pytest.raises(prnn.InputError, match="expected the inputs"):
        graph_from(model).run({}, {"X": inputs["X"]})


def test_arrays_stay_where_they_are(backend: Any) -> None:
    model, inputs, _ = recurrent_case("gru-linear")
    for y in graph_from(model).run({}, backend.array(inputs)).values():
        assert array_api_compat.array_namespace(y) is backend.target.xp
        assert array_api_compat.device(y) == backend.target.device
