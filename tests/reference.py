"""The recurrent layers as a textbook writes them: one row, one step, one gate at a time, in plain NumPy.

Nothing here is shared with the library. Parameters are named and shaped as in torch's state dict.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "relu": lambda a: np.where(a > 0, a, 0.0),
    "identity": lambda a: a,
    "softsign": lambda a: a / (1 + np.abs(a)),
    "softplus": lambda a: np.logaddexp(0.0, a),
}


class Reference:
    """Runs a layer; `kink_margin` is then the smallest distance of any relu's argument from its kink."""

    def __init__(self, layer: Any, params: dict[str, np.ndarray]) -> None:
        self.layer = layer
        self.params = params
        self.kink_margin = np.inf

    def run(
        self, x: np.ndarray, state: Any = None, lengths: Any = None, masks: Any = None
    ) -> tuple[np.ndarray, Any]:
        """(y (B, T, D * out), final state), row by row: padding can't have any influence."""
        layer = self.layer
        batch, steps, _ = x.shape
        count = layer.num_layers * (2 if layer.bidirectional else 1)
        sizes = self.state_sizes()
        if state is None:
            state = tuple(np.zeros((count, batch, size)) for size in sizes)
        parts = state if isinstance(state, tuple) else (state,)
        lengths = [steps] * batch if lengths is None else list(lengths)
        width = sizes[0] * (2 if layer.bidirectional else 1)
        y = np.zeros((batch, steps, width))
        finals = [np.zeros((count, batch, size)) for size in sizes]
        for b in range(batch):
            row_masks = None if masks is None else _masks_of_row(masks, b)
            row, row_finals = self._row(x[b, : lengths[b]], [p[:, b] for p in parts], row_masks)
            y[b, : lengths[b]] = row
            for final, of_row in zip(finals, row_finals, strict=True):
                final[:, b] = of_row
        return y, finals[0] if len(finals) == 1 else tuple(finals)

    def state_sizes(self) -> tuple[int, ...]:
        hidden = self.layer.hidden_size
        if type(self.layer).__name__ == "LSTM":
            return (self.layer.proj_size or hidden, hidden)
        return (hidden,)

    def _row(self, x: Any, states: Any, masks: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        """One sequence (T, I) through all layers and directions."""
        between, recurrent = masks if masks is not None else (None, None)
        directions = ("", "_reverse") if self.layer.bidirectional else ("",)
        finals: list[list[np.ndarray]] = [[] for _ in states]
        out = self.state_sizes()[0]
        for depth in range(self.layer.num_layers):
            ys = np.zeros((len(x), len(directions) * out))
            for d, suffix in enumerate(directions):
                k = depth * len(directions) + d
                p = {
                    name.removesuffix(f"_l{depth}{suffix}"): value
                    for name, value in self.params.items()
                    if name.endswith(f"_l{depth}{suffix}")
                }
                drop = np.ones(out) if recurrent is None else recurrent[k]
                state = tuple(part[k] for part in states)
                times = range(len(x)) if d == 0 else reversed(range(len(x)))
                for t in times:
                    state = self._step(p, x[t], state, drop)
                    ys[t, d * out : (d + 1) * out] = state[0]
                for final, part in zip(finals, state, strict=True):
                    final.append(part)
            x = ys
            if between is not None and depth < self.layer.num_layers - 1:
                x = x * between[depth][: len(x)]
        return x, [np.stack(final) for final in finals]

    def _step(self, p: Any, x: Any, state: Any, drop: Any) -> Any:
        return getattr(self, f"_{type(self.layer).__name__.lower()}_step")(p, x, state, drop)

    def _rnn_step(self, p: Any, x: Any, state: Any, drop: Any) -> Any:
        (h,) = state
        a = p["weight_ih"] @ x + p["weight_hh"] @ (h * drop)
        if self.layer.bias:
            a = a + p["bias_ih"] + p["bias_hh"]
        return (self._activate(self.layer.nonlinearity, a),)

    def _lstm_step(self, p: Any, x: Any, state: Any, drop: Any) -> Any:
        h, c = state
        n = self.layer.hidden_size
        s, t = self.layer.recurrent_activation, self.layer.activation
        a = p["weight_ih"] @ x + p["weight_hh"] @ (h * drop)
        if self.layer.bias:
            a = a + p["bias_ih"] + p["bias_hh"]
        a_i, a_f, a_g, a_o = a[:n], a[n : 2 * n], a[2 * n : 3 * n], a[3 * n :]
        peephole = p["weight_peephole"] if self.layer.peepholes else np.zeros(3 * n)
        i = self._activate(s, a_i + peephole[:n] * c)
        f = self._activate(s, a_f + peephole[n : 2 * n] * c)
        c = f * c + i * self._activate(t, a_g)
        o = self._activate(s, a_o + peephole[2 * n :] * c)
        h = o * self._activate(t, c)
        if self.layer.proj_size:
            h = p["weight_hr"] @ h
        return h, c

    def _gru_step(self, p: Any, x: Any, state: Any, drop: Any) -> Any:
        (h,) = state
        n = self.layer.hidden_size
        s, t = self.layer.recurrent_activation, self.layer.activation
        b_ih, b_hh = (p["bias_ih"], p["bias_hh"]) if self.layer.bias else (np.zeros(3 * n),) * 2
        W, U = p["weight_ih"], p["weight_hh"]
        seen = h * drop
        r = self._activate(s, W[:n] @ x + b_ih[:n] + U[:n] @ seen + b_hh[:n])
        u = self._activate(
            s, W[n : 2 * n] @ x + b_ih[n : 2 * n] + U[n : 2 * n] @ seen + b_hh[n : 2 * n]
        )
        a_n = W[2 * n :] @ x + b_ih[2 * n :]
        if self.layer.reset_after:
            a_n = a_n + r * (U[2 * n :] @ seen + b_hh[2 * n :])
        else:
            a_n = a_n + U[2 * n :] @ (r * seen) + b_hh[2 * n :]
        return ((1 - u) * self._activate(t, a_n) + u * h,)

    def _activate(self, name: str, a: np.ndarray) -> np.ndarray:
        if name == "relu":
            self.kink_margin = min(self.kink_margin, float(np.min(np.abs(a))))
        return ACTIVATIONS[name](a)


def _masks_of_row(masks: Any, b: int) -> Any:
    between, recurrent = masks
    return (
        None if between is None else [mask[:, :, b] for mask in between],
        None if recurrent is None else [mask[:, b] for mask in recurrent],
    )
