"""`from_onnx`: an ONNX file as a model that predicts and trains."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from ...arrays import Array, Backend, asarray
from ...errors import InputError
from ...files import parse_json
from ...layers import Layer
from ...models import Model, network_from_config
from ..common import refuse_not_finite, require
from .budget import FREE, Budget
from .exporting import graph_of_network
from .graph import RECURRENT, Graph
from .nodes import Host, checked_size
from .packing import unpacked
from .reading import HostParams, graph_of, read_model
from .writing import PREFIX

__all__ = ["from_onnx", "oriented"]


def from_onnx(
    source: str | os.PathLike[str] | bytes | Any,
    *,
    backend: str | ModuleType | Array | Backend = "numpy",
    dtype: Any = None,
) -> Model:
    """Load an ONNX model as one that predicts and trains on any array library.

    A file that `to_onnx` wrote gives the network it was made of. Any other becomes a `portable_rnn.interop.onnx.Graph`:
    RNN, GRU and LSTM nodes with all their options and the operators that exporters put around them, each with its
    hand-written backward pass. Floating initializers are its parameters, under their own names.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
    backend : as in `portable_rnn.backend`
    dtype : "float32" or "float64", optional
        The file's when left out.

    Returns
    -------
    Model
        Its ``predict`` takes x (B, T, ...), whichever order the file has; ``network.run`` takes and gives inputs and
        outputs by their names in the file.

    Raises
    ------
    InputError
        The file is cut short or damaged, or holds an operator, an operator version or data that are not read.
    MissingDependencyError
        onnx is not installed.
    """
    onnx = require("onnx", "onnx", "reading ONNX files")
    proto, folder = read_model(source, onnx)
    graph, params = graph_of(proto, folder, onnx)
    # an infinity may be a mask of attention
    refuse_not_finite({name: value for name, value in params.items() if np.isnan(value).any()})
    about = {entry.key: entry.value for entry in proto.metadata_props}
    network = own_network(graph, params, about)
    if network is None:
        model = model_of(oriented(graph, params), params, backend, dtype)
    else:
        model = model_of(network, unpacked(network, params), backend, dtype)
    prefix = f"{PREFIX}user."
    model.metadata = {key.removeprefix(prefix): value for key, value in about.items() if key.startswith(prefix)}
    return model


def own_network(graph: Graph, params: HostParams, about: dict[str, str]) -> Layer | None:
    """The network that a file says it was made of, where exporting that network gives this very graph."""
    try:
        config = parse_json(about[f"{PREFIX}network"], "network")
        if not _plausible(config, len(graph.nodes)):
            return None
        network = network_from_config(config)
        dtype = next(port.dtype for port in graph.outputs)
        made = graph_of_network(network, dtype, about.get(f"{PREFIX}lengths") == "1")
    except (InputError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return network if made == graph and all(p.dtype.name == dtype for p in params.values()) else None


def _plausible(config: Any, nodes: int) -> bool:
    """Whether a description can be one of a graph with so many nodes, so that building it takes no longer than that."""
    if isinstance(config, dict):
        layers = config.get("num_layers", 1)
        return isinstance(layers, int) and layers <= nodes and all(_plausible(v, nodes) for v in config.values())
    return all(_plausible(v, nodes) for v in config) if isinstance(config, list) else True


def model_of(graph: Any, params: HostParams, backend: Any, dtype: Any) -> Model:
    """A model of a network and its parameters on the host."""
    if dtype is None and not isinstance(backend, Backend):
        kinds = {value.dtype.name for value in params.values()}
        kinds |= {port.dtype for port in getattr(graph, "inputs", ()) if port.floating and not params}
        dtype = "float64" if "float64" in kinds else "float32"
    model = Model(graph, backend, dtype)
    model.params = {name: asarray(params[name].copy(), model.backend) for name in graph.parameter_shapes()}
    return model


def oriented(graph: Graph, params: HostParams) -> Graph:
    """The graph with batch and time axes found, by running it on zeros of sizes that occur nowhere else in it."""
    if not graph.inputs:
        raise InputError("the graph has no inputs: there is nothing to predict from")
    dims = graph.inputs[0].dims
    if dims is None or len(dims) < 2:
        return graph
    taken = {n for _, shape in graph.weights for n in shape}
    taken |= {d for port in (*graph.inputs, *graph.outputs) for d in port.dims or () if isinstance(d, int)}
    steps, batch = ([n for n in (5, 7, 11, 13, 17, 19, 23, 29, 31) if n not in taken] + [5, 7])[:2]
    # without a recurrent node to ask, a fixed size before an open one is taken for the time axis of an unrolled loop
    unrolled = isinstance(dims[0], int) and not isinstance(dims[1], int)
    before = next((k for k, node in enumerate(graph.nodes) if node.op in RECURRENT), len(graph.nodes))
    with np.errstate(all="ignore"):
        # a file may run at one length only: then its nodes before the first recurrent one still tell the axes
        for count in (len(graph.nodes), before):
            for time_first in (unrolled, not unrolled):
                axes = _axes(graph, params, steps, batch, time_first, count)
                if axes is not None:
                    return replace(graph, time_first=time_first, y_axes=axes)
    return graph


def _axes(
    graph: Graph, params: HostParams, steps: int, batch: int, time_first: bool, count: int
) -> tuple[int | None, int | None] | None:
    """The batch and the time axis of the first output, if the first `count` nodes run that way around."""
    first = graph.inputs[0].dims or ()
    open_sizes = [*((steps, batch) if time_first else (batch, steps)), *[1] * len(first)]
    shape = tuple(d if isinstance(d, int) else n for d, n in zip(first, open_sizes, strict=False))
    steps, batch = (shape[0], shape[1]) if time_first else (shape[1], shape[0])
    named = {d: n for d, n in zip(first, shape, strict=True) if isinstance(d, str)}
    try:
        shapes = {graph.inputs[0]: shape}
        for port in graph.inputs[1:]:
            shapes[port] = tuple(d if isinstance(d, int) else named.get(d or "", batch) for d in port.dims or ())
        if sum(math.prod(checked_size(sizes)) for sizes in shapes.values()) > FREE:
            return None  # what the file fixes is too large to be tried
        inputs: dict[str, Any] = {port.name: np.zeros(sizes, dtype=port.dtype) for port, sizes in shapes.items()}
        if graph.lengths:
            inputs[graph.lengths] = np.full(batch, steps, dtype=np.int32)
        partial = replace(graph, nodes=graph.nodes[:count])
        values, _, _ = partial.evaluate(params, inputs, budget=Budget.of_file(params))
    except InputError:
        return None
    recurrent = [node for node in graph.nodes if node.op in RECURRENT and node.inputs[0] in values]
    for node in recurrent:
        seen = _shape(values[node.inputs[0]])[:2]
        if (seen[::-1] if node.get("layout", 0) else seen) != (steps, batch):
            return None
    has_time = len(first) > 2 or not graph.inputs[0].floating
    if graph.outputs[0].name in values:
        found = _shape(values[graph.outputs[0].name])
        batch_axis, time_axis = (found.index(n) if n in found else None for n in (batch, steps))
        return batch_axis, time_axis if has_time and batch_axis not in (None, time_axis) else None
    if not recurrent:
        return None
    keeps_time = len(graph.outputs[0].dims or ()) > 2
    return (1, 0) if time_first and keeps_time else (0, 1 if keeps_time else None)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple((value.array if isinstance(value, Host) else value).shape)
