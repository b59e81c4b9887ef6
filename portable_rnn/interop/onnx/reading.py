"""From a file to a `Graph`, trusting nothing in it.

What is checked before anything is computed: the file is whole; every operator, its version, attributes and number of
inputs are known; every value is made once and before it is used, so there are no cycles; every array has as much data
as its shape says; external data lie in the file's own folder. Sizes that stand in the data are checked when a node
runs (`nodes.MAX_ELEMENTS`). No code of the file is ever run: there is no pickle, and operators stand in a table.
"""

from __future__ import annotations

import importlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from .elementwise import DTYPES
from .external import ExternalFiles
from .functions import MAX_NODES, inlined
from .graph import Graph
from .nodes import MAX_AXES, Constant, Node, Port
from .operators import OLDEST_OPSET, OPERATORS
from .recurrent import unit_of

__all__ = ["array_of", "graph_of", "read_model", "sequence_lens_of"]

HostParams = dict[str, np.ndarray[Any, Any]]
# The largest file that is read: protobuf's own limit.
MAX_BYTES = 2**31 - 1
MAX_MESSAGES = 500_000
_FIELDS = {"float32": "float_data", "float64": "double_data", "int64": "int64_data", "uint64": "uint64_data"}
_FIELDS |= {"uint32": "uint64_data"}
# AttributeProto.type -> field
_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}


def read_model(source: Any, onnx: Any) -> tuple[Any, Path | None]:
    """The ModelProto of a path, of bytes or of a ModelProto, and the folder where external data may lie.

    Raises
    ------
    InputError
        There is no such file, or it is not a whole ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        return source, None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _parsed(bytes(source), "the bytes given", onnx), None
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"expected a path, bytes or an onnx.ModelProto, got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no model file at {path}: expected an .onnx file")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes: at most {MAX_BYTES:,} are read")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error
    return _parsed(data, str(path), onnx), path.parent


def _parsed(data: bytes, where: str, onnx: Any) -> Any:
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (decode_error, RecursionError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: not a whole ONNX model; it was cut short or is of another kind") from error
    if not model.HasField("graph") or not model.graph.output:
        raise InputError(f"{where}: has no graph with an output; it was cut short or is not an ONNX model")
    return model


def graph_of(model: Any, folder: Path | None, onnx: Any) -> tuple[Graph, HostParams]:
    """The graph of a ModelProto, and its parameters.

    Raises
    ------
    InputError
        Anything in it is unknown, missing, doubled, too large or out of order.
    """
    _check_text(model)
    opset = _opset(model, onnx)
    if model.functions:
        model = inlined(model)
    proto = model.graph
    if len(proto.node) > MAX_NODES:
        raise InputError(f"expected a graph of at most {MAX_NODES:,} nodes, got {len(proto.node):,}")
    if proto.sparse_initializer:
        raise InputError("the file has sparse initializers, which are not read")
    files = ExternalFiles(folder)
    arrays: HostParams = {}
    for tensor in proto.initializer:
        if not tensor.name or tensor.name in arrays:
            raise InputError(f"initializer {tensor.name!r} has no name of its own")
        arrays[tensor.name] = array_of(tensor, files)
    inputs = tuple(_port(value) for value in proto.input if value.name not in arrays)
    outputs = tuple(_port(value) for value in proto.output)
    nodes = tuple(_node(node, opset, files, onnx) for node in proto.node)
    _check_order(nodes, [port.name for port in inputs], list(arrays), [port.name for port in outputs])
    shaping = {node.inputs[k] for node in nodes for k in OPERATORS[node.op].host if node.has_input(k)}
    weights = {n: a for n, a in arrays.items() if a.dtype.kind == "f" and a.ndim and n not in shaping}
    constants = tuple((n, Constant.of(a)) for n, a in arrays.items() if n not in weights)
    graph = Graph(
        nodes,
        inputs,
        outputs,
        tuple((name, tuple(array.shape)) for name, array in weights.items()),
        constants,
        opset,
        lengths=sequence_lens_of(nodes, inputs),
    )
    return graph, weights


def sequence_lens_of(nodes: tuple[Node, ...], inputs: tuple[Port, ...]) -> str:
    """Name of the input that reaches ``sequence_lens`` of a recurrent node, itself or as another dtype; or ""."""
    names = {port.name for port in inputs[1:] if not port.floating}
    same = {node.outputs[0]: node.inputs[0] for node in nodes if node.op in ("Cast", "Identity") and node.outputs}
    for node in nodes:
        if node.op in ("RNN", "GRU", "LSTM") and node.has_input(4):
            name = node.inputs[4]
            while name in same:
                name = same[name]
            if name in names:
                return name
    return ""


def _check_text(model: Any) -> None:
    """Names that are not UTF-8 arrive as bytes: refuse them once, for all that follows; and a file of endless parts."""
    waiting, count = [model], 0
    while waiting:
        count += 1
        for field, value in waiting.pop().ListFields():
            if field.type == field.TYPE_STRING:
                if any(isinstance(v, bytes) for v in ([value] if isinstance(value, (bytes, str)) else value)):
                    raise InputError(f"the file has a {field.name} that is not text: it is damaged")
            elif field.type == field.TYPE_MESSAGE:
                waiting += [value] if hasattr(value, "ListFields") else value
        if count + len(waiting) > MAX_MESSAGES:
            raise InputError(f"expected a file of at most {MAX_MESSAGES:,} parts, got a longer one")


def _opset(model: Any, onnx: Any) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    if version is None:
        raise InputError("the file names no version of ONNX's operators (opset_import)")
    if version < OLDEST_OPSET:
        raise InputError(
            f"the file has operator set {version}: {OLDEST_OPSET} is the oldest that is read; export it anew"
        )
    if version > onnx.defs.onnx_opset_version():
        raise InputError(f"operator set {version} is not in the installed onnx {onnx.__version__}: upgrade onnx")
    return int(version)


def _check_order(nodes: tuple[Node, ...], inputs: list[str], initializers: list[str], outputs: list[str]) -> None:
    """Every value is made once, before its use."""
    made = set()
    for name in [*inputs, *initializers]:
        if not name or name in made:
            raise InputError(f"input {name!r} has no name of its own")
        made.add(name)
    later = {name for node in nodes for name in node.outputs if name}
    for node in nodes:
        for name in node.inputs:
            if name and name not in made:
                what = "made by a later node: nodes are out of order or in a cycle" if name in later else "made nowhere"
                raise InputError(f"{node}: input {name!r} is {what}")
        for name in node.outputs:
            if name and name in made:
                raise InputError(f"{node}: output {name!r} is made a second time")
            made.update({name} - {""})
    missing = [name for name in outputs if name not in made]
    if missing or len(set(outputs)) != len(outputs):
        raise InputError(
            f"output {(missing or outputs)[0]!r} of the graph is {'made nowhere' if missing else 'named twice'}"
        )


# ---------------------------------------------------------------------- nodes


def _node(proto: Any, opset: int, files: ExternalFiles, onnx: Any) -> Node:
    kind = proto.op_type if proto.op_type.isidentifier() else repr(proto.op_type)
    where = f"{kind} node {proto.name or next((n for n in proto.output if n), '')!r}"
    if proto.domain not in ("", "ai.onnx"):
        raise InputError(f"{where}: operators of domain {proto.domain!r} are not known")
    operator = OPERATORS.get(proto.op_type)
    if operator is None:
        raise InputError(f"{where}: operator {proto.op_type!r} is not known, {len(OPERATORS)} others are")
    try:
        schema = onnx.defs.get_schema(proto.op_type, opset, "")
    except (onnx.defs.SchemaError, TypeError, OverflowError) as error:
        raise InputError(f"{where}: is not in operator set {opset} of the installed onnx {onnx.__version__}") from error
    if schema.since_version > operator.newest:
        raise InputError(
            f"{where}: version {schema.since_version} of the operator is not known yet, export to an older one"
        )
    inputs, outputs = tuple(proto.input), tuple(proto.output)
    for what, names, least, most in (
        ("inputs", inputs, schema.min_input, schema.max_input),
        ("outputs", outputs, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            raise InputError(f"{where}: has {len(names)} {what}, expected {least} to {most}")
    for k, name in enumerate(inputs):
        formal = schema.inputs[min(k, len(schema.inputs) - 1)]
        if not name and formal.option != onnx.defs.OpSchema.FormalParameterOption.Optional:
            raise InputError(f"{where}: input {formal.name!r} is left out")
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None or attribute.name in attributes:
            raise InputError(f"{where}: attribute {attribute.name!r} is {'given twice' if known else 'not known'}")
        if attribute.type != int(known.type) or attribute.type not in _ATTRIBUTES:
            raise InputError(f"{where}: attribute {attribute.name!r} has a type that is not read")
        attributes[attribute.name] = _attribute(attribute, where, files)
    missing = [name for name, known in schema.attributes.items() if known.required and name not in attributes]
    if missing:
        raise InputError(f"{where}: attribute {missing[0]!r} is missing")
    node = Node(proto.op_type, inputs, outputs, tuple(sorted(attributes.items())), proto.name)
    if proto.op_type in ("RNN", "GRU", "LSTM"):
        try:
            unit_of(node)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return node


def _attribute(proto: Any, where: str, files: ExternalFiles) -> Any:
    value = getattr(proto, _ATTRIBUTES[proto.type])
    try:
        match proto.type:
            case 1:
                return decimal(value)
            case 2:
                return int(value)
            case 3:
                return value.decode()
            case 4:
                return Constant.of(array_of(value, files))
            case 6:
                return tuple(decimal(v) for v in value)
            case 7:
                return tuple(int(v) for v in value)
            case _:
                return tuple(v.decode() for v in value)
    except (UnicodeDecodeError, InputError) as error:
        raise InputError(f"{where}: attribute {proto.name!r}: {error}") from error


def decimal(value: float) -> float:
    """A float32 of the file as its shortest decimal: 0.2, not 0.20000000298, in a float64 model too."""
    return float(str(np.float32(value)))


# ---------------------------------------------------------------------- values


def _port(value: Any) -> Port:
    if not value.name or not value.type.HasField("tensor_type"):
        raise InputError(f"{value.name!r} is not an array: sequences, maps and optional values are not read")
    tensor = value.type.tensor_type
    dtype = DTYPES.get(tensor.elem_type)
    if dtype is None:
        raise InputError(f"{value.name!r} has data type {tensor.elem_type}, which is not a plain number")
    if not tensor.HasField("shape"):
        return Port(value.name, dtype)
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value < 1:
            raise InputError(f"{value.name!r} has a size of {dim.dim_value}: expected at least 1")
        dims.append(int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or None)
    return Port(value.name, dtype, tuple(dims))


def array_of(tensor: Any, files: ExternalFiles) -> np.ndarray[Any, Any]:
    """The array of a TensorProto; a view of the file's bytes where they lie there as such.

    Raises
    ------
    InputError
        Its shape and its data don't fit, its dtype is not a plain number, or its data lie outside the folder.
    """
    name = repr(tensor.name) if tensor.name else "an array"
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise InputError(f"{name} has data type {tensor.data_type}, which is not a plain number")
    shape = tuple(int(n) for n in tensor.dims)
    count = math.prod(shape)
    size = count * np.dtype(dtype).itemsize
    if any(n < 0 for n in shape) or len(shape) > MAX_AXES or math.prod(max(n, 1) for n in shape) > MAX_BYTES:
        raise InputError(f"{name} has shape {shape}, of which no array can be")
    if tensor.HasField("segment"):
        raise InputError(f"{name} is in segments, which are not read")
    if tensor.data_location == 1:
        raw = files.read(name, tensor, size)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _typed(name, tensor, dtype, shape, count)
    if len(raw) != size:
        raise InputError(f"{name} of shape {shape} and {dtype} needs {size:,} bytes, the file has {len(raw):,}")
    return np.frombuffer(raw, dtype=np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def _typed(name: str, tensor: Any, dtype: str, shape: tuple[int, ...], count: int) -> np.ndarray[Any, Any]:
    values = getattr(tensor, _FIELDS.get(dtype, "int32_data"))
    if len(values) != count:
        raise InputError(f"{name} of shape {shape} needs {count:,} entries, the file has {len(values):,}")
    if dtype == "float16":
        return np.asarray(values, dtype=np.int64).astype(np.uint16).view(np.float16).reshape(shape)
    kind = {"f": np.float64, "u": np.uint64}.get(np.dtype(dtype).kind, np.int64)
    return np.asarray(values, dtype=kind if _FIELDS.get(dtype) else np.int64).astype(dtype).reshape(shape)
