"""Every picture that the library draws, with matplotlib (extra ``[plot]``)."""

from .forecasts import plot_forecasts
from .style import BLACK, BLUE, GREY, ORANGE, check_picture, new_figure, plain, saved
from .training import plot_gradient_flow, plot_history

__all__ = [
    "BLACK",
    "BLUE",
    "GREY",
    "ORANGE",
    "check_picture",
    "new_figure",
    "plain",
    "plot_forecasts",
    "plot_gradient_flow",
    "plot_history",
    "saved",
]
