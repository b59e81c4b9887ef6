"""Every function of the shim's headers against Python's and NumPy's: one kernel for each group of expressions."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
import pytest

from .compiler import SHIM

Arrays = dict[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(0)
C_TYPES = {"f4": "float", "f8": "double", "i4": "int", "u4": "unsigned", "i8": "long long", "u8": "unsigned long long"}


def evaluate(expressions: list[str], arrays: Arrays, result: str) -> np.ndarray[Any, Any]:
    """A row for each expression of the arrays' elements, computed by one kernel."""
    count = len(next(iter(arrays.values())))
    out = cupy.zeros((len(expressions), count), result)
    parameters = ", ".join(f"const {C_TYPES[a.dtype.str[1:]]}* {name}_" for name, a in arrays.items())
    loads = " ".join(f"const {C_TYPES[a.dtype.str[1:]]} {name} = {name}_[i];" for name, a in arrays.items())
    stores = "\n".join(f"out[{k * count} + i] = {expression};" for k, expression in enumerate(expressions))
    source = f"""
    extern "C" __global__ void evaluate({parameters}, {C_TYPES[result]}* out)
    {{
        const int i = threadIdx.x;
        {loads}
        {stores}
    }}
    """
    cupy.RawKernel(source, "evaluate")((1,), (count,), (*map(cupy.asarray, arrays.values()), out))
    found: np.ndarray[Any, Any] = cupy.asnumpy(out)
    return found


def compare(table: dict[str, Callable[..., Any]], arrays: Arrays, result: str, tolerance: float = 0) -> None:
    """Each expression against its reference, element by element, in float64 or in exact integers."""
    found = evaluate(list(table), arrays, result)
    names = list(arrays)
    for row, (expression, reference) in zip(found, table.items(), strict=True):
        columns = [a.tolist() for a in arrays.values()]  # Python's own numbers
        takes = [name for name in names if re.search(rf"\b{name}\b", expression)]
        rows = zip(*(columns[names.index(name)] for name in takes), strict=True)
        expected = np.asarray([reference(*numbers) for numbers in rows])
        if tolerance:
            np.testing.assert_allclose(row, expected, rtol=tolerance, atol=tolerance, err_msg=expression)
        else:
            np.testing.assert_array_equal(row, expected, err_msg=expression)


def round_half_even(x: float) -> float:
    return float(np.rint(x))


ANY_SIGN: dict[str, Callable[..., Any]] = {
    "exp(x)": math.exp,
    "exp2(x)": lambda x: 2.0**x,
    "exp10(x)": lambda x: 10.0**x,
    "expm1(x)": math.expm1,
    "cbrt(x)": np.cbrt,
    "rcbrt(x)": lambda x: 1 / np.cbrt(x),
    "sin(x)": math.sin,
    "cos(x)": math.cos,
    "tan(x)": math.tan,
    "sinpi(x)": lambda x: math.sin(math.pi * x),
    "cospi(x)": lambda x: math.cos(math.pi * x),
    "atan(x)": math.atan,
    "sinh(x)": math.sinh,
    "cosh(x)": math.cosh,
    "tanh(x)": math.tanh,
    "asinh(x)": math.asinh,
    "erf(x)": math.erf,
    "erfc(x)": math.erfc,
    "normcdf(x)": lambda x: 0.5 * math.erfc(-x / math.sqrt(2)),
    "floor(x)": math.floor,
    "ceil(x)": math.ceil,
    "trunc(x)": math.trunc,
    "round(x)": lambda x: math.copysign(math.floor(abs(x) + 0.5), x),
    "rint(x)": round_half_even,
    "nearbyint(x)": round_half_even,
    "fabs(x)": abs,
    "abs(x)": abs,
    "lrint(x)": round_half_even,
    "llrint(x)": round_half_even,
    "lround(x)": lambda x: math.copysign(math.floor(abs(x) + 0.5), x),
    "llround(x)": lambda x: math.copysign(math.floor(abs(x) + 0.5), x),
    "isnan(x)": math.isnan,
    "isinf(x)": math.isinf,
    "isfinite(x)": math.isfinite,
    "signbit(x)": lambda x: x < 0,
    "ldexp(x, 3)": lambda x: x * 8,
    "scalbn(x, -2)": lambda x: x / 4,
    "ilogb(x)": lambda x: math.frexp(x)[1] - 1,
    "logb(x)": lambda x: math.frexp(x)[1] - 1,
    "([=] { int e; return frexp(x, &e) + 10 * e; })()": lambda x: math.frexp(x)[0] + 10 * math.frexp(x)[1],
    "([=] { decltype(+x) w; return modf(x, &w) + 10 * w; })()": lambda x: math.modf(x)[0] + 10 * math.modf(x)[1],
    "pow(fabs(x), y)": lambda x, y: abs(x) ** y,
    "atan2(x, y)": math.atan2,
    "hypot(x, y)": math.hypot,
    "fmod(x, y)": math.fmod,
    "remainder(x, y)": math.remainder,
    "fdim(x, y)": lambda x, y: max(x - y, 0),
    "fmax(x, y)": max,
    "fmin(x, y)": min,
    "max(x, y)": max,
    "min(x, y)": min,
    "max(x, NAN)": lambda x: x,  # as CUDA's: the number
    "min(NAN, x)": lambda x: x,
    "copysign(x, y)": math.copysign,
    "fma(x, y, x)": lambda x, y: x * y + x,
}
POSITIVE: dict[str, Callable[..., Any]] = {
    "log(x)": math.log,
    "log2(x)": math.log2,
    "log10(x)": math.log10,
    "log1p(x)": math.log1p,
    "sqrt(x)": math.sqrt,
    "rsqrt(x)": lambda x: 1 / math.sqrt(x),
    "tgamma(x)": math.gamma,
    "lgamma(x)": math.lgamma,
    "asin(1 / (1 + x))": lambda x: math.asin(1 / (1 + x)),
    "acos(1 / (1 + x))": lambda x: math.acos(1 / (1 + x)),
    "acosh(1 + x)": lambda x: math.acosh(1 + x),
    "atanh(1 / (2 + x))": lambda x: math.atanh(1 / (2 + x)),
}
DTYPES = [("f4", 2e-6), ("f8", 4e-15)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_arithmetic(dtype: str, tolerance: float) -> None:
    x, y = (RNG.uniform(-4, 4, 60).astype(dtype) for _ in range(2))
    compare(ANY_SIGN, {"x": x, "y": y}, dtype, tolerance)
    compare(POSITIVE, {"x": np.abs(x) + np.asarray(0.1, dtype)}, dtype, tolerance)
    special = np.asarray([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], dtype)
    table = {f"{name}(x)": getattr(np, name) for name in ("isnan", "isinf", "isfinite", "signbit")}
    compare(table, {"x": special}, "i4")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_next_number(dtype: str) -> None:
    x, y = (RNG.uniform(-4, 4, 60).astype(dtype) for _ in range(2))
    found = evaluate(["nextafter(x, y)"], {"x": x, "y": y}, dtype)
    np.testing.assert_array_equal(found[0], np.nextafter(x, y))


def test_integers_are_taken_as_double() -> None:
    n = np.arange(1, 9, dtype="i4")
    table = {
        "sqrt(n)": math.sqrt,
        "exp(n)": math.exp,
        "pow(n, 0.5)": lambda n: n**0.5,
        "isfinite(n)": lambda n: 1.0,
        "min(n, 4.5)": lambda n: min(n, 4.5),
        "max(n, 3)": lambda n: max(n, 3),
        "atan2(n, 2)": lambda n: math.atan2(n, 2),
    }
    compare(table, {"n": n}, "f8", 1e-15)
    compare({"abs(-n)": abs, "abs(-(long long)n)": abs, "abs(-(long)n)": abs}, {"n": n}, "i8")


def test_approximate_and_rounded_arithmetic_of_floats() -> None:
    x = RNG.uniform(0.1, 3, 60).astype("f4")
    y = RNG.uniform(-3, 3, 60).astype("f4")
    table: dict[str, Callable[..., Any]] = {
        "__expf(y)": math.exp,
        "__exp10f(y)": lambda y: 10.0**y,
        "__logf(x)": math.log,
        "__log2f(x)": math.log2,
        "__log10f(x)": math.log10,
        "__powf(x, y)": lambda x, y: x**y,
        "__sinf(y)": math.sin,
        "__cosf(y)": math.cos,
        "__tanf(x / 4)": lambda x: math.tan(x / 4),
        "__tanhf(y)": math.tanh,
        "__fdividef(y, x)": lambda x, y: y / x,
        "__saturatef(y)": lambda y: min(max(y, 0), 1),
        "rsqrtf(x)": lambda x: 1 / math.sqrt(x),
        "sinpif(y)": lambda y: math.sin(math.pi * y),
        "cospif(y)": lambda y: math.cos(math.pi * y),
        "normcdff(y)": lambda y: 0.5 * math.erfc(-y / math.sqrt(2)),
    }
    compare(table, {"x": x, "y": y}, "f4", 2e-6)


@pytest.mark.parametrize(("letter", "dtype"), [("f", "f4"), ("d", "f8")])
def test_rounded_arithmetic(letter: str, dtype: str) -> None:
    x = RNG.uniform(0.1, 3, 60).astype(dtype)
    y = RNG.uniform(-3, 3, 60).astype(dtype)
    operations = {"add": x + y, "sub": x - y, "mul": x * y, "div": x / y}
    found = evaluate([f"__{letter}{name}_rn(x, y)" for name in operations], {"x": x, "y": y}, dtype)
    np.testing.assert_array_equal(found, list(operations.values()))
    found = evaluate([f"__{letter}sqrt_rn(x)", f"__{letter}rcp_rn(x)"], {"x": x}, dtype)
    np.testing.assert_array_equal(found, [np.sqrt(x), 1 / x])
    # not fused: the product is rounded before the sum
    found = evaluate([f"__{letter}add_rn(__{letter}mul_rn(x, y), -x)"], {"x": x, "y": y}, dtype)
    np.testing.assert_array_equal(found[0], x * y - x)
    fused = "__fmaf_rn(x, y, -x)" if dtype == "f4" else "__fma_rn(x, y, -x)"
    found = evaluate([fused], {"x": x, "y": y}, dtype)
    exact = (x.astype("f8") * y.astype("f8") - x).astype("f4") if dtype == "f4" else x * y - x
    np.testing.assert_allclose(found[0], exact, rtol=1e-7 if dtype == "f4" else 1e-14, atol=1e-15)


def bits(value: Any, given: str, wanted: str) -> Any:
    return struct.unpack(wanted, struct.pack(given, value))[0]


def test_bits() -> None:
    n = RNG.integers(-(2**31), 2**31, 60).astype("i4")
    n[:4] = [0, 1, -1, -(2**31)]
    u, x = n.view("u4"), RNG.uniform(-4, 4, 60).astype("f4")
    as_unsigned = 0xFFFFFFFF
    table: dict[str, Callable[..., Any]] = {
        "__popc(u)": int.bit_count,
        "__clz(n)": lambda n: 32 - (n & as_unsigned).bit_length(),
        "__ffs(n)": lambda n: (n & -n).bit_length(),
        "__brev(u)": lambda u: int(f"{u:032b}"[::-1], 2),
        "__umulhi(u, 3000000000u)": lambda u: u * 3000000000 >> 32,
        "__mulhi(n, -2000000000)": lambda n: n * -2000000000 >> 32,
        "__float_as_uint(x)": lambda x: bits(x, "f", "I"),
        "__float_as_int(x)": lambda x: bits(x, "f", "i"),
        "__float_as_uint(__uint_as_float(u & 0x7fffff))": lambda u: u & 0x7FFFFF,
        "__float_as_int(__int_as_float(n & 0x7fffff))": lambda n: n & 0x7FFFFF,
        "__float2half_rn(x)": lambda x: int(np.float16(x).view("u2")),
        "__ldg(&n)": lambda n: n,
    }
    compare(table, {"n": n, "u": u, "x": x}, "i8")
    halves = np.arange(0, 0x7C00, 521, dtype="u4")
    compare({"__half2float((unsigned short)h)": lambda h: bits(h, "H", "e")}, {"h": halves}, "f4")


def test_bits_of_64() -> None:
    n = RNG.integers(-(2**63), 2**63, 60)
    n[:4] = [0, 1, -1, -(2**63)]
    u, x = n.view("u8"), RNG.uniform(-4, 4, 60)
    as_unsigned = (1 << 64) - 1
    table: dict[str, Callable[..., Any]] = {
        "__popcll(u)": int.bit_count,
        "__clzll(n)": lambda n: 64 - (n & as_unsigned).bit_length(),
        "__ffsll(n)": lambda n: (n & -n).bit_length(),
        "__double_as_longlong(x)": lambda x: bits(x, "d", "q"),
        "__double2hiint(x)": lambda x: bits(x, "d", "q") >> 32,
        "__double2loint(x)": lambda x: bits(bits(x, "d", "q") & 0xFFFFFFFF, "I", "i"),
    }
    compare(table, {"n": n, "u": u, "x": x}, "i8")
    compare({"__umul64hi(u, 12345678901234567890ull)": lambda u: u * 12345678901234567890 >> 64}, {"u": u}, "u8")
    table = {
        "__longlong_as_double(__double_as_longlong(x))": lambda x: x,
        "__hiloint2double(__double2hiint(x), __double2loint(x))": lambda x: x,
    }
    compare(table, {"x": x}, "f8")


def test_no_function_is_left_out() -> None:
    here = __file__
    with open(here, encoding="utf-8") as file:
        tested = file.read()
    with open(here.replace("test_intrinsics", "test_threads"), encoding="utf-8") as file:
        tested += file.read()
    headers = "".join((SHIM / f"{name}.h").read_text() for name in ("arithmetic", "intrinsics", "threads"))
    names = {*re.findall(r"^inline [\w ]+? (\w+)\(", headers, re.MULTILINE)}
    names |= {*re.findall(r"EMU_(?:UNARY|BINARY|CLASSIFY|ATOMIC)\((\w+)", headers)} - {"name"}
    missing = {name for name in names if not re.search(rf"\b{name}\b", tested) and not name.startswith("emu_")}
    # nothing to compute; and what test_arrays.py needs for half precision
    missing -= {"__threadfence_block", "__threadfence_system", "clock64", "__half_as_ushort", "__ushort_as_half"}
    assert missing == set()
    assert len(names) > 120
