"""Forecasts against truth, and their errors by horizon."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .style import BASELINE_STYLES, BLACK, BLUE, GREY, STYLES, literal, new_figure, plain, saved

__all__ = ["plot_forecasts"]


def plot_forecasts(
    past: ArrayLike,
    truth: ArrayLike,
    forecast: ArrayLike,
    baselines: Mapping[str, ArrayLike] | None = None,
    *,
    times: ArrayLike | None = None,
    label: str = "value",
    unit: str = "",
    name: str = "forecast",
    step_name: str = "step",
    title: str = "",
    examples: Sequence[int] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draw some forecasts against what came, their errors, and the mean error of all forecasts at each step ahead.

    Parameters
    ----------
    past : array_like (N, window)
        The target over the rows that each forecast was made from, oldest first.
    truth, forecast : array_like (N, horizon)
        What came, and what was forecast.
    baselines : mapping of name to array_like (N, horizon), optional
        Other forecasts to compare with, up to three.
    times : array_like of datetime64 (N, window + horizon), optional
        The time of every row; rows are counted from the last known one when left out.
    label, unit : str
        Of the value, for the axes: "temperature" and "°F".
    name : str
        Of the forecast, for the legend.
    step_name : str
        What a step is: "hour".
    title : str
    examples : sequence of int, optional
        Which forecasts to draw, up to four. Three, evenly spread, when left out: nobody picked them.
    path : path, optional
        Where to save the picture; its ending chooses the format.

    Returns
    -------
    matplotlib.figure.Figure
        Its axes: for each example one with the values and one with the errors, then one with the mean errors.

    Raises
    ------
    InputError
        The shapes don't fit each other, or the path can't be written.
    MissingDependencyError
        matplotlib is not installed.
    """
    known, came, foreseen = (np.asarray(values, dtype=np.float64) for values in (past, truth, forecast))
    others = {key: np.asarray(values, dtype=np.float64) for key, values in (baselines or {}).items()}
    clock = None if times is None else np.asarray(times)
    _check_shapes(known, came, foreseen, others, clock)
    count = len(came)
    chosen = sorted({(2 * k + 1) * count // 6 for k in range(3)}) if examples is None else list(examples)
    if not 1 <= len(chosen) <= 4 or not all(0 <= k < count for k in chosen):
        raise InputError(f"examples: expected 1 to 4 numbers from 0 to {count - 1}, received {chosen}")
    figure = new_figure(max(3.3 * len(chosen), 6.6), 7.6)
    rows = figure.add_gridspec(3, len(chosen), height_ratios=(1.3, 0.8, 1))
    suffix = literal(f" ({unit})") if unit else ""
    top: Any = None
    middle: Any = None
    for place, k in enumerate(chosen):
        guesses = {name: foreseen[k], **{key: values[k] for key, values in others.items()}}
        axes = top = figure.add_subplot(rows[0, place], sharey=top)
        _draw_example(axes, known[k], came[k], guesses, None if clock is None else clock[k], step_name)
        below = middle = figure.add_subplot(rows[1, place], sharey=middle)
        _draw_departures(below, came[k], guesses, step_name)
        if place:
            axes.tick_params(labelleft=False)
            below.tick_params(labelleft=False)
        else:
            axes.set_ylabel(f"{literal(label)}{suffix}")
            below.set_ylabel(f"forecast − truth{suffix}")
    errors_of = {key: np.abs(values - came)[chosen].max() for key, values in {name: foreseen, **others}.items()}
    _fit_departures(middle, errors_of)
    errors = figure.add_subplot(rows[2, :])
    _draw_errors(errors, came, {name: foreseen, **others})
    errors.set_xlabel(f"{step_name}s ahead")
    errors.set_ylabel(f"mean absolute error{suffix}")
    errors.set_title(f"Mean over all {count:,} test forecasts", fontsize="medium")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    if title:
        figure.suptitle(literal(title))
    return saved(figure, path)


# ---------------------------------------------------------------------- parts


def _draw_example(
    axes: Any,
    known: NDArray[np.float64],
    came: NDArray[np.float64],
    guesses: Mapping[str, NDArray[np.float64]],
    clock: NDArray[Any] | None,
    step_name: str,
) -> None:
    """One window: what was known, what came, what was forecast."""
    window = len(known)
    x: NDArray[Any] = np.arange(1 - window, len(came) + 1) if clock is None else clock
    before, after, last = x[:window], x[window - 1 :], known[-1:]
    (name, foreseen), *others = guesses.items()
    axes.axvspan(after[0], after[-1], color=GREY, alpha=0.12, linewidth=0)
    axes.plot(before, known, color=GREY, linewidth=1.8, label="known at forecast time")
    axes.plot(after, np.concatenate([last, came]), color=BLACK, linewidth=1.8, label="truth")
    marks = {"color": BLUE, "linestyle": "none", "marker": "o", "markersize": 4.5, "markerfacecolor": "white"}
    axes.plot(after[1:], foreseen, label=name, zorder=4, **marks)
    for (key, values), (color, dashes, _) in zip(others, BASELINE_STYLES, strict=False):
        axes.plot(after, np.concatenate([last, values]), color=color, linestyle=dashes, linewidth=1.4, label=key)
    if clock is None:
        axes.set_xlabel(f"{step_name}s from the last known one")
    else:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=5)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
        axes.set_title(f"forecast made {moment(after[0])}", fontsize="medium")
        axes.set_xlabel("time")
    axes.margins(x=0.02)
    plain(axes)


def _draw_departures(
    axes: Any, came: NDArray[np.float64], guesses: Mapping[str, NDArray[np.float64]], step_name: str
) -> None:
    """The same window's errors, which are often too small to see beside the values."""
    ahead = np.arange(1, len(came) + 1)
    axes.axhline(0, color=BLACK, linewidth=1.2)
    for values, style in zip(guesses.values(), STYLES, strict=False):
        axes.plot(ahead, values - came, **style)
    whole_steps(axes, ahead)
    axes.set_xlabel(f"{step_name}s ahead")
    plain(axes)


def _fit_departures(axes: Any, largest: Mapping[str, float]) -> None:
    """Choose the errors' axis for the two best forecasts, and name those that leave it."""
    second = sorted(largest.values())[:2][-1]
    outside = [name for name, error in largest.items() if error > 3 * second > 0]
    limit = 1.15 * max(error for name, error in largest.items() if name not in outside)
    axes.set_ylim(-(limit or 1.0), limit or 1.0)
    if outside:
        text = f"partly outside this range: {', '.join(outside)}"
        axes.annotate(text, (0.98, 0.04), xycoords="axes fraction", ha="right", fontsize="small")


def _draw_errors(axes: Any, came: NDArray[np.float64], forecasts: Mapping[str, NDArray[np.float64]]) -> None:
    """Mean absolute error at each step ahead, on a logarithmic axis where they differ much."""
    ahead = np.arange(1, came.shape[1] + 1)
    curves = [np.abs(values - came).mean(axis=0) for values in forecasts.values()]
    for curve, style in zip(curves, STYLES, strict=False):
        axes.plot(ahead, curve, **style)
    smallest, largest = min(float(c.min()) for c in curves), max(float(c.max()) for c in curves)
    if smallest > 0 and largest > 10 * smallest:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        decades = math.log10(largest / smallest)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    whole_steps(axes, ahead)
    plain(axes)


def _check_shapes(
    known: NDArray[Any],
    came: NDArray[Any],
    foreseen: NDArray[Any],
    others: Mapping[str, NDArray[Any]],
    clock: NDArray[Any] | None,
) -> None:
    if came.ndim != 2 or not came.size:
        raise InputError(f"truth: expected shape (forecasts, horizon), received {came.shape}")
    count, horizon = came.shape
    if known.ndim != 2 or len(known) != count or not known.size:
        raise InputError(f"past: expected shape ({count}, window), received {known.shape}")
    for key, values in {"forecast": foreseen, **others}.items():
        if values.shape != came.shape:
            raise InputError(f"{key}: expected shape {came.shape}, as truth, received {values.shape}")
    if len(others) > len(BASELINE_STYLES):
        raise InputError(f"baselines: expected up to {len(BASELINE_STYLES)}, received {len(others)}")
    if clock is not None and (clock.shape != (count, known.shape[1] + horizon) or clock.dtype.kind != "M"):
        raise InputError(
            f"times: expected datetime64 of shape ({count}, {known.shape[1] + horizon}), "
            f"received {clock.dtype} of shape {clock.shape}"
        )


def moment(time: np.datetime64) -> str:
    """A time without the parts that are zero: "2010-11-20 13:00", "2014-05-01"."""
    minute = str(time.astype("datetime64[m]")).replace("T", " ")
    return minute.removesuffix(" 00:00")


def whole_steps(axes: Any, ahead: NDArray[Any]) -> None:
    """Ticks at whole steps only."""
    if len(ahead) <= 12:
        axes.set_xticks(ahead)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
