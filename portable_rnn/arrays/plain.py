"""Plain arrays on the host: what subclasses of arrays, tables and ragged lists become, and what is refused.

Every argument of the public edge that is not exactly an array passes here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError

__all__ = ["host_array", "host_arrays", "plain", "refuse_containers", "unboxed"]

HostArray = np.ndarray[Any, Any]

# What a subclass may override without computing otherwise; any other special method of arrays may stand for a mask, a
# unit or another product.
_HARMLESS = {
    *("__array_finalize__", "__array_priority__", "__class__", "__class_getitem__", "__copy__", "__deepcopy__"),
    *("__delattr__", "__dir__", "__doc__", "__format__", "__getstate__", "__init__", "__init_subclass__", "__new__"),
    *("__reduce__", "__reduce_ex__", "__repr__", "__setattr__", "__setstate__", "__sizeof__", "__str__"),
    "__subclasshook__",
}
_ARITHMETIC = {name for name in dir(np.ndarray) if name.startswith("__")} - _HARMLESS


def plain(name: str, x: Any) -> Any:
    """An array without a subclass's own arithmetic.

    A subclass that has none, such as `numpy.memmap`, becomes a view of the base class; `torch.nn.Parameter` stays.

    Raises
    ------
    InputError
        The subclass computes otherwise (masks, units, matrices), or a torch tensor is not dense.
    """
    kind: Any = type(x)
    if kind is np.ndarray:
        return x
    if isinstance(x, np.ndarray):
        if _computes_otherwise(kind):
            raise InputError(f"{name}: expected a plain numpy.ndarray, got {kind.__name__}: {_remedy(x)}")
        return np.asarray(x)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        if x.layout is not torch.strided or x.is_nested:
            raise InputError(f"{name}: expected a dense torch.Tensor, got layout {x.layout}: do {name}.to_dense()")
        if kind is not torch.Tensor and _wraps_functions(kind):
            raise InputError(
                f"{name}: expected a plain torch.Tensor, got {kind.__name__}: "
                f"do {name}.as_subclass(torch.Tensor) if its numbers are all it means"
            )
    return x


def host_array(x: Any, name: str = "x") -> HostArray:
    """Numbers, nested lists of them, a table or a NumPy array as a plain array on the host.

    Raises
    ------
    InputError
        Rows of different lengths; an object that holds arrays but is none, such as a DataLoader.
    """
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(plain(name, x))
    if type(x) is list or type(x) is tuple:
        _refuse_subclasses_inside(name, x)
    else:
        refuse_containers(name, x)
    try:
        host = np.asarray(x)
    except ValueError as error:
        raise InputError(
            f"{name}: expected a rectangular nest of numbers, got rows of different lengths: pass a list of (T_i, F) "
            "arrays, or pad with portable_rnn.data.pad_sequences"
        ) from error
    if host.dtype == object and hasattr(x, "dtypes" if hasattr(x, "columns") else "dtype"):
        try:  # a table or column of numbers of several kinds, or of pandas' own
            return host.astype(np.float64)
        except (TypeError, ValueError):
            pass
    return host


def host_arrays(rows: Sequence[Any], name: str = "x") -> list[HostArray]:
    """Sequences (T_i, ...) on the host, all of one dtype and alike but for their lengths.

    A dtype that only a list or a table had by chance gives way to the others', and an empty list fits everywhere.

    Raises
    ------
    InputError
        They differ in more than their length.
    """
    hosts = [host_array(row, f"{name}[{k}]") for k, row in enumerate(rows)]
    known = [k for k, row in enumerate(rows) if not (isinstance(row, (list, tuple)) and len(row) == 0)]
    if not known:
        return hosts
    first, shapes = known[0], [host.shape for host in hosts]
    for k, (host, shape) in enumerate(zip(hosts, shapes, strict=True)):
        if k not in known:
            shapes[k] = (0, *shapes[first][1:])
        elif host.dtype.kind not in "fiub":
            raise InputError(f"{name}[{k}]: expected numbers, got dtype {host.dtype}: convert it first")
        elif not shape or shape[1:] != shapes[first][1:]:
            raise InputError(
                f"{name}[{k}]: expected the shape of {name}[{first}] but for its length, {shapes[first]}, got {shape}: "
                "give all sequences the same features"
            )
    dtype = np.result_type(*(hosts[k].dtype for k in known))
    return [host.reshape(shape).astype(dtype, copy=False) for host, shape in zip(hosts, shapes, strict=True)]


@functools.lru_cache(maxsize=64)
def _computes_otherwise(kind: Any) -> bool:
    return any(getattr(kind, n, None) not in (getattr(np.ndarray, n), getattr(np.memmap, n)) for n in _ARITHMETIC)


@functools.lru_cache(maxsize=64)
def _wraps_functions(kind: Any) -> bool:
    torch = sys.modules["torch"]
    own = getattr(kind.__torch_function__, "__func__", kind.__torch_function__)
    return own not in (torch.Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)


def _remedy(x: Any) -> str:
    if isinstance(x, np.ma.MaskedArray):
        return "fill it, such as x.filled(0), or leave the masked steps out with lengths"
    return "take np.asarray(x) if its numbers are all it means"


def _refuse_subclasses_inside(name: str, x: Any) -> None:
    """NumPy would join masked arrays without their masks."""
    for k, row in enumerate(x):
        if isinstance(row, (list, tuple)):
            _refuse_subclasses_inside(f"{name}[{k}]", row)
        elif isinstance(row, np.ndarray):
            plain(f"{name}[{k}]", row)


def unboxed(x: Any) -> Any:
    """The list of sequences that an array of objects is, as `numpy.load` gives it; anything else as it is."""
    if type(x) is np.ndarray and x.dtype == object and x.ndim == 1 and all(hasattr(row, "__len__") for row in x):
        return list(x)
    return x


def refuse_containers(name: str, x: Any) -> None:
    """Raise InputError for what holds or yields arrays and is none, and no list of them; say what to do instead."""
    if hasattr(x, "batch_sizes"):
        raise InputError(
            f"{name}: expected an array or a list of sequences, got {type(x).__name__}: "
            "do x, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)"
        )
    known = isinstance(x, (list, tuple, str, bytes, int, float, complex, range)) or x is None
    if known or hasattr(x, "__array__") or hasattr(x, "__array_interface__") or hasattr(x, "__dlpack__"):
        return
    if not isinstance(x, Sequence):
        hint = "convert it first"
        if isinstance(x, Mapping):
            hint = "pass one of its values"
        elif isinstance(x, Iterable):
            hint = (
                "collect what it yields first, a DataLoader's batches as one array, a generator's sequences as list(x)"
            )
        raise InputError(f"{name}: expected an array or a list of sequences, got {type(x).__name__}: {hint}")
