"""In place of `cupy.cuda.thrust`, whose kernels are compiled for GPUs alone: NumPy's sorts on the same memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

available = True
_BASE, _SPAN, _OFFSET = 1 << 44, 4 << 40, 1 << 44  # native/addresses.h


def get_build_version() -> int:
    """None was built."""
    return 0


def _data(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    if 0 <= address - _BASE < _SPAN:
        address += _OFFSET
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)


def sort(dtype: Any, data: int, keys: int, shape: tuple[int, ...]) -> None:
    """Sort along the last axis in place."""
    _data(data, shape, dtype).sort(axis=-1, kind="stable")


def argsort(dtype: Any, indices: int, data: int, keys: int, shape: tuple[int, ...]) -> None:
    """Write the order of the last axis, and sort the data by it."""
    values = _data(data, shape, dtype)
    order = np.argsort(values, axis=-1, kind="stable")
    _data(indices, shape, np.intp)[...] = order
    values[...] = np.take_along_axis(values, order, axis=-1)


def lexsort(dtype: Any, indices: int, keys: int, count: int, length: int) -> None:
    """Write the order by several keys."""
    _data(indices, (length,), np.intp)[...] = np.lexsort(list(_data(keys, (count, length), dtype)))
