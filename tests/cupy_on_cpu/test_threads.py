"""Blocks, threads and what they tell each other."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
import pytest

from .running import run


def kernel(name: str, source: str) -> Any:
    return cupy.RawKernel(f'extern "C" __global__ void {name}({source}', name)


def test_indices_of_three_dimensions() -> None:
    out = cupy.zeros((2, 3, 2, 2, 3, 4), "i4")
    run_kernel = kernel(
        "indices",
        """int* out) {
            const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
            const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
            out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
        }""",
    )
    run_kernel((2, 3, 2), (4, 3, 2), (out,))
    expected = 1000 * np.arange(12)[:, None] + np.arange(24)
    np.testing.assert_array_equal(cupy.asnumpy(out).reshape(12, 24), expected)


REVERSE_IN_BLOCK = """const int* x, int* y) {{
    __shared__ int shared[64];
    const int first = blockIdx.x * blockDim.x;
    shared[threadIdx.x] = x[first + threadIdx.x];
    {barrier}
    y[first + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}}"""


def test_a_barrier_waits_for_the_block() -> None:
    x = cupy.arange(192, dtype="i4")
    y = cupy.empty_like(x)
    kernel("with_barrier", REVERSE_IN_BLOCK.format(barrier="__syncthreads();"))((3,), (64,), (x, y))
    np.testing.assert_array_equal(cupy.asnumpy(y), np.arange(192).reshape(3, 64)[:, ::-1].ravel())


def test_without_the_barrier_shared_memory_is_rubbish() -> None:
    x = cupy.arange(64, dtype="i4")
    y = cupy.empty_like(x)
    kernel("without_barrier", REVERSE_IN_BLOCK.format(barrier=""))((1,), (64,), (x, y))
    assert (cupy.asnumpy(y) == np.uint32(0xCDCDCDCD).astype("i4")).any()


def test_dynamic_shared_memory() -> None:
    x, y = cupy.arange(32, dtype="f8"), cupy.zeros(32, "f8")
    run_kernel = kernel(
        "dynamic",
        """const double* x, double* y) {
            extern __shared__ double shared[];
            shared[threadIdx.x] = x[threadIdx.x];
            __syncthreads();
            y[threadIdx.x] = shared[31 - threadIdx.x];
        }""",
    )
    run_kernel((1,), (32,), (x, y), shared_mem=256)
    np.testing.assert_array_equal(cupy.asnumpy(y), np.arange(32.0)[::-1])


@pytest.mark.parametrize(
    "body",
    ["if (threadIdx.x == 0) __syncthreads(); else __syncwarp();", "__syncwarp(1);"],
    ids=["two kinds", "outside the mask"],
)
def test_barriers_that_never_meet_are_an_error(body: str) -> None:
    x = cupy.zeros(32, "f4")
    run_kernel = kernel("stuck", f"float* x) {{ {body} }}")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="LAUNCH_FAILED"):
        run_kernel((1,), (32,), (x,))


@pytest.mark.parametrize("width", [32, 8])
def test_shuffles(width: int) -> None:
    x, y = cupy.arange(64, dtype="f8"), cupy.zeros((4, 64), "f8")
    run_kernel = kernel(
        f"shuffles{width}",
        f"""const double* x, double* y) {{
            const int i = threadIdx.x;
            y[i] = __shfl_sync(~0u, x[i], i + 3, {width});
            y[64 + i] = __shfl_up_sync(~0u, x[i], 3, {width});
            y[128 + i] = __shfl_down_sync(~0u, x[i], 3, {width});
            y[192 + i] = __shfl_xor_sync(~0u, x[i], 5, {width});
        }}""",
    )
    run_kernel((1,), (64,), (x, y))
    i = np.arange(64)
    lane, first = i % width, i - i % width
    expected = [
        first + (lane + 3) % width,
        np.where(lane >= 3, i - 3, i),
        np.where(lane + 3 < width, i + 3, i),
        i ^ 5,
    ]
    np.testing.assert_array_equal(cupy.asnumpy(y), expected)


def test_votes() -> None:
    y = cupy.zeros((7, 64), "i4")
    run_kernel = kernel(
        "votes",
        """int* y) {
            const int i = threadIdx.x, odd = i % 2, first = i < 32;
            y[i] = __ballot_sync(~0u, odd);
            y[64 + i] = __any_sync(~0u, first);
            y[128 + i] = __all_sync(~0u, first);
            y[192 + i] = __syncthreads_count(odd);
            y[256 + i] = __syncthreads_or(i == 63);
            y[320 + i] = __syncthreads_and(i < 63);
            __syncwarp();
            if (i % 32 < 2) y[384 + i] = __any_sync(0x3, i % 32 == 1);
        }""",
    )
    run_kernel((1,), (64,), (y,))
    found = cupy.asnumpy(y)
    np.testing.assert_array_equal(found[0].view("u4"), 0xAAAAAAAA)
    first = np.arange(64) < 32
    np.testing.assert_array_equal(found[1], first)
    np.testing.assert_array_equal(found[2], first)
    np.testing.assert_array_equal(found[3:6, 0], [32, 1, 0])
    assert (found[6][[0, 1, 32, 33]] == 1).all()


ATOMICS = {
    "atomicAdd": lambda x: x.sum(),
    "atomicSub": lambda x: -x.sum(),
    "atomicMax": lambda x: max(0, x.max()),
    "atomicMin": lambda x: min(0, x.min()),
    "atomicAnd": lambda x: 0,
    "atomicOr": lambda x: np.bitwise_or.reduce(x),
    "atomicXor": lambda x: np.bitwise_xor.reduce(x),
}


def test_atomics() -> None:
    numbers = np.random.default_rng(0).integers(-1000, 1000, 100).astype("i4")
    y = cupy.zeros(len(ATOMICS), "i4")
    calls = " ".join(f"{name}(&y[{k}], x[threadIdx.x]);" for k, name in enumerate(ATOMICS))
    kernel("atomics", f"const int* x, int* y) {{ {calls} __threadfence(); }}")((1,), (100,), (cupy.asarray(numbers), y))
    assert cupy.asnumpy(y).tolist() == [int(reference(numbers)) for reference in ATOMICS.values()]


def test_atomics_that_exchange_and_wrap() -> None:
    y = cupy.asarray([7, 3, 0, 5, 5], "u4")
    old = cupy.zeros(5, "u4")
    run_kernel = kernel(
        "exchanges",
        """unsigned* y, unsigned* old) {
            old[0] = atomicExch(&y[0], 9u);
            old[1] = atomicInc(&y[1], 3u);
            old[2] = atomicDec(&y[2], 6u);
            old[3] = atomicCAS(&y[3], 5u, 8u);
            old[4] = atomicCAS(&y[4], 6u, 8u);
        }""",
    )
    run_kernel((1,), (1,), (y, old))
    assert cupy.asnumpy(y).tolist() == [9, 0, 6, 8, 5]
    assert cupy.asnumpy(old).tolist() == [7, 3, 0, 5, 5]


ORDER = """
last = cupy.RawKernel('''extern "C" __global__ void last(int* y)
                         { y[0] = blockIdx.x * blockDim.x + threadIdx.x; }''', "last")
y = cupy.zeros(1, "i4")
last((3,), (4,), (y,))
print(int(y[0]), float(cupy.arange(1000.0).sum()))
"""


@pytest.mark.parametrize(("reverse", "last"), [("0", 11), ("1", 0)])
def test_the_order_of_threads(reverse: str, last: int) -> None:
    done = run(ORDER, REVERSE=reverse)
    assert done.stdout == f"{last} 499500.0\n", done.stderr


def test_a_launch_that_no_gpu_takes_is_refused() -> None:
    x = cupy.zeros(1, "f4")
    run_kernel = kernel("nothing", "float* x) {}")
    for grid, block in [((1,), (1025,)), ((1, 65536), (1,))]:
        with pytest.raises(cupy.cuda.driver.CUDADriverError, match="INVALID_VALUE"):
            run_kernel(grid, block, (x,))


def test_what_does_not_compile_says_why() -> None:
    with pytest.raises(cupy.cuda.compiler.CompileException, match="undeclared_number"):
        kernel("faulty", "float* x) { *x = undeclared_number; }").compile()
