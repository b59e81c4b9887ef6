"""What a graph may cost: sizes are worked out before a node runs, and added up over the graph.

A file of some hundred bytes can ask for any amount of memory, by one large shape or by doubling an array thirty times.
The allowance grows with the arrays that are given (inputs and parameters): what an honest graph makes of them is a
multiple of their size, and what it makes of nothing is small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import InputError
from .nodes import MAX_AXES, Host, Node

__all__ = ["Budget"]

FREE = 2**22  # numbers that a value may have whatever is given
_TIMES, _TIMES_FILE = 64, 4  # and as often as the given ones
_VALUES, _VALUES_FILE = 4, 8  # so many such values
_WORK = 2**31  # multiplications that cost a second or two
_WORK_FILE = 512  # and so many with each parameter of a file
_STEP = 2**17  # what a time step costs beside its arithmetic


class Budget:
    """The allowance of one evaluation.

    Parameters
    ----------
    largest : int
        Numbers in a value.
    total : int
        Numbers in all of them.
    work : int
        Multiplications.
    """

    def __init__(self, largest: int, total: int, work: int) -> None:
        self._largest = largest
        self._left = total
        self._work = work

    @classmethod
    def of_inputs(cls, given: Mapping[str, Any], nodes: int) -> Budget:
        """What a graph may make of inputs, parameters and constants that the caller has."""
        base = sum(_size(_shape(value)) for value in given.values())
        largest = FREE + _TIMES * base
        work = _WORK + _TIMES * nodes * base + _TIMES * base * math.isqrt(base) + 4 * _STEP * base
        return cls(largest, _VALUES * largest + nodes * base, work)

    @classmethod
    def of_file(cls, params: Mapping[str, Any]) -> Budget:
        """What a graph may make while it is loaded, of inputs that only its file asks for."""
        base = sum(_size(_shape(value)) for value in params.values())
        largest = FREE + _TIMES_FILE * base
        return cls(largest, _VALUES_FILE * largest, _WORK + _WORK_FILE * base)

    def spend(self, node: Node, inputs: Sequence[Any]) -> None:
        """Count what a node makes of its inputs.

        Raises
        ------
        InputError
            It makes an array, or with all before it a sum of arrays, out of all proportion.
        """
        size, work = _cost(node, inputs)
        self._left -= size
        self._work -= work
        if size > self._largest or self._left < 0 or self._work < 0:
            raise InputError(
                f"asks for {size:,} numbers and {work:,} multiplications: at most {self._largest:,} numbers are made "
                "of inputs as small as these"
            )


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in (value.array if isinstance(value, Host) else value).shape)


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _numbers(value: Any) -> list[int]:
    """Sizes that a value on the host says; none where it is of no use as such, which the operator refuses."""
    try:
        return [max(int(n), 0) for n in value.array.reshape(-1)] if value.array.size <= MAX_AXES else []
    except (AttributeError, ValueError, OverflowError):
        return []


def _cost(node: Node, inputs: Sequence[Any]) -> tuple[int, int]:
    """(numbers in the outputs, multiplications) of a node, at least."""
    shapes = [_shape(value) if value is not None else () for value in inputs]
    sizes = [_size(shape) for shape in shapes]
    match node.op, len(shapes):
        case ("ConstantOfShape", 1):
            size = math.prod(_numbers(inputs[0]))
        case ("Expand", 2):
            size = _size(_broadcast([shapes[0], tuple(_numbers(inputs[1]))]))
        case ("Tile", 2):
            size = sizes[0] * math.prod(_numbers(inputs[1]))
        case ("Range", 3):
            size = _range(inputs)
        case ("Concat", _):
            size = sum(sizes)
        case ("Gather", 2):
            axis = int(node.get("axis", 0))
            there = shapes[0][axis] if -len(shapes[0]) <= axis < len(shapes[0]) else 1
            size = sizes[0] // max(there, 1) * sizes[1]
            return size, size * (1 if isinstance(inputs[1], Host) else 2)
        case (("MatMul" | "Gemm"), count) if count >= 2 and len(shapes[0]) and len(shapes[1]):
            return _product(node, shapes)
        case (("RNN" | "GRU" | "LSTM"), count) if count >= 3 and len(shapes[0]) == len(shapes[2]) == 3:
            first, second, _ = shapes[0]
            steps, batch = (second, first) if node.get("layout", 0) else (first, second)
            directions, _, hidden = shapes[2]
            return steps * batch * directions * hidden, steps * (batch * (sizes[1] + sizes[2]) + directions * _STEP)
        case _:
            size = _size(_broadcast(shapes))
    return size, size


def _range(inputs: Sequence[Any]) -> int:
    try:
        first, last, step = (float(value.array.reshape(())) for value in inputs)
        return max(0, math.ceil((last - first) / step))
    except (AttributeError, ValueError, OverflowError, ZeroDivisionError):
        return 0


def _product(node: Node, shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    left, right = shapes[0], shapes[1]
    if node.op == "Gemm":
        left = left[::-1] if node.get("transA", 0) else left
        right = right[::-1] if node.get("transB", 0) else right
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    size = _size(_broadcast([left[:-2], right[:-2]])) * rows * columns
    return size, size * left[-1]


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The largest size on each axis, counted from the last."""
    rank = max(map(len, shapes), default=0)
    filled = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(max(column) for column in zip(*filled, strict=True))
