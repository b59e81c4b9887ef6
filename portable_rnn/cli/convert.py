"""`portable-rnn convert` and `info`: model files of other frameworks, and what a file says of itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import printable
from .options import command, functions, names
from .output import say

__all__ = ["add"]


def add(commands: Any) -> None:
    """The two commands and their options."""
    parser = command(commands, "convert", run, "turn a model file of one framework into another's")
    files = "a model (.safetensors, .keras, .onnx) or a state dict of torch (.safetensors, .pt, .pth, .bin)"
    parser.add_argument("source", metavar="IN", type=Path, help=files)
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write; its suffix says which kind")
    text = "what follows the last recurrent layer of a state dict, which doesn't say"
    parser.add_argument("--pooling", choices=("none", "last", "ends", "mean", "max"), help=text)
    text = (
        "what stands where a state dict leaves a place open, such as relu: one for all, or one for each; none: nothing"
    )
    parser.add_argument("--activations", metavar="A,B,...", type=functions, help=text)
    parser.add_argument("--nonlinearity", choices=("tanh", "relu"), help="of an RNN in a state dict, which doesn't say")
    parser.add_argument("--order", metavar="A,B,...", type=names, help="a state dict's layers in the order they run")

    parser = command(commands, "info", run_info, "what a model file (.safetensors) says about itself")
    parser.add_argument("file", metavar="FILE", type=Path)


def run(args: argparse.Namespace) -> None:
    from ..interop import convert

    pooling = {None: "auto", "none": None}.get(args.pooling, args.pooling)
    asked = {name: getattr(args, name) for name in ("activations", "nonlinearity", "order")}
    model = convert(args.source, args.target, pooling=pooling, **asked)
    say(f"{args.source} -> {args.target}: {model.network}")
    for key in ("conversion_check", "conversion_notes"):
        if key in model.metadata:
            say(printable(model.metadata[key], limit=10_000))


def run_info(args: argparse.Namespace) -> None:
    from ..interop import describe

    say(describe(args.file))
