"""Compiled loops as custom calls of XLA, where JAX computes on the processor (extra ``[fast]``).

XLA's own loop reads and writes the gates of every step, and its products lay the weights out anew at each. Here a loop
stands in XLA's program as one call: its arrays are passed as they are, and `machine_loops` runs it. Derivatives, vmap
and other devices take JAX's ``lax.scan`` of the same step.

Source: XLA's foreign function interface, ``xla/ffi/api/c_api.h`` of jaxlib, version 0.1.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np

from ..graph.arguments import Arguments
from ..graph.pytrees import rebuilt
from .compiler import has_llvm
from .program import CompiledProgram, Memory, programs

__all__ = ["machine_scan", "worth_a_call"]

_WORTH_A_CALL = 1 << 23  # multiplications of a loop, of which XLA's own takes longer than it takes to get there

Plain = Callable[[Any, Any, Any], Any]


def worth_a_call(multiplications: Any) -> bool:
    """Whether JAX's loops of this size run as machine code in this process."""
    # where a size is not known yet, it is no number
    return isinstance(multiplications, int) and multiplications >= _WORTH_A_CALL and has_llvm() and _can_call()


@functools.cache
def _can_call() -> bool:
    import jax

    # several devices share arrays, which a call would take as a whole
    if not hasattr(jax, "ffi") or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    try:
        _register("portable_rnn", lambda arguments, results: None)
    except Exception:  # of a later version of the interface, which this is not written for
        return False
    return True


def machine_scan(
    step: Any, carry: Any, xs: Any, shared: Any, plain: Plain, *, reverse: bool, summing: bool
) -> tuple[Any, Any, Any] | None:
    """The carry, the outputs and the sums of a step's loop by machine code, or None where there can be none.

    Parameters
    ----------
    step, carry, xs, shared, reverse, summing
        As of `execution.scan_in_one`.
    plain : callable
        ``plain(carry, xs, shared)`` gives the same by JAX.
    """
    import jax

    given = Arguments(step, carry, xs, shared)
    first, over_time, same = given.leaves
    columns = over_time[0].shape[0] * first[0].shape[-1]
    if given.hindrance is not None or not worth_a_call(columns * sum(math.prod(leaf.shape) for leaf in same)):
        return None
    program = programs(numpy_namespace, "numpy", step, summing).program(given)
    if not isinstance(program, CompiledProgram) or not worth_a_call(program.multiplications * over_time[0].shape[0]):
        return None
    call = functools.partial(_call, program, given.structures[0], reverse)

    def plain_of_leaves(*groups: Any) -> Any:
        return plain(*(rebuilt(*pair) for pair in zip(given.structures, groups, strict=True)))

    # as leaves: JAX gives the dicts of a nest another order
    def compute(*groups: Any) -> Any:
        return jax.lax.platform_dependent(*groups, cpu=call, default=plain_of_leaves)

    def compute_many(size: int, batched: Any, *groups: Any) -> Any:
        axes = jax.tree.map(lambda along: 0 if along else None, tuple(batched))
        found = jax.vmap(plain_of_leaves, in_axes=axes, axis_size=size)(*groups)
        return found, jax.tree.map(lambda _: True, found)

    batchable = jax.custom_batching.custom_vmap(compute)
    batchable.def_vmap(compute_many)
    differentiable = jax.custom_jvp(batchable)
    differentiable.defjvp(functools.partial(jax.jvp, plain_of_leaves))
    found: tuple[Any, Any, Any] = differentiable(*given.leaves)
    return found


def _call(program: CompiledProgram, structure: Any, reverse: bool, carry: Any, xs: Any, shared: Any) -> Any:
    """The loop, as a part of a program of XLA: the nests of `machine_scan`, of the leaves of its arguments."""
    import jax

    forms = [*program.stack_forms(xs[0].shape[0]), *program.end_forms().values()]
    results = [jax.ShapeDtypeStruct(*form) for form in (*forms, ((program.sum_ends[-1],), program.dtype))]
    *stacks, sums = jax.ffi.ffi_call(_target(program, reverse), results)(*carry, *xs, *shared)
    ends = {k: stacks.pop() for k in reversed(program.end_forms())}
    memory = Memory(stacks, sums)
    final, outputs, found = program.results(jax.numpy, carry, xs, memory, ends, reverse=reverse)
    # a part of a stack is an array of its own: XLA takes several times as long to cut it out while it transposes it
    outputs = jax.lax.optimization_barrier(outputs)
    return rebuilt(structure, final), outputs, found


@functools.cache  # XLA keeps a target for as long as the process runs
def _target(program: CompiledProgram, reverse: bool) -> str:
    """The name under which XLA finds a loop: of what it does, since XLA may keep a program for another process."""
    counts = [len(program.carry_forms), program.inputs, program.constants]
    stacks, forms = len(program.cut.stacks), program.carry_forms
    text = repr((program.name, program.reads, forms, counts, program.cut, program.sum_forms, reverse))
    name = f"portable_rnn_{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def compute(arguments: list[Any], results: list[Any]) -> None:
        carry, rest = arguments[: counts[0]], arguments[counts[0] :]
        *stacked, sums = results
        memory = Memory(stacked[:stacks], sums)
        ends = program.compute(carry, rest[: counts[1]], rest[counts[1] :], memory, reverse=reverse)
        for array, end in zip(stacked[stacks:], ends.values(), strict=True):
            array[...] = end

    _register(name, compute)
    return name


# ---------------------------------------------------------------------- what XLA calls


def _register(name: str, compute: Callable[[list[Any], list[Any]], None]) -> None:
    """Have XLA find a function of arrays and results under a name, once for all."""
    import jax

    if name in _handlers:
        return
    handler = _HANDLER(functools.partial(_handle, compute))
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    _handlers[name] = handler


_HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_handlers: dict[str, Any] = {}  # by name; they must live as long as XLA may call them

_EXECUTE = 3  # the stage in which there are arrays
_INTERNAL = 13  # kind of an error
_DTYPES = {1: np.dtype("bool"), 11: np.dtype("float32"), 12: np.dtype("float64")}


_START: Any = (("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p))  # of every structure


class _Buffer(ctypes.Structure):
    _fields_ = (
        *_START,
        ("dtype", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )

    def array(self) -> Any:
        """The NumPy array in this memory."""
        shape, dtype = self.dims[: self.rank], _DTYPES[self.dtype]
        size = dtype.itemsize * math.prod(shape)
        memory: Any = (ctypes.c_char * size).from_address(self.data or 0)
        return np.ndarray(shape, dtype, memory)


class _Buffers(ctypes.Structure):
    _fields_ = (
        *_START,
        ("count", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )

    def arrays(self) -> list[Any]:
        return [self.items[k].contents.array() for k in range(self.count)]


class _Version(ctypes.Structure):
    _fields_ = (*_START, ("major", ctypes.c_int32), ("minor", ctypes.c_int32))


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("version", _Version))


class _MetadataExtension(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int32),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    )


class _Error(ctypes.Structure):
    _fields_ = (*_START, ("message", ctypes.c_char_p), ("kind", ctypes.c_int32))


class _Interface(ctypes.Structure):
    _fields_ = (
        *_START,
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("new_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Error))),
    )


class _Frame(ctypes.Structure):
    """A call."""

    _fields_ = (
        *_START,
        ("interface", ctypes.POINTER(_Interface)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int32),
        ("arguments", _Buffers),
        ("results", _Buffers),
    )


def _handle(compute: Callable[[list[Any], list[Any]], None], address: int) -> int | None:
    """Answer a call of XLA: nothing, or the address of an error."""
    frame = _Frame.from_address(address)
    if frame.extension:  # it asks which version of the interface this was written for
        version = _MetadataExtension.from_address(frame.extension).metadata.contents.version
        version.major, version.minor = 0, 1
        return None
    if frame.stage != _EXECUTE:
        return None
    try:
        compute(frame.arguments.arrays(), frame.results.arrays())
    except BaseException as error:  # which would be lost on the way through XLA
        message = f"portable_rnn: {type(error).__name__}: {error}".encode()
        found: int = frame.interface.contents.new_error(_Error(ctypes.sizeof(_Error), None, message, _INTERNAL))
        return found
    return None
