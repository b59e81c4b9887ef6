"""Which library, device and dtype; moving data; and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from typing import Any

import array_api_compat
import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.arrays import NAMES, device_scope

DEVICE_NAMES = {"numpy": "cpu", "jax": "cpu", "torch": "cpu", "array_api_strict": "CPU_DEVICE", "cupy": "cuda:0"}


def in_a_new_process(code: str, **environment: str) -> str:
    """Run a script by itself; what it prints."""
    removed = ("JAX_ENABLE_X64", "PORTABLE_RNN_BACKEND")
    clean = {name: value for name, value in os.environ.items() if name not in removed}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------------- choosing


def test_backend_takes_a_module_an_array_or_a_backend(backend: Any) -> None:
    target = backend.target
    assert target.name == backend.entry.library
    x = backend.array(np.ones(2, dtype="float64"))
    for library in (x, target):
        assert prnn.backend(library) == target
        assert prnn.backend(library, dtype="float32").dtype_name == "float32"
    assert prnn.backend(target.xp, device=target.device, dtype="float64") == target
    assert prnn.backend(backend.array(np.ones(2, dtype="float32"))).dtype_name == "float32"
    assert prnn.backend(backend.array(np.ones(2, dtype="int64"))).dtype_name == "float32"
    assert str(target) == f"{target.name} float64 on {target.device}"


def test_backend_takes_the_users_own_module(backend: Any) -> None:
    library = backend.entry.library
    module = sys.modules["jax.numpy" if library == "jax" else library]
    assert prnn.backend(module).xp is backend.target.xp
    assert prnn.backend(sys.modules[library]).xp is backend.target.xp


def test_backend_takes_a_name(backend: Any) -> None:
    name = backend.entry.library
    if name not in NAMES:
        pytest.skip(f"{name} is not one of the registered names")
    assert prnn.backend(name) == prnn.backend(backend.target.xp)
    assert prnn.backend(name).dtype_name == "float32"


def test_device_by_name(backend: Any) -> None:
    if backend.entry.library not in DEVICE_NAMES or backend.entry.device:
        pytest.skip("its device has no portable name")
    name = DEVICE_NAMES[backend.entry.library]
    assert prnn.backend(backend.target, device=name).device == backend.target.device


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_as_the_librarys_own_object(backend: Any, dtype: str) -> None:
    own = getattr(backend.target.xp, dtype)
    assert prnn.backend(backend.target, dtype=own).dtype_name == dtype
    layer = prnn.Linear(2, 2)
    weight = layer.init(seed=0, backend=prnn.backend(backend.target, dtype=own))["weight"]
    assert weight.dtype == prnn.backend(backend.target, dtype=dtype).dtype


def test_none_is_the_environment_variable_or_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prnn.backend().name == "numpy"
    monkeypatch.setenv("PORTABLE_RNN_BACKEND", "")
    assert prnn.backend().name == "numpy"
    monkeypatch.setenv("PORTABLE_RNN_BACKEND", "nmupy")
    with pytest.raises(prnn.BackendError, match="unknown backend 'nmupy'"):
        prnn.backend()
    pytest.importorskip("torch")
    monkeypatch.setenv("PORTABLE_RNN_BACKEND", "torch")
    assert prnn.backend().name == "torch"
    assert prnn.backend("numpy").name == "numpy"


def test_an_unregistered_library_runs_by_its_module() -> None:
    strict = pytest.importorskip("array_api_strict")
    target = prnn.backend(strict, device="device1")
    assert (target.name, target.xp) == ("array_api_strict", strict)
    assert target.device == strict.Device("device1")
    layer = prnn.GRU(2, 3)
    y, _ = layer.apply(layer.init(seed=0, backend=target), prnn.asarray(np.ones((1, 2, 2)), target))
    assert y.device == target.device


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (
            "nmupy",
            r"unknown backend 'nmupy': expected one of numpy, jax, cupy, torch, dpnp, or pass",
        ),
        ("Torch", r"unknown backend 'Torch'"),
        (types, r"module 'types' does not follow the array API standard"),
        (3, r"a name \(numpy, .*\), a module, an array or a Backend, got int"),
        ([1.0], r"got list"),
    ],
)
def test_what_is_no_library_is_refused(library: Any, message: str) -> None:
    with pytest.raises(prnn.BackendError, match=message) as caught:
        prnn.backend(library)
    assert "\n" not in str(caught.value)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpnp", None)
    message = r"'dpnp' is not installed: run `pip install 'portable-rnn\[dpnp\]'`"
    with pytest.raises(prnn.BackendError, match=message):
        prnn.backend("dpnp")
    (info,) = (info for info in prnn.backends() if info.name == "dpnp")
    assert (info.version, info.available, info.devices) == (None, False, ())
    assert info.reason == "not installed: pip install 'portable-rnn[dpnp]'"


def test_a_library_that_is_installed_but_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", None)
    with pytest.raises(prnn.BackendError, match=r"'cupy' is installed but can't be imported: "):
        prnn.backend("cupy")


@pytest.mark.parametrize("dtype", ["float16", "int32", "double", "", 3, complex])
def test_other_dtypes_are_refused(backend: Any, dtype: Any) -> None:
    with pytest.raises(prnn.BackendError, match="dtype must be 'float32' or 'float64', got"):
        prnn.backend(backend.target, dtype=dtype)


def test_an_unknown_device_is_refused(backend: Any) -> None:
    with pytest.raises(prnn.BackendError, match="can't use device 'moon:7': ") as caught:
        prnn.backend(backend.target, device="moon:7")
    assert "\n" not in str(caught.value)


def test_a_library_without_the_dtype_is_refused() -> None:
    strict = pytest.importorskip("array_api_strict")
    device = "no_float64"
    assert prnn.backend(strict, device=device, dtype="float32").dtype_name == "float32"
    with pytest.raises(prnn.BackendError, match="float64"):
        prnn.backend(strict, device=device, dtype="float64")


def test_jax_does_not_narrow_float64_in_silence() -> None:
    pytest.importorskip("jax")
    printed = in_a_new_process(
        """
import numpy as np, portable_rnn as prnn
try:
    prnn.backend("jax", dtype="float64")
except prnn.BackendError as error:
    print(error)
x = prnn.asarray(np.ones(3), prnn.backend("jax"))
i = prnn.asarray(np.arange(3), prnn.backend("jax"))
print(x.dtype, i.dtype)
"""
    )
    refused, dtypes = printed.splitlines()
    assert 'jax.config.update("jax_enable_x64", True)' in refused
    assert dtypes == "float32 int32"


# ---------------------------------------------------------------------- what is here


def test_backends_lists_every_library_once(backend: Any) -> None:
    found = prnn.backends()
    assert tuple(info.name for info in found) == ("numpy", "jax", "cupy", "torch", "dpnp")
    for info in found:
        assert bool(info.reason) != info.available
        assert bool(info.devices) == info.available
        assert "\n" not in info.reason
    if backend.entry.library in NAMES:
        (info,) = (info for info in found if info.name == backend.entry.library)
        assert info.available
        assert info.version == sys.modules[info.name].__version__


def test_backends_says_why_cupy_is_not_usable() -> None:
    cupy = pytest.importorskip("cupy")
    (info,) = (info for info in prnn.backends() if info.name == "cupy")
    if info.available:
        pytest.skip("there is a CUDA device")
    assert info.version == cupy.__version__
    assert "cuda" in info.reason.lower()


# ---------------------------------------------------------------------- moving data

ARRAYS = {
    "float64": np.arange(6.0).reshape(2, 3),
    "float32": np.arange(6, dtype="float32"),
    "integers": np.arange(-3, 3),
    "int32": np.arange(6, dtype="int32"),
    "uint8": np.arange(6, dtype="uint8"),
    "booleans": np.array([True, False]),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3)),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "backwards": np.arange(6.0)[::-1],
    "strided": np.arange(6)[::2],
    "broadcast": np.broadcast_to(np.arange(3.0), (2, 3)),
    "another byte order": np.arange(6, dtype=">i4"),
    "floats in another byte order": np.arange(6, dtype=">f8"),
    "half": np.arange(6, dtype="float16"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_there_and_back(backend: Any, name: str) -> None:
    host = ARRAYS[name]
    moved = prnn.asarray(host, backend.target)
    assert array_api_compat.array_namespace(moved) is backend.target.xp
    assert array_api_compat.device(moved) == backend.target.device
    back = prnn.to_numpy(moved)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, host)
    wanted = "float64" if host.dtype.kind == "f" else host.dtype.newbyteorder("=")
    assert back.dtype == wanted


def test_from_any_library_to_any_other(backend: Any) -> None:
    x = backend.array(np.arange(4.0))
    for library in ("numpy", "torch", "jax"):
        try:
            other = prnn.backend(library)
        except prnn.BackendError:
            continue
        moved = prnn.asarray(x, other)
        assert prnn.backend(moved) == other  # its float32
        again = prnn.asarray(moved, x)  # an array as the target: its library, device and dtype
        assert prnn.backend(again) == backend.target
        np.testing.assert_array_equal(prnn.to_numpy(again), np.arange(4.0))


def test_dtype_turns_integers_into_floats(backend: Any) -> None:
    for dtype in ("float32", "float64"):
        assert prnn.to_numpy(prnn.asarray([1, 2], backend.target, dtype=dtype)).dtype == dtype
    assert prnn.to_numpy(prnn.asarray([1.5], backend.target)).dtype == "float64"


def test_to_numpy_detaches_a_torch_tensor() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(prnn.to_numpy(torch.ones(2, requires_grad=True)), [1.0, 1.0])


def test_no_moved_array_is_written_through(backend: Any) -> None:
    host = np.ones(3)
    host.flags.writeable = False
    moved = prnn.asarray(host, backend.target)
    with device_scope(moved):
        np.testing.assert_array_equal(prnn.to_numpy(moved * 2), [2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[[1.0]], [[1.0], [1.0, 2.0]]], "rows of different lengths: pass a list of .* arrays, or pad"),
        (["a"], "expected numbers, got an array of dtype <U1"),
        (np.array([None]), "expected numbers, got an array of dtype object"),
        (np.array(["2026-01-01"], dtype="datetime64[D]"), "expected numbers, got .* datetime64"),
        (np.ones(2, dtype=complex), "expected numbers, got an array of dtype complex128"),
    ],
)
def test_what_is_no_number_is_refused(value: Any, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.asarray(value, "numpy")


# ---------------------------------------------------------------------- two sides that do not fit

LAYER = prnn.GRU(2, 3)


def refused(params: Any, x: Any, **others: Any) -> str:
    with pytest.raises(prnn.BackendError) as caught:
        LAYER.apply(params, x, **others)
    message = str(caught.value)
    assert "\n" not in message
    return message


def fix_of(message: str) -> str:
    """The call that the message gives, as Python."""
    return message[message.index("portable_rnn.asarray(") :].replace("portable_rnn", "prnn")


def test_arrays_of_another_library(backend: Any) -> None:
    host = np.ones((1, 2, 2))
    params = LAYER.init(seed=0, backend=backend.target)
    other = "torch" if backend.entry.library == "numpy" else "numpy"
    if other == "torch":
        pytest.importorskip("torch")
    x = prnn.asarray(host, prnn.backend(other, dtype="float64"))
    message = refused(params, x)
    assert message.startswith(f"x is {other} float64 on cpu, but the parameters are {backend.target}")
    fixed = eval(fix_of(message), {"prnn": prnn, "x": x, "params": params})
    LAYER.apply(params, fixed)
    message = refused(params, fixed, state=prnn.asarray(np.ones((1, 1, 3)), x))
    assert message.startswith(f"state[0] is {other} float64")


def test_arrays_of_another_dtype(backend: Any) -> None:
    params = LAYER.init(seed=0, backend=backend.target)
    x = backend.array(np.ones((1, 2, 2), dtype="float32"))
    message = refused(params, x)
    name = backend.target.name
    assert message.startswith(f"x is {name} float32 on {backend.target.device}, but ")
    assert f"are {name} float64 on" in message
    LAYER.apply(params, eval(fix_of(message), {"prnn": prnn, "x": x, "params": params}))


def test_arrays_on_another_device() -> None:
    strict = pytest.importorskip("array_api_strict")
    here, there = (prnn.backend(strict, device=d) for d in ("CPU_DEVICE", "device1"))
    x = prnn.asarray(np.ones((1, 2, 2)), here)
    params = LAYER.init(seed=0, backend=there)
    message = refused(params, x)
    assert message.startswith(f"x is {here}, but the parameters are {there}")
    fixed = eval(fix_of(message), {"prnn": prnn, "x": x, "params": params})
    lengths = prnn.asarray(np.array([2]), here)
    assert refused(params, fixed, lengths=lengths).startswith("lengths is array_api_strict int64 on")
    resets = prnn.asarray(np.zeros((1, 2), dtype="bool"), here)
    assert refused(params, fixed, resets=resets).startswith("resets is array_api_strict bool on")
    LAYER.apply(params, fixed, lengths=[2], resets=[[True, False]])


def test_marks_of_another_library(backend: Any) -> None:
    torch = pytest.importorskip("torch")
    if backend.entry.library == "torch":
        pytest.skip("it is the other library")
    params = LAYER.init(seed=0, backend=backend.target)
    x = backend.array(np.ones((1, 2, 2)))
    message = refused(params, x, lengths=torch.asarray([2]))
    assert message.startswith(f"lengths is torch int64 on cpu, but x is {backend.target}")
    message = refused(params, x, resets=torch.zeros((1, 2), dtype=torch.bool))
    assert message.startswith(f"resets is torch bool on cpu, but x is {backend.target}")


def test_cotangents_of_another_library(backend: Any) -> None:
    torch = pytest.importorskip("torch")
    if backend.entry.library == "torch":
        pytest.skip("it is the other library")
    params = LAYER.init(seed=0, backend=backend.target)
    _, _, pullback = LAYER.vjp(params, backend.array(np.ones((1, 2, 2))))
    with pytest.raises(prnn.BackendError, match="dy is torch float64 on cpu, but the outputs are "):
        pullback(torch.ones((1, 2, 3), dtype=torch.float64))


# ---------------------------------------------------------------------- what an import costs


def test_import_brings_no_library_but_numpy() -> None:
    loaded = in_a_new_process(
        "import sys, portable_rnn; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    ).split()
    heavy = "jax jaxlib torch cupy dpnp array_api_strict matplotlib sklearn tqdm pandas scipy onnx"
    assert not set(loaded) & set(heavy.split())
    assert {"numpy", "array_api_compat", "portable_rnn"} <= set(loaded)


def test_numpy_brings_no_other_library_when_it_is_used() -> None:
    loaded = in_a_new_process(
        """
import sys, numpy as np, portable_rnn as prnn
layer = prnn.Sequential(prnn.LSTM(2, 3, bidirectional=True), prnn.Last(), prnn.Linear(6, 1))
x = np.ones((2, 4, 2), dtype="float32")
y, state, pullback = layer.vjp(layer.init(seed=0), x, lengths=[4, 2])
pullback(y)
print(*sorted({m.partition('.')[0] for m in sys.modules}))
"""
    ).split()
    assert not set(loaded) & {"jax", "torch", "cupy", "dpnp", "matplotlib", "sklearn", "tqdm"}
