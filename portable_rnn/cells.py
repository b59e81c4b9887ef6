"""The recurrent cells: one time step forward, the same step backward.

Notation
--------
Everything is feature-first: one sequence is a column.

========================= ================ =====================================================================
``h``                     (H, B)           hidden state; (P, B) in an LSTM with projection
``c``                     (H, B)           cell state of the LSTM
``z``                     (G * H, B)       input part of the pre-activations, ``Wx @ x + b``, computed for all steps
                                           at once before the time loop
``a``                     (G * H, B)       pre-activations
``Wx``, ``Wh``            (G * H, I / H)   torch's ``weight_ih`` and ``weight_hh``
``dX``                    as X             cotangent of X: the derivative of the loss with respect to X
========================= ================ =====================================================================

Gates are row blocks in torch's order: ``i f g o`` (LSTM), ``r u n`` (GRU; torch and cuDNN write ``r z n``, but ``z``
is taken here). A step returns what its backward needs (the residual) as a tuple of arrays, so that the same code runs
in a Python loop and under ``jax.lax.scan``. What is a sum over time (the weight gradients) is left to
`parameter_gradients`, one large product after the loop.

Sources
-------
Elman (1990), Finding structure in time. Hochreiter and Schmidhuber (1997), Long short-term memory; Gers, Schmidhuber
and Cummins (2000), the forget gate; Gers and Schmidhuber (2000), peepholes; Sak, Senior and Beaufays (2014), the
projection. Cho et al. (2014), the GRU with the reset gate before the product; the variant after it is cuDNN's.
Gal and Ghahramani (2016), the dropout mask that stays the same for all steps of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .activations import GateBlock, activation, split_rows
from .execution import stacked
from .typing import Array, Params

__all__ = ["Cell", "ElmanCell", "GRUCell", "LSTMCell"]

Arrays = tuple[Array, ...]


@dataclass(frozen=True)
class ElmanCell:
    """``h' = f(Wx @ x + Wh @ h + b)`` (Elman 1990)."""

    nonlinearity: str = "tanh"
    gates: ClassVar[int] = 1

    def prepare(self, xp: Any, p: Params) -> Params:
        """Do once what all steps share; `p` are one direction's parameters without their suffix."""
        return {"Wx": p["weight_ih"], "Wh": p["weight_hh"], **_summed_bias(p)}

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Arrays]:
        """(state) -> (new state, residual)."""
        (h,) = state
        h = activation(self.nonlinearity).forward(xp, z + w["Wh"] @ _dropped(h, drop))
        return (h,), (h,)

    def step_backward(
        self, xp: Any, w: Params, residual: Arrays, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Arrays]:
        """(cotangent of the new state) -> (cotangent of the old state, dz, what `parameter_gradients` needs)."""
        (h,), (dh,) = residual, dstate
        da = dh * activation(self.nonlinearity).derivative(xp, h)  # h = f(a)
        dh = _dropped(w["Wh"].T @ da, drop)  # a = z + Wh @ h
        return (dh,), da, ()

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        """Gradients of all but `weight_ih`, from stacks over time: dz (T, G * H, B), h_before (T, H, B)."""
        db = xp.sum(dz, axis=(0, 2))
        return {"weight_hh": summed_outer(xp, dz, h_before), "bias_ih": db, "bias_hh": db}


@dataclass(frozen=True)
class LSTMCell:
    """Long short-term memory, optionally with peepholes and a projected hidden state.

    ::

        i = s(z_i + Wh_i @ h + p_i * c)        c' = f * c + i * g
        f = s(z_f + Wh_f @ h + p_f * c)        o  = s(z_o + Wh_o @ h + p_o * c')
        g = t(z_g + Wh_g @ h)                  h' = Whr @ (o * t(c'))
    """

    proj_size: int = 0
    peepholes: bool = False
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    gates: ClassVar[int] = 4

    @property
    def _block(self) -> GateBlock:
        s = self.recurrent_activation
        return GateBlock((s, s, self.activation, s))

    def prepare(self, xp: Any, p: Params) -> Params:
        w = {"Wx": p["weight_ih"], "Wh": p["weight_hh"], **_summed_bias(p)}
        hidden = w["Wx"].shape[0] // self.gates
        columns = self._block.columns(xp, w["Wx"], hidden)
        if self.peepholes:
            w["p_i"], w["p_f"], w["p_o"] = split_rows(p["weight_peephole"][:, None], 3)
            rows = 3 * hidden
            w["columns_o"] = columns and tuple(c[rows:, ...] for c in columns)
            columns = columns and tuple(c[:rows, ...] for c in columns)
        if self.proj_size:
            w["Whr"] = p["weight_hr"]
        return {**w, "columns": columns}

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Arrays]:
        h, c = state
        block, squash = self._block, activation(self.activation)
        a = z + w["Wh"] @ _dropped(h, drop)
        if not self.peepholes:
            gates = block.forward(xp, a, w["columns"])
            i, f, g, o = split_rows(gates, 4)
            c_new = f * c + i * g
        else:
            a_i, a_f, a_g, a_o = split_rows(a, 4)
            a_ifg = xp.concat([a_i + w["p_i"] * c, a_f + w["p_f"] * c, a_g], axis=0)
            ifg = GateBlock(block.names[:3]).forward(xp, a_ifg, w["columns"])
            i, f, g = split_rows(ifg, 3)
            c_new = f * c + i * g
            o = GateBlock(block.names[3:]).forward(xp, a_o + w["p_o"] * c_new, w["columns_o"])
            gates = xp.concat([ifg, o], axis=0)
        squashed = squash.forward(xp, c_new)
        h = o * squashed
        if self.proj_size:
            h = w["Whr"] @ h
        return (h, c_new), (gates, c, squashed, c_new) if self.peepholes else (gates, c, squashed)

    def step_backward(
        self, xp: Any, w: Params, residual: Arrays, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Arrays]:
        gates, c, squashed = residual[:3]
        i, f, g, o = split_rows(gates, 4)
        dh, dc = dstate
        emitted: Arrays = ()
        if self.proj_size:
            emitted = (dh,)
            dh = w["Whr"].T @ dh  # h = Whr @ (o * squashed)
        do = dh * squashed  # h = o * squashed
        dc = dc + dh * o * activation(self.activation).derivative(xp, squashed)  # squashed = t(c')
        if not self.peepholes:
            dgates = xp.concat([dc * g, dc * c, dc * i, do], axis=0)  # c' = f * c + i * g
            da = dgates * self._block.derivative(xp, gates, w["columns"])
            dc = dc * f
        else:
            names = self._block.names
            rows = 3 * c.shape[0]
            slopes = GateBlock(names[:3]).derivative(xp, gates[:rows, ...], w["columns"])
            da_o = do * GateBlock(names[3:]).derivative(xp, o, w["columns_o"])
            dc = dc + w["p_o"] * da_o  # a_o = ... + p_o * c'
            da_ifg = xp.concat([dc * g, dc * c, dc * i], axis=0) * slopes
            da_i, da_f, _ = split_rows(da_ifg, 3)
            dc = dc * f + w["p_i"] * da_i + w["p_f"] * da_f  # a_i = ... + p_i * c
            da = xp.concat([da_ifg, da_o], axis=0)
        dh = _dropped(w["Wh"].T @ da, drop)  # a = z + Wh @ h
        return (dh, dc), da, emitted

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        db = xp.sum(dz, axis=(0, 2))
        grads = {"weight_hh": summed_outer(xp, dz, h_before), "bias_ih": db, "bias_hh": db}
        hidden = dz.shape[1] // self.gates
        if self.proj_size:
            gates, squashed = (_column(xp, residuals, k) for k in (0, 2))
            grads["weight_hr"] = summed_outer(xp, _column(xp, emitted, 0), gates[:, 3 * hidden :, :] * squashed)
        if self.peepholes:
            c, c_new = (_column(xp, residuals, k) for k in (1, 3))
            seen = {0: c, 1: c, 3: c_new}  # what the peephole of gate k looks at
            grads["weight_peephole"] = xp.concat(
                [xp.sum(dz[:, k * hidden : (k + 1) * hidden, :] * seen[k], axis=(0, 2)) for k in seen]
            )
        return grads


@dataclass(frozen=True)
class GRUCell:
    """Gated recurrent unit.

    ::

        r = s(z_r + Wh_r @ h + bh_r)           h' = n + u * (h - n)
        u = s(z_u + Wh_u @ h + bh_u)
        n = t(z_n + r * (Wh_n @ h + bh_n))     reset_after=True: torch, cuDNN, Keras 3
        n = t(z_n + Wh_n @ (r * h) + bh_n)     reset_after=False: Cho et al. 2014
    """

    reset_after: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    gates: ClassVar[int] = 3

    @property
    def _block(self) -> GateBlock:
        return GateBlock((self.recurrent_activation,) * 2)

    def prepare(self, xp: Any, p: Params) -> Params:
        w = {"Wx": p["weight_ih"], "Wh": p["weight_hh"]}
        hidden = w["Wx"].shape[0] // self.gates
        w["columns"] = self._block.columns(xp, w["Wx"], hidden)
        if self.reset_after:
            biases = {"b": p["bias_ih"][:, None], "bh": p["bias_hh"][:, None]} if "bias_ih" in p else {}
            return {**w, **biases}
        w["Wh_ru"], w["Wh_n"] = w["Wh"][: 2 * hidden, ...], w["Wh"][2 * hidden :, ...]
        return {**w, **_summed_bias(p)}

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Arrays]:
        (h,) = state
        seen = _dropped(h, drop)
        rows = 2 * h.shape[0]
        z_ru, z_n = z[:rows, ...], z[rows:, ...]
        squash = activation(self.activation)
        if self.reset_after:
            ah = w["Wh"] @ seen
            if "bh" in w:
                ah = ah + w["bh"]
            ah_ru, ah_n = ah[:rows, ...], ah[rows:, ...]
            ru = self._block.forward(xp, z_ru + ah_ru, w["columns"])
            r, u = split_rows(ru, 2)
            n = squash.forward(xp, z_n + r * ah_n)
        else:
            ah_n = seen  # what the reset gate multiplies
            ru = self._block.forward(xp, z_ru + w["Wh_ru"] @ seen, w["columns"])
            r, u = split_rows(ru, 2)
            n = squash.forward(xp, z_n + w["Wh_n"] @ (r * seen))
        return (n + u * (h - n),), (ru, n, ah_n, h)

    def step_backward(
        self, xp: Any, w: Params, residual: Arrays, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Arrays]:
        ru, n, ah_n, h = residual
        r, u = split_rows(ru, 2)
        (dh,) = dstate
        du, dn = dh * (h - n), dh * (1 - u)  # h' = n + u * (h - n)
        da_n = dn * activation(self.activation).derivative(xp, n)  # n = t(a_n)
        reset = w["Wh_n"].T @ da_n if not self.reset_after else da_n  # cotangent of r * ah_n
        da_ru = xp.concat([reset * ah_n, du], axis=0) * self._block.derivative(xp, ru, w["columns"])
        dz = xp.concat([da_ru, da_n], axis=0)
        if self.reset_after:
            dah = xp.concat([da_ru, reset * r], axis=0)  # a_n = z_n + r * ah_n
            dseen = w["Wh"].T @ dah
            return (dh * u + _dropped(dseen, drop),), dz, (dah,)
        dseen = w["Wh_ru"].T @ da_ru + reset * r  # a_n = z_n + Wh_n @ (r * seen)
        return (dh * u + _dropped(dseen, drop),), dz, ()

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        db = xp.sum(dz, axis=(0, 2))
        if self.reset_after:
            dah = _column(xp, emitted, 0)
            dbh = xp.sum(dah, axis=(0, 2))
            return {"weight_hh": summed_outer(xp, dah, h_before), "bias_ih": db, "bias_hh": dbh}
        rows = 2 * h_before.shape[1]
        r = _column(xp, residuals, 0)[:, : rows // 2, :]
        dWh_ru = summed_outer(xp, dz[:, :rows, :], h_before)
        dWh_n = summed_outer(xp, dz[:, rows:, :], r * h_before)
        return {"weight_hh": xp.concat([dWh_ru, dWh_n], axis=0), "bias_ih": db, "bias_hh": db}


Cell = ElmanCell | LSTMCell | GRUCell


def summed_outer(xp: Any, left: Array, right: Array) -> Array:
    """Sum over time and batch of ``left[t] @ right[t].T``: (T, M, B), (T, N, B) -> (M, N), as one product."""
    return xp.tensordot(left, right, axes=((0, 2), (0, 2)))


def _summed_bias(p: Params) -> Params:
    return {"b": (p["bias_ih"] + p["bias_hh"])[:, None]} if "bias_ih" in p else {}


def _dropped(h: Array, drop: Array | None) -> Array:
    return h if drop is None else h * drop


def _column(xp: Any, rows: Any, k: int) -> Array:
    """Element k of every step's tuple, as one array (T, ...)."""
    return stacked(xp, [row[k] for row in rows]) if isinstance(rows, list) else rows[k]
