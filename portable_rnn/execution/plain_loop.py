"""A time loop as it is written: Python's."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from .graph.pytrees import PyTree
from .graph.trace import Step

__all__ = ["plain_scan"]


def plain_scan(
    xp: ModuleType, step: Step, carry: PyTree, xs: tuple[PyTree, ...], shared: PyTree, *, reverse: bool
) -> tuple[PyTree, PyTree]:
    """`execution.scan` by calling the step again and again; the outputs are lists."""
    steps = _steps(xs) or 0
    inputs = _at_each_step(xs)
    outputs: list[PyTree] = [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        carry, outputs[t] = step(xp, shared, carry, inputs(t))
    return carry, tuple(list(column) for column in zip(*outputs, strict=True))


def _steps(x: PyTree) -> int | None:
    """T of a pytree over time, if it has an array or a list."""
    if x is None:
        return None
    if isinstance(x, (tuple, dict)):
        branches = x.values() if isinstance(x, dict) else x
        return next((steps for steps in map(_steps, branches) if steps is not None), None)
    return len(x) if isinstance(x, list) else int(x.shape[0])


def _at_each_step(x: PyTree) -> Callable[[int], PyTree]:
    """The function that takes step t of a pytree: arrays and the lists of an earlier scan are indexed by time."""
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
