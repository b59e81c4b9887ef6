"""Models from other frameworks and back. No framework is imported before a function here is called.

torch and Keras go both ways, Flax and Equinox come in, ONNX has its own room. `portable_rnn.from_torch` and the other
public names lead here.
"""

from .convert import convert, describe, read_model
from .equinox import from_equinox
from .flax import from_flax
from .keras import from_keras
from .keras_export import to_keras
from .onnx import from_onnx, to_onnx
from .torch import from_torch
from .torch_export import to_torch

__all__ = [
    "convert",
    "describe",
    "from_equinox",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "read_model",
    "to_keras",
    "to_onnx",
    "to_torch",
]
