"""Compiled loops as custom calls of XLA, where JAX computes on the processor (extra ``[fast]``).

XLA's own loop reads and writes the gates of every step, and its products lay the weights out anew at each. Here a loop
stands in XLA's program as one call, by JAX's ``buffer_callback``: its arrays are passed as they are, without a copy.
Derivatives, vmap and other devices take JAX's ``lax.scan`` of the same step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias, cast

import array_api_compat.numpy as numpy_namespace
import numpy as np

from ...arrays import Array
from ..graph.arguments import Arguments
from ..graph.pytrees import PyTree, Structure, rebuilt
from ..graph.trace import Step
from .compiler import has_llvm
from .program import CompiledProgram, Memory, as_it_is, programs

__all__ = ["call_with_buffers", "machine_scan", "run_on_host", "worth_a_call"]

WORTH_A_CALL = 1 << 23  # multiplications of a loop, of which XLA's own takes longer than it takes to get there

Found: TypeAlias = tuple[PyTree, PyTree, PyTree]  # carry, outputs, sums
Plain: TypeAlias = Callable[[PyTree, PyTree, PyTree], Found]


def worth_a_call(multiplications: object) -> bool:
    """Whether JAX's loops of this size run as machine code in this process."""
    # where a size is not known yet, it is no number
    return isinstance(multiplications, int) and multiplications >= WORTH_A_CALL and has_llvm() and can_call()


@functools.cache
def can_call() -> bool:
    import jax

    # several devices share arrays, which a call would take as a whole
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and _buffer_callback() is not None


def _buffer_callback() -> Callable[..., Callable[..., list[Array]]] | None:
    """JAX's function for calls that write into XLA's own memory, from version 0.6 on."""
    try:
        from jax.experimental import buffer_callback
    except ImportError:
        return None
    return getattr(buffer_callback, "buffer_callback", None)


def machine_scan(
    step: Step, carry: PyTree, xs: PyTree, shared: PyTree, plain: Plain, *, reverse: bool, summing: bool
) -> Found | None:
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
    program = programs(numpy_namespace, as_it_is, step, summing).program(given)
    if not isinstance(program, CompiledProgram) or not worth_a_call(program.multiplications * over_time[0].shape[0]):
        return None
    call = functools.partial(_call, program, given.structures[0], reverse)

    def plain_of_leaves(*groups: list[Array]) -> Found:
        return plain(*(rebuilt(*pair) for pair in zip(given.structures, groups, strict=True)))

    # as leaves: JAX gives the dicts of a tree another order
    def compute(*groups: list[Array]) -> Found:
        return cast(Found, jax.lax.platform_dependent(*groups, cpu=call, default=plain_of_leaves))

    def compute_many(size: int, batched: PyTree, *groups: list[Array]) -> tuple[Found, PyTree]:
        axes = jax.tree.map(lambda along: 0 if along else None, tuple(batched))
        found = jax.vmap(plain_of_leaves, in_axes=axes, axis_size=size)(*groups)
        return found, jax.tree.map(lambda _: True, found)

    batchable = jax.custom_batching.custom_vmap(compute)
    batchable.def_vmap(compute_many)
    differentiable = jax.custom_jvp(batchable)
    differentiable.defjvp(functools.partial(jax.jvp, plain_of_leaves))
    return cast(Found, differentiable(*given.leaves))


def _call(
    program: CompiledProgram,
    structure: Structure,
    reverse: bool,
    carry: list[Array],
    xs: list[Array],
    shared: list[Array],
) -> Found:
    """The loop, as a part of a program of XLA: the results of `machine_scan`, of the leaves of its arguments."""
    import jax

    forms = [*program.stack_forms(xs[0].shape[0]), *program.end_forms().values()]
    results = [jax.ShapeDtypeStruct(*form) for form in (*forms, ((program.sum_ends[-1],), program.dtype))]
    *stacks, sums = call_with_buffers(program, reverse, results, *carry, *xs, *shared)
    ends = {k: stacks.pop() for k in reversed(program.end_forms())}
    memory = Memory(stacks, sums)
    final, outputs, found = program.results(jax.numpy, carry, xs, memory, ends, reverse=reverse)
    # a part of a stack is an array of its own: XLA takes several times as long to cut it out while it transposes it
    outputs = jax.lax.optimization_barrier(outputs)
    return rebuilt(structure, final), outputs, found


def call_with_buffers(program: CompiledProgram, reverse: bool, results: list[object], *leaves: Array) -> list[Array]:
    """The loop's results, which it writes into XLA's memory."""

    def compute(context: object, out: list[Array], *arguments: Array) -> None:
        run_on_host(program, reverse, list(map(np.asarray, arguments)), list(map(np.asarray, out)))

    buffer_callback = _buffer_callback()
    assert buffer_callback is not None, "asked before `can_call`"
    return buffer_callback(compute, results)(*leaves)


def run_on_host(program: CompiledProgram, reverse: bool, arguments: list[Array], results: list[Array]) -> None:
    """The loop over NumPy arrays: all its arguments, and all that it writes."""
    carries, stacks = len(program.carry_forms), len(program.cut.stacks)
    carry, rest = arguments[:carries], arguments[carries:]
    *stacked, sums = results
    memory = Memory(stacked[:stacks], sums)
    ends = program.compute(carry, rest[: program.inputs], rest[program.inputs :], memory, reverse=reverse)
    for array, end in zip(stacked[stacks:], ends.values(), strict=True):
        array[...] = end
