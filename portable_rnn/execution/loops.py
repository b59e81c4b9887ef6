"""Time loops that run as a plan: recorded once for each step and form of its arguments, then called again and again."""

from __future__ import annotations

import functools
from typing import Any

from .dialects import NumpyDialect, TorchDialect
from .planning import Plan, make_plan
from .tracing import Untraceable, flattened, rebuilt, trace

__all__ = ["planned_scan"]

_DIALECTS: dict[str, type[NumpyDialect] | type[TorchDialect]] = {"numpy": NumpyDialect, "torch": TorchDialect}


@functools.lru_cache(maxsize=2)
def _dialect(library: str) -> NumpyDialect | TorchDialect:
    return _DIALECTS[library]()


class Program:
    """A planned loop and its workspace.

    The workspace goes from call to call. A call takes it out while it runs, so that a second one at the same time
    makes its own.
    """

    def __init__(self, plan: Plan, library: str, output_structure: Any) -> None:
        self.plan, self.output_structure = plan, output_structure
        self.dialect = _dialect(library)
        self.loop = plan.compiled()
        self.idle: list[Any] = []

    def run(self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool) -> tuple[Any, Any]:
        """(leaves of the final carry, nest of the outputs, each a stack over time)."""
        plan, like = self.plan, carry[0]
        steps = xs[0].shape[0]

        def empty(shape: tuple[int, ...], boolean: bool) -> Any:
            return xp.empty(shape, dtype=xp.bool if boolean else like.dtype, device=like.device)

        try:
            work, numbers = self.idle.pop()
        except IndexError:
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
        owned = {id(memory) for memory in work}
        final = [xp.asarray(leaf, copy=True) if id(leaf) in owned else leaf for leaf in final]
        self.idle.append((work, numbers))
        found = []
        for kind, k, start, stop in plan.outputs:
            if kind == "before":
                memory = whole[k][1:] if reverse else whole[k][:-1]
            else:
                memory = xs[k] if kind == "input" else after[k]
            found.append(memory if stop - start == memory.shape[1] else memory[:, start:stop])
        return final, rebuilt(self.output_structure, iter(found))


@functools.lru_cache(maxsize=128)
def _program(library: str, place: Any, step: Any, structures: Any, specs: Any, donate: bool) -> Program | None:
    """The program of a step for arguments of this form, or None where it can't be recorded.

    `place` is the dtype and device: every program has its own workspace.
    """
    kinds = ("carry", "xs", "shared")
    try:
        graph = trace(
            step,
            {kind: list(leaves) for kind, leaves in zip(kinds, specs, strict=True)},
            dict(zip(kinds, structures, strict=True)),
        )
    except Untraceable:
        return None
    return Program(make_plan(graph, _dialect(library), donate=donate), library, graph.output_structure)


def planned_scan(
    xp: Any, library: str, step: Any, carry: Any, xs: Any, shared: Any, *, reverse: bool, donate: bool
) -> tuple[Any, Any] | None:
    """`scan` by a planned loop, or None where the step can't be recorded."""
    groups: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    structures = tuple([flattened(tree, leaves) for tree, leaves in zip((carry, xs, shared), groups, strict=True)])
    carry_leaves, x_leaves, shared_leaves = groups
    floating, boolean = carry_leaves[0].dtype, xp.bool
    specs = []
    for leaves, over_time in zip(groups, (0, 1, 0), strict=True):
        forms = []
        for leaf in leaves:
            if isinstance(leaf, list) or (leaf.dtype != floating and leaf.dtype != boolean):
                return None
            forms.append((tuple(leaf.shape[over_time:]), leaf.dtype != floating))
        specs.append(tuple(forms))
    place = (floating, carry_leaves[0].device)
    program = _program(library, place, step, structures, tuple(specs), donate)
    if program is None:
        return None
    final, outputs = program.run(xp, carry_leaves, x_leaves, shared_leaves, reverse=reverse)
    return rebuilt(structures[0], iter(final)), outputs
