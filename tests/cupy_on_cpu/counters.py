"""How many kernels, products, copies and allocations a piece of code asks for, and which of its lines copied."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, SET = 1, 2, 3, 5  # native/runtime.cpp
KINDS = {
    0: "host to host",
    HOST_TO_DEVICE: "host to device",
    DEVICE_TO_HOST: "device to host",
    DEVICE_TO_DEVICE: "device to device",
    4: "any to any",
    SET: "set",
}
_PACKAGE = "/portable_rnn/"


class Launch(NamedTuple):
    """One launch of a kernel."""

    name: str
    line: str  # as of a `Copy`


class Copy(NamedTuple):
    """One copy between memories."""

    kind: str
    size: int  # in bytes
    line: str  # the innermost one of portable_rnn, "FILE:LINE", or "" where another called

    def __str__(self) -> str:
        return f"{self.kind}, {self.size} bytes, {self.line or 'not from portable_rnn'}"


@dataclass
class Counts:
    """What was counted between two points.

    Attributes
    ----------
    products, allocations : int
        Calls of cuBLAS; calls of cudaMalloc, of which CuPy's pool makes few.
    launches : list of Launch
    copies : list of Copy
    """

    products: int = 0
    allocations: int = 0
    launches: list[Launch] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    @property
    def kernels(self) -> int:
        """How many kernels were launched."""
        return len(self.launches)

    def copied(self, kind: int) -> list[Copy]:
        """The copies of one kind, such as `HOST_TO_DEVICE`."""
        return [copy for copy in self.copies if copy.kind == KINDS[kind]]


class Counters:
    """The libraries' counters; `cupy_on_cpu.counters` is the one of this process."""

    def __init__(self, driver: ctypes.CDLL, blas: ctypes.CDLL, runtime: ctypes.CDLL) -> None:
        self._driver = driver
        self._products = ctypes.c_longlong.in_dll(blas, "emu_products")
        self._allocations = ctypes.c_longlong.in_dll(runtime, "emu_allocations")
        self._copy_hook = ctypes.c_void_p.in_dll(runtime, "emu_copy_hook")
        self._launch_hook = ctypes.c_void_p.in_dll(driver, "emu_launch_hook")

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count while the context is open; not to be nested."""
        before = self._products.value, self._allocations.value
        counts = Counts()

        @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_size_t)
        def copied(kind: int, size: int) -> None:
            counts.copies.append(Copy(KINDS[kind], size, _calling_line()))

        @ctypes.CFUNCTYPE(None, ctypes.c_char_p)
        def launched(name: bytes) -> None:
            counts.launches.append(Launch(name.decode(), _calling_line()))

        self._copy_hook.value = ctypes.cast(copied, ctypes.c_void_p).value
        self._launch_hook.value = ctypes.cast(launched, ctypes.c_void_p).value
        try:
            yield counts
        finally:
            self._copy_hook.value = self._launch_hook.value = None
            counts.products = self._products.value - before[0]
            counts.allocations = self._allocations.value - before[1]

    def launches(self) -> dict[str, int]:
        """How often each kernel was launched so far, by name; the most often first."""
        found: dict[str, int] = {}

        @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_longlong)
        def visit(name: bytes, count: int) -> None:
            found[name.decode()] = found.get(name.decode(), 0) + count

        self._driver.emu_each_function(visit)
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def _calling_line() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if _PACKAGE in file:
            return f"{file.rpartition(_PACKAGE)[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
