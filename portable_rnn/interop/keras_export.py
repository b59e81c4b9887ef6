"""A model as a Keras 3 model with equal outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import to_numpy
from ..cells import activation
from ..errors import InputError
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
    Sequential,
    SharedDropout,
    Softmax,
    own_parameters,
    walk,
)
from ..models import Model
from .common import HostParams, Piece, refuse_options
from .keras import working_dtype
from .keras_layers import ACTIVATIONS, host, import_keras, swap_gates
from .selftest import Host, check_piece

__all__ = ["to_keras"]

_COMMON = {
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "bidirectional",
    "reverse",
    "dropout",
    "recurrent_dropout",
}
_SUPPORTED: dict[Any, set[str]] = {
    RNN: _COMMON | {"nonlinearity"},
    LSTM: _COMMON | {"activation", "recurrent_activation", "output_activation"},
    GRU: _COMMON | {"activation", "recurrent_activation", "reset_after"},
}


def to_keras(model: Model) -> Any:
    """The model as a `keras.Sequential` with equal outputs, on the backend that Keras runs on.

    Input is (batch, time, features), or integers (batch, time). `Last` becomes ``return_sequences=False``, `Ends` the
    same of a `Bidirectional`, a stack of layers one Keras layer each. Two biases become their sum where Keras has one.

    Parameters
    ----------
    model : Model

    Returns
    -------
    keras.Sequential

    Raises
    ------
    InputError
        The network has what Keras cannot express, such as ``proj_size`` or ``peepholes=True``.
    ConversionError
        The Keras model does not give the model's outputs.
    MissingDependencyError
        Keras is not installed.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> model = prnn.Model(prnn.Sequential(prnn.LSTM(3, 8), prnn.Last(), prnn.Linear(8, 2)))
    >>> [layer.name for layer in prnn.to_keras(model).layers]  # doctest: +SKIP
    ['lstm', 'dense']
    """
    if not isinstance(model, Model):
        raise InputError(f"to_keras takes a portable_rnn.Model, got {type(model).__name__}")
    keras = import_keras("to_keras")
    params = {name: to_numpy(value) for name, value in model.params.items()}
    dtype = model.backend.dtype_name
    line = list(_flat(model.network, params))
    width = next((layer.in_width for layer, _ in line if layer.in_width is not None), None)
    integers = model.network.takes_integers
    if width is None and not integers:
        raise InputError(f"{model.network} takes any number of features, a Keras model a fixed one: add a layer")
    first = keras.Input((None,), dtype="int32") if integers else keras.Input((None, width), dtype=dtype)
    build = _Build(keras, dtype, line)
    made = keras.Sequential([first, *build.layers()])
    for layer, weights in build.weights:
        layer.set_weights([np.asarray(w) for w in weights])

    def run(x: Host) -> Host:
        kind = "int32" if x.dtype.kind == "i" else dtype
        return host(keras, made(keras.ops.convert_to_tensor(x, dtype=kind), training=False))

    x = np.zeros((1, 1) if integers else (1, 1, width or 1), dtype="int32" if integers else dtype)
    check_piece(
        Piece(type(model.network).__name__, model.network, params, run), working_dtype(keras, {run(x).dtype.name})
    )
    return made


def _flat(layer: Layer, params: HostParams) -> Iterator[tuple[Layer, HostParams]]:
    """The layers in a line with their parameters; a `Masked` stands before what is inside it."""
    for prefix, part in walk(layer):
        if not isinstance(part, Sequential):
            yield part, {} if isinstance(part, Masked) else own_parameters(params, prefix)


@dataclass
class _Build:
    """Keras layers for a line of ours; `weights` fills up on the way."""

    keras: Any
    dtype: str
    line: list[tuple[Layer, HostParams]]
    weights: list[tuple[Any, list[Host]]] = field(default_factory=list)

    def layers(self) -> Iterator[Any]:
        """Every Keras layer, in order."""
        mask_zero = False
        while self.line:
            layer, params = self.line.pop(0)
            if isinstance(layer, (RNN, LSTM, GRU)):
                yield from self._recurrent(layer, params)
            elif isinstance(layer, Masked):
                mask_zero = layer.takes_integers
                if mask_zero and layer.value != 0:
                    raise InputError(f"{layer}: an Embedding of Keras masks 0 only, not {layer.value:g}")
                if not mask_zero:
                    yield self.keras.layers.Masking(layer.value, dtype=self.dtype)
            else:
                yield self._plain(layer, params, mask_zero)

    def _taken(self, kind: type[Layer]) -> Any:
        """The next layer, taken off the line, if it is of this kind."""
        if self.line and type(self.line[0][0]) is kind:
            return self.line.pop(0)[0]
        return None

    def _plain(self, layer: Layer, params: HostParams, mask_zero: bool) -> Any:
        layers, dtype = self.keras.layers, self.dtype
        if isinstance(layer, Linear):
            dense = layers.Dense(layer.out_features, use_bias=layer.bias, dtype=dtype)
            weights = [params["weight"].T, params["bias"]] if layer.bias else [params["weight"].T]
            self.weights.append((dense, weights))
            return dense
        if isinstance(layer, Embedding):
            table = layers.Embedding(layer.num_embeddings, layer.embedding_dim, mask_zero=mask_zero, dtype=dtype)
            self.weights.append((table, [params["weight"]]))
            return table
        if isinstance(layer, Activation):
            return self._activation(layer.function)
        if isinstance(layer, Softmax):
            return layers.Activation("log_softmax" if layer.log else "softmax", dtype=dtype)
        simple: dict[type[Layer], Any] = {Mean: layers.GlobalAveragePooling1D, Max: layers.GlobalMaxPooling1D}
        if type(layer) in simple:
            return simple[type(layer)](dtype=dtype)
        if isinstance(layer, Dropout):
            return layers.Dropout(layer.p, dtype=dtype)
        if isinstance(layer, SharedDropout):
            return layers.SpatialDropout1D(layer.p, dtype=dtype)
        if isinstance(layer, (Last, Ends, Flip, Merge)):
            raise InputError(
                f"{layer} stands where Keras has nothing for it: Keras takes Last after a recurrent layer, Ends and "
                "Merge after a bidirectional one, Flip after one with reverse=True"
            )
        raise InputError(f"Keras has no layer for {layer}")

    def _activation(self, function: str) -> Any:
        layers = self.keras.layers
        name = keras_activation(function)
        if name is not None:
            return layers.Activation(name, dtype=self.dtype)
        kind, _, rest = function.partition("(")
        setting = float(rest.rstrip(")").partition(",")[0] or (0.01 if kind == "leaky_relu" else 1.0))
        if kind == "leaky_relu":
            return layers.LeakyReLU(negative_slope=setting, dtype=self.dtype)
        if kind == "elu":
            return layers.ELU(alpha=setting, dtype=self.dtype)
        raise InputError(f"Keras has no activation {function!r}")

    def _recurrent(self, layer: Any, params: HostParams) -> Iterator[Any]:
        refuse_options(layer, _SUPPORTED[type(layer)], "Keras")
        if isinstance(layer, LSTM) and layer.output_activation not in (None, layer.activation):
            raise InputError(f"{layer}: Keras' LSTM has no output_activation={layer.output_activation!r} of its own")
        ends = self._ends(layer)
        mode = self._taken(Merge) if layer.bidirectional else None
        for depth in range(layer.num_layers):
            top = depth == layer.num_layers - 1
            # after the first layer, outputs stand in the order of computation
            made = self._one(layer, not (top and ends), layer.reverse and depth == 0)
            weights = self._one_weights(layer, params, f"_l{depth}")
            if layer.bidirectional:
                merge = mode.mode if top and mode is not None else "concat"
                made = self.keras.layers.Bidirectional(made, merge_mode=merge, dtype=self.dtype)
                weights += self._one_weights(layer, params, f"_l{depth}_reverse")
            self.weights.append((made, weights))
            yield made
            if layer.dropout and not top:
                yield self.keras.layers.Dropout(layer.dropout, dtype=self.dtype)

    def _ends(self, layer: Any) -> bool:
        """Whether only the last output of a recurrent layer is wanted; takes what says so off the line."""
        if layer.reverse and self._taken(Flip) is None:
            raise InputError(
                f"{layer}: outputs of Keras' go_backwards=True stand in the order of computation; let Flip() follow"
            )
        return self._taken(Ends if layer.bidirectional else Last) is not None

    def _one(self, layer: Any, sequences: bool, backwards: bool) -> Any:
        options: dict[str, Any] = {
            "use_bias": layer.bias,
            "return_sequences": sequences,
            "go_backwards": backwards,
            "recurrent_dropout": layer.recurrent_dropout,
            "dtype": self.dtype,
        }
        if isinstance(layer, RNN):
            function = _required_activation(layer, layer.nonlinearity)
            return self.keras.layers.SimpleRNN(layer.hidden_size, activation=function, **options)
        options["activation"] = _required_activation(layer, layer.activation)
        options["recurrent_activation"] = _required_activation(layer, layer.recurrent_activation)
        if isinstance(layer, LSTM):
            return self.keras.layers.LSTM(layer.hidden_size, **options)
        return self.keras.layers.GRU(layer.hidden_size, reset_after=layer.reset_after, **options)

    def _one_weights(self, layer: Any, params: HostParams, suffix: str) -> list[Host]:
        """One direction's weights as Keras has them: kernel, recurrent kernel, bias."""
        names = [n for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if n + suffix in params]
        values = [params[n + suffix] for n in names]
        if isinstance(layer, GRU):
            values = [swap_gates(value) for value in values]
        kernels, biases = [value.T for value in values[:2]], values[2:]
        if not biases:
            return kernels
        both = isinstance(layer, GRU) and layer.reset_after
        return [*kernels, np.stack(biases) if both else biases[0] + biases[1]]


def keras_activation(function: str) -> str | None:
    """Keras' name of an activation, where it has it with the same settings.

    Examples
    --------
    >>> keras_activation("identity"), keras_activation("leaky_relu(0.2)"), keras_activation("affine(2.0)")
    ('linear', 'leaky_relu', None)
    """
    x = np.linspace(-4.0, 4.0, 33)
    ours = activation(function).forward(np, x)
    for name, spec in ACTIVATIONS.items():
        if spec.partition("(")[0] == function.partition("(")[0].strip():
            return name if np.array_equal(activation(spec).forward(np, x), ours) else None
    return None


def _required_activation(layer: Layer, function: str) -> str:
    name = keras_activation(function)
    if name is None:
        raise InputError(f"{layer}: Keras has no activation {function!r} with these settings")
    return name
