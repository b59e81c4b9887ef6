"""`portable-rnn train`: learn to forecast a column of a CSV file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data import Table, read_csv
from ..errors import printable
from ..forecasting import CELLS, Settings, TimeStep, time_text, train_forecaster
from .options import add_backend_options, command, count, fraction, names, positive, seed
from .output import say
from .resources import resources
from .results import keep, report

__all__ = ["add"]

DEFAULTS = Settings()


def add(commands: Any) -> None:
    """The command and its options."""
    parser = command(commands, "train", run, "learn to forecast a column of a CSV file")
    add = parser.add_argument
    add("file", metavar="FILE.csv", type=Path, help="a header line, then numbers, oldest row first")
    add("--target", metavar="COLUMN", required=True, help="what to forecast; its past is always an input")
    add("--inputs", metavar="A,B,...", type=names, help="columns to forecast from (default: every column of numbers)")
    add("--time", metavar="COLUMN", help="column with ISO 8601 times (default: the first that holds such times)")
    add("--cell", choices=list(CELLS), default=DEFAULTS.cell, help="(default: %(default)s)")
    _add_number(parser, "--hidden-size", "units of a layer")
    _add_number(parser, "--layers", "recurrent layers")
    add("--window", metavar="N", type=count, help="rows to look at (default: 24, or a period and one row if longer)")
    _add_number(parser, "--horizon", "rows to forecast")
    text = "rows in a season, as 24 for hours of a day (default: taken from the times, else none)"
    add("--period", metavar="N", type=count, help=text)
    _add_number(parser, "--epochs", "at most; training stops when the validation loss no longer falls")
    _add_number(parser, "--batch-size", "windows in an update")
    _add_number(parser, "--learning-rate", "of Adam at the start, falling to 0", positive)
    _add_number(parser, "--test-fraction", "part of the rows, the last ones, to test on", fraction)
    _add_number(parser, "--seed", "of weights and batches", seed)
    add("--save", metavar="PATH", type=Path, help="model file (default: FILE-forecast.safetensors in this folder)")
    add("--plot", metavar="PATH", type=Path, help="picture (default: FILE-forecast.png in this folder)")
    add("--quiet", action="store_true", help="print test errors and file names only")
    add_backend_options(parser)


def _add_number(
    parser: argparse.ArgumentParser, flag: str, help: str, kind: Callable[[str], Any] | None = None
) -> None:
    default = getattr(DEFAULTS, flag[2:].replace("-", "_"))
    parser.add_argument(flag, metavar="N", type=kind or count, default=default, help=f"{help} (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    target, plot = resources(args, args.file)
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    table = _read(args.file, args.target, args.inputs, args.time)
    if not args.quiet:
        _describe(args.file, table)
    result = train_forecaster(table, settings, backend=target, time=args.time, progress=not args.quiet)
    recipe = result.forecaster.recipe
    if not args.quiet:
        inputs = ", ".join(map(printable, recipe.inputs))
        say(f"In: {inputs} over {recipe.window} rows. Out: {printable(recipe.target)} over {recipe.horizon}.")
    report(result, brief=args.quiet)
    keep(result, args.save, plot)


def _read(path: Path, target: str, inputs: list[str] | None, time: str | None) -> Table:
    if inputs is not None:
        inputs = [target, *(name for name in inputs if name != target)]
    return read_csv(path, target=target, inputs=inputs, time=time)


def _describe(path: Path, table: Table) -> None:
    if table.times is None:
        times = "no time column"
    else:
        step = TimeStep.of(table.times)
        first, last = time_text(table.times[[0, -1]])
        even = f"one {step.name} apart" if step and step.name != "step" else "evenly spaced"
        times = f"{first} to {last}, {even if step else 'NOT evenly spaced: rows are counted as if they were'}"
    say(f"Data: {path}, {len(table.values):,} rows, {times}")
