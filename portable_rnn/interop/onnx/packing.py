"""A network's parameters in the order and under the names of its graph, and back: nothing but rows change places."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...cells import split_rows
from ...layers import GRU, LSTM, RNN, Layer, Recurrent, flat_layers, own_parameters, suffixes
from .exporting import node_of_cell
from .recurrent import GATES, PEEPHOLES

__all__ = ["packed", "unpacked"]

HostParams = dict[str, np.ndarray[Any, Any]]


def _orders(layer: Any) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """ONNX's number of row blocks, and where ours stand among them and among the peepholes."""
    op, _, attributes = node_of_cell(layer)
    kind = "coupled" if "input_forget" in attributes else op
    return {"RNN": 1, "GRU": 3, "LSTM": 4}[op], GATES[kind], PEEPHOLES.get(kind, ())


def packed(network: Layer, params: HostParams) -> HostParams:
    """A network's parameters as the weights of its graph."""
    found: HostParams = {}
    for prefix, layer in flat_layers(network):
        own = own_parameters(params, prefix)
        if not isinstance(layer, (RNN, LSTM, GRU, Recurrent)):
            found |= {prefix + name: p for name, p in own.items()}
            continue
        blocks, order, peepholes = _orders(layer)
        for k, ends in enumerate(suffixes(layer)):
            put = {"W": ("weight_ih",), "R": ("weight_hh",), "B": ("bias_ih", "bias_hh"), "P": ("weight_peephole",)}
            for theirs, ours in put.items():
                if ours[0] + ends[0] not in own:
                    continue
                among = (3, peepholes) if theirs == "P" else (blocks, order)
                sides = [np.concatenate([_put(own[name + end], *among) for name in ours]) for end in ends]
                found[f"{prefix}{theirs}_l{k}"] = np.stack(sides)
    return found


def unpacked(network: Layer, arrays: HostParams) -> HostParams:
    """Reverse `packed`."""
    found: HostParams = {}
    for prefix, layer in flat_layers(network):
        if not isinstance(layer, (RNN, LSTM, GRU, Recurrent)):
            found |= {prefix + name: arrays[prefix + name] for name in layer.parameter_shapes()}
            continue
        blocks, order, peepholes = _orders(layer)
        for k, ends in enumerate(suffixes(layer)):
            for d, end in enumerate(ends):
                whole = {n: arrays[f"{prefix}{n}_l{k}"][d] for n in "WRBP" if f"{prefix}{n}_l{k}" in arrays}
                own = {"weight_ih": _take(whole["W"], blocks, order), "weight_hh": _take(whole["R"], blocks, order)}
                if "B" in whole:
                    sides = zip(("bias_ih", "bias_hh"), split_rows(whole["B"], 2), strict=True)
                    own |= {name: _take(side, blocks, order) for name, side in sides}
                if "P" in whole:
                    own["weight_peephole"] = _take(whole["P"], 3, peepholes)
                found |= {prefix + name + end: p for name, p in own.items()}
    return {name: found[name] for name in network.parameter_shapes()}


def _put(p: np.ndarray[Any, Any], blocks: int, order: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Our row blocks at their places among ONNX's; zeros where there is none of ours."""
    parts = split_rows(p, len(order))
    return np.concatenate([parts[order.index(k)] if k in order else np.zeros_like(parts[0]) for k in range(blocks)])


def _take(p: np.ndarray[Any, Any], blocks: int, order: tuple[int, ...]) -> np.ndarray[Any, Any]:
    parts = split_rows(p, blocks)
    return np.concatenate([parts[k] for k in order])
