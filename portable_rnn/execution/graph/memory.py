"""Where the results of a step stand, for all kinds of loops: outputs over time, and what a donated input gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .buffers import Buffer, Kind, Output, Source, Stack, memory_of
from .instructions import CutGraph, Kernel, rows_read, writes
from .trace import Graph, Value

__all__ = ["Read", "donate_input", "donate_rows", "outputs_over_time"]


class Read(NamedTuple):
    """Rows of the first input that an instruction reads."""

    start: int
    stop: int
    when: int  # the instruction's number
    elementwise: bool = True  # an element of the result needs that element alone


def donate_rows(
    graph: Graph, stacks: list[Stack], reads: list[Read], allowed: Callable[[int, int, list[Read]], bool]
) -> None:
    """Let stacks stand in rows of the first input, the largest first.

    Parameters
    ----------
    graph : Graph
    stacks : list of Stack
        Their `donated` is set.
    reads : list of Read
    allowed : callable
        ``allowed(stack, start, overlapping)``: whether it may stand there, of which these are read.
    """
    first = graph.inputs.xs[0]
    if any(memory_of(value)[0] is first for value in (*graph.outputs, *graph.carry)):
        return
    taken: list[tuple[int, int]] = []

    def fits(k: int, start: int) -> bool:
        stop = start + stacks[k].shape[0]
        if stop > first.shape[0] or any(a < stop and start < b for a, b in taken):
            return False
        return allowed(k, start, [read for read in reads if read.start < stop and start < read.stop])

    for k in sorted(range(len(stacks)), key=lambda k: -stacks[k].shape[0]):
        stack = stacks[k]
        if stack.carry is not None or stack.boolean or stack.shape[1:] != first.shape[1:]:
            continue
        starts = sorted({0, *(read.start for read in reads), *(stop for _, stop in taken)})
        stack.donated = next((start for start in starts if fits(k, start)), None)
        if stack.donated is not None:
            taken.append((stack.donated, stack.donated + stack.shape[0]))


def donate_input(graph: Graph, cut: CutGraph) -> None:
    """`donate_rows` for a step that is cut into kernels, of which one may write each stack, and none read it.

    Within a kernel an element is read before it is written, and no other element is looked at.
    """
    first = Buffer(Kind.INPUT, 0)
    reads = [Read(*rows, k) for k, made in enumerate(cut.instructions) for rows in rows_read(made, first)]

    def allowed(stack: int, start: int, overlapping: list[Read]) -> bool:
        buffer = Buffer(Kind.STACK, stack)
        writers = [k for k, made in enumerate(cut.instructions) if writes(made, buffer)]
        if len(writers) != 1 or any(rows_read(made, buffer) for made in cut.instructions):
            return False
        kernel = cut.instructions[writers[0]]
        if not isinstance(kernel, Kernel) or start % kernel.rows:
            return False
        return all(read.when <= writers[0] for read in overlapping)

    donate_rows(graph, cut.stacks, reads, allowed)


def outputs_over_time(outputs: list[Output], stacks: list[Stack], inputs: list[Value], reverse: bool) -> list[str]:
    """Each output over time as an expression of ``xs`` and ``stacks``, which begin with a first carry."""
    found = []
    for source, k, start, stop in outputs:
        is_input = source is Source.INPUT
        name, rows, steps = f"{'xs' if is_input else 'stacks'}[{k}]", (inputs if is_input else stacks)[k].shape[0], ":"
        if not is_input and stacks[k].carry is not None:
            steps = "1:" if (source is Source.BEFORE) == reverse else ":-1"
        part = "" if stop - start == rows else f", {start}:{stop}"
        found.append(name if steps == ":" and not part else f"{name}[{steps}{part}]")
    return found
