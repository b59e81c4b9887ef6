"""All operators of ONNX's own domain that a graph may have, by name."""

from __future__ import annotations

from . import elementwise, recurrent, reducing, shaping

__all__ = ["OLDEST_OPSET", "OPERATORS"]

# Before it, broadcasting and RNNs were defined in another way.
OLDEST_OPSET = 7
OPERATORS = {**elementwise.OPERATORS, **shaping.OPERATORS, **reducing.OPERATORS, **recurrent.OPERATORS}
