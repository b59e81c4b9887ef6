"""Damaged and hostile ONNX files: a model or an InputError in one line, never anything else."""

from __future__ import annotations

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
