"""A network of this library as a `Graph`: what each layer is in ONNX's operators.

The graph takes x (B, T, ...) with B and T open. Recurrent nodes have ``layout=0``, between transposes, because
onnxruntime refuses the other. With lengths, what is past a row's end is made zero after every layer, as here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...cells import ElmanCell, GRUCell, LSTMCell
from ...errors import InputError
from ...layers import (
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
    Recurrent,
    SharedDropout,
    Softmax,
    flat_layers,
)
from .graph import Graph
from .nodes import Constant, Node, Port
from .recurrent import ACTIVATION_NAMES, SETTINGS

__all__ = ["OPSET", "graph_of_network", "node_of_cell"]

OPSET = 17
LENGTHS = "lengths"
_STEP_FUNCTIONS = {ours: name for name, ours in ACTIVATION_NAMES.items() if name not in ("Affine", "ScaledTanh")}
_STEP_FUNCTIONS |= {"identity": "Identity", "exponential": "Exp"}
_ONE_FUNCTION = {"identity": ("Affine", (1.0, 0.0))}


class Emitter:
    """Collects the nodes, weights and constants of a graph.

    Attributes
    ----------
    dtype : str
    lengths : str
        Name of the input with the rows' lengths, or "".
    """

    def __init__(self, dtype: str, lengths: str) -> None:
        self.dtype = dtype
        self.lengths = lengths
        self.nodes: list[Node] = []
        self.weights: dict[str, tuple[int, ...]] = {}
        self.constants: dict[Constant, str] = {}
        self._known: dict[str, str] = {}

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Append a node; returns the name of its first output."""
        name = f"{op}_{len(self.nodes)}"
        names = (name, *(f"{name}_{k}" for k in range(1, outputs)))
        self.nodes.append(Node(op, inputs, names, tuple(sorted(attributes.items())), name))
        return name

    def integers(self, *values: int, scalar: bool = False) -> str:
        """A constant of integers; returns its name."""
        return self._constant(np.asarray(values[0] if scalar else values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A constant floating scalar; returns its name."""
        return self._constant(np.asarray(value, dtype=self.dtype))

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        return self.constants.setdefault(Constant.of(array), f"constant_{len(self.constants)}")

    def weight(self, name: str, *shape: int) -> str:
        """A parameter; returns its name."""
        self.weights[name] = shape
        return name

    def once(self, key: str, make: Callable[[], str]) -> str:
        """A value that several layers share."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    # ------------------------------------------------------------------ lengths

    def steps(self) -> str:
        """The numbers of the steps (1, T)."""

        def make() -> str:
            count = self.add("Squeeze", self.add("Shape", "x", start=1, end=2), self.integers(0))
            zero, one = self.integers(0, scalar=True), self.integers(1, scalar=True)
            return self.add("Unsqueeze", self.add("Range", zero, count, one), self.integers(0))

        return self.once("steps", make)

    def ends(self) -> str:
        """The lengths (B, 1)."""
        return self.once("ends", lambda: self.add("Unsqueeze", self.add("Cast", self.lengths, to=7), self.integers(1)))

    def valid(self) -> str:
        """Whether a step is before its row's end (B, T)."""
        return self.once("valid", lambda: self.add("Less", self.steps(), self.ends()))

    def wide(self, key: str, make: Callable[[], str]) -> str:
        """A shared (B, T) as (B, T, 1)."""
        return self.once(f"wide {key}", lambda: self.add("Unsqueeze", self.once(key, make), self.integers(2)))

    def zero_padding(self, x: str) -> str:
        """x (B, T, F), zero past the rows' ends."""
        if not self.lengths:
            return x
        return self.add("Where", self.wide("valid", self.valid), x, self.number(0.0))


# ---------------------------------------------------------------------- layers


def graph_of_network(network: Layer, dtype: str, lengths: bool) -> Graph:
    """The graph of a network.

    Raises
    ------
    InputError
        ONNX's operators can't express it; the message names the option.
    """
    if isinstance(network, Graph):
        raise InputError("the network is a graph already")
    layers = flat_layers(network)
    has_time = any(layer.needs_time for _, layer in layers)
    if lengths and not has_time:
        raise InputError("lengths=True needs a network with a time axis")
    emitter = Emitter(dtype, LENGTHS if lengths else "")
    if network.takes_integers:
        x = Port("x", "int64", ("batch", "time"))
    else:
        time = ("time",) if has_time else ()
        x = Port("x", dtype, ("batch", *time, network.in_width or "features"))
    y = "x"
    for prefix, layer in layers:
        if emitter.lengths and not has_time:
            emitter.lengths = ""
        y = _emit(emitter, prefix, layer, y)
        has_time = has_time and layer.keeps_time
    y = emitter.add("Identity", y)
    nodes = [*emitter.nodes[:-1], Node("Identity", emitter.nodes[-1].inputs, ("y",), (), "y")]
    width = network.out_width(network.in_width)
    out = Port("y", dtype, ("batch", *(("time",) if has_time else ()), width or "outputs"))
    inputs = (x, Port(LENGTHS, "int32", ("batch",))) if lengths else (x,)
    constants = tuple((name, constant) for constant, name in emitter.constants.items())
    weights = tuple(emitter.weights.items())
    name = LENGTHS if any(LENGTHS in node.inputs[4:5] for node in nodes) else ""
    return Graph(tuple(nodes), inputs, (out,), weights, constants, OPSET, lengths=name)


def _emit(e: Emitter, prefix: str, layer: Layer, x: str) -> str:
    """Append a layer's nodes; returns the name of its output."""
    if isinstance(layer, (RNN, LSTM, GRU, Recurrent)):
        return _emit_recurrent(e, prefix, layer, x)
    emit = _EMITTERS.get(type(layer))
    if emit is None:
        known = ", ".join(["RNN", "LSTM", "GRU", "Recurrent", "Sequential", *(cls.__name__ for cls in _EMITTERS)])
        raise InputError(f"{type(layer).__name__} has no form in ONNX's operators: only {known} can be exported")
    return emit(e, prefix, layer, x)


def _emit_linear(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    weight = e.weight(f"{prefix}weight", layer.out_features, layer.in_features)
    y = e.add("MatMul", e.zero_padding(x), e.add("Transpose", weight, perm=(1, 0)))
    if not layer.bias:
        return y
    return e.zero_padding(e.add("Add", y, e.weight(f"{prefix}bias", layer.out_features)))


def _emit_embedding(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    weight = e.weight(f"{prefix}weight", layer.num_embeddings, layer.embedding_dim)
    if e.lengths:  # what is past an end is not looked at
        x = e.add("Where", e.valid(), x, e.integers(0, scalar=True))
    return e.zero_padding(e.add("Gather", weight, x))


def _emit_last(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    if not e.lengths:
        return e.add("Gather", x, e.integers(-1, scalar=True), axis=1)

    def make() -> str:
        return e.add("Equal", e.steps(), e.add("Sub", e.ends(), e.integers(1, scalar=True)))

    chosen = e.add("Where", e.wide("last", make), x, e.number(0.0))
    return e.add("ReduceSum", chosen, e.integers(1), keepdims=0)


def _emit_ends(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    forward = _emit_last(e, prefix, layer, x)
    first = e.add("Gather", e.zero_padding(x), e.integers(0, scalar=True), axis=1)
    halves = [e.add("Split", value, outputs=2, axis=-1) for value in (forward, first)]
    return e.add("Concat", halves[0], f"{halves[1]}_1", axis=-1)


def _emit_mean(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    if not e.lengths:
        return e.add("ReduceMean", x, axes=(1,), keepdims=0)
    total = e.add("ReduceSum", e.zero_padding(x), e.integers(1), keepdims=0)
    counts = e.add("Max", e.add("Cast", e.ends(), to=_data_type(e.dtype)), e.number(1.0))
    return e.add("Div", total, counts)


def _emit_max(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    if not e.lengths:
        return e.add("ReduceMax", x, axes=(1,), keepdims=0)
    candidates = e.add("Where", e.wide("valid", e.valid), x, e.number(-np.inf))
    largest = e.add("ReduceMax", candidates, axes=(1,), keepdims=0)
    any_step = e.add("Greater", e.ends(), e.integers(0, scalar=True))
    return e.add("Where", any_step, largest, e.number(0.0))


def _emit_nothing(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    return e.zero_padding(x)


def _emit_flip(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    if e.lengths:
        raise InputError("Flip with lengths=True has no form in ONNX's operators here: export without lengths")
    last, before_first = e.integers(-1), e.integers(np.iinfo(np.int64).min)
    return e.add("Slice", x, last, before_first, e.integers(1), last)


def _emit_merge(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    left = e.add("Split", e.zero_padding(x), outputs=2, axis=-1)
    y = e.add("Mul" if layer.mode == "mul" else "Add", left, f"{left}_1")
    return e.add("Mul", y, e.number(0.5)) if layer.mode == "ave" else y


def _emit_softmax(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    return e.zero_padding(e.add("LogSoftmax" if layer.log else "Softmax", e.zero_padding(x), axis=-1))


def _emit_activation(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    name, settings = _function(layer.function)
    x = e.zero_padding(x)
    if name in _STEP_FUNCTIONS:
        attributes: dict[str, Any] = dict(zip(("alpha", "beta"), settings, strict=False))
        y = e.add(_STEP_FUNCTIONS[name], x, **attributes)
    elif name == "affine":
        y = e.add("Add", e.add("Mul", x, e.number(settings[0])), e.number(settings[1]))
    else:  # scaled_tanh
        y = e.add("Mul", e.add("Tanh", e.add("Mul", x, e.number(settings[1]))), e.number(settings[0]))
    return e.zero_padding(y)


_EMITTERS: dict[type[Layer], Callable[[Emitter, str, Any, str], str]] = {
    Linear: _emit_linear,
    Embedding: _emit_embedding,
    Last: _emit_last,
    Ends: _emit_ends,
    Mean: _emit_mean,
    Max: _emit_max,
    Dropout: _emit_nothing,
    SharedDropout: _emit_nothing,
    Flip: _emit_flip,
    Merge: _emit_merge,
    Softmax: _emit_softmax,
    Activation: _emit_activation,
}


def _data_type(dtype: str) -> int:
    return {"float32": 1, "float64": 11}[dtype]


def _function(spec: str) -> tuple[str, tuple[float, ...]]:
    """An activation's name and all its settings."""
    name, _, rest = spec.strip().partition("(")
    name = name.strip()
    given = tuple(float(part) for part in rest.rstrip(") ").split(",") if part.strip())
    defaults = SETTINGS.get(name, ())
    return name, (*given, *defaults[len(given) :])


# ---------------------------------------------------------------------- recurrent layers


def _emit_recurrent(e: Emitter, prefix: str, layer: Any, x: str) -> str:
    op, functions, attributes = node_of_cell(layer)
    if layer.zoneout:
        raise InputError(f"{type(layer).__name__} with zoneout={layer.zoneout} has no form in ONNX's operators")
    directions = 2 if layer.bidirectional else 1
    direction = "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward"
    names, settings = [], []
    for spec in functions * directions:
        name, values = _function(spec)
        theirs = next((n for n, ours in ACTIVATION_NAMES.items() if ours == name), None)
        if name in _ONE_FUNCTION:
            theirs, values = _ONE_FUNCTION[name]
        if theirs is None:
            raise InputError(f"activation {spec!r} has no form in ONNX's {op}: only {', '.join(ACTIVATION_NAMES)}")
        names.append(theirs)
        settings.append(values)
    attributes |= {"direction": direction, "activations": tuple(names), "hidden_size": layer.hidden_size}
    for k, key in enumerate(("activation_alpha", "activation_beta")):
        values = tuple(s[k] for s in settings if len(s) > k)
        if values:
            attributes[key] = values
    rows, features = {"RNN": 1, "GRU": 3, "LSTM": 4}[op] * layer.hidden_size, layer.input_size
    y = e.add("Transpose", x, perm=(1, 0, 2))
    for k in range(layer.num_layers):
        inputs = [
            y,
            e.weight(f"{prefix}W_l{k}", directions, rows, features),
            e.weight(f"{prefix}R_l{k}", directions, rows, layer.hidden_size),
            e.weight(f"{prefix}B_l{k}", directions, 2 * rows) if layer.bias else "",
            e.lengths,
        ]
        if getattr(layer.cell, "peepholes", False):
            inputs += ["", "", e.weight(f"{prefix}P_l{k}", directions, 3 * layer.hidden_size)]
        while not inputs[-1]:
            inputs.pop()
        y = e.add(op, *inputs, **attributes)
        perm = (2, 0, 1, 3) if k == layer.num_layers - 1 else (0, 2, 1, 3)
        y = e.add("Reshape", e.add("Transpose", y, perm=perm), e.integers(0, 0, -1))
        features = directions * layer.hidden_size
    return y


def node_of_cell(layer: Any) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """The operator, its activations and its other attributes."""
    cell = layer.cell
    attributes: dict[str, Any] = {"clip": float(cell.clip)} if getattr(cell, "clip", None) is not None else {}
    if type(cell) is ElmanCell:
        return "RNN", (cell.nonlinearity,), attributes
    if type(cell) is GRUCell:
        attributes["linear_before_reset"] = int(cell.reset_after)
        return "GRU", (cell.recurrent_activation, cell.activation), attributes
    if type(cell) is not LSTMCell:
        raise InputError(f"a cell of type {type(cell).__name__} has no form in ONNX's operators")
    if cell.proj_size:
        raise InputError(f"LSTM with proj_size={cell.proj_size} has no form in ONNX's operators")
    if cell.coupled:
        attributes["input_forget"] = 1
    squash = cell.output_activation or cell.activation
    return "LSTM", (cell.recurrent_activation, cell.activation, squash), attributes
