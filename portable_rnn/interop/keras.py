"""From Keras 3, on any of its backends: layers, Sequential and linear functional models, .keras files."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import Array, Backend
from ..errors import BackendError, ConversionError, InputError
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
    Linear,
    Masked,
    Max,
    Mean,
    Merge,
    SharedDropout,
    Softmax,
)
from ..models import Model
from .common import HostParams, Piece, Source, assemble, first_line, model_of, name_of_type, require, tensor_to_host
from .selftest import Host, check_chain, check_piece, coarsest, passed, random_input

__all__ = ["ACTIVATIONS", "KERAS_GRU_GATES", "from_keras", "import_keras"]

# Keras' names, ours
ACTIVATIONS = {
    "linear": "identity",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "softsign": "softsign",
    "softplus": "softplus",
    "exponential": "exponential",
    "elu": "elu",
    "leaky_relu": "leaky_relu(0.2)",
    "hard_sigmoid": f"hard_sigmoid({1 / 6!r}, 0.5)",
}
KERAS_GRU_GATES = (1, 0, 2)  # Keras has z r h, torch and we have r z n; the same swap leads back


@dataclass(frozen=True)
class Step:
    """What one Keras layer became, and what masks mean to it.

    Attributes
    ----------
    pieces : list of Piece
    masks : number, optional
        The value whose steps it masks for the layers behind it.
    heeds : bool
        Whether it leaves masked steps out.
    ends : bool
        Whether there is no mask behind it.
    hold : bool
        Whether its outputs at masked steps repeat the one before; else they are zero.
    """

    name: str
    source: Any
    pieces: list[Piece]
    masks: float | None = None
    heeds: bool = False
    ends: bool = False
    hold: bool = False


def from_keras(
    source: Any,
    *,
    backend: str | ModuleType | Array | Backend = "numpy",
    dtype: Any = None,
) -> Model:
    """A Keras 3 layer, model or .keras file as a model.

    `SimpleRNN`, `LSTM`, `GRU` (``reset_after`` both ways, ``go_backwards``, activations) and `RNN` of their cells,
    `Bidirectional`, `Masking`, `Dense`, `Embedding` (``mask_zero`` too), `TimeDistributed` of Dense and activations,
    `Dropout`, `SpatialDropout1D`, `GlobalAveragePooling1D`, `GlobalMaxPooling1D`, activations; in a `Sequential` or a
    functional model whose layers stand in one line. Keras' one bias becomes ``bias_ih``, ``bias_hh`` is zero.

    Parameters
    ----------
    source : keras.Layer, keras.Model or path of a .keras file
        Built: called once, or with an `Input`. A file is loaded with ``safe_mode=True``.
    backend, dtype : as in `Model`
        float64 stays float64 and all else becomes float32 where `dtype` is left out.

    Returns
    -------
    Model
        Its metadata says where it came from and how well the outputs agreed.

    Raises
    ------
    InputError
        A layer or option that there is no counterpart for, a branched model, or a damaged file.
    ConversionError
        The result does not give the source's outputs.
    MissingDependencyError
        Keras is not installed.

    Notes
    -----
    The model starts from zero states: what a ``stateful`` layer has kept is not carried over. A recurrent layer's
    ``dropout`` becomes a `SharedDropout` before it, which both directions of a `Bidirectional` then share.

    Examples
    --------
    ::

        layers = [keras.Input((None, 3)), keras.layers.GRU(8), keras.layers.Dense(2)]
        model = prnn.from_keras(keras.Sequential(layers))
        model.network  # Sequential(GRU(3, 8), Last(), Linear(8, 2))
    """
    keras = import_keras("from_keras")
    if isinstance(source, (str, os.PathLike)):
        source = _read(keras, Path(source))
    if not isinstance(source, keras.layers.Layer):
        raise InputError(f"from_keras takes a Keras layer, model or path, got {name_of_type(source)}")
    notes: list[str] = []
    steps = [step for layer in _line(keras, source) for step in _steps(keras, layer, notes)]
    pieces = _grouped(steps)
    network, _ = assemble(pieces)
    y = _runner(keras, source)(random_input(network, 1, 1, np.random.default_rng(0)))
    computed = working_dtype(keras, {y.dtype.name, *(step.source.compute_dtype for step in steps)})
    try:
        worst = check_chain(pieces, _runner(keras, source), computed)
    except ConversionError:
        for step in steps:  # the first that differs alone says where it is
            if step.pieces and step.masks is None:
                alone, params = assemble(step.pieces)
                check_piece(Piece(step.name, alone, params, _runner(keras, step.source)), computed)
        raise
    kind = type(source).__name__
    origin = Source("keras", f"{keras.__version__} on {keras.backend.backend()}", kind, tuple(dict.fromkeys(notes)))
    return model_of(pieces, origin, passed(worst, computed), backend, dtype)


def import_keras(purpose: str) -> Any:
    """Keras 3 with a backend, or what is missing."""
    try:
        keras = require("keras", "keras", purpose)
    except ModuleNotFoundError as error:
        if error.name == "keras":
            raise
        raise BackendError(
            f"Keras is installed, but not its backend {error.name}: set KERAS_BACKEND to jax or torch before the import"
        ) from error
    if not str(keras.__version__).startswith("3."):
        raise InputError(f"{purpose} takes Keras 3, got version {keras.__version__}: pip install --upgrade keras")
    return keras


def _read(keras: Any, path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no file at {path}: expected a .keras file")
    if path.suffix != ".keras":
        raise InputError(f"{path} has an unknown suffix: expected .keras; save older formats again with Keras 3")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zip, HDF5, JSON and Keras each have their own
        raise InputError(
            f"Keras can't load {path} ({first_line(error)}): it is cut short, or holds code, which is never run"
        ) from error


def _runner(keras: Any, layer: Any) -> Any:
    """A layer or model as a function of NumPy arrays."""

    def run(x: Host) -> Host:
        kind = "int32" if x.dtype.kind == "i" else layer.compute_dtype
        if isinstance(layer, keras.Model) and x.dtype.kind == "f":
            kind = layer.inputs[0].dtype
        y = layer(keras.ops.convert_to_tensor(x, dtype=kind), training=False)
        return host(keras, y[0] if isinstance(y, (tuple, list)) else y)

    return run


def working_dtype(keras: Any, dtypes: Collection[str]) -> str:
    """The dtype that decides how exact Keras is: on most of its backends even float64 is computed in float32."""
    return coarsest({keras.backend.result_type(dtype, dtype) for dtype in dtypes})


def host(keras: Any, value: Any) -> Host:
    """A copy of a Keras tensor or variable on the host, float32 where NumPy lacks the dtype."""
    value = value.value if isinstance(value, keras.Variable) else value
    if hasattr(value, "detach"):  # Keras' own way makes torch warn
        return tensor_to_host(require("torch", "torch", "Keras on torch"), value)
    found = np.array(keras.ops.convert_to_numpy(value))
    return found if found.dtype.kind in "iu" or found.dtype in (np.float32, np.float64) else found.astype("float32")


# ---------------------------------------------------------------------- the layers in a line


def _line(keras: Any, source: Any) -> list[Any]:
    """The layers in the order that they run."""
    if isinstance(source, keras.layers.InputLayer):
        return []
    if isinstance(source, keras.Sequential):
        return [layer for inner in source.layers for layer in _line(keras, inner)]
    if isinstance(source, keras.Model):
        if not hasattr(source, "outputs"):
            raise InputError(
                f"{name_of_type(source)} {source.name!r} is a subclassed model, whose call can't be read: "
                "convert its layers one by one, or build it as a Sequential or functional model"
            )
        return [layer for inner in _functional(keras, source) for layer in _line(keras, inner)]
    return [source]


def _functional(keras: Any, model: Any) -> list[Any]:
    """The layers of a functional model from its input to its output; it must have one line."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InputError(
            f"model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs: expected one each"
        )
    tensor, layers = model.outputs[0], list[Any]()
    while True:
        operation, index, _ = tensor._keras_history
        if isinstance(operation, keras.layers.InputLayer):
            return layers[::-1]
        node = operation._inbound_nodes[index]
        tensors = [t for t in node.input_tensors if t is not node.arguments.kwargs.get("mask")]
        if len(tensors) != 1 or not isinstance(operation, keras.layers.Layer):
            what = f"{len(tensors)} inputs" if len(tensors) != 1 else "no layer"
            raise InputError(
                f"{operation.name!r} of model {model.name!r} has {what}: expected layers that stand in one line"
            )
        if operation in layers:
            raise InputError(f"layer {operation.name!r} of model {model.name!r} is used twice: its weights are shared")
        layers.append(operation)
        tensor = tensors[0]


# ---------------------------------------------------------------------- masks


def _grouped(steps: Sequence[Step]) -> list[Piece]:
    """The pieces, with those between a mask's origin and the last layer that heeds it inside a `Masked`."""
    origin = next((k for k, step in enumerate(steps) if step.masks is not None), None)
    if origin is None:
        return [piece for step in steps for piece in step.pieces]
    if any(step.pieces for step in steps[:origin]) and steps[origin].pieces:
        raise InputError(f"{steps[origin].name!r} masks, but is not the first layer")
    if any(step.pieces for step in steps[:origin]):
        raise InputError(f"Masking {steps[origin].name!r} must be the first layer, to see the data itself")
    behind = steps[origin + 1 :]
    reach = next((k + 1 for k, step in enumerate(behind) if step.ends), len(behind))
    heeding = [k for k in range(reach) if behind[k].heeds]
    if any(step.masks is not None for step in behind[:reach]):
        raise InputError("two layers mask, one behind the other: one Masked layer can't be both")
    if not heeding:
        if steps[origin].pieces:  # an Embedding: nothing looks at its mask
            return [piece for step in steps for piece in step.pieces]
        raise InputError(f"Masking {steps[origin].name!r} is not followed by a layer that leaves masked steps out")
    last = heeding[-1]
    for step in behind[: last + 1]:
        if any(isinstance(piece.layer, Flip) for piece in step.pieces) and not step.ends:
            raise InputError(f"{step.name!r} returns masked sequences backwards, whose mask Keras does not turn around")
    inside = [*steps[origin].pieces, *(piece for step in behind[: last + 1] for piece in step.pieces)]
    network, params = assemble(inside)
    value = steps[origin].masks
    assert value is not None
    wrapped = Piece(steps[origin].name, Masked(network, value, behind[last].hold), params)
    return [wrapped, *(piece for step in behind[last + 1 :] for piece in step.pieces)]


# ---------------------------------------------------------------------- one layer


def _steps(keras: Any, layer: Any, notes: list[str]) -> list[Step]:
    layers = keras.layers
    if not layer.built:
        raise InputError(f"{name_of_type(layer)} {layer.name!r} has no weights yet: call it once, or add an Input")
    if isinstance(layer, layers.TimeDistributed):
        inner = layer.layer
        if not isinstance(inner, (layers.Dense, layers.Activation)):
            raise InputError(
                f"TimeDistributed {layer.name!r} wraps {name_of_type(inner)}: expected Dense or Activation"
            )
        return [Step(layer.name, layer, [p for step in _steps(keras, inner, notes) for p in step.pieces])]
    if isinstance(layer, layers.Bidirectional):
        return [_bidirectional(keras, layer, notes)]
    if isinstance(layer, layers.RNN):
        return [_recurrent(keras, layer, notes)]
    if isinstance(layer, layers.Masking):
        return [Step(layer.name, layer, [], masks=float(layer.mask_value))]
    if isinstance(layer, layers.Embedding):
        piece = Piece(
            layer.name, Embedding(layer.input_dim, layer.output_dim), {"weight": host(keras, layer.embeddings)}
        )
        return [Step(layer.name, layer, [piece], masks=0.0 if layer.mask_zero else None)]
    if isinstance(layer, (layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D)):
        if layer.keepdims or layer.data_format != "channels_last":
            raise InputError(f"{layer.name!r}: only channels_last without keepdims can be converted")
        mean = isinstance(layer, layers.GlobalAveragePooling1D)
        return [Step(layer.name, layer, [Piece(layer.name, Mean() if mean else Max(), {})], heeds=mean, ends=True)]
    return [Step(layer.name, layer, _plain(keras, layer))]


def _plain(keras: Any, layer: Any) -> list[Piece]:
    """A layer that sees one step at a time."""
    layers = keras.layers
    name = layer.name
    if isinstance(layer, layers.Dense):
        kernel = host(keras, layer.kernel)
        params = {"weight": np.ascontiguousarray(kernel.T)}
        if layer.use_bias:
            params["bias"] = host(keras, layer.bias)
        dense = Piece(name, Linear(kernel.shape[0], kernel.shape[1], layer.use_bias), params)
        return [dense, *_activation_pieces(keras, layer.activation, name)]
    if isinstance(layer, layers.Activation):
        return _activation_pieces(keras, layer.activation, name)
    if isinstance(layer, layers.SpatialDropout1D):
        return [Piece(name, SharedDropout(float(layer.rate)), {})]
    if isinstance(layer, layers.Dropout):
        if layer.noise_shape is None:
            return [Piece(name, Dropout(float(layer.rate)), {})]
        if tuple(layer.noise_shape) == (None, 1, None):
            return [Piece(name, SharedDropout(float(layer.rate)), {})]
        raise InputError(f"Dropout {name!r} has noise_shape={layer.noise_shape}: expected None or (None, 1, None)")
    if isinstance(layer, layers.Softmax) and layer.axis == -1:
        return [Piece(name, Softmax(), {})]
    if isinstance(layer, layers.LeakyReLU):
        return [Piece(name, Activation(f"leaky_relu({float(layer.negative_slope)!r})"), {})]
    if isinstance(layer, layers.ELU):
        return [Piece(name, Activation(f"elu({float(layer.alpha)!r})"), {})]
    if isinstance(layer, layers.ReLU) and layer.max_value is None and not layer.threshold and not layer.negative_slope:
        return [Piece(name, Activation("relu"), {})]
    if isinstance(layer, layers.Identity):
        return []
    raise InputError(
        f"{name_of_type(layer)} {name!r} can't be converted: there is no such layer here; known are SimpleRNN, LSTM, "
        "GRU, Bidirectional, Masking, Dense, Embedding, TimeDistributed, Dropout, SpatialDropout1D, global pooling, "
        "activations"
    )


def _activation_pieces(keras: Any, function: Any, name: str) -> list[Piece]:
    known = _known_name(keras, function)
    if known in ("softmax", "log_softmax"):
        return [Piece(name, Softmax(log=known == "log_softmax"), {})]
    spec = activation_name(keras, function, name)
    return [] if spec == "identity" else [Piece(name, Activation(spec), {})]


def _known_name(keras: Any, function: Any) -> str | None:
    name = getattr(function, "__name__", None)
    return name if name is not None and getattr(keras.activations, name, None) is function else None


def activation_name(keras: Any, function: Any, name: str) -> str:
    """Our name of an activation function of Keras."""
    known = _known_name(keras, function)
    if known not in ACTIVATIONS:
        raise InputError(
            f"{name!r} has the activation {getattr(function, '__name__', function)!r}: expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[known]


def _recurrent(keras: Any, layer: Any, notes: list[str]) -> Step:
    kind, params, ending = _recurrent_layer(keras, layer, layer.go_backwards, False, notes)
    pieces = [*_input_dropout(layer), Piece(layer.name, kind, {f"{n}{ending}": v for n, v in params.items()})]
    if layer.go_backwards:
        pieces.append(Piece(f"{layer.name} backwards", Flip(), {}))
    if not layer.return_sequences:
        pieces.append(Piece(f"{layer.name} at its end", Last(), {}))
    hold = not layer.zero_output_for_mask
    return Step(layer.name, layer, pieces, heeds=True, ends=not layer.return_sequences, hold=hold)


def _bidirectional(keras: Any, layer: Any, notes: list[str]) -> Step:
    forward, backward = layer.forward_layer, layer.backward_layer
    name = layer.name
    if layer.merge_mode is None:
        raise InputError(f"Bidirectional {name!r} has merge_mode=None, two outputs: expected concat, sum, mul or ave")
    if forward.go_backwards:
        raise InputError(f"the forward layer of Bidirectional {name!r} goes backwards: exchange the two")
    kind, params, ending = _recurrent_layer(keras, forward, False, True, notes)
    other, reverse, _ = _recurrent_layer(keras, backward, False, True, notes)
    if other != kind:
        raise InputError(f"the directions of Bidirectional {name!r} differ, {kind} and {other}: expected equal ones")
    both = {f"{n}{ending}": v for n, v in params.items()} | {f"{n}{ending}_reverse": v for n, v in reverse.items()}
    dropout = _input_dropout(forward)
    if dropout:
        notes.append(f"dropout of {name}: in training both directions share one mask")
    pieces = [*dropout, Piece(name, kind, both)]
    if not layer.return_sequences:
        pieces.append(Piece(f"{name} at its ends", Ends(), {}))
    if layer.merge_mode != "concat":
        pieces.append(Piece(f"{name} merged", Merge(layer.merge_mode), {}))
    return Step(name, layer, pieces, heeds=True, ends=not layer.return_sequences)


def _input_dropout(layer: Any) -> list[Piece]:
    rate = float(getattr(layer.cell, "dropout", 0.0) or 0.0)
    return [Piece(f"{layer.name} dropout", SharedDropout(rate), {})] if rate else []


def _recurrent_layer(
    keras: Any, layer: Any, reverse: bool, bidirectional: bool, notes: list[str]
) -> tuple[Layer, HostParams, str]:
    """The layer, one direction's parameters without suffix, and the suffix."""
    layers, cell, name = keras.layers, getattr(layer, "cell", None), layer.name
    if layer.stateful:
        notes.append(f"stateful {name}: its state is not carried over")
    options: dict[str, Any] = {"reverse": reverse, "bidirectional": bidirectional}
    kinds = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell)
    if not isinstance(cell, kinds):
        what = name_of_type(cell) if cell is not None else name_of_type(layer)
        raise InputError(f"{name!r} runs {what}: expected a SimpleRNNCell, LSTMCell or GRUCell")
    options |= {"bias": bool(cell.use_bias), "recurrent_dropout": float(cell.recurrent_dropout or 0.0)}
    weight, recurrent = host(keras, cell.kernel).T, host(keras, cell.recurrent_kernel).T
    biases = [host(keras, cell.bias)] if cell.use_bias else []
    function = activation_name(keras, cell.activation, name)
    size = (weight.shape[1], recurrent.shape[1])
    if isinstance(cell, layers.SimpleRNNCell):
        return RNN(*size, nonlinearity=function, **options), _named(weight, recurrent, biases), "_l0"
    options |= {
        "activation": function,
        "recurrent_activation": activation_name(keras, cell.recurrent_activation, name),
    }
    if isinstance(cell, layers.LSTMCell):
        return LSTM(*size, **options), _named(weight, recurrent, biases), "_l0"
    if biases and cell.reset_after:
        biases = [biases[0][0], biases[0][1]]
    swapped = [swap_gates(rows) for rows in (weight, recurrent, *biases)]
    kind = GRU(*size, reset_after=bool(cell.reset_after), **options)
    return kind, _named(swapped[0], swapped[1], swapped[2:]), "_l0"


def _named(weight: Host, recurrent: Host, biases: Sequence[Host]) -> HostParams:
    params = {"weight_ih": np.ascontiguousarray(weight), "weight_hh": np.ascontiguousarray(recurrent)}
    if biases:
        params["bias_ih"] = biases[0]
        params["bias_hh"] = biases[1] if len(biases) > 1 else np.zeros_like(biases[0])
    return params


def swap_gates(rows: Host) -> Host:
    """Row blocks of a GRU's gates from Keras' order to ours, or back.

    Examples
    --------
    >>> swap_gates(np.array([1, 2, 3])).tolist()
    [2, 1, 3]
    """
    blocks = np.split(rows, 3)
    return np.concatenate([blocks[k] for k in KERAS_GRU_GATES])
