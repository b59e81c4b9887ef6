"""How the libraries that compute into given memory write a call: NumPy and torch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...arrays import Array
from .. import memory_pool
from ..graph.operations import Op

__all__ = ["Calls", "NumpyCalls", "TorchCalls"]

_FUNCTIONS = [op for op in Op if op.is_pointwise and op is not Op.FLOAT]


class Calls(Protocol):
    """A library's calls.

    Attributes
    ----------
    names : dict
        What they refer to.
    """

    names: dict[str, object]

    def call(self, op: Op, operands: list[str], out: str) -> str:
        """One line of Python that computes `op` into `out`."""

    def copy(self, x: str, out: str) -> str:
        """One line of Python that copies `x` to `out`."""

    def each(self, array: Array, reverse: bool) -> Iterable[Array]:
        """The steps of a stack."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike, like: Array) -> Array:
        """New memory, beside an array."""

    def lasting(self) -> AbstractContextManager[object]:
        """Inside, arrays are made that calls of any kind may write to."""


class NumpyCalls:
    """NumPy's functions with their output as the last argument: the cheapest way to call them."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {
            op.value: getattr(np, op.value) for op in Op if op.is_pointwise and op is not Op.FLOAT
        }
        self.names |= {"copyto": np.copyto, "add_reduce": np.add.reduce}

    def call(self, op: Op, operands: list[str], out: str) -> str:
        """One line of Python that computes `op` into `out`."""
        if op is Op.MATMUL:
            return f"{operands[0]}.dot({operands[1]}, {out})"
        if op is Op.WHERE:
            condition, first, second = operands
            start = "" if second == out else f"copyto({out}, {second}); "
            return f"{start}copyto({out}, {first}, where={condition})"
        if op is Op.FLOAT:
            return self.copy(operands[0], out)
        if op is Op.SUM:
            return f"add_reduce({operands[0]}, 0, None, {out}, True)"
        keyword = "out=" if op in (Op.MAXIMUM, Op.MINIMUM) else ""  # NumPy is about to ask for it there
        return f"{op.value}({', '.join(operands)}, {keyword}{out})"

    @staticmethod
    def copy(x: str, out: str) -> str:
        """One line of Python that copies `x` to `out`."""
        return f"copyto({out}, {x})"

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: npt.DTypeLike, like: Array) -> Array:
        """New memory, beside an array."""
        return memory_pool.empty(shape, dtype)

    @staticmethod
    def each(array: Array, reverse: bool) -> Iterable[Array]:
        """The steps of a stack."""
        return array[::-1] if reverse else array  # type: ignore[no-any-return]

    @staticmethod
    def lasting() -> AbstractContextManager[object]:
        """Inside, arrays are made that calls of any kind may write to."""
        return nullcontext()


class TorchCalls:
    """torch's functions with ``out=``; they take no part in autograd."""

    def __init__(self) -> None:
        import torch

        self.names: dict[str, object] = {
            op.value: getattr(torch, op.value) for op in Op if op.is_pointwise and op is not Op.FLOAT
        }
        self.names |= {"equal": torch.eq, "matmul": torch.matmul, "sum": torch.sum}

    def call(self, op: Op, operands: list[str], out: str) -> str:
        """One line of Python that computes `op` into `out`."""
        if op is Op.FLOAT:
            return self.copy(operands[0], out)
        if op is Op.SUM:
            return f"sum({operands[0]}, 0, True, out={out})"
        return f"{op.value}({', '.join(operands)}, out={out})"

    @staticmethod
    def copy(x: str, out: str) -> str:
        """One line of Python that copies `x` to `out`."""
        return f"{out}.copy_({x})"

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: npt.DTypeLike, like: Array) -> Array:
        """New memory, beside an array."""
        return like.new_empty(shape, dtype=dtype)

    @staticmethod
    def each(array: Array, reverse: bool) -> Iterable[Array]:
        """The steps of a stack."""
        steps = array.unbind(0)
        return steps[::-1] if reverse else steps  # type: ignore[no-any-return]

    @staticmethod
    def lasting() -> AbstractContextManager[object]:
        """Inside, arrays are made that calls of any kind may write to."""
        import torch

        inference_mode: AbstractContextManager[object] = torch.inference_mode(False)
        return inference_mode
