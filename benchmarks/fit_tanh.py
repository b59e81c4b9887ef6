"""Fit the quotient of polynomials that compiled loops use for tanh in float32.

``tanh(x) / x`` is even, so that it is a quotient P(u) / Q(u) in u = x**2, here of degrees 5 and 4, up to |x| = 9, where
float32 rounds tanh to 1. The fit makes the largest relative error small by Lawson's weighted least squares: where the
error is large, the next weights are. Prints the coefficients, lowest power first, and the largest relative error in
float32 beside that of ``np.tanh``.

    python benchmarks/fit_tanh.py
"""

from __future__ import annotations

import numpy as np

LIMIT = 9.0
DEGREES = (5, 4)
POINTS = 4000
ROUNDS = 60


def fit() -> tuple[np.ndarray, np.ndarray, float]:
    """(coefficients of P, coefficients of Q, largest relative error at the points of the fit)."""
    above, below = DEGREES
    nodes = (np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS) + 1) / 2
    x = np.sort(nodes) * LIMIT
    x = x[x > 1e-9]
    v = x * x / LIMIT**2  # in [0, 1], so that its powers are of one size
    wanted = np.tanh(x) / x
    weights, q = np.ones_like(x), np.ones_like(x)
    smallest, best = np.inf, np.zeros(above + below + 1)
    for _ in range(ROUNDS):
        # P(v) - wanted * (Q(v) - 1) = wanted, each row weighted as a relative error of the quotient
        powers = v[:, None] ** np.arange(above + 1)
        system = np.concatenate([powers, -wanted[:, None] * v[:, None] ** np.arange(1, below + 1)], axis=1)
        scale = weights / (q * wanted)
        found, *_ = np.linalg.lstsq(system * scale[:, None], wanted * scale, rcond=None)
        p = np.polynomial.polynomial.polyval(v, found[: above + 1])
        q = 1 + np.polynomial.polynomial.polyval(v, np.concatenate([[0], found[above + 1 :]]))
        error = np.abs(p / q / wanted - 1)
        if error.max() < smallest:
            smallest, best = float(error.max()), found
        weights = weights * (0.3 + error / error.max())
        weights /= weights.max()
    numerator = best[: above + 1] / LIMIT ** (2.0 * np.arange(above + 1))
    denominator = np.concatenate([[1], best[above + 1 :]]) / LIMIT ** (2.0 * np.arange(below + 1))
    return numerator, denominator, smallest


def in_float32(x: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """tanh as a compiled loop computes it, but for fused multiply-adds."""
    c = np.clip(x, np.float32(-LIMIT), np.float32(LIMIT))
    u = c * c
    p, q = (np.full_like(u, np.float32(each[-1])) for each in (numerator, denominator))
    for coefficient in numerator[-2::-1]:
        p = p * u + np.float32(coefficient)
    for coefficient in denominator[-2::-1]:
        q = q * u + np.float32(coefficient)
    return np.clip(c * p / q, np.float32(-1), np.float32(1))


def largest_error(got: np.ndarray, x: np.ndarray) -> float:
    """The largest relative error of tanh at x, none of them zero."""
    exact = np.tanh(x.astype("float64"))
    return float(np.max(np.abs(got - exact) / np.abs(exact)))


def main() -> None:
    numerator, denominator, error = fit()
    x = np.linspace(-12, 12, 2_000_001).astype("float32")
    x = x[x != 0]
    print(f"degrees {DEGREES} in x**2, |x| <= {LIMIT:g}")
    print("numerator   ", *map(repr, numerator.tolist()))
    print("denominator ", *map(repr, denominator.tolist()))
    print(f"largest relative error of the fit in float64: {error:.2g}")
    print(f"in float32: {largest_error(in_float32(x, numerator, denominator), x):.2g}")
    print(f"np.tanh in float32: {largest_error(np.tanh(x), x):.2g}")


if __name__ == "__main__":
    main()
