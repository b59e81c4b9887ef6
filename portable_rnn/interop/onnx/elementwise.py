"""ONNX's operators that work entry by entry, each with its pullback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...arrays import Array
from ...cells import activation
from ...errors import InputError
from .nodes import Call, Operator, Pullback, broadcasting, summed_to

__all__ = ["OPERATORS"]

Result = tuple[tuple[Any, ...], Pullback | None]

# TensorProto.DataType -> NumPy's name
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}


# ---------------------------------------------------------------------- one input


def _activation(name: str, **defaults: float) -> Callable[..., Result]:
    """An operator that is one of the activations; `defaults` are its settings, in order."""

    def function(call: Call, x: Array) -> Result:
        settings = ", ".join(repr(float(call.node.get(key, value))) for key, value in defaults.items())
        f = activation(f"{name}({settings})" if defaults else name)
        y = f.forward(call.xp, x)
        return (y,), lambda dy: (dy * f.derivative(call.xp, y),)

    return function


def _neg(call: Call, x: Array) -> Result:
    return (-x,), lambda dy: (-dy,)


def _abs(call: Call, x: Array) -> Result:
    return (call.xp.abs(x),), lambda dy: (dy * call.xp.sign(x),)


def _log(call: Call, x: Array) -> Result:
    return (call.xp.log(x),), lambda dy: (dy / x,)


def _sqrt(call: Call, x: Array) -> Result:
    y = call.xp.sqrt(x)
    return (y,), lambda dy: (dy / (2 * y),)


def _reciprocal(call: Call, x: Array) -> Result:
    y = 1 / x
    return (y,), lambda dy: (-dy * y * y,)


def _identity(call: Call, x: Array) -> Result:
    return (x,), lambda dy: (dy,)


def _dropout(call: Call, x: Array, ratio: Any = None, training: Any = None) -> Result:
    if training is not None and np.any(training):
        raise InputError("is in training mode: export the model in evaluation mode")
    kept = call.xp.ones_like(x, dtype=call.dtype("bool"))
    return (x, kept)[: len(call.node.outputs)], lambda dy, *unused: (dy, None, None)


def _cast(call: Call, x: Array) -> Result:
    kind = DTYPES.get(call.node.get("to", 0))
    if kind is None:
        raise InputError(f"casts to data type {call.node.get('to')}, which is not a plain number")
    return _as_dtype(call, x, kind)


def _as_dtype(call: Call, x: Array, kind: str) -> Result:
    xp = call.xp
    before = x.dtype
    floating = xp.isdtype(before, "real floating") and np.dtype(kind).kind == "f"
    y = x != 0 if kind == "bool" else xp.astype(x, call.dtype(kind))
    return (y,), (lambda dy: (xp.astype(dy, before),)) if floating else None


def _clip(call: Call, x: Array, low: Array | None = None, high: Array | None = None) -> Result:
    xp = call.xp
    y = x
    given = (call.node.get("min") if low is None else low, call.node.get("max") if high is None else high)
    for bound, function in zip(given, (xp.maximum, xp.minimum), strict=True):
        if bound is not None:
            y = function(y, xp.zeros_like(x) + bound)
    return (y,), lambda dy: (xp.where(y == x, dy, xp.zeros_like(dy)), None, None)


def _not(call: Call, x: Array) -> Result:
    return (call.xp.logical_not(x),), None


# ---------------------------------------------------------------------- two or more inputs


def _add(call: Call, a: Array, b: Array) -> Result:
    return (a + b,), lambda dy: (summed_to(call.xp, dy, a.shape), summed_to(call.xp, dy, b.shape))


def _sub(call: Call, a: Array, b: Array) -> Result:
    return (a - b,), lambda dy: (summed_to(call.xp, dy, a.shape), summed_to(call.xp, -dy, b.shape))


def _mul(call: Call, a: Array, b: Array) -> Result:
    return (a * b,), lambda dy: (summed_to(call.xp, dy * b, a.shape), summed_to(call.xp, dy * a, b.shape))


def _div(call: Call, a: Array, b: Array) -> Result:
    xp = call.xp
    if xp.isdtype(a.dtype, "integral"):  # towards zero
        quotient = xp.floor_divide(xp.abs(a), xp.abs(b))
        return (quotient * xp.sign(a) * xp.sign(b),), None
    y = a / b
    return (y,), lambda dy: (summed_to(xp, dy / b, a.shape), summed_to(xp, -dy * y / b, b.shape))


def _pow(call: Call, a: Array, b: Array) -> Result:
    xp = call.xp
    if xp.isdtype(a.dtype, "real floating"):
        b = xp.astype(b, a.dtype)
    else:  # the result has the base's dtype
        return (
            xp.astype(xp.pow(xp.astype(a, call.dtype("float64")), xp.astype(b, call.dtype("float64"))), a.dtype),
        ), None
    y = xp.pow(a, b)

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        da = summed_to(xp, dy * b * xp.pow(a, b - 1), a.shape)
        if not call.wants[1]:
            return da, None
        positive = a > 0
        log = xp.where(positive, xp.log(xp.where(positive, a, xp.ones_like(a))), xp.zeros_like(a))
        return da, summed_to(xp, dy * y * log, b.shape)

    return (y,), pullback


def _extreme(name: str) -> Callable[..., Result]:
    """Max and Min of any number of inputs; the gradient goes to the first of equal ones."""

    def function(call: Call, *inputs: Array) -> Result:
        xp = call.xp
        choose = getattr(xp, name)
        y = inputs[0]
        for x in inputs[1:]:
            y = choose(y, x)

        def pullback(dy: Array) -> tuple[Array, ...]:
            found, left = [], xp.ones_like(dy, dtype=call.dtype("bool"))
            for x in inputs:
                chosen = xp.logical_and(left, x == y)
                left = xp.logical_and(left, xp.logical_not(chosen))
                found.append(summed_to(xp, xp.where(chosen, dy, xp.zeros_like(dy)), x.shape))
            return tuple(found)

        return (y,), pullback

    return function


def _sum(call: Call, *inputs: Array) -> Result:
    y = inputs[0]
    for x in inputs[1:]:
        y = y + x
    return (y,), lambda dy: tuple(summed_to(call.xp, dy, x.shape) for x in inputs)


def _where(call: Call, condition: Array, a: Array, b: Array) -> Result:
    xp = call.xp

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        zero = xp.zeros_like(dy)
        da, db = xp.where(condition, dy, zero), xp.where(condition, zero, dy)
        return None, summed_to(xp, da, a.shape), summed_to(xp, db, b.shape)

    return (xp.where(condition, a, b),), pullback


def _comparison(name: str) -> Callable[..., Result]:
    def function(call: Call, a: Array, b: Array) -> Result:
        return (getattr(call.xp, name)(a, b),), None

    return function


OPERATORS = {
    "Abs": Operator(_abs, 13),
    "Add": Operator(broadcasting(_add), 14),
    "And": Operator(broadcasting(_comparison("logical_and")), 7),
    "Cast": Operator(_cast, 28),
    "Clip": Operator(_clip, 13),
    "Div": Operator(broadcasting(_div), 14),
    "Dropout": Operator(_dropout, 22, host=(1, 2)),
    "Elu": Operator(_activation("elu", alpha=1.0), 22),
    "Equal": Operator(broadcasting(_comparison("equal")), 19),
    "Exp": Operator(_activation("exponential"), 13),
    "Greater": Operator(broadcasting(_comparison("greater")), 13),
    "GreaterOrEqual": Operator(broadcasting(_comparison("greater_equal")), 16),
    "HardSigmoid": Operator(_activation("hard_sigmoid", alpha=0.2, beta=0.5), 22),
    "Identity": Operator(_identity, 25),
    "LeakyRelu": Operator(_activation("leaky_relu", alpha=0.01), 16),
    "Less": Operator(broadcasting(_comparison("less")), 13),
    "LessOrEqual": Operator(broadcasting(_comparison("less_equal")), 16),
    "Log": Operator(_log, 13),
    "Max": Operator(broadcasting(_extreme("maximum")), 13),
    "Min": Operator(broadcasting(_extreme("minimum")), 13),
    "Mul": Operator(broadcasting(_mul), 14),
    "Neg": Operator(_neg, 13),
    "Not": Operator(_not, 1),
    "Or": Operator(broadcasting(_comparison("logical_or")), 7),
    "Pow": Operator(broadcasting(_pow), 15),
    "Reciprocal": Operator(_reciprocal, 13),
    "Relu": Operator(_activation("relu"), 14),
    "Sigmoid": Operator(_activation("sigmoid"), 13),
    "Softplus": Operator(_activation("softplus"), 22),
    "Softsign": Operator(_activation("softsign"), 22),
    "Sqrt": Operator(_sqrt, 13),
    "Sub": Operator(broadcasting(_sub), 14),
    "Sum": Operator(broadcasting(_sum), 13),
    "Tanh": Operator(_activation("tanh"), 13),
    "ThresholdedRelu": Operator(_activation("thresholded_relu", alpha=1.0), 22),
    "Where": Operator(broadcasting(_where), 16),
}
