"""Layers: configuration as frozen dataclasses, a forward pass, and the backward pass derived by hand."""

from . import initializers
from .base import Layer, Stateless, Wrapper, valid_steps
from .drawing import check_memory, chosen, keep_mask, place_masks, random_generator, uniform
from .feedforward import Dropout, Embedding, Linear
from .more_recurrent import LayerNormGRU, LayerNormLSTM, MinGRU, MinLSTM
from .pooling import Last, Max, Mean
from .recurrent import GRU, LSTM, RNN, Recurrent, RecurrentLayer
from .registry import register, registered, registered_name
from .sequential import Sequential, check_streams, flat_layers
from .time.one_direction import Span, run_direction, run_direction_backward
from .time.stack import one_direction, stack_backward, state_sizes, suffixes
from .walks import map_layers, own_parameters, walk
from .wrappers import Activation, Ends, Flip, Masked, Merge, SharedDropout, Softmax

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Dropout",
    "Embedding",
    "Ends",
    "Flip",
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
    "Recurrent",
    "RecurrentLayer",
    "Sequential",
    "SharedDropout",
    "Softmax",
    "Span",
    "Stateless",
    "Wrapper",
    "check_memory",
    "check_streams",
    "chosen",
    "flat_layers",
    "initializers",
    "keep_mask",
    "map_layers",
    "one_direction",
    "own_parameters",
    "place_masks",
    "random_generator",
    "register",
    "registered",
    "registered_name",
    "run_direction",
    "run_direction_backward",
    "stack_backward",
    "state_sizes",
    "suffixes",
    "uniform",
    "valid_steps",
    "walk",
]
