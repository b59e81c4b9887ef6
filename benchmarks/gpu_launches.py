"""How many GPU calls one time step takes on CuPy: counted, on any machine.

Run ``python benchmarks/gpu_launches.py`` in the repository's folder; it needs neither CuPy nor a GPU. The loop that
CuPy runs is run on NumPy arrays, with products, sums and kernels that do nothing but count. A product is taken as one
launch, though cuBLAS may split one. The target is at most 4 a step and direction.

"Unfused" is how many array operations the same step is written in, each a launch or more of its own: what the loop
would take without kernels of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]  # the checkout, whether the package is installed or not

import numpy as np

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.execution import programs
from portable_rnn.execution.cuda import program as cuda
from portable_rnn.execution.libraries import CupyLibrary, Library, cupy

TARGET = 4
VIEWS = {"carry", "xs", "shared", "rows", "transpose"}  # no operation of their own
INPUTS, HIDDEN = 3, 4
LAYERS: dict[str, tuple[prnn.Layer, dict[str, Any]]] = {
    "RNN": (prnn.RNN(INPUTS, HIDDEN), {}),
    "GRU": (prnn.GRU(INPUTS, HIDDEN), {}),
    "GRU, `reset_after=False`": (prnn.GRU(INPUTS, HIDDEN, reset_after=False), {}),
    "LSTM": (prnn.LSTM(INPUTS, HIDDEN), {}),
    "LSTM, `lengths`": (prnn.LSTM(INPUTS, HIDDEN), {"lengths": [2, 1]}),
    "LSTM, `peepholes=True`": (prnn.LSTM(INPUTS, HIDDEN, peepholes=True), {}),
    "LSTM, `proj_size=2`": (prnn.LSTM(INPUTS, HIDDEN, proj_size=2), {}),
}


class Launches(NamedTuple):
    """Of one time step.

    Attributes
    ----------
    products, kernels, sums : int
        Calls of the loop that CuPy runs.
    unfused : int
        Array operations of the step as it is written.
    """

    products: int
    kernels: int
    sums: int
    unfused: int

    @property
    def fused(self) -> int:
        """All calls together."""
        return self.products + self.kernels + self.sums


class _NumpyAsCupy(CupyLibrary):
    """Loops of kernels; pointwise functions stay NumPy's."""

    fuse = Library.fuse


@contextmanager
def numpy_as_cupy(calls: cuda.Calls) -> Iterator[list[tuple[Any, Any]]]:
    """NumPy's loops run as CuPy's do, with `calls`; gives (graph, program or None) of each step that was recorded."""
    made: list[tuple[Any, Any]] = []

    def program(graph: Any, *arguments: Any, **keywords: Any) -> Any:
        made.append((graph, cuda.cuda_program(graph, *arguments, **keywords)))
        return made[-1][1]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(execution, "library_of", return_value=_NumpyAsCupy()))
        stack.enter_context(mock.patch.object(cuda, "library_calls", return_value=calls))
        stack.enter_context(mock.patch.object(cupy, "cuda_program", program))
        stack.callback(programs.program_of.cache_clear)
        programs.program_of.cache_clear()
        yield made


class _Counting:
    """Calls that do nothing but count."""

    def __init__(self) -> None:
        self.products = self.kernels = self.sums = 0

    @property
    def calls(self) -> cuda.Calls:
        return cuda.Calls(self._dot, self._sum, np.ascontiguousarray, lambda source, name: self._kernel)

    @property
    def counts(self) -> np.ndarray[Any, Any]:
        return np.array([self.products, self.kernels, self.sums])

    def _dot(self, left: Any, right: Any, out: Any) -> None:
        self.products += 1

    def _sum(self, x: Any, **_: Any) -> None:
        self.sums += 1

    def _kernel(self, grid: Any, block: Any, arguments: Any) -> None:
        self.kernels += 1


def count(layer: prnn.Layer, options: dict[str, Any] | None = None) -> dict[str, Launches]:
    """What one more time step adds, and what is recorded of one; keys "forward" and "backward"."""
    counts = []
    for steps in (2, 3):
        counting = _Counting()
        # every array that is not computed is zero, so that what is left in memory can't cause a warning
        with numpy_as_cupy(counting.calls) as made, mock.patch.object(np, "empty", np.zeros):
            y, _, pullback = layer.vjp(layer.init(0), np.zeros((2, steps, INPUTS), "float32"), **options or {})
            forward = counting.counts
            pullback(np.zeros_like(y))
        counts.append((forward, counting.counts - forward))
    found = {}
    for k, direction in enumerate(("forward", "backward")):
        graph, program = made[k]
        if program is None:
            raise RuntimeError(f"{layer} can't be cut into kernels: expected it could")
        written = sum(value.op.value not in VIEWS for value in graph.values)
        found[direction] = Launches(*(counts[1][k] - counts[0][k]).tolist(), written)
    return found


def table() -> str:
    """All layers as Markdown."""
    lines = ["| layer | direction | products | kernels | sums | launches | unfused |", "|---|---|---|---|---|---|---|"]
    for name, (layer, options) in LAYERS.items():
        for direction, found in count(layer, options).items():
            numbers = (found.products, found.kernels, found.sums, found.fused, found.unfused)
            lines.append(f"| {name} | {direction} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"Launches of one time step on CuPy, counted; target at most {TARGET}\n")
    print(table())
