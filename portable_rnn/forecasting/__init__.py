"""From a table to a trained forecaster, and from its file to forecasts."""

from .calendar import TimeStep, time_text
from .recipe import LAST_VALUE, Forecaster, Recipe, forecast_lines, load_forecaster, simple_forecasts
from .train import CELLS, Result, Score, Settings, demo, train_forecaster, yesterday_and_change

__all__ = [
    "CELLS",
    "LAST_VALUE",
    "Forecaster",
    "Recipe",
    "Result",
    "Score",
    "Settings",
    "TimeStep",
    "demo",
    "forecast_lines",
    "load_forecaster",
    "simple_forecasts",
    "time_text",
    "train_forecaster",
    "yesterday_and_change",
]
