"""What a loop's program depends on, and what all programs do with its results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..python_loop.calls import NumpyDialect, TorchDialect
from .buffers import Stack
from .pytrees import builder, flattened, reader
from .trace import Graph, Untraceable, Value, trace

__all__ = ["Arguments", "Programs", "hoisting", "outputs_over_time", "recorded"]

_FORMS = 8  # of arguments, whose programs are found fast
_MOST_FORMS = 64  # whose programs are kept


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


class Programs:
    """The programs of a step for arguments of several forms, the last used first.

    Parameters
    ----------
    make : callable
        ``make(structures, forms)``, as of `Arguments`, gives a program, or None.
    """

    def __init__(self, make: Callable[[Any, Any], Any]) -> None:
        self.make = functools.lru_cache(maxsize=_MOST_FORMS)(make)
        self.known: list[tuple[Any, ...]] = []  # reader of the arguments, program, builder of the carry

    def find(self, carry: Any, xs: Any, shared: Any) -> tuple[Any, Any, tuple[list[Any], ...]] | None:
        """The program, or None, the builder of the carry and the leaves of the arguments, for a form that is known."""
        for known in self.known:
            read, program, build = known
            leaves = read(carry, xs, shared)
            if leaves is not None:
                if known is not self.known[0]:
                    self._put_first(known)
                return program, build, leaves
        return None

    def add(self, given: Arguments) -> tuple[Any, Any, tuple[list[Any], ...]]:
        """As `find`, for one that is not."""
        program, build = self.program(given), builder(given.structures[0])
        self._put_first((reader(given.structures, given.forms, (0, 1, 0)), program, build))
        return program, build, given.leaves

    def program(self, given: Arguments) -> Any:
        """The program for arguments of this form, or None."""
        return self.make(given.structures, given.forms)

    def _put_first(self, known: tuple[Any, ...]) -> None:
        self.known = [known, *(other for other in self.known if other is not known)][:_FORMS]


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
    outputs: list[tuple[str, int, int, int]], stacks: list[Stack], inputs: list[Value], reverse: bool
) -> list[str]:
    """Each output of a plan over time as an expression of ``xs`` and ``stacks``, which begin with a first carry."""
    found = []
    for kind, k, start, stop in outputs:
        name, rows, steps = f"stacks[{k}]", stacks[k].shape[0] if kind != "input" else inputs[k].shape[0], ":"
        if kind == "input":
            name = f"xs[{k}]"
        elif stacks[k].carry is not None:
            steps = "1:" if (kind == "before") == reverse else ":-1"
        part = "" if stop - start == rows else f", {start}:{stop}"
        found.append(name if steps == ":" and not part else f"{name}[{steps}{part}]")
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
