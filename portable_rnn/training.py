"""Training: one pure update step, the loop over batches, history and early stopping."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .data import batches
from .errors import InputError, NonFiniteError
from .execution import compiles, jit
from .layer import Layer, place_masks
from .layers import Sequential
from .losses import Loss
from .namespace import Backend, from_host, map_leaves, namespace_of, to_numpy
from .optimizers import Optimizer, clip_by_global_norm, global_norm
from .typing import Array, Marks, Params

__all__ = ["Callback", "EarlyStopping", "Epoch", "History", "loss_and_gradients", "train_step"]


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
    state: Any,
    x: Array,
    y: Array,
    marks: Marks,
    masks: Any,
    *,
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    clip_norm: float | None,
) -> tuple[Params, Any, Array]:
    """Forward, loss, backward, clipping and optimizer: one update.

    Returns
    -------
    new parameters, new optimizer state, array (2,) of the loss and of the gradient's global norm before clipping
    """
    xp = namespace_of(x)
    value, grads = loss_and_gradients(params, x, y, marks, masks, network=network, loss=loss)
    norm = global_norm(grads)
    if clip_norm is not None:
        grads = clip_by_global_norm(grads, clip_norm, norm)
    params, state = optimizer.update(grads, state, params)
    return params, state, xp.stack([value, norm])


def start_optimizer(params: Params, *, optimizer: Optimizer) -> Any:
    """The optimizer's state before the first update."""
    return optimizer.init(params)


def gather(
    x: Array, y: Array, marks: Marks, rows: Array, *, steps: int | None, y_has_time: bool
) -> tuple[Array, Array, Marks]:
    """The rows of a batch, cut to the first `steps` time steps."""
    xp = namespace_of(x)
    x, y, marks = (map_leaves(lambda a: xp.take(a, rows, axis=0), tree) for tree in (x, y, marks))
    if steps is not None:
        x = x[:, :steps, ...]
        y = y[:, :steps, ...] if y_has_time else y
        marks = marks if marks.resets is None else marks._replace(resets=marks.resets[:, :steps])
    return x, y, marks


# ---------------------------------------------------------------------- what a run leaves behind


@dataclass
class History:
    """What `Model.fit` recorded.

    Attributes
    ----------
    loss : list of float
        Mean training loss of each epoch.
    val_loss : list of float
        Validation loss after each epoch; empty without validation data.
    step_loss, gradient_norm : list of float
        Loss and global gradient norm (before clipping) of every update.
    seconds : list of float
        Duration of each epoch.
    stopped : str
        Why training ended before its last epoch; empty otherwise.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    step_loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stopped: str = ""

    def plot(self, path: Any = None) -> Any:
        """Draw the curves with matplotlib (extra ``[plot]``).

        Parameters
        ----------
        path : path, optional
            Where to save the picture; its ending chooses the format.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from .plotting import plot_history

        return plot_history(self, path)


@dataclass(frozen=True)
class Epoch:
    """What a callback gets after an epoch: its number from 1, the model and the history so far."""

    number: int
    model: Any
    history: History


class Callback(Protocol):
    """Called by `Model.fit`; a plain function of an `Epoch` that may return True to stop is a callback too."""

    def start(self, model: Any) -> None:
        """Before the first epoch."""

    def __call__(self, epoch: Epoch) -> bool | None:
        """After each epoch; True stops training."""

    def finish(self, model: Any) -> None:
        """After the last epoch."""


@dataclass
class EarlyStopping:
    """Stop when the loss no longer falls, and take back the best weights.

    Parameters
    ----------
    patience : int
        Epochs without an improvement to wait for.
    min_delta : float
        What counts as an improvement.
    monitor : "val_loss" or "loss"
    restore_best : bool
        Give the model the weights of its best epoch when training ends.

    Raises
    ------
    InputError
        At the first epoch, where `monitor` is "val_loss" and fit has no validation data.
    """

    patience: int = 5
    min_delta: float = 0.0
    monitor: str = "val_loss"
    restore_best: bool = True
    best: float = field(default=math.inf, init=False)
    best_epoch: int = field(default=0, init=False)
    _params: Params | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.monitor not in ("loss", "val_loss"):
            raise InputError(f"monitor must be 'val_loss' or 'loss', got {self.monitor!r}")
        if self.patience < 1:
            raise InputError(f"patience must be at least 1, got {self.patience!r}")

    def start(self, model: Any) -> None:
        """Forget an earlier run."""
        self.best, self.best_epoch, self._params = math.inf, 0, None

    def __call__(self, epoch: Epoch) -> bool:
        """Whether to stop."""
        values = getattr(epoch.history, self.monitor)
        if not values:
            raise InputError("EarlyStopping watches val_loss: pass validation_data=(x, y), or monitor='loss'")
        if values[-1] < self.best - self.min_delta:
            self.best, self.best_epoch = values[-1], epoch.number
            self._params = epoch.model.params
        return epoch.number - self.best_epoch >= self.patience

    def finish(self, model: Any) -> None:
        """Restore the best weights."""
        if self.restore_best and self._params is not None:
            model.params = self._params


# ---------------------------------------------------------------------- progress


class Progress:
    """A progress bar with loss, steps per second and time left; a line for each epoch where tqdm is missing."""

    def __init__(self, show: bool, epochs: int, steps: int) -> None:
        self._bar: Any = None
        self._plain = False
        self._epochs, self._started = epochs, time.perf_counter()
        if not show:
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            self._plain = True
        else:
            self._bar = tqdm(total=epochs * steps, unit="step", dynamic_ncols=True, mininterval=0.2)

    def step(self, loss: float) -> None:
        """One more update."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update()

    def epoch(self, number: int, history: History) -> None:
        """One more epoch."""
        validation = f", val_loss {history.val_loss[-1]:.4g}" if history.val_loss else ""
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {number}/{self._epochs}{validation}", refresh=False)
        if self._plain:
            seconds = time.perf_counter() - self._started
            left = seconds / number * (self._epochs - number)
            print(
                f"epoch {number}/{self._epochs}: loss {history.loss[-1]:.4g}{validation}, {left:.0f} s left",
                file=sys.stderr,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


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
    buckets: Buckets

    def epoch(
        self,
        params: Params,
        state: Any,
        x: Array,
        y: Array,
        lengths: np.ndarray[Any, Any] | None,
        resets: Array | None,
        rng: np.random.Generator,
        batch_size: int,
        shuffle: bool,
        history: History,
        progress: Progress,
    ) -> tuple[Params, Any]:
        """Update once for each batch.

        The loss is read back one step late, so that a GPU computes step k + 1 while the host waits for step k.
        """
        xp = self.backend.xp
        step = jit(xp, train_step, static=("network", "loss", "optimizer", "clip_norm"))
        take = jit(xp, gather, static=("steps", "y_has_time"))
        marks = Marks(None if lengths is None else from_host(lengths.astype(np.int32), self.backend), resets)
        y_has_time = self.network.keeps_time
        waiting: tuple[Array, Params, Any] | None = None
        good = params
        for rows in batches(x.shape[0], batch_size, rng, shuffle):
            steps = None if lengths is None else self._steps(int(lengths[rows].max()), x.shape[1])
            device_rows = from_host(rows.astype(np.int64), self.backend)
            batch = take(x, y, marks, device_rows, steps=steps, y_has_time=y_has_time)
            masks = place_masks(self.network.dropout_masks(rng, tuple(batch[0].shape)), self.backend)
            before = params
            params, state, numbers = step(
                params,
                state,
                *batch,
                masks,
                network=self.network,
                loss=self.loss,
                optimizer=self.optimizer,
                clip_norm=self.clip_norm,
            )
            if waiting is not None:
                good = self._record(waiting, good, history, progress)
            waiting = (numbers, before, (*batch, masks))
        if waiting is not None:
            self._record(waiting, good, history, progress)
        return params, state

    def _steps(self, longest: int, available: int) -> int:
        longest = max(longest, 1)
        return min(self.buckets.steps(longest), available) if compiles(self.backend.xp) else longest

    def _record(self, waiting: tuple[Array, Params, Any], good: Params, history: History, progress: Progress) -> Params:
        """Read a step's loss and norm; the weights that are known to be good after it."""
        numbers, params, batch = waiting
        value, norm = (float(number) for number in to_numpy(numbers))
        history.step_loss.append(value)
        history.gradient_norm.append(norm)
        progress.step(value)
        if math.isfinite(value) and math.isfinite(norm):
            return params
        number = len(history.step_loss)
        layer = first_nonfinite(self.network, params, *batch, loss=self.loss)
        what = "loss" if not math.isfinite(value) else "gradient"
        raise NonFiniteError(
            f"the {what} is {value if what == 'loss' else norm} at step {number}, first in {layer}; training stopped "
            "and the last good weights were kept: try a smaller learning rate, clip_norm=1.0, or scaled data",
            step=number,
            layer=layer,
            good_params=good if what == "loss" else params,
        )


def first_nonfinite(network: Layer, params: Params, x: Array, y: Array, marks: Marks, masks: Any, *, loss: Loss) -> str:
    """The first place, in the order of computation, whose numbers are not all finite."""
    layers = network.layers if isinstance(network, Sequential) else (network,)
    names = [f"layer {k} ({type(layer).__name__})" for k, layer in enumerate(layers)]
    prefixes = [f"{k}." if isinstance(network, Sequential) else "" for k in range(len(layers))]
    for name, prefix in zip(names, prefixes, strict=True):
        for key, p in params.items():
            if key.startswith(prefix) and not all_finite(p):
                return f"{name}, parameter {key!r}"
    value = x
    for k, (layer, name) in enumerate(zip(layers, names, strict=True)):
        own = {key.removeprefix(prefixes[k]): p for key, p in params.items() if key.startswith(prefixes[k])}
        mask = masks if masks is None or not isinstance(network, Sequential) else masks[k]
        value, _, _ = layer.forward(own, value, None, marks, mask)
        if not all_finite(value):
            return f"{name}, output"
        marks = marks if layer.keeps_time else Marks()
    _, dvalue = loss(value, y, marks.lengths)
    return "the loss" if not all_finite(dvalue) else f"{names[-1]}, gradient"


def all_finite(x: Array) -> bool:
    """Whether a floating array has neither NaN nor infinity; reads one number back."""
    xp = namespace_of(x)
    return bool(to_numpy(xp.all(xp.isfinite(x))))


def run_callbacks(callbacks: Sequence[Any], epoch: Epoch) -> str:
    """The name of a callback that wants to stop, or nothing."""
    names = [_name(callback) for callback in callbacks if callback(epoch)]
    return ", ".join(names)


def notify(callbacks: Sequence[Any], event: str, model: Any) -> None:
    """Call `start` or `finish` on the callbacks that have it."""
    for callback in callbacks:
        method: Callable[[Any], None] | None = getattr(callback, event, None)
        if method is not None:
            method(model)


def _name(callback: Any) -> str:
    return getattr(callback, "__name__", type(callback).__name__)
