"""What an ONNX graph is made of, as hashable configuration: nodes, inputs and outputs, constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...arrays import Array
from ...errors import InputError

__all__ = [
    "Call",
    "Constant",
    "Host",
    "Node",
    "Operator",
    "Port",
    "broadcasting",
    "checked_size",
    "summed_to",
    "with_rank",
]

# Arrays whose size stands in the data (Expand, ConstantOfShape, Range, Tile): more elements than this are refused.
MAX_ELEMENTS = 2**27
MAX_AXES = 32


@dataclass(frozen=True)
class Constant:
    """A NumPy array that can be hashed and compared.

    Attributes
    ----------
    dtype : str
    shape : tuple of int
    data : bytes
        The entries in C order.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> Constant:
        """The constant with the entries of an array."""
        return cls(array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """A read-only view."""
        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)

    def __repr__(self) -> str:
        return f"Constant({self.dtype}, {self.shape})"


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes
    ----------
    op : str
        ONNX's name of the operator, such as "LSTM".
    inputs, outputs : tuple of str
        Names of values; "" for what is left out.
    attributes : tuple of (name, value)
        Sorted by name. Values are numbers, strings, `Constant`, or tuples of these.
    name : str
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    name: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return dict(self.attributes).get(name, default)

    def has_input(self, k: int) -> bool:
        """Whether input k is there."""
        return k < len(self.inputs) and bool(self.inputs[k])

    def __str__(self) -> str:
        return f"{self.op} node {self.name or next((n for n in self.outputs if n), '')!r}"


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes
    ----------
    name : str
    dtype : str
        NumPy's name of the dtype in the file.
    dims : tuple of int, str and None; or None
        Sizes; the name of a size that is known at run time only, or None where it has no name. None: unknown rank.
    """

    name: str
    dtype: str
    dims: tuple[int | str | None, ...] | None = None

    @property
    def floating(self) -> bool:
        """Whether the values are floating."""
        return np.dtype(self.dtype).kind == "f"

    def __str__(self) -> str:
        sizes = "of any shape"
        if self.dims is not None:
            sizes = f"({', '.join('?' if d is None else str(d) for d in self.dims)})"
        shown = f"{self.name} {sizes} {self.dtype}"
        return shown if shown.isprintable() else repr(shown)


class Host(NamedTuple):
    """A value that is known without the data: shape arithmetic and constants stay NumPy, static in a trace."""

    array: np.ndarray[Any, Any]


Pullback = Callable[..., tuple[Array | None, ...]]


class Call(NamedTuple):
    """What an operator is told beside its inputs.

    Attributes
    ----------
    xp : namespace of the inputs
    node : Node
    opset : int
    wants : tuple of bool
        For each input, whether its cotangent is of use.
    dtype : callable
        From the name of a dtype to the namespace's dtype that stands for it.
    place : callable
        From a `Host` value to an array beside the other inputs.
    """

    xp: Any
    node: Node
    opset: int
    wants: tuple[bool, ...]
    dtype: Callable[[str], Any]
    place: Callable[[Host], Array]


class Operator(NamedTuple):
    """How a node is computed.

    Attributes
    ----------
    function : callable (Call, *inputs) -> (outputs, pullback)
        Outputs are a tuple of arrays, or of `Host` values. The pullback takes the cotangents of all outputs and
        returns those of all inputs, None for those without; it is None where nothing can be differentiated.
    newest : int
        The newest version of the operator, by ONNX's counting of operator sets, that the function computes.
    host : tuple of int
        Inputs that must be known without the data; they arrive as NumPy arrays.
    either : tuple of int
        Inputs that arrive as `Host` where they are known.
    """

    function: Callable[..., tuple[tuple[Any, ...], Pullback | None]]
    newest: int
    host: tuple[int, ...] = ()
    either: tuple[int, ...] = ()


def checked_size(shape: Any) -> tuple[int, ...]:
    """A shape that stands in the data, as Python integers.

    Raises
    ------
    InputError
        A size is negative, or there are more than `MAX_ELEMENTS` elements.
    """
    sizes = tuple(int(n) for n in np.asarray(shape).reshape(-1))
    if any(n < 0 for n in sizes) or len(sizes) > MAX_AXES or math.prod(max(n, 1) for n in sizes) > MAX_ELEMENTS:
        raise InputError(f"asks for an array of shape {sizes}: at most {MAX_ELEMENTS:,} elements are made")
    return sizes


def summed_to(xp: Any, d: Array, shape: Any) -> Array:
    """The cotangent of an array that was broadcast: `d` summed over the axes that were added or stretched."""
    shape = tuple(shape)
    if tuple(d.shape) == shape:
        return d
    extra = d.ndim - len(shape)
    stretched = [k for k in range(extra, d.ndim) if shape[k - extra] == 1 and d.shape[k] != 1]
    return xp.reshape(xp.sum(d, axis=(*range(extra), *stretched)), shape)


def with_rank(x: Array, rank: int) -> Array:
    """`x` with axes of length 1 in front, as broadcasting adds them; JAX can be set to ask for that."""
    return x if x.ndim == rank else x[(None,) * (rank - x.ndim) + (...,)]


def broadcasting(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator whose inputs are broadcast against each other: it sees all of them with equally many axes."""

    def aligned(call: Call, *inputs: Array) -> Any:
        rank = max(x.ndim for x in inputs)
        outputs, pullback = function(call, *(with_rank(x, rank) for x in inputs))
        if pullback is None:
            return outputs, None

        def pulled_back(*doutputs: Array) -> tuple[Array | None, ...]:
            found = zip(pullback(*doutputs), inputs, strict=True)
            return tuple(None if d is None else call.xp.reshape(d, x.shape) for d, x in found)

        return outputs, pulled_back

    return aligned
