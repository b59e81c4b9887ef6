"""The picture of a run: how this library's time compares to PyTorch's and to the floor."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import numpy as np

from ..plotting import BLACK, BLUE, GREY, ORANGE, new_figure, plain, saved
from .cases import CELLS, KINDS
from .report import FLOOR, Run, gemm_rate, with_ratios

__all__ = ["draw"]

_TOP = 20.0  # a small layer's products take next to no time: its ratio to them would flatten all others


def draw(run: Run, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the ratios of a run: a column for each cell, a row each for torch and for the floor.

    Ratios above 20 stand as numbers at the upper edge.

    Parameters
    ----------
    run : dict
        As `command.run` returns it.
    path : path, optional
        Where to save the picture; its ending chooses the format.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        The path can't be written.
    MissingDependencyError
        matplotlib is not installed.
    """
    run = with_ratios(run)
    ours = run["ours"]
    cells = [cell for cell in CELLS if any(case["cell"] == cell for case in run["cases"])]
    sizes = list(dict.fromkeys(tuple(case["size"]) for case in run["cases"]))
    titles = {"torch": "time / time of torch.nn", FLOOR: "time / time of the products alone"}
    rows = [name for name in titles if any(name in case["ratios"][ours] for case in run["cases"])]
    width = max(3.4 * len(cells), 5.0)
    figure = new_figure(width, 2.9 * len(rows) + 1.2)
    grid = figure.subplots(len(rows), len(cells), sharex=True, sharey="row", squeeze=False)
    for row, against in enumerate(rows):
        for column, cell in enumerate(cells):
            axes = grid[row, column]
            cases = [case for case in run["cases"] if case["cell"] == cell]
            _draw_ratios(axes, cases, ours, against, sizes)
            if row == 0:
                axes.set_title(cell)
            if column == 0:
                axes.set_ylabel(titles[against])
            if row == len(rows) - 1:
                axes.set_xticks(range(len(sizes)), [", ".join(map(str, size)) for size in sizes], rotation=40)
                for label in axes.get_xticklabels():
                    label.set(ha="right", rotation_mode="anchor", fontsize="small")
                axes.set_xlabel("batch, steps, inputs, hidden units")
    for axes in grid[:, 0]:
        _readable_scale(axes)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    machine = run["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {gemm_rate(run) / 1e9:.0f} GFLOP/s in products; "
    where += f"medians and quartiles of {run['settings']['rounds']} rounds"
    where = textwrap.fill(where, int(11 * width))  # about as many letters as an inch holds
    figure.suptitle(f"portable_rnn on {ours.removeprefix('ours-')}, float32: below 1 is faster\n{where}", fontsize=11)
    return saved(figure, path)


def _draw_ratios(axes: Any, cases: list[dict[str, Any]], ours: str, against: str, sizes: list[Any]) -> None:
    """Medians as marks, quartiles as bars; what lies above `_TOP` as its number at the upper edge."""
    axes.axhline(1, color=BLACK, linewidth=1.2, zorder=1)
    styles = {"train": (BLUE, "o", "-", -0.1), "forward": (ORANGE, "s", "--", 0.1)}
    for level, (kind, (color, marker, dashes, shift)) in enumerate(styles.items()):
        found = [(sizes.index(tuple(c["size"])), c["ratios"][ours].get(against)) for c in cases if c["kind"] == kind]
        points = [(k, ratio) for k, ratio in found if ratio is not None]
        if not points:
            continue
        x = np.array([k for k, _ in points]) + shift
        low, middle, high = (np.array([ratio[name] for _, ratio in points]) for name in ("low", "median", "high"))
        inside = middle <= _TOP
        shown = np.where(inside, middle, np.nan)
        style = {"color": color, "marker": marker, "markersize": 5, "linestyle": dashes, "linewidth": 1}
        bars = np.where(inside, (middle - low, np.minimum(high, _TOP) - middle), 0)
        axes.errorbar(x, shown, yerr=bars, elinewidth=2.5, label=KINDS[kind], **style)
        for k, value in zip(x[~inside], middle[~inside], strict=True):
            place = {"xycoords": axes.get_xaxis_transform(), "color": color, "fontsize": "small", "ha": "center"}
            axes.annotate(f"↑{value:,.0f}", (k - shift, 0.93 - 0.09 * level), **place)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    plain(axes)
    axes.grid(axis="y", which="minor", color=GREY, alpha=0.15, linewidth=0.5)


def _readable_scale(axes: Any) -> None:
    """Ticks such as 0.5, 1, 2, 5 on a logarithmic axis that may span less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    row = axes.get_shared_y_axes().get_siblings(axes)
    outside = any(one.texts for one in row)
    low, high = min(low, 0.8), 2.5 * _TOP if outside else max(high, 1.25)
    axes.set_ylim(low, high)
    fine = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 6 else (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=fine))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
