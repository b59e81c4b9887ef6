"""`portable-rnn predict`: forecast what follows the last row of a CSV file."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from ..arrays import DTYPES, enable_float64
from ..data import read_csv
from ..errors import InputError
from ..files import write_file
from ..forecasting import forecast_lines, load_forecaster
from .options import BACKEND_HELP, command
from .output import write_csv
from .resources import check_writable, library

__all__ = ["add"]


def add(commands: Any) -> None:
    """The command and its options."""
    parser = command(commands, "predict", run, "forecast what follows the last row of a CSV file, as CSV")
    parser.add_argument("model", metavar="MODEL", type=Path, help="file that train or demo saved")
    parser.add_argument("file", metavar="FILE.csv", type=Path, help="with the columns that the model was trained on")
    parser.add_argument("--all", action="store_true", help="forecast after every row that ends a whole window")
    parser.add_argument("--output", metavar="OUT.csv", type=Path, help="where to write (default: stdout)")
    parser.add_argument("--backend", metavar="NAME", help=BACKEND_HELP)
    parser.add_argument("--dtype", choices=DTYPES, help="to compute in (default: the model's)")


def run(args: argparse.Namespace) -> None:
    if args.output is not None:
        check_writable(args.output, "output", args.model, args.file)
    if args.dtype == "float64":
        enable_float64(library(args))
    forecaster = load_forecaster(args.model, library(args), args.dtype)
    recipe = forecaster.recipe
    try:
        table = read_csv(args.file, target=recipe.target, inputs=recipe.inputs, time=recipe.time)
        rows, forecasts = forecaster.forecast_table(table, every=args.all)
    except InputError as error:
        raise InputError(f"{error} (the model's columns: {', '.join(recipe.inputs)})") from error
    lines = forecast_lines(table, rows, forecasts, numbered=args.all)
    if args.output is None:
        write_csv(sys.stdout, lines)
        return
    text = io.StringIO()
    write_csv(text, lines)
    write_file(args.output, text.getvalue().encode())
