"""Device memory is not the host's: what a GPU would not allow, or not promise, fails here."""

from __future__ import annotations

import signal

import cupy
import numpy as np
import pytest

from .running import run

COPY = """
copy = cupy.RawKernel('''extern "C" __global__ void copy(const float* x, float* y, long long shift)
                         { y[threadIdx.x] = x[threadIdx.x + shift]; }''', "copy")
"""


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_fresh_memory_is_nan(dtype: str) -> None:
    memory = cupy.cuda.memory.Memory(4096)  # not from the pool, which hands out used memory again
    x = cupy.ndarray((8,), dtype, cupy.cuda.MemoryPointer(memory, 0))
    assert np.isnan(cupy.asnumpy(x)).all()


def test_the_host_does_not_read_device_memory_unnoticed() -> None:
    x = cupy.ones(3)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)


def test_an_address_of_the_device_faults_on_the_host_with_the_line() -> None:
    done = run(
        """
        import ctypes
        x = cupy.ones(3)
        ctypes.string_at(x.data.ptr, 8)  # line 5
        """
    )
    assert done.returncode == -signal.SIGSEGV
    assert 'File "<string>", line 5 in <module>' in done.stderr


def test_a_copy_that_leaves_its_allocation_is_refused() -> None:
    x = cupy.cuda.memory.Memory(100)
    host = np.zeros(200, "u1")
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidValue"):
        cupy.cuda.runtime.memcpy(host.ctypes.data, x.ptr, 200, cupy.cuda.runtime.memcpyDeviceToHost)
    cupy.cuda.runtime.memcpy(host.ctypes.data, x.ptr, 100, cupy.cuda.runtime.memcpyDeviceToHost)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidValue"):  # the host's memory
        cupy.cuda.runtime.memcpy(host.ctypes.data, host.ctypes.data, 100, cupy.cuda.runtime.memcpyDeviceToHost)


def test_guard_faults_behind_an_array() -> None:
    done = run(
        f"""{COPY}
x, y = cupy.ones(32, "f4"), cupy.zeros(32, "f4")
copy((1,), (32,), (x, y, 0))
print("inside")
copy((1,), (32,), (x, y, 4))
""",
        GUARD="1",
    )
    assert done.stdout == "inside\n"
    assert done.returncode == -signal.SIGSEGV


PEEK = """
peek = cupy.RawKernel('''extern "C" __global__ void peek(unsigned long long address, float* y)
                         { *y = *reinterpret_cast<float*>(address); }''', "peek")
x, y = cupy.ones(32, "f4"), cupy.zeros(1, "f4")
address = x.data.ptr
peek((1,), (1,), (numpy.uint64(address), y))
print(float(y[0]))
del x
z = cupy.ones(32, "f4")
peek((1,), (1,), (numpy.uint64(address), y))
print("after free")
"""


@pytest.mark.parametrize("guard", ["0", "1"])
def test_guard_faults_after_free(guard: str) -> None:
    done = run(PEEK, GUARD=guard)
    if guard == "1":
        assert done.stdout == "1.0\n", done.stderr
        assert done.returncode == -signal.SIGSEGV
    else:  # CuPy's pool keeps the memory
        assert done.stdout == "1.0\nafter free\n", done.stderr


def test_a_device_does_not_read_anothers_memory() -> None:
    with cupy.cuda.Device(1):
        x = cupy.ones(3)
    assert x.device.id == 1
    with pytest.raises(ValueError, match="Peer access is unavailable"):
        x + 1
    with cupy.cuda.Device(1):
        assert (x + 1).device.id == 1


def test_with_peer_access_the_result_is_on_the_current_device() -> None:
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore")
        with cupy.cuda.Device(1):
            x = cupy.ones(3)
        print((x + 1).device.id, (x + 1).sum())
        """,
        PEER="1",
    )
    assert done.stdout == "0 6.0\n", done.stderr


def test_memory_is_given_back() -> None:
    available, total = cupy.cuda.runtime.memGetInfo()
    memory = cupy.cuda.memory.Memory(1 << 20)
    assert cupy.cuda.runtime.memGetInfo() == (available - (1 << 20), total)
    del memory
    assert cupy.cuda.runtime.memGetInfo() == (available, total)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.cuda.memory.alloc(total + 1)
