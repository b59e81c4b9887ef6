"""What the array API standard lacks, once per library: a time loop (scan), compilation (jit), fusion (fuse).

The default of each is plain Python, so a library nobody registered runs too. A per-library path stays only where
`benchmarks/` shows what it buys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import array_api_compat

from .typing import Array

__all__ = ["compiles", "fuse", "jit", "scan", "stacked"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiles(xp: Any) -> bool:
    """Whether the library compiles a function anew for every shape it meets (JAX)."""
    return bool(array_api_compat.is_jax_namespace(xp))


def jit(xp: Any, function: Function, static: tuple[str, ...] = ()) -> Function:
    """`function` compiled where the library can, else as it is.

    Parameters
    ----------
    xp : namespace
    function : callable of nests of arrays
    static : names of the keyword arguments that are configuration (hashable), not arrays
    """
    return _jax_jit(function, static) if compiles(xp) else function


@functools.lru_cache(maxsize=256)
def _jax_jit(function: Any, static: tuple[str, ...]) -> Any:
    import jax

    return jax.jit(function, static_argnames=static)


def fuse(xp: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A pointwise function ``(xp, *arrays)`` with `xp` bound, as one kernel where the library can do that (CuPy).

    The function may use operators, numbers and functions of `xp` that work element by element. JAX fuses by itself
    inside `jit`.

    Returns
    -------
    callable of the arrays
    """
    return _fused(xp, function)


@functools.lru_cache(maxsize=256)
def _fused(xp: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    bound = functools.partial(function, xp)
    if not array_api_compat.is_cupy_namespace(xp):
        return bound
    import cupy

    def kernel(*arrays: Any) -> Any:
        return bound(*arrays)

    fused: Callable[..., Any] = cupy.fuse(kernel_name=function.__name__.strip("_"))(kernel)
    return fused


def scan(
    xp: Any,
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: tuple[Any, ...],
    *,
    reverse: bool = False,
) -> tuple[Any, tuple[Any, ...]]:
    """Run `step` over time: ``carry, y[t] = step(carry, (x[t] for x in xs))``.

    A Python loop keeps the outputs of the steps as lists, which `stacked` joins where an array is needed; under
    ``jax.lax.scan`` they are arrays already. Either form can be an input of the next scan.

    Parameters
    ----------
    xp : namespace
    step : callable
        Takes the carry and a tuple with one element for every element of `xs`; returns the new carry and a tuple.
    carry : nest of arrays
    xs : nest of tuples of arrays (T, ...), of lists of T nests as an earlier scan returned them, and of None;
        the first is an array
    reverse : bool
        From the last step to the first. Outputs stand at their own time index either way.

    Returns
    -------
    carry, ys
    """
    if compiles(xp):
        import jax

        final, ys = jax.lax.scan(step, carry, xs, reverse=reverse)
        return final, ys
    steps = xs[0].shape[0]
    inputs = _at_each_step(xs)
    outputs: list[Any] = [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        carry, outputs[t] = step(carry, inputs(t))
    return carry, tuple(list(column) for column in zip(*outputs, strict=True))


def stacked(xp: Any, column: Any) -> Array:
    """An output of `scan` as one array (T, ...)."""
    return xp.stack(column) if isinstance(column, list) else column


def _at_each_step(x: Any) -> Callable[[int], Any]:
    """The function that takes step t of a nest: arrays and the lists of an earlier scan are indexed by time."""
    if x is None or (isinstance(x, tuple) and all(part is None for part in x)):
        return lambda t: x
    if isinstance(x, list):
        return x.__getitem__
    if not isinstance(x, tuple):
        return lambda t: x[t, ...]
    parts = [_at_each_step(part) for part in x]
    if type(x) is tuple:
        return lambda t: tuple([part(t) for part in parts])
    return lambda t: type(x)(*[part(t) for part in parts])
