"""The recurrence: one direction over time, both directions, stacks, and what marks the time axis, for every cell.

The time loop stands here once, forward and backward. What a step computes is in `cells.py`; how the loop runs is in
`execution.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from .cells import Cell, columns_of, summed_outer
from .execution import Collected, in_order, product, projects_in_loop, scan, side_by_side, stacked, steps_at_once
from .layer import valid_steps
from .namespace import device_of, map_leaves, namespace_of
from .typing import Array, Marks, Params, State

__all__ = [
    "Masks",
    "is_recurrent",
    "one_direction",
    "run_direction",
    "run_direction_backward",
    "stack_backward",
    "stack_forward",
    "suffixes",
]


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


# ---------------------------------------------------------------------- one direction over time


class Span(NamedTuple):
    """What holds the state back at a step; each is None where nothing does.

    Attributes
    ----------
    valid : array (T, 1, B) of booleans, or None
        Where false, the row has ended: the state is held.
    reset : array (T, 1, B) of booleans, or None
        Where true, the step starts from a zero state.
    zoneout : tuple of arrays (T, H, B) for the arrays of the state, or None
        The share of the old state that is kept.
    """

    valid: Array | None = None
    reset: Array | None = None
    zoneout: Any = None


@dataclass(frozen=True)
class _Forward:
    """One step of a cell, with what holds the state back.

    With `keep` it also returns what the backward pass needs, with `project` it takes x in place of its product.
    """

    cell: Cell
    keep: bool
    project: bool

    def __call__(self, xp: Any, shared: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
        w, drop = shared
        z_t, (valid, reset, zoneout) = inputs
        if self.project:
            z_t = w["Wx"] @ z_t
            z_t = z_t + w["b"] if "b" in w else z_t
        start = _where_not(xp, reset, carry)
        new, residual = self.cell.step(xp, w, z_t, start, drop)
        if zoneout is not None:
            new = tuple(n + kept * (old - n) for n, old, kept in zip(new, start, zoneout, strict=True))
        if valid is not None:
            new = tuple(xp.where(valid, n, old) for n, old in zip(new, carry, strict=True))
        return new, (new[0], residual if self.keep else None)


@dataclass(frozen=True)
class _Backward:
    """The reverse of `_Forward`; with `watch` also the norm of the cotangent of h."""

    cell: Cell
    watch: bool

    def __call__(self, xp: Any, shared: Any, dcarry: Any, inputs: Any) -> tuple[Any, Any]:
        w, drop = shared
        dh_t, residual, (valid, reset, zoneout) = inputs
        dnew: Any = (dcarry[0] + dh_t, *dcarry[1:])
        dnew = dnew if valid is None else tuple(xp.where(valid, d, xp.zeros_like(d)) for d in dnew)
        if zoneout is None:
            dstart, dz, emitted = self.cell.step_backward(xp, w, residual, dnew, drop)
        else:
            dkept = tuple(kept * d for d, kept in zip(dnew, zoneout, strict=True))
            dcell = tuple(d - of_kept for d, of_kept in zip(dnew, dkept, strict=True))
            dstart, dz, emitted = self.cell.step_backward(xp, w, residual, dcell, drop)
            dstart = tuple(d + of_kept for d, of_kept in zip(dstart, dkept, strict=True))
        norm = xp.sqrt(xp.sum(dnew[0] * dnew[0])) if self.watch else None
        dold = _where_not(xp, reset, dstart)
        if valid is not None:
            held = _where_not(xp, valid, dcarry)
            dold = tuple(d + kept for d, kept in zip(dold, held, strict=True))
        return dold, (dz, emitted, norm)


def run_direction(
    xp: Any,
    cell: Cell,
    reverse: bool,
    p: Params,
    x: Array,
    state: tuple[Array, ...],
    span: Span,
    drop: Array | None,
    keep: bool = True,
) -> tuple[Array, tuple[Array, ...], Any]:
    """Run a cell over x (T, I, B).

    Where a row has ended the state is held: going forward, the final state is the one at the row's own end; going
    backward, the row starts at its own end, because until there it holds its initial state.

    Returns
    -------
    hs (T, H, B) with held states, final state, residuals (None without `keep`)
    """
    w = cell.prepare(xp, p)
    project = projects_in_loop(xp)
    steps, _, batch = x.shape
    size = None if keep or batch == 1 else steps_at_once(xp, w["Wx"].shape[0] * batch, 1 << 18)
    hs = Collected(xp, steps)
    final = state
    residuals: Any = None
    weight, inputs = (None, x) if project else _with_bias(xp, w, in_order(xp, x))
    for start, stop in _blocks(steps, size, forward=not reverse):
        z = inputs if project else _product(xp, weight, inputs[start:stop, ...])
        final, (part, residuals) = scan(
            xp,
            _Forward(cell, keep, project),
            final,
            (z, _between(span, start, stop)),
            (w, drop),
            reverse=reverse,
            recorded=True,
            donate=True,
            compiling=keep,
        )
        hs.add(start, stacked(xp, part))
    return hs.result(), final, (x, hs.result(), state[0], span, drop, residuals) if keep else None


def run_direction_backward(
    xp: Any,
    cell: Cell,
    reverse: bool,
    p: Params,
    saved: Any,
    dhs: Array,
    dstate: tuple[Array, ...],
    watch: bool = False,
) -> tuple[Params, Array, tuple[Array, ...], Array | None]:
    """Reverse `run_direction`.

    Returns
    -------
    parameter gradients, dx (T, I, B), cotangent of the initial state, and with `watch` the norm of the loss's
    derivative with respect to h at each step, over features and batch, (T,)
    """
    x, hs, h_initial, span, drop, residuals = saved
    w = _with_transposes(cell.prepare(xp, p))
    steps = x.shape[0]
    grads: Params = {}
    dx, norms = Collected(xp, steps), Collected(xp, steps)
    for start, stop in _blocks(steps, steps_at_once(xp, x.shape[2], 1024), forward=reverse):
        part = (in_order(xp, dhs[start:stop, ...]), *_between((residuals, span), start, stop))
        dstate, (dz, emitted, norm) = scan(
            xp, _Backward(cell, watch), dstate, part, (w, drop), reverse=not reverse, recorded=True, compiling=True
        )
        dz = side_by_side(xp, stacked(xp, dz))
        emitted = emitted if isinstance(emitted, list) else map_leaves(partial(side_by_side, xp), emitted)
        h_before = _one_step_earlier(xp, hs, h_initial, start, stop, reverse)
        _, part_residuals, part_span = part
        if part_span.reset is not None:
            h_before = xp.where(part_span.reset, xp.zeros_like(h_before), h_before)
        if drop is not None:
            h_before = h_before * drop
        found = cell.parameter_gradients(xp, dz, h_before, part_residuals, emitted)
        found["weight_ih"] = summed_outer(xp, dz, in_order(xp, x[start:stop, ...]))
        grads = {name: grads[name] + found[name] if grads else found[name] for name in p}
        dx.add(start, _input_cotangent(xp, w, dz))
        if watch:
            norms.add(start, stacked(xp, norm))
    return grads, dx.result(), dstate, norms.result() if watch else None


def _with_transposes(w: Params) -> Params:
    """`w`, and for every matrix in it the transpose, as ``"Wh.T"``.

    Taken before the time loop, where XLA lays it out in memory: taken in the loop it becomes a product whose left
    factor is transposed, which on a CPU runs at a third to a tenth of the speed.
    """
    return {**w, **{f"{name}.T": a.T for name, a in w.items() if getattr(a, "ndim", 0) == 2}}


def _one_step_earlier(xp: Any, hs: Array, h_initial: Array, start: int, stop: int, reverse: bool) -> Array:
    """h before the steps from `start` to `stop`: one step earlier, in the direction of running."""
    steps, first = hs.shape[0], h_initial[None, ...]
    if reverse:
        earlier = hs[start + 1 : min(stop + 1, steps), ...]
        return xp.concat([earlier, first], axis=0) if stop == steps else earlier
    earlier = hs[max(start - 1, 0) : stop - 1, ...]
    return xp.concat([first, earlier], axis=0) if start == 0 else earlier


def _with_bias(xp: Any, w: Params, x: Array) -> tuple[Array, Array]:
    """A weight and an input whose product is ``Wx @ x[t] + b``.

    The bias is the weight of one more input, which is 1: a sum over all steps would be one more pass over them.
    """
    if "b" not in w:
        return w["Wx"], x
    steps, _, batch = x.shape
    one = xp.ones((steps, 1, batch), dtype=x.dtype, device=device_of(x))
    return xp.concat([w["Wx"], w["b"]], axis=1), xp.concat([x, one], axis=1)


def _input_cotangent(xp: Any, w: Params, dz: Array) -> Array:
    """``Wx.T @ dz[t]`` for every step, (T, I, B)."""
    if projects_in_loop(xp):
        return xp.matmul(w["Wx.T"], dz)
    steps, _, batch = dz.shape
    dx = xp.matmul(w["Wx.T"], columns_of(xp, dz))
    return xp.permute_dims(xp.reshape(dx, (dx.shape[0], steps, batch)), (1, 0, 2))


def _product(xp: Any, weight: Array, x: Array) -> Array:
    """``weight @ x[t]`` for every step of x (T, I, B)."""
    steps, features, batch = x.shape
    if batch > 1:
        return product(xp, weight, x)
    rows = xp.reshape(x, (steps, features))  # one product in place of T products with one column
    return product(xp, rows, weight.T)[:, :, None]


def _blocks(steps: int, size: int | None, *, forward: bool) -> list[tuple[int, int]]:
    """(start, stop) of blocks of time steps, in the order of running; None is all at once."""
    size = steps if size is None else size
    blocks = [(start, min(start + size, steps)) for start in range(0, steps, size)]
    return blocks if forward else blocks[::-1]


def _between(tree: Any, start: int, stop: int) -> Any:
    """The steps from `start` to `stop` of a nest of arrays (T, ...) and of lists of T nests."""
    if tree is None:
        return None
    if isinstance(tree, list):
        return tree[start:stop]
    if isinstance(tree, dict):
        return {name: _between(branch, start, stop) for name, branch in tree.items()}
    if isinstance(tree, tuple):
        parts = [_between(branch, start, stop) for branch in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree[start:stop, ...]


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
    *,
    every: int,
) -> tuple[Params, Array, tuple[Array, ...], Array | None]:
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
            found, dx, dstart, norm = run_direction_backward(xp, cell, reverse, p, residuals, dhs_part, dfinal, watch)
            return ({name: g + found[name] for name, g in so_far.items()}, dstart), (dx, norm)

        (grads, dstate), (dx, norm) = scan(xp, segment, (grads, dstate), (*part, begun), reverse=not reverse)
        dinputs.append(dx)
        norms.append(norm)
    order = 1 if reverse else -1
    dx = _from_segments(xp, dinputs[::order])
    return grads, dx, dstate, _from_segments(xp, norms[::order]) if watch else None


def _segments(xp: Any, tree: Any, reverse: bool, every: int) -> list[Any]:
    """A nest of arrays (T, ...) as one of arrays (N, every, ...), and the shorter rest, in the order of running."""
    steps = tree[0].shape[0]
    whole = steps // every * every
    cuts = [(0, whole, every), (whole, steps, steps - whole)]
    if reverse:  # the rest is what runs last
        cuts = [(steps - whole, steps, every), (0, steps - whole, steps - whole)]

    def cut(array: Array, first: int, last: int, size: int) -> Array:
        return xp.reshape(array[first:last, ...], ((last - first) // size, size, *array.shape[1:]))

    return [map_leaves(lambda a, c=c: cut(a, *c), tree) for c in cuts if c[0] < c[1]]


def _from_segments(xp: Any, parts: list[Any]) -> Array:
    """Parts (N, every, ...), each an array or a list of N arrays, as one (T, ...), copied once."""
    segments: list[Array] = []
    for part in parts:
        segments += part if isinstance(part, list) else [xp.reshape(part, (-1, *part.shape[2:]))]
    return segments[0] if len(segments) == 1 else xp.concat(segments, axis=0)


def _where_not(xp: Any, condition: Array | None, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The arrays, zero where the condition holds."""
    if condition is None:
        return arrays
    return tuple(xp.where(condition, xp.zeros_like(a), a) for a in arrays)


# ---------------------------------------------------------------------- stacks


def suffixes(layer: Any) -> list[list[str]]:
    """Torch's parameter suffixes, by layer and direction."""
    ends = ("", "_reverse") if layer.bidirectional else ("",)
    return [[f"_l{k}{end}" for end in ends] for k in range(layer.num_layers)]


def one_direction(params: Params, suffix: str) -> Params:
    """The parameters that end in `suffix`, without it."""
    return {name.removesuffix(suffix): p for name, p in params.items() if name.endswith(suffix)}


def stack_forward(
    params: Params, x: Array, state: State, marks: Marks, masks: Masks | None, *, layer: Any, keep: bool = True
) -> tuple[Array, State, Any]:
    """A whole stack: x (B, T, I) -> y (B, T, D * H), final state, residuals."""
    xp = namespace_of(x)
    batch = x.shape[0]
    y = xp.permute_dims(x, (1, 2, 0))
    spans = [_span(xp, x, marks, backward) for backward in (False, True)]
    valid = spans[0].valid
    if valid is not None:
        y = xp.where(valid, y, xp.zeros_like(y))
    initial = _columns(xp, layer, state, batch, x)
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
                spans[reverse]._replace(zoneout=_zoneout(xp, layer, y, zoneout and zoneout[k])),
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
    final_state = tuple(
        xp.permute_dims(xp.stack([final[part] for final in finals]), (0, 2, 1)) for part in range(len(initial))
    )
    return (
        xp.permute_dims(y, (2, 0, 1)),
        final_state if len(final_state) > 1 else final_state[0],
        (residuals, between),
    )


def stack_backward(
    params: Params, residuals: Any, dy: Array, dstate: State, *, layer: Any, watch: bool = False
) -> tuple[Params, Array, State, list[Array | None]]:
    """Reverse `stack_forward`: (dparams, dx, cotangent of the initial state, norms for each layer and direction)."""
    residuals, between = residuals
    x = residuals[0][0]
    out = state_sizes(layer)[0]
    xp = namespace_of(x)
    run: Any = run_direction_backward
    if layer.recompute_every:
        run = partial(run_segments_backward, every=layer.recompute_every)
    dfinal = _columns(xp, layer, dstate, x.shape[2], x)
    dhs = xp.permute_dims(dy, (1, 2, 0))
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
            )
            grads |= {name + suffix: g for name, g in found.items()}
            dinputs.append(dinput)
        dhs = dinputs[0] if len(dinputs) == 1 else dinputs[0] + dinputs[1]
    dstates = tuple(xp.permute_dims(xp.stack([d[part] for d in dinitials]), (0, 2, 1)) for part in range(len(dfinal)))
    return (
        {name: grads[name] for name in params},
        xp.permute_dims(dhs, (2, 0, 1)),
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


def _zoneout(xp: Any, layer: Any, like: Array, masks: Any) -> Any:
    """The share of the old state that is kept: drawn masks in training, else their expectation."""
    p = getattr(layer, "zoneout", 0.0)
    if masks is not None or not p:
        return masks
    steps, _, batch = like.shape
    device = device_of(like)
    return tuple(xp.full((steps, 1, batch), p, dtype=like.dtype, device=device) for _ in state_sizes(layer))


def is_recurrent(layer: Any) -> bool:
    """Whether a layer runs a cell over time."""
    return hasattr(layer, "cell")


def state_sizes(layer: Any) -> tuple[int, ...]:
    """Rows of each array of the state."""
    sizes: tuple[int, ...] = layer.cell.state_sizes(layer.hidden_size)
    return sizes


def _columns(xp: Any, layer: Any, state: State, batch: int, like: Array) -> tuple[Array, ...]:
    """A public state (L, B, H) feature-first, (L, H, B), each of its arrays; zeros for None."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = state_sizes(layer)
    parts = (None,) * len(sizes) if state is None else state if isinstance(state, (tuple, list)) else (state,)
    return tuple(
        xp.zeros((count, size, batch), dtype=like.dtype, device=device_of(like))
        if part is None
        else xp.permute_dims(part, (0, 2, 1))
        for size, part in zip(sizes, parts, strict=True)
    )
