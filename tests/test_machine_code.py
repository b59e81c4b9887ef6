"""What compiled loops are made of: the matrix routines and tanh."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from portable_rnn.execution.graph.operations import Op

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llvmlite") is None, reason="llvmlite is not installed")

if importlib.util.find_spec("llvmlite") is not None:
    from llvmlite import ir

    from portable_rnn.execution.machine import compiler, elementwise, emitter, gemm

KINDS = [("float32", 16), ("float32", 8), ("float32", 4), ("float64", 8), ("float64", 2)]
SHAPES = [
    (8, 3, 16),
    (13, 7, 5),
    (64, 20, 70),
    (48, 64, 64),
    (30, 10, 33),
    (1, 1, 1),
    (9, 300, 48),
    (2500, 40, 3),
    (9, 1030, 17),
]


@pytest.fixture(params=[4, 8], autouse=True)
def tile_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors with few registers, and with many."""
    monkeypatch.setattr(gemm, "machine", lambda: compiler.Machine(64, request.param))


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def call(kind: str, dtype: str, lanes: int, *words: Any) -> None:
    routines = gemm.routines(dtype, lanes)
    arrays = [address(word) if isinstance(word, np.ndarray) else int(word) for word in words]
    routines.library.functions[routines.names[kind]](*arrays)


def as_panels(matrix: np.ndarray, lanes: int) -> np.ndarray:
    """Its panels, by NumPy."""
    height = gemm.routines(matrix.dtype.name, lanes).tile_rows
    rows, inner = matrix.shape
    padded = np.full((-(-rows // height) * height, inner), np.nan, matrix.dtype)  # what is behind the end isn't used
    padded[:rows] = matrix
    return np.ascontiguousarray(padded.reshape(-1, height, inner).transpose(0, 2, 1))


def tolerance(dtype: str, inner: int) -> float:
    """Of a sum of `inner` products of normal numbers, of which the roundings add up at the very most."""
    return 4 * inner * float(np.finfo(dtype).eps) * 25


@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
@pytest.mark.parametrize(("dtype", "lanes"), KINDS)
def test_product(dtype: str, lanes: int, rows: int, inner: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, inner), (inner, columns + 2)))
    panels = as_panels(left, lanes)
    out = np.full((rows + 1, columns + 3), 7, dtype)
    exact = left.astype("float64") @ right[:, :columns].astype("float64")
    sizes = (out, columns + 3, rows, inner, columns)
    for adding, at_once in ((0, 512), (1, 3)):
        call("product", dtype, lanes, panels, panels[0].size, right, columns + 2, 3 * lanes, *sizes, at_once, adding)
        np.testing.assert_allclose(out[:rows, :columns], (1 + adding) * exact, rtol=0, atol=tolerance(dtype, inner))
    assert (out[rows] == 7).all()
    assert (out[:, columns:] == 7).all()

    padded = np.full((inner, -(-columns // (3 * lanes)) * 3 * lanes), np.nan, dtype)
    padded[:, :columns] = right[:, :columns]
    right_panels = np.ascontiguousarray(padded.reshape(inner, -1, 3 * lanes).transpose(1, 0, 2))
    distance = inner * 3 * lanes
    call("product", dtype, lanes, panels, panels[0].size, right_panels, 3 * lanes, distance, *sizes, 512, 0)
    np.testing.assert_allclose(out[:rows, :columns], exact, rtol=0, atol=tolerance(dtype, inner))


@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
@pytest.mark.parametrize(("dtype", "lanes"), KINDS)
def test_product_with_one_column_and_totals(dtype: str, lanes: int, rows: int, inner: int, columns: int) -> None:
    rng = np.random.default_rng(1)
    left, right = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, inner), (inner,)))
    panels = as_panels(left, lanes)
    out = np.full(rows + 1, 7, dtype)
    call("column_product", dtype, lanes, panels, right, out, rows, inner)
    exact = left.astype("float64") @ right.astype("float64")
    np.testing.assert_allclose(out[:rows], exact, rtol=0, atol=tolerance(dtype, inner))
    assert out[rows] == 7
    out = np.full(rows + 1, 7, dtype)
    out[0] = np.nan
    totals = left.astype("float64").sum(1)
    for adding in (0, 1):
        call("totals", dtype, lanes, panels, panels[0].size, out, rows, inner, adding)
        expected = (1 + adding) * totals
        np.testing.assert_allclose(out[:rows], expected, rtol=0, atol=2 * tolerance(dtype, inner))
    assert out[rows] == 7


@pytest.mark.parametrize("columns", [2, 3, 4, 5, 8, 12, 13, 20, 27])
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (64, 7), (33, 40), (200, 3), (256, 129)])
@pytest.mark.parametrize(("dtype", "lanes"), KINDS)
def test_product_with_few_columns(dtype: str, lanes: int, rows: int, inner: int, columns: int) -> None:
    rng = np.random.default_rng(3)
    left, right = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, inner), (inner, columns + 3)))
    routines = gemm.routines(dtype, lanes)
    few = routines.few(columns)
    length = few.tile_rows
    panels = np.full((-(-rows // length), inner, length), np.nan, dtype)
    call("panels", dtype, lanes, left, inner, 1, panels, inner * length, length, rows, inner)
    padded = np.full((len(panels) * length, inner), np.nan, dtype)
    padded[:rows] = left
    np.testing.assert_array_equal(panels, padded.reshape(-1, length, inner).transpose(0, 2, 1))
    out = np.full((rows + 1, columns), 7, dtype)
    few.library.functions[few.name](address(panels), address(right), columns + 3, address(out), rows, inner)
    exact = left.astype("float64") @ right[:, :columns].astype("float64")
    np.testing.assert_allclose(out[:rows], exact, rtol=0, atol=tolerance(dtype, inner))
    assert (out[rows] == 7).all()


@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
@pytest.mark.parametrize(("dtype", "lanes"), KINDS)
def test_transpose_and_panels(dtype: str, lanes: int, rows: int, inner: int, columns: int) -> None:
    x = np.random.default_rng(2).standard_normal((rows, inner + 1)).astype(dtype)
    out = np.full((inner, rows + 2), 5, dtype)
    call("transpose", dtype, lanes, x, inner + 1, out, rows + 2, rows, inner)
    assert (out[:, :rows] == x[:, :inner].T).all()
    assert (out[:, rows:] == 5).all()

    def panels_of(matrix: np.ndarray) -> np.ndarray:
        found = np.full_like(as_panels(matrix, lanes), np.nan)
        strides = [stride // matrix.itemsize for stride in matrix.strides]
        height = found.shape[2]
        call("panels", dtype, lanes, matrix, *strides, found, found[0].size, height, *matrix.shape)
        return found

    for matrix in (x, np.asfortranarray(x)):
        np.testing.assert_array_equal(panels_of(matrix), as_panels(matrix, lanes))  # NaN in both behind the end


# ---------------------------------------------------------------------- tanh


def tanh(x: np.ndarray) -> np.ndarray:
    """As compiled code computes it."""
    lanes = 8
    module = ir.Module()
    name = f"tanh_of_all_{x.dtype.name}"
    e = emitter.Emitter(module, name, ["x", "out", "size"], x.dtype.name, lanes)
    with e.loop(0, e.arguments["size"], lanes) as (k, _):
        e.store(elementwise.apply(e, Op.TANH, e.load(e.address(e.arguments["x"], k))), e.address(e.arguments["out"], k))
    e.finish()
    padded = np.concatenate([x, np.zeros(-len(x) % lanes, x.dtype)])
    out = np.empty_like(padded)
    compiler.Library(str(module)).functions[name](address(padded), address(out), len(padded))
    return out[: len(x)]


def test_tanh_of_float32_is_accurate_over_all_numbers() -> None:
    # every 3001st of all positive numbers, the subnormal ones too, and all around where it is cut off
    bits = np.arange(0, 0x7F800000, 3001, dtype=np.uint32)
    x = np.concatenate([bits.view("float32"), np.linspace(8.9, 9.3, 100_000, dtype="float32")])
    x = np.concatenate([x, -x])
    exact = np.tanh(x.astype("float64"))
    y = tanh(x)
    normal = np.abs(x) >= np.finfo("float32").tiny
    assert np.max(np.abs(y[normal] - exact[normal]) / np.abs(exact[normal])) < 4e-7
    assert np.max(np.abs(y[~normal] - exact[~normal])) <= 2e-45  # one step of the subnormal numbers
    assert np.max(np.abs(y)) <= 1
    assert np.array_equal(y[: len(y) // 2], -y[len(y) // 2 :])


def test_tanh_of_float64_is_accurate_over_all_numbers() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([10.0 ** rng.uniform(-320, 2, 200_000), rng.uniform(0, 20, 200_000), np.linspace(0, 1, 100_001)])
    x = np.concatenate([x, -x])
    exact = np.tanh(x)  # within a rounding
    y = tanh(x)
    normal = np.abs(x) >= np.finfo("float64").tiny
    assert (
        np.max(np.abs(y[normal] - exact[normal]) / np.abs(exact[normal]), initial=0, where=exact[normal] != 0) < 1e-15
    )
    assert np.max(np.abs(y[~normal] - exact[~normal])) <= 5e-324
    assert np.max(np.abs(y)) <= 1


@pytest.mark.parametrize(("dtype", "large"), [("float32", 3.4e38), ("float64", 1.7e308)])
def test_tanh_at_its_ends(dtype: str, large: float) -> None:
    x = np.array([0.0, 9.2 if dtype == "float32" else 19.5, 30.0, large, np.inf], dtype=dtype)
    y = tanh(x)
    step = float(np.finfo(dtype).epsneg)
    assert y[0] == 0
    assert set((1 - y[1:]).tolist()) <= {0.0, step, 2 * step}  # 1, or one of the two numbers below it
    assert np.array_equal(tanh(-x), -y)
    assert np.isnan(tanh(np.array([np.nan, -np.nan], dtype=dtype))).all()
