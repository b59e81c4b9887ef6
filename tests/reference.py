"""The recurrent layers as a textbook writes them: one row, one step, one gate at a time, in plain NumPy.

Nothing here is shared with the library. Parameters are named and shaped as in torch's state dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from trees import mapped

import portable_rnn as prnn

# name: (function, where its derivative jumps)
ACTIVATIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], tuple[float, ...]]] = {
    "tanh": (np.tanh, ()),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), ()),
    "relu": (lambda a: np.where(a > 0, a, 0.0), (0.0,)),
    "identity": (lambda a: a, ()),
    "softsign": (lambda a: a / (1 + np.abs(a)), ()),
    "softplus": (lambda a: np.logaddexp(0.0, a), ()),
    "exponential": (np.exp, ()),
    "elu": (lambda a: np.where(a > 0, a, np.expm1(np.minimum(a, 0))), ()),
    "elu(0.5)": (lambda a: np.where(a > 0, a, 0.5 * np.expm1(np.minimum(a, 0))), (0.0,)),
    "leaky_relu(0.2)": (lambda a: np.where(a > 0, a, 0.2 * a), (0.0,)),
    "thresholded_relu(0.3)": (lambda a: np.where(a > 0.3, a, 0.0), (0.3,)),
    "scaled_tanh(1.5, 0.7)": (lambda a: 1.5 * np.tanh(0.7 * a), ()),
    "hard_sigmoid": (lambda a: np.minimum(1, np.maximum(0, 0.2 * a + 0.5)), (-2.5, 2.5)),
    "affine(0.8, 0.1)": (lambda a: 0.8 * a + 0.1, ()),
}


class Reference:
    """Runs a layer; `kink_margin` is then the smallest distance of any number from where a derivative jumps."""

    def __init__(self, layer: Any, params: dict[str, np.ndarray]) -> None:
        self.layer = layer
        self.params = params
        self.kink_margin = np.inf

    def run(
        self,
        x: np.ndarray,
        state: Any = None,
        lengths: Any = None,
        resets: np.ndarray | None = None,
        masks: Any = None,
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
        for b, end in enumerate(lengths):
            row_resets = [] if resets is None else [t for t in range(end) if resets[b, t]]
            row_masks = mapped(lambda mask, b=b: mask[..., b], masks) or (None, None, None)
            row, row_finals = self._row(x[b, :end], [p[:, b] for p in parts], row_resets, row_masks)
            y[b, :end] = row
            for final, of_row in zip(finals, row_finals, strict=True):
                final[:, b] = of_row
        return y, finals[0] if len(finals) == 1 else tuple(finals)

    def state_sizes(self) -> tuple[int, ...]:
        hidden = self.layer.hidden_size
        if isinstance(self.layer, prnn.LSTM):
            return (self.layer.proj_size or hidden, hidden)
        return (hidden,)

    def _row(self, x: np.ndarray, states: Any, resets: list[int], masks: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        """One sequence (T, I) through all layers and directions."""
        between, recurrent, zoneout = masks
        layer = self.layer
        suffixes = ("", "_reverse") if layer.bidirectional else ("",)
        finals: list[list[np.ndarray]] = [[] for _ in states]
        out = self.state_sizes()[0]
        for depth in range(layer.num_layers):
            ys = np.zeros((len(x), len(suffixes) * out))
            for d, suffix in enumerate(suffixes):
                k = depth * len(suffixes) + d
                end = f"_l{depth}{suffix}"
                p = {n.removesuffix(end): v for n, v in self.params.items() if n.endswith(end)}
                drop = np.ones(out) if recurrent is None else recurrent[k]
                state = tuple(part[k] for part in states)
                backward = layer.reverse or d == 1
                # a sequence that starts at t is, from the other side, the one that ends there
                fresh = [t - 1 for t in resets] if backward else resets
                for t in reversed(range(len(x))) if backward else range(len(x)):
                    if t in fresh:
                        state = tuple(np.zeros_like(part) for part in state)
                    kept = [layer.zoneout] * len(state)
                    if zoneout is not None:
                        kept = [mask[t] for mask in zoneout[k]]
                    new = self._step(p, x[t], state, drop)
                    state = tuple(q * old + (1 - q) * n for q, old, n in zip(kept, state, new, strict=True))
                    ys[t, d * out : (d + 1) * out] = state[0]
                for final, part in zip(finals, state, strict=True):
                    final.append(part)
            x = ys
            if between is not None and depth < layer.num_layers - 1:
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
        layer = self.layer
        h, c = state
        n = layer.hidden_size
        s, t = layer.recurrent_activation, layer.activation
        a = p["weight_ih"] @ x + p["weight_hh"] @ (h * drop)
        if layer.bias:
            a = a + p["bias_ih"] + p["bias_hh"]
        names = "igo" if layer.coupled else "ifgo"
        a = {name: a[k * n : (k + 1) * n] for k, name in enumerate(names)}
        peep = dict.fromkeys("ifo", np.zeros(n))
        if layer.peepholes:
            gates = "io" if layer.coupled else "ifo"
            peep |= {g: p["weight_peephole"][k * n : (k + 1) * n] for k, g in enumerate(gates)}
        i = self._activate(s, a["i"] + peep["i"] * c)
        f = 1 - i if layer.coupled else self._activate(s, a["f"] + peep["f"] * c)
        c = f * c + i * self._activate(t, a["g"])
        o = self._activate(s, a["o"] + peep["o"] * c)
        h = o * self._activate(layer.output_activation or t, c, clipped=False)
        if layer.proj_size:
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
        u = self._activate(s, W[n : 2 * n] @ x + b_ih[n : 2 * n] + U[n : 2 * n] @ seen + b_hh[n : 2 * n])
        a_n = W[2 * n :] @ x + b_ih[2 * n :]
        if self.layer.reset_after:
            a_n = a_n + r * (U[2 * n :] @ seen + b_hh[2 * n :])
        else:
            a_n = a_n + U[2 * n :] @ (r * seen) + b_hh[2 * n :]
        return ((1 - u) * self._activate(t, a_n) + u * h,)

    def _activate(self, name: str, a: np.ndarray, clipped: bool = True) -> np.ndarray:
        function, kinks = ACTIVATIONS[name]
        clip = self.layer.clip if clipped else None
        if clip is not None:
            kinks = (*kinks, -clip, clip)
        for kink in kinks:
            self.kink_margin = min(self.kink_margin, float(np.min(np.abs(a - kink))))
        if clip is not None:
            a = np.minimum(clip, np.maximum(-clip, a))
        return function(a)
