"""One direction of a recurrent layer over time, forward and backward, for every cell.

The time loop stands here once. What a step computes is in `cells`; how the loop runs is in `execution`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ...arrays import Array, Params, device_of, map_leaves
from ...cells import Cell, columns_of, dropped, summed_outer
from ...execution import (
    Collected,
    compiles,
    in_order,
    keeps_carry,
    product,
    scan,
    scan_in_one,
    side_by_side,
    stacked,
    steps_at_once,
    sums_in_loop,
)

__all__ = ["Span", "run_direction", "run_direction_backward"]


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


class _Saved(NamedTuple):
    """What the backward pass needs of the forward pass; `before` is h before each step, where it is there already."""

    x: Array
    hs: Array
    h_initial: Array
    span: Span
    drop: Array | None
    residuals: Any
    before: Array | None


@dataclass(frozen=True)
class _Forward:
    """One step of a cell, with what holds the state back.

    With `keep` it also returns what the backward pass needs.
    """

    cell: Cell
    keep: bool

    def __call__(self, xp: Any, shared: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
        w, drop = shared
        z_t, (valid, reset, zoneout) = inputs
        start = _where_not(xp, reset, carry)
        new, residual = self.cell.step(xp, w, z_t, start, drop)
        if zoneout is not None:
            new = tuple(n + kept * (old - n) for n, old, kept in zip(new, start, zoneout, strict=True))
        if valid is not None:
            new = tuple(xp.where(valid, n, old) for n, old in zip(new, carry, strict=True))
        return new, (new[0], residual if self.keep else None)


@dataclass(frozen=True)
class _ForwardOfInput:
    """`_Forward` that takes x in place of its product; with `before` it also returns h before the step."""

    forward: _Forward
    before: bool

    def __call__(self, xp: Any, shared: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
        w, _ = shared
        x_t, span = inputs
        z_t = w["Wx"] @ x_t
        z_t = z_t + w["b"] if "b" in w else z_t
        new, outputs = self.forward(xp, shared, carry, (z_t, span))
        return new, (*outputs, carry[0] if self.before else None)


@dataclass(frozen=True)
class _Backward:
    """The reverse of `_Forward`; with `watch` also the norm of the cotangent of h."""

    cell: Cell
    watch: bool

    def __call__(self, xp: Any, shared: Any, dcarry: Any, inputs: Any) -> tuple[Any, Any]:
        w, drop = shared
        dh_t, residual, (valid, reset, zoneout) = inputs
        dnew: Any = dcarry if dh_t is None else (dcarry[0] + dh_t, *dcarry[1:])
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


@dataclass(frozen=True)
class _BackwardOfInput:
    """`_Backward` that returns the cotangent of x, if `wanted`, and the parameters' gradients, summed over time."""

    backward: _Backward
    wanted: bool

    def __call__(self, xp: Any, shared: Any, dcarry: Any, inputs: Any) -> tuple[Any, Any, Any]:
        w, drop = shared
        part, x_t, before = inputs
        _, residual, span = part
        (before,) = _where_not(xp, span.reset, (before,))
        seen = dropped(before, drop)
        dcarry, (dz, emitted, norm) = self.backward(xp, shared, dcarry, part)
        dx = w["Wx.T"] @ dz if self.wanted else None
        dz, emitted, residual, x_t, seen = map_leaves(lambda a: a[None, ...], (dz, emitted, residual, x_t, seen))
        return dcarry, (dx, norm), _gradients(xp, self.backward.cell, dz, x_t, seen, residual, emitted)


def _gradients(xp: Any, cell: Cell, dz: Array, x: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
    """Of the parameters, from stacks over time."""
    return cell.parameter_gradients(xp, dz, h_before, residuals, emitted) | {"weight_ih": summed_outer(xp, dz, x)}


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
    forward = _Forward(cell, keep)
    step = _ForwardOfInput(forward, before=keep and keeps_carry(xp, x, p))
    found = scan_in_one(xp, step, state, (x, span), (w, drop), reverse=reverse, compiling=keep)
    if found is not None:
        final, (hs, residuals, before), _ = found
    else:
        hs, final, residuals = _forward_in_blocks(xp, forward, reverse, w, x, state, span, drop)
        before = None
    return hs, final, _Saved(x, hs, state[0], span, drop, residuals, before) if keep else None


def _forward_in_blocks(
    xp: Any,
    forward: _Forward,
    reverse: bool,
    w: Params,
    x: Array,
    state: tuple[Array, ...],
    span: Span,
    drop: Array | None,
) -> tuple[Array, tuple[Array, ...], Any]:
    """`run_direction` with one input product for a block of steps, which are all but for predictions."""
    steps, _, batch = x.shape
    size = None if forward.keep or batch == 1 else steps_at_once(xp, w["Wx"].shape[0] * batch, 1 << 22)
    hs = Collected(xp, steps)
    residuals: Any = None
    weight, inputs = _with_bias(xp, w, in_order(xp, x))
    for start, stop in _blocks(steps, size, forward=not reverse):
        z = _product(xp, weight, inputs[start:stop, ...])
        state, (part, residuals) = scan(
            xp,
            forward,
            state,
            (z, _between(span, start, stop)),
            (w, drop),
            reverse=reverse,
            recorded=True,
            donate=True,
        )
        hs.add(start, stacked(xp, part))
    return hs.result(), state, residuals


def run_direction_backward(
    xp: Any,
    cell: Cell,
    reverse: bool,
    p: Params,
    saved: Any,
    dhs: Array | None,
    dstate: tuple[Array, ...],
    watch: bool = False,
    with_dx: bool = True,
) -> tuple[Params, Array | None, tuple[Array, ...], Array | None]:
    """Reverse `run_direction`; `dhs` is None where the loss sees only the final state.

    Returns
    -------
    parameter gradients, dx (T, I, B) (None unless `with_dx`), cotangent of the initial state, and with `watch` the norm
    of the loss's derivative with respect to h at each step, over features and batch, (T,)
    """
    w = _with_transposes(cell.prepare(xp, p))
    backward = _Backward(cell, watch)
    steps, _, batch = saved.x.shape
    before = saved.before
    if before is None and sums_in_loop(xp, batch, w["Wx"].shape[0] * batch * steps):
        before = _h_before(xp, saved.hs, saved.h_initial, 0, steps, reverse)
    if before is not None:
        inputs = ((dhs, saved.residuals, saved.span), saved.x, before)
        found = scan_in_one(
            xp,
            _BackwardOfInput(backward, with_dx),
            dstate,
            inputs,
            (w, saved.drop),
            reverse=not reverse,
            summing=True,
            compiling=True,
        )
        if found is not None:
            dstate, (dx, norms), grads = found
            return {name: grads[name] for name in p}, dx, dstate, norms
    return _backward_in_blocks(xp, backward, reverse, w, list(p), saved, dhs, dstate, with_dx)


def _backward_in_blocks(
    xp: Any,
    backward: _Backward,
    reverse: bool,
    w: Params,
    names: list[str],
    saved: _Saved,
    dhs: Array | None,
    dstate: tuple[Array, ...],
    with_dx: bool,
) -> tuple[Params, Array | None, tuple[Array, ...], Array | None]:
    """`run_direction_backward` with the products for a block of steps after their loop."""
    x, drop = saved.x, saved.drop
    steps, _, batch = x.shape
    grads: Params = {}
    dx, norms = Collected(xp, steps), Collected(xp, steps)
    for start, stop in _blocks(steps, steps_at_once(xp, batch, 1024), forward=reverse):
        dhs_part, residuals, span = _between((dhs, saved.residuals, saved.span), start, stop)
        inputs = (dhs_part if dhs is None else in_order(xp, dhs_part), residuals, span)
        dstate, (dz, emitted, norm) = scan(xp, backward, dstate, inputs, (w, drop), reverse=not reverse, recorded=True)
        dz = side_by_side(xp, stacked(xp, dz))
        emitted = emitted if isinstance(emitted, list) else map_leaves(partial(side_by_side, xp), emitted)
        (before,) = _where_not(xp, span.reset, (_h_before(xp, saved.hs, saved.h_initial, start, stop, reverse),))
        x_part = in_order(xp, x[start:stop, ...])
        seen = dropped(before, None if drop is None else drop[None, ...])
        found = _gradients(xp, backward.cell, dz, x_part, seen, residuals, emitted)
        grads = {name: grads[name] + found[name] if grads else found[name] for name in names}
        if with_dx:
            dx.add(start, _input_cotangent(xp, w, dz))
        if backward.watch:
            norms.add(start, stacked(xp, norm))
    return grads, dx.result() if with_dx else None, dstate, norms.result() if backward.watch else None


def _with_transposes(w: Params) -> Params:
    """`w`, and for every matrix in it the transpose, as ``"Wh.T"``.

    Taken before the time loop, where XLA lays it out in memory: taken in the loop it becomes a product whose left
    factor is transposed, which on a CPU runs at a third to a tenth of the speed.
    """
    return {**w, **{f"{name}.T": a.T for name, a in w.items() if getattr(a, "ndim", 0) == 2}}


def _h_before(xp: Any, hs: Array, h_initial: Array, start: int, stop: int, reverse: bool) -> Array:
    """h before each of the steps from `start` to `stop`: one step earlier, in the direction of running."""
    steps, first = hs.shape[0], h_initial[None, ...]
    if reverse:
        h = hs[start + 1 : min(stop + 1, steps), ...]
        return xp.concat([h, first], axis=0) if stop == steps else h
    h = hs[max(start - 1, 0) : stop - 1, ...]
    return xp.concat([first, h], axis=0) if start == 0 else h


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
    if compiles(xp):  # XLA's small products are as fast, and nothing is laid out anew
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


def _where_not(xp: Any, condition: Array | None, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The arrays, zero where the condition holds."""
    if condition is None:
        return arrays
    return tuple(xp.where(condition, xp.zeros_like(a), a) for a in arrays)
