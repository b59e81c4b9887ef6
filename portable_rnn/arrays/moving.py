"""The only place where data moves from one library to another, or between host and device."""

from __future__ import annotations

import copyreg
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from ..errors import InputError, NonFiniteError
from .backend import Backend, backend, backend_of
from .devices import device_scope
from .namespaces import is_array
from .plain import host_array, host_arrays, plain, unboxed
from .pytrees import map_leaves
from .typing import Array

__all__ = ["asarray", "from_host", "on_host", "place", "placed", "to_numpy", "tree_to_numpy"]


def asarray(x: Any, backend: str | ModuleType | Array | Backend, *, dtype: str | None = None) -> Array:
    """Copy or view `x` as an array of another library. With `to_numpy`, the only place where data moves.

    Floating data takes the backend's dtype (or `dtype`, where given); integers and booleans keep their kind.

    Parameters
    ----------
    x : array of any library, nested list of numbers, table, or list of sequences
        A table is whatever NumPy takes as an array of numbers, such as a pandas DataFrame.
    backend : as in `backend`
    dtype : "float32" or "float64", optional
        Turns integers into floats too.

    Returns
    -------
    array of the backend, on its device
        For a list of sequences of different lengths, a list of such arrays, which models and layers take as x.

    Raises
    ------
    InputError
        `x` holds text or objects, is ragged in more than the lengths of its sequences, is an array with an arithmetic
        of its own (a masked array, say), or is no data but yields it, such as a DataLoader.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> prnn.asarray([[1.0, 2.0]], "numpy").dtype
    dtype('float32')
    >>> [row.shape for row in prnn.asarray([[1, 2, 3], [4]], "numpy")]
    [(3,), (1,)]
    """
    return place(on_host(x), _as_backend(backend), dtype)


def on_host(x: Any, name: str = "x") -> np.ndarray[Any, Any] | list[np.ndarray[Any, Any]]:
    """Anything that `asarray` takes as one NumPy array, or as a list of them where it is ragged."""
    x = unboxed(x)
    if is_array(x) or not isinstance(x, (list, tuple)) or hasattr(x, "_fields"):
        return to_numpy(x, name)
    rows = [to_numpy(row, f"{name}[{k}]") if is_array(row) else row for k, row in enumerate(x)]
    sizes = {_size(row) for row in rows}
    return host_arrays(rows, name) if len(sizes) > 1 and None not in sizes else host_array(rows, name)


def _size(row: Any) -> int | None:
    """How many steps a sequence has; None for what is none."""
    try:
        return None if isinstance(row, str) else len(row)
    except TypeError:
        return None


def place(host: np.ndarray[Any, Any] | list[np.ndarray[Any, Any]], target: Backend, dtype: str | None = None) -> Any:
    """What `on_host` gives, on the backend, in the dtype that `asarray` says."""
    if isinstance(host, list):
        return [place(row, target, dtype) for row in host]
    kind = host.dtype.kind
    if kind not in "fiub":
        raise InputError(f"expected numbers, got an array of dtype {host.dtype}: convert it first")
    if dtype is not None:
        host = host.astype(dtype, copy=False)
    elif kind == "f":
        host = host.astype(target.dtype_name, copy=False)
    else:
        host = host.astype(host.dtype.newbyteorder("="), copy=False)
    return from_host(host, target)


def from_host(host: np.ndarray[Any, Any], target: Backend) -> Array:
    """Place a NumPy array on the backend's device as it is: no dtype change beyond what the library forces."""
    if target.name == "numpy":
        return host
    if target.name == "jax":
        import jax

        # device_put is JAX's explicit transfer: it passes jax.transfer_guard("disallow")
        return jax.device_put(_narrowed(host) if not jax.config.jax_enable_x64 else host, target.device)
    if target.name == "torch" and (not host.flags.writeable or min(host.strides, default=0) < 0):
        host = host.copy()  # torch has neither read-only arrays nor negative strides
    with device_scope(target):
        return target.xp.asarray(host, device=target.device)


def to_numpy(x: Any, name: str = "x") -> np.ndarray[Any, Any]:
    """Copy or view an array of any library as a NumPy array on the host. The result may be read-only.

    Parameters
    ----------
    x : array of any library, nested list of numbers, or table
    name : str
        What an error calls it.

    Raises
    ------
    InputError
        As in `asarray`; ragged lists too.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> prnn.to_numpy([[1, 2]]).shape
    (1, 2)
    """
    if isinstance(x, (np.ndarray, np.generic)) or not is_array(x):
        return host_array(x, name)
    if array_api_compat.is_torch_array(x):
        x = plain(name, x).detach()
    with device_scope(x):
        return np.from_dlpack(x, device="cpu")


def tree_to_numpy(tree: Any) -> Any:
    """The same nest with every array as a NumPy array, which can be pickled and copied whatever the library."""
    return map_leaves(lambda leaf: to_numpy(leaf) if is_array(leaf) else leaf, tree)


def placed(tree: Any, target: Backend) -> Any:
    """Reverse `tree_to_numpy`: the NumPy arrays of a nest as arrays of the backend."""
    return map_leaves(lambda leaf: from_host(leaf, target) if isinstance(leaf, np.ndarray) else leaf, tree)


def _reduced_error(error: NonFiniteError) -> Any:
    """How to pickle an error that carries parameters."""
    others = {name: value for name, value in vars(error).items() if name != "good_params"}
    target = backend_of(*error.good_params.values()) if error.good_params else None
    return _restored_error, (error.args, others, tree_to_numpy(error.good_params), target)


def _restored_error(args: Any, others: dict[str, Any], params: Any, target: Backend | None) -> NonFiniteError:
    error = NonFiniteError.__new__(NonFiniteError, *args)
    vars(error).update(others, good_params=params if target is None else placed(params, target))
    return error


def _as_backend(library: Any) -> Backend:
    return library if isinstance(library, Backend) else backend(library)


def _narrowed(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The 32-bit form, for a library that would narrow the data itself and warn about it."""
    narrow = {"f": np.float32, "i": np.int32, "u": np.uint32}
    if host.dtype.kind not in narrow or host.dtype.itemsize < 8:
        return host
    return host.astype(narrow[host.dtype.kind])


copyreg.pickle(NonFiniteError, _reduced_error)
