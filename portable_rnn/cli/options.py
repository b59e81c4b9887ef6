"""What the commands' options have in common: the kinds of their values, and the choice of a library."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable
from typing import Any

from ..arrays import DTYPES, NAMES

__all__ = [
    "BACKEND_HELP",
    "add_backend_options",
    "command",
    "count",
    "fraction",
    "functions",
    "names",
    "positive",
    "seed",
]

BACKEND_HELP = f"array library: {', '.join(NAMES)} (default: $PORTABLE_RNN_BACKEND, or numpy)"

Run = Callable[[argparse.Namespace], int | None]


def command(commands: Any, name: str, run: Run, help: str) -> argparse.ArgumentParser:
    """A command with its one line of help; `run` returns its exit code, None for 0."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Which library, device and dtype to compute with."""
    parser.add_argument("--backend", metavar="NAME", help=BACKEND_HELP)
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 (default: the library's own)")
    parser.add_argument("--dtype", choices=DTYPES, help="to compute in (default: float32)")


def names(text: str) -> list[str]:
    """The names between commas; quotes around one that has a comma itself."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]


def functions(text: str) -> str | list[str]:
    """One name of an activation, or a list of those between commas; a comma within brackets belongs to a name."""
    names = [name.strip() for name in re.split(r",(?![^(]*\))", text)]
    return names[0] if len(names) == 1 else names


def _kind(parse: Callable[[str], Any], holds: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """A type for argparse that says what it expected."""

    def convert(text: str) -> Any:
        try:
            number = parse(text)
        except ValueError:
            number = None
        if number is None or not holds(number):
            raise argparse.ArgumentTypeError(f"expected {expected}, received {text!r}")
        return number

    return convert


count = _kind(int, lambda number: number >= 1, "a whole number of at least 1")
seed = _kind(int, lambda number: number >= 0, "a whole number of at least 0")
positive = _kind(float, lambda number: 0 < number < float("inf"), "a positive number")
fraction = _kind(float, lambda number: 0 < number < 1, "a number between 0 and 1")
