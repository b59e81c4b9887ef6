"""How the libraries that compute into given memory write a call: NumPy and torch."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ..graph.trace import POINTWISE, Value

__all__ = ["NumpyDialect", "TorchDialect", "dialect"]


class _Dialect:
    """What both have in common."""

    names: dict[str, Any]

    def expression(self, op: str, operands: list[str], value: Value) -> str:
        """An operation that makes a new array: what is done once, before the loop."""
        if op == "rows":
            return f"{operands[0]}[{value.detail[0]}:{value.detail[1]}]"
        if op == "transpose":
            return f"{operands[0]}.T"
        if op == "fill":
            return f"broadcast_to({operands[0]}, {value.shape!r})"
        if op == "concat":
            return f"concat([{', '.join(operands)}])"
        if op == "sum":
            return f"sum({operands[0]}, 0, keepdims=True)"
        return f"{op}({', '.join(operands)})"


class NumpyDialect(_Dialect):
    """NumPy's functions with their output as the last argument: the cheapest way to call them."""

    def __init__(self) -> None:
        self.names = {op: getattr(np, op) for op in POINTWISE if op != "float"}
        self.names |= {name: getattr(np, name) for name in ("copyto", "concat", "broadcast_to", "matmul", "sum")}
        self.names |= {"add_reduce": np.add.reduce, "float": np.multiply}

    def call(self, op: str, operands: list[str], out: str) -> str:
        """One line of Python that computes `op` into `out`."""
        if op == "matmul":
            return f"{operands[0]}.dot({operands[1]}, {out})"
        if op == "where":
            condition, first, second = operands
            start = "" if second == out else f"copyto({out}, {second}); "
            return f"{start}copyto({out}, {first}, where={condition})"
        if op in ("copy", "float"):
            return f"copyto({out}, {operands[0]})"
        if op == "sum":
            return f"add_reduce({operands[0]}, 0, None, {out}, True)"
        keyword = "out=" if op in ("maximum", "minimum") else ""  # NumPy is about to ask for it there
        return f"{op}({', '.join(operands)}, {keyword}{out})"

    @staticmethod
    def each(array: Any, reverse: bool) -> Iterable[Any]:
        """The steps of a stack."""
        return array[::-1] if reverse else array  # type: ignore[no-any-return]

    @staticmethod
    def lasting() -> AbstractContextManager[Any]:
        """Inside, arrays are made that calls of any kind may write to."""
        return nullcontext()


class TorchDialect(_Dialect):
    """torch's functions with ``out=``; they take no part in autograd."""

    def __init__(self) -> None:
        import torch

        self.names = {op: getattr(torch, op) for op in POINTWISE if hasattr(torch, op)}
        self.names |= {name: getattr(torch, name) for name in ("concat", "broadcast_to", "matmul", "sum")}
        self.names |= {"equal": torch.eq, "float": torch.mul}

    def call(self, op: str, operands: list[str], out: str) -> str:
        """One line of Python that computes `op` into `out`."""
        if op in ("copy", "float"):
            return f"{out}.copy_({operands[0]})"
        if op == "sum":
            return f"sum({operands[0]}, 0, True, out={out})"
        return f"{op}({', '.join(operands)}, out={out})"

    @staticmethod
    def each(array: Any, reverse: bool) -> Iterable[Any]:
        """The steps of a stack."""
        steps = array.unbind(0)
        return steps[::-1] if reverse else steps  # type: ignore[no-any-return]

    @staticmethod
    def lasting() -> AbstractContextManager[Any]:
        """Inside, arrays are made that calls of any kind may write to."""
        import torch

        inference_mode: AbstractContextManager[Any] = torch.inference_mode(False)
        return inference_mode


@functools.lru_cache(maxsize=2)
def dialect(library: str) -> NumpyDialect | TorchDialect:
    """Of "numpy" or "torch"."""
    return NumpyDialect() if library == "numpy" else TorchDialect()
