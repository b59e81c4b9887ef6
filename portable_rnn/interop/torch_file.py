"""Files that torch.save wrote, read without torch and without running anything in them.

A file is a zip archive of one pickle, which describes the tensors, and one record of bytes for each storage; before
torch 1.6 it was a row of pickles with the storages behind them.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .archives import checked_members
from .pickles import Foreign, load_plain

__all__ = ["FileTensor", "array_of_tensor", "read_torch_file"]

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32",
}  # fmt: skip
_DTYPES = {**{f"torch.{name}": name for name in _STORAGES.values()}, "torch.uint16": "uint16", "torch.uint32": "uint32"}
_WIDTHS = {"bfloat16": 2}
# What a tensor is that torch rebuilds by another function
_OTHERS = {
    "_rebuild_qtensor": "quantized",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_meta_tensor_no_storage": "without data (on torch's meta device)",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_wrapper_subclass": "a wrapper around others",
}


@dataclass
class Storage:
    """Numbers in a file.

    Attributes
    ----------
    dtype : str
    count : int
        Numbers that the pickle says there are.
    read : callable
        Their bytes.
    """

    dtype: str
    count: int
    read: Callable[[], bytes]

    @cached_property
    def data(self) -> bytes:
        """The bytes, read once for all tensors that share them."""
        return self.read()


@dataclass(frozen=True)
class FileTensor:
    """A tensor that stands in a file, with its numbers still there.

    Attributes
    ----------
    storage : Storage
    dtype : str
    offset : int
        Where it begins, in numbers.
    shape, strides : tuple of int
    big_endian : bool
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    big_endian: bool


@dataclass(frozen=True)
class OtherTensor:
    """A tensor that is no plain array of numbers: what it is, in words."""

    kind: str


@dataclass
class _Reader:
    """What the pickle's names stand for."""

    record: Callable[[str], bytes]
    big_endian: bool = False
    storages: dict[str, Storage] = field(default_factory=dict)

    def persistent(self, pid: Any) -> Any:
        """("storage", type, key, device, count): a storage; the same key is the same one."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            source = pid[1] if isinstance(pid, tuple) and len(pid) > 1 else None  # old files: ("module", class, code)
            return source if isinstance(source, Foreign) else Foreign("an object of its own")
        kind, key, count = pid[1], pid[2], pid[4]
        dtype = _STORAGES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Foreign) else None
        if len(pid) == 6 and pid[5] is not None:
            raise InputError("expected whole storages, got a view of one, as torch before 0.4 wrote: save again")
        if not isinstance(key, str) or not _is_size(count):
            raise InputError("expected a storage's name and size, got a damaged file: save the state dict again")
        if dtype is None:
            return OtherTensor(f"of {kind.name if isinstance(kind, Foreign) else 'unknown numbers'}")
        if key not in self.storages:
            self.storages[key] = Storage(dtype, count, lambda: self.record(key))
        return self.storages[key]

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """A tensor or an ordered dict; anything else is not built."""
        if name == "collections.OrderedDict":
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            return {p[0]: p[1] for p in pairs if isinstance(p, (list, tuple)) and len(p) == 2 and isinstance(p[0], str)}
        module, _, own = name.rpartition(".")
        if name == "torch._tensor._rebuild_from_type_v2" and len(arguments) == 4 and isinstance(arguments[0], Foreign):
            name, arguments = arguments[0].name, arguments[2]  # a Parameter, or a tensor with attributes
            module, _, own = name.rpartition(".")
        if module != "torch._utils" or not isinstance(arguments, tuple):
            return Foreign(name)
        if own in _OTHERS:
            return OtherTensor(_OTHERS[own])
        if own in ("_rebuild_parameter", "_rebuild_parameter_with_state") and arguments:
            return arguments[0]
        if own in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3") and len(arguments) >= 4:
            return self._tensor(arguments)
        return Foreign(name)

    def _tensor(self, arguments: tuple[Any, ...]) -> Any:
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, OtherTensor):
            return storage
        sizes = [*shape, *strides, offset] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
        if not isinstance(storage, Storage) or len(shape) != len(strides) or not all(map(_is_size, sizes)):
            raise InputError("expected a tensor's storage, shape and strides, got a damaged file: save it again")
        dtype = storage.dtype
        if len(arguments) > 6 and isinstance(arguments[6], Foreign):
            known = _DTYPES.get(arguments[6].name)
            if known is None:
                return OtherTensor(f"of {arguments[6].name}")
            dtype = known
        return FileTensor(storage, dtype, offset, shape, strides, self.big_endian)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote, with `FileTensor` for tensors and `Foreign` for objects, none of which is built.

    Raises
    ------
    InputError
        Cut short, damaged, of another kind, or one whose records unpack to far more than the file.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return _read_zip(path)
        return _read_legacy(path.read_bytes())
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise InputError("expected a whole file of torch.save, got one that is cut short or damaged") from error


def _read_zip(path: Path) -> Any:
    members = checked_members(path)
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise InputError("expected one data.pkl in the archive of torch.save, got another kind of archive")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise InputError(
            "expected tensors alone, got a TorchScript module, which holds code: run "
            "torch.save(torch.jit.load(path).state_dict(), other_path)"
        )

    def record(key: str) -> bytes:
        name = f"{folder}data/{key}"
        if name not in members:
            raise InputError(f"expected the record {name!r}, got a file without it: it is damaged, save it again")
        return members.read(name)

    big = f"{folder}byteorder" in members and members.read(f"{folder}byteorder") == b"big"
    reader = _Reader(record, big)
    return load_plain(io.BytesIO(members.read(pickles[0])), reader.call, reader.persistent)


def _read_legacy(data: bytes) -> Any:
    file = io.BytesIO(data)  # of which no more can be read than there is, however much is asked for
    records: dict[str, bytes] = {}
    reader = _Reader(lambda key: records[key])
    magic, _, system, found, keys = (load_plain(file, reader.call, reader.persistent) for _ in range(5))
    if magic != _MAGIC or not isinstance(keys, list):
        raise InputError("expected a file of torch.save, got a pickle of another kind")
    if isinstance(system, dict) and system.get("little_endian") is False:
        reader.big_endian = True
    for key in keys:
        storage = reader.storages.get(key) if isinstance(key, str) else None
        count = int.from_bytes(file.read(8), "big" if reader.big_endian else "little")
        if storage is None or storage.count != count or count * _width(storage.dtype) > len(data):
            raise InputError("expected the storages that the pickle names, got a damaged file: save it again")
        records[key] = file.read(count * _width(storage.dtype))
    if set(records) != set(reader.storages):
        raise InputError("expected the storages that the pickle names, got a file that is cut short: save it again")
    return found


def _width(dtype: str) -> int:
    return _WIDTHS.get(dtype) or np.dtype(dtype).itemsize


def array_of_tensor(tensor: FileTensor) -> np.ndarray[Any, Any]:
    """A tensor's numbers; bfloat16 as float32, which is exact.

    Raises
    ------
    InputError
        It is larger than what the file holds of it, as an expanded tensor is, or its storage is cut short.
    """
    storage, width = tensor.storage, _width(tensor.dtype)
    available = storage.count * _width(storage.dtype) // width
    count = math.prod(tensor.shape)
    if count > available:
        raise InputError(
            f"expected numbers for shape {tensor.shape}, got {available:,} in the file (an expanded tensor): save "
            "tensor.contiguous()"
        )
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if count and last >= available:
        raise InputError(f"expected a place within {available:,} numbers, got {last:,}: the file is damaged")
    raw = storage.data
    if len(raw) != storage.count * _width(storage.dtype):
        raise InputError(f"expected {storage.count:,} numbers, got {len(raw):,} bytes: the file is damaged")
    native = np.dtype("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
    kind = native.newbyteorder(">" if tensor.big_endian else "<")
    if not count or len(tensor.shape) > 32:
        raise InputError(f"expected a tensor with numbers in it, of at most 32 axes, got shape {tensor.shape}")
    flat = np.frombuffer(raw, dtype=kind, count=available)
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.shape, [s * width for s in tensor.strides], writeable=False
    )
    if tensor.dtype == "bfloat16":
        return (view.astype("uint32") << 16).view("float32")
    return view.astype(native)
