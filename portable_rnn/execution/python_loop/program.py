"""A time loop that runs as a plan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import cast

from ...arrays import Array
from ..graph.arguments import Results
from ..graph.hoist import Hoister
from ..graph.memory import outputs_over_time
from ..graph.pytrees import Known, PyTree, expression
from ..graph.trace import Graph
from .calls import Calls
from .plan import Plan

__all__ = ["PlannedProgram"]


class PlannedProgram:
    """A planned loop and its workspace.

    The workspace goes from call to call. A call takes it out while it runs, so that a second one at the same time
    makes its own.
    """

    def __init__(self, plan: Plan, calls: Calls, graph: Graph) -> None:
        self.plan, self.calls = plan, calls
        self.hoist = Hoister(plan.hoisted)
        self.outputs = {reverse: self._outputs(graph, reverse) for reverse in (False, True)}
        self.loop = plan.compiled()
        self.idle: list[tuple[list[Array], list[Array]]] = []

    def _outputs(self, graph: Graph, reverse: bool) -> Callable[[list[Array], list[Array]], PyTree]:
        """The tree of the outputs as a function of inputs and stacks."""
        known: Known = {}
        outputs = iter(outputs_over_time(self.plan.outputs, self.plan.stacks, graph.inputs.xs, reverse))
        text = f"lambda xs, stacks: {expression(graph.output_structure, outputs, known)}"
        return cast(Callable[[list[Array], list[Array]], PyTree], eval(text, known))

    def run(
        self, xp: ModuleType, carry: list[Array], xs: list[Array], shared: list[Array], *, reverse: bool
    ) -> Results:
        """As of `graph.arguments.Program`."""
        plan, like = self.plan, carry[0]
        steps = xs[0].shape[0]

        def empty(shape: tuple[int, ...], boolean: bool) -> Array:
            return self.calls.empty(shape, xp.bool if boolean else like.dtype, like)

        try:
            work, numbers = self.idle.pop()
        except IndexError:
            with self.calls.lasting():  # torch: what is made in inference mode can't be written to outside of it
                work = [empty(*each) for each in plan.work]
                numbers = [xp.asarray(number, dtype=like.dtype, device=like.device) for number in plan.numbers]
        whole, after = [], []
        for stack in plan.stacks:
            if stack.carry is not None:
                memory = empty((steps + 1, *stack.shape), stack.boolean)
                memory[-1 if reverse else 0, ...] = carry[stack.carry]
                whole.append(memory)
                after.append(memory[:-1] if reverse else memory[1:])
            elif stack.donated is not None:
                whole.append(xs[0][:, stack.donated : stack.donated + stack.shape[0]])
                after.append(whole[-1])
            else:
                whole.append(empty((steps, *stack.shape), stack.boolean))
                after.append(whole[-1])
        each = functools.partial(self.calls.each, reverse=reverse)
        final = self.loop(each, carry, xs, shared, self.hoist(xp, shared, like), after, work, numbers)
        final = [xp.asarray(leaf, copy=True) for leaf in final]  # it stands in a workspace, or in a stack it would keep
        self.idle.append((work, numbers))
        return Results(final, self.outputs[reverse](xs, whole))
