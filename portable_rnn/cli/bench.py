"""`portable-rnn bench`: training steps and forward passes beside PyTorch's, timed on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..bench import add_options, bench
from .options import BACKEND_HELP, command
from .output import say
from .resources import check_writable, library, picture

__all__ = ["add"]


def add(commands: Any) -> None:
    """The command and its options."""
    parser = command(commands, "bench", run, "time training steps and forward passes beside PyTorch's, on this machine")
    parser.add_argument("--backend", metavar="NAME", help=BACKEND_HELP)
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 (default: the library's own)")
    add_options(parser)
    parser.set_defaults(default_plot=Path("portable-rnn-bench.png"))


def run(args: argparse.Namespace) -> None:
    args.backend = library(args)
    if args.json is not None:
        check_writable(args.json, "file of times")
    bench(args, picture(args, *([args.json] if args.json else [])), say)
