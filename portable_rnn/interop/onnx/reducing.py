"""ONNX's products and reductions, each with its pullback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...arrays import Array
from ...errors import InputError
from .nodes import Call, Operator, Pullback, summed_to, with_rank
from .shaping import axes_of, axis_of

__all__ = ["OPERATORS"]

Result = tuple[tuple[Any, ...], Pullback | None]


# ---------------------------------------------------------------------- products


def _matmul(call: Call, a: Array, b: Array) -> Result:
    xp = call.xp
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    y = xp.matmul(left, right)
    inside = tuple(y.shape)
    dropped = [k for k, x in ((y.ndim - 2, a), (y.ndim - 1, b)) if x.ndim == 1]
    outside = tuple(n for k, n in enumerate(inside) if k not in dropped)

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        dy = xp.reshape(dy, inside)
        da = db = None
        if call.wants[0]:
            da = xp.reshape(summed_to(xp, xp.matmul(dy, xp.matrix_transpose(right)), left.shape), tuple(a.shape))
        if call.wants[1]:
            if right.ndim == 2:
                leading = tuple(range(left.ndim - 1))
                db = xp.tensordot(left, dy, axes=(leading, leading))
            else:
                db = summed_to(xp, xp.matmul(xp.matrix_transpose(left), dy), right.shape)
            db = xp.reshape(db, tuple(b.shape))
        return da, db

    return (xp.reshape(y, outside),), pullback


def _gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Result:
    """``alpha * a @ b + beta * c``, a and b transposed where the node says so."""
    xp = call.xp
    if a.ndim != 2 or b.ndim != 2:
        raise InputError(f"multiplies arrays of shapes {tuple(a.shape)} and {tuple(b.shape)}: both must have two axes")
    alpha, beta = float(call.node.get("alpha", 1.0)), float(call.node.get("beta", 1.0))
    turned = bool(call.node.get("transA", 0)), bool(call.node.get("transB", 0))
    left, right = (x.T if t else x for x, t in zip((a, b), turned, strict=True))
    y = left @ right
    y = y if alpha == 1 else alpha * y
    if c is not None:
        y = y + with_rank(c if beta == 1 else beta * c, 2)

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        scaled = dy if alpha == 1 else alpha * dy
        da = scaled @ right.T if call.wants[0] else None
        db = left.T @ scaled if call.wants[1] else None
        found = [d.T if d is not None and t else d for d, t in zip((da, db), turned, strict=True)]
        return (*found, None if c is None else summed_to(xp, dy if beta == 1 else beta * dy, c.shape))

    return (y,), pullback


# ---------------------------------------------------------------------- softmax


def _rows(call: Call, x: Array) -> tuple[tuple[int, ...], int]:
    """The shape and axis that a softmax sums over: before operator set 13 all axes from the given one on."""
    if call.opset >= 13:
        return tuple(x.shape), axis_of(call.node.get("axis", -1), x.ndim)
    axis = axis_of(call.node.get("axis", 1), x.ndim)
    return (int(np.prod(x.shape[:axis], dtype=object)), int(np.prod(x.shape[axis:], dtype=object))), 1


def _softmax(call: Call, x: Array) -> Result:
    xp = call.xp
    shape, axis = _rows(call, x)
    a = xp.reshape(x, shape)
    e = xp.exp(a - xp.max(a, axis=axis, keepdims=True))
    y = e / xp.sum(e, axis=axis, keepdims=True)

    def pullback(dy: Array) -> tuple[Array, ...]:
        dy = xp.reshape(dy, shape)
        return (xp.reshape(y * (dy - xp.sum(y * dy, axis=axis, keepdims=True)), tuple(x.shape)),)

    return (xp.reshape(y, tuple(x.shape)),), pullback


def _log_softmax(call: Call, x: Array) -> Result:
    xp = call.xp
    shape, axis = _rows(call, x)
    a = xp.reshape(x, shape)
    a = a - xp.max(a, axis=axis, keepdims=True)
    y = a - xp.log(xp.sum(xp.exp(a), axis=axis, keepdims=True))

    def pullback(dy: Array) -> tuple[Array, ...]:
        dy = xp.reshape(dy, shape)
        return (xp.reshape(dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True), tuple(x.shape)),)

    return (xp.reshape(y, tuple(x.shape)),), pullback


# ---------------------------------------------------------------------- reductions


def _reduction(reduce: Callable[..., tuple[Array, Callable[[Array], Array]]]) -> Callable[..., Result]:
    """An operator from a function of (xp, x, axes): the reduced array with its axes kept, and the pullback."""

    def function(call: Call, x: Array, axes: Any = None) -> Result:
        xp = call.xp
        chosen = axes_of(call, axes, max(x.ndim, 1))  # exporters write axis 0 for a scalar, too
        if x.ndim == 0:
            return (x,), lambda dy: (dy, None)
        if not chosen:
            if call.node.get("noop_with_empty_axes", 0):
                return (x,), lambda dy: (dy, None)
            chosen = tuple(range(x.ndim))
        y, back = reduce(xp, x, chosen)
        kept = tuple(y.shape)
        shape = kept if call.node.get("keepdims", 1) else tuple(n for k, n in enumerate(kept) if k not in chosen)
        return (xp.reshape(y, shape),), lambda dy: (back(xp.reshape(dy, kept)), None)

    return function


def _sum(xp: Any, x: Array, axes: tuple[int, ...]) -> tuple[Array, Callable[[Array], Array]]:
    y = xp.sum(x, axis=axes, keepdims=True, dtype=x.dtype)
    return y, lambda dy: xp.broadcast_to(dy, tuple(x.shape))


def _mean(xp: Any, x: Array, axes: tuple[int, ...]) -> tuple[Array, Callable[[Array], Array]]:
    count = int(np.prod([x.shape[k] for k in axes], dtype=object))
    return xp.mean(x, axis=axes, keepdims=True), lambda dy: xp.broadcast_to(dy / count, tuple(x.shape))


def _extreme(name: str) -> Callable[..., tuple[Array, Callable[[Array], Array]]]:
    """The largest or smallest entry; the gradient goes to the first of equal ones."""

    def reduce(xp: Any, x: Array, axes: tuple[int, ...]) -> tuple[Array, Callable[[Array], Array]]:
        y = getattr(xp, name)(x, axis=axes, keepdims=True)

        def back(dy: Array) -> Array:
            last = (*(k for k in range(x.ndim) if k not in axes), *axes)
            equal = xp.permute_dims(x == y, last)
            rows = xp.reshape(xp.astype(equal, dy.dtype), (-1, int(np.prod([x.shape[k] for k in axes], dtype=object))))
            first = xp.logical_and(rows > 0, xp.cumulative_sum(rows, axis=1) == 1)
            chosen = xp.permute_dims(xp.reshape(first, equal.shape), tuple(int(k) for k in np.argsort(last)))
            return xp.where(chosen, dy, xp.zeros_like(dy))

        return y, back

    return reduce


OPERATORS = {
    "Gemm": Operator(_gemm, 13),
    "LogSoftmax": Operator(_log_softmax, 13),
    "MatMul": Operator(_matmul, 13),
    "ReduceMax": Operator(_reduction(_extreme("max")), 20, host=(1,)),
    "ReduceMean": Operator(_reduction(_mean), 18, host=(1,)),
    "ReduceMin": Operator(_reduction(_extreme("min")), 20, host=(1,)),
    "ReduceSum": Operator(_reduction(_sum), 13, host=(1,)),
    "Softmax": Operator(_softmax, 13),
}
