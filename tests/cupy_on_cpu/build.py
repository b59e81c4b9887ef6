"""Build the libraries that stand in for a GPU's: ``python tests/cupy_on_cpu/build.py``.

Needs g++ 12 or newer on x86-64 Linux, the CuPy wheel in this environment, and a package index for CuPy's source
distribution and Cython. Nothing is downloaded or compiled where the folder is up to date.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

NATIVE = Path(__file__).parent / "native"
WHEELS = {"cupy-cuda13x": 13, "cupy-cuda12x": 12}
RUNTIME = "cupy_backends.cuda.api.runtime"
SHARED = ["-fPIC", "-shared", "-Wl,-s", f"-I{NATIVE}"]
REQUIREMENTS = ["cython>=3.1,<4", "setuptools>=77", "wheel", "fastrlock", "cuda-pathfinder", "numpy"]


def folder() -> Path:
    """Where the libraries are: ``$CUPY_ON_CPU``, or a folder of the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cupy_on_cpu")
    return Path(os.environ.get("CUPY_ON_CPU") or default)


def cuda_major() -> int:
    """The CUDA version that the installed wheel was built for."""
    return WHEELS[_wheel()]


def stamp() -> str:
    """What the libraries depend on, as a hash."""
    sources = [Path(__file__), Path(__file__).with_name("headers.py"), *sorted(NATIVE.glob("*.*"))]
    text = b"".join(path.read_bytes() for path in sources)
    version = f"{_wheel()} {importlib.metadata.version(_wheel())} {sys.version}"
    return hashlib.sha256(text + version.encode()).hexdigest()


def is_built() -> bool:
    """Whether `build` has nothing to do."""
    written = folder() / "stamp"
    return written.exists() and written.read_text() == stamp()


def build() -> None:
    """Make the libraries, unless they are up to date."""
    if is_built():
        return
    if shutil.which("g++") is None:
        raise SystemExit("g++: expected version 12 or newer, got none: install it (`apt-get install g++`)")
    out = folder()
    (out / "cuda/include").mkdir(parents=True, exist_ok=True)
    (out / "cuda/include/cuda_runtime.h").touch()  # CuPy looks for CUDA's headers; none is used
    with tempfile.TemporaryDirectory() as work:
        python = _environment(Path(work, "environment"))
        source = _source_distribution(python, Path(work))
        _build_runtime(python, source, Path(work), out)
    _build_driver(out)
    _build_nvrtc(out)
    _build_cublas(out)
    (out / "stamp").write_text(stamp())


def _wheel() -> str:
    for name in WHEELS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    raise SystemExit(f"CuPy: expected one of {', '.join(WHEELS)}, got none: `pip install cupy-cuda13x`")


def _environment(path: Path) -> Path:
    _run(sys.executable, "-m", "venv", path)
    python = path / "bin/python"
    _run(python, "-m", "pip", "install", *REQUIREMENTS)
    return python


def _source_distribution(python: Path, work: Path) -> Path:
    """CuPy's source of the version that is installed."""
    version = importlib.metadata.version(_wheel())
    options = ["--no-deps", "--no-binary", "cupy", "--no-build-isolation", "--dest", work]
    # pip asks the source for its metadata: without CUPY_INSTALL_USE_STUB it would look for CUDA
    _run(python, "-m", "pip", "download", *options, f"cupy=={version}", CUPY_INSTALL_USE_STUB="1")
    with tarfile.open(work / f"cupy-{version}.tar.gz") as archive:
        archive.extractall(work, filter="data")
    return work / f"cupy-{version}"


def _build_runtime(python: Path, source: Path, work: Path, out: Path) -> None:
    """CuPy's module of the CUDA runtime, on runtime.cpp in place of CUDA's."""
    here = Path(__file__).parent
    major = cuda_major()
    _run(python, here / "headers.py", source, work / "include", major)
    _run(python, here / "cythonize_runtime.py", source, major)
    includes = [f"-I{work / 'include'}", f"-I{sysconfig.get_paths()['include']}"]
    module = source / "cupy_backends/cuda/api/runtime.cpp"
    options = ["-O1", "-w", "-fpermissive", "-fvisibility=hidden", "-include", str(NATIVE / "runtime.cpp")]
    _compile(out / "runtime.so", [module], [*options, *includes])


def _build_driver(out: Path) -> None:
    sources = [NATIVE / "driver.c", NATIVE / "coroutines.c"]
    _compile(out / "libcuda.so.1", sources, ["-O2", "-Wall", "-Wl,-soname,libcuda.so.1"], "gcc")


def _build_nvrtc(out: Path) -> None:
    major = cuda_major()
    name = f"libnvrtc.so.{major}"
    _compile(out / name, [NATIVE / "nvrtc.c"], ["-O2", "-Wall", f"-DCUDA_MAJOR={major}", f"-Wl,-soname,{name}"], "gcc")


def _build_cublas(out: Path) -> None:
    """Ours, and for each other symbol that CuPy's module is linked to a function that refuses."""
    major = cuda_major()
    name = f"libcublas.so.{major}"
    module = next(Path(_package("cupy_backends"), "cuda/libs").glob("cublas.*.so"))
    symbols = sorted(set(re.findall(r"\bcublas\w+", _run("nm", "-D", "--undefined-only", module))))
    refusing = out / "cublas_refusing.c"
    refusing.write_text("".join(f"__attribute__((weak)) int {symbol}(void) {{ return 15; }}\n" for symbol in symbols))
    compiled = refusing.with_suffix(".o")  # as C: the same names
    _run("gcc", "-c", "-fPIC", refusing, "-o", compiled)
    options = ["-O3", "-march=x86-64-v3", "-std=c++17", f"-DCUDA_MAJOR={major}", f"-Wl,-soname,{name}"]
    _compile(out / name, [NATIVE / "cublas.cpp", compiled], options)
    (out / "empty.c").touch()  # cuBLAS is loaded after this one, of which nothing is called
    name = f"libcublasLt.so.{major}"
    _compile(out / name, [out / "empty.c"], [f"-Wl,-soname,{name}"], "gcc")


def _compile(library: Path, sources: list[Path], options: list[str], compiler: str = "g++") -> None:
    _run(compiler, *SHARED, *options, *sources, "-o", library, "-ldl", "-lpthread")


def _run(*command: str | int | Path, **environment: str) -> str:
    """What a command prints; all of it goes to the terminal where it fails."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def _package(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next(iter(spec.submodule_search_locations))


if __name__ == "__main__":
    build()
    print(folder())
