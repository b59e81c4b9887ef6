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
    Activation,
    Dropout,
    Embedding,
    Ends,
    Flip,
    Last,
    Layer,
    LayerNormGRU,
    LayerNormLSTM,
    Linear,
    Masked,
    Max,
    Mean,
    Merge,
    MinGRU,
    MinLSTM,
    Recurrent,
    RecurrentLayer,
    Sequential,
    SharedDropout,
    Softmax,
    initializers,
    register,
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
    from .interop import (
        from_equinox,
        from_flax,
        from_keras,
        from_onnx,
        from_torch,
        to_keras,
        to_onnx,
        to_torch,
    )

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Backend",
    "BackendError",
    "BackendInfo",
    "ConversionError",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "Ends",
    "Flip",
    "GradientFlow",
    "History",
    "InputError",
    "Last",
    "Layer",
    "LayerNormGRU",
    "LayerNormLSTM",
    "Linear",
    "Masked",
    "Max",
    "Mean",
    "Merge",
    "MinGRU",
    "MinLSTM",
    "MissingDependencyError",
    "Model",
    "NonFiniteError",
    "Recurrent",
    "RecurrentLayer",
    "Sequential",
    "SharedDropout",
    "SimpleRNN",
    "Softmax",
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
    "register",
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

# The readers and writers of other frameworks' models are imported when one of them is asked for.
_INTEROP = (
    "from_equinox",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "to_keras",
    "to_onnx",
    "to_torch",
)


def __getattr__(name: str) -> Any:
    if name not in _INTEROP:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import interop

    return getattr(interop, name)
