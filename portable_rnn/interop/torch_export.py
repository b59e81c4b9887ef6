"""A model as a torch module with equal outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import to_numpy
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
    Max,
    Mean,
    Merge,
    Sequential,
    SharedDropout,
    Softmax,
)
from ..models import Model
from .common import Piece, refuse_options, require
from .selftest import check_piece

__all__ = ["to_torch"]

_COMMON = {"input_size", "hidden_size", "num_layers", "bias", "bidirectional", "reverse", "dropout"}
_SUPPORTED: dict[Any, set[str]] = {
    RNN: _COMMON | {"nonlinearity"},
    LSTM: _COMMON | {"proj_size", "output_activation"},
    GRU: _COMMON,
}


def to_torch(model: Model) -> Any:
    """The model as a `torch.nn.Module` in evaluation mode, on the CPU, with equal outputs.

    A recurrent layer, `Linear`, `Embedding` becomes torch's own module (recurrent ones return ``(y, state)``); a
    `Sequential` becomes a chain of modules that returns y only. Input is batch-first, (B, T, F), whole sequences. The
    state dict has the names of ``model.params``, so it loads back with `from_torch`, and a file saved by
    `Model.save` fits it.

    Parameters
    ----------
    model : Model

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    InputError
        The network has what torch cannot express, such as ``peepholes=True`` or ``reset_after=False``.
    ConversionError
        The module does not give the model's outputs.
    MissingDependencyError
        torch is not installed.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> model = prnn.Model(prnn.Sequential(prnn.LSTM(3, 8), prnn.Last(), prnn.Linear(8, 2)))
    >>> prnn.to_torch(model)  # doctest: +SKIP
    Chain(
      (0): LSTM(3, 8, batch_first=True)
      (1): Last()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    if not isinstance(model, Model):
        raise InputError(f"to_torch takes a portable_rnn.Model, got {type(model).__name__}")
    torch = require("torch", "torch", "to_torch")
    params = {name: to_numpy(value) for name, value in model.params.items()}
    dtype = getattr(torch, model.backend.dtype_name)
    module = _module(torch, model.network, "the network")
    module.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in params.items()}, assign=True)
    module = module.to(dtype).eval()
    _check(torch, module, model.network, params)
    return module


def _check(torch: Any, module: Any, network: Layer, params: dict[str, Any]) -> None:
    import copy

    wide = copy.deepcopy(module).double()

    def run(x: Any) -> Any:
        with torch.no_grad():
            y = wide(torch.tensor(x))
        return (y[0] if isinstance(y, tuple) else y).numpy()

    check_piece(Piece(type(network).__name__, network, params, run), "float64")


def _module(torch: Any, layer: Layer, where: str) -> Any:
    from . import torch_modules as ours

    nn = torch.nn
    if isinstance(layer, Sequential):
        parts = [_module(torch, part, f"layer {k}") for k, part in enumerate(layer.layers)]
        return ours.Chain(*parts)
    if type(layer) in _SUPPORTED:
        return _recurrent(nn, ours, layer, where)
    if isinstance(layer, Linear):
        return nn.Linear(layer.in_features, layer.out_features, layer.bias)
    if isinstance(layer, Embedding):
        return nn.Embedding(layer.num_embeddings, layer.embedding_dim)
    if isinstance(layer, Dropout):
        return nn.Dropout(layer.p)
    if isinstance(layer, SharedDropout):
        return ours.SharedDropout(layer.p)
    if isinstance(layer, Merge):
        return ours.Merge(layer.mode)
    if isinstance(layer, Softmax):
        return nn.LogSoftmax(dim=-1) if layer.log else nn.Softmax(dim=-1)
    if isinstance(layer, Activation):
        own = {
            "tanh": nn.Tanh,
            "sigmoid": nn.Sigmoid,
            "relu": nn.ReLU,
            "softsign": nn.Softsign,
            "identity": nn.Identity,
        }
        return own[layer.function]() if layer.function in own else ours.Elementwise(layer.function)
    if isinstance(layer, (Last, Mean, Max, Flip, Ends)):
        return getattr(ours, type(layer).__name__)()
    raise InputError(f"{where} is {layer}: torch has no module for {type(layer).__name__}")


def _recurrent(nn: Any, ours: Any, layer: Any, where: str) -> Any:
    kind = type(layer).__name__
    refuse_options(layer, _SUPPORTED[type(layer)], "torch", f"{where} is ")
    options: dict[str, Any] = {}
    if isinstance(layer, RNN):
        if layer.nonlinearity not in ("tanh", "relu"):
            raise InputError(f"{where} is {layer}: torch's RNN has 'tanh' and 'relu', no {layer.nonlinearity!r}")
        options["nonlinearity"] = layer.nonlinearity
    if isinstance(layer, LSTM):
        if layer.output_activation not in (None, "tanh"):
            raise InputError(f"{where} is {layer}: torch's LSTM has no output_activation={layer.output_activation!r}")
        options["proj_size"] = int(layer.proj_size)
    cls = getattr(ours, f"Reversed{kind}") if layer.reverse else getattr(nn, kind)
    return cls(
        int(layer.input_size),
        int(layer.hidden_size),
        int(layer.num_layers),
        bias=layer.bias,
        batch_first=True,
        dropout=layer.dropout if layer.num_layers > 1 else 0.0,  # torch warns of one that has no effect
        bidirectional=layer.bidirectional,
        **options,
    )
