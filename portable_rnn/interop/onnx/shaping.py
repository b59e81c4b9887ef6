"""ONNX's operators that move, cut and join, each with its pullback."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ...arrays import Array, device_of
from ...errors import InputError
from .nodes import Call, Host, Operator, Pullback, checked_size, summed_to

__all__ = ["OPERATORS", "axes_of", "axis_of"]

Result = tuple[tuple[Any, ...], Pullback | None]


def axis_of(value: Any, rank: int) -> int:
    """An axis, counted from the end where negative, as 0 to rank - 1."""
    axis = int(value)
    if not -rank <= axis < rank:
        raise InputError(f"axis {axis} of an array with {rank} axes")
    return axis % rank


def axes_of(call: Call, given: Any, rank: int) -> tuple[int, ...] | None:
    """Axes from an input, or from the attribute of older operator sets; None where neither is there."""
    axes = call.node.get("axes") if given is None else given
    if axes is None:
        return None
    found = tuple(axis_of(a, rank) for a in np.asarray(axes).reshape(-1))
    if len(set(found)) != len(found):
        raise InputError(f"axes {found} name one twice")
    return found


def _reshaped(call: Call, x: Array, shape: tuple[int, ...]) -> Result:
    before = tuple(x.shape)
    return (call.xp.reshape(x, shape),), lambda dy: (call.xp.reshape(dy, before), None)


def _transpose(call: Call, x: Array) -> Result:
    perm = tuple(call.node.get("perm", tuple(reversed(range(x.ndim)))))
    if sorted(perm) != list(range(x.ndim)):
        raise InputError(f"perm {perm} of an array with {x.ndim} axes")
    back = tuple(int(k) for k in np.argsort(perm))
    return (call.xp.permute_dims(x, perm),), lambda dy: (call.xp.permute_dims(dy, back),)


def _reshape(call: Call, x: Array, shape: Any) -> Result:
    sizes = [int(n) for n in np.asarray(shape).reshape(-1)]
    if not call.node.get("allowzero", 0):
        if any(n == 0 and k >= x.ndim for k, n in enumerate(sizes)):
            raise InputError(f"shape {tuple(sizes)} keeps an axis that an array of {x.ndim} axes does not have")
        sizes = [x.shape[k] if n == 0 else n for k, n in enumerate(sizes)]
    if -1 in sizes:
        known = -int(np.prod(sizes, dtype=object))
        if sizes.count(-1) > 1 or known <= 0:
            raise InputError(f"shape {tuple(sizes)} leaves more than one size open")
        sizes[sizes.index(-1)] = int(np.prod(x.shape, dtype=object)) // known
    return _reshaped(call, x, checked_size(sizes))


def _flatten(call: Call, x: Array) -> Result:
    axis = int(call.node.get("axis", 1))
    axis = axis if axis == x.ndim else axis_of(axis, x.ndim)
    rows = int(np.prod(x.shape[:axis], dtype=object))
    return _reshaped(call, x, (rows, int(np.prod(x.shape[axis:], dtype=object))))


def _squeeze(call: Call, x: Array, axes: Any = None) -> Result:
    chosen = axes_of(call, axes, x.ndim)
    if chosen is None:
        chosen = tuple(k for k, n in enumerate(x.shape) if n == 1)
    if any(x.shape[k] != 1 for k in chosen):
        raise InputError(f"squeezes axes {chosen} of an array of shape {tuple(x.shape)}")
    return _reshaped(call, x, tuple(n for k, n in enumerate(x.shape) if k not in chosen))


def _unsqueeze(call: Call, x: Array, axes: Any = None) -> Result:
    given = call.node.get("axes") if axes is None else axes
    if given is None:
        raise InputError("has no axes")
    chosen = axes_of(call, given, x.ndim + np.asarray(given).size)
    sizes = iter(x.shape)
    rank = x.ndim + len(chosen or ())
    return _reshaped(call, x, tuple(1 if k in (chosen or ()) else next(sizes) for k in range(rank)))


def _expand(call: Call, x: Array, shape: Any) -> Result:
    wanted = tuple(int(n) for n in np.asarray(shape).reshape(-1))
    sizes = checked_size(np.broadcast_shapes(tuple(x.shape), checked_size(wanted)))
    return (call.xp.broadcast_to(x, sizes),), lambda dy: (summed_to(call.xp, dy, x.shape), None)


def _tile(call: Call, x: Array, repeats: Any) -> Result:
    xp = call.xp
    times = tuple(int(n) for n in np.asarray(repeats).reshape(-1))
    if len(times) != x.ndim or any(n < 0 for n in times):
        raise InputError(f"repeats {times} of an array with {x.ndim} axes")
    checked_size([n * m for n, m in zip(times, x.shape, strict=True)])
    pairs = tuple(size for n, m in zip(times, x.shape, strict=True) for size in (n, m))

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        return xp.sum(xp.reshape(dy, pairs), axis=tuple(range(0, 2 * x.ndim, 2))), None

    return (xp.tile(x, times),), pullback if x.ndim else lambda dy: (dy, None)


def _concat(call: Call, *inputs: Array) -> Result:
    axis = axis_of(call.node.get("axis", 1), inputs[0].ndim)
    sizes = [x.shape[axis] for x in inputs]

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        return tuple(_cut(dy, axis, sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes)))

    return (call.xp.concat(list(inputs), axis=axis),), pullback


def _split(call: Call, x: Array, split: Any = None) -> Result:
    axis = axis_of(call.node.get("axis", 0), x.ndim)
    count, total = len(call.node.outputs), x.shape[axis]
    given = call.node.get("split") if split is None else split
    if given is None:
        each = -(-total // count)
        sizes = [max(0, min(each, total - k * each)) for k in range(count)]
    else:
        sizes = [int(n) for n in np.asarray(given).reshape(-1)]
    if len(sizes) != count or sum(sizes) != total or any(n < 0 for n in sizes):
        raise InputError(f"splits {total} into {sizes} for {count} outputs")
    ends = np.cumsum([0, *sizes])
    parts = tuple(_cut(x, axis, int(first), int(last)) for first, last in itertools.pairwise(ends))
    return parts, lambda *dparts: (call.xp.concat(list(dparts), axis=axis), None)


def _cut(x: Array, axis: int, first: int, last: int, step: int = 1) -> Array:
    return x[(slice(None),) * axis + (slice(first, last, step), ...)]


def _slice(call: Call, x: Array, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Result:
    xp = call.xp
    starts, ends = (
        np.asarray(call.node.get(name) if value is None else value).reshape(-1)
        for name, value in (("starts", starts), ("ends", ends))
    )
    axes = call.node.get("axes") if axes is None else axes
    axes = range(len(starts)) if axes is None else np.asarray(axes).reshape(-1)
    steps = [1] * len(starts) if steps is None else np.asarray(steps).reshape(-1)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise InputError(f"slices with {len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps")
    cuts = []
    y = x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        k = axis_of(axis, x.ndim)
        if int(step) == 0:
            raise InputError("slices with step 0")
        size = y.shape[k]
        chosen = range(size)[slice(int(start), _open_end(int(end), int(step), size), int(step))]
        flipped, forward = chosen.step < 0, chosen[::-1] if chosen.step < 0 else chosen
        cuts.append((k, size, forward, flipped))
        first, last = (forward[0], forward[-1] + 1) if forward else (0, 0)
        y = _cut(y, k, first, last, forward.step)
        y = xp.flip(y, axis=k) if flipped else y

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        for k, size, forward, flipped in reversed(cuts):
            dy = _spread(xp, xp.flip(dy, axis=k) if flipped else dy, k, size, forward)
        return dy, None, None, None, None

    return (y,), pullback


def _open_end(end: int, step: int, size: int) -> int | None:
    """ONNX's end as Python's: far below zero means that a backward slice takes the first entry too."""
    return None if step < 0 and end < -size else end


def _spread(xp: Any, d: Array, axis: int, size: int, where: range) -> Array:
    """`d` at the places `where` of an axis of `size` zeros."""

    def zeros(count: int) -> Array:
        shape = (*d.shape[:axis], count, *d.shape[axis + 1 :])
        return xp.broadcast_to(xp.zeros_like(xp.sum(d)), shape)

    if not len(where):
        return zeros(size)
    if where.step > 1:
        gap = xp.broadcast_to(xp.zeros_like(xp.sum(d)), (*d.shape[: axis + 1], where.step - 1, *d.shape[axis + 1 :]))
        d = xp.concat([xp.expand_dims(d, axis=axis + 1), gap], axis=axis + 1)
        d = xp.reshape(d, (*d.shape[:axis], len(where) * where.step, *d.shape[axis + 2 :]))
        d = _cut(d, axis, 0, where[-1] + 1 - where.start)
    parts = [zeros(where.start), d, zeros(size - where[-1] - 1)]
    parts = [part for part in parts if part.shape[axis]]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=axis)


def _gather(call: Call, x: Array, indices: Any) -> Result:
    """Entries of an axis. The standard has no scatter-add: the pullback is a product with the one-hot rows."""
    xp = call.xp
    axis = axis_of(call.node.get("axis", 0), x.ndim)
    size = x.shape[axis]
    if isinstance(indices, Host):
        host = indices.array.astype(np.int64)
        if host.size and not (-size <= host.min() and host.max() < size):
            raise InputError(f"takes entry {host.min()} to {host.max()} of an axis with {size}")
        host = host % max(size, 1)
        if host.ndim == 0:
            k = int(host)
            y = x[(slice(None),) * axis + (k, ...)]
            return (y,), lambda dy: (_spread(xp, xp.expand_dims(dy, axis=axis), axis, size, range(k, k + 1)), None)
        indices = call.place(Host(host))
    before = tuple(indices.shape)
    flat = xp.reshape(indices, (-1,))
    flat = xp.where(flat < 0, flat + size, flat)
    y = xp.take(x, flat, axis=axis)
    count = int(np.prod(before, dtype=object))
    leading, trailing = tuple(x.shape[:axis]), tuple(x.shape[axis + 1 :])

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        rows = xp.arange(size, dtype=flat.dtype, device=device_of(flat))
        one_hot = xp.astype(rows[:, None] == flat[None, :], dy.dtype)
        dy = xp.reshape(dy, (int(np.prod(leading, dtype=object)), count, int(np.prod(trailing, dtype=object))))
        return xp.reshape(xp.matmul(one_hot, dy), (*leading, size, *trailing)), None

    return (xp.reshape(y, (*leading, *before, *trailing)),), pullback


# ---------------------------------------------------------------------- what is known without the data


def _shape(call: Call, x: Array) -> Result:
    start, end = call.node.get("start", 0), call.node.get("end")
    return (Host(np.asarray(tuple(x.shape)[start:end], dtype=np.int64)),), None


def _size(call: Call, x: Array) -> Result:
    return (Host(np.asarray(int(np.prod(x.shape, dtype=object)), dtype=np.int64)),), None


def _constant(call: Call) -> Result:
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    for name, value in call.node.attributes:
        if name == "value":
            return (value.array,), None
        if name in kinds:
            return (np.asarray(value, dtype=kinds[name]),), None
    raise InputError("has no value that is a plain array of numbers")


def _constant_of_shape(call: Call, shape: Any) -> Result:
    value = call.node.get("value")
    array = np.zeros((1,), dtype=np.float32) if value is None else value.array
    if array.size != 1:
        raise InputError(f"fills an array with {array.size} values")
    return (np.full(checked_size(shape), array.reshape(-1)[0], dtype=array.dtype),), None


def _range(call: Call, start: Any, limit: Any, delta: Any) -> Result:
    first, last, step = (np.asarray(v).reshape(()) for v in (start, limit, delta))
    if step == 0 or not all(np.isfinite(v) for v in (first, last, step)):
        raise InputError(f"counts from {first} to {last} by {step}")
    count = max(0, int(np.ceil((float(last) - float(first)) / float(step))))
    checked_size([count])
    return (np.asarray(first + np.arange(count) * step, dtype=first.dtype),), None


OPERATORS = {
    "Concat": Operator(_concat, 13),
    "Constant": Operator(_constant, 25),
    "ConstantOfShape": Operator(_constant_of_shape, 25, host=(0,)),
    "Expand": Operator(_expand, 13, host=(1,)),
    "Flatten": Operator(_flatten, 25),
    "Gather": Operator(_gather, 13, either=(1,)),
    "Range": Operator(_range, 27, host=(0, 1, 2)),
    "Reshape": Operator(_reshape, 25, host=(1,)),
    "Shape": Operator(_shape, 25),
    "Size": Operator(_size, 25),
    "Slice": Operator(_slice, 13, host=(1, 2, 3, 4)),
    "Split": Operator(_split, 18, host=(1,)),
    "Squeeze": Operator(_squeeze, 25, host=(1,)),
    "Tile": Operator(_tile, 13, host=(1,)),
    "Transpose": Operator(_transpose, 25),
    "Unsqueeze": Operator(_unsqueeze, 25, host=(1,)),
}
