"""Damaged and hostile ONNX files: a model or an InputError in one line, never anything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn

pytest.importorskip("onnx", reason="onnx is not installed")
import onnx
from onnx import TensorProto, helper, numpy_helper


def small_model(steps: Any = "time", layout: int = 0) -> Any:
    """Shape arithmetic as torch's exporter writes it, around an LSTM."""
    rng = np.random.default_rng(0)
    weights = {
        "W": rng.standard_normal((2, 8, 3)),
        "R": rng.standard_normal((2, 8, 2)),
        "B": rng.standard_normal((2, 16)),
        "P": rng.standard_normal((2, 6)),
        "V": rng.standard_normal((4, 3)),
    }
    constants = {"zero": np.array([0]), "two": np.array([2]), "last": np.array(-1), "shape": np.array([0, 0, -1])}
    nodes = [
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["two", "batch", "two"], ["sizes"], axis=0),
        helper.make_node("ConstantOfShape", ["sizes"], ["h0"], value=numpy_helper.from_array(np.zeros(1, "float32"))),
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM", ["xt", "W", "R", "B", "", "h0", "", "P"], ["Y"], direction="bidirectional", clip=3.0, hidden_size=2
        ),
        helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["Yt", "shape"], ["Yr"]),
        helper.make_node("Gather", ["Yr", "last"], ["end"], axis=0),
        helper.make_node("Gemm", ["end", "V"], ["y"], alpha=0.5),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", steps, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(a.astype("float32"), n) for n, a in weights.items()]
        + [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refused(proto: Any, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message) as caught:
        prnn.from_onnx(proto.SerializeToString() if not isinstance(proto, (bytes, Path)) else proto)
    assert "\n" not in str(caught.value)


def changed(change: Callable[[Any], Any]) -> Any:
    model = small_model()
    change(model)
    return model


def test_small_model_runs() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype("float32")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (expected,) = runtime.InferenceSession(small_model().SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(prnn.from_onnx(small_model()).predict(x), expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- each danger by name


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "no model file")
    refused(tmp_path, "no model file")
    with pytest.raises(prnn.InputError, match="got int"):
        prnn.from_onnx(3)


@pytest.mark.parametrize("keep", [0, 1, 10, 0.3, 0.9, 0.999])
def test_cut_short(keep: float) -> None:
    data = small_model().SerializeToString()
    refused(data[: int(keep if keep >= 1 else keep * len(data))], "not a whole ONNX model|has no graph")


def test_other_kinds_of_file(tmp_path: Path) -> None:
    for data in (b"not onnx at all", b"\x80\x04\x95pickle", b"PK\x03\x04zip", bytes(1000)):
        refused(data, "ONNX")
        (tmp_path / "m.onnx").write_bytes(data)
        refused(tmp_path / "m.onnx", "ONNX")


def test_cycles_and_unsorted_nodes() -> None:
    refused(changed(lambda m: m.graph.node[3].input.__setitem__(0, "Yt")), "cycle")
    refused(changed(lambda m: m.graph.node[3].input.__setitem__(0, "xt")), "cycle")
    refused(changed(lambda m: m.graph.node[5].input.__setitem__(0, "nowhere")), "made nowhere")
    refused(changed(lambda m: m.graph.node[5].output.__setitem__(0, "xt")), "a second time")
    refused(changed(lambda m: m.graph.node[5].output.__setitem__(0, "W")), "a second time")
    refused(changed(lambda m: setattr(m.graph.output[0], "name", "z")), "made nowhere")
    refused(changed(lambda m: m.graph.output.append(m.graph.output[0])), "named twice")
    refused(changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "name of its own")


def test_unknown_operators_domains_and_versions() -> None:
    refused(changed(lambda m: setattr(m.graph.node[8], "op_type", "Conv")), "'Conv' is not known")
    refused(changed(lambda m: setattr(m.graph.node[8], "domain", "com.microsoft")), "domain 'com.microsoft'")
    refused(changed(lambda m: setattr(m.opset_import[0], "version", 1)), "7 is the oldest")
    refused(changed(lambda m: setattr(m.opset_import[0], "version", 10**6)), "not in the installed onnx")
    refused(changed(lambda m: setattr(m.opset_import[0], "version", 2**62)), "not in the installed onnx")
    refused(changed(lambda m: m.opset_import.pop()), "no version")
    add = helper.make_attribute("surprise", 1)
    refused(changed(lambda m: m.graph.node[8].attribute.append(add)), "'surprise' is not known")
    refused(changed(lambda m: m.graph.node[8].attribute.append(helper.make_attribute("beta", "x"))), "type")
    refused(changed(lambda m: m.graph.node[8].input.pop()), "1 inputs")
    refused(changed(lambda m: m.graph.node[8].input.__setitem__(1, "")), "left out")


def test_subgraphs_are_refused() -> None:
    body = helper.make_graph([], "b", [], [helper.make_tensor_value_info("W", TensorProto.FLOAT, None)])
    node = helper.make_node("If", ["last"], ["Yr2"], then_branch=body, else_branch=body)
    refused(changed(lambda m: m.graph.node.insert(7, node)), "'If' is not known")


def test_absurd_sizes() -> None:
    def shape(m: Any, *dims: int) -> None:
        m.graph.initializer[0].dims[:] = dims

    refused(changed(lambda m: shape(m, 2**40, 2**40, 2**40)), "no array can be")
    refused(changed(lambda m: shape(m, 2**63 - 1)), "no array can be")
    refused(changed(lambda m: shape(m, 0, 2**62, 2**62)), "no array can be")
    refused(changed(lambda m: shape(m, *[1] * 100)), "no array can be")
    refused(changed(lambda m: shape(m, 2**28)), "needs .* bytes")
    refused(changed(lambda m: shape(m, -2, -8, 3)), "shape")
    refused(changed(lambda m: shape(m, 2, 8, 4)), "needs 256 bytes, the file has 192")

    def sizes(m: Any, n: int) -> None:
        m.graph.initializer[6].CopyFrom(numpy_helper.from_array(np.array([n]), "two"))

    x = np.zeros((2, 5, 3), "float32")
    for n in (2**40, 2**62, -1):
        with pytest.raises(prnn.InputError, match=r"ConstantOfShape node .* at most"):
            prnn.from_onnx(changed(lambda m, n=n: sizes(m, n))).predict(x)
    refused(changed(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -5)), "size of -5")
    steps = numpy_helper.from_array(np.array(2**40), "last")
    model = changed(lambda m: m.graph.initializer[7].CopyFrom(steps))
    with pytest.raises(prnn.InputError, match="Gather"):
        prnn.from_onnx(model).predict(x)
    range_node = helper.make_node("Range", ["first", "end", "step"], ["y"])
    for limits in ((0.0, 1e30, 1.0), (0.0, 1.0, 1e-30), (0.0, np.inf, 1.0), (0.0, 1.0, 0.0)):
        constants = [numpy_helper.from_array(np.float32(v), n) for v, n in zip(limits, range_node.input, strict=True)]
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("x", "y")]
        graph = helper.make_graph([range_node], "g", ports[:1], ports[1:], constants)
        found = prnn.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
        with pytest.raises(prnn.InputError, match="Range"):
            found.network.run(found.params, {"x": np.zeros(3, "float32")})


def external(location: str, **entries: Any) -> Callable[[Any], None]:
    def change(m: Any) -> None:
        tensor = m.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


def test_external_data_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(192))
    (folder / "weights.bin").write_bytes(bytes(192))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "sub").mkdir()
    path = folder / "m.onnx"

    def at(location: str, **entries: Any) -> Path:
        onnx.save(changed(lambda m: None), path)
        path.write_bytes(changed(external(location, **entries)).SerializeToString())
        return path

    assert np.all(prnn.from_onnx(at("weights.bin")).params["W"] == 0)
    for location in (
        "../secret.bin",
        str(tmp_path / "secret.bin"),
        "link.bin",
        "none.bin",
        "sub",
        "",
        "a\0b",
        "/dev/zero",
    ):
        refused(at(location), "model's own folder|can't be read")
    for entries in ({"offset": 1}, {"length": 100}, {"offset": -1}, {"offset": 10**30}, {"length": 10**30}):
        refused(at("weights.bin", **entries), "needs 192 bytes")
    refused(at("weights.bin", offset="x"), "can't be read")
    refused(changed(external("weights.bin")), "pass the model's path")


def test_types_that_are_no_numbers() -> None:
    def kind(m: Any, number: int) -> None:
        m.graph.initializer[0].data_type = number

    refused(changed(lambda m: kind(m, TensorProto.STRING)), "not a plain number")
    refused(changed(lambda m: kind(m, 77)), "not a plain number")
    refused(changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8)), "not a plain number")
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    refused(changed(lambda m: m.graph.input[0].CopyFrom(sequence)), "not an array")


def test_description_of_a_huge_network_is_not_believed() -> None:
    model = prnn.to_onnx(prnn.Model(prnn.GRU(2, 3)))
    entry = next(e for e in model.metadata_props if e.key.endswith("network"))
    for change in ('"num_layers": 1000000000', '"num_layers": true', '"num_layers": null', '"num_layers": "1"'):
        entry.value = entry.value.replace('"num_layers": 1', change)
        assert type(prnn.from_onnx(model).network).__name__ == "Graph"
    for value in ("[" * 100000, "{}", "null", '{"type": "GRU"}', '{"type": "Sequential", "layers": [1]}'):
        entry.value = value
        assert type(prnn.from_onnx(model).network).__name__ == "Graph"


# ---------------------------------------------------------------------- small files that ask for much


def doubling(nest: int) -> Any:
    """Local functions, each of which calls the one before twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Tanh", ["a"], ["b"])], opsets)]
    for k in range(1, nest):
        calls = [helper.make_node(f"f{k - 1}", [a], [b], domain="own") for a, b in ("ac", "cb")]
        functions.append(helper.make_function("own", f"f{k}", ["a"], ["b"], calls, opsets))
    return small_graph([helper.make_node(f"f{nest - 1}", ["x"], ["y"], domain="own")], functions=functions)


def small_graph(nodes: list[Any], functions: Any = (), shape: Any = ("B", 3), **constants: Any) -> Any:
    """x (B, 3) -> y."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=list(functions), opset_imports=opsets, ir_version=8)


def chained(op: str, count: int, inputs: Any, **attributes: Any) -> list[Any]:
    """Nodes of which each takes the output of the one before."""
    names = ["x", *(f"v{k}" for k in range(count - 1)), "y"]
    return [helper.make_node(op, inputs(names[k]), [names[k + 1]], **attributes) for k in range(count)]


OWN = [helper.make_node("Identity", ["x"], ["y"])]


def made(op: str, inputs: list[str], count: int = 1, **attributes: Any) -> list[Any]:
    """Nodes beside those that give y."""
    return [*(helper.make_node(op, inputs, [f"c{k}"], **attributes) for k in range(count)), *OWN]


FLOATS = {"W": np.ones((1, 4, 1), "float32"), "R": np.ones((1, 4, 1), "float32")}
GREEDY: dict[str, Callable[[], Any]] = {
    "functions": lambda: doubling(20),
    "ConstantOfShape": lambda: small_graph(made("ConstantOfShape", ["s"], 8), s=np.array([2**27])),
    "many of half the size": lambda: small_graph(made("ConstantOfShape", ["s"], 40), s=np.array([2**22])),
    "Expand": lambda: small_graph(chained("Expand", 1, lambda x: [x, "s"]), s=np.array([2**26, 1, 1])),
    "Tile": lambda: small_graph(chained("Tile", 16, lambda x: [x, "s"]), s=np.array([4, 1])),
    "Concat": lambda: small_graph(chained("Concat", 30, lambda x: [x, x], axis=0)),
    "Range": lambda: small_graph(made("Range", ["a", "b", "a"], 8), a=np.float32(1), b=np.float32(2**26)),
    "Gather": lambda: small_graph([helper.make_node("Gather", ["x", "i"], ["g"], axis=0),
        helper.make_node("Gather", ["g", "i"], ["y"], axis=1)], i=np.zeros(2**14, "int64")),
    "Add": lambda: small_graph([*made("ConstantOfShape", ["s"]), helper.make_node("Transpose", ["c0"], ["t"]),
        helper.make_node("Add", ["c0", "t"], ["o"])], s=np.array([2**15, 1])),
    "MatMul": lambda: small_graph([*made("ConstantOfShape", ["s"]),
        *(helper.make_node("MatMul", ["c0", "c0"], [f"m{k}"]) for k in range(60))], s=np.array([2000, 2000])),
    "LSTM": lambda: small_graph([*made("ConstantOfShape", ["s"]),
        helper.make_node("LSTM", ["c0", "W", "R"], ["Y"], hidden_size=1)], s=np.array([2**22, 1, 1]), **FLOATS),
    "nodes": lambda: small_graph([*OWN, *[helper.make_node("", [], [])] * 100_000]),
    "fixed input": lambda: small_graph(
        [*OWN, *(helper.make_node("Tanh", ["x"], [f"t{k}"]) for k in range(50))], shape=(2**12, 2**13)),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_a_small_file_costs_little(name: str) -> None:
    """Some hundred bytes each; without a budget they take gigabytes or minutes."""
    resource = pytest.importorskip("resource")
    data = GREEDY[name]().SerializeToString()
    assert len(data) < 500_000
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        model = prnn.from_onnx(data)
    except prnn.InputError:
        model = None
    if model is not None:
        with pytest.raises(prnn.InputError):
            model.predict(np.ones((2, 3), "float32"))
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_local_functions_are_read_where_they_end() -> None:
    x = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
    expected = x
    for _ in range(8):
        expected = np.tanh(expected)
    np.testing.assert_allclose(prnn.from_onnx(doubling(4)).predict(x), expected, atol=1e-6)
    endless = doubling(2)
    endless.functions[0].node[0].op_type, endless.functions[0].node[0].domain = "f1", "own"
    refused(endless, "one within itself")
    twice = doubling(2)
    twice.functions.append(twice.functions[0])
    refused(twice, "expected one of that name, got two")


def test_arrays_that_share_a_file_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(192))
    model = changed(external("weights.bin"))
    for k in range(5):
        model.graph.initializer.append(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"again{k}"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", "at most 4 times the files")


def test_names_of_a_file_are_printed_without_control_characters() -> None:
    model = small_graph([helper.make_node("\x1b[2JEvil\n", ["x"], ["y"], name="\x1b]0;\x07")])
    with pytest.raises(prnn.InputError) as caught:
        prnn.from_onnx(model)
    assert str(caught.value).isprintable()
    model = small_graph(OWN)
    model.graph.input[0].name = model.graph.node[0].input[0] = "\x1b[2J"
    assert repr(prnn.from_onnx(model).network).isprintable()


def test_weights_that_are_no_numbers_are_named() -> None:
    def lost(model: Any) -> None:
        values = numpy_helper.to_array(model.graph.initializer[1]).copy()
        values[0, 0, 0] = np.nan
        model.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "R"))

    refused(changed(lost), "parameter 'R' holds 1 NaN .*expected finite weights")
