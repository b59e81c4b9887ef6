"""What the array API standard lacks, once per library: a time loop (scan), compilation (jit), fusion (fuse).

The default of each is plain Python, so a library nobody registered runs too. A per-library path stays only where
`benchmarks/` shows what it buys: `libraries` has a class for each library that differs.

How `scan` runs a step: `graph` records it as a graph of operations. `python_loop` runs those as calls of NumPy or torch
that write into planned memory. Or the graph is cut into products and kernels, which `cuda` launches one by one (CuPy),
and of which `machine` compiles one function, products and all; JAX calls that from XLA. Large arrays come from
`memory_pool`; `layout` is how arrays over time stand in memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import TypeVar, cast

from ..arrays import Array, Params
from . import memory_pool
from .graph.pytrees import PyTree
from .graph.trace import Recorder, Step
from .layout import Collected, in_order, in_segments, product, side_by_side, stacked
from .libraries import library_of
from .machine.program import forget as forget_machine_programs
from .programs import forget as forget_planned_programs

__all__ = [
    "Collected",
    "compiles",
    "forget",
    "forward_only",
    "fuse",
    "in_order",
    "in_segments",
    "jit",
    "keeps_carry",
    "keeps_residuals",
    "leaves_sums",
    "product",
    "records",
    "scan",
    "scan_in_one",
    "side_by_side",
    "stacked",
    "steps_at_once",
    "sums_in_loop",
]

Function = TypeVar("Function", bound=Callable[..., PyTree])


def compiles(xp: ModuleType) -> bool:
    """Whether the library compiles a function anew for every shape it meets (JAX)."""
    return library_of(xp).compiles


def jit(xp: ModuleType, function: Function, static: tuple[str, ...] = ()) -> Function:
    """`function` compiled where the library can, else as it is.

    Parameters
    ----------
    xp : namespace
    function : callable of pytrees of arrays
    static : names of the keyword arguments that are configuration (hashable), not arrays
    """
    return cast(Function, library_of(xp).jit(function, static))


def fuse(xp: ModuleType, function: Callable[..., Array]) -> Callable[..., Array]:
    """A pointwise function ``(xp, *arrays)`` with `xp` bound, as one kernel where the library can do that (CuPy).

    The function may use operators, numbers and functions of `xp` that work element by element. JAX fuses by itself
    inside `jit`.

    Returns
    -------
    callable of the arrays
    """
    return _fused(xp, function)


@functools.lru_cache(maxsize=256)
def _fused(xp: ModuleType, function: Callable[..., Array]) -> Callable[..., Array]:
    return library_of(xp).fuse(xp, function)


def scan(
    xp: ModuleType,
    step: Step,
    carry: PyTree,
    xs: tuple[PyTree, ...],
    shared: PyTree = None,
    *,
    reverse: bool = False,
    recorded: bool = False,
    donate: bool = False,
) -> tuple[PyTree, PyTree]:
    """Run `step` over time: ``carry, y[t] = step(xp, shared, carry, (x[t] for x in xs))``.

    A Python loop keeps the outputs of the steps as lists, which `stacked` joins where an array is needed; elsewhere
    they are arrays over time already. Either form can be an input of the next scan.

    Parameters
    ----------
    xp : namespace
    step : callable
        Returns the new carry and a pytree of arrays.
    carry : pytree of arrays
    xs : pytree of tuples of arrays (T, ...), of lists of T pytrees as an earlier scan returned them, and of None
    shared : pytree of arrays that are the same at every step
    reverse : bool
        From the last step to the first. Outputs stand at their own time index either way.
    recorded : bool
        `step` is hashable, equal steps compute the same, and it looks at nothing but its arguments: it may be run once
        on symbolic arrays, and from then on as a loop that was made of what it did.
    donate : bool
        The first of `xs` is not used afterwards, so its memory may be.

    Returns
    -------
    carry, ys
    """
    library = library_of(xp)
    return library.scan(xp, step, carry, xs, shared, reverse=reverse, recorded=recorded, donate=donate)


def scan_in_one(
    xp: ModuleType,
    step: Step,
    carry: PyTree,
    xs: tuple[PyTree, ...],
    shared: PyTree = None,
    *,
    reverse: bool = False,
    summing: bool = False,
    compiling: bool = False,
) -> tuple[PyTree, PyTree, PyTree] | None:
    """`scan` where the library runs a loop with all its products as one compiled function, else None.

    Parameters
    ----------
    xp, step, carry, xs, shared, reverse
        As of `scan`; the step is `recorded` there, and may do products with any of its inputs.
    summing : bool
        The step also returns a pytree of arrays, which is summed over the steps: `cells.summed_outer` and
        `cells.summed` of what they get from ``array[None, ...]``.
    compiling : bool
        The loop runs again and again, so that llvmlite (extra ``[fast]``), where it is installed, may be imported and
        compile it. Otherwise it does where it is imported already.

    Returns
    -------
    carry, ys, sums (None without `summing`); or None
    """
    library = library_of(xp)
    return library.scan_in_one(xp, step, carry, xs, shared, reverse=reverse, summing=summing, compiling=compiling)


def forget() -> None:
    """Drop all programs that were made of steps, and give back the memory that no array is in.

    Programs are kept for the most recent steps and forms of their arguments; a call that finds none makes it again.
    ``PORTABLE_RNN_COMPILE`` is read again.
    """
    forget_planned_programs()
    forget_machine_programs()
    memory_pool.forget()


_forward_only: ContextVar[bool] = ContextVar("forward_only", default=False)


@contextmanager
def forward_only() -> Iterator[None]:
    """Layers that run inside keep nothing for a backward pass."""
    token = _forward_only.set(True)
    try:
        yield
    finally:
        _forward_only.reset(token)


def keeps_residuals() -> bool:
    """Whether a layer that runs now has to keep what its backward pass needs."""
    return not _forward_only.get()


def records(xp: ModuleType) -> bool:
    """Whether loops that are `recorded` run faster than as they are written, without `jit` (NumPy, CuPy, PyTorch)."""
    return library_of(xp).records


def leaves_sums(xp: ModuleType) -> bool:
    """Whether a sum over time and batch is best left to a compiler as it is, or to be recorded as it is."""
    return isinstance(xp, Recorder) or compiles(xp)


def sums_in_loop(xp: ModuleType, batch_size: int, numbers: int) -> bool:
    """Whether the gradients of the weights are faster added up in the time loop than as one product after it.

    Under XLA they are where the `numbers` of dz over all steps do not fit the cache, and a step has columns enough for
    a fast product.
    """
    return library_of(xp).sums_in_loop(batch_size, numbers)


def keeps_carry(xp: ModuleType, x: Array, params: Params) -> bool:
    """Whether the carry before each step is at hand after a `scan_in_one` over x (T, I, B) with these parameters.

    A loop of machine code has it in the stack of the carries; XLA's would write one more array.
    """
    return library_of(xp).keeps_carry(x, sum(math.prod(p.shape) for p in params.values()))


def steps_at_once(xp: ModuleType, step_size: int, most: int) -> int | None:
    """How many time steps to take between two large products, so that they find their operands in the cache; None: all.

    Parameters
    ----------
    xp : namespace
    step_size : int
        Numbers that a step takes.
    most : int
        How many numbers are enough.
    """
    return max(most // step_size, 1) if library_of(xp).has_cache else None
