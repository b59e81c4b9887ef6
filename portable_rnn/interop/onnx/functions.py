"""Local functions of a file, put in place of their calls after what that makes of them was worked out."""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import InputError
from ..common import first_line

__all__ = ["inlined"]

MAX_NODES = 25_000
_RATIO, _FREE = 4, 2**20
_DEEPEST = 64
_Key = tuple[str, str, str]


def inlined(model: Any) -> Any:
    """The model with the bodies of its local functions in place of their calls.

    Raises
    ------
    InputError
        A function calls itself, there are two of one name, or the calls make far more of the file than it is.
    """
    bodies: dict[_Key, Any] = {}
    for function in model.functions:
        if (key := _key(function, function.name)) in bodies:
            raise InputError(f"local function {function.name!r}: expected one of that name, got two")
        bodies[key] = function
    sizes: dict[_Key, tuple[int, int]] = {}
    nodes, size = _expanded(model.graph.node, bodies, sizes, ())
    if nodes > MAX_NODES or size > _RATIO * model.ByteSize() + _FREE:
        raise InputError(
            f"local functions: expected at most {MAX_NODES:,} nodes in {_RATIO} times the file's size, got {nodes:,} "
            f"nodes of {size:,} bytes: export the model without functions"
        )
    try:
        return importlib.import_module("onnx.inliner").inline_local_functions(model)
    except Exception as error:  # the inliner is C++ and states no exceptions
        raise InputError(f"the file's local functions can't be inlined: {first_line(error)}") from error


def _key(message: Any, name: str) -> _Key:
    return message.domain, name, getattr(message, "overload", "")


def _expanded(nodes: Any, bodies: dict[_Key, Any], sizes: dict[_Key, tuple[int, int]], above: tuple[_Key, ...]) -> Any:
    """(nodes, bytes) of a list of nodes with every call replaced."""
    count = size = 0
    for node in nodes:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InputError(f"node {node.name!r}: operator {node.op_type!r} has a graph of its own, which is not read")
        key = _key(node, node.op_type)
        count, size = count + 1, size + node.ByteSize()
        if key not in bodies:
            continue
        if key in above or len(above) > _DEEPEST:
            raise InputError(f"local function {node.op_type!r}: expected calls that end, got one within itself")
        if key not in sizes:
            sizes[key] = _expanded(bodies[key].node, bodies, sizes, (*above, key))
        count, size = count + sizes[key][0], size + sizes[key][1]
    return count, size
