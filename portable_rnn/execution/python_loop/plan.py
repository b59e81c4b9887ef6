"""Plan where each result of a recorded step goes, and write the loop over time as straight-line Python.

A result is written where it is wanted in the first place: into its row of an output's stack (T, ...), into its row
block of a concatenation, into the memory of an input that the caller gives away, or into a workspace that is reused as
soon as nobody reads it any more. The loop then allocates nothing, and each operation costs one call of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..graph.buffers import Place, Stack, is_straight, is_whole, memory_of, root_of
from ..graph.trace import POINTWISE, Graph, Value

__all__ = ["Dialect", "Plan", "make_plan"]

_END = 1 << 30  # later than every instruction


class Dialect(Protocol):
    """How a library's calls are written; `names` is what they refer to."""

    names: dict[str, Any]

    def call(self, op: str, operands: list[str], out: str) -> str:
        """One line of Python that computes `op` into `out`; "copy" is one of them."""

    def expression(self, op: str, operands: list[str], value: Value) -> str:
        """The same as an expression that makes a new array: what is done once, before the loop."""


@dataclass
class Plan:
    """The loop and what it needs.

    Attributes
    ----------
    source : str
        ``def loop(each, carry, xs, shared, stacks, work, numbers)`` returns the final carry.
    stacks : list of Stack
    work : list of (shape, boolean)
    numbers : list of float
    outputs : list of ("stack" | "before" | "input", index, start, stop)
        Each output as rows of a stack, of the same stack one step earlier, or of an input.
    """

    source: str
    stacks: list[Stack]
    work: list[tuple[tuple[int, ...], bool]]
    numbers: list[float]
    outputs: list[tuple[str, int, int, int]]
    names: dict[str, Any] = field(default_factory=dict)

    def compiled(self) -> Callable[..., Any]:
        """The loop as a function."""
        scope = dict(self.names)
        exec(compile(self.source, "<time loop>", "exec"), scope)
        loop: Callable[..., Any] = scope["loop"]
        return loop


def make_plan(graph: Graph, dialect: Dialect, *, donate: bool) -> Plan:
    """Plan a step's loop.

    Parameters
    ----------
    graph : Graph
    dialect : Dialect
    donate : bool
        The caller gives the memory of the first input away.
    """
    return _Planner(graph, dialect, donate).plan()


class _Planner:
    def __init__(self, graph: Graph, dialect: Dialect, donate: bool) -> None:
        self.graph, self.dialect, self.donate = graph, dialect, donate
        self.hoisted: set[int] = set()
        self.computed: list[Value] = []
        for value in graph.needed():
            if value.op in ("carry", "xs"):
                continue
            if all(o.number in self.hoisted for o in value.operands if isinstance(o, Value)):
                self.hoisted.add(value.number)
            elif value.op not in ("rows", "transpose"):
                self.computed.append(value)
        self.order = {value.number: k for k, value in enumerate(self.computed)}
        self.places: dict[int, Place] = {}
        self.home: dict[int, int] = {}  # a result -> the first concatenation it is a part of
        for value in self.computed:
            if value.op == "concat":
                for part in value.operands:
                    if isinstance(part, Value) and part.number in self.order:
                        self.home.setdefault(part.number, value.number)
        self.stacks: list[Stack] = []
        self.work: list[tuple[tuple[int, ...], bool]] = []
        self.numbers: list[float] = []
        self.before: list[str] = []
        self.body: list[str] = []
        self.bound: dict[str, str] = {}  # name of the loop's variable -> what it runs over
        self.named: dict[int, str] = {}
        self.carried: dict[int, Place] = {}  # carries that a copy at the end of a step brings to their place

    # ------------------------------------------------------------------ where results go

    def plan(self) -> Plan:
        shifted = {root.detail[0] for root, _, _ in map(root_of, self.graph.outputs) if root.op == "carry"}
        stack_of_carry = {k: self._new_stack(self.graph.inputs["carry"][k], carry=k) for k in sorted(shifted)}
        carried = [root_of(value)[0] if is_whole(value) else value for value in self.graph.carry]
        for k, stack in stack_of_carry.items():
            self._place(carried[k], self._whole(f"y{stack}", carried[k]))
        constants: dict[int, int] = {}
        for value in sorted(self.graph.outputs, key=lambda v: -root_of(v)[0].shape[0]):
            root = root_of(value)[0]
            if root.op in ("carry", "xs") or root.number in self.places or root.number in constants:
                continue
            stack = self._new_stack(root)
            if not self._place(root, self._whole(f"y{stack}", root)):
                constants[root.number] = stack
        outputs = []
        for value in self.graph.outputs:
            root, start, stop = root_of(value)
            if root.op == "carry":
                outputs.append(("before", stack_of_carry[root.detail[0]], start, stop))
            elif root.op == "xs":
                outputs.append(("input", root.detail[0], start, stop))
            elif root.number in constants:
                outputs.append(("stack", constants[root.number], start, stop))
            else:
                place = self.places[root.number]
                outputs.append(("stack", int(place.base[1:]), place.start + start, place.start + stop))
        ends = self._carry_ends(carried, stack_of_carry)
        if self.donate:
            self._give_away()
        self._emit()
        for number, stack in constants.items():
            value = self.graph.values[number]
            self._line("copy", [self._name(value)], self._at(self._whole(f"y{stack}", value)))
        return Plan(self._source(ends), self.stacks, self.work, self.numbers, outputs, self.dialect.names)

    @staticmethod
    def _whole(base: str, value: Value) -> Place:
        return Place(base, 0, value.shape[0], value.shape[0])

    def _new_stack(self, value: Value, carry: int | None = None) -> int:
        self.stacks.append(Stack(value.shape, value.boolean, carry))
        return len(self.stacks) - 1

    def _place(self, value: Value, place: Place) -> bool:
        """Say where a result goes, unless that is settled or it is no result of the loop."""
        if value.number not in self.order or value.number in self.places:
            return False
        self.places[value.number] = place
        if value.op == "concat":  # its parts are written into it, where they are not written elsewhere
            start = 0
            for part in value.operands:
                assert isinstance(part, Value)
                if self.home.get(part.number) == value.number:
                    self._place(part, place.inside(start, part.shape[0]))
                start += part.shape[0]
        return True

    def _carry_ends(self, carried: list[Value], stack_of_carry: dict[int, int]) -> list[str]:
        """Where each carry is found after a step; "n0" alternates between two buffers."""
        ends = []
        for k, value in enumerate(carried):
            place = self.places.get(value.number)
            if k not in stack_of_carry:
                if value.op == "carry" and value.detail[0] == k:
                    ends.append(f"c{k}")
                    continue
                if place is not None and place.base[0] == "y":
                    ends.append(self._at(place))
                    continue
            whole = self._whole(f"y{stack_of_carry[k]}" if k in stack_of_carry else f"n{k}", value)
            if place != whole and not self._place(value, whole):
                self.carried[k] = whole
            ends.append(self._at(whole))
        return ends

    def _give_away(self) -> None:
        """Let outputs take the place of rows of the first input that nobody reads when they are written."""
        first = self.graph.inputs["xs"][0]
        if any(memory_of(value)[0] is first for value in (*self.graph.outputs, *self.graph.carry)):
            return
        reads: list[tuple[int, int, int, bool]] = []  # (start, stop, when, whether only that element is needed)
        for k, value in enumerate(self.computed):
            for operand in value.operands:
                if isinstance(operand, Value) and memory_of(operand)[0] is first:
                    _, start, stop = memory_of(operand)
                    pointwise = value.op in POINTWISE and value.op != "where" and is_straight(operand)
                    reads.append((start, stop, k, pointwise and value.shape == operand.shape))
        taken: list[tuple[int, int]] = []
        writes = {s: min((k for k, v in self._written(s)), default=_END) for s in range(len(self.stacks))}
        for s in sorted(range(len(self.stacks)), key=lambda s: -self.stacks[s].shape[0]):
            stack = self.stacks[s]
            rows = stack.shape[0]
            if stack.carry is not None or stack.boolean or stack.shape[1:] != first.shape[1:]:
                continue
            for start in sorted({0, *(r[0] for r in reads), *(t[1] for t in taken)}):
                stop = start + rows
                if stop > first.shape[0] or any(a < stop and start < b for a, b in taken):
                    continue
                if all(
                    when < writes[s] or (when == writes[s] and same and (a, b) == (start, stop))
                    for a, b, when, same in reads
                    if a < stop and start < b
                ):
                    stack.given = start
                    taken.append((start, stop))
                    break

    def _written(self, stack: int) -> list[tuple[int, Value]]:
        return [
            (k, v)
            for k, v in enumerate(self.computed)
            if v.number in self.places and self.places[v.number].base == f"y{stack}"
        ]

    # ------------------------------------------------------------------ the instructions

    def _emit(self) -> None:
        last = self._last_uses()
        free: dict[Any, list[int]] = {}
        for k, value in enumerate(self.computed):
            operands = [o for o in value.operands if isinstance(o, Value)]
            dying = {self._owner(o) for o in operands if last.get(self._owner(o)) == k}
            dying = {owner for owner in dying if owner in self.places and self.places[owner].base[0] == "w"}
            # in place where an element of the result needs that element alone
            early = value.op in POINTWISE
            keep = {self._owner(o) for o in operands[:2]} if value.op == "where" else set()
            keep |= {self._owner(o) for o in operands if self._is_elsewhere(o, value)}
            now = {owner for owner in dying if early and owner not in keep}
            self._release(now, free)
            if value.number not in self.places:
                self._allocate(value, free)
            self._release(dying - now, free)
            if value.op == "concat":
                self._emit_concat(value)
            else:
                names = [self._operand(o) for o in value.operands]
                self._line(value.op, names, self._at(self.places[value.number]))
        for k, place in self.carried.items():
            self._line("copy", [self._name(self.graph.carry[k])], self._at(place))

    def _emit_concat(self, value: Value) -> None:
        start = 0
        for part in value.operands:
            assert isinstance(part, Value)
            place = self.places[value.number].inside(start, part.shape[0])
            if self.places.get(part.number) != place:
                self._line("copy", [self._name(part)], self._at(place))
            start += part.shape[0]

    def _allocate(self, value: Value, free: dict[Any, list[int]]) -> None:
        """Memory for a result, or for the whole of the concatenation that it is a part of."""
        whole, _ = self._whole_of(value)
        key = (whole.shape, whole.boolean)
        if free.get(key):
            buffer = free[key].pop()
        else:
            buffer = len(self.work)
            self.work.append(key)
        self._place(whole, self._whole(f"w{buffer}", whole))

    def _whole_of(self, value: Value) -> tuple[Value, int]:
        """The outermost concatenation without a place that a result is a part of, and the row where it starts there."""
        start = 0
        while value.number in self.home and self.home[value.number] not in self.places:
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
        if root.op == "transpose" or operand.shape != value.shape:
            return True
        place = self.places.get(root.number)
        return place is not None and place.start + start != self._whole_of(value)[1]

    def _release(self, owners: set[int], free: dict[Any, list[int]]) -> None:
        for owner in sorted(owners):
            value = self.graph.values[owner]
            free.setdefault((value.shape, value.boolean), []).append(int(self.places[owner].base[1:]))

    def _owner(self, value: Value) -> int:
        """The value that owns the memory in which another stands."""
        return self._owner_of(memory_of(value)[0].number)

    def _owner_of(self, number: int) -> int:
        while number in self.home:
            place, around = self.places.get(number), self.places.get(self.home[number])
            if place is not None and (around is None or place.base != around.base):
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

    def _line(self, op: str, operands: list[str], out: str) -> None:
        self.body.append(self.dialect.call(op, operands, out))

    def _operand(self, operand: Any) -> str:
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
        if value.op == "transpose":
            assert isinstance(value.operands[0], Value)
            return f"{self._name(value.operands[0])}.T"
        root, start, stop = root_of(value)
        if root.op == "transpose":
            return f"{self._name(root)}[{start}:{stop}]"
        rows = root.shape[0]
        if root.op == "carry":
            name = f"c{root.detail[0]}"
            return name if stop - start == rows else f"{name}[{start}:{stop}]"
        if root.op == "xs":
            return self._at(Place(f"x{root.detail[0]}", start, stop - start, rows))
        return self._at(self.places[root.number].inside(start, stop - start))

    def _hoisted_name(self, value: Value) -> str:
        if value.number in self.named:
            return self.named[value.number]
        if value.op == "shared":
            name = f"s{value.detail[0]}"
        else:
            name = f"h{value.number}"
            operands = [self._operand(o) for o in value.operands]
            if value.op == "float":
                operands.append(self._operand(1.0))  # of the loop's dtype
            self.before.append(f"{name} = {self.dialect.expression(value.op, operands, value)}")
        self.named[value.number] = name
        return name

    def _at(self, place: Place) -> str:
        """The variable for rows of some memory."""
        base, kind = place.base, place.base[0]
        if place.start == 0 and place.rows == self._base_rows(place):
            if kind in "xy":
                self.bound.setdefault(base, base.upper())
            return base
        name = f"{base}_{place.start}_{place.start + place.rows}"
        rows = f"{place.start}:{place.start + place.rows}"
        if kind in "xy":
            self.bound.setdefault(name, f"{base.upper()}[:, {rows}]")
            return name
        if kind == "w":
            line = f"{name} = {base}[{rows}]"
            if line not in self.before:
                self.before.append(line)
            return name
        return f"{base}[{rows}]"

    def _base_rows(self, place: Place) -> int:
        if place.base[0] == "y":
            return self.stacks[int(place.base[1:])].shape[0]
        return place.total

    def _source(self, ends: list[str]) -> str:
        carries = range(len(ends))
        alternating = [k for k in carries if ends[k] == f"n{k}"]
        extra = len(self.work)
        for k in alternating:
            value = self.graph.inputs["carry"][k]
            self.work += [(value.shape, value.boolean)] * 2
        head = ["def loop(each, carry, xs, shared, stacks, work, numbers):"]
        unpack = {
            "carry": [f"c{k}" for k in carries],
            "xs": [f"X{k}" for k in range(len(self.graph.inputs["xs"]))],
            "shared": [f"s{k}" for k in range(len(self.graph.inputs["shared"]))],
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
