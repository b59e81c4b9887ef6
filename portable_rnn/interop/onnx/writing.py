"""`to_onnx`: a model as an ONNX file."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from dataclasses import replace
from typing import Any

import numpy as np

from ...arrays import to_numpy
from ...errors import InputError
from ...files import write_file
from ...models import Model, network_to_config
from ...version import __version__
from ..common import require
from .elementwise import DTYPES
from .exporting import graph_of_network
from .graph import Graph
from .nodes import Constant, Node, Port
from .packing import packed

__all__ = ["PREFIX", "to_onnx"]

HostParams = dict[str, np.ndarray[Any, Any]]
PREFIX = "portable_rnn."  # of what the file says about the network


def to_onnx(model: Model, path: str | os.PathLike[str] | None = None, *, lengths: bool = False) -> Any:
    """Write a model as an ONNX file, with open batch and time sizes.

    The file has the inputs ``x`` (batch, time, features), or integers (batch, time), and with ``lengths=True`` also
    ``lengths`` (batch,) of int32, and the output ``y``. It is in ONNX's operator set 17, its recurrent operators with
    ``layout=0``, and is checked by ``onnx.checker``. Dropout is left out. A model that came from another ONNX file is
    written with that file's graph and the model's weights.

    Parameters
    ----------
    model : Model
    path : path, optional
        Where to write; an existing file is replaced only by a whole one. Nothing is written when left out.
    lengths : bool
        Take the rows' lengths, which then mean what they mean here.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    InputError
        ONNX can't express the network (``proj_size``, ``zoneout``, a cell of one's own, ...), or the file can't be
        written.
    MissingDependencyError
        onnx is not installed.
    """
    onnx = require("onnx", "onnx", "writing ONNX files")
    network, dtype = model.network, model.backend.dtype_name
    host = {name: to_numpy(p) for name, p in model.params.items()}
    about = {f"{PREFIX}version": __version__} | {f"{PREFIX}user.{k}": v for k, v in model.metadata.items()}
    if isinstance(network, Graph):
        if lengths:
            raise InputError("the model came from an ONNX file, and keeps its inputs: leave lengths out")
        graph, params = _in_dtype(network, dtype), host
    else:
        graph, params = graph_of_network(network, dtype, lengths), packed(network, host)
        with contextlib.suppress(InputError):  # a cell of one's own has no description
            about[f"{PREFIX}network"] = json.dumps(network_to_config(network))
            about[f"{PREFIX}lengths"] = str(int(lengths))
    proto = _model_proto(graph, params, about, onnx)
    try:
        importlib.import_module("onnx.checker").check_model(proto, full_check=True)
        data = proto.SerializeToString()
    except ValueError as error:
        raise InputError("the model is larger than the 2 GB that an ONNX file holds") from error
    if path is not None:
        write_file(path, data)
    return proto


def _model_proto(graph: Graph, params: HostParams, about: dict[str, str], onnx: Any) -> Any:
    helper, numpy_helper = (importlib.import_module(f"onnx.{name}") for name in ("helper", "numpy_helper"))
    arrays = params | {name: constant.array for name, constant in graph.constants}
    proto = helper.make_graph(
        [_node_proto(node, graph.opset, onnx, helper, numpy_helper) for node in graph.nodes],
        "portable_rnn",
        [_port_proto(port, helper) for port in graph.inputs],
        [_port_proto(port, helper) for port in graph.outputs],
        [numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(
        proto,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="portable_rnn",
        producer_version=__version__,
    )
    helper.set_model_props(model, about)
    return model


def _node_proto(node: Node, opset: int, onnx: Any, helper: Any, numpy_helper: Any) -> Any:
    proto = helper.make_node(node.op, node.inputs, node.outputs, name=node.name or None)
    known = onnx.defs.get_schema(node.op, opset, "").attributes
    for name, value in node.attributes:
        value = numpy_helper.from_array(value.array) if isinstance(value, Constant) else value
        proto.attribute.append(helper.make_attribute(name, value, attr_type=int(known[name].type)))
    return proto


def _port_proto(port: Port, helper: Any) -> Any:
    kind = next(number for number, name in DTYPES.items() if name == port.dtype)
    return helper.make_tensor_value_info(port.name, kind, port.dims)


def _in_dtype(graph: Graph, dtype: str) -> Graph:
    """The graph with another floating dtype throughout."""
    number = next(n for n, name in DTYPES.items() if name == dtype)

    def constant(value: Any) -> Any:
        if not isinstance(value, Constant) or np.dtype(value.dtype).kind != "f":
            return value
        return Constant.of(value.array.astype(dtype))

    def attribute(node: Node, name: str, value: Any) -> Any:
        floating = np.dtype(DTYPES.get(value, "int64")).kind == "f" if name == "to" and node.op == "Cast" else False
        return number if floating else constant(value)

    def ports(given: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(replace(port, dtype=dtype) if port.floating else port for port in given)

    nodes = (
        replace(node, attributes=tuple((name, attribute(node, name, value)) for name, value in node.attributes))
        for node in graph.nodes
    )
    return replace(
        graph,
        nodes=tuple(nodes),
        inputs=ports(graph.inputs),
        outputs=ports(graph.outputs),
        constants=tuple((name, constant(value)) for name, value in graph.constants),
    )
