"""Plan where each result of a recorded step goes, and write the loop over time as straight-line Python.

A result is written where it is wanted in the first place: into its row of an output's stack (T, ...), into its row
block of a concatenation, into the memory of an input that the caller gives away, or into a workspace that is reused as
soon as nobody reads it any more. The loop then allocates nothing, and each operation costs one call of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from ...arrays import Array
from ..graph.buffers import (
    Buffer,
    Kind,
    Output,
    RowBlock,
    Source,
    Stack,
    is_straight,
    is_whole,
    memory_of,
    root_of,
)
from ..graph.memory import Read, donate_rows
from ..graph.operations import Op
from ..graph.trace import Graph, Operand, Shape, Value
from .calls import Calls

__all__ = ["Plan", "make_plan"]

_END = 1 << 30  # later than every instruction


@dataclass
class Plan:
    """The loop and what it needs.

    Attributes
    ----------
    source : str
        ``def loop(each, carry, xs, shared, hoisted, stacks, work, numbers)`` returns the final carry.
    stacks : list of Stack
    work : list of (shape, whether boolean)
    numbers : list of float
    outputs : list of Output
    hoisted : list of Value
        What is made once before the loop.
    """

    source: str
    stacks: list[Stack]
    work: list[tuple[Shape, bool]]
    numbers: list[float]
    outputs: list[Output]
    hoisted: list[Value]
    names: dict[str, object] = field(default_factory=dict)

    def compiled(self) -> Callable[..., list[Array]]:
        """The loop as a function."""
        scope = dict(self.names)
        exec(compile(self.source, "<time loop>", "exec"), scope)
        return cast(Callable[..., list[Array]], scope["loop"])


def make_plan(graph: Graph, calls: Calls, *, donate: bool) -> Plan:
    """Plan a step's loop.

    Parameters
    ----------
    graph : Graph
    calls : Calls
    donate : bool
        The caller donates the memory of the first input.
    """
    return _Planner(graph, calls, donate).plan()


def _whole(kind: Kind, number: int, value: Value) -> RowBlock:
    return RowBlock.whole(Buffer(kind, number), value.shape[0])


class _Planner:
    def __init__(self, graph: Graph, calls: Calls, donate: bool) -> None:
        self.graph, self.calls, self.donate = graph, calls, donate
        self.hoisted: set[int] = set()
        self.used: dict[int, int] = {}  # of those, which the loop reads: their number among what it is given
        self.computed: list[Value] = []
        for value in graph.needed():
            if value.op in (Op.CARRY, Op.XS):
                continue
            if all(o.number in self.hoisted for o in value.operands if isinstance(o, Value)):
                self.hoisted.add(value.number)
            elif value.op not in (Op.ROWS, Op.TRANSPOSE):
                self.computed.append(value)
        self.order = {value.number: k for k, value in enumerate(self.computed)}
        self.placed: dict[int, RowBlock] = {}
        self.home: dict[int, int] = {}  # a result -> the first concatenation it is a part of
        for value in self.computed:
            if value.op is Op.CONCAT:
                for part in value.operands:
                    if isinstance(part, Value) and part.number in self.order:
                        self.home.setdefault(part.number, value.number)
        self.stacks: list[Stack] = []
        self.work: list[tuple[Shape, bool]] = []
        self.numbers: list[float] = []
        self.before: list[str] = []
        self.body: list[str] = []
        self.bound: dict[str, str] = {}  # name of the loop's variable -> what it runs over
        self.carried: dict[int, RowBlock] = {}  # carries that a copy at the end of a step brings to their place

    # ------------------------------------------------------------------ where results go

    def plan(self) -> Plan:
        shifted = {root.detail[0] for root, _, _ in map(root_of, self.graph.outputs) if root.op is Op.CARRY}
        stack_of_carry = {k: self._new_stack(self.graph.inputs.carry[k], carry=k) for k in sorted(shifted)}
        carried = [root_of(value)[0] if is_whole(value) else value for value in self.graph.carry]
        for k, stack in stack_of_carry.items():
            self._assign(carried[k], _whole(Kind.STACK, stack, carried[k]))
        constants: dict[int, int] = {}
        for value in sorted(self.graph.outputs, key=lambda v: -root_of(v)[0].shape[0]):
            root = root_of(value)[0]
            if root.op in (Op.CARRY, Op.XS) or root.number in self.placed or root.number in constants:
                continue
            stack = self._new_stack(root)
            if not self._assign(root, _whole(Kind.STACK, stack, root)):
                constants[root.number] = stack
        outputs = []
        for value in self.graph.outputs:
            root, start, stop = root_of(value)
            if root.op is Op.CARRY:
                outputs.append(Output(Source.BEFORE, stack_of_carry[root.detail[0]], start, stop))
            elif root.op is Op.XS:
                outputs.append(Output(Source.INPUT, root.detail[0], start, stop))
            elif root.number in constants:
                outputs.append(Output(Source.STACK, constants[root.number], start, stop))
            else:
                target = self.placed[root.number]
                outputs.append(Output(Source.STACK, target.buffer.index, target.start + start, target.start + stop))
        ends = self._carry_ends(carried, stack_of_carry)
        if self.donate:
            self._donate_input()
        self._emit()
        for number, stack in constants.items():
            value = self.graph.values[number]
            self._copy(value, _whole(Kind.STACK, stack, value))
        source, hoisted = self._source(ends), [self.graph.values[number] for number in self.used]
        return Plan(source, self.stacks, self.work, self.numbers, outputs, hoisted, self.calls.names)

    def _new_stack(self, value: Value, carry: int | None = None) -> int:
        self.stacks.append(Stack(value.shape, value.boolean, carry))
        return len(self.stacks) - 1

    def _assign(self, value: Value, target: RowBlock) -> bool:
        """Say where a result goes, unless that is decided or it is no result of the loop."""
        if value.number not in self.order or value.number in self.placed:
            return False
        self.placed[value.number] = target
        if value.op is Op.CONCAT:  # its parts are written into it, where they are not written elsewhere
            start = 0
            for part in value.operands:
                assert isinstance(part, Value)
                if self.home.get(part.number) == value.number:
                    self._assign(part, target.inside(start, part.shape[0]))
                start += part.shape[0]
        return True

    def _carry_ends(self, carried: list[Value], stack_of_carry: dict[int, int]) -> list[str]:
        """Where each carry is found after a step; the next one alternates between two buffers."""
        ends = []
        for k, value in enumerate(carried):
            target = self.placed.get(value.number)
            if k not in stack_of_carry:
                if value.op is Op.CARRY and value.detail[0] == k:
                    ends.append(Buffer(Kind.CARRY, k).name)
                    continue
                if target is not None and target.buffer.kind is Kind.STACK:
                    ends.append(self._at(target))
                    continue
            kept = k in stack_of_carry
            whole = _whole(Kind.STACK, stack_of_carry[k], value) if kept else _whole(Kind.NEXT, k, value)
            if target != whole and not self._assign(value, whole):
                self.carried[k] = whole
            ends.append(self._at(whole))
        return ends

    def _donate_input(self) -> None:
        """Let outputs take the place of rows of the first input that nobody reads when they are written."""
        first = self.graph.inputs.xs[0]
        reads: list[Read] = []
        for k, value in enumerate(self.computed):
            for operand in value.operands:
                if isinstance(operand, Value) and memory_of(operand)[0] is first:
                    _, start, stop = memory_of(operand)
                    pointwise = value.op.is_pointwise and value.op is not Op.WHERE and is_straight(operand)
                    reads.append(Read(start, stop, k, pointwise and value.shape == operand.shape))

        def allowed(stack: int, start: int, overlapping: list[Read]) -> bool:
            written, rows = self._first_written(stack), (start, start + self.stacks[stack].shape[0])
            return all(
                read.when < written or (read.when == written and read.elementwise and (read.start, read.stop) == rows)
                for read in overlapping
            )

        donate_rows(self.graph, self.stacks, reads, allowed)

    def _first_written(self, stack: int) -> int:
        """The first instruction that writes to a stack."""
        buffer = Buffer(Kind.STACK, stack)
        into = (
            k for k, v in enumerate(self.computed) if v.number in self.placed and self.placed[v.number].buffer == buffer
        )
        return min(into, default=_END)

    # ------------------------------------------------------------------ the instructions

    def _emit(self) -> None:
        last = self._last_uses()
        free: dict[tuple[Shape, bool], list[int]] = {}
        for k, value in enumerate(self.computed):
            operands = [o for o in value.operands if isinstance(o, Value)]
            dying = {self._owner(o) for o in operands if last.get(self._owner(o)) == k}
            dying = {owner for owner in dying if owner in self.placed and self.placed[owner].buffer.kind is Kind.WORK}
            # in place where an element of the result needs that element alone
            early = value.op.is_pointwise
            keep = {self._owner(o) for o in operands[:2]} if value.op is Op.WHERE else set()
            keep |= {self._owner(o) for o in operands if self._is_elsewhere(o, value)}
            now = {owner for owner in dying if early and owner not in keep}
            self._release(now, free)
            if value.number not in self.placed:
                self._allocate(value, free)
            self._release(dying - now, free)
            if value.op is Op.CONCAT:
                self._emit_concat(value)
            else:
                names = [self._operand(o) for o in value.operands]
                self._line(value.op, names, self._at(self.placed[value.number]))
        for k, target in self.carried.items():
            self._copy(self.graph.carry[k], target)

    def _emit_concat(self, value: Value) -> None:
        start = 0
        for part in value.operands:
            assert isinstance(part, Value)
            target = self.placed[value.number].inside(start, part.shape[0])
            if self.placed.get(part.number) != target:
                self._copy(part, target)
            start += part.shape[0]

    def _allocate(self, value: Value, free: dict[tuple[Shape, bool], list[int]]) -> None:
        """Memory for a result, or for the whole of the concatenation that it is a part of."""
        whole, _ = self._whole_of(value)
        key = (whole.shape, whole.boolean)
        if free.get(key):
            buffer = free[key].pop()
        else:
            buffer = len(self.work)
            self.work.append(key)
        self._assign(whole, _whole(Kind.WORK, buffer, whole))

    def _whole_of(self, value: Value) -> tuple[Value, int]:
        """The outermost concatenation without a place that a result is a part of, and the row where it starts there."""
        start = 0
        while value.number in self.home and self.home[value.number] not in self.placed:
            around = self.graph.values[self.home[value.number]]
            for part in around.operands:
                if part is value:
                    break
                assert isinstance(part, Value)
                start += part.shape[0]
            value = around
        return value, start

    def _is_elsewhere(self, operand: Value, value: Value) -> bool:
        """Whether an element of a result that took the operand's memory would not stand where it is read."""
        root, start, _ = root_of(operand)
        if root.op is Op.TRANSPOSE or operand.shape != value.shape:
            return True
        target = self.placed.get(root.number)
        return target is not None and target.start + start != self._whole_of(value)[1]

    def _release(self, owners: set[int], free: dict[tuple[Shape, bool], list[int]]) -> None:
        for owner in sorted(owners):
            value = self.graph.values[owner]
            free.setdefault((value.shape, value.boolean), []).append(self.placed[owner].buffer.index)

    def _owner(self, value: Value) -> int:
        """The value that owns the memory in which another stands."""
        return self._owner_of(memory_of(value)[0].number)

    def _owner_of(self, number: int) -> int:
        while number in self.home:
            target, around = self.placed.get(number), self.placed.get(self.home[number])
            if target is not None and (around is None or target.buffer != around.buffer):
                break
            number = self.home[number]
        return number

    def _last_uses(self) -> dict[int, int]:
        """By owner, the last instruction that reads any of its memory."""
        last: dict[int, int] = {}
        for k, value in enumerate(self.computed):
            for operand in value.operands:
                if isinstance(operand, Value):
                    last[self._owner(operand)] = k
        for value in (*self.graph.outputs, *self.graph.carry):
            last[self._owner(value)] = _END
        return last

    # ------------------------------------------------------------------ names

    def _line(self, op: Op, operands: list[str], out: str) -> None:
        self.body.append(self.calls.call(op, operands, out))

    def _copy(self, value: Value, to: RowBlock) -> None:
        self.body.append(self.calls.copy(self._name(value), self._at(to)))

    def _operand(self, operand: Operand) -> str:
        if isinstance(operand, Value):
            return self._name(operand)
        known = [repr(number) for number in self.numbers]  # -0.0 is not 0.0
        if repr(float(operand)) not in known:
            self.numbers.append(float(operand))
            return f"k{len(known)}"
        return f"k{known.index(repr(float(operand)))}"

    def _name(self, value: Value) -> str:
        """The variable that holds a value, made on the way where it is not there yet."""
        if value.number in self.hoisted:
            return self._hoisted_name(value)
        if value.op is Op.TRANSPOSE:
            assert isinstance(value.operands[0], Value)
            return f"{self._name(value.operands[0])}.T"
        root, start, stop = root_of(value)
        if root.op is Op.TRANSPOSE:
            return f"{self._name(root)}[{start}:{stop}]"
        rows = root.shape[0]
        if root.op is Op.CARRY:
            name = Buffer(Kind.CARRY, root.detail[0]).name
            return name if stop - start == rows else f"{name}[{start}:{stop}]"
        if root.op is Op.XS:
            return self._at(RowBlock(Buffer(Kind.INPUT, root.detail[0]), start, stop - start, rows))
        return self._at(self.placed[root.number].inside(start, stop - start))

    def _hoisted_name(self, value: Value) -> str:
        if value.op is Op.SHARED:
            return Buffer(Kind.SHARED, value.detail[0]).name
        return Buffer(Kind.HOISTED, self.used.setdefault(value.number, len(self.used))).name

    def _at(self, target: RowBlock) -> str:
        """The variable for rows of some memory."""
        base, kind = target.buffer.name, target.buffer.kind
        if target.start == 0 and target.rows == self._base_rows(target):
            if kind in (Kind.INPUT, Kind.STACK):
                self.bound.setdefault(base, base.upper())
            return base
        name = f"{base}_{target.start}_{target.start + target.rows}"
        rows = f"{target.start}:{target.start + target.rows}"
        if kind in (Kind.INPUT, Kind.STACK):
            self.bound.setdefault(name, f"{base.upper()}[:, {rows}]")
            return name
        if kind is Kind.WORK:
            line = f"{name} = {base}[{rows}]"
            if line not in self.before:
                self.before.append(line)
            return name
        return f"{base}[{rows}]"

    def _base_rows(self, target: RowBlock) -> int:
        if target.buffer.kind is Kind.STACK:
            return self.stacks[target.buffer.index].shape[0]
        return target.total

    def _source(self, ends: list[str]) -> str:
        carries = range(len(ends))
        alternating = [k for k in carries if ends[k] == Buffer(Kind.NEXT, k).name]
        extra = len(self.work)
        for k in alternating:
            value = self.graph.inputs.carry[k]
            self.work += [(value.shape, value.boolean)] * 2
        head = ["def loop(each, carry, xs, shared, hoisted, stacks, work, numbers):"]
        unpack = {
            "carry": [f"c{k}" for k in carries],
            "xs": [f"X{k}" for k in range(len(self.graph.inputs.xs))],
            "shared": [f"s{k}" for k in range(len(self.graph.inputs.shared))],
            "hoisted": [Buffer(Kind.HOISTED, k).name for k in range(len(self.used))],
            "stacks": [f"Y{k}" for k in range(len(self.stacks))],
            "work": [f"w{k}" for k in range(len(self.work))],
            "numbers": [f"k{k}" for k in range(len(self.numbers))],
        }
        lines = [f"{', '.join(names)}, = {source}" for source, names in unpack.items() if names]
        lines += [f"n{k}, m{k} = w{extra + 2 * i}, w{extra + 2 * i + 1}" for i, k in enumerate(alternating)]
        lines += self.before
        if self.bound:
            runs = ", ".join(f"each({array})" for array in self.bound.values())
            lines.append(f"for {', '.join(self.bound)}, in zip({runs}):")
        else:
            lines.append("for _ in each(X0):")
        moves = [(f"c{k}", end) for k, end in enumerate(ends) if end != f"c{k}"]
        moves += [(f"n{k}", f"m{k}") for k in alternating] + [(f"m{k}", f"n{k}") for k in alternating]
        body = list(self.body)
        if moves:
            body.append(f"{', '.join(a for a, _ in moves)} = {', '.join(b for _, b in moves)}")
        lines += [f"    {line}" for line in body or ["pass"]]
        lines.append(f"return [{', '.join(f'c{k}' for k in carries)}]")
        return "\n".join([*head, *(f"    {line}" for line in lines)]) + "\n"
