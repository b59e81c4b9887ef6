"""Which array library to compute with, on which device and in which dtype: by name, by module or by array."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np

from ..errors import BackendError
from .devices import cupy_device
from .namespaces import DTYPES, device_of, dtype_name, is_array, library_name, namespace_of
from .typing import Array

__all__ = [
    "DTYPES",
    "NAMES",
    "Backend",
    "BackendInfo",
    "backend",
    "backend_of",
    "backends",
    "enable_float64",
    "forbid_transfers",
    "version_of",
]


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


def forbid_transfers(target: Backend) -> AbstractContextManager[None] | None:
    """A context in which a copy between host and device is an error, or None where the library has no such guard."""
    if target.name != "jax":
        return None
    import jax

    guard: AbstractContextManager[None] = jax.transfer_guard("disallow")
    return guard


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
