"""Train a forecaster on a table: split in time, windows, training, test errors beside simple forecasts.

What `portable-rnn train` and `portable-rnn demo` do, without the command line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..arrays import Array, Backend, Configuration, Count, Positive, Probability, Size, asarray, one_of
from ..data import Standardizer, Table, load_seattle_temps, split_by_time, windows
from ..errors import InputError
from ..layers import GRU, LSTM, RNN, Last, Linear, Sequential
from ..models import Model
from ..training import EarlyStopping, History, adam, cosine_decay
from .calendar import TimeStep
from .recipe import Forecaster, Recipe, simple_forecasts

__all__ = ["Result", "Score", "Settings", "demo", "train_forecaster", "yesterday_and_change"]

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
_VALIDATION_FRACTION = 0.125
_PATIENCE = 5


@dataclass(frozen=True)
class Settings(Configuration):
    """How to train a forecaster.

    Attributes
    ----------
    cell : "rnn", "lstm" or "gru"
    hidden_size, layers : int
    window : int, optional
        Rows to forecast from: 24, or one more than a period where that is longer, when left out.
    horizon : int
        Rows to forecast.
    period : int, optional
        Rows in a season: 24 for hours of a day. Taken from the times, where they are evenly spaced, when left out.
    epochs : int
        At most; training stops when the validation loss has not fallen for 5 epochs and takes back the best weights.
    batch_size : int
    learning_rate : float
        At the start; it falls to 0 along a cosine.
    test_fraction : float
        Part of the rows, the last ones, to test on. An eighth of the rest, its last rows, is for validation.
    seed : int
        Initial weights and batch order.
    """

    cell: Annotated[str, one_of(*CELLS)] = "gru"
    hidden_size: Size = 32
    layers: Size = 1
    window: Size | None = None
    horizon: Size = 6
    period: Size | None = None
    epochs: Size = 30
    batch_size: Size = 128
    learning_rate: Positive = 5e-3
    test_fraction: Probability = 0.2
    seed: Count = 0


@dataclass(frozen=True)
class Score:
    """The errors of one forecast on the test rows, in the target's unit."""

    name: str
    mean_absolute: float
    root_mean_square: float


@dataclass(frozen=True, eq=False)
class Result:
    """What `train_forecaster` did.

    Attributes
    ----------
    forecaster : Forecaster
    history : History
    scores : tuple of Score
        The network's first, then the baselines'.
    parts : mapping of "train", "validation", "test" to slice
        The rows whose values were forecast in each part.
    step : TimeStep or None
        Between two rows, where the times are known and evenly spaced.
    past, truth, forecast : ndarray
        Of the test: (N, window), (N, horizon), (N, horizon).
    baselines : mapping of str to ndarray (N, horizon)
    times : ndarray of datetime64 (N, window + horizon) or None
    """

    forecaster: Forecaster
    history: History
    scores: tuple[Score, ...]
    parts: Mapping[str, slice]
    step: TimeStep | None
    past: NDArray[np.float64]
    truth: NDArray[np.float64]
    forecast: NDArray[np.float64]
    baselines: Mapping[str, NDArray[np.float64]]
    times: NDArray[np.datetime64] | None

    def plot(self, path: str | os.PathLike[str] | None = None, *, title: str = "") -> Any:
        """Draw forecasts against truth; see `portable_rnn.plotting.plot_forecasts`."""
        from ..plotting import plot_forecasts

        recipe = self.forecaster.recipe
        return plot_forecasts(
            self.past,
            self.truth,
            self.forecast,
            self.baselines,
            times=self.times,
            label=recipe.target,
            unit=recipe.unit,
            name=self.scores[0].name,
            step_name=self.step.name if self.step else "row",
            title=title,
            path=path,
        )


def train_forecaster(
    table: Table,
    settings: Settings | None = None,
    *,
    backend: str | Backend | None = None,
    time: str | None = None,
    unit: str = "",
    progress: bool = True,
) -> Result:
    """Train on the first rows of a table, stop by the next, test on the last.

    The rows are divided in time order, so each value is forecast in one part only; the rows *before* a part serve as
    the windows of its first forecasts, as they would when the model is used. All that is fitted (scaling, weights, the
    choice of the simple forecast to correct) is fitted on the training rows.

    Parameters
    ----------
    table : Table
        The target need not be among its columns; it is put first then.
    settings : Settings, optional
    backend : as in `portable_rnn.backend`, optional
    time : str, optional
        The name of the time column, to be kept with the model.
    unit : str
        Of the target.
    progress : bool
        Show `Model.fit`'s progress bar.

    Returns
    -------
    Result

    Raises
    ------
    InputError
        Too few rows, or settings that don't fit each other.
    """
    settings = settings or Settings()
    if table.target not in table.columns:
        values = np.concatenate([table.targets[:, None], table.values], axis=1)
        table = Table((table.target, *table.columns), values, table.times, table.target, table.targets)
    step = TimeStep.of(table.times)
    season = _season(settings, step)
    window = settings.window or max(24, 1 + (season.period or 0))
    season = season if (season.period or 0) <= window else _Season()
    parts = _parts(len(table.values), settings, window)
    cut = {name: _windows_of(table, rows, window, settings.horizon) for name, rows in parts.items()}
    recipe = _fit_recipe(table, parts["train"], *cut["train"], settings, season, time, unit)
    network = Sequential(
        CELLS[settings.cell](recipe.scaler.mean.size, settings.hidden_size, settings.layers),
        Last(),
        Linear(settings.hidden_size, settings.horizon),
    )
    model = Model(network, backend=backend, seed=settings.seed)
    data = {name: _training_arrays(model, recipe, *cut[name]) for name in ("train", "validation")}
    updates = settings.epochs * -(-data["train"][0].shape[0] // settings.batch_size)
    history = model.fit(
        *data["train"],
        optimizer=adam(cosine_decay(settings.learning_rate, updates)),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        validation_data=data["validation"],
        clip_norm=1.0,
        callbacks=[EarlyStopping(patience=_PATIENCE)],
        progress=progress,
    )
    return _tested(Forecaster(model, recipe), history, table, parts, step, *cut["test"], settings.cell)


def demo(backend: str | Backend | None = None, *, epochs: int = 20, seed: int = 0, progress: bool = True) -> Result:
    """Forecast the next 6 hours of Seattle's temperature from the 24 hours before.

    24 hours are 25 hourly readings: the first is the same hour yesterday, without which nothing says whether today is
    warmer than yesterday was.

    Parameters
    ----------
    backend : as in `portable_rnn.backend`, optional
    epochs, seed : int
    progress : bool

    Returns
    -------
    Result
    """
    data = load_seattle_temps()
    times = data.times.astype("datetime64[us]")
    table = Table(data.columns, data.values, times, data.columns[0], data.values[:, 0])
    settings = Settings(window=25, horizon=6, epochs=epochs, seed=seed)
    return train_forecaster(table, settings, backend=backend, unit=data.units[0], progress=progress)


def yesterday_and_change(result: Result) -> NDArray[np.float64]:
    """What the demo's network is up against: yesterday's value plus the change from then to now, (N, horizon).

    A stronger rule than the two baselines where, as in climate normals, a day is the day before and a little drift.

    Parameters
    ----------
    result : Result
        Of a forecaster that sees the change since a period earlier.
    """
    recipe = result.forecaster.recipe
    earlier = result.past[:, -1 - (recipe.period or 0)]
    return result.baselines[recipe.seasonal] + (result.past[:, -1] - earlier)[:, None]


@dataclass(frozen=True)
class _Season:
    period: int | None = None
    name: str = ""


def _season(settings: Settings, step: TimeStep | None) -> _Season:
    """The settings' season, or the usual one of the times."""
    usual = _Season(step.period, step.period_name) if step else _Season()
    if settings.period is None or settings.period == usual.period:
        season = usual
    elif settings.period == 1:
        season = _Season()  # one row earlier is the last value
    else:
        season = _Season(settings.period, f"{settings.period} rows earlier")
    if settings.window is not None and (settings.period or 0) > settings.window:
        raise InputError(
            f"period: expected at most {settings.window}, the window, received {settings.period}: "
            f"use a window of {(settings.period or 0) + 1} or more"
        )
    return season


def _parts(count: int, settings: Settings, window: int) -> dict[str, slice]:
    """The rows that are forecast in each part, in time order; the first window is only looked at."""
    horizon = settings.horizon
    before, test = split_by_time(count, settings.test_fraction)
    _, validation = split_by_time(before.stop, _VALIDATION_FRACTION)
    start = {"test": min(test.start, count - horizon)}
    start["validation"] = min(validation.start, start["test"] - horizon)
    if start["validation"] < window + horizon:
        raise InputError(
            f"{count} rows: expected at least {window + horizon} of them for training (window {window}, horizon "
            f"{horizon}), {max(start['validation'], 0)} are left besides {start['test'] - start['validation']} for "
            f"validation and {count - start['test']} for the test: add rows, or choose a smaller window or horizon"
        )
    return {
        "train": slice(window, start["validation"]),
        "validation": slice(start["validation"], start["test"]),
        "test": slice(start["test"], count),
    }


def _windows_of(table: Table, rows: slice, window: int, horizon: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(N, window, columns) and the targets (N, horizon), all targets within `rows`."""
    looked_at = slice(rows.start - window, rows.stop)
    return windows(table.values[looked_at], table.targets[looked_at], window, horizon)


def _fit_recipe(
    table: Table,
    rows: slice,
    values: NDArray[Any],
    truth: NDArray[Any],
    settings: Settings,
    season: _Season,
    time: str | None,
    unit: str,
) -> Recipe:
    """All numbers and choices that are fitted before training, on the training rows alone."""
    target = table.columns.index(table.target)
    guesses = simple_forecasts(values[:, :, target], settings.horizon, season.period, season.name)
    errors = {name: float(np.mean((truth - guess) ** 2)) for name, guess in guesses.items()}
    reference = min(errors, key=lambda name: errors[name])
    fitted = Standardizer.fit(table.values[: rows.stop])
    mean, std = fitted.mean.copy(), fitted.std
    mean[target] = 0.0
    window, period = values.shape[1], season.period
    if period is not None and period < window:
        series = table.targets[: rows.stop]
        change = Standardizer.fit(series[period:] - series[:-period])
        mean, std = np.append(mean, 0.0), np.append(std, change.std)
    return Recipe(
        target=table.target,
        inputs=table.columns,
        time=time,
        window=window,
        horizon=settings.horizon,
        period=period,
        seasonal=season.name,
        reference=reference,
        scaler=Standardizer(mean, std),
        departure=math.sqrt(errors[reference]) or 1.0,
        unit=unit,
    )


def _training_arrays(model: Model, recipe: Recipe, values: NDArray[Any], truth: NDArray[Any]) -> tuple[Array, Array]:
    """What the network sees and what it should say, on the model's array library."""
    departure = truth - recipe.baselines(recipe.past(values))[recipe.reference]
    arrays = recipe.features(values), departure / recipe.departure
    return asarray(arrays[0], model.backend), asarray(arrays[1], model.backend)


def _tested(
    forecaster: Forecaster,
    history: History,
    table: Table,
    parts: Mapping[str, slice],
    step: TimeStep | None,
    values: NDArray[Any],
    truth: NDArray[Any],
    cell: str,
) -> Result:
    recipe = forecaster.recipe
    past = recipe.past(values)
    forecast = forecaster.forecast(values)
    baselines = recipe.baselines(past)
    times = None
    if table.times is not None:
        looked_at = table.times[parts["test"].start - recipe.window :]
        times = sliding_window_view(looked_at, recipe.window + recipe.horizon)
    named = {f"network ({cell.upper()})": forecast, **baselines}
    scores = tuple(_score(name, guess - truth) for name, guess in named.items())
    return Result(forecaster, history, scores, parts, step, past, truth, forecast, baselines, times)


def _score(name: str, error: NDArray[Any]) -> Score:
    return Score(name, float(np.abs(error).mean()), math.sqrt(float(np.square(error).mean())))
