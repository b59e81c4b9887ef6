"""`portable-rnn backends`: which array libraries this machine has."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..arrays import NAMES, BackendInfo, backends
from .options import command
from .output import say, say_table

__all__ = ["add"]


def add(commands: Any) -> None:
    """The command and its options."""
    parser = command(commands, "backends", run, "which array libraries this machine has")
    parser.add_argument("--backend", metavar="NAME", choices=NAMES, help="look at this one only")


def run(args: argparse.Namespace) -> None:
    found = [info for info in backends() if args.backend in (None, info.name)]
    rows = [("library", "version", "here", "devices"), *map(_backend_row, found)]
    say_table(rows, right=())
    for info in found:
        if not info.available:
            say(f"{info.name}: {_why_not(info)}")
    if not args.backend:
        default = os.environ.get("PORTABLE_RNN_BACKEND")
        say(f"Without --backend: {default} (from $PORTABLE_RNN_BACKEND)" if default else "Without --backend: numpy")


def _backend_row(info: BackendInfo) -> tuple[str, str, str, str]:
    return info.name, info.version or "-", "yes" if info.available else "no", ", ".join(info.devices) or "-"


def _why_not(info: BackendInfo) -> str:
    reason = info.reason.partition("; `portable-rnn backends`")[0]
    if info.name == "cupy" and info.version is not None:
        return f"installed, but its arithmetic can't run here and has not been run here ({reason})"
    return reason
