"""Training: one pure update step, the loop over batches, history and early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .data import batches
from .errors import NonFiniteError
from .execution import compiles, jit
from .history import History, Progress
from .layer import Layer, place_masks
from .layers import flat_layers, with_prefix
from .losses import Loss
from .namespace import Backend, from_host, map_leaves, namespace_of, to_numpy
from .optimizers import Optimizer, clip_by_global_norm, global_norm
from .typing import Array, Marks, Params, State

__all__ = ["Buckets", "TrainingRun", "all_finite", "loss_and_gradients", "loss_value", "start_optimizer", "train_step"]


class Data(NamedTuple):
    """Checked data on the model's library; the lengths on the host, where batches are cut."""

    x: Array
    y: Array | None
    lengths: np.ndarray[Any, Any] | None
    resets: Array | None

    def marks(self, backend: Backend) -> Marks:
        """Lengths and resets on the device."""
        lengths = None if self.lengths is None else from_host(self.lengths.astype(np.int32), backend)
        return Marks(lengths, self.resets)

    def rows(self, rows: slice) -> Data:
        """Some of the rows."""
        return Data(
            self.x[rows, ...],
            None if self.y is None else self.y[rows, ...],
            None if self.lengths is None else self.lengths[rows],
            None if self.resets is None else self.resets[rows, ...],
        )


# ---------------------------------------------------------------------- one step, as pure functions


def loss_and_gradients(
    params: Params, x: Array, y: Array, marks: Marks, masks: Any, *, network: Layer, loss: Loss
) -> tuple[Array, Params]:
    """The loss of a batch and its gradient with respect to every parameter."""
    prediction, _, residuals = network.forward(params, x, None, marks, masks)
    value, dprediction = loss(prediction, y, marks.lengths if network.keeps_time else None)
    grads, _, _ = network.backward(params, residuals, dprediction, None)
    return value, grads


def loss_value(params: Params, x: Array, y: Array, marks: Marks, *, network: Layer, loss: Loss) -> Array:
    """The loss of a batch."""
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
    grads, _, _ = network.backward(params, residuals, dprediction, None)
    norm = global_norm(grads)
    if clip_norm is not None:
        grads = clip_by_global_norm(grads, clip_norm, norm)
    params, optimizer_state = optimizer.update(grads, optimizer_state, params)
    return params, optimizer_state, final, xp.stack([value, norm])


def start_optimizer(params: Params, *, optimizer: Optimizer) -> Any:
    """The optimizer's state before the first update."""
    return optimizer.init(params)


def gather(x: Array, y: Array, marks: Marks, rows: Array) -> tuple[Array, Array, Marks]:
    """The rows of a batch."""
    xp = namespace_of(x)
    x, y, marks = (map_leaves(lambda a: xp.take(a, rows, axis=0), tree) for tree in (x, y, marks))
    return x, y, marks


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
        self.optimizer_state = start(self.params, optimizer=self.optimizer)

    def epoch(self, data: Data) -> None:
        """Update once for each batch, or for each piece of it under truncated backpropagation."""
        xp = self.backend.xp
        marks = data.marks(self.backend)
        state: State = None
        for rows in batches(data.x.shape[0], self.batch_size, self.rng, self.shuffle):
            device_rows = from_host(rows.astype(np.int64), self.backend)
            batch = jit(xp, gather)(data.x, data.y, marks, device_rows)
            state = state if self.stateful else None
            for start, stop in self._pieces(data, rows):
                state = self._update(self._cut(batch, start, stop), state)
        self._settle()

    def _pieces(self, data: Data, rows: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
        """The first and last time step of each update on a batch."""
        steps = data.x.shape[1] if data.x.ndim > 1 else 0
        if data.lengths is not None:
            longest = max(int(data.lengths[rows].max()), 1)
            steps = min(self.buckets.steps(longest), steps) if compiles(self.backend.xp) else longest
        size = self.tbptt or steps
        return [(start, min(start + size, steps)) for start in range(0, steps, max(size, 1))] or [(0, 0)]

    def _cut(self, batch: tuple[Array, Array, Marks], start: int, stop: int) -> tuple[Array, Array, Marks]:
        x = batch[0]
        if not self.network.needs_time or (start, stop) == (0, x.shape[1]):
            return batch
        run = jit(self.backend.xp, cut, static=("start", "stop", "y_has_time"))
        return run(*batch, start=start, stop=stop, y_has_time=self.network.keeps_time)

    def _update(self, batch: tuple[Array, Array, Marks], state: State) -> State:
        """One update; the network's state after it.

        The loss is read back one update late, so that a GPU computes update k + 1 while the host waits for update k.
        """
        masks = place_masks(self.network.dropout_masks(self.rng, tuple(batch[0].shape)), self.backend)
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
                return f"{name}, parameter {key!r}"
    value = x
    for name, (prefix, layer) in zip(names, layers, strict=True):
        path = [int(k) for k in prefix.split(".") if k]
        start, mask = _inside(state, path), _inside(masks, path)
        value, _, _ = layer.forward(with_prefix(params, prefix), value, start, marks, mask)
        if not all_finite(value):
            return f"{name}, output"
        marks = marks if layer.keeps_time else Marks()
    _, dvalue = loss(value, y, marks.lengths)
    return "the loss" if not all_finite(dvalue) else f"{names[-1]}, gradient"


def _inside(nest: Any, path: list[int]) -> Any:
    """The part of a nest of tuples that belongs to a layer inside Sequentials."""
    for k in path:
        nest = None if nest is None else nest[k]
    return nest


def all_finite(x: Array) -> bool:
    """Whether a floating array has neither NaN nor infinity; reads one number back."""
    xp = namespace_of(x)
    return bool(to_numpy(xp.all(xp.isfinite(x))))
