"""Recurrent networks that run where your arrays already live."""

from . import activations, cells, losses
from .errors import BackendError, InputError, MissingDependencyError, NonFiniteError
from .history import EarlyStopping, History
from .layer import Layer
from .layers import Dropout, Embedding, Last, Linear, Max, Mean, Sequential
from .model import Model, load
from .namespace import Backend, BackendInfo, asarray, backend, backends, to_numpy
from .optimizers import (
    adam,
    adamw,
    clip_by_global_norm,
    cosine_decay,
    exponential_decay,
    piecewise_constant,
    rmsprop,
    sgd,
    warmup_cosine_decay,
)
from .recurrent import GRU, LSTM, RNN, Recurrent
from .streaming import Stream
from .version import __version__

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Backend",
    "BackendError",
    "BackendInfo",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "History",
    "InputError",
    "Last",
    "Layer",
    "Linear",
    "Max",
    "Mean",
    "MissingDependencyError",
    "Model",
    "NonFiniteError",
    "Recurrent",
    "Sequential",
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
    "exponential_decay",
    "load",
    "losses",
    "piecewise_constant",
    "rmsprop",
    "sgd",
    "to_numpy",
    "warmup_cosine_decay",
]
