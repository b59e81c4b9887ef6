"""JAX: loops and functions that XLA compiles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import cast

from ...arrays import Array
from ..graph.pytrees import PyTree
from ..graph.trace import Step
from ..machine.xla_call import machine_scan, worth_a_call
from .base import Library

__all__ = ["JaxLibrary"]


class JaxLibrary(Library):
    """JAX, whose ``lax.scan`` runs a loop, or machine code that XLA calls."""

    name = "jax"
    compiles = True

    def jit(self, function: Callable[..., PyTree], static: tuple[str, ...]) -> Callable[..., PyTree]:
        return _jit(function, static)

    def scan(
        self,
        xp: ModuleType,
        step: Step,
        carry: PyTree,
        xs: tuple[PyTree, ...],
        shared: PyTree,
        *,
        reverse: bool,
        recorded: bool,
        donate: bool,
    ) -> tuple[PyTree, PyTree]:
        return _scan(lambda c, x: step(xp, shared, c, x), carry, xs, reverse)

    def scan_in_one(
        self,
        xp: ModuleType,
        step: Step,
        carry: PyTree,
        xs: tuple[PyTree, ...],
        shared: PyTree,
        *,
        reverse: bool,
        summing: bool,
        compiling: bool,
    ) -> tuple[PyTree, PyTree, PyTree] | None:
        plain = functools.partial(_scan_in_one, xp, step, reverse, summing)
        found = machine_scan(step, carry, xs, shared, plain, reverse=reverse, summing=summing)
        return plain(carry, xs, shared) if found is None else found

    def keeps_carry(self, x: Array, numbers: int) -> bool:
        return worth_a_call(x.shape[0] * x.shape[2] * numbers)

    def sums_in_loop(self, batch_size: int, numbers: int) -> bool:
        return batch_size >= 64 and numbers >= 1 << 21

    def in_segments(self, xp: ModuleType, array: Array, start: int, stop: int, size: int) -> Sequence[Array] | Array:
        # as one array, since it takes no lists
        return xp.reshape(array[start:stop, ...], ((stop - start) // size, size, *array.shape[1:]))


@functools.lru_cache(maxsize=256)
def _jit(function: Callable[..., PyTree], static: tuple[str, ...]) -> Callable[..., PyTree]:
    import jax

    return cast(Callable[..., PyTree], jax.jit(function, static_argnames=static))


def _scan_in_one(
    xp: ModuleType, of_all: Step, reverse: bool, summing: bool, carry: PyTree, xs: PyTree, shared: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    import jax

    def step(carry: PyTree, x: PyTree) -> tuple[PyTree, ...]:
        return of_all(xp, shared, carry, x)

    if not summing:
        return (*_scan(step, carry, xs, reverse), None)
    first = jax.tree.map(lambda x: x[0, ...], xs)
    zeros = jax.tree.map(lambda form: jax.numpy.zeros(form.shape, form.dtype), jax.eval_shape(step, carry, first)[2])

    def adding(carry: tuple[PyTree, PyTree], x: PyTree) -> tuple[PyTree, PyTree]:
        inner, so_far = carry
        inner, outputs, found = step(inner, x)
        return (inner, jax.tree.map(jax.numpy.add, so_far, found)), outputs

    (carry, sums), outputs = _scan(adding, (carry, zeros), xs, reverse)
    return carry, outputs, sums


def _scan(step: Callable[..., tuple[PyTree, ...]], carry: PyTree, xs: PyTree, reverse: bool) -> tuple[PyTree, PyTree]:
    """``jax.lax.scan`` that stacks an array once where a step returns it twice, such as h as output and as residual."""
    import jax

    numbers: list[int] = []  # of each output among the different ones
    structure: object = None

    def distinct(carry: PyTree, x: PyTree) -> tuple[PyTree, list[Array]]:
        nonlocal structure
        carry, outputs = step(carry, x)
        flat, structure = jax.tree.flatten(outputs)
        first: dict[int, int] = {}
        numbers[:] = [first.setdefault(id(array), len(first)) for array in flat]
        return carry, list({id(array): array for array in flat}.values())

    final, stacks = jax.lax.scan(distinct, carry, xs, reverse=reverse)
    return final, jax.tree.unflatten(structure, [stacks[k] for k in numbers])
