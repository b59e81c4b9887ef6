"""The layers as a textbook writes them: one row, one step, one gate at a time, in plain NumPy.

Nothing here is shared with the layers' own arithmetic, so that a fault of theirs is none of this. Parameters are named
and shaped as in torch's state dict.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import map_leaves

__all__ = ["Textbook", "network_outputs"]

Host = np.ndarray[Any, Any]


def _sigmoid(a: Host) -> Host:
    found: Host = 1 / (1 + np.exp(-a))
    return found


# name: (function of a and of the settings, the settings that are left out, where the derivative jumps)
_ACTIVATIONS: dict[str, tuple[Callable[..., Host], tuple[float, ...], Callable[..., tuple[float, ...]]]] = {
    "tanh": (np.tanh, (), lambda: ()),
    "sigmoid": (_sigmoid, (), lambda: ()),
    "relu": (lambda a: np.where(a > 0, a, 0.0), (), lambda: (0.0,)),
    "identity": (lambda a: a, (), lambda: ()),
    "softsign": (lambda a: a / (1 + np.abs(a)), (), lambda: ()),
    "softplus": (lambda a: np.logaddexp(0.0, a), (), lambda: ()),
    "exponential": (np.exp, (), lambda: ()),
    "elu": (
        lambda a, s: np.where(a > 0, a, s * np.expm1(np.minimum(a, 0))),
        (1.0,),
        lambda s: () if s == 1 else (0.0,),
    ),
    "leaky_relu": (lambda a, s: np.where(a > 0, a, s * a), (0.01,), lambda s: (0.0,)),
    "thresholded_relu": (lambda a, s: np.where(a > s, a, 0.0), (1.0,), lambda s: (s,)),
    "scaled_tanh": (lambda a, s, k: s * np.tanh(k * a), (1.0, 1.0), lambda s, k: ()),
    "hard_sigmoid": (
        lambda a, k, m: np.minimum(1, np.maximum(0, k * a + m)),
        (0.2, 0.5),
        lambda k, m: (-m / k, (1 - m) / k),
    ),
    "affine": (lambda a, k, m: k * a + m, (1.0, 0.0), lambda k, m: ()),
}


def _activation(spec: str) -> tuple[Callable[[Host], Host], tuple[float, ...]]:
    """A function, and where its derivative jumps."""
    name, *given = re.findall(r"[\w.+-]+", spec)
    function, defaults, kinks = _ACTIVATIONS[name]
    settings = (*map(float, given), *defaults[len(given) :])
    return lambda a: function(a, *settings), kinks(*settings)


class Textbook:
    """Runs a recurrent layer of the library.

    After `run`, `kink_margin` is the smallest distance of any number from where a derivative jumps. A normalisation
    bends sharply where what it divides by is small, so that counts too.

    Parameters
    ----------
    layer : RNN, LSTM, GRU, LayerNormLSTM, LayerNormGRU, MinGRU or MinLSTM
    params : dict of str to ndarray
        In float64.
    """

    def __init__(self, layer: Any, params: dict[str, Host]) -> None:
        self.layer = layer
        self.params = params
        self.kink_margin = np.inf

    def run(
        self,
        x: Host,
        state: Any = None,
        lengths: Any = None,
        resets: Host | None = None,
        masks: Any = None,
    ) -> tuple[Host, Any]:
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
            row_masks = map_leaves(lambda mask, b=b: mask[..., b], masks) or (None, None, None)
            row, row_finals = self._row(x[b, :end], [p[:, b] for p in parts], row_resets, row_masks)
            y[b, :end] = row
            for final, of_row in zip(finals, row_finals, strict=True):
                final[:, b] = of_row
        return y, finals[0] if len(finals) == 1 else tuple(finals)

    def state_sizes(self) -> tuple[int, ...]:
        hidden = self.layer.hidden_size
        kind = type(self.layer).__name__
        if kind == "LSTM":
            return (self.layer.proj_size or hidden, hidden)
        return (hidden, hidden) if kind == "LayerNormLSTM" else (hidden,)

    def _row(self, x: Host, states: Any, resets: list[int], masks: Any) -> tuple[Host, list[Host]]:
        """One sequence (T, I) through all layers and directions."""
        between, recurrent, zoneout = masks
        layer = self.layer
        suffixes = ("", "_reverse") if layer.bidirectional else ("",)
        finals: list[list[Host]] = [[] for _ in states]
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

    def _activate(self, name: str, a: Host, clipped: bool = True) -> Host:
        function, kinks = _activation(name)
        clip = self.layer.clip if clipped else None
        if clip is not None:
            kinks = (*kinks, -clip, clip)
        for kink in kinks:
            self.kink_margin = min(self.kink_margin, float(np.min(np.abs(a - kink))))
        if clip is not None:
            a = np.minimum(clip, np.maximum(-clip, a))
        return function(a)

    def _layer_norm(self, a: Host) -> Any:
        deviation = np.sqrt(a.var() + self.layer.epsilon)
        if np.any(a):  # not the product with a state that is zero
            self.kink_margin = min(self.kink_margin, float(deviation) / 50)
        return (a - a.mean()) / deviation

    def _layernormlstm_step(self, p: Any, x: Any, state: Any, drop: Any) -> Any:
        h, c = state
        a = p["gain_hh"] * self._layer_norm(p["weight_hh"] @ (h * drop))
        a = a + p["gain_ih"] * self._layer_norm(p["weight_ih"] @ x)
        if self.layer.bias:
            a = a + p["bias_hh"] + p["bias_ih"]
        i, f, g, o = np.split(a, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        inside = p["gain_c"] * self._layer_norm(c)
        return _sigmoid(o) * np.tanh(inside + p["bias_c"] if self.layer.bias else inside), c

    def _layernormgru_step(self, p: Any, x: Any, state: Any, drop: Any) -> Any:
        (h,) = state
        n = self.layer.hidden_size
        parts = []
        for end, value in (("hh", h * drop), ("ih", x)):
            product = p[f"weight_{end}"] @ value
            halves = [self._layer_norm(product[: 2 * n]), self._layer_norm(product[2 * n :])]
            part = p[f"gain_{end}"] * np.concatenate(halves)
            parts.append(part + p[f"bias_{end}"] if self.layer.bias else part)
        m, z = parts
        r, u = _sigmoid(m[:n] + z[:n]), _sigmoid(m[n : 2 * n] + z[n : 2 * n])
        return (u * h + (1 - u) * np.tanh(z[2 * n :] + r * m[2 * n :]),)

    def _mingru_step(self, p: Any, x: Any, state: Any, drop: Any) -> Any:
        (h,) = state
        u, n = np.split(self._input_part(p, x), 2)
        u = _sigmoid(u)
        return ((1 - u) * h + u * self._candidate(n),)

    def _minlstm_step(self, p: Any, x: Any, state: Any, drop: Any) -> Any:
        (h,) = state
        f, i, n = np.split(self._input_part(p, x), 3)
        f, i = _sigmoid(f), _sigmoid(i)
        return (f / (f + i) * h + i / (f + i) * self._candidate(n),)

    def _input_part(self, p: Any, x: Host) -> Any:
        a = p["weight_ih"] @ x
        return a + p["bias_ih"] if self.layer.bias else a

    def _candidate(self, a: Host) -> Host:
        if not self.layer.positive:
            return a
        self.kink_margin = min(self.kink_margin, float(np.min(np.abs(a))))
        return np.where(a >= 0, a + 0.5, _sigmoid(a))


def network_outputs(
    network: Any, params: dict[str, Host], x: Host, state: Any = None, lengths: Any = None
) -> tuple[Host, Any] | None:
    """(y, final state) of a whole network; None where a layer of it stands in no textbook."""
    kind = type(network).__name__
    if kind == "Sequential":
        return _sequential(network, params, x, state, lengths)
    if hasattr(Textbook, f"_{kind.lower()}_step"):
        return Textbook(network, params).run(x, state, lengths)
    steps = x.shape[1] if lengths is not None else 0
    ends = None if lengths is None else np.asarray(lengths)
    rows: Any = _LAYERS.get(kind)
    if rows is None:
        return None
    if kind in _POOLINGS:
        whole = [x.shape[1]] * len(x) if ends is None else ends
        zero = np.zeros(x.shape[-1])
        return np.stack(
            [rows(network, params, row[:end]) if end else zero for row, end in zip(x, whole, strict=True)]
        ), None
    y = rows(network, params, x)
    if ends is not None:
        y = np.where((np.arange(steps) < ends[:, None])[..., None], y, 0.0)
    return y, None


def _sequential(network: Any, params: dict[str, Host], x: Host, state: Any, lengths: Any) -> tuple[Host, Any] | None:
    states = []
    for k, layer in enumerate(network.layers):
        own = {name.removeprefix(f"{k}."): p for name, p in params.items() if name.startswith(f"{k}.")}
        found = network_outputs(layer, own, x, None if state is None else state[k], lengths)
        if found is None:
            return None
        x, final = found
        states.append(final)
        lengths = lengths if layer.keeps_time else None
    return x, tuple(states)


def _softmax(layer: Any, params: Any, x: Host) -> Any:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    return np.log(p) if layer.log else p


_LAYERS: dict[str, Callable[..., Host]] = {
    "Linear": lambda layer, p, x: x @ p["weight"].T + (p["bias"] if layer.bias else 0.0),
    "Embedding": lambda layer, p, x: p["weight"][x],
    "Dropout": lambda layer, p, x: x,
    "Activation": lambda layer, p, x: _activation(layer.function)[0](x),
    "Softmax": _softmax,
    "Last": lambda layer, p, row: row[-1],
    "Mean": lambda layer, p, row: row.mean(axis=0),
    "Max": lambda layer, p, row: row.max(axis=0),
}
_POOLINGS = ("Last", "Mean", "Max")
