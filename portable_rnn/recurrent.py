"""Recurrent layers: one direction over time, both directions, stacks, lengths and dropout, for every cell.

The time loop stands here once, forward and backward. What a step computes is in `cells.py`; how the loop runs is in
`execution.py`.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from .activations import activation
from .cells import Cell, ElmanCell, GRUCell, LSTMCell, summed_outer
from .errors import InputError
from .execution import jit, scan, stacked
from .layer import Layer, check_rank_and_features, inverse_sqrt, keep_mask, uniform, valid_steps
from .namespace import device_of, namespace_of
from .typing import Array, Params, State

__all__ = ["GRU", "LSTM", "RNN"]


# ---------------------------------------------------------------------- one direction over time


def run_direction(
    xp: Any,
    cell: Cell,
    reverse: bool,
    p: Params,
    x: Array,
    state: tuple[Array, ...],
    valid: Array | None,
    drop: Array | None,
) -> tuple[Array, tuple[Array, ...], Any]:
    """Run a cell over x (T, I, B).

    Where `valid` (T, 1, B) is false the state is held: going forward, the final state is the one at the row's own end;
    going backward, the row starts at its own end, because until there it holds its initial state.

    Returns
    -------
    hs (T, H, B) with held states, final state, residuals
    """
    w = cell.prepare(xp, p)
    z = xp.matmul(w["Wx"], x)
    if "b" in w:
        z = z + w["b"]

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        z_t, valid_t = inputs
        new, residual = cell.step(xp, w, z_t, carry, drop)
        if valid_t is not None:
            new = tuple(xp.where(valid_t, n, old) for n, old in zip(new, carry, strict=True))
        return new, (new[0], residual)

    final, (hs, residuals) = scan(xp, step, state, (z, valid), reverse=reverse)
    hs = stacked(xp, hs)
    return hs, final, (x, hs, state[0], valid, drop, residuals)


def run_direction_backward(
    xp: Any,
    cell: Cell,
    reverse: bool,
    p: Params,
    saved: Any,
    dhs: Array,
    dstate: tuple[Array, ...],
) -> tuple[Params, Array, tuple[Array, ...]]:
    """Reverse `run_direction`: (parameter gradients, dx (T, I, B), cotangent of the initial state)."""
    x, hs, h_initial, valid, drop, residuals = saved
    w = cell.prepare(xp, p)

    def step(dcarry: Any, inputs: Any) -> tuple[Any, Any]:
        dh_t, residual, valid_t = inputs
        dnew = (dcarry[0] + dh_t, *dcarry[1:])
        if valid_t is None:
            dold, dz, emitted = cell.step_backward(xp, w, residual, dnew, drop)
            return dold, (dz, emitted)
        dnew = tuple(xp.where(valid_t, d, xp.zeros_like(d)) for d in dnew)
        held = tuple(xp.where(valid_t, xp.zeros_like(d), d) for d in dcarry)
        dold, dz, emitted = cell.step_backward(xp, w, residual, dnew, drop)
        return tuple(d + kept for d, kept in zip(dold, held, strict=True)), (dz, emitted)

    dinitial, (dz, emitted) = scan(xp, step, dstate, (dhs, residuals, valid), reverse=not reverse)
    dz = stacked(xp, dz)
    h_initial = h_initial[None, ...]
    h_before = xp.concat([hs[1:, ...], h_initial] if reverse else [h_initial, hs[:-1, ...]], axis=0)
    if drop is not None:
        h_before = h_before * drop
    grads = cell.parameter_gradients(xp, dz, h_before, residuals, emitted)
    grads["weight_ih"] = summed_outer(xp, dz, x)
    return {name: grads[name] for name in p}, xp.matmul(w["Wx"].T, dz), dinitial


# ---------------------------------------------------------------------- stacks


def _suffixes(layer: Any) -> list[list[str]]:
    """Torch's parameter suffixes, by layer and direction."""
    ends = ("", "_reverse") if layer.bidirectional else ("",)
    return [[f"_l{k}{end}" for end in ends] for k in range(layer.num_layers)]


def _one_direction(params: Params, suffix: str) -> Params:
    """The parameters that end in `suffix`, without it."""
    return {name.removesuffix(suffix): p for name, p in params.items() if name.endswith(suffix)}


def _stack_parameter_shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    cell, hidden = layer.cell, layer.hidden_size
    out = getattr(layer, "proj_size", 0) or hidden
    rows = cell.gates * hidden
    shapes: dict[str, tuple[int, ...]] = {}
    features = layer.input_size
    for suffixes in _suffixes(layer):
        for s in suffixes:
            shapes |= {f"weight_ih{s}": (rows, features), f"weight_hh{s}": (rows, out)}
            if layer.bias:
                shapes |= {f"bias_ih{s}": (rows,), f"bias_hh{s}": (rows,)}
            if getattr(layer, "proj_size", 0):
                shapes[f"weight_hr{s}"] = (out, hidden)
            if getattr(layer, "peepholes", False):
                shapes[f"weight_peephole{s}"] = (3 * hidden,)
        features = out * len(suffixes)
    return shapes


def _state_sizes(layer: Any) -> tuple[int, ...]:
    """Rows of each array of the state."""
    if isinstance(layer.cell, LSTMCell):
        return (layer.proj_size or layer.hidden_size, layer.hidden_size)
    return (layer.hidden_size,)


def _stack_forward(
    params: Params, x: Array, state: State, lengths: Array | None, masks: Any, *, layer: Any
) -> tuple[Array, State, Any]:
    xp = namespace_of(x)
    batch, steps, _ = x.shape
    y = xp.permute_dims(x, (1, 2, 0))
    valid = None
    if lengths is not None:
        valid = xp.permute_dims(valid_steps(xp, lengths, steps, x), (1, 0))[:, None, :]
        y = xp.where(valid, y, xp.zeros_like(y))
    initial = _columns(xp, layer, state, batch, x)
    between, recurrent = masks if masks is not None else (None, None)
    finals, residuals = [], []
    k = 0
    for depth, suffixes in enumerate(_suffixes(layer)):
        outputs = []
        for direction, suffix in enumerate(suffixes):
            hs, final, saved = run_direction(
                xp,
                layer.cell,
                direction == 1,
                _one_direction(params, suffix),
                y,
                tuple(part[k, ...] for part in initial),
                valid,
                recurrent[k] if recurrent is not None else None,
            )
            outputs.append(hs)
            finals.append(final)
            residuals.append(saved)
            k += 1
        y = outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=1)
        if valid is not None:
            y = xp.where(valid, y, xp.zeros_like(y))
        if between is not None and depth < layer.num_layers - 1:
            y = y * between[depth]
    final_state = tuple(
        xp.permute_dims(xp.stack([final[part] for final in finals]), (0, 2, 1)) for part in range(len(initial))
    )
    return (
        xp.permute_dims(y, (2, 0, 1)),
        final_state if len(final_state) > 1 else final_state[0],
        (residuals, between),
    )


def _stack_backward(
    params: Params, residuals: Any, dy: Array, dstate: State, *, layer: Any
) -> tuple[Params, Array, State]:
    residuals, between = residuals
    x, hs = residuals[0][:2]
    out = hs.shape[1]
    xp = namespace_of(x)
    dfinal = _columns(xp, layer, dstate, x.shape[2], x)
    dhs = xp.permute_dims(dy, (1, 2, 0))
    grads: Params = {}
    dinitials: list[tuple[Array, ...]] = [()] * len(residuals)
    k = len(residuals)
    for depth, suffixes in reversed(list(enumerate(_suffixes(layer)))):
        if between is not None and depth < layer.num_layers - 1:
            dhs = dhs * between[depth]
        dinputs = []
        for direction, suffix in reversed(list(enumerate(suffixes))):
            k -= 1
            part = dhs[:, direction * out : (direction + 1) * out, :]
            found, dinput, dinitials[k] = run_direction_backward(
                xp,
                layer.cell,
                direction == 1,
                _one_direction(params, suffix),
                residuals[k],
                part,
                tuple(d[k, ...] for d in dfinal),
            )
            grads |= {name + suffix: g for name, g in found.items()}
            dinputs.append(dinput)
        dhs = dinputs[0] if len(dinputs) == 1 else dinputs[0] + dinputs[1]
    dstates = tuple(xp.permute_dims(xp.stack([d[part] for d in dinitials]), (0, 2, 1)) for part in range(len(dfinal)))
    return (
        {name: grads[name] for name in params},
        xp.permute_dims(dhs, (2, 0, 1)),
        dstates if len(dstates) > 1 else dstates[0],
    )


def _columns(xp: Any, layer: Any, state: State, batch: int, like: Array) -> tuple[Array, ...]:
    """A public state (L, B, H) feature-first, (L, H, B), each of its arrays; zeros for None."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    device = device_of(like)
    sizes = _state_sizes(layer)
    parts = (None,) * len(sizes) if state is None else state if isinstance(state, (tuple, list)) else (state,)
    return tuple(
        xp.zeros((count, size, batch), dtype=like.dtype, device=device)
        if part is None
        else xp.permute_dims(part, (0, 2, 1))
        for size, part in zip(sizes, parts, strict=True)
    )


# ---------------------------------------------------------------------- what the three layers share


def _forward(
    self: Any, params: Params, x: Array, state: State, lengths: Array | None, masks: Any
) -> tuple[Array, State, Any]:
    run = jit(namespace_of(x), _stack_forward, static=("layer",))
    return run(params, x, state, lengths, masks, layer=self)


def _backward(self: Any, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array, State]:
    run = jit(namespace_of(residuals[0][0][0]), _stack_backward, static=("layer",))
    return run(params, residuals, dy, dstate, layer=self)


def _in_width(self: Any) -> int:
    return int(self.input_size)


def _out_width(self: Any, features: int | None) -> int:
    return _state_sizes(self)[0] * (2 if self.bidirectional else 1)


def _check_input(self: Any, x: Array, xp: Any) -> None:
    check_rank_and_features(x, xp, (3,), self.input_size, type(self).__name__)


def _check_state(self: Any, state: State, batch_size: int) -> None:
    if state is None:
        return
    count = self.num_layers * (2 if self.bidirectional else 1)
    sizes = _state_sizes(self)
    parts = state if isinstance(state, (tuple, list)) else (state,)
    wanted = [(count, batch_size, size) for size in sizes]
    got = [tuple(part.shape) if part is not None else None for part in parts]
    if got != wanted or (len(sizes) == 1 and isinstance(state, (tuple, list))):
        form = f"an array {wanted[0]}" if len(sizes) == 1 else f"a tuple (h, c) of shapes {wanted[0]} and {wanted[1]}"
        raise InputError(
            f"state of {type(self).__name__} must be {form}, got "
            f"{'an array' if not isinstance(state, (tuple, list)) else 'a tuple'} of shape {', '.join(map(str, got))}"
        )


def _draw(self: Any, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
    return uniform(rng, self.parameter_shapes(), inverse_sqrt(self.hidden_size))


def _dropout_masks(self: Any, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    batch_size, steps = shape[:2]
    directions = 2 if self.bidirectional else 1
    out = _state_sizes(self)[0]
    between = recurrent = None
    if self.dropout and self.num_layers > 1:
        size = (steps, directions * out, batch_size)
        between = [keep_mask(rng, size, self.dropout) for _ in range(self.num_layers - 1)]
    if self.recurrent_dropout:
        count = self.num_layers * directions
        recurrent = [keep_mask(rng, (out, batch_size), self.recurrent_dropout) for _ in range(count)]
    return None if between is None and recurrent is None else (between, recurrent)


def _check_configuration(self: Any) -> None:
    for name in ("input_size", "hidden_size", "num_layers"):
        check_positive_integer(name, getattr(self, name))
    for name in ("dropout", "recurrent_dropout"):
        check_probability(name, getattr(self, name))
    for name in ("nonlinearity", "activation", "recurrent_activation"):
        if hasattr(self, name):
            activation(getattr(self, name))


def check_positive_integer(name: str, value: Any) -> None:
    """Raise InputError unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}")


def check_probability(name: str, value: Any) -> None:
    """Raise InputError unless `value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 or math.isnan(value):
        raise InputError(f"{name} must be a probability in [0, 1), got {value!r}")


@dataclass(frozen=True, repr=False)
class RNN(Layer):
    """Elman network: ``h' = f(Wx @ x + Wh @ h + b)``.

    x (B, T, I) -> y (B, T, D * H) with D directions; state (num_layers * D, B, H), index layer * D + direction.
    Parameters are named and shaped as in `torch.nn.RNN`: ``weight_ih_l0`` (H, I), ``weight_hh_l0`` (H, H),
    ``bias_ih_l0``, ``bias_hh_l0`` (H,), the other layers and the reverse direction with their own suffix.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
    nonlinearity : str
        "tanh", "relu", "sigmoid", "identity", "softsign" or "softplus".
    bias : bool
    bidirectional : bool
        A second direction that runs from each row's own end; its outputs follow the first's on the last axis.
    dropout : float
        Probability of dropping an output between two layers, in training.
    recurrent_dropout : float
        Probability of dropping an entry of h in the recurrent product, in training; one mask for all steps of a
        sequence (Gal and Ghahramani 2016).

    Source: Elman (1990), Finding structure in time, Cognitive Science 14.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.RNN(3, 5, bidirectional=True)
    >>> params = layer.init(seed=0)
    >>> y, state = layer.apply(params, np.ones((2, 7, 3), dtype="float32"))
    >>> y.shape, state.shape
    ((2, 7, 10), (2, 2, 5))
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    _: KW_ONLY
    nonlinearity: str = "tanh"
    bias: bool = True
    bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_configuration(self)

    in_width = property(_in_width)
    out_width = _out_width
    parameter_shapes = _stack_parameter_shapes
    forward = _forward
    backward = _backward
    check_input = _check_input
    check_state = _check_state
    draw = _draw
    dropout_masks = _dropout_masks

    @property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return ElmanCell(self.nonlinearity)


@dataclass(frozen=True, repr=False)
class LSTM(Layer):
    """Long short-term memory.

    ``i, f, o = sigmoid(...)``, ``g = tanh(...)``, ``c' = f * c + i * g``, ``h' = o * tanh(c')``.
    x (B, T, I) -> y (B, T, D * H); the state is the tuple (h, c), each (num_layers * D, B, H). Parameters are named
    and shaped as in `torch.nn.LSTM`, gates in the order i, f, g, o: ``weight_ih_l0`` (4 * H, I).

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, dropout, recurrent_dropout
        As in `RNN`.
    proj_size : int
        Rows of a projection ``weight_hr_l0`` (proj_size, H) of h; 0 for none. y and h then have `proj_size` features.
    peepholes : bool
        Gates that see the cell state, by ``weight_peephole_l0`` (3 * H,) in the order i, f, o.
    activation, recurrent_activation : str
        In place of tanh and of sigmoid.

    Source: Hochreiter and Schmidhuber (1997); Gers, Schmidhuber and Cummins (2000); Sak, Senior and Beaufays (2014).

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.LSTM(3, 5, num_layers=2)
    >>> y, (h, c) = layer.apply(layer.init(seed=0), np.ones((2, 7, 3), dtype="float32"), lengths=[7, 4])
    >>> y.shape, c.shape, bool((y[1, 4:] == 0).all())
    ((2, 7, 5), (2, 2, 5), True)
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    _: KW_ONLY
    bias: bool = True
    bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    proj_size: int = 0
    peepholes: bool = False
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"

    in_width = property(_in_width)
    out_width = _out_width
    parameter_shapes = _stack_parameter_shapes
    forward = _forward
    backward = _backward
    check_input = _check_input
    check_state = _check_state
    draw = _draw
    dropout_masks = _dropout_masks

    def __post_init__(self) -> None:
        _check_configuration(self)
        if not isinstance(self.proj_size, (int, np.integer)) or not 0 <= self.proj_size < self.hidden_size:
            raise InputError(
                f"proj_size must be 0 (no projection) or less than hidden_size {self.hidden_size}, "
                f"got {self.proj_size!r}"
            )

    @property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return LSTMCell(self.proj_size, self.peepholes, self.activation, self.recurrent_activation)


@dataclass(frozen=True, repr=False)
class GRU(Layer):
    """Gated recurrent unit.

    ``r, z = sigmoid(...)``, ``n = tanh(...)``, ``h' = (1 - z) * n + z * h``.
    x (B, T, I) -> y (B, T, D * H), state (num_layers * D, B, H). Parameters are named and shaped as in
    `torch.nn.GRU`, gates in the order r, z, n: ``weight_ih_l0`` (3 * H, I).

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, dropout, recurrent_dropout
        As in `RNN`.
    reset_after : bool
        True: the reset gate acts on ``Wh @ h + b``, as in torch, cuDNN and Keras 3. False: on h, as published.
    activation, recurrent_activation : str
        In place of tanh and of sigmoid.

    Source: Cho et al. (2014), Learning phrase representations using RNN encoder-decoder, arXiv:1406.1078.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.GRU(3, 5)
    >>> params, x = layer.init(seed=0), np.ones((2, 7, 3), dtype="float32")
    >>> y, state, pullback = layer.vjp(params, x)
    >>> dparams, dx, dstate = pullback(np.ones_like(y))
    >>> dparams["weight_hh_l0"].shape, dx.shape, dstate.shape
    ((15, 5), (2, 7, 3), (1, 2, 5))
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    _: KW_ONLY
    bias: bool = True
    bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    reset_after: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"

    def __post_init__(self) -> None:
        _check_configuration(self)

    in_width = property(_in_width)
    out_width = _out_width
    parameter_shapes = _stack_parameter_shapes
    forward = _forward
    backward = _backward
    check_input = _check_input
    check_state = _check_state
    draw = _draw
    dropout_masks = _dropout_masks

    @property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return GRUCell(self.reset_after, self.activation, self.recurrent_activation)
