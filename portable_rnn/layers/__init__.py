"""Layers: configuration as frozen dataclasses, a forward pass, and the backward pass derived by hand."""

from . import initializers
from .base import Layer, chosen, keep_mask, place_masks, random_generator, uniform, valid_steps
from .feedforward import (
    Dropout,
    Embedding,
    Last,
    Linear,
    Max,
    Mean,
    Sequential,
    check_streams,
    flat_layers,
    with_prefix,
)
from .more_recurrent import LayerNormGRU, LayerNormLSTM, MinGRU, MinLSTM
from .recurrent import GRU, LSTM, RNN, Recurrent, check_positive_integer
from .time.one_direction import Span, run_direction, run_direction_backward
from .time.stack import is_recurrent, one_direction, stack_backward, state_sizes, suffixes
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
    "Sequential",
    "SharedDropout",
    "Softmax",
    "Span",
    "check_positive_integer",
    "check_streams",
    "chosen",
    "flat_layers",
    "initializers",
    "is_recurrent",
    "keep_mask",
    "one_direction",
    "place_masks",
    "random_generator",
    "run_direction",
    "run_direction_backward",
    "stack_backward",
    "state_sizes",
    "suffixes",
    "uniform",
    "valid_steps",
    "with_prefix",
]
