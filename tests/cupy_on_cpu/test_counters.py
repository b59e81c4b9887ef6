"""The counters count what was asked for, and name the line that copied."""

from __future__ import annotations

import cupy
import numpy as np

import cupy_on_cpu
import portable_rnn as prnn
from cupy_on_cpu.counters import DEVICE_TO_HOST, HOST_TO_DEVICE

counting = cupy_on_cpu.counters.counting


def test_kernels_products_and_copies() -> None:
    host = np.ones((4, 4), "f4")
    with counting() as counts:
        x = cupy.asarray(host)
    assert counts.kernels == counts.products == 0
    assert [(copy.size, copy.line) for copy in counts.copied(HOST_TO_DEVICE)] == [(64, "")]
    with counting() as counts:
        x = x + x
        cupy.dot(x, x)
    assert counts.kernels == counts.products == 1
    assert counts.copies == []
    with counting() as counts:
        assert float(x[0, 0]) == 2
    assert [copy.size for copy in counts.copied(DEVICE_TO_HOST)] == [4]


def test_allocations_are_the_pools_not_the_arrays() -> None:
    cupy.empty(1 << 16)
    with counting() as counts:
        cupy.empty(1 << 16)
    assert counts.allocations == 0
    with counting() as counts:
        memory = cupy.cuda.memory.Memory(512)
    del memory
    assert counts.allocations == 1


def test_a_copy_names_our_line() -> None:
    with counting() as counts:
        prnn.asarray(np.ones(3), "cupy")
    (copy,) = counts.copies
    file, _, line = copy.line.rpartition(":")
    assert file.endswith(".py")
    assert int(line) > 1
    assert str(copy) == f"host to device, 12 bytes, {copy.line}"


def test_launches_have_names() -> None:
    before = cupy_on_cpu.counters.launches().get("counted_by_name", 0)
    kernel = cupy.RawKernel('extern "C" __global__ void counted_by_name(float* x) { *x = 1; }', "counted_by_name")
    for _ in range(3):
        kernel((1,), (1,), (cupy.zeros(1, "f4"),))
    assert cupy_on_cpu.counters.launches()["counted_by_name"] == before + 3
