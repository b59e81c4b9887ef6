"""Computing the nodes of a graph one after another, and backward.

What is known without the data (shapes, constants and what is made of them) stays on the host as `Host` values, computed
by NumPy: so it is static in a trace. Everything else is arrays of the caller's library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ...arrays import Array, Backend, backend_of, from_host, is_traced, namespace_of, on_their_device
from ...errors import InputError
from ..common import first_line
from .budget import Budget
from .nodes import Call, Host, Node, Pullback
from .operators import OPERATORS

__all__ = ["Step", "common_backend", "evaluate", "placed", "reverse"]

_NUMPY = namespace_of(np.zeros(1))
# What an operator raises for arrays that it can't take, over all array libraries.
_REFUSALS = (ArithmeticError, LookupError, MemoryError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Step(NamedTuple):
    """What the backward pass needs of a node."""

    node: Node
    outputs: tuple[Any, ...]
    pullback: Pullback


@on_their_device
def evaluate(
    nodes: Iterable[Node], opset: int, given: Mapping[str, Any], like: Backend, budget: Budget | None = None
) -> tuple[dict[str, Any], list[Step]]:
    """Every value by name, from those that are given, and what the backward pass needs.

    Raises
    ------
    InputError
        A node can't compute, or asks for more than the budget: the message names it.
    """
    values = dict(given)
    traced = any(is_traced(v) for v in values.values() if not isinstance(v, Host))
    tape: list[Step] = []
    nodes = tuple(nodes)
    budget = budget or Budget.of_inputs(given, len(nodes))
    for node in nodes:
        try:
            budget.spend(node, [values[name] if name else None for name in node.inputs])
            outputs, pullback = _run_node(node, opset, values, like, traced)
        except _REFUSALS as error:
            raise InputError(f"{node}: {first_line(error)}") from error
        values |= {name: value for name, value in zip(node.outputs, outputs, strict=False) if name}
        if pullback is not None:
            tape.append(Step(node, outputs, pullback))
    return values, tape


def _run_node(
    node: Node, opset: int, values: Mapping[str, Any], like: Backend, traced: bool
) -> tuple[tuple[Any, ...], Pullback | None]:
    operator = OPERATORS[node.op]
    given: list[Any] = [values[name] if name else None for name in node.inputs]
    if all(value is None or isinstance(value, Host) for value in given):
        hosts = [v if v is None or k in operator.either else v.array for k, v in enumerate(given)]
        call = Call(_NUMPY, node, opset, (False,) * len(given), np.dtype, lambda host: host.array)
        outputs, _ = operator.function(call, *hosts)
        return tuple(o if isinstance(o, Host) else Host(np.asarray(o)) for o in outputs), None
    xp = like.xp
    arrays = [v for v in given if v is not None and not isinstance(v, Host)]
    integer = next((v.dtype for v in arrays if xp.isdtype(v.dtype, "integral")), None)

    def place(host: Host) -> Array:
        return placed(host, like, traced, integer)

    inputs: list[Any] = []
    for k, value in enumerate(given):
        if k in operator.host and value is not None:
            if not isinstance(value, Host):
                raise InputError(f"input {node.inputs[k]!r} sets a shape, but is known only from the data")
            inputs.append(value.array)
        else:
            inputs.append(place(value) if isinstance(value, Host) and k not in operator.either else value)
    wants = tuple(
        value is not None and not isinstance(value, Host) and xp.isdtype(value.dtype, "real floating")
        for value in given
    )
    call = Call(xp, node, opset, wants, lambda name: _dtype(like, name), place)
    outputs, pullback = operator.function(call, *inputs)
    return outputs, pullback if any(wants) else None


@on_their_device
def reverse(tape: list[Step], cotangents: Mapping[str, Array], like: Backend) -> dict[str, Array]:
    """Run the tape backward: the cotangents of all values by name, from those of the outputs."""
    found = dict(cotangents)
    for step in reversed(tape):
        names = [*step.node.outputs, *[""] * len(step.outputs)][: len(step.outputs)]
        if not any(name in found for name in names if name):
            continue
        douts = [found[n] if n in found else like.xp.zeros_like(y) for n, y in zip(names, step.outputs, strict=True)]
        for name, d in zip(step.node.inputs, step.pullback(*douts), strict=False):
            if name and d is not None:
                found[name] = found[name] + d if name in found else d
    return found


def common_backend(arrays: Iterable[Array]) -> Backend:
    """Where the arrays live, and the floating dtype among them: float32 where there is none."""
    arrays = list(arrays)
    if not arrays:
        return backend_of(np.zeros(1, dtype=np.float32))
    floating = [a for a in arrays if namespace_of(a).isdtype(a.dtype, "real floating")]
    if floating:
        return backend_of(floating[0])
    first = backend_of(arrays[0])
    return replace(first, dtype=first.xp.float32)


def placed(value: Any, like: Backend, traced: bool = False, integer: Any = None) -> Array:
    """A value as an array where the others are; integers with the dtype of the others, where there are some."""
    if not isinstance(value, Host):
        return value
    host = np.asarray(value.array)
    if host.dtype.kind == "f":
        host = host.astype(like.dtype_name)
    array = like.xp.asarray(host) if traced or like.device is None else from_host(host, like)
    return like.xp.astype(array, integer) if integer is not None and host.dtype.kind in "iu" else array


def _dtype(like: Backend, name: str) -> Any:
    """The dtype that stands for one of ONNX's: one floating dtype for all, and 32 bits where there are no 64."""
    if np.dtype(name).kind == "f":
        return like.dtype
    if name in ("int64", "uint64") and like.xp.__array_namespace_info__().default_dtypes()["integral"] == like.xp.int32:
        name = name.replace("64", "32")
    return getattr(like.xp, name)
