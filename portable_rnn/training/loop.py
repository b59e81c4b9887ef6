"""Training: one pure update step, the loop over batches, history and early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, Backend, Marks, Params, State, from_host, leaves, map_leaves, namespace_of, to_numpy
from ..data import batches
from ..errors import NonFiniteError
from ..execution import compiles, forward_only, jit
from ..layers import Layer, flat_layers, place_masks, random_generator, with_prefix
from .callbacks import History, Progress
from .losses import Loss
from .optimizers import Optimizer, clip_by_global_norm, global_norm

__all__ = ["Buckets", "TrainingRun", "all_finite", "loss_and_gradients", "loss_value", "start_optimizer", "train_step"]


class Data(NamedTuple):
    """Checked data on the model's library; the lengths on the host, where batches are cut."""

    x: Array
    y: Array | None
    lengths: np.ndarray[Any, Any] | None
    resets: Array | None

    def rows(self, rows: slice, backend: Backend) -> Data:
        """Some of the rows."""
        if rows == slice(0, self.x.shape[0]):
            return self
        arrays = (self.x, self.y, self.resets)
        if compiles(backend.xp):  # an index made on the way would be moved to the device unasked
            arrays = jit(backend.xp, taken)(arrays, from_host(np.arange(rows.start, rows.stop), backend))
        else:
            arrays = map_leaves(lambda a: a[rows, ...], arrays)
        x, y, resets = arrays
        return Data(x, y, None if self.lengths is None else self.lengths[rows], resets)

    def marks(self, backend: Backend) -> Marks:
        """Lengths and resets on the backend."""
        placed = None if self.lengths is None else from_host(self.lengths.astype(np.int32), backend)
        return Marks(placed, self.resets)


def has_steps(network: Layer, x: Array) -> bool:
    """Whether x has a time axis: (B, T, F), or the integers (B, T) of an Embedding."""
    return x.ndim > 2 or (x.ndim == 2 and network.takes_integers)


def has_target_steps(network: Layer, x: Array, y: Array) -> bool:
    """Whether the targets have the time axis of x."""
    return network.keeps_time and has_steps(network, x) and y.ndim > 1 and y.shape[1] == x.shape[1]


# ---------------------------------------------------------------------- one step, as pure functions


def loss_and_gradients(
    params: Params, x: Array, y: Array, marks: Marks, masks: Any, *, network: Layer, loss: Loss
) -> tuple[Array, Params]:
    """The loss of a batch and its gradient with respect to every parameter."""
    prediction, _, residuals = network.forward(params, x, None, marks, masks)
    value, dprediction = loss(prediction, y, marks.lengths if network.keeps_time else None)
    grads = network.parameter_gradients(params, residuals, dprediction, None)
    return value, grads


def loss_value(params: Params, x: Array, y: Array, marks: Marks, *, network: Layer, loss: Loss) -> Array:
    """The loss of a batch."""
    with forward_only():
        prediction, _, _ = network.forward(params, x, None, marks, None)
    return loss(prediction, y, marks.lengths if network.keeps_time else None)[0]


def train_step(
    params: Params,
    optimizer_state: Any,
    x: Array,
    y: Array,
    marks: Marks,
    masks: Any,
    state: State,
    *,
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    clip_norm: float | None,
) -> tuple[Params, Any, State, Array]:
    """Forward, loss, backward, clipping and optimizer: one update.

    Returns
    -------
    new parameters, new optimizer state, the network's final state, and an array (2,) of the loss and of the
    gradient's global norm before clipping
    """
    xp = namespace_of(x)
    prediction, final, residuals = network.forward(params, x, state, marks, masks)
    value, dprediction = loss(prediction, y, marks.lengths if network.keeps_time else None)
    grads = network.parameter_gradients(params, residuals, dprediction, None)
    norm = global_norm(grads)
    if clip_norm is not None:
        grads = clip_by_global_norm(grads, clip_norm, norm)
    params, optimizer_state = optimizer.update(grads, optimizer_state, params)
    return params, optimizer_state, final, xp.stack([value, norm])


def start_optimizer(params: Params, *, optimizer: Optimizer) -> Any:
    """The optimizer's state before the first update."""
    return optimizer.init(params)


def taken(arrays: Any, rows: Array) -> Any:
    """Some rows of every array of a nest."""
    xp = namespace_of(rows)
    return map_leaves(lambda a: xp.take(a, rows, axis=0), arrays)


def cut(x: Array, y: Array, marks: Marks, *, start: int, stop: int, y_has_time: bool) -> tuple[Array, Array, Marks]:
    """The time steps from `start` to `stop` of a batch."""
    xp = namespace_of(x)
    lengths, resets = marks
    if lengths is not None:
        lengths = xp.clip(lengths - start, 0, stop - start)
    if resets is not None:
        resets = resets[:, start:stop]
    y = y[:, start:stop, ...] if y_has_time else y
    return x[:, start:stop, ...], y, Marks(lengths, resets)


# ---------------------------------------------------------------------- time steps of a batch


class Buckets:
    """How many time steps a batch is padded to, so that a compiling library meets few different shapes.

    The first few lengths are taken as they are. From then on a length that was not met before is rounded up to
    ``2**k`` or ``1.5 * 2**k``, so the number of compilations grows with the logarithm of the longest sequence.
    """

    exact = 8

    def __init__(self) -> None:
        self._met: set[int] = set()

    def steps(self, steps: int) -> int:
        """The number of steps to pad to."""
        if steps not in self._met and len(self._met) >= self.exact:
            steps = round_up(steps)
        self._met.add(steps)
        return steps


def round_up(steps: int) -> int:
    """The next number of the form 2**k or 3 * 2**k."""
    power = 1 << max(steps - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and steps <= power * 3 // 4 else power


def drawn_masks(network: Layer, rng: np.random.Generator, shape: tuple[int, ...], steps: int) -> Any:
    """Dropout masks for an x of this shape, whose time steps from `steps` on (if not 0) are padding.

    They are those of the unpadded x, so that padding for the compiler leaves the stream of random numbers as it is.
    """
    if not steps or steps == shape[1]:
        return network.dropout_masks(rng, shape)
    masks = network.dropout_masks(rng, (shape[0], steps, *shape[2:]))
    wanted = leaves(network.dropout_masks(random_generator(0), shape))

    def extended(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.pad(mask, [(0, to - size) for size, to in zip(mask.shape, next(wanted).shape, strict=True)])

    return map_leaves(extended, masks)


# ---------------------------------------------------------------------- the loop


@dataclass
class TrainingRun:
    """The settings and the moving parts of one call of `Model.fit`."""

    network: Layer
    backend: Backend
    loss: Loss
    optimizer: Optimizer
    clip_norm: float | None
    batch_size: int
    shuffle: bool
    tbptt: int | None
    stateful: bool
    rng: np.random.Generator
    buckets: Buckets
    history: History
    progress: Progress
    params: Params
    optimizer_state: Any = None
    good: Params | None = None  # the last parameters whose loss was finite
    _waiting: tuple[Array, Params, Any] | None = None

    def __post_init__(self) -> None:
        start = jit(self.backend.xp, start_optimizer, static=("optimizer",))
        state = start(self.params, optimizer=self.optimizer)
        if compiles(self.backend.xp):
            # JAX leaves a compiled constant on no device in particular, and would compile the first update for itself
            state = map_leaves(lambda a: from_host(to_numpy(a), self.backend), state)
        self.optimizer_state = state

    def epoch(self, data: Data) -> None:
        """Update once for each batch, or for each piece of it under truncated backpropagation."""
        xp = self.backend.xp
        whole = (data.x, data.y, data.marks(self.backend))
        y_has_time = has_target_steps(self.network, data.x, data.y)
        state: State = None
        for rows in batches(data.x.shape[0], self.batch_size, self.rng, self.shuffle):
            batch = jit(xp, taken)(whole, from_host(rows.astype(np.int64), self.backend))
            state = state if self.stateful else None
            for start, stop, steps in self._pieces(data, rows):
                piece = batch
                if stop and (start, stop) != (0, data.x.shape[1]):
                    run = jit(xp, cut, static=("start", "stop", "y_has_time"))
                    piece = run(*batch, start=start, stop=stop, y_has_time=y_has_time)
                state = self._update(piece, steps, state)
        self._settle()

    def _pieces(self, data: Data, rows: np.ndarray[Any, Any]) -> list[tuple[int, int, int]]:
        """Where each update on a batch starts and stops, and how many of its steps are not padding of all rows."""
        if not has_steps(self.network, data.x):
            return [(0, 0, 0)]
        available = data.x.shape[1]
        longest = available if data.lengths is None else max(int(data.lengths[rows].max()), 1)
        size = self.tbptt or longest
        pieces = []
        for start in range(0, longest, size):
            steps = width = min(size, longest - start)
            if compiles(self.backend.xp) and data.lengths is not None:
                width = min(self.tbptt or self.buckets.steps(steps), available - start)
            pieces.append((start, start + width, steps))
        return pieces

    def _update(self, batch: tuple[Array, Array, Marks], steps: int, state: State) -> State:
        """One update; the network's state after it.

        The loss is read back one update late, so that a GPU computes update k + 1 while the host waits for update k.
        """
        masks = place_masks(drawn_masks(self.network, self.rng, tuple(batch[0].shape), steps), self.backend)
        step = jit(self.backend.xp, train_step, static=("network", "loss", "optimizer", "clip_norm"))
        before = self.params
        self.params, self.optimizer_state, final, numbers = step(
            before,
            self.optimizer_state,
            *batch,
            masks,
            state,
            network=self.network,
            loss=self.loss,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
        )
        self._settle()
        self._waiting = (numbers, before, (*batch, masks, state))
        return final if self.tbptt or self.stateful else None

    def _settle(self) -> None:
        """Read the loss and norm of the last update, if that was not done yet."""
        if self._waiting is None:
            return
        numbers, params, batch = self._waiting
        self._waiting = None
        value, norm = (float(number) for number in to_numpy(numbers))
        self.history.step_loss.append(value)
        self.history.gradient_norm.append(norm)
        self.progress.step(value)
        if math.isfinite(value) and math.isfinite(norm):
            self.good = params
            return
        number = len(self.history.step_loss)
        layer = first_nonfinite(self.network, params, *batch, loss=self.loss)
        what, found = ("loss", value) if not math.isfinite(value) else ("gradient", norm)
        good = params if what == "gradient" or self.good is None else self.good
        raise NonFiniteError(
            f"the {what} is {found} at step {number}, first in {layer}; training stopped "
            "and the last good weights were kept: try a smaller learning rate, clip_norm=1.0, or scaled data",
            step=number,
            layer=layer,
            good_params=good,
        )


def first_nonfinite(
    network: Layer, params: Params, x: Array, y: Array, marks: Marks, masks: Any, state: State, *, loss: Loss
) -> str:
    """The first place, in the order of computation, whose numbers are not all finite."""
    layers = flat_layers(network)
    names = [f"layer {prefix.rstrip('.') or 0} ({type(layer).__name__})" for prefix, layer in layers]
    for name, (prefix, _) in zip(names, layers, strict=True):
        for key, p in with_prefix(params, prefix).items():
            if not all_finite(p):
                return f"{name}, parameter {prefix + key!r}"
    value, saved = x, []
    for name, (prefix, layer) in zip(names, layers, strict=True):
        path = [int(k) for k in prefix.split(".") if k]
        start, mask = _inside(state, path), _inside(masks, path)
        own = with_prefix(params, prefix)
        value, _, residuals = layer.forward(own, value, start, marks, mask)
        if not all_finite(value):
            return f"{name}, output"
        saved.append((name, layer, own, residuals))
        marks = marks if layer.keeps_time else Marks()
    number, dvalue = loss(value, y, marks.lengths)
    if not (all_finite(number) and all_finite(dvalue)):
        return "the loss"
    largest = []
    for name, layer, own, residuals in reversed(saved):
        grads, dvalue, _ = layer.backward(own, residuals, dvalue, None)
        sizes = [float(np.max(np.abs(to_numpy(g)))) for g in grads.values()]
        if not all(map(math.isfinite, sizes)):
            return f"{name}, gradient"
        largest.append((max(sizes, default=0.0), name))
    return f"{max(largest)[1]}, gradient"  # each entry is finite: it is the sum of their squares that is not


def _inside(nest: Any, path: list[int]) -> Any:
    """The part of a nest of tuples that belongs to a layer inside Sequentials."""
    for k in path:
        nest = None if nest is None else nest[k]
    return nest


def all_finite(x: Array) -> bool:
    """Whether a floating array has neither NaN nor infinity; reads one number back."""
    xp = namespace_of(x)
    return bool(to_numpy(xp.all(xp.isfinite(x))))
