"""CuPy's own kernels, compiled here, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
import pytest

UFUNCS = ["tanh", "exp", "log1p", "sqrt", "abs", "sign", "floor", "isfinite", "square", "negative", "reciprocal"]
TWO = ["add", "subtract", "multiply", "divide", "maximum", "power", "floor_divide", "remainder", "logaddexp"]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "views": lambda xp, a, b: a.T[::-1, 1:] + b.T[::2, 1:].repeat(2, axis=0)[:5],
    "where": lambda xp, a, b: xp.where(a > b, a, b * 2),
    "masks": lambda xp, a, b: (a < b) & (a >= 1) | ~(a == b),
    "assignment": lambda xp, a, b: assigned(a, b),
    "concat": lambda xp, a, b: xp.concat([a, b, a[:2]], axis=0),
    "stack": lambda xp, a, b: xp.stack([a, b], axis=1),
    "take": lambda xp, a, b: xp.take(a, xp.asarray([3, 0, 3]), axis=0),
    "boolean index": lambda xp, a, b: a[a > 1],
    "creation": lambda xp, a, b: xp.eye(5, dtype=a.dtype) * xp.arange(5, dtype=a.dtype) + xp.linspace(0, 1, 5),
    "pad and roll": lambda xp, a, b: xp.roll(xp.pad(a, 1), 2, axis=0),
    "tril": lambda xp, a, b: xp.tril(a),
    "conversion": lambda xp, a, b: (a * 10).astype("i4") + a.astype("?"),
    "half precision": lambda xp, a, b: (a.astype("f2") + b.astype("f2")).astype("f4"),
    "clip": lambda xp, a, b: xp.clip(a, 0.5, 1.5),
    "sum": lambda xp, a, b: xp.sum(a, axis=0),
    "sum of all": lambda xp, a, b: xp.sum(a),
    "sum of many": lambda xp, a, b: xp.sum(xp.tile(a, (60, 70)), axis=1),
    "mean and variance": lambda xp, a, b: xp.mean(a, axis=1) + xp.var(a, axis=1),
    "argmax": lambda xp, a, b: xp.argmax(a, axis=0) + xp.argmin(a, axis=0),
    "extremes": lambda xp, a, b: xp.max(a, axis=0) - xp.min(a, axis=0),
    "all and any": lambda xp, a, b: xp.all(a > 0) & xp.any(a > 1.9),
    "cumulative sum": lambda xp, a, b: xp.cumsum(a, axis=0),
    "sort": lambda xp, a, b: xp.sort(a, axis=0),
    "argsort": lambda xp, a, b: xp.argsort(a[:, 0]),
    "product": lambda xp, a, b: a @ b.T,
    "product of views": lambda xp, a, b: a[::2, ::3].T @ b[::2, :4],
    "matrix and vector": lambda xp, a, b: a @ b[0],
    "vectors": lambda xp, a, b: a[0] @ b[0],
    "many products": lambda xp, a, b: xp.stack([a, b]) @ xp.stack([b.T, a.T]),
    "tensordot": lambda xp, a, b: xp.tensordot(a, b, axes=((0, 1), (0, 1))),
    "einsum": lambda xp, a, b: xp.einsum("ti,tj->ij", a, b),
}


def assigned(a: Any, b: Any) -> Any:
    a = a.copy()
    a[1:3] = b[2:4]
    a[:, 0] = 7
    a[-1, ...] += b[0]
    return a


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", [*UFUNCS, *TWO, *FUNCTIONS])
def test_against_numpy(name: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0.1, 2, (7, 5)).astype(dtype) for _ in range(2))
    function = FUNCTIONS.get(name) or (lambda xp, a, b: getattr(xp, name)(*((a, b) if name in TWO else (a,))))
    expected = np.asarray(function(np, a, b))
    found = function(cupy, cupy.asarray(a), cupy.asarray(b))
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    tolerance = 2e-5 if dtype == "f4" else 1e-13
    np.testing.assert_allclose(cupy.asnumpy(found), expected, rtol=tolerance, atol=tolerance)


def test_many_arrays_at_once() -> None:
    parts = [np.full(k, k, "f4") for k in range(1, 40)]  # their addresses are read from memory
    np.testing.assert_array_equal(cupy.asnumpy(cupy.concat([cupy.asarray(p) for p in parts])), np.concatenate(parts))


def test_fused_functions() -> None:
    fused = cupy.fuse(kernel_name="fused")(lambda x, y: cupy.where(x > y, cupy.tanh(x), y * 2))
    x, y = np.random.default_rng(0).normal(size=(2, 5, 3))
    found = cupy.asnumpy(fused(cupy.asarray(x), cupy.asarray(y[0])))
    np.testing.assert_allclose(found, np.where(x > y[0], np.tanh(x), y[0] * 2), rtol=1e-14)


def test_kernels_by_their_template_names() -> None:
    source = """
    template <typename T, int factor>
    __global__ void scaled(const T* x, T* y) { y[threadIdx.x] = factor * x[threadIdx.x]; }
    """
    names = ["scaled<float, 3>", "scaled<double, 5>"]
    module = cupy.RawModule(code=source, options=("-std=c++17",), name_expressions=names)
    for name, dtype, factor in zip(names, ("f4", "f8"), (3, 5), strict=True):
        x = cupy.arange(4, dtype=dtype)
        y = cupy.empty_like(x)
        module.get_function(name)((1,), (4,), (x, y))
        assert cupy.asnumpy(y).tolist() == [factor * k for k in range(4)]


def test_dlpack_shares_memory_and_goes_to_the_host_when_asked() -> None:
    x = cupy.arange(4.0)
    same = cupy.from_dlpack(x)
    same[0] = 9
    assert float(x[0]) == 9
    with pytest.raises((BufferError, RuntimeError, ValueError)):
        np.from_dlpack(x)
    assert np.from_dlpack(x, device="cpu").tolist() == [9, 1, 2, 3]
