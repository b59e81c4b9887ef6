"""`portable-rnn verify`: a model checked on every array library, device and dtype of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..arrays import DTYPES, NAMES, enable_float64
from ..verify import verify
from .options import command
from .output import say

__all__ = ["add"]


def add(commands: Any) -> None:
    """The command and its options."""
    parser = command(commands, "verify", run, "check a model on every array library of this machine")
    files = "a model file: .safetensors, .keras, .onnx, or a state dict of torch"
    parser.add_argument("model", metavar="MODEL", type=Path, help=files)
    parser.add_argument(
        "--backend", action="append", choices=NAMES, help="this one only; may be repeated (default: all)"
    )
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="this one only (default: both)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    from ..interop import read_model

    dtypes = args.dtype or DTYPES
    if "float64" in dtypes:
        for name in args.backend or NAMES:
            enable_float64(name)
    report = verify(read_model(args.model), args.backend or "all", dtypes)
    say(report.to_json() if args.json else str(report))
    return 0 if report.passed else 1
