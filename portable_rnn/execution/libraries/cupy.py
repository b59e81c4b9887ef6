"""CuPy: a loop of kernels of its own; pointwise functions are fused to one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

from ...arrays import Array
from .base import Library

__all__ = ["CupyLibrary"]


class CupyLibrary(Library):
    """CuPy."""

    name = "cupy"
    records = True

    def fuse(self, xp: ModuleType, function: Callable[..., Array]) -> Callable[..., Array]:
        import cupy

        bound = functools.partial(function, xp)

        def kernel(*arrays: Array) -> Array:
            return bound(*arrays)

        fused: Callable[..., Array] = cupy.fuse(kernel_name=function.__name__.strip("_"))(kernel)
        return fused
