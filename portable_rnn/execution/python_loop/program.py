"""Time loops that run as a plan: recorded once for each step and form of its arguments, then called again and again."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .. import memory_pool
from ..cuda.program import CudaProgram, cuda_program
from ..graph.arguments import Arguments, outputs_over_time, recorded
from ..graph.pytrees import expression, rebuilt
from ..graph.trace import Graph, Untraceable
from .calls import dialect
from .plan import Plan, make_plan

__all__ = ["forget", "planned_scan"]


class Program:
    """A planned loop and its workspace.

    The workspace goes from call to call. A call takes it out while it runs, so that a second one at the same time
    makes its own.
    """

    def __init__(self, plan: Plan, library: str, graph: Graph) -> None:
        self.plan = plan
        self.outputs = {reverse: self._outputs(graph, reverse) for reverse in (False, True)}
        self.dialect = dialect(library)
        self.loop = plan.compiled()
        self.idle: list[Any] = []

    def _outputs(self, graph: Graph, reverse: bool) -> Any:
        """The nest of the outputs as a function of inputs and stacks."""
        known: dict[str, Any] = {}
        outputs = iter(outputs_over_time(self.plan.outputs, self.plan.stacks, graph.inputs["xs"], reverse))
        return eval(f"lambda xs, stacks: {expression(graph.output_structure, outputs, known)}", known)

    def run(self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool) -> tuple[Any, Any]:
        """(leaves of the final carry, nest of the outputs, each a stack over time)."""
        plan, like = self.plan, carry[0]
        steps = xs[0].shape[0]

        def empty(shape: tuple[int, ...], boolean: bool) -> Any:
            dtype = xp.bool if boolean else like.dtype
            if isinstance(like, np.ndarray):
                return memory_pool.empty(shape, dtype)
            return xp.empty(shape, dtype=dtype, device=like.device)

        try:
            work, numbers = self.idle.pop()
        except IndexError:
            with self.dialect.lasting():  # torch: what is made in inference mode can't be written to outside of it
                work = [empty(*each) for each in plan.work]
                numbers = [xp.asarray(number, dtype=like.dtype, device=like.device) for number in plan.numbers]
        whole, after = [], []
        for stack in plan.stacks:
            if stack.carry is not None:
                memory = empty((steps + 1, *stack.shape), stack.boolean)
                memory[-1 if reverse else 0, ...] = carry[stack.carry]
                whole.append(memory)
                after.append(memory[:-1] if reverse else memory[1:])
            elif stack.given is not None:
                whole.append(xs[0][:, stack.given : stack.given + stack.shape[0]])
                after.append(whole[-1])
            else:
                whole.append(empty((steps, *stack.shape), stack.boolean))
                after.append(whole[-1])
        each = functools.partial(self.dialect.each, reverse=reverse)
        final = self.loop(each, carry, xs, shared, after, work, numbers)
        final = [xp.asarray(leaf, copy=True) for leaf in final]  # it stands in a workspace, or in a stack it would keep
        self.idle.append((work, numbers))
        return final, self.outputs[reverse](xs, whole)


@functools.lru_cache(maxsize=128)
def _program(
    xp: Any, library: str, device: Any, step: Any, structures: Any, forms: Any, donate: bool
) -> Program | CudaProgram | None:
    """The program of a step for arguments of this form, or None where it can't be recorded.

    Each device has its own: every program has its own workspace.
    """
    try:
        graph = recorded(xp, step, structures, forms, summing=False)
    except Untraceable:
        return None
    if library == "cupy":
        return cuda_program(graph, forms[0][0][1].name, donate=donate)
    return Program(make_plan(graph, dialect(library), donate=donate), library, graph)


def forget() -> None:
    """Drop all programs, and their workspaces with them."""
    _program.cache_clear()


def planned_scan(
    xp: Any, library: str, step: Any, carry: Any, xs: Any, shared: Any, *, reverse: bool, donate: bool
) -> tuple[Any, Any] | None:
    """`scan` by a planned loop, or None where the step can't be recorded."""
    given = Arguments(step, carry, xs, shared)
    if given.forms is None:
        return None
    # CuPy's devices have no hash; its programs keep no arrays
    device = None if library == "cupy" else given.leaves[0][0].device
    program = _program(xp, library, device, step, given.structures, given.forms, donate)
    if program is None:
        return None
    final, outputs = program.run(xp, *given.leaves, reverse=reverse)
    return rebuilt(given.structures[0], final), outputs
