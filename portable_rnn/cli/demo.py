"""`portable-rnn demo`: forecast temperatures that come with the package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ..data import load_seattle_temps
from ..forecasting import Settings, demo, yesterday_and_change
from .options import add_backend_options, command, seed
from .output import number, say
from .resources import resources
from .results import keep, report

__all__ = ["add"]


def add(commands: Any) -> None:
    """The command and its options."""
    parser = command(commands, "demo", run, "forecast hourly temperatures that come with the package")
    add_backend_options(parser)
    parser.add_argument(
        "--seed", type=seed, default=Settings().seed, help="of weights and batches (default: %(default)s)"
    )
    save, plot = "seattle-temps-forecast.safetensors", "seattle-temps-forecast.png"
    parser.add_argument("--save", metavar="PATH", type=Path, default=save, help="model file (default: %(default)s)")
    parser.add_argument(
        "--plot", metavar="PATH", type=Path, help=f"picture of forecasts against truth (default: {plot})"
    )
    parser.set_defaults(default_plot=Path(plot))


def run(args: argparse.Namespace) -> None:
    target, plot = resources(args)
    data = load_seattle_temps()
    say(f"Data: {len(data.values):,} hourly temperatures of Seattle in {data.units[0]} ({data.source})")
    say("These are climate normals: for each hour of the year the mean over thirty years, not measured weather. Real")
    say("weather is much harder to forecast, and the errors below say nothing about it.")
    say("In: the last 24 hours, which are 25 readings (the first is the same hour yesterday). Out: the next 6 hours.")
    result = demo(target, seed=args.seed)
    report(result)
    rule = number(float(np.abs(yesterday_and_change(result) - result.truth).mean()))
    say("A rule without learning is hard to beat on data this smooth: yesterday's value plus the change since then")
    say(f"has MAE {rule}.")
    keep(result, args.save, plot, title="Hourly temperature normals of Seattle (NOAA): 24 hours in, 6 hours out")
