"""One safetensors file per model: the parameters, and a passport that says what they mean.

The file opens in any safetensors reader as a plain dict of arrays under torch's names. The passport is its metadata.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors
import safetensors.numpy

from ..arrays import DTYPES
from ..cells import Cell, GRUCell
from ..errors import InputError, printable, unexpected
from ..files import Json, Record, Table, Tagged, Text, record_of, shown, write_file
from ..layers import Layer, RecurrentLayer, Sequential, registered, registered_name, walk
from ..version import __version__

__all__ = ["FORMAT_VERSION", "network_from_config", "network_to_config", "read_checkpoint", "write_checkpoint"]

FORMAT = "portable_rnn"
FORMAT_VERSION = "1.0"
HEADER_LIMIT = 1 << 23  # bytes of names and metadata: some 80,000 parameters

_GATE_ORDERS = {"LSTM": "i f g o", "GRU": "r z n", "peephole": "i f o", "MinGRU": "u n", "MinLSTM": "f i n"}
# What a reader in another framework has to know about the arrays
_CONVENTIONS = {
    "array_layout": "torch: weight (rows of gates, features), parameters named as torch's state dict",
    "gate_order": json.dumps(_GATE_ORDERS),
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
    return _object_to_config(network)


def _object_to_config(value: Any) -> dict[str, Any]:
    fields = [f for f in dataclasses.fields(value) if f.init]
    return {
        "type": registered_name(type(value)),
        **{f.name: _to_config(f.name, getattr(value, f.name)) for f in fields},
    }


def _to_config(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_config(name, part) for part in value]
    if dataclasses.is_dataclass(value):
        return _object_to_config(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise unexpected(name, "a number, a text, None or a registered object", value, "keep others out of it")


def network_from_config(config: Any, where: str = "network") -> Layer:
    """The layer that `network_to_config` described.

    Parameters
    ----------
    config : dict
    where : str
        What an error calls the description.

    Raises
    ------
    InputError
        The description names a layer or an option that this version doesn't know, or a value that the layer refuses.
    """
    network: Layer = _LAYER.read(config, where)
    return network


def _layer_record(name: str) -> Record | None:
    cls: Any = registered(name)
    return _record(cls) if issubclass(cls, Layer) else None


def _cell_record(name: str) -> Record | None:
    cls: Any = registered(name)
    return None if issubclass(cls, Layer) else _record(cls)


_LAYER = Tagged("type", _layer_record, "layer")
_CELL = Tagged("type", _cell_record, "cell")


@functools.cache
def _record(cls: Any) -> Record:
    """The settings of a class, from its dataclass."""
    make = (lambda layers: Sequential(*layers)) if cls is Sequential else None
    try:
        return record_of(cls, {Layer: _LAYER, Cell: _CELL}, make)
    except (KeyError, StopIteration, NameError) as error:
        raise InputError(
            f"{cls.__name__}: expected fields annotated int, float, bool, str, Layer or Cell, got {error}: "
            "keep others out of a registered class"
        ) from error


_VARIANT = r"reset_\w+"


@dataclass(frozen=True)
class _Stated:
    """What a file's metadata states about its arrays. Other entries are for readers in other frameworks, or free."""

    network: Annotated[Layer, Json(_LAYER, limit=1 << 20)]
    gate_order: Annotated[Mapping[str, str], Json(Table(Text()))] = field(default_factory=dict)
    gru_variant: str = ""

    def __post_init__(self) -> None:
        for cell, order in self.gate_order.items():
            if _GATE_ORDERS.get(cell, order) != order:
                raise InputError(f"gate_order of {cell}: expected {_GATE_ORDERS[cell]!r}, got {order!r}")
        expected = ", ".join(_gru_variants(self.network))
        if self.gru_variant and re.findall(_VARIANT, self.gru_variant) != re.findall(_VARIANT, expected):
            raise InputError(f"gru_variant: expected {expected!r}, got {shown(self.gru_variant)}")


_STATED = dataclasses.replace(record_of(_Stated), others=True)


def write_checkpoint(
    path: str | os.PathLike[str],
    network: Layer,
    params: dict[str, np.ndarray[Any, Any]],
    metadata: dict[str, str],
    *,
    loss: str | None = None,
) -> None:
    """Write network and parameters to one file, whole or not at all, that `read_checkpoint` reads."""
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"metadata must be texts by text, got {value!r} for {key!r}: write str({value!r})")
    variants = _gru_variants(network)
    entries = {
        **{f"user.{key}": value for key, value in metadata.items()},
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "network": json.dumps(network_to_config(network)),
        **_CONVENTIONS,
        **({"gru_variant": ", ".join(variants)} if variants else {}),
        **({"loss": loss} if loss else {}),
    }
    _STATED.read(entries, "the model's description")
    data = safetensors.numpy.save({k: np.ascontiguousarray(p) for k, p in params.items()}, entries)
    if _header_size(data[:8]) > HEADER_LIMIT:
        raise InputError(
            f"metadata: expected at most {HEADER_LIMIT:,} bytes with the names of the parameters, got more"
        )
    write_file(path, data)


def read_checkpoint(
    path: str | os.PathLike[str], *, finite: bool = True
) -> tuple[Layer, dict[str, np.ndarray[Any, Any]], dict[str, str], dict[str, str]]:
    """Read a file that `write_checkpoint` wrote.

    The description is checked against the names, shapes and dtypes of the arrays before any of them is read.

    Parameters
    ----------
    path : path
    finite : bool
        Whether a NaN or an infinity among the parameters is an error.

    Returns
    -------
    network, parameters, the caller's metadata, all metadata

    Raises
    ------
    InputError
        No such file, cut short, of another kind, or of a newer format; a description that is damaged or does not fit
        the arrays; parameters that are not finite.
    """
    source = Path(path)
    if not source.is_file():
        raise InputError(f"no model file at {source}: expected a .safetensors file saved by Model.save")
    try:
        _check_header_size(source)
        with safetensors.safe_open(source, framework="numpy") as file:
            entries = dict(file.metadata() or {})
            _check_format(source, entries)
            stated = _stated(source, entries)
            held = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            _check_held(source, stated.network, held)
            params = {name: file.get_tensor(name) for name in stated.network.parameter_shapes()}
    except (safetensors.SafetensorError, OSError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{source} is not a whole safetensors file ({reason}): "
            "it was cut short or is of another kind; save the model again"
        ) from error
    if finite:
        _check_finite(source, params)
    metadata = {key.removeprefix("user."): value for key, value in entries.items() if key.startswith("user.")}
    return stated.network, params, metadata, entries


def not_finite(params: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, str]:
    """By name of each parameter that holds NaN or an infinity: how many, and where the first is."""
    found = {}
    for name, p in params.items():
        wrong = ~np.isfinite(p)
        count = int(wrong.sum())
        if count:
            first = tuple(int(k) for k in np.unravel_index(int(wrong.argmax()), p.shape))
            found[name] = f"{count} NaN or infinite values, the first at index {first}"
    return found


def _check_finite(source: Path, params: Mapping[str, np.ndarray[Any, Any]]) -> None:
    for name, what in not_finite(params).items():
        raise InputError(
            f"{source}: parameter {name!r} holds {what}: expected finite weights; load an earlier file, "
            "or this one with prnn.load(path, check_finite=False)"
        )


def _header_size(start: bytes) -> int:
    """Bytes of a safetensors file's header, which its first 8 bytes say."""
    return int.from_bytes(start, "little")


def _check_header_size(source: Path) -> None:
    """Raise InputError for a header that is larger than names and metadata can be, before it is parsed."""
    with source.open("rb") as file:
        size = _header_size(file.read(8))
    if HEADER_LIMIT < size <= source.stat().st_size:
        raise InputError(
            f"{source}: expected at most {HEADER_LIMIT:,} bytes of names and metadata, got {size:,}: "
            "save the model again"
        )


def _check_format(source: Path, entries: Mapping[str, str]) -> None:
    if entries.get("format") != FORMAT:
        raise InputError(
            f"{source} is a safetensors file, but not a portable_rnn model: expected metadata format={FORMAT!r}, "
            f"got {shown(entries.get('format'))}"
        )
    version = entries.get("format_version", "")
    major = re.fullmatch(r"([0-9]{1,4})(\.[0-9]{1,4})*", version)
    if major is None or int(major[1]) > int(FORMAT_VERSION.partition(".")[0]):
        raise InputError(
            f"{source} has format version {shown(version)}, this portable_rnn reads up to {FORMAT_VERSION}: "
            "upgrade with `pip install --upgrade portable-rnn`"
        )


def _stated(source: Path, entries: Mapping[str, str]) -> _Stated:
    try:
        stated: _Stated = _STATED.read(entries, "")
    except InputError as error:
        raise InputError(
            f"{source} has no readable description of its network: {error}: "
            "save the model again, or upgrade portable-rnn if a newer version wrote it"
        ) from error
    return stated


def _check_held(source: Path, network: Layer, held: Mapping[str, Any]) -> None:
    """Raise InputError where the network is not one of the arrays that the file holds, without reading those."""
    declared = _count_arrays(network)
    if declared > 2 * len(held) + 100:  # too many to list what is missing
        raise InputError(
            f"{source}: expected the {declared:,} arrays of {printable(str(network))}, got {len(held):,}: "
            "save the model again"
        )
    try:
        network.check_shapes({name: tuple(array.get_shape()) for name, array in held.items()})
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    kinds = {name: _dtype_name(array.get_dtype()) for name, array in held.items()}
    for name, kind in kinds.items():
        if kind not in DTYPES or kind != next(iter(kinds.values())):
            raise InputError(
                f"{source}: parameter {name!r} is {kind}: expected {' or '.join(DTYPES)}, the same for all parameters; "
                "save the model again"
            )


def _count_arrays(network: Layer) -> int:
    """How many parameters a network has, without a loop over a stack's layers: they are alike from the second on."""
    inside = network.children()
    if inside:
        return sum(map(_count_arrays, inside.values()))
    depth = getattr(network, "num_layers", 1)
    if depth <= 2:
        return len(network.parameter_shapes())
    one, two = (len(dataclasses.replace(network, num_layers=k).parameter_shapes()) for k in (1, 2))  # type: ignore[call-arg]
    return one + (depth - 1) * (two - one)


def _dtype_name(code: str) -> str:
    """NumPy's name of a dtype of safetensors, such as F32."""
    letters, digits = re.fullmatch(r"([A-Z]*)(.*)", code).groups()  # type: ignore[union-attr]
    words = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex"}
    return f"{words[letters]}{digits}" if letters in words and digits.isdigit() else code


def _gru_variants(network: Layer) -> list[str]:
    cells = (layer.cell for _, layer in walk(network) if isinstance(layer, RecurrentLayer))
    return [
        "reset_after (torch, cuDNN, Keras 3)" if cell.reset_after else "reset_before (Cho et al. 2014)"
        for cell in cells
        if isinstance(cell, GRUCell)
    ]
