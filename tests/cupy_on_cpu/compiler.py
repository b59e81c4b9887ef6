"""From CUDA C++ source to a shared library of this machine: g++ with the headers in native/shim, cached on disk.

Everything that matters is in the name of a cached file: the compiler, its flags, the headers, the options, the source.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

NATIVE = Path(__file__).parent / "native"
SHIM = NATIVE / "shim"
COMPILER = "g++"
FLAGS = [
    "-O1",
    "-march=x86-64-v3",  # it has fused multiply-add, as a GPU does
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fpermissive",
    "-w",
    "-fPIC",
    "-fno-semantic-interposition",
    "-fno-threadsafe-statics",
    "-fno-asynchronous-unwind-tables",
]
LINK = ["-shared", "-nostdlib", "-Wl,-s,-Bsymbolic", "-Wl,-z,start-stop-visibility=hidden", "-lgcc"]
if shutil.which("ld.gold"):
    LINK = ["-fuse-ld=gold", *LINK]  # 10 ms less

# The threads of such a kernel wait for each other: each needs a stack of its own.
COOPERATES = re.compile(r"__syncthreads|__syncwarp|_sync\s*\(")
_QUALIFIERS = r"(?:(?:static|inline|__launch_bounds__\s*\([^()]*\))\s+|__launch_bounds__\s*\([^()]*\)\s*)*"
KERNEL = re.compile(
    rf'(?P<template>template\s*<[^;{{}}]*>\s*)?(?P<c>extern\s*"C"\s*)?{_QUALIFIERS}__global__\s+{_QUALIFIERS}'
    rf"void\s+{_QUALIFIERS}(?P<name>\w+)\s*\("
)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
EXTERN_C = re.compile(r'extern\s*"C"\s*(?=[^{\s"]*\s*__global__|__global__)')
DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?(?P<type>[\w:<>\s]+?)\s+(?P<name>\w+)\s*\[\s*\]"
)

compiled = 0  # how many sources met the compiler in this process


def cache() -> Path:
    """Where compiled kernels are kept: ``$CUPY_ON_CPU_CACHE``, or a folder of the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cupy_on_cpu_kernels")
    return Path(os.environ.get("CUPY_ON_CPU_CACHE") or default)


@functools.cache
def version() -> str:
    """The compiler, flags and headers as a hash; it stands in an image, and so in the keys of CuPy's own cache."""
    said = subprocess.run([COMPILER, "--version"], check=True, capture_output=True).stdout.splitlines()[0]
    headers = b"".join(path.read_bytes() for path in (NATIVE / "addresses.h", *sorted(SHIM.iterdir())))
    return hashlib.sha256(said + headers + repr((FLAGS, LINK)).encode()).hexdigest()[:16]


def image_of(source: str, options: list[str], names: list[str]) -> str:
    """The text that stands for a compiled module: CuPy keeps it in its cache and gives it to the driver."""
    head = [f"// cupy_on_cpu {version()}", *(f"//option {o}" for o in options), *(f"//name {n}" for n in names)]
    return "\n".join([*head, "//source", source])


def library_of(image: str) -> Path:
    """The shared library of an image.

    Raises
    ------
    RuntimeError
        With the compiler's messages.
    """
    path = cache() / f"{hashlib.sha256(image.encode()).hexdigest()}.so"
    if not path.exists():
        head, _, source = image.partition("//source\n")
        options = re.findall(r"^//option (.*)$", head, re.MULTILINE)
        names = re.findall(r"^//name (.*)$", head, re.MULTILINE)
        _compile(source, options, names, path)
    return path


def cpp_of(source: str, names: list[str]) -> str:
    """A CUDA C++ source as C++: with an entry for each kernel, and dynamic shared memory by its address.

    Kernels are static in the shim, so that they are inlined into the loop over threads: ``extern "C"`` goes.
    """
    bare = COMMENT.sub("", source)
    source = EXTERN_C.sub("", source)
    source = DYNAMIC_SHARED.sub(r"\g<type>* \g<name> = (\g<type>*)emu_dynamic_shared", source)
    kind = "EMU_COOPERATING" if COOPERATES.search(bare) else "EMU_INDEPENDENT"
    # A kernel is asked for by its plain name if it is extern "C", or where no name expressions are given.
    entries = {
        kernel["name"]: kernel["name"]
        for kernel in KERNEL.finditer(bare)
        if not kernel["template"] and (kernel["c"] or not names)
    }
    entries |= {f"name_{i}": name for i, name in enumerate(names)}
    exports = "".join(f"{kind}({name}, (&{expression}))\n" for name, expression in entries.items())
    return f"{source}\n{exports}"


def _compile(source: str, options: list[str], names: list[str], path: Path) -> None:
    global compiled
    compiled += 1
    language, definitions, includes = _options(options)
    if "#include" in source:
        language.append("-DEMU_WITH_CUPY")
    header = _precompiled(language, includes)
    part = path.with_suffix(_unique())
    command = [COMPILER, *language, *FLAGS, *definitions, *includes, "-include", header, "-x", "c++", "-", *LINK]
    done = subprocess.run([*command, "-o", part], input=cpp_of(source, names), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    part.replace(path)


def _options(options: list[str]) -> tuple[list[str], list[str], list[str]]:
    """What the precompiled header depends on; definitions; folders of headers."""
    standard, definitions, includes = 17, [], []  # the shim needs C++17
    for option in options:
        if found := re.match(r"--?std=c\+\+(\d\d)$", option):
            standard = max(standard, int(found[1]) if found[1] < "90" else 0)
        elif option.startswith("--define-macro="):
            definitions.append("-D" + option.partition("=")[2])
        elif option.startswith("--include-path="):
            includes.append("-I" + option.partition("=")[2])
        elif option[:2] in ("-D", "-U"):
            definitions.append(option)
        elif option.startswith("-I"):
            includes.append(option)
    return [f"-std=c++{standard}"], definitions, includes


def _precompiled(language: list[str], includes: list[str]) -> Path:
    """The shim, and CuPy's headers where a source includes anything, compiled once for each set of options."""
    key = hashlib.sha256(repr((version(), language, includes)).encode()).hexdigest()[:16]
    header = cache() / key / "cuda_cpp.h"  # not itself there: g++ takes the compiled one or fails
    done = header.with_suffix(".h.gch")
    if not done.exists():
        header.parent.mkdir(parents=True, exist_ok=True)
        part = header.with_suffix(_unique())
        command = [COMPILER, *language, *FLAGS, *includes, "-x", "c++-header", SHIM / "cuda_cpp.h", "-o", part]
        subprocess.run(command, check=True)
        part.replace(done)
    return header


def _unique() -> str:
    """A suffix that no other thread or process writes to."""
    return f".{os.getpid()}-{threading.get_ident()}"


# ---------------------------------------------------------------------- what nvrtc.c and driver.c call


class Program(ctypes.Structure):
    """The head of ``Program`` in nvrtc.c."""

    _fields_ = [(name, ctypes.c_char_p) for name in ("source", "options", "names", "image", "log")]


_texts: dict[int, tuple[bytes, bytes]] = {}  # what programs point to


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Program))
def _compile_program(pointer: Any) -> int:
    program, log = pointer.contents, ""
    source = program.source.decode()
    image = image_of(source, program.options.decode().splitlines(), program.names.decode().splitlines())
    try:
        if source.strip():  # CuPy compiles an empty one to learn the version
            library_of(image)
    except Exception as error:
        log = str(error)
    _texts[ctypes.addressof(program)] = program.image, program.log = image.encode(), log.encode()
    return int(bool(log))


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
def _library_path(image: bytes, room: int, size: int) -> int:
    try:
        path = os.fsencode(library_of(image.decode())) + b"\0"
    except Exception as error:
        print("cupy_on_cpu:", error, file=sys.stderr)
        return 1
    if len(path) > size:
        return 1
    ctypes.memmove(room, path, len(path))
    return 0


def install(driver: ctypes.CDLL, nvrtc: ctypes.CDLL, *, reverse: bool) -> None:
    """Have the two libraries call this module."""
    driver.emu_set_compile_hook(_library_path, int(reverse))
    nvrtc.emu_set_program_hook(_compile_program)
