"""A network with its parameters: train, predict, stream, save, load."""

from .checkpoint import (
    FORMAT,
    FORMAT_VERSION,
    network_from_config,
    network_to_config,
    not_finite,
    read_checkpoint,
    write_checkpoint,
)
from .checks import check_callbacks, check_classes, check_finite, check_truncation
from .gradient_flow import GradientFlow, LayerFlow, gradient_flow
from .model import Model, load
from .stream import Stream

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "GradientFlow",
    "LayerFlow",
    "Model",
    "Stream",
    "check_callbacks",
    "check_classes",
    "check_finite",
    "check_truncation",
    "gradient_flow",
    "load",
    "network_from_config",
    "network_to_config",
    "not_finite",
    "read_checkpoint",
    "write_checkpoint",
]
