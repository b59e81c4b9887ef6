"""What a loop's program depends on, and what all programs do with its results."""

from __future__ import annotations

from typing import Any

from .dialects import NumpyDialect, TorchDialect
from .tracing import Graph, Value, flattened, trace

__all__ = ["Arguments", "hoisting", "outputs_over_time", "recorded"]


class Arguments:
    """The leaves of a scan's arguments, and what the program depends on, or None as `specs` if there can be none."""

    def __init__(self, xp: Any, step: Any, carry: Any, xs: Any, shared: Any) -> None:
        self.leaves: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        trees = (carry, xs, shared)
        self.structures = tuple([flattened(tree, into) for tree, into in zip(trees, self.leaves, strict=True)])
        self.floating = self.leaves[0][0].dtype
        self.specs = self._forms(xp.bool) if self.floating in (xp.float32, xp.float64) and _hashable(step) else None

    def _forms(self, boolean: Any) -> Any:
        specs = []
        for leaves, over_time in zip(self.leaves, (0, 1, 0), strict=True):
            forms = []
            for leaf in leaves:
                if isinstance(leaf, list) or (leaf.dtype != self.floating and leaf.dtype != boolean):
                    return None
                forms.append((tuple(leaf.shape[over_time:]), leaf.dtype != self.floating))
            specs.append(tuple(forms))
        return tuple(specs)


def recorded(step: Any, structures: Any, specs: Any, *, summing: bool) -> Graph:
    kinds = ("carry", "xs", "shared")
    return trace(
        step,
        {kind: list(leaves) for kind, leaves in zip(kinds, specs, strict=True)},
        dict(zip(kinds, structures, strict=True)),
        summing=summing,
    )


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
