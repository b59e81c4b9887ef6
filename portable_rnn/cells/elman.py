"""The Elman cell: Elman (1990), Finding structure in time. The notation is in `cell.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arrays import Array, Configuration, Params, Positive
from .activations import ActivationName, activation
from .cell import (
    Arrays,
    Residual,
    Shapes,
    clipped,
    dropped,
    optional_residual,
    summed,
    summed_bias,
    summed_outer,
    weight_shapes,
    where_inside,
)

__all__ = ["ElmanCell"]


@dataclass(frozen=True)
class ElmanCell(Configuration):
    """``h' = f(Wx @ x + Wh @ h + b)`` (Elman 1990)."""

    nonlinearity: ActivationName = "tanh"
    clip: Positive | None = None

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        return weight_shapes(hidden_size, input_size, hidden_size, bias)

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        return (hidden_size,)

    def prepare(self, xp: Any, p: Params) -> Params:
        return {"Wx": p["weight_ih"], "Wh": p["weight_hh"], **summed_bias(p)}

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        (h,) = state
        a, inside = clipped(xp, z + w["Wh"] @ dropped(h, drop), self.clip)
        h = activation(self.nonlinearity).forward(xp, a)
        return (h,), {"h": h, **optional_residual("inside", inside)}

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        (dh,) = dstate
        da = dh * activation(self.nonlinearity).derivative(xp, residual["h"])  # h = f(a)
        da = where_inside(xp, da, residual.get("inside"))
        dh = dropped(w["Wh.T"] @ da, drop)  # a = z + Wh @ h
        return (dh,), da, {}

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        db = summed(xp, dz)
        return {"weight_hh": summed_outer(xp, dz, h_before), "bias_ih": db, "bias_hh": db}
