"""The recurrent cells: one time step forward, and the same step backward beside it."""

from . import activations
from .activations import ACTIVATIONS, ActivationName, activation, sigmoid, split_rows
from .cell import Cell, column, columns_of, dropped, summed_outer, weight_shapes
from .elman import ElmanCell
from .gru import GRUCell
from .layer_norm import LayerNormGRUCell, LayerNormLSTMCell, normalize, normalize_backward
from .lstm import LSTMCell
from .minimal import MinGRUCell, MinLSTMCell

__all__ = [
    "ACTIVATIONS",
    "ActivationName",
    "Cell",
    "ElmanCell",
    "GRUCell",
    "LSTMCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "MinGRUCell",
    "MinLSTMCell",
    "activation",
    "activations",
    "column",
    "columns_of",
    "dropped",
    "normalize",
    "normalize_backward",
    "sigmoid",
    "split_rows",
    "summed_outer",
    "weight_shapes",
]
