"""Ways to damage a file, for tests that read thousands of damaged files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]
INTEGERS = (0, 1, -1, 2, 3, 5, 7, 127, 2**31 - 1, -(2**31), 2**62, -(2**63))
VALUES = (*INTEGERS, 10**400, 0.5, -1e308, float("nan"), True, None, "", "relu", "\x1b[2J\n", "\u00b2", [], {}, [[]])


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bits."""
    found = bytearray(data)
    for at in rng.integers(0, len(data), rng.integers(1, 6)):
        found[at] ^= 1 << int(rng.integers(8))
    return bytes(found)


def overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    """A run of bytes, drawn or from elsewhere in the file."""
    at, source, size = (int(n) for n in rng.integers(0, len(data), 3))
    size = size % 16 + 1
    new = rng.bytes(size) if rng.random() < 0.5 else data[source : source + size]
    return data[:at] + new + data[at + len(new) :]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """The end, or a piece within."""
    at = int(rng.integers(0, len(data)))
    return data[:at] if rng.random() < 0.5 else data[:at] + data[at + int(rng.integers(1, 64)) :]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes between."""
    at = int(rng.integers(0, len(data)))
    return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


def fields(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three fields of the model as such: the file stays well-formed."""
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(data)
    for _ in range(int(rng.integers(1, 4))):
        change_field(model, rng)
    return bytes(model.SerializeToString())


def change_field(model: Any, rng: np.random.Generator) -> None:
    from onnx import numpy_helper

    graph = model.graph

    def one(items: Any) -> Any:
        return items[int(rng.integers(len(items)))]

    number = int(one(INTEGERS))
    if not graph.node or not graph.initializer or not graph.input:
        return
    node, tensor, port = one(graph.node), one(graph.initializer), one([*graph.input, *graph.output])
    names = [name for n in graph.node for name in (*n.input, *n.output)] + ["", "nowhere"]
    match int(rng.integers(16)):
        case 0:
            node.op_type = one([n.op_type for n in graph.node] + ["Add", "Tanh", "Reshape", "RNN", "Loop", ""])
        case 1 if node.input:
            node.input[int(rng.integers(len(node.input)))] = one(names)
        case 2 if node.output:
            node.output[int(rng.integers(len(node.output)))] = one(names)
        case 3:
            graph.node.remove(node)
        case 4:
            graph.node.append(node)
        case 5 if node.attribute:
            attribute = one(node.attribute)
            attribute.i, attribute.f = number, float(one((0.0, -1.0, 1e38, np.nan, np.inf)))
            if attribute.ints:
                attribute.ints[int(rng.integers(len(attribute.ints)))] = number
        case 6 if node.attribute:
            one(node.attribute).type = int(rng.integers(0, 14))
        case 7 if node.attribute:
            one(node.attribute).s = one((b"reverse", b"sideways", b"", b"\xff"))
        case 8 if tensor.dims:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = number
        case 9:
            tensor.data_type = int(rng.integers(0, 20))
        case 10:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(one(INTEGERS)).reshape(one([(), (1,)])), tensor.name))
        case 11:
            tensor.name = one(names)
        case 12 if port.type.tensor_type.shape.dim:
            one(port.type.tensor_type.shape.dim).dim_value = number
        case 13:
            port.type.tensor_type.elem_type = int(rng.integers(0, 20))
        case 14:
            model.opset_import[0].version = int(one((*INTEGERS, 6, 7, 10, 11, 13, 18, 22, 25)))
        case 15:
            graph.initializer.remove(tensor)


BYTES: tuple[Mutation, ...] = (flip, overwrite, cut, insert)


def any_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the four above."""
    return BYTES[int(rng.integers(len(BYTES)))](data, rng) if data else data


def json_field(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three values of a JSON text: replaced, taken away, or put in a second time."""
    tree = json.loads(data)
    for _ in range(int(rng.integers(1, 4))):
        change_json(tree, rng)
    return json.dumps(tree).encode()


def change_json(tree: Any, rng: np.random.Generator) -> None:
    while isinstance(tree, (dict, list)) and tree:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(tree[key], (dict, list)) and tree[key] and rng.random() < 0.85:
            tree = tree[key]
            continue
        match int(rng.integers(6)):
            case 0:
                del tree[key]
            case 1 if isinstance(tree, list):
                tree.append(tree[key])
            case 1:
                tree[str(VALUES[int(rng.integers(len(VALUES)))])[:40]] = tree[key]
            case _:
                tree[key] = VALUES[int(rng.integers(len(VALUES)))]
        return


def zip_member(data: bytes, rng: np.random.Generator) -> bytes:
    """One member of an archive, with a checksum that is right again; or its name, or the member itself."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    k = int(rng.integers(len(members)))
    name, content = members[k]
    match int(rng.integers(8)):
        case 0:
            members.pop(k)
        case 1:
            members[k] = (members[int(rng.integers(len(members)))][0], content)
        case 2 | 3 | 4 if name.endswith(".json"):
            members[k] = (name, json_field(content, rng))
        case _:
            members[k] = (name, any_bytes(content, rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED) as new:
        for member in dict(members).items():
            new.writestr(*member)
    return out.getvalue()


def safetensors_header(data: bytes, rng: np.random.Generator) -> bytes:
    """The description at the front of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header = json_field(data[8 : 8 + size], rng)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
