"""One layer of Keras as layers of ours, with its weights and with what masks mean to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BackendError, InputError
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
    Max,
    Mean,
    Merge,
    SharedDropout,
    Softmax,
)
from .common import HostParams, Piece, name_of_type, require, tensor_to_host
from .keras_file import unknown_layer
from .selftest import Host

__all__ = ["ACTIVATIONS", "KERAS_GRU_GATES", "Step", "host", "import_keras", "recurrent_layers", "steps_of"]

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


def host(keras: Any, value: Any) -> Host:
    """A copy of a Keras tensor or variable on the host, float32 where NumPy lacks the dtype."""
    value = value.value if isinstance(value, keras.Variable) else value
    if hasattr(value, "detach"):  # Keras' own way makes torch warn
        return tensor_to_host(require("torch", "torch", "Keras on torch"), value)
    found = np.array(keras.ops.convert_to_numpy(value))
    return found if found.dtype.kind in "iu" or found.dtype in (np.float32, np.float64) else found.astype("float32")


def steps_of(keras: Any, layer: Any, notes: list[str]) -> list[Step]:
    layers = keras.layers
    if not layer.built:
        raise InputError(f"{name_of_type(layer)} {layer.name!r} has no weights yet: call it once, or add an Input")
    if isinstance(layer, layers.TimeDistributed):
        inner = layer.layer
        if not isinstance(inner, (layers.Dense, layers.Activation)):
            raise InputError(
                f"TimeDistributed {layer.name!r} wraps {name_of_type(inner)}: expected Dense or Activation"
            )
        return [Step(layer.name, layer, [p for step in steps_of(keras, inner, notes) for p in step.pieces])]
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
    raise unknown_layer(name_of_type(layer), name)


def recurrent_layers(keras: Any, layer: Any) -> list[Any]:
    """The layers with a state in one that `steps_of` takes."""
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    return [layer] if isinstance(layer, keras.layers.RNN) else []


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
