"""State dicts and the files that hold them: which network do these arrays belong to?"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import InputError
from ..layers import GRU, LSTM, RNN, Embedding, Layer, Linear
from ..models import FORMAT, Model, load
from .common import POOLINGS, HostParams, Piece, Source, first_line, model_of, require, tensor_to_host

__all__ = ["from_state_dict", "read_state_dict"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def from_state_dict(
    state_dict: Mapping[str, Any],
    *,
    ordered: bool,
    pooling: str | None,
    nonlinearity: str | None,
    order: Sequence[str] | None,
    network: Layer | None,
    backend: Any,
    dtype: Any,
) -> Model:
    """`from_torch` of a state dict; `ordered` says whether the order of its names means anything."""
    params = {str(name): _host(str(name), value) for name, value in state_dict.items()}
    groups = _groups(params)
    if not groups:
        raise InputError("the state dict is empty")
    if order is not None:
        if sorted(order) != sorted(groups):
            raise InputError(f"order must name every layer once: expected {', '.join(map(repr, groups))}, got {order}")
        groups = {prefix: groups[prefix] for prefix in order}
        ordered = True
    if network is not None:
        pieces = [_fitted(network, groups)]
    else:
        pieces = _chain(groups, nonlinearity) if ordered else _ordered(groups, nonlinearity)
        recurrent = [k for k, piece in enumerate(pieces) if isinstance(piece.layer, (RNN, LSTM, GRU))]
        if recurrent and recurrent[-1] + 1 < len(pieces) and pooling == "auto":
            raise InputError(
                f"a state dict doesn't say what {pieces[recurrent[-1] + 1].name!r} is given, each step's output of "
                f"{pieces[recurrent[-1]].name!r} or one of them: pass pooling=None, 'last', 'ends', 'mean' or 'max'"
            )
        if recurrent and pooling in POOLINGS:
            pieces.insert(recurrent[-1] + 1, Piece("pooling", POOLINGS[pooling](), {}))
    return model_of(pieces, Source("torch", "unknown", "state dict"), _checked(pieces), backend, dtype)


def _checked(pieces: Sequence[Piece]) -> str:
    shapes = "names and shapes fit; a state dict can't be run, so no outputs were compared"
    return f"{shapes} ({', '.join(repr(piece.name) for piece in pieces)})"


def _host(name: str, value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, np.ndarray):
        if not hasattr(value, "detach"):
            raise InputError(f"{name!r} of the state dict must be a tensor or an array, got {type(value).__name__}")
        value = tensor_to_host(require("torch", "torch", "a state dict of tensors"), value)
    if value.dtype.kind != "f":
        raise InputError(f"{name!r} of the state dict holds {value.dtype}: expected floating parameters")
    host: np.ndarray[Any, Any] = value
    return host if host.dtype in (np.float32, np.float64) else host.astype(np.float32)


# ---------------------------------------------------------------------- names and shapes to layers


def _groups(params: HostParams) -> dict[str, HostParams]:
    """The parameters of each layer, by the prefix of their names."""
    groups: dict[str, HostParams] = {}
    for name, value in params.items():
        prefix, _, leaf = name.rpartition(".")
        groups.setdefault(prefix, {})[leaf] = value
    return groups


def _chain(groups: Mapping[str, HostParams], nonlinearity: str | None) -> list[Piece]:
    names = list(groups)
    pieces = []
    for k, (prefix, params) in enumerate(groups.items()):
        following = _takes(groups[names[k + 1]]) if k + 1 < len(names) else None
        pieces.append(_piece(prefix, params, nonlinearity, following, first=k == 0))
    return pieces


def _takes(params: HostParams) -> int | None:
    """Input features of a layer, by its parameters."""
    weight = params.get("weight_ih_l0", params.get("weight_ih", params.get("weight")))
    return int(weight.shape[1]) if weight is not None and weight.ndim == 2 else None


def _gives(params: HostParams) -> int | None:
    """Output features of a recurrent or linear layer, by its parameters."""
    if "weight_ih_l0" in params:
        return int(params["weight_hh_l0"].shape[1]) * (2 if "weight_ih_l0_reverse" in params else 1)
    return int(params["weight"].shape[0]) if "weight" in params else None


def _ordered(groups: Mapping[str, HostParams], nonlinearity: str | None) -> list[Piece]:
    """The chain of a file that keeps no order: by number where the names are numbers, else by the widths."""
    if all(prefix.rpartition(".")[2].isdigit() for prefix in groups):
        ranked = sorted(groups, key=lambda prefix: [int(p) if p.isdigit() else -1 for p in prefix.split(".")])
        return _chain({prefix: groups[prefix] for prefix in ranked}, nonlinearity)
    fitting = []
    for prefixes in itertools.permutations(groups) if len(groups) <= 6 else ():
        pairs = itertools.pairwise(groups[prefix] for prefix in prefixes)
        if all(_fits(left, right, first=k == 0) for k, (left, right) in enumerate(pairs)):
            fitting.append(prefixes)
    if len(fitting) != 1:
        raise InputError(
            f"the file keeps no order of its layers ({', '.join(groups)}) and their widths fit in {len(fitting)} "
            f"orders: pass order=({', '.join(map(repr, groups))}) in the order they run"
        )
    return _chain({prefix: groups[prefix] for prefix in fitting[0]}, nonlinearity)


def _fits(left: HostParams, right: HostParams, *, first: bool) -> bool:
    if _gives(left) == _takes(right):
        return True
    return first and left.keys() == {"weight"} and left["weight"].shape[1] == _takes(right)  # an embedding


def _piece(prefix: str, params: HostParams, nonlinearity: str | None, following: int | None, *, first: bool) -> Piece:
    name = prefix or "the layer"
    if "weight_ih" in params:  # a cell
        params = {f"{key}_l0": value for key, value in params.items()}
    if "weight_ih_l0" in params:
        layer = _recurrent(name, params, nonlinearity)
    elif params.keys() <= {"weight", "bias"} and "weight" in params and params["weight"].ndim == 2:
        layer = _plain(name, params, following, first=first)
    else:
        raise InputError(
            f"{name!r} of the state dict has {_listed(params)}: expected the parameters of an RNN, LSTM, GRU, Linear "
            "or Embedding; pass network= if they are others'"
        )
    try:
        layer.check_params(params)
    except InputError as error:
        raise InputError(f"{name!r} of the state dict looks like {layer}, but {error}") from error
    return Piece(name, layer, {n: params[n] for n in layer.parameter_shapes()})


def _listed(params: HostParams) -> str:
    return ", ".join(f"{name} {value.shape}" for name, value in params.items())


def _recurrent(name: str, params: HostParams, nonlinearity: str | None) -> Layer:
    weight, recurrent = params["weight_ih_l0"], params.get("weight_hh_l0")
    if recurrent is None or weight.ndim != 2 or recurrent.ndim != 2:
        raise InputError(f"{name!r} of the state dict has {_listed(params)}: weight_ih_l0 needs a weight_hh_l0")
    projection = params.get("weight_hr_l0")
    hidden = int(recurrent.shape[1] if projection is None else projection.shape[-1])
    gates, rest = divmod(weight.shape[0], hidden)
    options: dict[str, Any] = {
        "num_layers": 1 + max(int(n.split("_l")[1].split("_")[0]) for n in params if "_l" in n),
        "bias": "bias_ih_l0" in params,
        "bidirectional": "weight_ih_l0_reverse" in params,
    }
    if rest or gates not in (1, 3, 4):
        raise InputError(
            f"{name!r} of the state dict has {weight.shape[0]} rows of gates for {hidden} hidden features: expected "
            "1 (RNN), 3 (GRU) or 4 (LSTM) times as many"
        )
    if gates == 4:
        return LSTM(weight.shape[1], hidden, proj_size=0 if projection is None else projection.shape[0], **options)
    if gates == 3:
        return GRU(weight.shape[1], hidden, **options)
    if nonlinearity is None:
        raise InputError(f"{name!r} is an RNN, and a state dict doesn't say which: pass nonlinearity='tanh' or 'relu'")
    return RNN(weight.shape[1], hidden, nonlinearity=nonlinearity, **options)


def _plain(name: str, params: HostParams, following: int | None, *, first: bool) -> Layer:
    rows, columns = params["weight"].shape
    as_embedding = first and "bias" not in params and following is not None and following == columns
    as_linear = following is None or following == rows
    if "bias" not in params and first and ((as_embedding and as_linear) or following is None):
        raise InputError(
            f"{name!r} of the state dict has one weight {(rows, columns)} only, as a Linear without bias and an "
            "Embedding have: pass network="
        )
    return Embedding(rows, columns) if as_embedding else Linear(columns, rows, "bias" in params)


def _fitted(network: Layer, groups: Mapping[str, HostParams]) -> Piece:
    """The parameters under the names of a given network, layer by layer."""
    shapes = network.parameter_shapes()
    wanted: dict[str, list[str]] = {}
    for name in shapes:
        wanted.setdefault(name.rpartition(".")[0], []).append(name)
    if len(wanted) != len(groups):
        raise InputError(
            f"the network has {len(wanted)} layers with parameters, the state dict {len(groups)}: {', '.join(groups)}"
        )
    params: HostParams = {}
    for names, (prefix, group) in zip(wanted.values(), groups.items(), strict=True):
        for name in names:
            leaf = name.rpartition(".")[2]
            found = group.get(leaf, group.get(leaf.removesuffix("_l0")))
            if found is None or len(group) != len(names):
                raise InputError(f"{prefix!r} of the state dict has {_listed(group)}, the network wants {names}")
            params[name] = found
    network.check_params(params)
    return Piece("the given network", network, params)


# ---------------------------------------------------------------------- files


def read_state_dict(path: str | os.PathLike[str], backend: Any, dtype: Any) -> tuple[dict[str, Any], bool] | Model:
    """(state dict, whether its order means anything), or the model where the file is one of `Model.save`."""
    source = Path(path)
    if not source.is_file():
        raise InputError(f"no file at {source}: expected .safetensors, .pt, .pth or .bin")
    if source.suffix == ".safetensors":
        return _read_safetensors(source, backend, dtype)
    if source.suffix not in (".pt", ".pth", ".bin"):
        raise InputError(f"{source} has an unknown suffix: expected .safetensors, .pt, .pth or .bin")
    return _read_torch_file(source), True


def _read_safetensors(source: Path, backend: Any, dtype: Any) -> tuple[dict[str, Any], bool] | Model:
    try:
        with safetensors.safe_open(source, framework="numpy") as file:
            passport = dict(file.metadata() or {})
        if passport.get("format") == FORMAT:
            return load(source, backend, dtype)
        return dict(safetensors.numpy.load_file(source)), False
    except (safetensors.SafetensorError, OSError, TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{source} is not a whole safetensors file of numbers that NumPy has ({first_line(error)})"
        ) from error


def _read_torch_file(source: Path) -> dict[str, Any]:
    torch = require("torch", "torch", f"reading {source.name}")
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        raise InputError(
            f"{source} can't be read as tensors alone ({first_line(error)}): it is cut short, "
            "or holds objects, which are never loaded; save module.state_dict() instead of the module"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping):
        raise InputError(f"{source} holds {type(found).__name__}: expected a state dict, names with tensors")
    return dict(found)
