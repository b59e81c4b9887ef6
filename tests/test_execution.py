"""Which operations of a step are recorded, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from test_execution_programs import Written

from portable_rnn import execution
from portable_rnn.execution import programs
from portable_rnn.execution.graph import pytrees, trace, verify
from portable_rnn.execution.libraries import library_of


def recorded(function: Any, carry: Any = (3, 4), x: Any = (3, 4), shared: Any = (3, 3)) -> trace.Graph:
    """The graph of ``function(xp, w, h, x) -> (carry, output)``."""
    specs = [[(carry, False)], [(x, False), ((1, x[-1]), True)], [(shared, False)]]
    structures = [pytrees.flattened(tuple(leaves), []) for leaves in ("c", "xm", "w")]
    graph = trace.trace(Written(lambda xp, s, c, i: one_each(function(xp, s[0], c[0], *i))), specs, structures)
    verify.verify(graph)
    return graph


def one_each(found: Any) -> Any:
    carry, output = found
    return (carry,), (output,)


# ---------------------------------------------------------------------- what is recorded

RECORDED: dict[str, tuple[str, Callable[..., Any]]] = {
    "+": ("add", lambda xp, w, h, x, m: h + x),
    "number +": ("add", lambda xp, w, h, x, m: 1 + h),
    "-": ("subtract", lambda xp, w, h, x, m: h - x),
    "number -": ("subtract", lambda xp, w, h, x, m: 1 - h),
    "*": ("multiply", lambda xp, w, h, x, m: h * x),
    "number *": ("multiply", lambda xp, w, h, x, m: 2.0 * h),
    "/": ("divide", lambda xp, w, h, x, m: h / x),
    "number /": ("divide", lambda xp, w, h, x, m: 1 / h),
    "** 2": ("multiply", lambda xp, w, h, x, m: h**2),
    "negative": ("negative", lambda xp, w, h, x, m: -h),
    "abs": ("abs", lambda xp, w, h, x, m: abs(h)),
    "@": ("matmul", lambda xp, w, h, x, m: w @ h),
    "T": ("transpose", lambda xp, w, h, x, m: h.T),
    "rows": ("rows", lambda xp, w, h, x, m: h[1:3, ...]),
    "rows with every axis": ("rows", lambda xp, w, h, x, m: h[1:, :]),
    "rows alone": ("rows", lambda xp, w, h, x, m: h[:2]),
    "<": ("less", lambda xp, w, h, x, m: h < x),
    "<=": ("less_equal", lambda xp, w, h, x, m: h <= 0),
    ">": ("greater", lambda xp, w, h, x, m: h > x),
    ">=": ("greater_equal", lambda xp, w, h, x, m: h >= 0.5),
    "==": ("equal", lambda xp, w, h, x, m: h == x),
    "!=": ("not_equal", lambda xp, w, h, x, m: h != 0),
    **{
        name: (name, lambda xp, w, h, x, m, name=name: getattr(xp, name)(h))
        for name in ("negative", "tanh", "exp", "log1p", "sqrt", "abs")
    },
    **{
        name: (name, lambda xp, w, h, x, m, name=name: getattr(xp, name)(h, x))
        for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "less", "less_equal", "greater")
    },
    **{
        name: (name, lambda xp, w, h, x, m, name=name: getattr(xp, name)(h, x))
        for name in ("greater_equal", "equal", "not_equal")
    },
    **{
        name: (name, lambda xp, w, h, x, m, name=name: getattr(xp, name)(m, h > 0))
        for name in ("logical_and", "logical_or")
    },
    "logical_not": ("logical_not", lambda xp, w, h, x, m: xp.logical_not(m)),
    "matmul": ("matmul", lambda xp, w, h, x, m: xp.matmul(w, h)),
    "where": ("where", lambda xp, w, h, x, m: xp.where(m, h, x)),
    "where and a number": ("where", lambda xp, w, h, x, m: xp.where(m, h, 0.0)),
    "where of booleans": ("where", lambda xp, w, h, x, m: xp.where(m, h > 0, x > 0)),
    "clip": ("minimum", lambda xp, w, h, x, m: xp.clip(h, -0.5, 0.5)),
    "clip below": ("maximum", lambda xp, w, h, x, m: xp.clip(h, min=-0.5)),
    "clip above": ("minimum", lambda xp, w, h, x, m: xp.clip(h, max=0.5)),
    "astype": ("float", lambda xp, w, h, x, m: xp.astype(m, h.dtype)),
    "astype to the same": ("carry", lambda xp, w, h, x, m: xp.astype(h, x.dtype)),
    "zeros_like": ("fill", lambda xp, w, h, x, m: xp.zeros_like(h)),
    "ones_like": ("fill", lambda xp, w, h, x, m: xp.ones_like(h)),
    "full_like": ("fill", lambda xp, w, h, x, m: xp.full_like(h, 0.3)),
    "concat": ("concat", lambda xp, w, h, x, m: xp.concat([h, x], axis=0)),
    "sum": ("sum", lambda xp, w, h, x, m: xp.sum(h, axis=0, keepdims=True)),
    "mean": ("divide", lambda xp, w, h, x, m: xp.mean(h, axis=0, keepdims=True)),
}


@pytest.mark.parametrize("name", RECORDED)
def test_every_operation_is_recorded(name: str) -> None:
    op, function = RECORDED[name]
    graph = recorded(lambda xp, w, h, x, m: (xp.tanh(h), function(xp, w, h, x, m)))
    assert graph.outputs[0].op.value == op
    rng = np.random.default_rng(0)
    w, h, x, m = rng.random((3, 3)), rng.random((3, 4)), rng.random((2, 3, 4)), rng.random((2, 1, 4)) < 0.5
    step = Written(lambda xp, s, c, i: one_each((xp.tanh(c[0]), function(xp, s[0], c[0], *i))))
    found = programs.planned_scan(xp, library_of(xp), step, (h,), (x, m), (w,), reverse=False, donate=False)
    first = function(xp, w, h, x[0], m[0])
    assert found is not None
    assert (
        (found[1][0].shape[1:], found[1][0].dtype)
        == (graph.outputs[0].shape, first.dtype)
        == (first.shape, first.dtype)
    )
    np.testing.assert_allclose(found[1][0][0], first, rtol=1e-15)


def branch(xp: Any, w: Any, h: Any, x: Any, m: Any) -> Any:
    return h if h[0:1, 0:1] > 0 else x


def in_place(xp: Any, w: Any, h: Any, x: Any, m: Any) -> Any:
    z = w @ h
    z += x
    return z


def assigned(xp: Any, w: Any, h: Any, x: Any, m: Any) -> Any:
    h[0:1] = x[0:1]
    return h


REFUSED: dict[str, Callable[..., Any]] = {
    "branch": lambda xp, w, h, x, m: x if h > 0 else h,
    "branch on a function": lambda xp, w, h, x, m: x if xp.any(h > 0) else h,
    "and": lambda xp, w, h, x, m: h > 0 and x > 0,
    "iteration": lambda xp, w, h, x, m: xp.concat([row + 1 for row in h]),
    "unpacking": lambda xp, w, h, x, m: (lambda a, b, c: a)(*h),
    "float()": lambda xp, w, h, x, m: h * float(x),
    "len()": lambda xp, w, h, x, m: h * len(h),
    "one row": lambda xp, w, h, x, m: h[0],
    "columns": lambda xp, w, h, x, m: h[:, 0:2],
    "every second row": lambda xp, w, h, x, m: h[::2],
    "backwards": lambda xp, w, h, x, m: h[::-1],
    "a new axis": lambda xp, w, h, x, m: h[None, ...],
    "an axis too many": lambda xp, w, h, x, m: h[0:1, :, :],
    "no index": lambda xp, w, h, x, m: h[()],
    "a mask": lambda xp, w, h, x, m: h[h > 0],
    "branch on an element": branch,
    "in place": in_place,
    "assignment": assigned,
    "** 3": lambda xp, w, h, x, m: h**3,
    "sum of all": lambda xp, w, h, x, m: xp.sum(h),
    "sum over columns": lambda xp, w, h, x, m: xp.sum(h, axis=1, keepdims=True),
    "sum without the axis": lambda xp, w, h, x, m: xp.sum(h, axis=0),
    "concat of columns": lambda xp, w, h, x, m: xp.concat([h, x], axis=1),
    "concat of both kinds": lambda xp, w, h, x, m: xp.concat([h[0:1], m]),
    "concat of nothing": lambda xp, w, h, x, m: xp.concat([]),
    "astype to boolean": lambda xp, w, h, x, m: xp.astype(h, m.dtype),
    "another function": lambda xp, w, h, x, m: xp.sin(h),
    "NumPy's function": lambda xp, w, h, x, m: np.tanh(h),
    "NumPy's array": lambda xp, w, h, x, m: np.ones((3, 4)) * h,
    "NumPy's array on the right": lambda xp, w, h, x, m: h * np.ones((3, 4)),
    "NumPy's product": lambda xp, w, h, x, m: np.ones((3, 3)) @ h,
    "NumPy's number": lambda xp, w, h, x, m: h * np.float64(2),
    "NumPy's asarray": lambda xp, w, h, x, m: np.asarray(h),
    "a complex number": lambda xp, w, h, x, m: h * 1j,
    "a boolean and a number": lambda xp, w, h, x, m: h + m,
    "minus a boolean": lambda xp, w, h, x, m: -m,
    "product of booleans": lambda xp, w, h, x, m: (w > 0) @ h,
    "zeros like booleans": lambda xp, w, h, x, m: xp.zeros_like(m),
    "logical_and of numbers": lambda xp, w, h, x, m: xp.logical_and(h, x),
    "where on numbers": lambda xp, w, h, x, m: xp.where(h, x, h),
    "where of two numbers": lambda xp, w, h, x, m: xp.where(m, 1.0, 0.0),
    "where of both kinds": lambda xp, w, h, x, m: xp.where(m, h, m),
    "shapes that don't fit": lambda xp, w, h, x, m: w + h,
    "product that doesn't fit": lambda xp, w, h, x, m: h @ h,
    "an error of its own": lambda xp, w, h, x, m: {}["missing"],
    "a list": lambda xp, w, h, x, m: [h],
    "a number as output": lambda xp, w, h, x, m: 1.0,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(trace.Untraceable):
        recorded(lambda xp, w, h, x, m: (h, REFUSED[name](xp, w, h, x, m)))


@pytest.mark.parametrize(
    "carry",
    [
        lambda xp, h: h[0:2],
        lambda xp, h: h > 0,
        lambda xp, h: (h, h),
        lambda xp, h: None,
        lambda xp, h: 1.0,
    ],
)
def test_a_carry_that_changes_its_form_is_refused(carry: Any) -> None:
    with pytest.raises(trace.Untraceable):
        recorded(lambda xp, w, h, x, m: (carry(xp, h), h))


def test_arrays_without_axes_are_refused() -> None:
    with pytest.raises(trace.Untraceable):
        recorded(lambda xp, w, h, x, m: (h, h * w), shared=())


def test_a_step_that_raises_raises_its_own_error() -> None:
    def step(xp: Any, shared: Any, carry: Any, inputs: Any) -> Any:
        raise KeyError("mine")

    x = np.ones((2, 3, 4))
    with pytest.raises(KeyError, match="mine"):
        execution.scan(xp, Written(step), (x[0],), (x,), recorded=True)
    with pytest.raises(ValueError, match=r"broadcast|shapes"):
        execution.scan(xp, Written(lambda xp, s, c, i: (c, (c[0] + i[0].T,))), (x[0],), (x,), recorded=True)
