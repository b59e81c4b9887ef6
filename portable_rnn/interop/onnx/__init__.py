"""ONNX in and out: `from_onnx` makes a network that predicts and trains, `to_onnx` writes one.

`graph.Graph` runs a file's operators on any array library and runs them backward; `backend` lets ONNX's own tests do
so. The package onnx is imported only when a function here is called.
"""

from .graph import Graph
from .importing import from_onnx
from .writing import to_onnx

__all__ = ["Graph", "from_onnx", "to_onnx"]
