"""One safetensors file per model: the parameters, and a passport that says what they mean.

The file opens in any safetensors reader as a plain dict of arrays under torch's names. The passport is its metadata.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..arrays import DTYPES
from ..errors import InputError
from ..files import write_file
from ..layers import (
    GRU,
    LSTM,
    RNN,
    Activation,
    Dropout,
    Embedding,
    Ends,
    Flip,
    Last,
    Layer,
    LayerNormGRU,
    LayerNormLSTM,
    Linear,
    Masked,
    Max,
    Mean,
    Merge,
    MinGRU,
    MinLSTM,
    Sequential,
    SharedDropout,
    Softmax,
)
from ..version import __version__

__all__ = ["FORMAT_VERSION", "network_from_config", "network_to_config", "read_checkpoint", "write_checkpoint"]

FORMAT = "portable_rnn"
FORMAT_VERSION = "1.0"

_SMALL = (Last, Mean, Max, Dropout, Activation, Softmax, SharedDropout, Flip, Ends, Merge)
_RECURRENT = (RNN, LSTM, GRU, LayerNormLSTM, LayerNormGRU, MinGRU, MinLSTM)
_LAYERS: dict[str, type[Layer]] = {
    cls.__name__: cls for cls in (*_RECURRENT, Linear, Embedding, *_SMALL, Masked, Sequential)
}

# What a reader in another framework has to know about the arrays
_CONVENTIONS = {
    "array_layout": "torch: weight (rows of gates, features), parameters named as torch's state dict",
    "gate_order": json.dumps(
        {"LSTM": "i f g o", "GRU": "r z n", "peephole": "i f o", "MinGRU": "u n", "MinLSTM": "f i n"}
    ),
    "bias_convention": "two biases for each direction, bias_ih and bias_hh, as in torch",
}


def network_to_config(network: Layer) -> dict[str, Any]:
    """A layer as a dict that JSON can hold.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> from portable_rnn.models import network_to_config
    >>> network_to_config(prnn.Linear(3, 2))
    {'type': 'Linear', 'in_features': 3, 'out_features': 2, 'bias': True}
    """
    name = type(network).__name__
    if _LAYERS.get(name) is not type(network):
        raise InputError(f"a layer of type {name} can't be saved: only {', '.join(_LAYERS)} can")
    if isinstance(network, Sequential):
        return {"type": name, "layers": [network_to_config(layer) for layer in network.layers]}
    options = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    inside = {key: network_to_config(value) for key, value in options.items() if isinstance(value, Layer)}
    return {"type": name, **options, **inside}


def network_from_config(config: Any) -> Layer:
    """The layer that `network_to_config` described.

    Raises
    ------
    InputError
        The description names a layer or an option that this version doesn't know.
    """
    kind = config.get("type") if isinstance(config, dict) else config
    if not isinstance(config, dict) or not isinstance(kind, str) or kind not in _LAYERS:
        raise InputError(
            f"unknown layer {kind!r} in the network's description: upgrade portable-rnn, or the file is damaged"
        )
    options = {key: value for key, value in config.items() if key != "type"}
    cls = _LAYERS[kind]
    if cls is Sequential:
        layers = options.get("layers")
        if not isinstance(layers, list):
            raise InputError("the network's description has a Sequential without layers: the file is damaged")
        return Sequential(*(network_from_config(layer) for layer in layers))
    if cls is Masked:
        options["layer"] = network_from_config(options.get("layer"))
    try:
        return cls(**options)
    except TypeError as error:
        raise InputError(
            f"layer {kind} of the network's description doesn't fit this version ({error}): "
            "upgrade portable-rnn, or the file is damaged"
        ) from error


def write_checkpoint(
    path: str | os.PathLike[str],
    network: Layer,
    params: dict[str, np.ndarray[Any, Any]],
    metadata: dict[str, str],
    *,
    loss: str | None = None,
) -> None:
    """Write network and parameters to one file, whole or not at all."""
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"metadata must be texts by text, got {value!r} for {key!r}: write str({value!r})")
    variants = _gru_variants(network)
    passport = {
        **{f"user.{key}": value for key, value in metadata.items()},
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "network": json.dumps(network_to_config(network)),
        **_CONVENTIONS,
        **({"gru_variant": ", ".join(variants)} if variants else {}),
        **({"loss": loss} if loss else {}),
    }
    data = safetensors.numpy.save({k: np.ascontiguousarray(p) for k, p in params.items()}, passport)
    write_file(path, data)


def read_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[Layer, dict[str, np.ndarray[Any, Any]], dict[str, str], dict[str, str]]:
    """Read a file that `write_checkpoint` wrote.

    Returns
    -------
    network, parameters, the caller's metadata, the passport

    Raises
    ------
    InputError
        No such file, cut short, of another kind, or of a newer format.
    """
    source = Path(path)
    if not source.is_file():
        raise InputError(f"no model file at {source}: expected a .safetensors file saved by Model.save")
    try:
        with safetensors.safe_open(source, framework="numpy") as file:
            passport = dict(file.metadata() or {})
            _check_passport(source, passport)
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{source} is not a whole safetensors file ({reason}): "
            "it was cut short or is of another kind; save the model again"
        ) from error
    try:
        network = network_from_config(json.loads(passport["network"]))
        network.check_params(params)
        _check_dtypes(params)
    except (KeyError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{source} has no readable description of its network: save the model again") from error
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    params = {name: params[name] for name in network.parameter_shapes()}
    metadata = {key.removeprefix("user."): value for key, value in passport.items() if key.startswith("user.")}
    return network, params, metadata, passport


def _check_dtypes(params: dict[str, np.ndarray[Any, Any]]) -> None:
    first = next(iter(params.values()), np.zeros(0, np.float32)).dtype
    for name, p in params.items():
        if p.dtype != first or p.dtype.name not in DTYPES:
            raise InputError(
                f"parameter {name!r} is {p.dtype}: expected {' or '.join(DTYPES)}, the same for all parameters; "
                "save the model again"
            )


def _check_passport(source: Path, passport: dict[str, str]) -> None:
    if passport.get("format") != FORMAT:
        raise InputError(
            f"{source} is a safetensors file, but not a portable_rnn model: expected metadata format={FORMAT!r}, "
            f"got {passport.get('format')!r}"
        )
    version = passport.get("format_version", "")
    major = version.partition(".")[0]
    if not (major.isascii() and major.isdigit()) or int(major) > int(FORMAT_VERSION.partition(".")[0]):
        raise InputError(
            f"{source} has format version {version!r}, this portable_rnn reads up to {FORMAT_VERSION}: "
            "upgrade with `pip install --upgrade portable-rnn`"
        )


def _gru_variants(network: Layer) -> list[str]:
    if isinstance(network, Sequential):
        return [variant for layer in network.layers for variant in _gru_variants(layer)]
    if isinstance(network, Masked):
        return _gru_variants(network.layer)
    if isinstance(network, GRU):
        return ["reset_after (torch, cuDNN, Keras 3)" if network.reset_after else "reset_before (Cho et al. 2014)"]
    return []
