"""The commands of `portable-rnn`, and how they end.

What goes wrong through bad input ends with one line on stderr and exit code 2, an interruption with 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import InputError, MissingDependencyError, NonFiniteError
from ..version import __version__
from . import backends, bench, convert, demo, predict, train, verify
from .output import PROGRAM, fail

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``portable-rnn``; those of the process when left out.

    Returns
    -------
    int
        The exit code: 0, 2 after bad input, 130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that can't show "°" gets "?" instead of a traceback
    try:
        code = args.run(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except (InputError, MissingDependencyError, NonFiniteError) as error:
        return fail(2, f"error: {error}")
    except KeyboardInterrupt:
        return fail(130, "interrupted")
    except BrokenPipeError:
        # as in `portable-rnn ... | head`; what is still in the buffer must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return int(code)


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options.

    Returns
    -------
    argparse.ArgumentParser
        Without parameters to describe: ``build_parser().parse_args(["demo"])``.
    """
    parser = _Parser(prog=PROGRAM, description="Train recurrent networks to forecast, on any array library.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (demo, train, predict, convert, verify, backends, bench):
        module.add(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        raise SystemExit(fail(2, f"error: {message} (see `{self.prog} --help`)"))
