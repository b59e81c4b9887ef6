"""What a .keras file declares, checked before Keras builds any of it.

Keras allocates every weight that a description names and then looks for its numbers. So the description is read first:
layers that have no counterpart here, code, sizes that the file's own weights can't fill and endless unrolled loops are
refused by name, and Keras is given the rest.
"""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .archives import Members, checked_members
from .common import first_line

__all__ = ["CONTAINERS", "LAYERS", "load_keras_file", "unknown_layer"]

CONTAINERS = ("Sequential", "Functional", "Model")
# The number of gates of those with weights over time
_GATES = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3, "SimpleRNNCell": 1, "LSTMCell": 4, "GRUCell": 3}
LAYERS = frozenset((
    "InputLayer", *_GATES, "RNN", "StackedRNNCells", "Bidirectional", "Masking", "Dense", "Embedding",
    "TimeDistributed", "Dropout", "SpatialDropout1D", "GlobalAveragePooling1D", "GlobalMaxPooling1D", "Activation",
    "Softmax", "LeakyReLU", "ELU", "ReLU", "Identity",
))  # fmt: skip
# What else a description may name: where from, and there what begins with one of these
_OBJECTS = {
    "keras.initializers": "",
    "keras.regularizers": "",
    "keras.constraints": "",
    "keras.activations": "",
    "builtins": "function",
    "keras": "DTypePolicy",
}
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_RATIO, _FREE = 4, 2**20
_MAX_LAYERS = 500
_MAX_UNROLLED = 500


def unknown_layer(kind: str, name: str) -> InputError:
    """The error that names a layer of Keras which has no counterpart."""
    return InputError(
        f"{kind} {name!r} can't be converted: there is no such layer here; known are SimpleRNN, LSTM, GRU, "
        "Bidirectional, Masking, Dense, Embedding, TimeDistributed, Dropout, SpatialDropout1D, global pooling, "
        "activations"
    )


def load_keras_file(keras: Any, path: Path) -> Any:
    """The model in a .keras file.

    Raises
    ------
    InputError
        No such file, cut short or damaged, of Keras 2, with code or unknown layers, or larger than what it holds.
    """
    if not path.is_file():
        raise InputError(f"no file at {path}: expected a .keras file")
    if path.suffix != ".keras":
        raise InputError(f"{path} has an unknown suffix: expected .keras; save older formats again with Keras 3")
    try:
        members = checked_members(path)
        _check_version(members)
        stored = _stored_bytes(members)
        _check_description(_json(members, _CONFIG), stored)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zip, HDF5, JSON and Keras each have their own
        raise InputError(
            f"{path}: expected a model that Keras {keras.__version__} can load, got one it refuses: {first_line(error)}"
        ) from error


def _json(members: Members, name: str) -> Any:
    if name not in members:
        raise InputError(f"expected {name} in the archive, got one without it: it is no model that Keras 3 saved")
    try:
        return json.loads(members.read(name))
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON in {name}, got something else: the file is damaged, save it again") from error


def _check_version(members: Members) -> None:
    found = _json(members, _METADATA) if _METADATA in members else {}
    version = found.get("keras_version") if isinstance(found, dict) else None
    if isinstance(version, str) and version.startswith(("1.", "2.")):
        raise InputError(
            f"expected a file of Keras 3, got one that Keras {version} wrote, which Keras 3 can't load: load it with "
            "Keras 2 (pip install tf-keras), save_weights there, load_weights into the same model built with Keras 3, "
            "and save that"
        )


# ---------------------------------------------------------------------- the weights


def _stored_bytes(members: Members) -> int:
    """Bytes of all arrays in the weights, whose sum is bounded by the file's own size."""
    if _WEIGHTS not in members:
        raise InputError(f"expected {_WEIGHTS} in the archive, got one without it: it is no model that Keras 3 saved")
    data = members.read(_WEIGHTS)
    h5py = importlib.import_module("h5py")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            total = sum(_dataset_bytes(h5py, dataset) for dataset in _datasets(h5py, file))
    except InputError:
        raise
    except Exception as error:  # HDF5 has an error for each of its parts
        raise InputError(
            f"expected arrays in {_WEIGHTS}, got a damaged HDF5 file ({first_line(error)}): save it again"
        ) from error
    if total > _RATIO * len(data) + _FREE:
        raise InputError(
            f"expected arrays of at most {_RATIO} times the {len(data):,} bytes of {_WEIGHTS}, got {total:,} bytes: "
            "the file is damaged"
        )
    return total


def _datasets(h5py: Any, group: Any) -> Iterator[Any]:
    """Every dataset, once, within this file only."""
    waiting, seen = [group], set()
    while waiting:
        here = waiting.pop()
        for name in here:
            if not isinstance(here.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"expected arrays in {_WEIGHTS}, got {name!r}, a link elsewhere: save it again")
            found = here[name]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(found, h5py.Group):
                waiting.append(found)
            elif isinstance(found, h5py.Dataset):
                yield found


def _dataset_bytes(h5py: Any, dataset: Any) -> int:
    if dataset.external or dataset.is_virtual or dataset.dtype.kind not in "fiub":
        raise InputError(f"expected numbers in {_WEIGHTS} itself, got {dataset.name!r}, which is something else")
    return math.prod(dataset.shape or ()) * int(dataset.dtype.itemsize)


# ---------------------------------------------------------------------- the description


def _check_description(description: Any, stored: int) -> None:
    """Known layers only, with weights that the stored ones can fill."""
    layers = list(_described(description))
    if len(layers) > _MAX_LAYERS:
        raise InputError(f"expected at most {_MAX_LAYERS} layers, got {len(layers):,}")
    widest = max((_last(shape) for layer in layers for shape in _shapes(layer)), default=1)
    times = [shape[1] for layer in layers for shape in _shapes(layer) if len(shape) > 2]
    steps = max((n for n in times if _is_size(n)), default=1)
    if steps > _MAX_UNROLLED and any(_config(layer).get("unroll") for layer in layers):
        raise InputError(f"expected a loop over time, got one unrolled over {steps:,} steps: save it with unroll=False")
    declared = sum(_parameters(layer, widest) for layer in layers)
    if 2 * declared > _RATIO * stored + _FREE:  # of two bytes at least
        raise InputError(
            f"expected layers of at most the {stored:,} bytes of weights that are there, got a description of "
            f"{declared:,} weights: the file is damaged"
        )


def _described(description: Any) -> Iterator[dict[str, Any]]:
    """The description of every layer, after what else is named was found to be harmless."""
    waiting, calls = [description], 0
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        if not isinstance(found, dict):
            continue
        kind, module = found.get("class_name"), found.get("module")
        if isinstance(kind, str) and "config" in found:
            if kind == "__keras_tensor__":
                calls += 1
            elif kind not in CONTAINERS and not _is_object(kind, module):
                _check_layer(found, kind, module)
                yield found
        waiting += [value for key, value in found.items() if key != "compile_config"]
        if calls > 4 * _MAX_LAYERS:
            raise InputError(f"expected at most {_MAX_LAYERS} layers in a line, got {calls:,} calls of them")


def _is_object(kind: str, module: Any) -> bool:
    return isinstance(module, str) and module in _OBJECTS and kind.startswith(_OBJECTS[module])


def _check_layer(found: dict[str, Any], kind: str, module: Any) -> None:
    name = _config(found).get("name")
    name = name if isinstance(name, str) else kind
    if kind in ("Lambda", "__lambda__", "TFOpLambda", "SlicingOpLambda"):
        raise InputError(f"{kind} {name!r} holds code, which is never run: build the model without it")
    if not isinstance(module, str) or module.partition(".")[0] != "keras":
        raise InputError(
            f"{kind} {name!r} is a class of its author's own, whose code is not in the file and is never run: build "
            "the model of Keras' layers"
        )
    if kind not in LAYERS:
        raise unknown_layer(f"keras {kind}", name)


def _config(layer: dict[str, Any]) -> dict[str, Any]:
    found = layer.get("config")
    return found if isinstance(found, dict) else {}


def _shapes(layer: dict[str, Any]) -> list[list[Any]]:
    """Shapes that a layer's description says."""
    build = layer.get("build_config")
    given = [*(build.values() if isinstance(build, dict) else ()), _config(layer).get("batch_shape")]
    return [shape for shape in given if isinstance(shape, list) and shape]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _last(shape: list[Any]) -> int:
    return shape[-1] if _is_size(shape[-1]) else 1


def _parameters(layer: dict[str, Any], widest: int) -> int:
    """Weights that Keras would make; where a layer doesn't say what it takes, of the widest input there is."""
    kind, config = layer["class_name"], _config(layer)

    def size(name: str) -> int:
        value: Any = config.get(name)
        if not _is_size(value):
            raise InputError(f"expected a positive {name} of {kind} {config.get('name')!r}, got {value!r}")
        return int(value)

    shapes = _shapes(layer)
    inputs = max(map(_last, shapes)) if shapes else max(widest, 1)
    if kind == "Embedding":
        return size("input_dim") * size("output_dim")
    if kind == "Dense":
        return size("units") * (inputs + 1)
    if kind in _GATES:
        return _GATES[kind] * size("units") * (inputs + size("units") + 2)
    return 0
