"""Training: one pure update step, the loop over batches, history and early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import (
    Array,
    Backend,
    Marks,
    Params,
    State,
    as_before,
    from_host,
    in_host_memory,
    map_leaves,
    namespace_of,
    to_numpy,
)
from ..data import batches
from ..errors import NonFiniteError
from ..execution import compiles, forward_only, jit
from ..layers import Layer, flat_layers, own_parameters, place_masks
from .batching import Batch, Batches, Piece, drawn_masks
from .callbacks import History, Progress
from .losses import Loss, loss_of_rows
from .optimizers import Optimizer, clip_by_global_norm, global_norm

__all__ = ["TrainingRun", "all_finite", "loss_and_gradients", "loss_value", "start_optimizer", "train_step"]


# ---------------------------------------------------------------------- one step, as pure functions


def loss_and_gradients(params: Params, batch: Batch, *, network: Layer, loss: Loss) -> tuple[Array, Params]:
    """The loss of a batch and its gradient with respect to every parameter."""
    prediction, _, residuals = network.forward(params, batch.x, None, batch.marks, None)
    value, dprediction = _loss(batch, prediction, network, loss)
    return value, network.parameter_gradients(params, residuals, dprediction, None)


def loss_value(params: Params, batch: Batch, *, network: Layer, loss: Loss) -> Array:
    """The loss of a batch."""
    with forward_only():
        prediction, _, _ = network.forward(params, batch.x, None, batch.marks, None)
    return _loss(batch, prediction, network, loss)[0]


def _loss(batch: Batch, prediction: Array, network: Layer, loss: Loss) -> tuple[Array, Array]:
    lengths = batch.marks.lengths if network.keeps_time else None
    return loss_of_rows(loss, prediction, batch.y, lengths, batch.rows)


def train_step(
    params: Params,
    optimizer_state: Any,
    batch: Batch,
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
    prediction, final, residuals = network.forward(params, batch.x, state, batch.marks, masks)
    value, dprediction = _loss(batch, prediction, network, loss)
    grads = network.parameter_gradients(params, residuals, dprediction, None)
    norm = global_norm(grads)
    if clip_norm is not None:
        grads = clip_by_global_norm(grads, clip_norm, norm)
    new, optimizer_state = optimizer.update(grads, optimizer_state, params)
    # a user's optimizer may compute in another dtype
    return as_before(new, params), optimizer_state, final, namespace_of(norm).stack([value, norm])


def start_optimizer(params: Params, *, optimizer: Optimizer) -> Any:
    """The optimizer's state before the first update."""
    return optimizer.init(params)


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
    history: History
    progress: Progress
    params: Params
    optimizer_state: Any = None
    good: Params | None = None  # the last parameters whose loss was finite
    _waiting: tuple[Array, Params, Piece, Any, State] | None = None
    _sums: tuple[float, float] = (0.0, 0.0)  # of this epoch: losses by weight, and weights

    def __post_init__(self) -> None:
        start = jit(self.backend.xp, start_optimizer, static=("optimizer",))
        state = start(self.params, optimizer=self.optimizer)
        if compiles(self.backend.xp):
            # JAX leaves a compiled constant on no device in particular, and would compile the first update for itself
            state = map_leaves(lambda a: from_host(to_numpy(a), self.backend), state)
        self.optimizer_state = state

    def epoch(self, data: Batches) -> float:
        """Update once for each batch, or for each piece of it under truncated backpropagation.

        Returns
        -------
        The mean loss over samples and valid steps, each batch with the parameters before its update.
        """
        state: State = None
        self._sums = (0.0, 0.0)
        for rows in batches(data.data.x.shape[0], self.batch_size, self.rng, self.shuffle):
            state = state if self.stateful else None
            longest, width = data.longest(rows), None
            size = self.tbptt or longest
            for start in range(0, max(longest, 1), max(size, 1)):
                piece = data.piece(rows, start, min(size, longest - start), width)
                width = piece.batch.x.shape[0]  # the state is handed on: all pieces have as many rows
                state = self._update(piece, state)
        self._settle()
        total, weight = self._sums
        return total / max(weight, 1.0)

    def _update(self, piece: Piece, state: State) -> State:
        """One update; the network's state after it.

        The loss is read back one update late, so that a GPU computes update k + 1 while the host waits for update k.
        """
        masks = place_masks(drawn_masks(self.network, self.rng, piece), self.backend)
        step = jit(self.backend.xp, train_step, static=("network", "loss", "optimizer", "clip_norm"))
        before = self.params
        self.params, self.optimizer_state, final, numbers = step(
            before,
            self.optimizer_state,
            piece.batch,
            masks,
            state,
            network=self.network,
            loss=self.loss,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
        )
        self._settle()
        self._waiting = (numbers, before, piece, masks, state)
        return final if self.tbptt or self.stateful else None

    def _settle(self) -> None:
        """Read the loss and norm of the last update, if that was not done yet."""
        if self._waiting is None:
            return
        numbers, params, piece, masks, state = self._waiting
        self._waiting = None
        value, norm = (float(number) for number in to_numpy(numbers))
        self.history.step_loss.append(value)
        self.history.gradient_norm.append(norm)
        self._sums = (self._sums[0] + value * piece.weight, self._sums[1] + piece.weight)
        self.progress.step(value)
        if math.isfinite(value) and math.isfinite(norm):
            self.good = params
            return
        number = len(self.history.step_loss)
        layer = first_nonfinite(self.network, params, piece.batch, masks, state, loss=self.loss)
        what, found = ("loss", value) if not math.isfinite(value) else ("gradient", norm)
        good = params if what == "gradient" or self.good is None else self.good
        raise NonFiniteError(
            f"the {what} is {found} at step {number}, first in {layer}; training stopped "
            "and the last good weights were kept: try a smaller learning rate, clip_norm=1.0, or scaled data",
            step=number,
            layer=layer,
            good_params=good,
        )


def first_nonfinite(network: Layer, params: Params, batch: Batch, masks: Any, state: State, *, loss: Loss) -> str:
    """The first place, in the order of computation, whose numbers are not all finite."""
    layers = flat_layers(network)
    names = [f"layer {prefix.rstrip('.') or 0} ({type(layer).__name__})" for prefix, layer in layers]
    for name, (prefix, _) in zip(names, layers, strict=True):
        for key, p in own_parameters(params, prefix).items():
            if not all_finite(p):
                return f"{name}, parameter {prefix + key!r}"
    value, marks, saved = batch.x, batch.marks, []
    for name, (prefix, layer) in zip(names, layers, strict=True):
        path = [int(k) for k in prefix.split(".") if k]
        start, mask = _inside(state, path), _inside(masks, path)
        own = own_parameters(params, prefix)
        value, _, residuals = layer.forward(own, value, start, marks, mask)
        if not all_finite(value):
            return f"{name}, output"
        saved.append((name, layer, own, residuals))
        marks = marks if layer.keeps_time else Marks()
    number, dvalue = _loss(batch._replace(marks=marks), value, network, loss)
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
    if in_host_memory(x):
        return bool(np.all(np.isfinite(to_numpy(x))))
    xp = namespace_of(x)
    return bool(to_numpy(xp.all(xp.isfinite(x))))
