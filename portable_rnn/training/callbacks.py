"""What a training run leaves behind, and who is told of it: history, callbacks, early stopping, progress."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from ..arrays import Configuration, NonNegative, Params, Size, one_of
from ..errors import InputError

__all__ = ["Callback", "EarlyStopping", "Epoch", "History", "Progress", "notify", "run_callbacks"]


@dataclass
class History:
    """What `Model.fit` recorded.

    Attributes
    ----------
    loss : list of float
        Training loss of each epoch, the mean over samples and valid steps, as `Model.evaluate` takes it, each batch
        with the parameters before its update.
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
        from ..plotting import plot_history

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
class EarlyStopping(Configuration):
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

    patience: Size = 5
    min_delta: NonNegative = 0.0
    monitor: Annotated[str, one_of("val_loss", "loss")] = "val_loss"
    restore_best: bool = True
    best: float = field(default=math.inf, init=False)
    best_epoch: int = field(default=0, init=False)
    _params: Params | None = field(default=None, init=False, repr=False)

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
