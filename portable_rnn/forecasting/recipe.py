"""A trained forecaster: a model, and the recipe that turns rows into its inputs and its outputs into forecasts.

The network sees `window` rows and forecasts the target over the `horizon` rows after them. What it learns is what a
simple forecast (the last value, or the value one period earlier) leaves over. Its inputs, at each row of the window:

- the target, as its difference from the last value of the window, so that a level never met in training does no harm;
- the other columns;
- the target's change since the row one period earlier, 0 where that row lies before the window. This one is left out
  where the window is no longer than a period.

All are scaled by means and deviations of the training rows. Nothing else is looked at, so a forecast needs exactly
`window` rows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..arrays import asarray, to_numpy
from ..arrays import backend as as_backend
from ..data import Standardizer, Table, last_value, same_time_last_period
from ..errors import InputError
from ..files import Integer, Json, Number, record_of
from ..models import Model, load
from .calendar import TimeStep, time_text

__all__ = ["LAST_VALUE", "Forecaster", "Recipe", "forecast_lines", "load_forecaster", "simple_forecasts"]

LAST_VALUE = "last value"
_METADATA_KEY = "forecaster"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a forecaster needs beside its network. It is saved with the model, as JSON.

    Attributes
    ----------
    target : str
    inputs : tuple of str
        The columns, in the network's order, the target among them.
    time : str or None
        The time column, where the user named one.
    window, horizon : int
    period : int or None
        Rows in a season, at most `window`.
    seasonal : str
        What the forecast of the value one period earlier is called; empty without a period.
    reference : str
        The simple forecast that the network corrects: `LAST_VALUE` or `seasonal`.
    scaler : Standardizer
        Of the inputs, then of the change since a period earlier where the network sees it. The target and the change
        are differences, so their mean is 0 here.
    departure : float
        What an output of 1 means, in the target's unit.
    unit : str
        Of the target; empty where unknown.
    """

    target: str
    inputs: tuple[str, ...]
    time: str | None
    window: Annotated[int, Integer(1)]
    horizon: Annotated[int, Integer(1)]
    period: Annotated[int, Integer(1)] | None
    seasonal: str
    reference: str
    scaler: Standardizer
    departure: Annotated[float, Number(above=0)]
    unit: str = ""

    def __post_init__(self) -> None:
        features = len(self.inputs) + self.sees_change
        if not (
            min(self.window, self.horizon) >= 1
            and (self.period is None or 1 <= self.period <= self.window)
            and self.target in self.inputs
            and self.reference in (LAST_VALUE, *([self.seasonal] if self.period else []))
            and self.scaler.mean.size == features
            and 0 < self.departure < math.inf
        ):
            raise InputError(f"a forecasting recipe whose parts don't fit each other: {self}")

    @property
    def sees_change(self) -> bool:
        """Whether the change since one period earlier is an input."""
        return self.period is not None and self.period < self.window

    def to_json(self) -> str:
        """The recipe as text, without loss."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields | {"version": _VERSION, "scaler": self.scaler.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote.

        Parameters
        ----------
        text : str

        Raises
        ------
        InputError
            The text is no recipe, or one of a newer version.
        """
        try:
            recipe: Recipe = Json(_RECIPE).read(text, "recipe")
        except InputError as error:
            raise InputError(
                f"the model's forecasting recipe can't be used: {error}: train and save it again"
            ) from error
        return recipe

    def past(self, values: NDArray[Any]) -> NDArray[Any]:
        """The target (N, window) among the columns (N, window, columns)."""
        return values[:, :, self.inputs.index(self.target)]

    def features(self, values: NDArray[Any]) -> NDArray[Any]:
        """The network's inputs.

        Parameters
        ----------
        values : ndarray (N, window, columns)

        Returns
        -------
        ndarray (N, window, features)
        """
        past = self.past(values)
        values = values.copy()
        values[:, :, self.inputs.index(self.target)] -= past[:, -1:]
        if self.period is not None and self.sees_change:
            change = np.zeros_like(past)
            change[:, self.period :] = past[:, self.period :] - past[:, : -self.period]
            values = np.concatenate([values, change[:, :, None]], axis=2)
        return self.scaler.transform(values)

    def baselines(self, past: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The simple forecasts by name: the seasonal one, where there is a period, and the last value.

        Parameters
        ----------
        past : ndarray (N, window)

        Returns
        -------
        dict of str to ndarray (N, horizon)
        """
        return simple_forecasts(past, self.horizon, self.period, self.seasonal)


def _of_version(version: int, **fields: Any) -> Recipe:
    if version != _VERSION:
        raise InputError(f"it has version {version}, this portable_rnn reads {_VERSION}: upgrade portable-rnn")
    return Recipe(**fields)


_FIELDS = record_of(Recipe, make=_of_version)
_RECIPE = replace(_FIELDS, fields={"version": Integer(), **_FIELDS.fields})


@dataclass(frozen=True)
class Forecaster:
    """A trained model with its recipe.

    Attributes
    ----------
    model : Model
    recipe : Recipe
    """

    model: Model
    recipe: Recipe

    def __post_init__(self) -> None:
        network, recipe = self.model.network, self.recipe
        features = recipe.scaler.mean.size
        if network.keeps_time or network.takes_integers or (network.in_width or features) != features:
            raise InputError(f"a forecaster's network must take {features} features and return one row, got {network}")
        if network.out_width(features) != recipe.horizon:
            raise InputError(f"a forecaster's network must return {recipe.horizon} values, the horizon, got {network}")

    def forecast(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Forecasts in the target's unit.

        Parameters
        ----------
        values : ndarray (N, window, columns)
            The columns of `recipe.inputs`, oldest row first.

        Returns
        -------
        ndarray of float64 (N, horizon)
        """
        with np.errstate(over="ignore", invalid="ignore"):  # the model refuses what is not finite
            x = asarray(self.recipe.features(values), self.model.backend)
        departure = to_numpy(self.model.predict(x, batch_size=1024)).astype(np.float64)
        reference = self.recipe.baselines(self.recipe.past(values))[self.recipe.reference]
        with np.errstate(over="ignore", invalid="ignore"):
            forecast = reference + departure * self.recipe.departure
        if not np.isfinite(forecast).all():
            raise InputError(
                "forecast: expected finite numbers, got NaN or an infinity: the values or the model's weights are too "
                "large; check the data, or train again"
            )
        return forecast

    def forecast_table(self, table: Table, *, every: bool = False) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Forecasts after a table's last row, or after every row that ends a whole window.

        Parameters
        ----------
        table : Table
            Its columns are `recipe.inputs`.
        every : bool

        Returns
        -------
        rows : ndarray (N,)
            The number, from 0, of the last row that each forecast was made from.
        forecasts : ndarray (N, horizon)

        Raises
        ------
        InputError
            Fewer rows than a window, or other columns.
        """
        window, count = self.recipe.window, len(table.values)
        if table.columns != self.recipe.inputs:
            raise InputError(f"expected the columns {self.recipe.inputs}, received {table.columns}")
        if count < window:
            raise InputError(
                f"expected at least {window} rows, the model's window, received {count}: "
                f"put {window - count} more before the first one"
            )
        rows = np.arange(window - 1 if every else count - 1, count)
        values = sliding_window_view(table.values, window, axis=0).swapaxes(1, 2)
        return rows, self.forecast(values if every else values[-1:])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write model and recipe to one file.

        Parameters
        ----------
        path : path
        """
        self.model.metadata[_METADATA_KEY] = self.recipe.to_json()
        self.model.save(path)


def load_forecaster(path: str | os.PathLike[str], backend: str | None = None, dtype: str | None = None) -> Forecaster:
    """Load what `Forecaster.save` wrote.

    Parameters
    ----------
    path : path
    backend : str, optional
        As in `portable_rnn.backend`.
    dtype : "float32" or "float64", optional
        The file's when left out.

    Raises
    ------
    InputError
        No such file, cut short, of another kind, or a model without a forecasting recipe.
    """
    model = load(path, backend=as_backend(backend).name, dtype=dtype)
    recipe = model.metadata.get(_METADATA_KEY)
    if recipe is None:
        raise InputError(
            f"{path} is a portable_rnn model without a forecasting recipe: "
            "expected a file that `portable-rnn train` or `portable-rnn demo` saved"
        )
    return Forecaster(model, Recipe.from_json(recipe))


def forecast_lines(
    table: Table, rows: NDArray[np.int64], forecasts: NDArray[np.float64], *, numbered: bool = False
) -> Iterator[list[str]]:
    """Forecasts as lines of text cells, the header first: step, time where it is known, forecast.

    Parameters
    ----------
    table : Table
        What was forecast from; it has the times, which are used where they are evenly spaced.
    rows, forecasts : ndarray
        What `Forecaster.forecast_table` returned.
    numbered : bool
        Begin each line with ``after_row``, the number, from 1, of the table's last row that was looked at.
    """
    step = TimeStep.of(table.times)
    ahead = range(1, forecasts.shape[1] + 1)
    columns = {"after_row": numbered, "step": True, "time": step is not None, "forecast": True}
    yield [name for name, shown in columns.items() if shown]
    for row, forecast in zip(rows, forecasts, strict=True):
        times = [""] * len(ahead)
        if step is not None and table.times is not None:
            times = time_text(step.after(table.times[row], len(ahead)))
        for number, time, value in zip(ahead, times, forecast, strict=True):
            cells = {"after_row": str(row + 1), "step": str(number), "time": time, "forecast": f"{value:.9g}"}
            yield [cells[name] for name, shown in columns.items() if shown]


def simple_forecasts(past: NDArray[Any], horizon: int, period: int | None, seasonal: str) -> dict[str, NDArray[Any]]:
    """What to beat; see `Recipe.baselines`."""
    found = {} if period is None else {seasonal: same_time_last_period(past, horizon, period)}
    return found | {LAST_VALUE: last_value(past, horizon)}
