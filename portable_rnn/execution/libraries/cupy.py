"""CuPy: a loop of kernels of its own; pointwise functions are fused to one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from types import ModuleType

from ...arrays import Array
from ..cuda.program import cuda_program
from ..graph.arguments import DType, Program
from ..graph.trace import Graph, Step
from .base import Library

__all__ = ["CupyLibrary"]


class CupyLibrary(Library):
    """CuPy."""

    name = "cupy"
    records = True

    def program(self, graph: Graph, step: Step, dtype: DType, *, donate: bool) -> Program | None:
        return cuda_program(graph, step, str(dtype), donate=donate)

    def device_key(self, x: Array) -> Hashable:
        return None  # its devices have no hash; its programs keep no arrays

    def fuse(self, xp: ModuleType, function: Callable[..., Array]) -> Callable[..., Array]:
        import cupy

        bound = functools.partial(function, xp)

        def kernel(*arrays: Array) -> Array:
            return bound(*arrays)

        fused: Callable[..., Array] = cupy.fuse(kernel_name=function.__name__.strip("_"))(kernel)
        return fused
