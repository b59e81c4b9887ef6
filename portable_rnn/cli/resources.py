"""What a command needs before it computes: a backend that exists, and files that can be written."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..arrays import Backend, enable_float64
from ..arrays import backend as as_backend
from ..errors import InputError, MissingDependencyError
from ..files import check_writable as check_file
from ..plotting import check_picture

__all__ = ["check_writable", "library", "picture", "resources"]


def library(args: argparse.Namespace) -> str:
    """The name of the array library that was asked for."""
    return args.backend or os.environ.get("PORTABLE_RNN_BACKEND") or "numpy"


def resources(args: argparse.Namespace, *inputs: Path) -> tuple[Backend, Path | None]:
    """The backend and the picture's path: what can fail without training fails here, before it."""
    if args.dtype == "float64":
        enable_float64(library(args))
    target = as_backend(library(args), args.device, args.dtype)
    if inputs:
        args.save = args.save or Path(f"{inputs[0].stem}-forecast.safetensors")
        args.default_plot = Path(f"{inputs[0].stem}-forecast.png")
    check_writable(args.save, "model file", *inputs)
    return target, picture(args, args.save, *inputs)


def picture(args: argparse.Namespace, *others: Path) -> Path | None:
    """The picture's path, or None where nobody asked for it and it can't be drawn; the command's others differ."""
    plot: Path = args.plot or args.default_plot
    try:
        check_picture(plot)
    except MissingDependencyError as error:
        if args.plot is not None:
            raise
        print(f"No picture: {error}", file=sys.stderr)
        return None
    check_writable(plot, "picture", *others)
    return plot


def check_writable(path: Path, what: str, *others: Path) -> None:
    """Raise InputError where a file can't be written, or would replace another one of this command."""
    if any(path.resolve() == other.resolve() for other in others):
        raise InputError(
            f"can't write the {what} {str(path)!r}: this command uses that file otherwise: give another path"
        )
    check_file(path, what=what)
