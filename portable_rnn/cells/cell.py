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
is taken here). A step returns what its backward needs (the residual) as a dict of arrays, so that the same code runs
in a Python loop and under ``jax.lax.scan``. What is a sum over time (the weight gradients) is left to
`parameter_gradients`, one large product after the loop.

A cell of your own is a class with the methods of `Cell`; `portable_rnn.Recurrent` makes a layer of it.

Sources
-------
Elman (1990), Finding structure in time. Hochreiter and Schmidhuber (1997), Long short-term memory; Gers, Schmidhuber
and Cummins (2000), the forget gate; Gers and Schmidhuber (2000), peepholes; Sak, Senior and Beaufays (2014), the
projection; Greff et al. (2015), the coupled input and forget gate. Cho et al. (2014), the GRU with the reset gate
before the product; the variant after it is cuDNN's. Gal and Ghahramani (2016), the dropout mask that stays the same
for all steps of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from ..arrays import Array, Params, device_of
from ..execution import fuse, leaves_sums, stacked
from .activations import GateBlock, activation, split_rows

__all__ = ["Cell", "ElmanCell", "GRUCell", "LSTMCell", "column", "dropped", "summed_outer", "weight_shapes"]

Arrays = tuple[Array, ...]
Residual = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]


class Cell(Protocol):
    """What the time loop needs of a cell. A cell is hashable configuration: a frozen dataclass.

    Two attributes are optional. ``constants``: first words of parameters' names that start at a constant whatever the
    layer's `initializer`, such as ``{"gain": 1.0}``. ``forget_gate``: the row block of the biases which a scheme's
    `forget_bias` is for.
    """

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        """Names, without suffix, and shapes of one direction's parameters; ``weight_ih`` is always one."""

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        """Rows of each array of the state; the first is the output."""

    def prepare(self, xp: Any, p: Params) -> Params:
        """Do once what all steps share. ``"Wx"`` (G * H, I) is the input weight, ``"b"`` its bias, if any."""

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        """(state) -> (new state, residual). `drop` is a mask of h in the recurrent product, or None."""

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        """(cotangent of the new state) -> (cotangent of the old state, dz, what `parameter_gradients` needs).

        For every matrix of `w`, such as ``"Wh"``, its transpose is there too, as ``"Wh.T"``.
        """

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        """Gradients of all but ``weight_ih``, from stacks over time: dz (T, G * H, B), h_before (T, H, B).

        `residuals` and `emitted` are what the steps returned; `column` takes one of their arrays over all steps. All of
        them may be a block of the steps, in which case the gradients of the blocks are added.
        """


@dataclass(frozen=True)
class ElmanCell:
    """``h' = f(Wx @ x + Wh @ h + b)`` (Elman 1990)."""

    nonlinearity: str = "tanh"
    clip: float | None = None

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        return weight_shapes(hidden_size, input_size, hidden_size, bias)

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        return (hidden_size,)

    def prepare(self, xp: Any, p: Params) -> Params:
        return {"Wx": p["weight_ih"], "Wh": p["weight_hh"], **_summed_bias(p)}

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        (h,) = state
        a, inside = _clipped(xp, z + w["Wh"] @ dropped(h, drop), self.clip)
        h = activation(self.nonlinearity).forward(xp, a)
        return (h,), {"h": h, **_named("inside", inside)}

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        (dh,) = dstate
        da = dh * activation(self.nonlinearity).derivative(xp, residual["h"])  # h = f(a)
        da = _inside(xp, da, residual.get("inside"))
        dh = dropped(w["Wh.T"] @ da, drop)  # a = z + Wh @ h
        return (dh,), da, {}

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        db = summed(xp, dz)
        return {"weight_hh": summed_outer(xp, dz, h_before), "bias_ih": db, "bias_hh": db}


@dataclass(frozen=True)
class LSTMCell:
    """Long short-term memory, optionally with peepholes and a projected hidden state.

    ::

        i = s(z_i + Wh_i @ h + p_i * c)        c' = f * c + i * g
        f = s(z_f + Wh_f @ h + p_f * c)        o  = s(z_o + Wh_o @ h + p_o * c')
        g = t(z_g + Wh_g @ h)                  h' = Whr @ (o * t(c'))

    With `coupled`, ``f = 1 - i``, and the gates are ``i g o``.
    """

    proj_size: int = 0
    peepholes: bool = False
    coupled: bool = False
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    output_activation: str | None = None
    clip: float | None = None

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
        w = {"Wx": p["weight_ih"], "Wh": p["weight_hh"], **_summed_bias(p)}
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
            a, inside = _clipped(xp, a, self.clip)
            gates = self._block.forward(xp, a, w["columns"])
            *early, o = split_rows(gates, self.gates)
            i, f, g = self._ifg(early)
            c_new = fuse(xp, _lstm_state)(i, f, g, c)
        else:
            rows = a.shape[0] - c.shape[0]
            a_early = a[:rows, ...] + w["p_early"] * xp.concat([c] * (self.gates - 1), axis=0)
            a_early, inside = _clipped(xp, a_early, self.clip)
            early = self._early.forward(xp, a_early, w["columns"])
            i, f, g = self._ifg(split_rows(early, self.gates - 1))
            c_new = fuse(xp, _lstm_state)(i, f, g, c)
            a_o, inside_o = _clipped(xp, a[rows:, ...] + w["p_o"] * c_new, self.clip)
            o = GateBlock((self.recurrent_activation,)).forward(xp, a_o, w["columns_o"])
            gates = xp.concat([early, o], axis=0)
            residual |= {"c_new": c_new, **_named("inside_o", inside_o)}
        squashed = self._squash.forward(xp, c_new)  # not clipped: onnxruntime and OpenVINO bound the gates only
        h = o * squashed
        if self.proj_size:
            h = w["Whr"] @ h
        residual |= {"gates": gates, "squashed": squashed}
        return (h, c_new), residual | _named("inside", inside)

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
            da = _inside(xp, da, residual.get("inside"))
        else:
            rows = gates.shape[0] - c.shape[0]
            da_o = do * GateBlock((self.recurrent_activation,)).derivative(xp, o, w["columns_o"])
            da_o = _inside(xp, da_o, residual.get("inside_o"))
            dc = dc + w["p_o"] * da_o  # a_o = ... + p_o * c'
            di, df, dg, dc = fuse(xp, _lstm_state_cotangents)(dc, i, f, g, c)
            dearly = xp.concat([di - df, dg] if self.coupled else [di, df, dg], axis=0)
            dearly = dearly * self._early.derivative(xp, gates[:rows, ...], w["columns"])
            dearly = _inside(xp, dearly, residual.get("inside"))
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
    clip: float | None = None

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
            return {**w, **_summed_bias(p)}
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
        a_ru, inside = _clipped(xp, z[:rows, ...] + ah_ru, self.clip)
        ru = self._block.forward(xp, a_ru, w["columns"])
        r, u = split_rows(ru, 2)
        reset = r * ah_n if self.reset_after else w["Wh_n"] @ (r * ah_n)
        a_n, inside_n = _clipped(xp, z[rows:, ...] + reset, self.clip)
        n = activation(self.activation).forward(xp, a_n)
        residual = {"ru": ru, "n": n, "ah_n": ah_n, "h": h}
        return (fuse(xp, _gru_state)(n, u, h),), residual | _named("inside", inside) | _named("inside_n", inside_n)

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        ru, n, ah_n, h = (residual[name] for name in ("ru", "n", "ah_n", "h"))
        r, u = split_rows(ru, 2)
        (dh,) = dstate
        du, dn, dh = fuse(xp, _gru_state_cotangents)(dh, n, u, h)
        da_n = dn * activation(self.activation).derivative(xp, n)  # n = t(a_n)
        da_n = _inside(xp, da_n, residual.get("inside_n"))
        dreset = da_n if self.reset_after else w["Wh_n.T"] @ da_n  # cotangent of r * ah_n
        da_ru = xp.concat([dreset * ah_n, du], axis=0) * self._block.derivative(xp, ru, w["columns"])
        da_ru = _inside(xp, da_ru, residual.get("inside"))
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


# ---------------------------------------------------------------------- pointwise functions, forward and backward


def _lstm_state(xp: Any, i: Array, f: Array, g: Array, c: Array) -> Array:
    return f * c + i * g


def _lstm_state_cotangents(xp: Any, dc: Array, i: Array, f: Array, g: Array, c: Array) -> Arrays:
    """Of i, f, g and c in ``c' = f * c + i * g``."""
    return dc * g, dc * c, dc * i, dc * f


def _lstm_output_cotangents(xp: Any, dh: Array, dc: Array, o: Array, squashed: Array, slope: Array) -> Arrays:
    """Of o, and of c' with what it has already, in ``h = o * t(c')``; `slope` is the derivative of t."""
    return dh * squashed, dc + dh * o * slope


def _gru_state(xp: Any, n: Array, u: Array, h: Array) -> Array:
    return n + u * (h - n)


def _gru_state_cotangents(xp: Any, dh: Array, n: Array, u: Array, h: Array) -> Arrays:
    """Of u, n and h in ``h' = n + u * (h - n)``."""
    return dh * (h - n), dh * (1 - u), dh * u


# ---------------------------------------------------------------------- for writing cells


def weight_shapes(rows: int, input_size: int, out_size: int, bias: bool) -> Shapes:
    """The two weights and, if any, the two biases, named as in torch."""
    shapes: Shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, out_size)}
    return shapes | {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else shapes


def summed_outer(xp: Any, left: Array, right: Array) -> Array:
    """Sum over time and batch of ``left[t] @ right[t].T``: (T, M, B), (T, N, B) -> (M, N), as one product."""
    if leaves_sums(xp):  # and where the columns are laid side by side
        return xp.tensordot(left, right, axes=((0, 2), (0, 2)))
    return xp.matmul(columns_of(xp, left), columns_of(xp, right).T)


def summed(xp: Any, terms: Array) -> Array:
    """Sum over time and batch: (T, M, B) -> (M,)."""
    if leaves_sums(xp):
        return xp.sum(terms, axis=(0, 2))
    columns = columns_of(xp, terms)
    ones = xp.ones((columns.shape[1], 1), dtype=terms.dtype, device=device_of(terms))
    return xp.matmul(columns, ones)[:, 0]  # a product takes less time than a sum over two axes


def columns_of(xp: Any, a: Array) -> Array:
    """The columns of all steps: (T, M, B) -> (M, T * B)."""
    return xp.reshape(xp.permute_dims(a, (1, 0, 2)), (a.shape[1], -1))


def column(xp: Any, rows: Any, name: str) -> Array:
    """One array of every step's dict, stacked over time (T, ...)."""
    return stacked(xp, [row[name] for row in rows]) if isinstance(rows, list) else rows[name]


def dropped(h: Array, drop: Array | None) -> Array:
    """`h` as the recurrent product sees it."""
    return h if drop is None else h * drop


def _summed_bias(p: Params) -> Params:
    return {"b": (p["bias_ih"] + p["bias_hh"])[:, None]} if "bias_ih" in p else {}


def _clipped(xp: Any, a: Array, limit: float | None) -> tuple[Array, Array | None]:
    """`a` within [-limit, limit], and where it was inside, which is where a gradient passes."""
    if limit is None:
        return a, None
    return xp.clip(a, -limit, limit), xp.abs(a) < limit


def _inside(xp: Any, da: Array, inside: Array | None) -> Array:
    return da if inside is None else xp.where(inside, da, xp.zeros_like(da))


def _named(name: str, array: Array | None) -> Residual:
    return {} if array is None else {name: array}
