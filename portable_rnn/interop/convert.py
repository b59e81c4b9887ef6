"""Model files from one format to another, and what a model file says about itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, printable
from ..files import parse_json, replacing
from ..layers import Layer
from ..models import Model, not_finite, read_checkpoint
from .common import require
from .keras import from_keras
from .keras_export import to_keras
from .onnx.importing import from_onnx
from .onnx.writing import to_onnx
from .state_dict_files import TORCH_SUFFIXES
from .state_dict_gaps import Activations
from .torch import from_torch
from .torch_export import to_torch

__all__ = ["SUFFIXES", "convert", "describe", "read_model"]

SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".keras", ".onnx")

# Keys of the passport and of a conversion's metadata, in the order that they are shown
_SHOWN = {
    "format_version": "format version",
    "library_version": "written by portable_rnn",
    "gate_order": "gate order",
    "gru_variant": "GRU variant",
    "bias_convention": "biases",
    "array_layout": "arrays",
    "loss": "trained with loss",
    "user.source_framework": "source",
    "user.source_version": "source version",
    "user.source_type": "source type",
    "user.source_file": "source file",
    "user.conversion_check": "conversion check",
    "user.conversion_notes": "conversion notes",
}


def convert(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    *,
    pooling: str | None = "auto",
    activations: Activations = None,
    nonlinearity: str | None = None,
    order: Sequence[str] | None = None,
) -> Model:
    """Read a model file of one format and write it as another; the suffixes say which.

    ``.safetensors`` is a model with its passport, or a state dict of torch when read; ``.pt``, ``.pth`` and ``.bin``
    are torch's state dicts; ``.keras`` and ``.onnx`` whole models.

    Parameters
    ----------
    path_in, path_out : path
    pooling, activations, nonlinearity, order
        As in `portable_rnn.from_torch`, where a state dict leaves something open.

    Returns
    -------
    Model
        What was read and written.

    Raises
    ------
    InputError
        An unknown suffix, a damaged file, or a network that the other format can't express.
    ConversionError
        The result does not give the source's outputs.
    MissingDependencyError
        The framework of one of the formats is not installed.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, safetensors.numpy
    >>> folder = tempfile.mkdtemp()
    >>> source, target = (os.path.join(folder, name) for name in ("torch.safetensors", "ours.safetensors"))
    >>> safetensors.numpy.save_file({"weight": np.ones((2, 3)), "bias": np.ones(2)}, source)
    >>> convert(source, target).network
    Linear(3, 2)
    """
    source, target = Path(path_in), Path(path_out)
    if target.suffix not in SUFFIXES:
        raise InputError(f"{target} has an unknown suffix: expected one of {', '.join(SUFFIXES)}")
    if source.resolve() == target.resolve():
        raise InputError(f"{source} would be written over itself: name another file to write")
    model = read_model(source, pooling=pooling, activations=activations, nonlinearity=nonlinearity, order=order)
    model.metadata.setdefault("source_file", printable(source.name))
    _write(model, target)
    return model


def read_model(
    path: str | os.PathLike[str],
    *,
    pooling: str | None = "auto",
    activations: Activations = None,
    nonlinearity: str | None = None,
    order: Sequence[str] | None = None,
) -> Model:
    """Read a model file of any format that `convert` reads; its arguments and errors are those of `convert`."""
    source = Path(path)
    if source.suffix not in SUFFIXES:
        raise InputError(f"{source} has an unknown suffix: expected one of {', '.join(SUFFIXES)}")
    open_ones = (pooling != "auto", activations is not None, nonlinearity is not None, order is not None)
    if any(open_ones) and source.suffix in (".keras", ".onnx"):
        raise InputError(f"{source} says itself what it holds: leave out pooling, activations, nonlinearity and order")
    if not source.is_file():
        raise InputError(f"no file at {source}")
    if source.suffix == ".keras":
        return from_keras(source)
    if source.suffix == ".onnx":
        return from_onnx(source)
    return from_torch(source, pooling=pooling, activations=activations, nonlinearity=nonlinearity, order=order)


def _write(model: Model, target: Path) -> None:
    if target.suffix == ".safetensors":
        model.save(target)
    elif target.suffix == ".onnx":
        to_onnx(model, target)
    elif target.suffix == ".keras":
        built = to_keras(model)
        with replacing(target, suffix=".keras") as file:
            built.save(file.name)
    else:
        module = to_torch(model)
        torch = require("torch", "torch", f"writing {target.name}")
        with replacing(target) as file:
            torch.save(module.state_dict(), file)


def describe(path: str | os.PathLike[str]) -> str:
    """The passport of a file that `Model.save` wrote, as text.

    Parameters
    ----------
    path : path

    Returns
    -------
    str
        One line for each layer, then the conventions that the arrays follow and where the model came from.

    Raises
    ------
    InputError
        No such file, cut short, of another kind, or of a newer format.

    Examples
    --------
    >>> import os, tempfile
    >>> import portable_rnn as prnn
    >>> path = os.path.join(tempfile.mkdtemp(), "m.safetensors")
    >>> prnn.Model(prnn.Sequential(prnn.GRU(1, 8), prnn.Last(), prnn.Linear(8, 1))).save(path)
    >>> print("\\n".join(describe(path).splitlines()[1:5]))
    network: 273 parameters of float32
      0: GRU(1, 8)
      1: Last()
      2: Linear(8, 1)
    """
    network, params, metadata, passport = read_checkpoint(path, finite=False)
    count = sum(int(np.prod(value.shape)) for value in params.values())
    kinds = ", ".join(sorted({value.dtype.name for value in params.values()})) or "no dtype"
    lines = [str(path), f"network: {count:,} parameters of {kinds}", *_layers(network)]
    for key, title in _SHOWN.items():
        if key in passport:
            lines.append(f"{title}: {_readable(passport[key])}")
    lines += [f"{key}: {value}" for key, value in metadata.items() if f"user.{key}" not in _SHOWN]
    lines += [f"NOT FINITE: parameter {name!r} holds {what}" for name, what in not_finite(params).items()]
    return "\n".join(printable(line, limit=4000) for line in lines)


def _layers(network: Layer) -> list[str]:
    parts = network.children().values() or (network,)
    return [f"  {k}: {layer}" for k, layer in enumerate(parts)]


def _readable(value: str) -> str:
    """A passport's value; those that are JSON as words."""
    try:
        found = parse_json(value, "the entry")
    except InputError:
        return value
    return ", ".join(f"{name} {order}" for name, order in found.items()) if isinstance(found, dict) else value
