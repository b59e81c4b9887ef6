"""The `backend` fixture: every behavioural test is written once and runs on every array library.

``pytest --backend NAME`` (repeatable) picks from the names in `ENTRIES`; without it all of them run. What this machine
can't run is skipped with its reason. A test that takes the fixture has the marker ``matrix``: ``-m matrix`` leaves out
what depends on no array library, ``-m "not slow"`` what takes more than 5 seconds.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import array_api_compat
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from trees import mapped

# Compiled loops have tests of their own (test_compiled.py): the others run the plans that every installation has.
os.environ.setdefault("PORTABLE_RNN_COMPILE", "0")

import portable_rnn as prnn

# Both must be set before the library's first use. JAX: float64. dpnp: Intel's OpenCL CPU device from its wheel.
os.environ.setdefault("JAX_ENABLE_X64", "1")
_OPENCL_CPU = Path(sys.prefix, "lib", "libintelocl.so")
if _OPENCL_CPU.exists():
    os.environ.setdefault("OCL_ICD_FILENAMES", str(_OPENCL_CPU))

# The tests of the tool that runs CuPy on a CPU need it: it is loaded before everything, by `-p cupy_on_cpu`.
collect_ignore = [] if "cupy_on_cpu" in sys.modules else ["cupy_on_cpu"]

hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("deterministic")


@dataclass(frozen=True)
class Entry:
    """One column of the matrix."""

    library: str
    device: str | None = None
    jitted: bool = False  # the public call is traced under jax.jit
    read_only: bool = False  # every input array refuses writes
    strict: bool = False  # JAX's settings against implicit promotion and NaN
    examples: int = 60  # of hypothesis: few where an operation or a compilation is slow
    needs_device: bool = False  # runs where it is asked for: on a GPU, or on a CPU with tests/cupy_on_cpu


ENTRIES = {
    "numpy": Entry("numpy", examples=200),
    "numpy-readonly": Entry("numpy", read_only=True),
    "jax": Entry("jax", strict=True, examples=10),
    "jax-jit": Entry("jax", jitted=True, examples=5),
    "torch": Entry("torch"),
    "array_api_strict": Entry("array_api_strict"),
    "array_api_strict-device1": Entry("array_api_strict", device="device1", examples=30),
    "dpnp": Entry("dpnp", examples=15),
    "cupy": Entry("cupy", examples=30, needs_device=True),
    "cupy-device1": Entry("cupy", device="cuda:1", examples=10, needs_device=True),  # never the current device
}


@dataclass(frozen=True)
class BackendUnderTest:
    """Runs layers on one array library, from NumPy arrays to NumPy arrays.

    Attributes
    ----------
    name : str
        A key of `ENTRIES`.
    target : portable_rnn.Backend
        The library and device, in float64.
    entry : Entry
    """

    name: str
    target: prnn.Backend
    entry: Entry

    @property
    def device(self) -> Any:
        """Where its arrays are: a test that calls what is inside the library's entry points is `on_their_device`."""
        return self.target.device

    def array(self, tree: Any) -> Any:
        """A nest of NumPy arrays as arrays of this library; dtypes stay as they are."""
        return mapped(self._one_array, tree)

    def numpy(self, tree: Any) -> Any:
        """The way back, which also checks that every array is where and what it should be."""
        return mapped(self._one_numpy, tree)

    def apply(self, layer: prnn.Layer, **inputs: Any) -> tuple[Any, Any]:
        """``layer.apply(**inputs)``: (y, final state)."""
        run = _jitted_apply(layer) if self.entry.jitted else layer.apply
        return self.numpy(run(**self.arrays(inputs)))

    def vjp(
        self, layer: prnn.Layer, *, dy: Any = None, dstate: Any = None, **inputs: Any
    ) -> tuple[Any, Any, Any, Any, Any]:
        """``layer.vjp(**inputs)`` and its pullback: (y, final state, dparams, dx, dstate)."""
        run = _jitted_vjp(layer) if self.entry.jitted else functools.partial(_vjp, layer)
        return self.numpy(run(self.arrays(inputs), *self.array((dy, dstate))))

    def for_all(self, strategy: st.SearchStrategy[Any]) -> Callable[[Callable[[Any], None]], None]:
        """Decorate a check: it runs at once, on as many examples as this library has the speed for."""

        def run(check: Callable[[Any], None]) -> None:
            test = hypothesis.given(strategy)(check)
            hypothesis.settings(max_examples=self.entry.examples)(test)()

        return run

    def _one_array(self, x: np.ndarray[Any, Any]) -> Any:
        x = np.asarray(x)
        if self.entry.read_only:
            x = x.copy()
            x.flags.writeable = False
            return x
        dtype = x.dtype.name if x.dtype.kind == "f" else None
        return prnn.asarray(x, self.target, dtype=dtype)

    def _one_numpy(self, x: Any) -> np.ndarray[Any, Any]:
        assert array_api_compat.array_namespace(x) is self.target.xp
        assert array_api_compat.device(x) == self.target.device
        return prnn.to_numpy(x)

    def arrays(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `apply` as arrays of this library."""
        arrays = {name: self.array(v) for name, v in inputs.items() if name != "lengths"}
        lengths = inputs.get("lengths")
        if self.entry.jitted and lengths is not None:
            lengths = self.array(np.asarray(lengths))  # traced; elsewhere a list, as most users have it
        return {**arrays, "lengths": lengths}


def _vjp(layer: prnn.Layer, inputs: dict[str, Any], dy: Any, dstate: Any) -> Any:
    y, final, pullback = layer.vjp(**inputs)
    return (y, final, *pullback(dy, dstate))


@functools.cache
def _jitted_apply(layer: prnn.Layer) -> Any:
    import jax

    return jax.jit(layer.apply)


@functools.cache
def _jitted_vjp(layer: prnn.Layer) -> Any:
    import jax

    return jax.jit(functools.partial(_vjp, layer))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "feeds_nan: NaN is given to the library on purpose")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        choices=list(ENTRIES),
        help="run the matrix on this backend only (repeatable; default: all that need no GPU)",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    if "backend" in getattr(item, "fixturenames", ()):
        item.add_marker("matrix")


def pytest_collection_finish() -> None:
    """The garbage collector passes over what is imported by now: a test that calls it would take a second."""
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("--backend")
        names = names or [name for name, entry in ENTRIES.items() if not entry.needs_device]
        metafunc.parametrize("backend", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> BackendUnderTest:
    """One array library; see `BackendUnderTest`."""
    name: str = request.param
    entry = ENTRIES[name]
    library: Any = entry.library
    if library not in sys.modules and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if library == "array_api_strict":
        library = pytest.importorskip("array_api_strict")
    try:
        target = prnn.backend(library, device=entry.device, dtype="float64")
    except prnn.BackendError as error:
        pytest.skip(str(error))
    return BackendUnderTest(name, target, entry)


@pytest.fixture(scope="session")
def numpy_backend() -> BackendUnderTest:
    """NumPy, for what doesn't depend on the library."""
    return BackendUnderTest("numpy", prnn.backend("numpy", dtype="float64"), ENTRIES["numpy"])


@pytest.fixture(scope="session")
def jax_backend() -> BackendUnderTest:
    """JAX, for what is about it alone."""
    pytest.importorskip("jax")
    return BackendUnderTest("jax", prnn.backend("jax", dtype="float64"), ENTRIES["jax"])


@pytest.fixture(scope="session", autouse=True)
def _strict_without_dynamic_shapes() -> None:
    """The library must need neither boolean-mask indexing nor shapes that depend on values."""
    if importlib.util.find_spec("array_api_strict") is not None:
        import array_api_strict

        array_api_strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Let go of what JAX compiled after each file: thousands of programs use up the maps a process may have."""
    if "jax" in sys.modules and (nextitem is None or nextitem.path != item.path):
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def _strict_settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of JAX: no rank or dtype is promoted unasked, and no operation makes a NaN where a test does not feed one."""
    name = request.node.callspec.params.get("backend") if hasattr(request.node, "callspec") else None
    if name is None or not ENTRIES[name].strict or "jax" not in sys.modules:
        yield
        return
    import jax

    nan_is_fed = request.node.get_closest_marker("feeds_nan") is not None
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(not nan_is_fed):
        yield


@pytest.fixture(autouse=True)
def _no_backend_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """``backend()`` must not depend on the environment the tests are started from."""
    monkeypatch.delenv("PORTABLE_RNN_BACKEND", raising=False)
