"""The kernels that CuPy runs, where no GPU is.

The loop runs on NumPy arrays, with each kernel's CUDA C compiled as plain C for this machine: what it computes must be
what the plain loop does. NVRTC, which needs no GPU, compiles the same source as it is. Launches are counted.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import RECURRENT, Case, hard_case, make_case
from trees import flat, relative_error

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.bench.cases import Case as BenchCase
from portable_rnn.bench.cases import Task
from portable_rnn.execution.cuda import program as cuda
from portable_rnn.execution.graph import pytrees, trace
from portable_rnn.execution.graph.instructions import RowSum
from portable_rnn.execution.libraries import Library

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import gpu, gpu_launches

# ---------------------------------------------------------------------- a stand-in for CuPy

HOST = """
#include <math.h>
#include <stdbool.h>
typedef struct {{ unsigned x; }} dim;
static dim blockIdx, blockDim, threadIdx;
{source}
void run(unsigned blocks, unsigned threads, {parameters})
{{
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
            {name}({names});
}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def host_kernel(folder: Path, source: str, name: str) -> Callable[..., None]:
    """A kernel as a function of this machine's processor, called as CuPy's are."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is not installed")
    (parameters,) = re.findall(r"void \w+\((.*)\)", source)
    names = ", ".join(parameter.split()[-1] for parameter in parameters.split(", "))
    code = HOST.format(
        source=source.replace('extern "C" __global__', "static"), parameters=parameters, name=name, names=names
    )
    run = _compiled(compiler, folder, code)

    def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        assert len(arguments) == names.count(",") + 1
        passed = [
            a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else ctypes.c_longlong(a) for a in arguments
        ]
        run(ctypes.c_uint(*grid), ctypes.c_uint(*block), *passed)

    return launch


@functools.cache
def _compiled(compiler: str, folder: Path, code: str) -> Any:
    path = folder / f"kernel{len(list(folder.iterdir()))}.c"
    path.write_text(code)
    library = path.with_suffix(".so")
    subprocess.run(
        [compiler, "-Wall", "-Werror", "-O1", "-shared", "-fPIC", path, "-o", library, "-lm"], check=True, timeout=60
    )
    return ctypes.CDLL(str(library)).run


def host_dot(left: Any, right: Any, out: Any) -> None:
    """As strict as CuPy: NumPy would make a copy where cuBLAS overwrites what it still reads."""
    assert out.flags.c_contiguous
    assert not np.shares_memory(right, out)
    assert not np.shares_memory(left, out)
    np.dot(left, right, out)


@contextmanager
def standing_in(folder: Path) -> Iterator[list[tuple[Any, Any]]]:
    """NumPy's loops run as CuPy's do; gives the graph and the program of each step that was recorded."""
    calls = cuda.Calls(host_dot, np.sum, np.ascontiguousarray, functools.partial(host_kernel, folder))
    with gpu_launches.numpy_as_cupy(calls) as made:
        yield made


@contextmanager
def plain_loop() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "library_of", lambda xp: Library())
        yield


def outcome(case: Case) -> Any:
    """Everything that forward and backward give."""
    y, state, pullback = case.layer.vjp(**case.inputs)
    return y, state, *pullback(case.dy, case.dstate)


def compare(case: Case, folder: Path, tolerance: float = 1e-12) -> list[Any]:
    """Hold the kernels' loop against the plain one; gives the programs."""
    with plain_loop():
        expected = outcome(case)
    with standing_in(folder) as made:
        found = outcome(case)
    assert [a.dtype for a in flat(found)] == [a.dtype for a in flat(expected)]
    assert relative_error(found, expected) < tolerance
    programs = [program for _, program in made]
    assert {None} & {*programs} == set()
    return programs


# ---------------------------------------------------------------------- what the loop computes


@pytest.mark.parametrize("name", RECURRENT)
def test_the_kernels_compute_what_the_plain_loop_does(name: str, folder: Path) -> None:
    programs = compare(hard_case(name), folder)
    assert len(programs) >= 2  # forward and backward


@pytest.mark.parametrize("name", RECURRENT)
def test_float32(name: str, folder: Path) -> None:
    compare(hard_case(name).astype("float32"), folder, 2e-5)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 4, 2), (50, 3, 2), (2, 1, 2)], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        prnn.RNN(2, 5, reverse=True),
        prnn.GRU(2, 5, bias=False),
        prnn.LSTM(2, 5),
        prnn.LSTM(2, 5, peepholes=True, proj_size=3, zoneout=0.2),
        prnn.LSTM(2, 5, recompute_every=2),
        prnn.LayerNormLSTM(2, 5),
        prnn.LayerNormGRU(2, 5, bidirectional=True),
        prnn.MinGRU(2, 5),
        prnn.MinLSTM(2, 5),
    ],
    ids=str,
)
def test_few_and_many_elements(layer: prnn.Layer, shape: tuple[int, ...], folder: Path) -> None:
    case = make_case(layer, shape, with_state=shape[0] > 1)
    assert shape[0] < 50 or 50 * 5 > 128  # more than one block of threads
    compare(case, folder)


def test_a_sum_over_rows_is_a_call_of_its_own(folder: Path) -> None:
    programs = compare(make_case(prnn.LayerNormLSTM(2, 5), (3, 4, 2)), folder)
    assert any(isinstance(made, RowSum) for program in programs for made in program.cut.instructions)


def test_forward_alone_and_what_is_given_stays_as_it_is(folder: Path) -> None:
    case = make_case(prnn.LSTM(2, 5), (3, 4, 2))
    before = [array.copy() for array in flat((case.params, case.x, case.state))]
    with plain_loop():
        expected = case.layer.apply(**case.inputs)
    with standing_in(folder), execution.forward_only():
        found = case.layer.apply(**case.inputs)
    assert relative_error(found, expected) < 1e-12
    for array, old in zip(flat((case.params, case.x, case.state)), before, strict=True):
        np.testing.assert_array_equal(array, old)


def step_of_products(xp: Any, shared: Any, carry: Any, inputs: Any) -> Any:
    """A carry that a product reads and writes, one that stays, and an operand that may lie in any order."""
    (weight, scale), (c, fixed), (x,) = shared, carry, inputs
    return (weight @ c, fixed), (x * scale + fixed,)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_carries_outside_of_stacks(reverse: bool, steps: int, folder: Path) -> None:
    rng = np.random.default_rng(0)
    x, c, fixed, scale = (rng.standard_normal(shape) for shape in ((steps, 3, 2), (2, 3), (3, 2), (2, 3)))
    arguments = (step_of_products, (c.T, fixed), (x,), (rng.standard_normal((3, 3)), scale.T))
    with plain_loop():
        (last, _), (y,) = execution.scan(np, *arguments, reverse=reverse)
    with standing_in(folder) as made:
        (found, same), (stack,) = execution.scan(np, *arguments, reverse=reverse, recorded=True)
    assert made[0][1] is not None
    np.testing.assert_allclose(found, last, rtol=1e-12)
    np.testing.assert_array_equal(same, fixed)
    np.testing.assert_allclose(stack, np.stack(y), rtol=1e-12)


def test_two_calls_share_no_memory(folder: Path) -> None:
    case, other = (make_case(prnn.GRU(2, 5), (3, 4, 2), seed=seed) for seed in (0, 1))
    with standing_in(folder):
        first = outcome(case)
        kept = [array.copy() for array in flat(first)]
        outcome(other)
    for array, old in zip(flat(first), kept, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize(
    "name", ["rnn-relu", "rnn-clipped", "rnn-hard_sigmoid", "rnn-elu", "gru-others", "lstm-others"]
)
def test_nan_stays_where_it_is(name: str, folder: Path) -> None:
    kind, options = RECURRENT[name]
    case = make_case(kind(2, 3, **options), (3, 4, 2))
    case.x[1, 2, 0] = np.nan
    with plain_loop():
        expected = case.layer.apply(**case.inputs)
    with standing_in(folder):
        found = case.layer.apply(**case.inputs)
    assert np.isnan(expected[0]).any()
    for a, b in zip(flat(found), flat(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_step_that_no_kernel_can_be_made_of_runs_as_it_is(folder: Path) -> None:
    layer = prnn.RNN(2, 3, clip=1.0)
    case = make_case(layer, (2, 3, 2))
    with plain_loop():
        expected = outcome(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "MOST_ELEMENTS", 6)
        with standing_in(folder) as made:
            found = outcome(case)
    assert {program for _, program in made} == {None}
    assert relative_error(found, expected) == 0


def test_numbers_that_c_cant_write_make_no_kernel() -> None:
    def step(xp: Any, shared: Any, carry: Any, inputs: Any) -> Any:
        return (xp.minimum(carry[0] + inputs[0], float("inf")),), (carry[0],)

    specs = [[((2, 3), False)], [((2, 3), False)], []]
    structures = [pytrees.flattened(tree, []) for tree in ((0,), (0,), None)]
    graph = trace.trace(step, specs, structures)
    with gpu_launches.numpy_as_cupy(cuda.Calls(np.dot, np.sum, np.ascontiguousarray, lambda *_: None)):
        assert cuda.cuda_program(graph, step, "float64", donate=False) is None
    assert cuda.cuda_program(graph, step, "float16", donate=False) is None


# ---------------------------------------------------------------------- NVRTC


@functools.cache
def sources(name: str, dtype: str) -> tuple[str, ...]:
    """Every kernel of a layer with everything, in which no number is computed."""
    found: list[str] = []

    def kernel(source: str, name: str) -> Callable[..., None]:
        found.append(source)
        return lambda *_: None

    case = hard_case(name).astype(dtype)
    calls = cuda.Calls(lambda *_: None, lambda *_, **__: None, np.ascontiguousarray, kernel)
    with gpu_launches.numpy_as_cupy(calls), pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", np.zeros)
        outcome(case)
    return tuple(dict.fromkeys(found))


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    """CuPy's binding of the compiler, which comes in a wheel of its own and needs no GPU."""
    pytest.importorskip("cupy", reason="CuPy is not installed: NVRTC is called through it")
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as error:
        pytest.skip(f"NVRTC is not installed: pip install nvidia-cuda-nvrtc ({type(error).__name__})")
    return nvrtc


@functools.cache
def ptx(nvrtc: Any, source: str) -> str:
    """The source compiled with the options that CuPy gives, without a warning."""
    program = nvrtc.createProgram(source, "kernel.cu", [], [])
    try:
        nvrtc.compileProgram(program, ("--gpu-architecture=compute_80", "-std=c++17"))
        assert nvrtc.getProgramLog(program).strip() == ""
        made = nvrtc.getPTX(program)
    finally:
        nvrtc.destroyProgram(program)
    return made.decode() if isinstance(made, bytes) else str(made)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RECURRENT)
def test_nvrtc_compiles_every_kernel(name: str, dtype: str, nvrtc: Any) -> None:
    found = sources(name, dtype)
    assert len(found) >= 2
    for source in found:
        (entry, parameters) = re.findall(r"void (\w+)\((.*)\)", source)[0]
        text = ptx(nvrtc, source)
        assert f".entry {entry}(" in text
        assert text.count(f"{entry}_param_{parameters.count(',')}") >= 1
        assert (".f64" in text) == (dtype == "float64")  # a double in a float's kernel takes its time many times over


def test_nvrtc_refuses_what_is_no_kernel(nvrtc: Any) -> None:
    with pytest.raises(nvrtc.NVRTCError):
        ptx(nvrtc, sources("lstm", "float32")[0].replace("blockIdx", "unheard_of"))


# ---------------------------------------------------------------------- launches


@pytest.mark.parametrize(
    ("name", "direction", "most"),
    [(name, direction, 4) for name in ("RNN", "GRU", "LSTM") for direction in ("forward", "backward")],
)
def test_launches_of_a_step(name: str, direction: str, most: int) -> None:
    found = gpu_launches.count(*gpu_launches.LAYERS[name])[direction]
    assert found.products == 1
    assert 2 <= found.fused <= most
    assert found.unfused > found.fused


def test_the_table_of_launches() -> None:
    lines = gpu_launches.table().splitlines()
    assert len(lines) == 2 + 2 * len(gpu_launches.LAYERS)
    assert {line.count("|") for line in lines} == {8}
    assert "| LSTM | forward | 1 | 1 | 0 | 2 |" in lines[2 + 2 * list(gpu_launches.LAYERS).index("LSTM")]


def test_counting_finds_a_layer_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "MOST_ELEMENTS", 1)
    with pytest.raises(RuntimeError, match="can't be cut into kernels"):
        gpu_launches.count(prnn.RNN(3, 4))


# ---------------------------------------------------------------------- the script for a machine with a GPU


def test_the_gpu_benchmark_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "missing", lambda: "torch finds no CUDA device")
    assert gpu.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: torch finds no CUDA device: expected an NVIDIA GPU" in captured.err


def test_the_gpu_benchmark_finds_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "cupy" else object())
    assert gpu.missing() == "cupy is not installed"


def test_a_machine_without_a_gpu_is_recognized() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("cupy")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu.missing() == "torch finds no CUDA device"


def test_the_gpu_benchmark_takes_no_fewer_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--rounds", "10"])
    assert "expected at least 11" in capsys.readouterr().err


def test_the_gpu_benchmark_compares_results() -> None:
    def task(**arrays: float) -> Any:
        return Task(lambda: arrays, lambda found: {name: np.full(4, value) for name, value in found.items()})

    assert gpu.disagreement({"a": task(y=1.0, dx=2.0), "b": task(y=1.0, dx=2.0)}) == 0
    assert gpu.disagreement({"a": task(y=1.0, dx=2.0), "b": task(y=1.0, dx=2.5)}) == 0.25
    assert np.isnan(gpu.disagreement({"a": task(y=1.0), "b": task(y=float("nan"))}))


def test_medians_leave_out_the_first_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    durations = {"a": iter([9, 9, 9, *range(1, 12)]), "b": iter([1, 1, 1, *[4] * 10, 100])}

    def call(name: str) -> None:
        nonlocal clock
        clock += next(durations[name])

    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock)
    found = gpu.medians({name: functools.partial(call, name) for name in durations}, 11)
    assert found == {"a": 6000, "b": 4000}


def test_a_row_of_the_gpu_benchmark() -> None:
    case = BenchCase("LSTM", (1, 50, 1, 10), "train")
    line = gpu.row(case, {"cuDNN": 2.0, "CuPy": 3.0, "torch arrays": 1.0}, gpu.launches(case))
    assert line == "| LSTM 1, 50, 1, 10 training step | 2.00 | 3.00 | 1.50 | 1.00 | 0.50 | 4 |"
