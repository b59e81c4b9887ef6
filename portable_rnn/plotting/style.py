"""What all pictures share: colours, axes, sizes and saving.

Every picture is a `matplotlib.figure.Figure` of its own, so no global state of pyplot is touched, no window opens and
any backend of matplotlib works. The colours are those of Okabe and Ito, which colour-blind readers tell apart; lines
also differ in dashes or markers, for print in grey.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingDependencyError, printable
from ..files import replacing

__all__ = [
    "BASELINE_STYLES",
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "STYLES",
    "check_picture",
    "literal",
    "new_figure",
    "plain",
    "saved",
]


BLACK, GREY, BLUE, ORANGE, GREEN, PURPLE = "#000000", "#8c8c8c", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
BASELINE_STYLES = ((ORANGE, "--", "s"), (GREEN, ":", "^"), (PURPLE, "-.", "D"))
# Of the forecast and of up to three baselines, wherever errors are drawn
STYLES = tuple(
    {"color": color, "linestyle": dashes, "marker": marker, "markersize": 4.5, "markerfacecolor": "white"}
    for color, dashes, marker in ((BLUE, "-", "o"), *BASELINE_STYLES)
)
_DOTS_PER_INCH = 150


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise where a picture could not be drawn or not be saved as the path's ending says.

    Parameters
    ----------
    path : path

    Raises
    ------
    MissingDependencyError
        matplotlib is not installed.
    InputError
        No format has that ending.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "plot", "drawing a picture") from error
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in formats:
        raise InputError(
            f"picture {str(path)!r}: expected one of the endings {', '.join(formats)}, received {ending!r}"
        )


def literal(text: str) -> str:
    """A column's name, whose dollar signs begin no formula and whose control characters are written out."""
    return printable(text).replace("$", r"\$")


def plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def new_figure(width: float, height: float) -> Any:
    """A figure that belongs to nobody's pyplot state; inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "plot", "drawing a picture") from error
    return Figure(figsize=(width, height), layout="constrained", dpi=_DOTS_PER_INCH)


def saved(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    if path is not None:
        check_picture(path)
        with replacing(path, what="picture") as file:
            figure.savefig(file, format=Path(path).suffix.removeprefix("."))
    return figure
