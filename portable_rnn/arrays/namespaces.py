"""What an array is: its namespace, its device, its dtype, and small things that libraries say in different ways."""

from __future__ import annotations

import functools
import sys
from typing import Any

import array_api_compat
import array_api_compat.numpy as numpy_namespace
import numpy as np

from .devices import device_scope
from .typing import Array

__all__ = [
    "DTYPES",
    "as_before",
    "copied",
    "device_of",
    "dtype_name",
    "in_host_memory",
    "is_array",
    "is_floating",
    "is_traced",
    "library_name",
    "may_share_memory",
    "namespace_of",
    "with_axes",
    "write_count",
    "zeros_beside",
]

DTYPES = ("float32", "float64")


def in_host_memory(x: Array) -> bool:
    """Whether `to_numpy` gives a view of `x`, so that nothing moves (asked of NumPy and JAX)."""
    if not array_api_compat.is_jax_array(x):
        return isinstance(x, np.ndarray)
    return not is_traced(x) and {device.platform for device in x.devices()} == {"cpu"} and len(x.devices()) == 1


def is_array(x: object) -> bool:
    """Whether `x` is an array of a library that follows the standard."""
    return isinstance(x, np.ndarray) or bool(array_api_compat.is_array_api_obj(x))


def is_traced(x: Array) -> bool:
    """Whether `x` has no values yet: an abstract array inside a JAX transformation."""
    if type(x) is np.ndarray or not array_api_compat.is_jax_array(x):
        return False
    import jax

    return bool(isinstance(x, jax.core.Tracer))


@functools.lru_cache(maxsize=64)
def library_name(xp: Any) -> str:
    """The library's short name: "numpy" for ``array_api_compat.numpy``, "jax" for ``jax.numpy``."""
    name: str = xp.__name__
    name = name.removeprefix("array_api_compat.")
    return "jax" if name.startswith("jax") else name


def dtype_name(xp: Any, dtype: Any) -> str:
    """The standard's name of a dtype object of `xp`, such as "float32"."""
    names = (*DTYPES, "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")
    return next((n for n in names if hasattr(xp, n) and dtype == getattr(xp, n)), str(dtype))


_namespaces: dict[type, Any] = {np.ndarray: numpy_namespace}


def namespace_of(x: Array) -> Any:
    """The array API namespace of an array."""
    found = _namespaces.get(type(x))
    if found is None:  # asked often, and array_namespace takes microseconds
        # array_namespace makes a JAX array to ask, which a transfer guard forbids
        jax = array_api_compat.is_jax_array(x)
        found = _namespaces[type(x)] = sys.modules["jax.numpy"] if jax else array_api_compat.array_namespace(x)
    return found


def device_of(x: Array) -> Any:
    """The device that holds an array; None inside a JAX trace."""
    if type(x) is np.ndarray:
        return "cpu"
    return array_api_compat.device(x)


def copied(x: Array) -> Array:
    """A copy that no write to `x` reaches; `x` itself where its library has no writes."""
    if isinstance(x, np.ndarray):
        return x.copy(order="K")
    if array_api_compat.is_torch_array(x):
        return x.clone()  # which autograd sees, unlike torch.asarray
    with device_scope(x):
        return x if array_api_compat.is_jax_array(x) else namespace_of(x).asarray(x, copy=True)


def may_share_memory(a: Array, b: Array) -> bool:
    """Whether a write to one array could change the other; true where the library can't tell."""
    if type(a) is np.ndarray and type(b) is np.ndarray:
        return a is b or np.may_share_memory(a, b)
    if array_api_compat.is_torch_array(a) and array_api_compat.is_torch_array(b):
        return a is b or _same_storage(a, b)
    return not (array_api_compat.is_jax_array(a) or array_api_compat.is_jax_array(b))


def _same_storage(a: Any, b: Any) -> bool:
    try:
        return bool(a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())
    except (NotImplementedError, RuntimeError):  # under a transform such as vmap
        return False


def write_count(x: Array) -> int | None:
    """How often an array was written to in place; None where its library doesn't count."""
    if type(x) is np.ndarray or not array_api_compat.is_torch_array(x) or x.is_inference():
        return None
    return int(x._version)


def with_axes(x: Array, axes: tuple[int, ...]) -> Array:
    """``permute_dims(x, axes)``; a small layer asks it often, and NumPy's function takes longer than its method."""
    return x.transpose(axes) if type(x) is np.ndarray else namespace_of(x).permute_dims(x, axes)


def zeros_beside(x: Array, shape: tuple[int, ...]) -> Array:
    """Zeros of the library, device and dtype of an array."""
    if type(x) is np.ndarray:  # a wrapped function takes longer than to fill a small array
        return np.zeros(shape, x.dtype)
    return namespace_of(x).zeros(shape, dtype=x.dtype, device=device_of(x))


@functools.lru_cache(maxsize=64)
def is_floating(xp: Any, dtype: Any) -> bool:
    """Whether a dtype of `xp` is a real floating one."""
    return bool(xp.isdtype(dtype, "real floating"))


def as_before(new: Any, before: Any) -> Any:
    """`new` with the dtype and the type of what it takes the place of: an array, or the arrays of a dict by name.

    NumPy returns its own scalars where an array () is computed with, and float64 where one of them is a float64.
    """
    if isinstance(before, dict):
        return {name: as_before(new[name], old) for name, old in before.items()}
    if type(new) is type(before) and new.dtype == before.dtype:
        return new
    return namespace_of(before).asarray(new, dtype=before.dtype)
