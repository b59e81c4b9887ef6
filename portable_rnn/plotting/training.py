"""Training curves, and the gradient's way back through time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .style import BLACK, BLUE, ORANGE, STYLES, new_figure, plain, saved

__all__ = ["plot_gradient_flow", "plot_history"]


def plot_history(history: Any, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the loss of each epoch, the validation loss, and the loss of every update faint behind them.

    Parameters
    ----------
    history : History
        What `Model.fit` returned: its `loss`, `val_loss` (may be empty), `step_loss` and `stopped` are drawn. The loss
        axis is logarithmic where the curves span more than a decade.
    path : path, optional
        Where to save the picture; its ending chooses the format.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        The history has no epoch, or the path can't be written.
    MissingDependencyError
        matplotlib is not installed.
    """
    epochs = np.arange(1, len(history.loss) + 1)
    if not epochs.size:
        raise InputError("history: expected at least one epoch, received none: call Model.fit first")
    figure = new_figure(6.0, 3.8)
    axes = figure.add_subplot()
    steps = np.asarray(history.step_loss, dtype=np.float64)
    if steps.size:
        # An epoch's mean stands at its end, so update k of n stands k / n of the way there.
        axes.plot(
            epochs[-1] * np.arange(1, steps.size + 1) / steps.size,
            steps,
            color=BLUE,
            alpha=0.25,
            linewidth=0.7,
            label="training, each update",
        )
    marker = "o" if epochs.size <= 40 else ""
    axes.plot(epochs, history.loss, color=BLUE, marker=marker, markersize=4, label="training, mean of the epoch")
    if history.val_loss:
        validation = np.asarray(history.val_loss, dtype=np.float64)
        style = {"color": ORANGE, "linestyle": "--", "marker": "s" if marker else "", "markersize": 4}
        axes.plot(epochs[: validation.size], validation, label="validation", **style)
        best = int(np.argmin(validation))
        label = f"lowest validation loss: {validation[best]:.3g} (epoch {best + 1})"
        ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": BLACK, "linestyle": "none"}
        axes.plot(best + 1, validation[best], marker="o", label=label, **ring)
    values = np.concatenate([steps, history.loss, history.val_loss])
    if values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain(axes)
    axes.legend(frameon=False, fontsize="small")
    return saved(figure, path)


def plot_gradient_flow(norms: Mapping[str, ArrayLike], path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the norm of the loss's gradient with respect to the hidden state over time, a line for each layer.

    Parameters
    ----------
    norms : mapping of layer's name to array_like (T,)
        ``||dL/dh_t||``. Where one is 0 the line has a gap, for the axis is logarithmic.
    path : path, optional
        Where to save the picture; its ending chooses the format.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        There is no layer, or the path can't be written.
    MissingDependencyError
        matplotlib is not installed.
    """
    if not norms:
        raise InputError("norms: expected at least one layer, received none")
    figure = new_figure(6.0, 3.8)
    axes = figure.add_subplot()
    for k, (name, values) in enumerate(norms.items()):
        norm = np.asarray(values, dtype=np.float64)
        style = STYLES[k % len(STYLES)] | {"markevery": max(1, norm.size // 12)}
        axes.plot(np.arange(1, norm.size + 1), np.where(norm > 0, norm, np.nan), label=name, **style)
    axes.set_yscale("log")
    axes.set_xlabel("time step")
    axes.set_ylabel(r"$\Vert \partial L / \partial h_t \Vert$")
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain(axes)
    axes.legend(frameon=False, fontsize="small")
    return saved(figure, path)
