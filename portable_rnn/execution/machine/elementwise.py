"""The operations of a recorded step on vectors of machine code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..graph.operations import Op
from .emitter import Emitter

if TYPE_CHECKING:
    from llvmlite import ir

__all__ = ["TANH_DENOMINATOR", "TANH_LIMIT", "TANH_NUMERATOR", "apply"]


def apply(e: Emitter, op: Op, *values: ir.Value) -> ir.Value:
    """A pointwise operation."""
    return _OPERATIONS[op](e, *values)


def _horner(e: Emitter, x: ir.Value, coefficients: list[float]) -> ir.Value:
    """The polynomial with these coefficients, the highest power first."""
    value = e.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = e.multiply_add(value, x, e.constant(coefficient))
    return value


def _by_lane(e: Emitter, name: str, x: ir.Value) -> ir.Value:
    """A function of the C library for each lane."""
    function = e.declared(name + "f" * (e.dtype == "float32"), e.number, [e.number])
    found = e.ir.Constant(x.type, e.ir.Undefined)
    for lane in range(e.lanes):
        index = e.ir.IntType(32)(lane)
        one = e.builder.call(function, [e.builder.extract_element(x, index)])
        found = e.builder.insert_element(found, one, index)
    return found


def _tanh(e: Emitter, x: ir.Value) -> ir.Value:
    return _tanh32(e, x) if e.dtype == "float32" else _tanh64(e, x)


def _arithmetic(name: str) -> Callable[..., ir.Value]:
    return lambda e, a, b: getattr(e.builder, name)(a, b, flags=("contract",))


def _comparison(sign: str) -> Callable[..., ir.Value]:
    compare = "fcmp_unordered" if sign == "!=" else "fcmp_ordered"

    def apply(e: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
        if a.type.element == e.bit:
            return e.builder.icmp_unsigned(sign, a, b)
        return getattr(e.builder, compare)(sign, a, b)

    return apply


def _extreme(sign: str) -> Callable[..., ir.Value]:
    def apply(e: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
        b_, c = e.builder, e.builder.fcmp_ordered(sign, a, b)
        return b_.select(b_.or_(c, b_.fcmp_unordered("uno", a, a)), a, b)  # a NaN stays one

    return apply


def _within(e: Emitter, x: ir.Value, most: float) -> ir.Value:
    """`x` within [-most, most]; a NaN stays one."""
    for sign, bound in (("<", -most), (">", most)):
        limit = e.constant(bound)
        x = e.builder.select(e.builder.fcmp_ordered(sign, x, limit), limit, x)
    return x


TANH_LIMIT = 9.0
TANH_NUMERATOR = [
    -1.2246230332308959e-11,
    3.0642506747550595e-08,
    2.8031302585288815e-05,
    0.003869507599275691,
    0.13680856134878921,
    0.9999999987269129,
]
TANH_DENOMINATOR = [
    1.289034496606532e-06,
    0.00039407126715164354,
    0.027250155195703788,
    0.47014188225698933,
    1.0,
]


def _tanh32(e: Emitter, x: ir.Value) -> ir.Value:
    """tanh(x) / x as a quotient of polynomials in x**2 up to |x| = 9, beyond which tanh is within a rounding of 1.

    Fitted by benchmarks/fit_tanh.py, which prints its largest error.
    """
    c = _within(e, x, TANH_LIMIT)
    u = e.builder.fmul(c, c)
    p, q = _horner(e, u, TANH_NUMERATOR), _horner(e, u, TANH_DENOMINATOR)
    return _within(e, e.builder.fdiv(e.builder.fmul(c, p), q), 1.0)


def _tanh64(e: Emitter, x: ir.Value) -> ir.Value:
    """tanh(x) = m / (m + 2), where m = exp(2 * x) - 1 = 2**k * (exp(r) - 1) + (2**k - 1).

    r = 2 * x - k * log(2) is at most log(2) / 2, where 14 terms of exp(r) - 1 are exact to a rounding.
    """
    b = e.builder
    t = b.fmul(_within(e, x, 20.0), e.constant(2.0))
    k = e.intrinsic("rint", b.fmul(t, e.constant(1 / math.log(2))))
    high = 0.693147180369123816490  # log(2) in two parts, the first with zeros at its end (as in fdlibm)
    r = e.multiply_add(k, e.constant(-high), t)
    r = e.multiply_add(k, e.constant(-1.90821492927058770002e-10), r)
    terms = [1 / math.factorial(n) for n in range(14, 1, -1)]
    p = e.multiply_add(b.fmul(r, r), _horner(e, r, terms), r)  # exp(r) - 1
    words = e.vector(e.word)
    whole = b.fptosi(k, words)
    bits = b.shl(b.add(whole, e.ir.Constant(words, [1023] * e.lanes)), e.ir.Constant(words, [52] * e.lanes))
    power = b.bitcast(bits, x.type)
    m = e.multiply_add(power, p, b.fsub(power, e.constant(1.0)))
    found = b.fdiv(m, b.fadd(m, e.constant(2.0)))
    return b.select(b.fcmp_unordered("uno", x, x), x, found)


_OPERATIONS: dict[Op, Callable[..., ir.Value]] = {
    Op.ADD: _arithmetic("fadd"),
    Op.SUBTRACT: _arithmetic("fsub"),
    Op.MULTIPLY: _arithmetic("fmul"),
    Op.DIVIDE: _arithmetic("fdiv"),
    Op.MAXIMUM: _extreme(">="),
    Op.MINIMUM: _extreme("<="),
    Op.LESS: _comparison("<"),
    Op.LESS_EQUAL: _comparison("<="),
    Op.GREATER: _comparison(">"),
    Op.GREATER_EQUAL: _comparison(">="),
    Op.EQUAL: _comparison("=="),
    Op.NOT_EQUAL: _comparison("!="),
    Op.LOGICAL_AND: lambda e, a, b: e.builder.and_(a, b),
    Op.LOGICAL_OR: lambda e, a, b: e.builder.or_(a, b),
    Op.LOGICAL_NOT: lambda e, a: e.builder.not_(a),
    Op.NEGATIVE: lambda e, a: e.builder.fneg(a),
    Op.ABS: lambda e, a: e.intrinsic("fabs", a),
    Op.SQRT: lambda e, a: e.intrinsic("sqrt", a),
    Op.TANH: _tanh,
    Op.EXP: lambda e, a: _by_lane(e, "exp", a),
    Op.LOG1P: lambda e, a: _by_lane(e, "log1p", a),
    Op.WHERE: lambda e, condition, a, b: e.builder.select(condition, a, b),
    Op.FLOAT: lambda e, a: e.builder.select(a, e.constant(1), e.constant(0)),
}
