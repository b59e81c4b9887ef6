"""What training leaves: the report of a run, and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..forecasting import Result
from .output import number, say, say_table

__all__ = ["keep", "report", "verdict"]


def report(result: Result, *, brief: bool = False) -> None:
    """The run, its test errors beside the baselines', and by how much it beats them."""
    model, recipe, history = result.forecaster.model, result.forecaster.recipe, result.history
    unit = f" ({recipe.unit})" if recipe.unit else ""
    if not brief:
        weights = sum(int(np.prod(shape)) for shape in model.network.parameter_shapes().values())
        sizes = ", ".join(f"{name} {part.stop - part.start:,}" for name, part in result.parts.items())
        best = int(np.argmin(history.val_loss)) + 1
        stopped = f"stopped after {len(history.loss)}" if history.stopped else f"ran {len(history.loss)}"
        say(f"Network: {weights:,} weights, on {model.backend}; it learns what {recipe.reference!r} leaves over")
        say(f"Rows in time order: {recipe.window:,} looked at only, {sizes}")
        say(f"Training {stopped} epochs; the weights of epoch {best}, the best in validation, were kept")
    rows = [(f"error on {len(result.truth):,} test forecasts", f"MAE{unit}", f"RMSE{unit}")]
    rows += [(s.name, number(s.mean_absolute), number(s.root_mean_square)) for s in result.scores]
    say_table(rows, right=(1, 2))
    own, *others = (score.mean_absolute for score in result.scores)
    for score, other in zip(result.scores[1:], others, strict=True):
        say(f"The network {verdict(own, other, repr(score.name))}")


def verdict(own: float, other: float, name: str) -> str:
    if own < other:
        return f"beats {name} by {100 * (1 - own / other):.0f} % (MAE)."
    return f"does NOT beat {name}" + (f": its MAE is {100 * (own / other - 1):.0f} % higher." if other else ".")


def keep(result: Result, model: Path, plot: Path | None, title: str = "") -> None:
    result.forecaster.save(model)
    say(f"Model: {model}")
    if plot is not None:
        result.plot(plot, title=title)
        say(f"Picture: {plot}")
