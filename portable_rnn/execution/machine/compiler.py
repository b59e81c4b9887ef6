"""The compiler: which processor this is, and modules of LLVM as functions of it (extra ``[fast]``)."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["NUMBER_BYTES", "Library", "Machine", "forget", "has_llvm", "is_loaded", "machine"]

NUMBER_BYTES = {"float32": 4, "float64": 8}


def has_llvm() -> bool:
    """Whether llvmlite is installed and not turned off by ``PORTABLE_RNN_COMPILE=0``."""
    return sys.meta_path is not None and _is_installed()  # at the end of an interpreter nothing can be imported


def forget() -> None:
    """Look again whether there is a compiler."""
    _is_installed.cache_clear()


@functools.lru_cache(maxsize=1)
def _is_installed() -> bool:
    if os.environ.get("PORTABLE_RNN_COMPILE") == "0":
        return False
    return "llvmlite" in sys.modules or importlib.util.find_spec("llvmlite") is not None


def is_loaded() -> bool:
    """Whether it costs nothing to start with: it is imported, or was asked for by ``PORTABLE_RNN_COMPILE=1``."""
    return has_llvm() and ("llvmlite" in sys.modules or os.environ.get("PORTABLE_RNN_COMPILE") == "1")


@dataclass(frozen=True)
class Machine:
    """What of the processor decides how code is written.

    Attributes
    ----------
    vector_bytes : int
        Of the widest vector.
    tile_rows : int
        Rows of a tile of a matrix product, as many as the registers hold with three vectors each.
    has_control_word : bool
        Whether ``mxcsr`` says what becomes of numbers too small to be normal, as on x86.
    """

    vector_bytes: int
    tile_rows: int
    has_control_word: bool = False


@functools.lru_cache(maxsize=1)
def machine() -> Machine:
    """This processor."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    x86 = bool(features.get("sse2"))
    if features.get("avx512f"):
        return Machine(64, 8, x86)
    if features.get("avx"):
        return Machine(32, 4, x86)
    return Machine(16, 4 if x86 else 8, x86)


def _new_compiler() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )
    return llvm.create_lljit_compiler(target)


_compiler = functools.lru_cache(maxsize=1)(_new_compiler)
_numbers = itertools.count()  # of the libraries: a name is never used again


class Library:
    """The functions of a module as machine code, which is freed with the last reference to any of them.

    Attributes
    ----------
    source : str
    functions : dict of str to callable
        They take as many machine words as the function has arguments, and release the GIL.
    addresses : dict of str to int
        Where each starts.
    """

    def __init__(self, source: str, uses: Sequence[Library] = (), *, forever: bool = False) -> None:
        """Compile a module.

        Parameters
        ----------
        source : str
        uses : sequence of Library
            Whose functions it calls by name.
        forever : bool
            It is never freed: a thread may run it when this interpreter ends.
        """
        import llvmlite.binding as llvm

        compiler = _new_compiler() if forever else _compiler()
        # No optimisation of the module: it is written as it should be, and that would take longer than all the rest.
        defined = [function for function in llvm.parse_assembly(source).functions if not function.is_declaration]
        counts = {function.name: len(list(function.arguments)) for function in defined}
        builder = llvm.JITLibraryBuilder().add_ir(source).add_current_process()
        for name, address in ((name, address) for used in uses for name, address in used.addresses.items()):
            builder.import_symbol(name, address)
        for name in counts:
            builder.export_symbol(name)
        code = builder.link(compiler, f"portable_rnn_{next(_numbers)}")
        if forever:
            code.detach()
            compiler.detach()
        self.source = source
        self.addresses: dict[str, int] = {name: int(code[name]) for name in counts}
        self.functions: dict[str, Any] = {}
        for name, count in counts.items():
            function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * count)(self.addresses[name])
            function.keeps = (code, *uses)  # type: ignore[attr-defined]
            self.functions[name] = function
