"""CuPy's released wheel on a CPU: imported before CuPy, or by ``pytest -p cupy_on_cpu``. README.md says how it works.

Environment variables, all optional:

=======================  ============================================================================
CUPY_ON_CPU              the folder that build.py fills
CUPY_ON_CPU_CACHE        the folder of compiled kernels
CUPY_ON_CPU_DEVICES      how many devices there are, 2 by default, 4 at most
CUPY_ON_CPU_PEER=1       a device reads another's memory; by default it does not
CUPY_ON_CPU_REVERSE=1    blocks and threads run in the opposite order
CUPY_ON_CPU_GUARD=1      each array is an allocation of its own: what lies behind it, or was freed, faults
=======================  ============================================================================
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from typing import Any

from . import build, compiler
from .counters import Counters

__all__ = ["counters"]


def _flag(name: str) -> bool:
    return os.environ.get(f"CUPY_ON_CPU_{name}", "") not in ("", "0")


class _OurModules(importlib.abc.MetaPathFinder):
    """Two of CuPy's modules come from here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == build.RUNTIME:
            file = str(build.folder() / "runtime.so")
            return importlib.util.spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))
        if name == "cupy.cuda.thrust":
            return importlib.util.spec_from_file_location(name, Path(__file__).with_name("sorting.py"))
        return None


def _start() -> Counters:
    if "cupy_backends" in sys.modules:
        raise RuntimeError("cupy_on_cpu: expected an import before CuPy's, got one after it: import it first")
    if not build.is_built():
        raise RuntimeError(f"cupy_on_cpu: expected libraries in {build.folder()}, got none: run {build.__file__}")
    if not faulthandler.is_enabled():
        faulthandler.enable()  # a fault shows the line of Python that caused it
    folder, major = build.folder(), build.cuda_major()
    os.environ["CUDA_PATH"] = str(folder / "cuda")
    os.environ["CUPY_COMPILE_WITH_PTX"] = "1"  # the driver gets NVRTC's text
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB's kernels are compiled for GPUs alone
    os.environ.setdefault("CUPY_CACHE_DIR", str(compiler.cache() / "cupy"))
    sys.meta_path.insert(0, _OurModules())

    # Loaded first and for all: who asks for a library of these names later gets these.
    cuda = ("libcuda.so.1", f"libcublasLt.so.{major}", f"libcublas.so.{major}", f"libnvrtc.so.{major}", "runtime.so")
    driver, _, blas, nvrtc, runtime = (ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in cuda)
    ctypes.c_int.in_dll(runtime, "emu_devices").value = int(os.environ.get("CUPY_ON_CPU_DEVICES") or 2)
    ctypes.c_int.in_dll(runtime, "emu_peer_access").value = int(_flag("PEER"))
    compiler.install(driver, nvrtc, reverse=_flag("REVERSE"))
    if _flag("GUARD"):
        import cupy

        cupy.cuda.set_allocator(None)
    return Counters(driver, blas, runtime)


counters = _start()


# ---------------------------------------------------------------------- pytest


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what runs on no backend: it is tested without this plugin, and may need NVRTC itself."""
    here = Path(__file__).parent
    ours = [item for item in items if "backend" in getattr(item, "fixturenames", ()) or here in item.path.parents]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what ran."""
    launches = counters.launches()
    terminalreporter.write_line(
        f"cupy_on_cpu: {sum(launches.values())} launches of {len(launches)} kernels, {compiler.compiled} compiled now"
    )
