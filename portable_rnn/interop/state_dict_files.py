"""State dicts in files and in memory, as NumPy arrays: what is no plain array of numbers is refused by its name."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import InputError
from ..models import FORMAT, Model, load
from .common import HostParams, first_line, require, tensor_to_host
from .pickles import Foreign
from .torch_file import FileTensor, OtherTensor, array_of_tensor, read_torch_file

__all__ = ["TORCH_SUFFIXES", "host_arrays", "read_state_dict"]

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Tensors that share a storage, as tied weights do, become arrays of their own: at most so many times the storages
_SHARED = 4
_LONGEST_NAME = 1000


def read_state_dict(path: str | os.PathLike[str], backend: Any, dtype: Any) -> tuple[dict[str, Any], bool] | Model:
    """(state dict, whether its order means anything), or the model where the file is one of `Model.save`."""
    source = Path(path)
    if not source.is_file():
        raise InputError(f"no file at {source}: expected .safetensors, .pt, .pth or .bin")
    if source.suffix == ".safetensors":
        return _read_safetensors(source, backend, dtype)
    if source.suffix not in TORCH_SUFFIXES:
        raise InputError(f"{source} has an unknown suffix: expected .safetensors, .pt, .pth or .bin")
    return _read_torch(source), True


def _read_safetensors(source: Path, backend: Any, dtype: Any) -> tuple[dict[str, Any], bool] | Model:
    try:
        with safetensors.safe_open(source, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
        if metadata.get("format") == FORMAT:
            return load(source, backend, dtype)
        return dict(safetensors.numpy.load_file(source)), False
    except (
        safetensors.SafetensorError,
        OSError,
        TypeError,
        KeyError,
        AttributeError,
        ValueError,
        json.JSONDecodeError,
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{source} is not a whole safetensors file of numbers that NumPy has ({first_line(error)})"
        ) from error


def _read_torch(source: Path) -> dict[str, Any]:
    try:
        found = read_torch_file(source)
    except InputError as error:
        raise InputError(f"{source} can't be read as tensors alone: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if isinstance(found, Foreign):
        raise InputError(
            f"{source} holds a {found.name} object, and objects are never loaded: save module.state_dict() instead of "
            "the module"
        )
    if not isinstance(found, Mapping):
        what = "one tensor" if isinstance(found, (FileTensor, OtherTensor)) else type(found).__name__
        raise InputError(f"{source} holds {what}: expected a state dict, names with tensors")
    return dict(found)


def host_arrays(state_dict: Mapping[Any, Any]) -> HostParams:
    """The arrays of a state dict, float32 where they have another floating dtype than that and float64.

    Raises
    ------
    InputError
        A value is no array of floating numbers, or they are far more than what there is of them in memory or file.
    """
    if not all(isinstance(name, str) for name in state_dict):
        raise InputError("the state dict: expected texts as names, got others: pass module.state_dict()")
    longest = max(state_dict, key=len, default="")
    if len(longest) > _LONGEST_NAME:
        raise InputError(
            f"the state dict: expected names of at most {_LONGEST_NAME} characters, got {longest[:40]!r}..."
        )
    norm = next((n for n in state_dict if n.rpartition(".")[2] in ("running_mean", "running_var")), None)
    if norm is not None:
        raise InputError(
            f"{norm.rpartition('.')[0]!r} of the state dict is a normalisation by batch statistics, which has no layer "
            "here: fold it into the layer before it, or leave it out"
        )
    tensors = [value for value in state_dict.values() if isinstance(value, FileTensor)]
    stored = sum(s.count for s in {id(tensor.storage): tensor.storage for tensor in tensors}.values())
    wanted = sum(math.prod(tensor.shape) for tensor in tensors)
    if len(tensors) > 1 and wanted > _SHARED * stored:
        raise InputError(
            f"the state dict: expected {wanted:,} numbers in its tensors, got {stored:,} that they share: save each "
            "tensor.contiguous()"
        )
    return {name: _host(f"{name!r} of the state dict", value) for name, value in state_dict.items()}


def _host(name: str, value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, FileTensor):
        try:
            value = array_of_tensor(value)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    elif isinstance(value, (OtherTensor, Foreign)):
        raise InputError(f"{name} is {_said(value)}: expected a dense tensor of floating numbers")
    elif not isinstance(value, np.ndarray):
        value = _tensor(name, value)
    if value.dtype.kind != "f":
        raise InputError(f"{name} holds {value.dtype}: expected floating parameters")
    host: np.ndarray[Any, Any] = value
    return host if host.dtype in (np.float32, np.float64) else host.astype(np.float32)


def _said(value: OtherTensor | Foreign) -> str:
    if isinstance(value, Foreign):
        return f"a {value.name} object, which is never loaded"
    return f"a tensor that is {value.kind}"


def _tensor(name: str, value: Any) -> np.ndarray[Any, Any]:
    if not hasattr(value, "detach"):
        raise InputError(f"{name} must be a tensor or an array, got {type(value).__name__}")
    torch = require("torch", "torch", "a state dict of tensors")
    if not isinstance(value, torch.Tensor) or value.is_meta or value.is_quantized or value.layout != torch.strided:
        raise InputError(f"{name} is a tensor without data, quantized or sparse: expected a dense tensor of numbers")
    try:
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{name} is an expanded tensor: pass tensor.contiguous()")
        return tensor_to_host(torch, value)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise InputError(f"{name} is no tensor that can be read ({first_line(error)})") from error
