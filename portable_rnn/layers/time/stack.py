"""The recurrence: stacks of layers, both directions, and what marks the time axis, for every cell.

One direction over time is in `one_direction.py`, the maths of a step in `cells`.
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

from ...arrays import Array, Marks, Params, State, device_of, namespace_of, with_axes, zeros_beside
from ..base import valid_steps
from .checkpointed import run_segments, run_segments_backward
from .one_direction import Span, run_direction, run_direction_backward

__all__ = ["Masks", "one_direction", "stack_backward", "stack_forward", "state_sizes", "suffixes"]


class Masks(NamedTuple):
    """Random masks of one training step, feature-first.

    Attributes
    ----------
    between : list of arrays (T, D * H, B), or None
        Dropout of the outputs between two layers.
    recurrent : list of arrays (H, B), or None
        For each layer and direction, the dropout of h in the recurrent product.
    zoneout : list of tuples of arrays (T, H, B), or None
        For each layer and direction and each array of the state, 1 where the old value is kept.
    """

    between: Any = None
    recurrent: Any = None
    zoneout: Any = None


def suffixes(layer: Any) -> tuple[tuple[str, ...], ...]:
    """Torch's parameter suffixes, by layer and direction."""
    return _suffixes(layer.num_layers, layer.bidirectional)


@cache
def _suffixes(num_layers: int, bidirectional: bool) -> tuple[tuple[str, ...], ...]:
    ends = ("", "_reverse") if bidirectional else ("",)
    return tuple(tuple(f"_l{k}{end}" for end in ends) for k in range(num_layers))


def one_direction(params: Params, suffix: str) -> Params:
    """The parameters that end in `suffix`, without it."""
    return {own: params[name] for own, name in _own_names(tuple(params), suffix)}


@lru_cache(maxsize=256)
def _own_names(names: tuple[str, ...], suffix: str) -> list[tuple[str, str]]:
    return [(name.removesuffix(suffix), name) for name in names if name.endswith(suffix)]


def stack_forward(
    params: Params, x: Array, state: State, marks: Marks, masks: Masks | None, *, layer: Any, keep: bool = True
) -> tuple[Array, State, Any]:
    """A whole stack: x (B, T, I) -> y (B, T, D * H), final state, residuals."""
    xp = namespace_of(x)
    batch = x.shape[0]
    y = with_axes(x, (1, 2, 0))
    spans = [_span(xp, x, marks, backward) for backward in (False, True)]
    valid = spans[0].valid
    if valid is not None:
        y = xp.where(valid, y, xp.zeros_like(y))
    initial = _columns(layer, state, batch, x)
    between, recurrent, zoneout = masks or Masks()
    run: Any = run_direction
    if layer.recompute_every:
        run = partial(run_segments, every=layer.recompute_every)
    finals, residuals = [], []
    k = 0
    for depth, ends in enumerate(suffixes(layer)):
        outputs = []
        for direction, suffix in enumerate(ends):
            reverse = layer.reverse != (direction == 1)
            hs, final, saved = run(
                xp,
                layer.cell,
                reverse,
                one_direction(params, suffix),
                y,
                tuple(part[k, ...] for part in initial),
                _with_zoneout(xp, spans[reverse], layer, y, zoneout and zoneout[k]),
                recurrent[k] if recurrent is not None else None,
                keep,
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
    final_state = _states(xp, finals)
    return (
        with_axes(y, (2, 0, 1)),
        final_state if len(final_state) > 1 else final_state[0],
        (residuals, between),
    )


def stack_backward(
    params: Params, residuals: Any, dy: Array, dstate: State, *, layer: Any, watch: bool = False, with_dx: bool = True
) -> tuple[Params, Array | None, State, list[Array | None]]:
    """Reverse `stack_forward`: (dparams, dx, cotangent of the initial state, norms for each layer and direction).

    dx is None unless `with_dx`.
    """
    residuals, between = residuals
    x = residuals[0][0]
    out = state_sizes(layer)[0]
    xp = namespace_of(x)
    run: Any = run_direction_backward
    if layer.recompute_every:
        run = partial(run_segments_backward, every=layer.recompute_every)
    dfinal = _columns(layer, dstate, x.shape[2], x)
    dhs = with_axes(dy, (1, 2, 0))
    grads: Params = {}
    dinitials: list[tuple[Array, ...]] = [()] * len(residuals)
    norms: list[Array | None] = [None] * len(residuals)
    k = len(residuals)
    for depth, ends in reversed(list(enumerate(suffixes(layer)))):
        if between is not None and depth < layer.num_layers - 1:
            dhs = dhs * between[depth]
        dinputs = []
        for direction, suffix in reversed(list(enumerate(ends))):
            k -= 1
            found, dinput, dinitials[k], norms[k] = run(
                xp,
                layer.cell,
                layer.reverse != (direction == 1),
                one_direction(params, suffix),
                residuals[k],
                dhs[:, direction * out : (direction + 1) * out, :],
                tuple(d[k, ...] for d in dfinal),
                watch,
                with_dx or depth > 0,
            )
            grads |= {name + suffix: g for name, g in found.items()}
            dinputs.append(dinput)
        if with_dx or depth > 0:
            dhs = dinputs[0] if len(dinputs) == 1 else dinputs[0] + dinputs[1]
    dstates = _states(xp, dinitials)
    return (
        {name: grads[name] for name in params},
        with_axes(dhs, (2, 0, 1)) if with_dx else None,
        dstates if len(dstates) > 1 else dstates[0],
        norms,
    )


def _span(xp: Any, x: Array, marks: Marks, reverse: bool) -> Span:
    """Lengths and resets as the time loop of one direction wants them."""
    valid = reset = None
    if marks.lengths is not None:
        valid = xp.permute_dims(valid_steps(xp, marks.lengths, x.shape[1], x), (1, 0))[:, None, :]
    if marks.resets is not None:
        reset = xp.permute_dims(marks.resets, (1, 0))[:, None, :]
        if valid is not None:  # a mark behind a row's end, which going backward would be one at its end
            reset = xp.logical_and(reset, valid)
        if reverse:  # a sequence that starts at step t is, going backward, the one that ends there
            reset = xp.concat([reset[1:, ...], xp.zeros_like(reset[:1, ...])], axis=0)
    return Span(valid, reset)


def _with_zoneout(xp: Any, span: Span, layer: Any, like: Array, masks: Any) -> Span:
    """With the share of the old state that is kept: drawn masks in training, else their expectation."""
    p = getattr(layer, "zoneout", 0.0)
    if masks is not None or not p:
        return span if masks is None else span._replace(zoneout=masks)
    steps, _, batch = like.shape
    device = device_of(like)
    expected = tuple(xp.full((steps, 1, batch), p, dtype=like.dtype, device=device) for _ in state_sizes(layer))
    return span._replace(zoneout=expected)


def state_sizes(layer: Any) -> tuple[int, ...]:
    """Rows of each array of the state."""
    sizes: tuple[int, ...] = layer.cell.state_sizes(layer.hidden_size)
    return sizes


def _states(xp: Any, states: list[tuple[Array, ...]]) -> tuple[Array, ...]:
    """The states of all layers and directions, each of their arrays as a public one (L, B, H)."""
    if len(states) == 1:
        return tuple([part.T[None, ...] for part in states[0]])
    parts = zip(*states, strict=True)
    return tuple([with_axes(xp.stack(part), (0, 2, 1)) for part in parts])


def _columns(layer: Any, state: State, batch: int, like: Array) -> tuple[Array, ...]:
    """A public state (L, B, H) feature-first, (L, H, B), each of its arrays; zeros for None."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = state_sizes(layer)
    parts = (None,) * len(sizes) if state is None else state if isinstance(state, (tuple, list)) else (state,)
    return tuple(
        [
            zeros_beside(like, (count, size, batch)) if part is None else with_axes(part, (0, 2, 1))
            for size, part in zip(sizes, parts, strict=True)
        ]
    )
