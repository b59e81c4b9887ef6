"""The GRU, with the reset gate before or after the recurrent product. The notation is in `cell.py`.

Cho et al. (2014), Learning phrase representations using RNN encoder-decoder, has it before the product; cuDNN after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..arrays import Array, Configuration, Params, Positive
from ..execution import fuse
from .activations import ActivationName, GateBlock, activation, split_rows
from .cell import (
    Arrays,
    Residual,
    Shapes,
    clipped,
    column,
    dropped,
    optional_residual,
    summed,
    summed_bias,
    summed_outer,
    weight_shapes,
    where_inside,
)

__all__ = ["GRUCell"]


@dataclass(frozen=True)
class GRUCell(Configuration):
    """Gated recurrent unit.

    ::

        r = s(z_r + Wh_r @ h + bh_r)           h' = n + u * (h - n)
        u = s(z_u + Wh_u @ h + bh_u)
        n = t(z_n + r * (Wh_n @ h + bh_n))     reset_after=True: torch, cuDNN, Keras 3
        n = t(z_n + Wh_n @ (r * h) + bh_n)     reset_after=False: Cho et al. 2014
    """

    reset_after: bool = True
    activation: ActivationName = "tanh"
    recurrent_activation: ActivationName = "sigmoid"
    clip: Positive | None = None

    @cached_property
    def _block(self) -> GateBlock:
        return GateBlock((self.recurrent_activation,) * 2)

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        return weight_shapes(3 * hidden_size, input_size, hidden_size, bias)

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        return (hidden_size,)

    def prepare(self, xp: Any, p: Params) -> Params:
        w = {"Wx": p["weight_ih"], "Wh": p["weight_hh"]}
        hidden = w["Wh"].shape[1]
        w["columns"] = self._block.columns(xp, w["Wx"], hidden)
        if not self.reset_after:
            w["Wh_ru"], w["Wh_n"] = w["Wh"][: 2 * hidden, ...], w["Wh"][2 * hidden :, ...]
            return {**w, **summed_bias(p)}
        biases = {"b": p["bias_ih"][:, None], "bh": p["bias_hh"][:, None]} if "bias_ih" in p else {}
        return {**w, **biases}

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        (h,) = state
        seen = dropped(h, drop)
        rows = 2 * h.shape[0]
        if self.reset_after:
            ah = w["Wh"] @ seen
            if "bh" in w:
                ah = ah + w["bh"]
            ah_ru, ah_n = ah[:rows, ...], ah[rows:, ...]
        else:
            ah_ru, ah_n = w["Wh_ru"] @ seen, seen  # ah_n: what the reset gate multiplies
        a_ru, inside = clipped(xp, z[:rows, ...] + ah_ru, self.clip)
        ru = self._block.forward(xp, a_ru, w["columns"])
        r, u = split_rows(ru, 2)
        reset = r * ah_n if self.reset_after else w["Wh_n"] @ (r * ah_n)
        a_n, inside_n = clipped(xp, z[rows:, ...] + reset, self.clip)
        n = activation(self.activation).forward(xp, a_n)
        residual = {"ru": ru, "n": n, "ah_n": ah_n, "h": h}
        return (fuse(xp, _gru_state)(n, u, h),), residual | optional_residual("inside", inside) | optional_residual(
            "inside_n", inside_n
        )

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        ru, n, ah_n, h = (residual[name] for name in ("ru", "n", "ah_n", "h"))
        r, u = split_rows(ru, 2)
        (dh,) = dstate
        du, dn, dh = fuse(xp, _gru_state_cotangents)(dh, n, u, h)
        da_n = dn * activation(self.activation).derivative(xp, n)  # n = t(a_n)
        da_n = where_inside(xp, da_n, residual.get("inside_n"))
        dreset = da_n if self.reset_after else w["Wh_n.T"] @ da_n  # cotangent of r * ah_n
        da_ru = xp.concat([dreset * ah_n, du], axis=0) * self._block.derivative(xp, ru, w["columns"])
        da_ru = where_inside(xp, da_ru, residual.get("inside"))
        dz = xp.concat([da_ru, da_n], axis=0)
        if self.reset_after:
            dah = xp.concat([da_ru, dreset * r], axis=0)  # a_n = z_n + r * ah_n
            return (dh + dropped(w["Wh.T"] @ dah, drop),), dz, {"dah": dah}
        dseen = w["Wh_ru.T"] @ da_ru + dreset * r  # a_n = z_n + Wh_n @ (r * seen)
        return (dh + dropped(dseen, drop),), dz, {}

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        db = summed(xp, dz)
        if self.reset_after:
            dah = column(xp, emitted, "dah")
            return {"weight_hh": summed_outer(xp, dah, h_before), "bias_ih": db, "bias_hh": summed(xp, dah)}
        hidden = h_before.shape[1]
        r = column(xp, residuals, "ru")[:, :hidden, :]
        dWh_ru = summed_outer(xp, dz[:, : 2 * hidden, :], h_before)
        dWh_n = summed_outer(xp, dz[:, 2 * hidden :, :], r * h_before)
        return {"weight_hh": xp.concat([dWh_ru, dWh_n], axis=0), "bias_ih": db, "bias_hh": db}

    def gate_values(self, xp: Any, residuals: Any) -> Residual:
        """The gates over all steps, each (T, H, B)."""
        ru = column(xp, residuals, "ru")
        hidden = ru.shape[1] // 2
        return {"r": ru[:, :hidden, :], "z": ru[:, hidden:, :]}


def _gru_state(xp: Any, n: Array, u: Array, h: Array) -> Array:
    return n + u * (h - n)


def _gru_state_cotangents(xp: Any, dh: Array, n: Array, u: Array, h: Array) -> Arrays:
    """Of u, n and h in ``h' = n + u * (h - n)``."""
    return dh * (h - n), dh * (1 - u), dh * u
