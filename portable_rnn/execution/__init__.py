"""What the array API standard lacks, once per library: a time loop (scan), compilation (jit), fusion (fuse).

The default of each is plain Python, so a library nobody registered runs too. A per-library path stays only where
`benchmarks/` shows what it buys.

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
from typing import Any, TypeVar

import numpy as np

from ..arrays import Array, Params, leaves, library_name
from . import memory_pool
from .graph.trace import Recorder
from .layout import Collected, in_order, in_segments, product, side_by_side, stacked
from .machine.compiler import has_llvm, is_loaded
from .machine.program import compiled_scan
from .machine.program import forget as forget_machine_programs
from .machine.xla_call import machine_scan, worth_a_call
from .programs import forget as forget_planned_programs
from .programs import planned_scan

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

Function = TypeVar("Function", bound=Callable[..., Any])


def compiles(xp: Any) -> bool:
    """Whether the library compiles a function anew for every shape it meets (JAX)."""
    return library_name(xp) == "jax"


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
    if library_name(xp) != "cupy":
        return bound
    import cupy

    def kernel(*arrays: Any) -> Any:
        return bound(*arrays)

    fused: Callable[..., Any] = cupy.fuse(kernel_name=function.__name__.strip("_"))(kernel)
    return fused


def scan(
    xp: Any,
    step: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: tuple[Any, ...],
    shared: Any = None,
    *,
    reverse: bool = False,
    recorded: bool = False,
    donate: bool = False,
) -> tuple[Any, Any]:
    """Run `step` over time: ``carry, y[t] = step(xp, shared, carry, (x[t] for x in xs))``.

    A Python loop keeps the outputs of the steps as lists, which `stacked` joins where an array is needed; elsewhere
    they are arrays over time already. Either form can be an input of the next scan.

    Parameters
    ----------
    xp : namespace
    step : callable
        Returns the new carry and a nest of arrays.
    carry : nest of arrays
    xs : nest of tuples of arrays (T, ...), of lists of T nests as an earlier scan returned them, and of None
    shared : nest of arrays that are the same at every step
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
    if compiles(xp):
        return _jax_scan(lambda c, x: step(xp, shared, c, x), carry, xs, reverse)
    library = _planned_library(xp)
    if recorded and library is not None and not _differentiated(library, (carry, xs, shared)):
        donate = donate and _can_be_given(xs[0])
        found = planned_scan(xp, library, step, carry, xs, shared, reverse=reverse, donate=donate)
        if found is not None:
            return found
    steps = _steps(xs) or 0
    inputs = _at_each_step(xs)
    outputs: list[Any] = [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        carry, outputs[t] = step(xp, shared, carry, inputs(t))
    return carry, tuple(list(column) for column in zip(*outputs, strict=True))


def scan_in_one(
    xp: Any,
    step: Callable[[Any, Any, Any, Any], tuple[Any, ...]],
    carry: Any,
    xs: tuple[Any, ...],
    shared: Any = None,
    *,
    reverse: bool = False,
    summing: bool = False,
    compiling: bool = False,
) -> tuple[Any, Any, Any] | None:
    """`scan` where the library runs a loop with all its products as one compiled function, else None.

    Parameters
    ----------
    xp, step, carry, xs, shared, reverse
        As of `scan`; the step is `recorded` there, and may do products with any of its inputs.
    summing : bool
        The step also returns a nest of arrays, which is summed over the steps: `cells.summed_outer` and
        `cells.summed` of what they get from ``array[None, ...]``.
    compiling : bool
        The loop runs again and again, so that llvmlite (extra ``[fast]``), where it is installed, may be imported and
        compile it. Otherwise it does where it is imported already.

    Returns
    -------
    carry, ys, sums (None without `summing`); or None
    """
    if compiles(xp):
        plain = functools.partial(_jax_scan_in_one, xp, step, reverse, summing)
        found = machine_scan(step, carry, xs, shared, plain, reverse=reverse, summing=summing)
        return plain(carry, xs, shared) if found is None else found
    library = _planned_library(xp)
    if library in (None, "cupy") or not (is_loaded() or (compiling and has_llvm())):
        return None
    if _differentiated(str(library), (carry, xs, shared)):
        return None
    return compiled_scan(xp, str(library), step, carry, xs, shared, reverse=reverse, summing=summing)


def _jax_scan_in_one(
    xp: Any, of_all: Any, reverse: bool, summing: bool, carry: Any, xs: Any, shared: Any
) -> tuple[Any, Any, Any]:
    import jax

    def step(carry: Any, x: Any) -> Any:
        return of_all(xp, shared, carry, x)

    if not summing:
        return (*_jax_scan(step, carry, xs, reverse), None)
    first = jax.tree.map(lambda x: x[0, ...], xs)
    zeros = jax.tree.map(lambda form: jax.numpy.zeros(form.shape, form.dtype), jax.eval_shape(step, carry, first)[2])

    def adding(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, so_far = carry
        carry, outputs, found = step(carry, x)
        return (carry, jax.tree.map(jax.numpy.add, so_far, found)), outputs

    (carry, sums), outputs = _jax_scan(adding, (carry, zeros), xs, reverse)
    return carry, outputs, sums


def _jax_scan(step: Any, carry: Any, xs: Any, reverse: bool) -> tuple[Any, Any]:
    """``jax.lax.scan`` that stacks an array once where a step returns it twice, such as h as output and as residual."""
    import jax

    places: list[int] = []  # of each output among the different ones
    structure: Any = None

    def distinct(carry: Any, x: Any) -> tuple[Any, Any]:
        nonlocal structure
        carry, outputs = step(carry, x)
        flat, structure = jax.tree.flatten(outputs)
        first: dict[int, int] = {}
        places[:] = [first.setdefault(id(array), len(first)) for array in flat]
        return carry, list({id(array): array for array in flat}.values())

    final, stacks = jax.lax.scan(distinct, carry, xs, reverse=reverse)
    return final, jax.tree.unflatten(structure, [stacks[k] for k in places])


def forget() -> None:
    """Drop all programs that were made of steps, and give back the memory that no array is in.

    Programs are kept for the most recent steps and forms of their arguments; a call that finds none makes it again.
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


def records(xp: Any) -> bool:
    """Whether loops that are `recorded` run faster than as they are written, without `jit` (NumPy, CuPy, PyTorch)."""
    return _planned_library(xp) is not None


def _planned_library(xp: Any) -> str | None:
    """The library, where a loop that computes into given memory is faster than a plain one (measured, but for CuPy)."""
    name = library_name(xp)
    return name if name in ("numpy", "cupy", "torch") else None


def _differentiated(library: str, tree: Any) -> bool:
    """Whether autograd or a transform such as vmap watches an array: it must see operations that make new ones."""
    if library != "torch":
        return False
    from torch._C._functorch import is_functorch_wrapped_tensor
    from torch.autograd import forward_ad

    watches = forward_ad._current_level >= 0
    return watches or any(leaf.requires_grad or is_functorch_wrapped_tensor(leaf) for leaf in leaves(tree))


def _can_be_given(x: Any) -> bool:
    """Whether results can take the memory of `x`: NumPy writes products only into arrays that are in order."""
    return not isinstance(x, np.ndarray) or (x.flags.c_contiguous and x.flags.writeable)


def leaves_sums(xp: Any) -> bool:
    """Whether a sum over time and batch is best left to a compiler as it is, or to be recorded as it is."""
    return compiles(xp) or isinstance(xp, Recorder)


def sums_in_loop(xp: Any, batch_size: int, numbers: int) -> bool:
    """Whether the gradients of the weights are faster added up in the time loop than as one product after it.

    Under XLA they are where the `numbers` of dz over all steps do not fit the cache, and a step has columns enough for
    a fast product.
    """
    return compiles(xp) and batch_size >= 64 and numbers >= 1 << 21


def keeps_carry(xp: Any, x: Array, params: Params) -> bool:
    """Whether the carry before each step is at hand after a `scan_in_one` over x (T, I, B) with these parameters.

    A loop of machine code has it in the stack of the carries; XLA's would write one more array.
    """
    if not compiles(xp):
        return True
    return worth_a_call(x.shape[0] * x.shape[2] * sum(math.prod(p.shape) for p in params.values()))


def steps_at_once(xp: Any, step_size: int, most: int) -> int | None:
    """How many time steps to take between two large products, so that they find their operands in the cache; None: all.

    Parameters
    ----------
    xp : namespace
    step_size : int
        Numbers that a step takes.
    most : int
        How many numbers are enough.
    """
    # a GPU has no cache for it to matter, and a launch for each block is what counts
    return max(most // step_size, 1) if _planned_library(xp) in ("numpy", "torch") else None


def _steps(x: Any) -> int | None:
    """T of a nest over time, if it has an array or a list."""
    if x is None:
        return None
    if isinstance(x, (tuple, dict)):
        branches = x.values() if isinstance(x, dict) else x
        return next((steps for steps in map(_steps, branches) if steps is not None), None)
    return len(x) if isinstance(x, list) else int(x.shape[0])


def _at_each_step(x: Any) -> Callable[[int], Any]:
    """The function that takes step t of a nest: arrays and the lists of an earlier scan are indexed by time."""
    if x is None or (isinstance(x, tuple) and all(part is None for part in x)):
        return lambda t: x
    if isinstance(x, list):
        return x.__getitem__
    if isinstance(x, dict):
        named = {name: _at_each_step(part) for name, part in x.items()}
        return lambda t: {name: part(t) for name, part in named.items()}
    if not isinstance(x, tuple):
        return lambda t: x[t, ...]
    parts = [_at_each_step(part) for part in x]
    if type(x) is tuple:
        return lambda t: tuple([part(t) for part in parts])
    return lambda t: type(x)(*[part(t) for part in parts])
