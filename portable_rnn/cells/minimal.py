"""minGRU and minLSTM: gates that don't look at the state, so that the recurrence is linear in it.

Notation as in `cells`. Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi (2024), Were RNNs all we needed?,
arXiv:2410.01201, sections 3.1 and 3.2: the sequential form. Their ``h~`` is called n here.

There is no product with h: no ``weight_hh``, and nothing for a recurrent dropout to act on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..arrays import Array, Configuration, Params
from .activations import activation, split_rows
from .cell import Arrays, Residual, Shapes, column

__all__ = ["MinGRUCell", "MinLSTMCell"]


def _parameter_shapes(gates: int, input_size: int, hidden_size: int, bias: bool) -> Shapes:
    rows = gates * hidden_size
    shapes: Shapes = {"weight_ih": (rows, input_size)}
    return shapes | {"bias_ih": (rows,)} if bias else shapes


def _prepare(self: Any, xp: Any, p: Params) -> Params:
    return {"Wx": p["weight_ih"]} | ({"b": p["bias_ih"][:, None]} if "bias_ih" in p else {})


def _state_sizes(self: Any, hidden_size: int) -> tuple[int, ...]:
    return (hidden_size,)


def _parameter_gradients(self: Any, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
    return {"bias_ih": xp.sum(dz, axis=(0, 2))}


def _sigmoid(xp: Any, a: Array) -> Array:
    return activation("sigmoid").forward(xp, a)


def _candidate(xp: Any, a: Array, positive: bool) -> Array:
    """``a``, or the paper's g(a), which is positive: a + 1/2 where a >= 0, else sigmoid(a)."""
    return xp.where(a < 0, _sigmoid(xp, a), a + 0.5) if positive else a


def _dcandidate(xp: Any, dn: Array, n: Array, positive: bool) -> Array:
    """Cotangent of a in ``n = g(a)``, from n."""
    return xp.where(n < 0.5, dn * n * (1 - n), dn) if positive else dn


@dataclass(frozen=True)
class MinGRUCell(Configuration):
    """Minimal gated recurrent unit.

    ::

        u = sigmoid(z_u)          n = z_n, or g(z_n) if positive          h' = (1 - u) * h + u * n
    """

    positive: bool = False

    prepare = _prepare
    state_sizes = _state_sizes
    parameter_gradients = _parameter_gradients

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        return _parameter_shapes(2, input_size, hidden_size, bias)

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        (h,) = state
        z_u, z_n = split_rows(z, 2)
        u, n = _sigmoid(xp, z_u), _candidate(xp, z_n, self.positive)
        return (h + u * (n - h),), {"u": u, "n": n, "h": h}

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        u, n, h = residual["u"], residual["n"], residual["h"]
        (dh,) = dstate
        dz_u = dh * (n - h) * u * (1 - u)  # h' = h + u * (n - h)
        dz_n = _dcandidate(xp, dh * u, n, self.positive)
        return (dh * (1 - u),), xp.concat([dz_u, dz_n], axis=0), {}

    def gate_values(self, xp: Any, residuals: Any) -> Residual:
        """The gate over all steps (T, H, B)."""
        return {"u": column(xp, residuals, "u")}


@dataclass(frozen=True)
class MinLSTMCell(Configuration):
    """Minimal long short-term memory, whose two gates are scaled to add up to 1.

    ::

        f, i = sigmoid(z_f), sigmoid(z_i)          n = z_n, or g(z_n) if positive
        k = f / (f + i)                            h' = k * h + (1 - k) * n

    k is computed as ``sigmoid(log(f / i))``: both gates may be too small for the dtype.
    """

    positive: bool = False

    forget_gate: ClassVar[int] = 0

    prepare = _prepare
    state_sizes = _state_sizes
    parameter_gradients = _parameter_gradients

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        return _parameter_shapes(3, input_size, hidden_size, bias)

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        (h,) = state
        z_f, z_i, z_n = split_rows(z, 3)
        minus_log = activation("softplus").forward  # softplus(-a) = -log(sigmoid(a))
        k = _sigmoid(xp, minus_log(xp, -z_i) - minus_log(xp, -z_f))
        n = _candidate(xp, z_n, self.positive)
        closed = _sigmoid(xp, -z[: 2 * h.shape[0], ...])  # 1 - f, 1 - i
        return (n + k * (h - n),), {"k": k, "n": n, "h": h, "closed": closed}

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        k, n, h = residual["k"], residual["n"], residual["h"]
        not_f, not_i = split_rows(residual["closed"], 2)
        (dh,) = dstate
        dratio = dh * (h - n) * k * (1 - k)  # h' = n + k * (h - n), k = sigmoid(log f - log i)
        dz_n = _dcandidate(xp, dh * (1 - k), n, self.positive)
        return (dh * k,), xp.concat([dratio * not_f, -dratio * not_i, dz_n], axis=0), {}  # d log f / dz_f = 1 - f

    def gate_values(self, xp: Any, residuals: Any) -> Residual:
        """The two scaled gates' first over all steps (T, H, B); the other is one minus it."""
        return {"f / (f + i)": column(xp, residuals, "k")}
