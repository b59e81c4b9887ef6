"""Recurrent networks that run where your arrays already live."""

from .errors import BackendError, InputError, MissingDependencyError, NonFiniteError
from .layer import Layer
from .layers import Dropout, Embedding, Last, Linear, Max, Mean, Sequential
from .namespace import Backend, BackendInfo, asarray, backend, backends, to_numpy
from .recurrent import GRU, LSTM, RNN

__version__ = "0.1.0"
