"""The LSTM and the GRU with layer normalisation.

``LN(a) = (a - mean(a)) / sqrt(var(a) + epsilon)`` over the rows of one column: each sequence and step by itself, with
the variance divided by the number of rows, as in `torch.nn.LayerNorm`. Gains and biases stand outside of it. Notation
as in `cells`; a hat, ``z_hat = LN(z)``, is what has been normalised.

Source: Ba, Kiros and Hinton (2016), Layer normalization, arXiv:1607.06450, equations 20 to 22 (LSTM) and 23 to 26 (GRU)
of the supplement. Their beta_1 and beta_2 are ``bias_hh`` and ``bias_ih``, in which their b is contained; their
equations have no epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..arrays import Array, Configuration, Params, Positive
from .activations import GateBlock, split_rows
from .cell import Arrays, Residual, Shapes, column, dropped, summed_outer, weight_shapes

__all__ = ["LayerNormGRUCell", "LayerNormLSTMCell", "normalize", "normalize_backward"]


def normalize(xp: Any, a: Array, epsilon: float) -> tuple[Array, Array]:
    """``a_hat = LN(a)`` of a (N, B), and the scale ``1 / sqrt(var(a) + epsilon)`` (1, B).

    Examples
    --------
    >>> import numpy as np
    >>> normalize(np, np.array([[1.0], [3.0]]), 0.0)[0].tolist()
    [[-1.0], [1.0]]
    """
    centred = a - xp.mean(a, axis=0, keepdims=True)
    scale = 1 / xp.sqrt(xp.mean(centred * centred, axis=0, keepdims=True) + epsilon)
    return centred * scale, scale


def normalize_backward(xp: Any, da_hat: Array, a_hat: Array, scale: Array) -> Array:
    """da: a change of `a` along 1 moves nothing, one along `a_hat` hardly anything, so both are taken out of it."""
    along_one = xp.mean(da_hat, axis=0, keepdims=True)
    along_a = xp.mean(da_hat * a_hat, axis=0, keepdims=True)
    return scale * (da_hat - along_one - a_hat * along_a)


def _normal_parameters(p: Params) -> Params:
    """What both cells share; the bias is not "b", which the time loop would add before the normalisation."""
    w = {"Wx": p["weight_ih"], "Wh": p["weight_hh"], "gain_ih": p["gain_ih"][:, None], "gain_hh": p["gain_hh"][:, None]}
    return w | {name: p[name][:, None] for name in ("bias_ih", "bias_hh") if name in p}


def _over_steps(xp: Any, terms: Array) -> Array:
    return xp.sum(terms, axis=(0, 2))


@dataclass(frozen=True)
class LayerNormLSTMCell(Configuration):
    """Long short-term memory with layer normalisation.

    ::

        a  = gain_ih * LN(Wx @ x) + bias_ih + gain_hh * LN(Wh @ h) + bias_hh
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)         g  = tanh(a_g)
        c' = f * c + i * g                                         h' = o * tanh(gain_c * LN(c') + bias_c)

    Both products are normalised over all 4 * H rows at once.
    """

    epsilon: Positive = 1e-5

    constants: ClassVar[dict[str, float]] = {"gain": 1.0, "bias": 0.0}  # as in torch.nn.LayerNorm
    forget_gate: ClassVar[int] = 1
    _block: ClassVar[GateBlock] = GateBlock(("sigmoid", "sigmoid", "tanh", "sigmoid"))

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        rows, hidden = (4 * hidden_size,), (hidden_size,)
        shapes = weight_shapes(4 * hidden_size, input_size, hidden_size, bias)
        shapes |= {"gain_ih": rows, "gain_hh": rows, "gain_c": hidden}
        return shapes | {"bias_c": hidden} if bias else shapes

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        return (hidden_size, hidden_size)

    def prepare(self, xp: Any, p: Params) -> Params:
        w = _normal_parameters(p) | {"gain_c": p["gain_c"][:, None]}
        w["columns"] = self._block.columns(xp, w["Wx"], w["Wh"].shape[1])
        return w | {"bias_c": p["bias_c"][:, None]} if "bias_c" in p else w

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        h, c = state
        z_hat, z_scale = normalize(xp, z, self.epsilon)
        m_hat, m_scale = normalize(xp, w["Wh"] @ dropped(h, drop), self.epsilon)
        a = w["gain_ih"] * z_hat + w["gain_hh"] * m_hat
        if "bias_ih" in w:
            a = a + (w["bias_ih"] + w["bias_hh"])
        gates = self._block.forward(xp, a, w["columns"])
        i, f, g, o = split_rows(gates, 4)
        c_new = f * c + i * g
        c_hat, c_scale = normalize(xp, c_new, self.epsilon)
        squashed = xp.tanh(w["gain_c"] * c_hat + w["bias_c"] if "bias_c" in w else w["gain_c"] * c_hat)
        hats = {"z_hat": z_hat, "z_scale": z_scale, "m_hat": m_hat, "m_scale": m_scale}
        residual = {"c": c, "gates": gates, "c_hat": c_hat, "c_scale": c_scale, "squashed": squashed}
        return (o * squashed, c_new), residual | hats

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        c, gates, squashed = residual["c"], residual["gates"], residual["squashed"]
        i, f, g, o = split_rows(gates, 4)
        dh, dc = dstate
        do = dh * squashed  # h' = o * squashed
        da_c = dh * o * (1 - squashed * squashed)  # squashed = tanh(a_c), a_c = gain_c * c_hat + bias_c
        dc = dc + normalize_backward(xp, w["gain_c"] * da_c, residual["c_hat"], residual["c_scale"])
        dgates = xp.concat([dc * g, dc * c, dc * i, do], axis=0)  # c' = f * c + i * g
        da = dgates * self._block.derivative(xp, gates, w["columns"])
        dz = normalize_backward(xp, w["gain_ih"] * da, residual["z_hat"], residual["z_scale"])
        dm = normalize_backward(xp, w["gain_hh"] * da, residual["m_hat"], residual["m_scale"])
        dh = dropped(w["Wh.T"] @ dm, drop)  # m = Wh @ h
        return (dh, dc * f), dz, {"da": da, "dm": dm, "da_c": da_c}

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        da, da_c = column(xp, emitted, "da"), column(xp, emitted, "da_c")
        db = _over_steps(xp, da)
        return {
            "weight_hh": summed_outer(xp, column(xp, emitted, "dm"), h_before),
            "bias_ih": db,
            "bias_hh": db,
            "gain_ih": _over_steps(xp, da * column(xp, residuals, "z_hat")),
            "gain_hh": _over_steps(xp, da * column(xp, residuals, "m_hat")),
            "gain_c": _over_steps(xp, da_c * column(xp, residuals, "c_hat")),
            "bias_c": _over_steps(xp, da_c),
        }

    def gate_values(self, xp: Any, residuals: Any) -> Residual:
        """The gates over all steps, each (T, H, B)."""
        gates = column(xp, residuals, "gates")
        hidden = gates.shape[1] // 4
        return {name: gates[:, k * hidden : (k + 1) * hidden, :] for k, name in ((0, "i"), (1, "f"), (3, "o"))}


@dataclass(frozen=True)
class LayerNormGRUCell(Configuration):
    """Gated recurrent unit with layer normalisation.

    ::

        m = gain_hh * LN(Wh @ h) + bias_hh          z = gain_ih * LN(Wx @ x) + bias_ih
        r = sigmoid(z_r + m_r)                      n  = tanh(z_n + r * m_n)
        u = sigmoid(z_u + m_u)                      h' = n + u * (h - n)

    Each product is normalised in two parts: the 2 * H rows of r and u, and the H rows of n. The published u is one
    minus this one, which is torch's.
    """

    epsilon: Positive = 1e-5

    constants: ClassVar[dict[str, float]] = {"gain": 1.0, "bias": 0.0}
    _block: ClassVar[GateBlock] = GateBlock(("sigmoid", "sigmoid"))

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        rows = (3 * hidden_size,)
        return weight_shapes(3 * hidden_size, input_size, hidden_size, bias) | {"gain_ih": rows, "gain_hh": rows}

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        return (hidden_size,)

    def prepare(self, xp: Any, p: Params) -> Params:
        w = _normal_parameters(p)
        w["columns"] = self._block.columns(xp, w["Wx"], w["Wh"].shape[1])
        return w

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        (h,) = state
        rows = 2 * h.shape[0]
        z_hat, z_scale = self._normalize(xp, z, rows)
        m_hat, m_scale = self._normalize(xp, w["Wh"] @ dropped(h, drop), rows)
        z, m = w["gain_ih"] * z_hat, w["gain_hh"] * m_hat
        if "bias_ih" in w:
            z, m = z + w["bias_ih"], m + w["bias_hh"]
        ru = self._block.forward(xp, z[:rows, ...] + m[:rows, ...], w["columns"])
        r, u = split_rows(ru, 2)
        m_n = m[rows:, ...]
        n = xp.tanh(z[rows:, ...] + r * m_n)
        hats = {"z_hat": z_hat, "z_scale": z_scale[0], "z_scale_n": z_scale[1]}
        hats |= {"m_hat": m_hat, "m_scale": m_scale[0], "m_scale_n": m_scale[1]}
        return (n + u * (h - n),), {"ru": ru, "n": n, "m_n": m_n, "h": h} | hats

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        ru, n, m_n, h = (residual[name] for name in ("ru", "n", "m_n", "h"))
        r, u = split_rows(ru, 2)
        (dh,) = dstate
        du = dh * (h - n)  # h' = n + u * (h - n)
        da_n = dh * (1 - u) * (1 - n * n)  # n = tanh(a_n), a_n = z_n + r * m_n
        da_ru = xp.concat([da_n * m_n, du], axis=0) * self._block.derivative(xp, ru, w["columns"])
        da = xp.concat([da_ru, da_n], axis=0)
        dm = xp.concat([da_ru, da_n * r], axis=0)
        emitted = {"da": da, "dm": dm}
        dz = self._backward(xp, w["gain_ih"] * da, residual, "z")
        dproduct = self._backward(xp, w["gain_hh"] * dm, residual, "m")
        dseen = dropped(w["Wh.T"] @ dproduct, drop)
        return (dh * u + dseen,), dz, emitted | {"dproduct": dproduct}

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        da, dm = column(xp, emitted, "da"), column(xp, emitted, "dm")
        return {
            "weight_hh": summed_outer(xp, column(xp, emitted, "dproduct"), h_before),
            "bias_ih": _over_steps(xp, da),
            "bias_hh": _over_steps(xp, dm),
            "gain_ih": _over_steps(xp, da * column(xp, residuals, "z_hat")),
            "gain_hh": _over_steps(xp, dm * column(xp, residuals, "m_hat")),
        }

    def gate_values(self, xp: Any, residuals: Any) -> Residual:
        """The gates over all steps, each (T, H, B); z is torch's name of u."""
        ru = column(xp, residuals, "ru")
        hidden = ru.shape[1] // 2
        return {"r": ru[:, :hidden, :], "z": ru[:, hidden:, :]}

    def _normalize(self, xp: Any, a: Array, rows: int) -> tuple[Array, Arrays]:
        """The rows of r and u, and those of n, each by themselves; the scales of both, (1, B).

        The scales stay two arrays: joined as two rows they would cut a compiled step into row blocks of one row.
        """
        parts = [normalize(xp, part, self.epsilon) for part in (a[:rows, ...], a[rows:, ...])]
        return xp.concat([hat for hat, _ in parts], axis=0), tuple(scale for _, scale in parts)

    def _backward(self, xp: Any, da_hat: Array, residual: Residual, name: str) -> Array:
        a_hat, rows = residual[f"{name}_hat"], da_hat.shape[0] // 3 * 2
        gates = normalize_backward(xp, da_hat[:rows, ...], a_hat[:rows, ...], residual[f"{name}_scale"])
        n = normalize_backward(xp, da_hat[rows:, ...], a_hat[rows:, ...], residual[f"{name}_scale_n"])
        return xp.concat([gates, n], axis=0)
