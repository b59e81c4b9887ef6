"""One direction in segments of time, which the backward pass runs forward again: less memory, exact gradients."""

from __future__ import annotations

from typing import Any

from ...arrays import Array, Params, map_leaves
from ...cells import Cell
from ...execution import in_segments, scan
from .one_direction import Span, run_direction, run_direction_backward

__all__ = ["run_segments", "run_segments_backward"]


def run_segments(
    xp: Any,
    cell: Cell,
    reverse: bool,
    p: Params,
    x: Array,
    state: tuple[Array, ...],
    span: Span,
    drop: Array | None,
    keep: bool = True,
    *,
    every: int,
) -> tuple[Array, tuple[Array, ...], Any]:
    """`run_direction` that keeps the state at every `every` steps in place of all residuals.

    The backward pass runs each segment forward again, from the state at its start, just before it runs it backward:
    O(T / every + every) memory beside inputs and outputs, for one more forward pass. Source: Chen et al. (2016),
    arXiv:1604.06174.
    """
    if not keep:
        return run_direction(xp, cell, reverse, p, x, state, span, drop, keep)
    parts = _segments(xp, (x, span), reverse, every)
    outputs: list[Any] = []
    starts: list[Any] = []
    for part in parts:

        def segment(xp: Any, shared: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
            x_part, span_part = inputs
            hs, final, _ = run_direction(xp, cell, reverse, p, x_part, carry, span_part, drop)
            return final, (hs, carry)

        state, (hs, begun) = scan(xp, segment, state, part, reverse=reverse)
        outputs.append(hs)
        starts.append(begun)
    hs = _from_segments(xp, outputs[::-1] if reverse else outputs)
    return hs, state, (x, span, drop, starts)


def run_segments_backward(
    xp: Any,
    cell: Cell,
    reverse: bool,
    p: Params,
    saved: Any,
    dhs: Array,
    dstate: tuple[Array, ...],
    watch: bool = False,
    with_dx: bool = True,
    *,
    every: int,
) -> tuple[Params, Array | None, tuple[Array, ...], Array | None]:
    """Reverse `run_segments`; as `run_direction_backward`."""
    x, span, drop, starts = saved
    parts = _segments(xp, (x, span, dhs), reverse, every)
    grads = {name: xp.zeros_like(value) for name, value in p.items()}
    dinputs: list[Any] = []
    norms: list[Any] = []
    for part, begun in zip(parts[::-1], starts[::-1], strict=True):

        def segment(xp: Any, shared: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
            so_far, dfinal = carry
            x_part, span_part, dhs_part, start = inputs
            _, _, residuals = run_direction(xp, cell, reverse, p, x_part, start, span_part, drop)
            found, dx, dstart, norm = run_direction_backward(
                xp, cell, reverse, p, residuals, dhs_part, dfinal, watch, with_dx
            )
            return ({name: g + found[name] for name, g in so_far.items()}, dstart), (dx, norm)

        (grads, dstate), (dx, norm) = scan(xp, segment, (grads, dstate), (*part, begun), reverse=not reverse)
        dinputs.append(dx)
        norms.append(norm)
    order = 1 if reverse else -1
    dx = _from_segments(xp, dinputs[::order]) if with_dx else None
    return grads, dx, dstate, _from_segments(xp, norms[::order]) if watch else None


def _segments(xp: Any, tree: Any, reverse: bool, every: int) -> list[Any]:
    """A nest of arrays (T, ...) as one of N segments (every, ...), and the shorter rest, in the order of running."""
    steps = tree[0].shape[0]
    whole = steps // every * every
    cuts = [(0, whole, every), (whole, steps, steps - whole)]
    if reverse:  # the rest is what runs last
        cuts = [(steps - whole, steps, every), (0, steps - whole, steps - whole)]
    return [map_leaves(lambda a, c=c: in_segments(xp, a, *c), tree) for c in cuts if c[0] < c[1]]


def _from_segments(xp: Any, parts: list[Any]) -> Array:
    """Parts (N, every, ...), each an array or a list of N arrays, as one (T, ...), copied once."""
    segments: list[Array] = []
    for part in parts:
        segments += part if isinstance(part, list) else [xp.reshape(part, (-1, *part.shape[2:]))]
    return segments[0] if len(segments) == 1 else xp.concat(segments, axis=0)
