"""What is timed: cells, sizes, the two kinds of work, and how a peer describes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..layers import GRU, LSTM, RNN, Layer, random_generator

__all__ = ["CELLS", "KINDS", "SIZES", "Case", "Peer", "Task"]

CELLS = ("RNN", "GRU", "LSTM")
# (B, T, I, H)
SIZES = (
    (1, 50, 1, 10),
    (1, 100, 32, 64),
    (32, 100, 32, 64),
    (16, 28, 28, 128),
    (64, 100, 64, 256),
    (64, 50, 256, 512),
    (128, 50, 512, 1024),
)
KINDS = {"train": "training step", "forward": "forward"}
_LAYERS: dict[str, Any] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclass(frozen=True)
class Case:
    """One thing to time: a layer of one size, in float32, and what is done with it.

    Attributes
    ----------
    cell : str
        "RNN", "GRU" or "LSTM".
    size : tuple of int
        (B, T, I, H).
    kind : str
        "train": forward, and backward to the gradients of all parameters and of x, from a cotangent of y.
        "forward": the outputs only.

    Examples
    --------
    >>> Case("LSTM", (64, 100, 64, 256), "forward").flops / 1e9
    4.194304
    """

    cell: str
    size: tuple[int, int, int, int]
    kind: str

    @property
    def flops(self) -> float:
        """Of its matrix products, ``2 B T G H (I + H)`` forward; the backward pass has twice as many."""
        batch, steps, inputs, hidden = self.size
        forward = 2.0 * batch * steps * _GATES[self.cell] * hidden * (inputs + hidden)
        return forward if self.kind == "forward" else 3 * forward

    @property
    def layer(self) -> Layer:
        """This library's layer."""
        made: Layer = _LAYERS[self.cell](self.size[2], self.size[3])
        return made

    def arrays(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """x (B, T, I) and the cotangent of y (B, T, H): the same numbers in every process."""
        batch, steps, inputs, hidden = self.size
        rng = random_generator(0)
        x, dy = (rng.standard_normal((batch, steps, width)).astype(np.float32) for width in (inputs, hidden))
        return x, dy

    def __str__(self) -> str:
        return f"{self.cell} {', '.join(map(str, self.size))} {KINDS[self.kind]}"


class Task(NamedTuple):
    """A case made ready in one library.

    Attributes
    ----------
    call : callable without arguments
        Does the work once, whole: it returns when the results are there.
    outputs : callable of what `call` returned
        "y" and, after a training step, "dx" and the gradient of each parameter under its name, as NumPy arrays.
    """

    call: Callable[[], Any]
    outputs: Callable[[Any], dict[str, np.ndarray[Any, Any]]]


@dataclass(frozen=True)
class Peer:
    """A library to time, in a process of its own.

    Attributes
    ----------
    name : str
        Starting with "ours-" for this library.
    factory : str
        "module:function" of ``function(case, **options) -> Task``, imported in the process.
    packages : tuple of str
        What must be installed, as importable names.
    options : mapping
        Passed to the factory; simple values.
    environment : mapping of str to str
        Set before the process starts.
    cells, kinds : tuple of str
        What it can do.
    same_weights : bool
        Computes with the weights of ``layer.init(0)``, so that its outputs must equal those of this library.
    """

    name: str
    factory: str
    packages: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[str, ...] = CELLS
    kinds: tuple[str, ...] = tuple(KINDS)
    same_weights: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is this library."""
        return self.name.startswith("ours-")

    def does(self, case: Case) -> bool:
        """Whether it can do a case."""
        return case.cell in self.cells and case.kind in self.kinds
