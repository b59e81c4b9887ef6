"""Every picture that the library draws, with matplotlib (extra ``[plot]``)."""

from .pictures import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    check_picture,
    new_figure,
    plain,
    plot_forecasts,
    plot_gradient_flow,
    plot_history,
    saved,
)

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
