"""Recurrent networks that run where your arrays already live."""

import sys
from typing import TYPE_CHECKING, Any

from . import cells
from .arrays import Backend, BackendInfo, asarray, backend, backends, to_numpy
from .cells import activations
from .errors import BackendError, ConversionError, InputError, MissingDependencyError, NonFiniteError
from .layers import (
    GRU,
    LSTM,
    RNN,
    Dropout,
    Embedding,
    Last,
    Layer,
    LayerNormGRU,
    LayerNormLSTM,
    Linear,
    Max,
    Mean,
    MinGRU,
    MinLSTM,
    Recurrent,
    Sequential,
    initializers,
)
from .models import GradientFlow, Model, Stream, gradient_flow, load
from .notebook import SimpleRNN, dsigmoid, dtanh, sigmoid, tanh
from .training import (
    EarlyStopping,
    History,
    adam,
    adamw,
    clip_by_global_norm,
    cosine_decay,
    exponential_decay,
    losses,
    piecewise_constant,
    rmsprop,
    sgd,
    warmup_cosine_decay,
)
from .verify import verify
from .version import __version__

if TYPE_CHECKING:
    from .interop.equinox import from_equinox
    from .interop.flax import from_flax
    from .interop.keras import from_keras
    from .interop.keras_export import to_keras
    from .interop.onnx.importing import from_onnx
    from .interop.onnx.writing import to_onnx
    from .interop.torch import from_torch
    from .interop.torch_export import to_torch

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Backend",
    "BackendError",
    "BackendInfo",
    "ConversionError",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "GradientFlow",
    "History",
    "InputError",
    "Last",
    "Layer",
    "LayerNormGRU",
    "LayerNormLSTM",
    "Linear",
    "Max",
    "Mean",
    "MinGRU",
    "MinLSTM",
    "MissingDependencyError",
    "Model",
    "NonFiniteError",
    "Recurrent",
    "Sequential",
    "SimpleRNN",
    "Stream",
    "__version__",
    "activations",
    "adam",
    "adamw",
    "asarray",
    "backend",
    "backends",
    "cells",
    "clip_by_global_norm",
    "cosine_decay",
    "dsigmoid",
    "dtanh",
    "exponential_decay",
    "from_equinox",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "gradient_flow",
    "initializers",
    "load",
    "losses",
    "piecewise_constant",
    "rmsprop",
    "sgd",
    "sigmoid",
    "tanh",
    "to_keras",
    "to_numpy",
    "to_onnx",
    "to_torch",
    "verify",
    "warmup_cosine_decay",
]

# These modules keep the short paths that users know: ``from portable_rnn.losses import mse``.
for _module in (activations, initializers, losses):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module

# Imported when they are asked for
_LAZY = {
    "from_onnx": "interop.onnx.importing",
    "to_onnx": "interop.onnx.writing",
    "from_equinox": "interop.equinox",
    "from_flax": "interop.flax",
    "from_keras": "interop.keras",
    "from_torch": "interop.torch",
    "to_keras": "interop.keras_export",
    "to_torch": "interop.torch_export",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
