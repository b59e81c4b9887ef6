"""The LSTM, with peepholes, projection and coupled gates. The notation is in `cell.py`.

Hochreiter and Schmidhuber (1997), Long short-term memory; Gers, Schmidhuber and Cummins (2000), the forget gate; Gers
and Schmidhuber (2000), peepholes; Sak, Senior and Beaufays (2014), the projection; Greff et al. (2015), the coupled
input and forget gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..arrays import Array, Configuration, Count, Params, Positive
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

__all__ = ["LSTMCell"]


@dataclass(frozen=True)
class LSTMCell(Configuration):
    """Long short-term memory, optionally with peepholes and a projected hidden state.

    ::

        i = s(z_i + Wh_i @ h + p_i * c)        c' = f * c + i * g
        f = s(z_f + Wh_f @ h + p_f * c)        o  = s(z_o + Wh_o @ h + p_o * c')
        g = t(z_g + Wh_g @ h)                  h' = Whr @ (o * t(c'))

    With `coupled`, ``f = 1 - i``, and the gates are ``i g o``.
    """

    proj_size: Count = 0
    peepholes: bool = False
    coupled: bool = False
    activation: ActivationName = "tanh"
    recurrent_activation: ActivationName = "sigmoid"
    output_activation: ActivationName | None = None
    clip: Positive | None = None

    @property
    def gates(self) -> int:
        """Row blocks of the weights."""
        return 3 if self.coupled else 4

    @property
    def forget_gate(self) -> int | None:
        """Its row block."""
        return None if self.coupled else 1

    @cached_property
    def _block(self) -> GateBlock:
        s, t = self.recurrent_activation, self.activation
        return GateBlock((s, t, s) if self.coupled else (s, s, t, s))

    @cached_property
    def _early(self) -> GateBlock:
        """The gates before c' is known."""
        return GateBlock(self._block.names[:-1])

    @cached_property
    def _squash(self) -> Any:
        return activation(self.output_activation or self.activation)

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        out = self.proj_size or hidden_size
        shapes = weight_shapes(self.gates * hidden_size, input_size, out, bias)
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, hidden_size)
        if self.peepholes:
            shapes["weight_peephole"] = ((self.gates - 1) * hidden_size,)
        return shapes

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        return (self.proj_size or hidden_size, hidden_size)

    def prepare(self, xp: Any, p: Params) -> Params:
        w = {"Wx": p["weight_ih"], "Wh": p["weight_hh"], **summed_bias(p)}
        hidden = w["Wx"].shape[0] // self.gates
        if self.proj_size:
            w["Whr"] = p["weight_hr"]
        if not self.peepholes:
            return {**w, "columns": self._block.columns(xp, w["Wx"], hidden)}
        *early, w["p_o"] = split_rows(p["weight_peephole"][:, None], self.gates - 1)
        w["p_early"] = xp.concat([*early, xp.zeros_like(early[0])], axis=0)  # g has no peephole
        w["columns"] = self._early.columns(xp, w["Wx"], hidden)
        w["columns_o"] = GateBlock((self.recurrent_activation,)).columns(xp, w["Wx"], hidden)
        return w

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        h, c = state
        a = z + w["Wh"] @ dropped(h, drop)
        residual = {"c": c}
        if not self.peepholes:
            a, inside = clipped(xp, a, self.clip)
            gates = self._block.forward(xp, a, w["columns"])
            *early, o = split_rows(gates, self.gates)
            i, f, g = self._ifg(early)
            c_new = fuse(xp, _lstm_state)(i, f, g, c)
        else:
            rows = a.shape[0] - c.shape[0]
            a_early = a[:rows, ...] + w["p_early"] * xp.concat([c] * (self.gates - 1), axis=0)
            a_early, inside = clipped(xp, a_early, self.clip)
            early = self._early.forward(xp, a_early, w["columns"])
            i, f, g = self._ifg(split_rows(early, self.gates - 1))
            c_new = fuse(xp, _lstm_state)(i, f, g, c)
            a_o, inside_o = clipped(xp, a[rows:, ...] + w["p_o"] * c_new, self.clip)
            o = GateBlock((self.recurrent_activation,)).forward(xp, a_o, w["columns_o"])
            gates = xp.concat([early, o], axis=0)
            residual |= {"c_new": c_new, **optional_residual("inside_o", inside_o)}
        squashed = self._squash.forward(xp, c_new)  # not clipped: onnxruntime and OpenVINO bound the gates only
        h = o * squashed
        if self.proj_size:
            h = w["Whr"] @ h
        residual |= {"gates": gates, "squashed": squashed}
        return (h, c_new), residual | optional_residual("inside", inside)

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        gates, c, squashed = residual["gates"], residual["c"], residual["squashed"]
        *early, o = split_rows(gates, self.gates)
        i, f, g = self._ifg(early)
        dh, dc = dstate
        emitted: Residual = {}
        if self.proj_size:
            emitted = {"dh": dh}
            dh = w["Whr.T"] @ dh  # h = Whr @ (o * squashed)
        slope = self._squash.derivative(xp, squashed)
        do, dc = fuse(xp, _lstm_output_cotangents)(dh, dc, o, squashed, slope)
        if not self.peepholes:
            di, df, dg, dc = fuse(xp, _lstm_state_cotangents)(dc, i, f, g, c)
            dgates = xp.concat([di - df, dg, do] if self.coupled else [di, df, dg, do], axis=0)
            da = dgates * self._block.derivative(xp, gates, w["columns"])
            da = where_inside(xp, da, residual.get("inside"))
        else:
            rows = gates.shape[0] - c.shape[0]
            da_o = do * GateBlock((self.recurrent_activation,)).derivative(xp, o, w["columns_o"])
            da_o = where_inside(xp, da_o, residual.get("inside_o"))
            dc = dc + w["p_o"] * da_o  # a_o = ... + p_o * c'
            di, df, dg, dc = fuse(xp, _lstm_state_cotangents)(dc, i, f, g, c)
            dearly = xp.concat([di - df, dg] if self.coupled else [di, df, dg], axis=0)
            dearly = dearly * self._early.derivative(xp, gates[:rows, ...], w["columns"])
            dearly = where_inside(xp, dearly, residual.get("inside"))
            seen = split_rows(w["p_early"] * dearly, self.gates - 1)  # a_i = ... + p_i * c
            dc = sum(seen, start=dc)
            da = xp.concat([dearly, da_o], axis=0)
        dh = dropped(w["Wh.T"] @ da, drop)  # a = z + Wh @ h
        return (dh, dc), da, emitted

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        db = summed(xp, dz)
        grads = {"weight_hh": summed_outer(xp, dz, h_before), "bias_ih": db, "bias_hh": db}
        hidden = dz.shape[1] // self.gates
        if self.proj_size:
            gates, squashed = column(xp, residuals, "gates"), column(xp, residuals, "squashed")
            grads["weight_hr"] = summed_outer(xp, column(xp, emitted, "dh"), gates[:, -hidden:, :] * squashed)
        if self.peepholes:
            c, c_new = column(xp, residuals, "c"), column(xp, residuals, "c_new")
            rows = [*range(self.gates - 2), self.gates - 1]  # i, f, o: all but g
            grads["weight_peephole"] = xp.concat(
                [summed(xp, dz[:, k * hidden : (k + 1) * hidden, :] * (c_new if k == rows[-1] else c)) for k in rows]
            )
        return grads

    def gate_values(self, xp: Any, residuals: Any) -> Residual:
        """The gates over all steps, each (T, H, B)."""
        gates = column(xp, residuals, "gates")
        hidden = gates.shape[1] // self.gates
        names = "igo" if self.coupled else "ifgo"
        return {n: gates[:, k * hidden : (k + 1) * hidden, :] for k, n in enumerate(names) if n != "g"}

    def _ifg(self, early: list[Array]) -> tuple[Array, Array, Array]:
        if self.coupled:
            i, g = early
            return i, 1 - i, g
        i, f, g = early
        return i, f, g


def _lstm_state(xp: Any, i: Array, f: Array, g: Array, c: Array) -> Array:
    return f * c + i * g


def _lstm_state_cotangents(xp: Any, dc: Array, i: Array, f: Array, g: Array, c: Array) -> Arrays:
    """Of i, f, g and c in ``c' = f * c + i * g``."""
    return dc * g, dc * c, dc * i, dc * f


def _lstm_output_cotangents(xp: Any, dh: Array, dc: Array, o: Array, squashed: Array, slope: Array) -> Arrays:
    """Of o, and of c' with what it has already, in ``h = o * t(c')``; `slope` is the derivative of t."""
    return dh * squashed, dc + dh * o * slope
