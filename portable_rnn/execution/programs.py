"""The programs that run recorded steps without a compiler: made once for each step and form, then kept."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from types import ModuleType
from typing import Protocol

from ..arrays import Array
from .graph.arguments import Arguments, DType, Form, Program, Structures, recorded
from .graph.pytrees import PyTree, rebuilt
from .graph.report import dump, say_fallback, show_graph
from .graph.trace import Graph, Step, Untraceable

__all__ = ["Maker", "forget", "planned_scan", "program_of"]


class Maker(Hashable, Protocol):
    """What a library says about its programs."""

    def program(self, graph: Graph, step: Step, dtype: DType, *, donate: bool) -> Program | None:
        """The program of a recorded step, or None where it has none."""

    def device_key(self, x: Array) -> Hashable:
        """By which programs of other devices are told apart."""


@functools.lru_cache(maxsize=128)
def program_of(
    xp: ModuleType, maker: Maker, device: Hashable, step: Step, structures: Structures, form: Form, donate: bool
) -> Program | None:
    """The program of a step for arguments of this form, or None where it can't be recorded.

    Each device has its own: every program has its own workspace.
    """
    try:
        graph = recorded(xp, step, structures, form, summing=False)
    except Untraceable as reason:
        say_fallback(step, "recorded loop", reason)
        return None
    dump("graph", step, show_graph(graph))
    return maker.program(graph, step, form[0][0][1], donate=donate)


def forget() -> None:
    """Drop all programs, and their workspaces with them."""
    program_of.cache_clear()


def planned_scan(
    xp: ModuleType,
    maker: Maker,
    step: Step,
    carry: PyTree,
    xs: PyTree,
    shared: PyTree,
    *,
    reverse: bool,
    donate: bool,
) -> tuple[PyTree, PyTree] | None:
    """`scan` by a recorded loop, or None where the step can't be recorded."""
    given = Arguments(step, carry, xs, shared)
    if given.hindrance is not None:
        say_fallback(step, "recorded loop", given.hindrance)
        return None
    device = maker.device_key(given.leaves[0][0])
    program = program_of(xp, maker, device, step, given.structures, given.form, donate)
    if program is None:
        return None
    found = program.run(xp, *given.leaves, reverse=reverse)
    return rebuilt(given.structures[0], found.carry), found.outputs
