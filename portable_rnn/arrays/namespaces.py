"""Which array library: from arrays, modules and names to a namespace, a device and a dtype.

This is the only module that moves data from one library to another (`asarray`, `to_numpy`), and with
`execution.py` the only one that names an array library.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat
import array_api_compat.numpy as numpy_namespace
import numpy as np

from ..errors import BackendError, InputError, NonFiniteError
from .devices import cupy_device, device_scope
from .plain import host_array, host_arrays, plain, unboxed
from .typing import Array

__all__ = ["Backend", "BackendInfo", "asarray", "backend", "backend_of", "backends", "enable_float64", "to_numpy"]

NAMES = ("numpy", "jax", "cupy", "torch", "dpnp")
# Where array-api-compat wraps a library, its wrapper is the namespace; the others are standard by themselves.
_NAMESPACE_MODULES = {
    "numpy": "array_api_compat.numpy",
    "jax": "jax.numpy",
    "cupy": "array_api_compat.cupy",
    "torch": "array_api_compat.torch",
    "dpnp": "dpnp",
}
_DISTRIBUTIONS = {"cupy": ("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy-rocm-5-0")}
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Backend:
    """An array library with the device and the floating dtype to compute in.

    Attributes
    ----------
    name : str
        "numpy", "jax", "cupy", "torch", "dpnp" or the module name of another conforming library.
    xp : module
        The library's array API namespace.
    device : object
        The library's own device object.
    dtype : object
        The library's own float32 or float64.
    """

    name: str
    xp: Any
    device: Any
    dtype: Any

    @property
    def dtype_name(self) -> str:
        """ "float32" or "float64"."""
        return dtype_name(self.xp, self.dtype)

    def __hash__(self) -> int:
        return hash((self.name, self.dtype, str(self.device)))  # CuPy's devices have no hash

    def __deepcopy__(self, memo: Any) -> Backend:
        return self  # it never changes, and a module can't be copied

    def __reduce__(self) -> Any:
        return _imported_backend, (self.xp.__name__, _device_name(self.name, self.device), self.dtype_name)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype_name} on {self.device}"


@dataclass(frozen=True)
class BackendInfo:
    """What `backends` found out about one array library.

    Attributes
    ----------
    name : str
    version : str or None
        None when it is not installed.
    available : bool
        Whether arrays can be made with it on this machine now.
    devices : tuple of str
    reason : str
        Why it is not available, or what to know about it; empty otherwise.
    """

    name: str
    version: str | None
    available: bool
    devices: tuple[str, ...]
    reason: str


def backend(
    library: str | ModuleType | Array | Backend | None = None,
    device: Any = None,
    dtype: Any = None,
) -> Backend:
    """Choose an array library.

    Parameters
    ----------
    library : str, module, array, Backend or None
        "numpy", "jax", "cupy", "torch" or "dpnp"; a module such as ``cupy`` or ``jax.numpy`` (also of a library
        that this package does not know, as long as it follows the array API standard); an array, whose library,
        device and dtype are taken; None for ``$PORTABLE_RNN_BACKEND``, or NumPy where that is not set.
    device : optional
        The library's own device object or its usual name, such as "cpu", "cuda:1", "gpu" or 0 (CuPy). The
        library's default device when left out.
    dtype : "float32" or "float64", optional
        float32 when left out, or the dtype of the array.

    Raises
    ------
    BackendError
        The library is unknown, not installed or finds no device; the device or dtype does not exist there.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> str(prnn.backend("numpy", dtype="float64"))
    'numpy float64 on cpu'
    """
    if library is None:
        library = os.environ.get("PORTABLE_RNN_BACKEND") or "numpy"
    if isinstance(library, Backend):
        device = library.device if device is None else device
        dtype = library.dtype if dtype is None else dtype
        xp = library.xp
    elif isinstance(library, str):
        xp = _import_namespace(library)
    elif isinstance(library, ModuleType):
        xp = _namespace_of_module(library)
    elif is_array(library):
        xp = namespace_of(library)
        device = device_of(library) if device is None else device
        if dtype is None and xp.isdtype(library.dtype, "real floating"):
            dtype = library.dtype
    else:
        raise BackendError(
            f"backend must be a name ({', '.join(NAMES)}), a module, an array or a Backend, got "
            f"{type(library).__name__}"
        )
    name = library_name(xp)
    wanted = "float32" if dtype is None else dtype if isinstance(dtype, str) else dtype_name(xp, dtype)
    if wanted not in DTYPES:
        raise BackendError(f"dtype must be 'float32' or 'float64', got {wanted!r}")
    own = _resolve_dtype(name, xp, wanted)
    return Backend(name, xp, _resolve_device(name, xp, device, own), own)


def backend_of(*arrays: Array) -> Backend:
    """The library, device and dtype of an array, without checks that would cost time in a training step."""
    x = arrays[0]
    if type(x) is np.ndarray:
        return _numpy_backend(x.dtype)
    xp = namespace_of(x)
    return Backend(library_name(xp), xp, device_of(x), x.dtype)


@functools.lru_cache(maxsize=64)
def _numpy_backend(dtype: Any) -> Backend:
    return Backend("numpy", numpy_namespace, "cpu", dtype)


def backends() -> list[BackendInfo]:
    """Look which array libraries this machine has. Imports every one that is installed.

    Returns
    -------
    list of BackendInfo
        NumPy, JAX, CuPy, PyTorch and dpnp, in that order, installed or not.
    """
    return [_inspect_library(name) for name in NAMES]


def enable_float64(library: str) -> None:
    """Let a library compute in float64 where that has to be asked for: JAX, and then for the whole process.

    Nothing in this package calls it but the command line, whose process is its own. It should come before the
    library's first array.

    Parameters
    ----------
    library : str
        A name as in `backend`; nothing happens where it needs no asking or is not installed.
    """
    if library == "jax" and _find_spec(library) is not None:
        import jax

        jax.config.update("jax_enable_x64", True)


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


def forbid_transfers(target: Backend) -> AbstractContextManager[None] | None:
    """A context in which a copy between host and device is an error, or None where the library has no such guard."""
    if target.name != "jax":
        return None
    import jax

    guard: AbstractContextManager[None] = jax.transfer_guard("disallow")
    return guard


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


def leaves(tree: Any) -> Iterator[Array]:
    """The arrays of a nest of tuples, lists and dicts, in order, without the Nones."""
    if tree is None:
        return
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        yield tree
        return
    for branch in tree:
        yield from leaves(branch)


def map_leaves(function: Any, tree: Any) -> Any:
    """The same nest of tuples, lists and dicts with `function` applied to every array."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: map_leaves(function, branch) for key, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        mapped = [map_leaves(function, branch) for branch in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    return function(tree)


# ---------------------------------------------------------------------- copies, pickles and other processes


def tree_to_numpy(tree: Any) -> Any:
    """The same nest with every array as a NumPy array, which can be pickled and copied whatever the library."""
    return map_leaves(lambda leaf: to_numpy(leaf) if is_array(leaf) else leaf, tree)


def placed(tree: Any, target: Backend) -> Any:
    """Reverse `tree_to_numpy`: the NumPy arrays of a nest as arrays of the backend."""
    return map_leaves(lambda leaf: from_host(leaf, target) if isinstance(leaf, np.ndarray) else leaf, tree)


def _imported_backend(module: str, device: Any, dtype: str) -> Backend:
    return backend(importlib.import_module(module), device, dtype)


def _device_name(library: str, device: Any) -> Any:
    """What `backend` takes for a device and what can be pickled, which not every library's device objects can."""
    if device is None:
        return None
    if library == "jax":
        return f"{device.platform}:{device.id}"
    if library == "cupy":
        return int(device.id)
    if library == "dpnp":
        return device.sycl_device.filter_string
    return device


def _reduced_error(error: NonFiniteError) -> Any:
    """How to pickle an error that carries parameters."""
    others = {name: value for name, value in vars(error).items() if name != "good_params"}
    target = backend_of(*error.good_params.values()) if error.good_params else None
    return _restored_error, (error.args, others, tree_to_numpy(error.good_params), target)


def _restored_error(args: Any, others: dict[str, Any], params: Any, target: Backend | None) -> NonFiniteError:
    error = NonFiniteError.__new__(NonFiniteError, *args)
    vars(error).update(others, good_params=params if target is None else placed(params, target))
    return error


copyreg.pickle(NonFiniteError, _reduced_error)


def _as_backend(library: Any) -> Backend:
    return library if isinstance(library, Backend) else backend(library)


def _narrowed(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The 32-bit form, for a library that would narrow the data itself and warn about it."""
    narrow = {"f": np.float32, "i": np.int32, "u": np.uint32}
    if host.dtype.kind not in narrow or host.dtype.itemsize < 8:
        return host
    return host.astype(narrow[host.dtype.kind])


def _import_namespace(name: str) -> Any:
    if name not in NAMES:
        raise BackendError(
            f"unknown backend {name!r}: expected one of {', '.join(NAMES)}, "
            "or pass the module of another array API library"
        )
    info = _find_spec(name)
    if info is None:
        raise BackendError(
            f"backend {name!r} is not installed: run `pip install 'portable-rnn[{name}]'` "
            "or choose another (`portable-rnn backends` lists them)"
        )
    try:
        return importlib.import_module(_NAMESPACE_MODULES[name])
    except Exception as error:
        raise BackendError(f"backend {name!r} is installed but can't be imported: {_first_line(error)}") from error


def _find_spec(name: str) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    return importlib.util.find_spec(name)


def _namespace_of_module(module: ModuleType) -> Any:
    name = library_name(module)
    if name in _NAMESPACE_MODULES:
        return _import_namespace(name)
    if not hasattr(module, "__array_namespace_info__"):
        raise BackendError(
            f"module {module.__name__!r} does not follow the array API standard: it has no __array_namespace_info__"
        )
    return module


def _resolve_device(name: str, xp: Any, device: Any, dtype: Any) -> Any:
    """The library's own device object, the one that its arrays answer with; not every device has float64."""
    try:
        if name == "jax" and isinstance(device, str):
            import jax

            platform, _, index = device.partition(":")
            device = jax.devices(platform)[int(index or 0)]
        elif name == "cupy":
            device = cupy_device(importlib.import_module("cupy"), device)
            with device:
                xp.empty(1, dtype=dtype)
            return device
        elif name == "array_api_strict" and isinstance(device, str):
            device = xp.Device(device)
        return device_of(xp.empty(1, dtype=dtype, device=device))
    except Exception as error:
        what = f"device {device!r}" if device is not None else "a default device"
        raise BackendError(
            f"backend {name!r} can't use {what}: {_first_line(error)}; `portable-rnn backends` lists the devices"
        ) from error


def _resolve_dtype(name: str, xp: Any, wanted: str) -> Any:
    if name == "jax" and wanted == "float64":
        import jax

        if not jax.config.jax_enable_x64:
            raise BackendError(
                "JAX would silently compute float64 in float32: "
                'call jax.config.update("jax_enable_x64", True) first, or choose dtype="float32"'
            )
    if name == "jax":
        return np.dtype(wanted)  # what jax.Array.dtype answers; jnp.float32 itself is a scalar type
    return getattr(xp, wanted) if name != "numpy" else np.dtype(wanted)


def _inspect_library(name: str) -> BackendInfo:
    if _find_spec(name) is None:
        reason = f"not installed: pip install 'portable-rnn[{name}]'"
        return BackendInfo(name, None, False, (), reason)
    version = version_of(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = backend(name)
            devices = _devices(target)
    except BackendError as error:
        return BackendInfo(name, version, False, (), _first_line(error))
    return BackendInfo(name, version, True, devices, "")


def _devices(target: Backend) -> tuple[str, ...]:
    if target.name == "torch":
        # asking torch's namespace info tries every device kind it has ever known, with warnings
        torch = importlib.import_module("torch")
        accelerators = torch.accelerator.device_count() if hasattr(torch, "accelerator") else 0
        kind = torch.accelerator.current_accelerator().type if accelerators else ""
        return ("cpu", *(f"{kind}:{i}" for i in range(accelerators)))
    found = target.xp.__array_namespace_info__().devices()
    if target.name == "dpnp":
        return tuple(f"{d.backend.name}:{d.device_type.name}:{d.name.strip()}" for d in found)
    return tuple(str(d) for d in found if d is not None)


def version_of(name: str) -> str:
    """The installed version of a library of `NAMES`."""
    import importlib.metadata  # takes 20 ms to import

    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
