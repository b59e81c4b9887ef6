"""The one public edge, where arguments become checked arrays of one library, device and dtype.

Layers, losses, models, streams and graphs pass their arguments here once; behind it nothing is checked again. The
other half is what leaves the library: nothing that is handed out shares memory with what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np

from ..errors import BackendError, InputError
from .backend import Backend, backend_of
from .moving import from_host, on_host, place, to_numpy
from .namespaces import (
    copied,
    device_of,
    dtype_name,
    is_array,
    is_floating,
    is_traced,
    library_name,
    may_share_memory,
    namespace_of,
    write_count,
    zeros_beside,
)
from .plain import plain, refuse_containers, unboxed
from .pytrees import leaves, map_leaves
from .typing import Array, Lengths, Marks, Params, State

__all__ = [
    "apart",
    "check_cotangent",
    "check_shapes",
    "check_unwritten",
    "checked_array",
    "checked_arrays",
    "checked_data",
    "checked_lengths",
    "checked_loss_arguments",
    "checked_params",
    "checked_sequences",
    "checked_state",
    "checked_targets",
    "padded",
    "time_marks",
    "write_counts",
]

# Whose library, device and dtype an argument has to have, as errors say it
PARAMETERS, MODEL, OUTPUTS, PREDICTION = "the parameters are", "the model is", "the outputs are", "the prediction is"

# An array that brings them
_TARGETS = {
    MODEL: "model.backend",
    PARAMETERS: "next(iter(params.values()))",
    OUTPUTS: "y",
    PREDICTION: "prediction",
}


# ---------------------------------------------------------------------- one array


def checked_array(name: str, x: Any, expected: Backend, whose: str = PARAMETERS, *, any_dtype: bool = False) -> Array:
    """`x` as a plain array of the library and device of `expected`, and unless `any_dtype` of its dtype if floating.

    Raises
    ------
    InputError
        It is no array, or one with an arithmetic of its own.
    BackendError
        It is another library's, device's or dtype's; the message names both sides and the call that moves it.
    """
    if type(x) is np.ndarray and expected.xp is numpy_namespace and x.dtype == expected.dtype:
        return x
    if not is_array(x):
        raise BackendError(f"{name} must be an array, got {type(x).__name__}: {_move(name, whose)}")
    x = plain(name, x)
    xp, device = namespace_of(x), device_of(x)
    # inside a JAX trace neither side has a device
    elsewhere = device != expected.device and device is not None and expected.device is not None
    if (
        xp is not expected.xp  # first: dtypes of two libraries can't be compared
        or elsewhere
        or (x.dtype != expected.dtype and not any_dtype and is_floating(xp, x.dtype))
    ):
        received = f"{library_name(xp)} {dtype_name(xp, x.dtype)} on {device}"
        raise BackendError(f"{name} is {received}, but {whose} {expected}: {_move(name, whose)}")
    return x


def checked_arrays(arrays: Mapping[str, Array], expected: Backend, whose: str = PARAMETERS) -> dict[str, Array]:
    """`checked_array` of each."""
    return {name: checked_array(name, x, expected, whose) for name, x in arrays.items()}


def _move(name: str, whose: str) -> str:
    if name.startswith(("x[", "y[")):
        name = name[0]  # all the sequences of a list at once
    return f"move it with portable_rnn.asarray({name}, {_TARGETS.get(whose, whose.removesuffix(' is'))})"


# ---------------------------------------------------------------------- parameters and states


def checked_params(params: Any, shapes: Mapping[str, tuple[int, ...]], owner: Any) -> tuple[Params, Backend | None]:
    """The parameters as plain arrays, and where they live; None where there are none.

    Raises
    ------
    InputError
        Names or shapes are others than those of `shapes`.
    """
    if not isinstance(params, dict):
        raise InputError(f"params must be a dict of arrays, as layer.init() returns, got {type(params).__name__}")
    if params.keys() != shapes.keys():
        check_shapes(dict.fromkeys(params, ()), shapes, owner)
    expected: Backend | None = None
    found: Params = {}
    for name, shape in shapes.items():
        p = params[name]
        if type(p) is not np.ndarray:
            if not is_array(p):
                raise InputError(f"parameter {name!r} must be an array, got {type(p).__name__}")
            p = plain(name, p)
        if p.shape != shape:
            check_shapes({**shapes, name: tuple(p.shape)}, shapes, owner)
        expected = expected or backend_of(p)
        found[name] = checked_array(name, p, expected)
    return found, expected


def check_shapes(found: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], owner: Any) -> None:
    """Raise InputError where parameters have other names or shapes than `shapes`."""
    if found.keys() != shapes.keys():
        missing = ", ".join(sorted(shapes.keys() - found.keys())) or "none"
        extra = ", ".join(sorted(map(str, found.keys() - shapes.keys()))) or "none"
        raise InputError(
            f"parameters do not fit {owner}: missing {missing}; unexpected {extra}; "
            "layer.init() or model.params has them all"
        )
    for name, shape in shapes.items():
        if found[name] != shape:
            raise InputError(f"parameter {name!r} must have shape {shape}, got {found[name]}")


def checked_state(state: State, expected: Backend, whose: str = PARAMETERS) -> State:
    """The arrays of a state as plain ones; what structure and shapes they need, a layer knows."""
    if state is None:
        return None
    numbers = iter(range(len(list(leaves(state)))))
    return map_leaves(lambda part: checked_array(f"state[{next(numbers)}]", part, expected, whose), state)


def check_cotangent(name: str, cotangent: Any, value: Any) -> Any:
    """A cotangent as plain arrays of the structure, shapes, library and dtype of the value it belongs to."""
    if cotangent is None:
        return None
    if isinstance(value, (tuple, list)):
        if not isinstance(cotangent, (tuple, list)) or len(cotangent) != len(value):
            raise InputError(f"{name} must be a tuple of {len(value)}, as the state, got {type(cotangent).__name__}")
        pairs = enumerate(zip(cotangent, value, strict=True))
        return tuple([check_cotangent(f"{name}[{k}]", part, of) for k, (part, of) in pairs])
    if value is None:
        raise InputError(f"{name} must be None: this layer has no state")
    cotangent = checked_array(name, cotangent, backend_of(value), OUTPUTS)
    if tuple(cotangent.shape) != tuple(value.shape):
        raise InputError(f"{name} must have shape {tuple(value.shape)}, got {tuple(cotangent.shape)}")
    return cotangent


# ---------------------------------------------------------------------- sequences


def checked_sequences(
    x: Any, lengths: Lengths, expected: Backend | None, whose: str = PARAMETERS
) -> tuple[Array, Lengths]:
    """x (B, T, ...) and its lengths, from such an array or from a list of arrays (T_i, ...) of one library."""
    if _are_rows(x):
        if lengths is not None:
            raise InputError("x is a list of sequences, which have their own lengths: leave lengths out")
        like, whose = (backend_of(plain("x[0]", x[0])), "x[0] is") if expected is None else (expected, whose)
        return padded(like.xp, [checked_array(f"x[{k}]", row, like, whose) for k, row in enumerate(x)])
    if not is_array(x):
        refuse_containers("x", x)
        raise InputError(f"x must be an array, got {type(x).__name__}: pass portable_rnn.asarray(x, backend)")
    if expected is None:
        return plain("x", x), lengths
    return checked_array("x", x, expected, whose), lengths


def checked_data(x: Any, lengths: Lengths, expected: Backend, *, integers: bool) -> tuple[Array, Lengths]:
    """`checked_sequences` for a model, which also takes numbers that have no library yet: lists and tables.

    Parameters
    ----------
    x, lengths
    expected : Backend
    integers : bool
        Whether the network takes integers; else numbers without a library become floats.
    """
    x = unboxed(x)
    if is_array(x) or _are_rows(x):
        return checked_sequences(x, lengths, expected, MODEL)
    placed = place(on_host(x, "x"), expected, None if integers else expected.dtype_name)
    return checked_sequences(placed, lengths, expected, MODEL)


def checked_targets(
    y: Any, rows: int, expected: Backend, steps: int | None, lengths: np.ndarray[Any, Any] | None
) -> Array:
    """Targets of `rows` rows; a list of sequences is padded as x is.

    Parameters
    ----------
    y : array, nested list, table, or list of arrays (T_i,) or (T_i, O)
    rows : int
    expected : Backend
    steps : int or None
        Time steps of x; None where the network gives one output for a row.
    lengths : ndarray (rows,), optional
        Valid steps of x.
    """
    if y is None:
        raise InputError(f"y must be the targets of the {rows} rows of x, got None")
    y = unboxed(y)
    if _are_rows(y):
        y = [checked_array(f"y[{k}]", row, expected, MODEL) for k, row in enumerate(y)]
        if len({tuple(row.shape) for row in y}) == 1:
            y = expected.xp.stack(y)
    else:
        y = checked_array("y", y, expected, MODEL) if is_array(y) else place(on_host(y, "y"), expected)
    count, shape = (len(y), f"a list of {len(y)}") if isinstance(y, list) else (_rows(y), f"shape {tuple(y.shape)}")
    if count != rows:
        raise InputError(f"y must have one entry for each of the {rows} rows of x, got {shape}")
    if isinstance(y, list):
        y = _padded_targets(y, expected.xp, steps, lengths)
    if not expected.xp.isdtype(y.dtype, ("real floating", "integral", "bool")):
        raise InputError(f"y must be real numbers, got {dtype_name(expected.xp, y.dtype)}: convert it first")
    return y


def _rows(y: Array) -> int | None:
    return int(y.shape[0]) if y.ndim else None


def _padded_targets(y: list[Array], xp: Any, steps: int | None, lengths: np.ndarray[Any, Any] | None) -> Array:
    if steps is None:
        raise InputError(
            "y: expected one target for each row, since the network removes the time axis, got sequences of different "
            "lengths: pass an array (N, ...)"
        )
    wanted = [steps] * len(y) if lengths is None else lengths.tolist()
    for k, (row, size) in enumerate(zip(y, wanted, strict=True)):
        if row.shape[0] != size:
            raise InputError(
                f"y[{k}]: expected {size} steps, as x[{k}] has, got {row.shape[0]}: give each step of x its target"
            )
    return padded(xp, y, "y", steps)[0]


def _are_rows(x: Any) -> bool:
    """Whether `x` is a list of arrays with axes of their own, and not of numbers; a namedtuple is none."""
    return type(x) in (list, tuple) and bool(x) and all(map(_is_row, x))


def _is_row(x: Any) -> bool:
    """Whether an element of a list is an array with axes of its own, and not a number."""
    return type(x) is np.ndarray or (not isinstance(x, np.generic) and is_array(x) and x.ndim > 0)


def padded(xp: Any, rows: Sequence[Array], name: str = "x", steps: int | None = None) -> tuple[Array, list[int]]:
    """A list of sequences (T_i, ...) of one library as one array (B, T, ...) and their lengths."""
    shapes = [tuple(row.shape) for row in rows]
    if any(len(shape) < 1 or shape[1:] != shapes[0][1:] for shape in shapes):
        other = next(shape for shape in shapes if not shape or shape[1:] != shapes[0][1:])
        raise InputError(
            f"{name}: the sequences of a list must agree in all but their length, got shapes {shapes[0]} and {other}"
        )
    steps = max(1, steps or 0, *(shape[0] for shape in shapes))
    filled = [
        xp.concat([row, zeros_beside(row, (steps - row.shape[0], *row.shape[1:]))], axis=0)
        if row.shape[0] < steps
        else row
        for row in rows
    ]
    return xp.stack(filled), [shape[0] for shape in shapes]


def checked_loss_arguments(prediction: Any, target: Any, lengths: Any) -> tuple[Array, Array, Array | None]:
    """What a loss computes with: a floating prediction, a target beside it, and int32 lengths of its rows."""
    if not is_array(prediction) or prediction.ndim == 0:
        raise InputError(
            f"prediction: expected an array (B, F) or (B, T, F), got {type(prediction).__name__}: "
            "pass what a network returns, or portable_rnn.asarray(prediction, backend)"
        )
    prediction = plain("prediction", prediction)
    expected = backend_of(prediction)
    if not is_floating(expected.xp, prediction.dtype):
        raise InputError(
            f"prediction: expected floating numbers, got {dtype_name(expected.xp, prediction.dtype)}: "
            "convert it with portable_rnn.asarray(prediction, backend, dtype='float32')"
        )
    target = checked_array("target", target, expected, PREDICTION, any_dtype=True)  # a loss converts it
    if lengths is None or prediction.ndim != 3:
        return prediction, target, None  # where there are no steps, none are left out
    return prediction, target, checked_lengths(lengths, prediction, PREDICTION)


# ---------------------------------------------------------------------- lengths and resets


def time_marks(lengths: Lengths, resets: Any, x: Array) -> Marks:
    """Lengths as int32 and resets as booleans, beside `x`."""
    if lengths is None and resets is None:
        return Marks()
    if x.ndim < 2 or (x.ndim == 2 and is_floating(namespace_of(x), x.dtype)):
        raise InputError(f"lengths and resets need a time axis, but x has shape {tuple(x.shape)}")
    return Marks(
        None if lengths is None else checked_lengths(lengths, x),
        None if resets is None else _checked_resets(resets, x),
    )


def checked_lengths(lengths: Any, x: Array, whose: str = "x is") -> Array:
    """`lengths` (B,) of any integer dtype as int32 beside `x`.

    Their range is checked, for arrays of a device at the price of reading them back. Traced ones have no values yet:
    they are limited to the range.

    Raises
    ------
    InputError
        They are no integers from 0 to `steps`, or not one for each row.
    BackendError
        They are of a third library or of another device.
    """
    like, (batch_size, steps) = backend_of(x), x.shape[:2]
    placed = is_array(lengths) and not isinstance(lengths, (np.ndarray, np.generic))
    if placed:
        lengths = checked_array("lengths", lengths, like, whose, any_dtype=True)
        shape, xp = tuple(lengths.shape), like.xp
        integral = xp.isdtype(lengths.dtype, "integral")
    else:
        lengths = host = to_numpy(lengths, "lengths")
        shape, integral = host.shape, host.dtype.kind in "iu"
    if shape != (batch_size,):
        raise InputError(f"lengths must have one integer for each of the {batch_size} rows, got shape {shape}")
    if not integral:
        raise InputError(f"lengths must be integers, got {dtype_name(like.xp if placed else np, lengths.dtype)}")
    if placed and is_traced(lengths):
        if xp.iinfo(lengths.dtype).max > steps:  # before a cast that may cut bits off
            lengths = xp.clip(lengths, 0, steps)
        return xp.clip(xp.astype(lengths, xp.int32), 0, steps)
    host = to_numpy(lengths) if placed else host
    bad = host[(host < 0) | (host > steps)]
    if bad.size:
        raise InputError(f"lengths must lie between 0 and {steps} (the time steps of x), got {int(bad[0])}")
    if placed:
        return xp.astype(lengths, xp.int32)
    own = host.astype(np.int32)
    return like.xp.asarray(own) if is_traced(x) else from_host(own, like)


def _checked_resets(resets: Any, x: Array) -> Array:
    """`resets` as a boolean array (B, T) beside `x`."""
    like, shape = backend_of(x), tuple(x.shape[:2])
    if not is_array(resets) or (isinstance(resets, np.ndarray) and like.name != "numpy"):
        host = to_numpy(resets, "resets")
        resets = like.xp.asarray(host) if is_traced(x) else from_host(host, like)
    resets = checked_array("resets", resets, like, "x is")
    if tuple(resets.shape) != shape or not like.xp.isdtype(resets.dtype, "bool"):
        raise InputError(
            f"resets must be booleans of shape {shape}, one for each row and step of x, "
            f"got {dtype_name(like.xp, resets.dtype)} of shape {tuple(resets.shape)}"
        )
    return resets


# ---------------------------------------------------------------------- what is handed out, and what is kept


def apart(tree: Any, *others: Any) -> Any:
    """A nest of arrays of which none shares memory with those of `others`; copies where need be."""
    if tree is None:
        return None
    if isinstance(tree, (tuple, list, dict)):
        return map_leaves(lambda a: apart(a, *others), tree)
    for other in others:
        for kept in leaves(other) if isinstance(other, (tuple, list, dict)) else (other,):
            if kept is not None and may_share_memory(tree, kept):
                return copied(tree)
    return tree


def write_counts(params: Params) -> list[int | None]:
    """How often each array was written to, where its library counts that (PyTorch)."""
    return [write_count(p) for p in params.values()]


def check_unwritten(params: Params, before: list[int | None]) -> None:
    """Raise InputError where a parameter was written to since `write_counts` gave `before`."""
    for (name, p), count in zip(params.items(), before, strict=True):
        if write_count(p) != count:
            raise InputError(
                f"parameter {name!r}: expected the values that vjp saw, got an array changed in place since: "
                "call the pullback first, or make a new array in place of p -= ..."
            )
