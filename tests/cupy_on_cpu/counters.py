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
    kernels, products, allocations : int
        Launches, calls of cuBLAS, calls of cudaMalloc (CuPy's pool makes few).
    copies : list of Copy
    """

    kernels: int = 0
    products: int = 0
    allocations: int = 0
    copies: list[Copy] = field(default_factory=list)

    def copied(self, kind: int) -> list[Copy]:
        """The copies of one kind, such as `HOST_TO_DEVICE`."""
        return [copy for copy in self.copies if copy.kind == KINDS[kind]]


class Counters:
    """The libraries' counters; `cupy_on_cpu.counters` is the one of this process."""

    def __init__(self, driver: ctypes.CDLL, blas: ctypes.CDLL, runtime: ctypes.CDLL) -> None:
        self._driver, self._runtime = driver, runtime
        self._kernels = ctypes.c_longlong.in_dll(driver, "emu_launches")
        self._products = ctypes.c_longlong.in_dll(blas, "emu_products")
        self._allocations = ctypes.c_longlong.in_dll(runtime, "emu_allocations")
        self._hook = ctypes.c_void_p.in_dll(runtime, "emu_copy_hook")

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count while the context is open; not to be nested."""
        before = self._kernels.value, self._products.value, self._allocations.value
        counts = Counts()

        @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_size_t)
        def copied(kind: int, size: int) -> None:
            counts.copies.append(Copy(KINDS[kind], size, _calling_line()))

        self._hook.value = ctypes.cast(copied, ctypes.c_void_p).value
        try:
            yield counts
        finally:
            self._hook.value = None
            after = self._kernels.value, self._products.value, self._allocations.value
            counts.kernels, counts.products, counts.allocations = (a - b for a, b in zip(after, before, strict=True))

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
