"""What a maintainer needs to know: which steps run as they are written and why, and what was made of the others."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys

from .instructions import CutGraph, Kernel, Operand, Product, RowSum
from .trace import Graph, Value

__all__ = ["dump", "say_fallback", "say_once", "show_cut", "show_graph"]

_logger = logging.getLogger("portable_rnn.execution")


def say_fallback(step: object, kind: str, reason: object) -> None:
    """Log that a step is left to a slower kind of loop, once for each type of step and reason.

    Parameters
    ----------
    step : callable
    kind : str
        Of loop, which it can't have.
    reason : str or exception
    """
    say_once(_name(step), kind, str(reason))


@functools.lru_cache(maxsize=1024)
def say_once(name: str, kind: str, reason: str) -> None:
    _logger.info("%s has no %s: %s", name, kind, reason)


def _name(step: object) -> str:
    """The type of a step, and of the cells in it."""
    if not dataclasses.is_dataclass(step):
        return type(step).__qualname__
    parts = [getattr(step, field.name) for field in dataclasses.fields(step)]
    inside = [_name(part) for part in parts if dataclasses.is_dataclass(part)]
    return type(step).__qualname__ + (f"({', '.join(inside)})" if inside else "")


def dump(kind: str, step: object, text: str) -> None:
    """Print what was made of a step, if ``PORTABLE_RNN_DUMP`` has the kind: "graph", "stages" or "source"."""
    if kind in os.environ.get("PORTABLE_RNN_DUMP", "").split(","):
        print(f"# {kind} of {_name(step)}\n{text}", file=sys.stderr)


def show_graph(graph: Graph) -> str:
    """A recorded step, a line for each value that it needs."""
    lines = [f"{_shown(value)} = {_call(value)}  {value.dtype} {value.shape}" for value in graph.needed()]
    lines += [f"{_shown(value)} = {_call(value)}  summed {value.shape}" for value in graph.terms()]
    lines.append(f"carry: {', '.join(map(_shown, graph.carry))}")
    lines.append(f"outputs: {', '.join(map(_shown, graph.outputs))}")
    return "\n".join(lines)


def _shown(operand: Value | float) -> str:
    return f"v{operand.number}" if isinstance(operand, Value) else repr(operand)


def _call(value: Value) -> str:
    arguments = [*map(_shown, value.operands), *map(str, value.detail)]
    return f"{value.op.value}({', '.join(arguments)})"


def show_cut(cut: CutGraph) -> str:
    """A step as instructions."""
    lines = [f"h{k} = {_call(value)}  before the loop" for k, value in enumerate(cut.hoisted)]
    for made in cut.instructions:
        if isinstance(made, Product):
            lines.append(f"{made.out} = {made.left.name}{'.T' if made.transposed else ''} @ {made.right}")
        elif isinstance(made, RowSum):
            lines.append(f"{made.out} = sum of the rows of {made.x}")
        else:
            lines += _kernel_lines(made)
    lines += [f"sum over time: {term.left}{f' @ {term.right}.T' if term.right else ''}" for term in cut.terms]
    return "\n".join(lines)


def _kernel_lines(kernel: Kernel) -> list[str]:
    def shown(operand: Operand) -> str:
        return operand if isinstance(operand, str) else repr(operand)

    lines = [f"kernel of {kernel.rows} rows:"]
    for access, name in kernel.loads.items():
        lines.append(f"    {name} = {access.buffer.name} block {access.block} {access.spread.value}")
    for name, op, operands in kernel.statements:
        lines.append(f"    {name} = {op.value}({', '.join(map(shown, operands))})")
    lines += [f"    {access.buffer.name} block {access.block} = {shown(name)}" for access, name in kernel.stores]
    return lines
