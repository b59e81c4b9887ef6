"""What a loop's program depends on, and what all programs do with its results."""

from __future__ import annotations

from typing import Any

from .dialects import NumpyDialect, TorchDialect
from .nests import flattened
from .tracing import Graph, Untraceable, Value, trace

__all__ = ["Arguments", "hoisting", "outputs_over_time", "recorded"]


class Arguments:
    """The leaves of a scan's arguments, and what its program depends on.

    Attributes
    ----------
    leaves : lists of the arrays of carry, xs and shared
    structures : their nests, as from `nests.flattened`
    forms : tuple of tuples of (shape of a step, dtype), or None
        None: there can be no program.
    """

    def __init__(self, step: Any, carry: Any, xs: Any, shared: Any) -> None:
        first: list[Any] = []
        over_time: list[Any] = []
        same: list[Any] = []
        self.leaves = (first, over_time, same)
        self.structures = (flattened(carry, first), flattened(xs, over_time), flattened(shared, same))
        self.forms: Any = None
        if list not in map(type, over_time) and _hashable(step):
            self.forms = (
                tuple([(leaf.shape, leaf.dtype) for leaf in first]),
                tuple([(leaf.shape[1:], leaf.dtype) for leaf in over_time]),
                tuple([(leaf.shape, leaf.dtype) for leaf in same]),
            )


def recorded(xp: Any, step: Any, structures: Any, forms: Any, *, summing: bool) -> Graph:
    """The graph of a step for such arguments.

    Raises
    ------
    Untraceable
    """
    floating = forms[0][0][1]
    if floating not in (xp.float32, xp.float64):
        raise Untraceable("a loop that is not of float32 or float64")
    if any(dtype not in (floating, xp.bool) for leaves in forms for _, dtype in leaves):
        raise Untraceable("arrays of several dtypes")
    kinds = ("carry", "xs", "shared")
    specs = {
        kind: [(tuple(shape), dtype != floating) for shape, dtype in leaves]
        for kind, leaves in zip(kinds, forms, strict=True)
    }
    return trace(step, specs, dict(zip(kinds, structures, strict=True)), summing=summing)


def _hashable(step: Any) -> bool:
    """Whether the program of a step can be found again: a user's cell may hold what has no hash."""
    try:
        hash(step)
    except TypeError:
        return False
    return True


def outputs_over_time(
    outputs: list[tuple[str, int, int, int]], xs: list[Any], whole: list[Any], after: list[Any], reverse: bool
) -> list[Any]:
    """Each output of a plan over time, from the stacks (`whole` with the first value of a carry, `after` without)."""
    found = []
    for kind, k, start, stop in outputs:
        if kind == "before":
            memory = whole[k][1:] if reverse else whole[k][:-1]
        else:
            memory = xs[k] if kind == "input" else after[k]
        found.append(memory if stop - start == memory.shape[1] else memory[:, start:stop])
    return found


def hoisting(values: list[Value], dialect: NumpyDialect | TorchDialect) -> Any:
    """``f(shared, number)``: the values that are the same at every step."""

    def written(value: Any) -> str:
        if not isinstance(value, Value):
            return f"number({value!r})"
        if value.op == "shared":
            return f"shared[{value.detail[0]}]"
        return dialect.expression(value.op, [written(operand) for operand in value.operands], value)

    source = f"lambda shared, number: [{', '.join(map(written, values))}]"
    return eval(source, dict(dialect.names))
