"""The programs that run recorded steps without a compiler: made once for each step and form, then kept."""

from __future__ import annotations

import functools
from types import ModuleType

from .cuda.program import cuda_program
from .graph.arguments import Arguments, Form, Program, Structures, recorded
from .graph.pytrees import PyTree, rebuilt
from .graph.report import dump, say_fallback, show_graph
from .graph.trace import Step, Untraceable
from .python_loop.calls import calls_of
from .python_loop.plan import make_plan
from .python_loop.program import PlannedProgram

__all__ = ["forget", "planned_scan", "program_of"]


@functools.lru_cache(maxsize=128)
def program_of(
    xp: ModuleType, library: str, device: object, step: Step, structures: Structures, form: Form, donate: bool
) -> Program | None:
    """The program of a step for arguments of this form, or None where it can't be recorded.

    Each device has its own: every program has its own workspace.
    """
    try:
        graph = recorded(xp, step, structures, form, summing=False)
        dump("graph", step, show_graph(graph))
        if library == "cupy":
            return cuda_program(graph, step, str(form[0][0][1]), donate=donate)
        calls = calls_of(library)
        plan = make_plan(graph, calls, donate=donate)
    except Untraceable as reason:
        say_fallback(step, "recorded loop", reason)
        return None
    dump("source", step, plan.source)
    return PlannedProgram(plan, calls, graph)


def forget() -> None:
    """Drop all programs, and their workspaces with them."""
    program_of.cache_clear()


def planned_scan(
    xp: ModuleType,
    library: str,
    step: Step,
    carry: PyTree,
    xs: PyTree,
    shared: PyTree,
    *,
    reverse: bool,
    donate: bool,
) -> tuple[PyTree, PyTree] | None:
    """`scan` by a planned loop, or None where the step can't be recorded."""
    given = Arguments(step, carry, xs, shared)
    if given.hindrance is not None:
        say_fallback(step, "recorded loop", given.hindrance)
        return None
    # CuPy's devices have no hash; its programs keep no arrays
    device = None if library == "cupy" else given.leaves[0][0].device
    program = program_of(xp, library, device, step, given.structures, given.form, donate)
    if program is None:
        return None
    found = program.run(xp, *given.leaves, reverse=reverse)
    return rebuilt(given.structures[0], found.carry), found.outputs
