"""Cut a recorded step into stages: products, sums over rows, and kernels that do all the pointwise work between them.

Everything that has to be in memory (outputs, the carry, operands of products) is a block of rows. A kernel runs over
the elements of one row block: a row block of a pointwise result needs the same row block of its operands, so slices and
concatenations disappear into which block is loaded and stored. What remains is a list of scalar operations: one loop of
machine code, or one kernel on CuPy.
"""

from __future__ import annotations

import math
from typing import Any

from .buffers import Place, Stack, root_of
from .instructions import Access, Kernel, Product, RowSum, Stages, Term, rows_read, writes
from .trace import POINTWISE, Graph, Untraceable, Value

__all__ = ["make_stages"]

_MOST_STATEMENTS = 400  # a step of more is cut into too many row blocks to be one kernel


def make_stages(graph: Graph, *, donate: bool) -> Stages:
    """Cut a step into stages.

    Raises
    ------
    Untraceable
        Its row blocks don't fit together, or a product has a left side that is not shared.
    """
    extra: list[Value] = []
    while True:
        try:
            return _Cutter(graph, donate, extra).cut()
        except _Again as again:
            extra.append(again.value)


class _Cutter:
    def __init__(self, graph: Graph, donate: bool, extra: list[Value]) -> None:
        self.graph, self.donate, self.extra = graph, donate, extra
        self.hoisted: dict[int, int] = {}
        self.constant: set[int] = set()
        self.level: dict[int, int] = {}
        self.stacks: list[Stack] = []
        self.work: list[tuple[tuple[int, ...], bool]] = []
        self.places: dict[int, Place] = {}
        self.kept: dict[int, Value] = {}  # what has to be in memory
        self.needed = graph.needed()
        self.terms = graph.terms()
        self.batch = graph.inputs["carry"][0].shape[-1]  # kernels, products and sums run over as many columns
        for value in self.needed:
            operands = [o for o in value.operands if isinstance(o, Value)]
            if value.op not in ("carry", "xs") and all(o.number in self.constant for o in operands):
                self.constant.add(value.number)
                if value.op == "float":
                    raise Untraceable("a constant whose dtype would not be the loop's")
            below = max((self.level[o.number] for o in operands), default=0)
            self.level[value.number] = below + self._is_barrier(value)

    def cut(self) -> Stages:
        outputs, ends = self._outputs_and_ends()
        for value in self.needed:
            if self._is_barrier(value):
                self._keep(value)
                for operand in value.operands:
                    if isinstance(operand, Value):
                        self._keep(operand)
        for operand in (*self.extra, *(operand for term in self.terms for operand in term.operands)):
            if isinstance(operand, Value):
                self._keep(operand)
        kernels: dict[int, list[Kernel]] = {}
        for level in range(max(self.level.values()) + 1):
            kernels[level] = self._kernels_of(level)
        stages: list[Any] = []
        for level, own in kernels.items():
            for value in self.needed:
                if self._is_barrier(value) and self.level[value.number] == level:
                    if value.op == "matmul":
                        stages.append(self._product(value))
                    else:
                        (x,) = value.operands
                        stages.append(RowSum(self._place_of(x), self.places[value.number]))
            stages += own
        loaded = {access.array for own in kernels.values() for kernel in own for access in kernel.loads}
        if any(stage.left in loaded for stage in stages if isinstance(stage, Product)):
            raise Untraceable("a matrix that is also an operand element by element")
        hoisted = sorted(self.hoisted, key=lambda number: self.hoisted[number])
        found = Stages(
            stages,
            self.stacks,
            self.work,
            outputs,
            ends,
            [self.graph.values[number] for number in hoisted],
            [self._term(value) for value in self.terms],
        )
        if self.donate:
            self._give_away(found)
        return found

    def _is_barrier(self, value: Value) -> bool:
        """Whether it is computed between two kernels."""
        return value.op in ("matmul", "sum") and value.number not in self.constant

    # ------------------------------------------------------------------ what is in memory, and where

    def _outputs_and_ends(self) -> tuple[list[tuple[str, int, int, int]], list[str]]:
        shifted = {root.detail[0] for root, _, _ in map(root_of, self.graph.outputs) if root.op == "carry"}
        stack_of_carry = {k: self._new_stack(self.graph.inputs["carry"][k], k) for k in sorted(shifted)}
        ends = []
        for k, value in enumerate(self.graph.carry):
            if k in stack_of_carry:
                if not self._put(value, f"y{stack_of_carry[k]}"):
                    raise Untraceable("a carry that is kept twice")
                ends.append(f"y{stack_of_carry[k]}")
        outputs = []
        for value in self.graph.outputs:
            root, start, stop = root_of(value)
            if root.op == "carry":
                outputs.append(("before", stack_of_carry[root.detail[0]], start, stop))
            elif root.op == "xs":
                outputs.append(("input", root.detail[0], start, stop))
            else:
                if value.number not in self.places:
                    self._put(value, f"y{self._new_stack(value)}")
                place = self.places[value.number]
                if place.base[0] != "y":
                    raise Untraceable("an output in other memory")
                outputs.append(("stack", int(place.base[1:]), place.start, place.start + place.rows))
        ends = []
        for k, value in enumerate(self.graph.carry):
            if value.op == "carry" and value.detail[0] == k and k not in stack_of_carry:
                ends.append(f"c{k}")
                continue
            if value.number not in self.places:
                self._put(value, f"n{k}")
            place = self.places[value.number]
            if place.base[0] == "n" and place.base != f"n{k}":
                raise Untraceable("one array for two carries")
            ends.append(place.base)
        return outputs, ends

    def _new_stack(self, value: Value, carry: int | None = None) -> int:
        self.stacks.append(Stack(value.shape, value.boolean, carry))
        return len(self.stacks) - 1

    def _put(self, value: Value, base: str) -> bool:
        """Keep a value in memory of its own."""
        if value.op in ("carry", "xs") or len(value.shape) != 2 or value.shape[1] != self.batch:
            raise Untraceable("an output that is an input, or not as wide as the carry")
        if value.number in self.places:
            return False
        self.places[value.number] = Place(base, 0, value.shape[0], value.shape[0])
        self.kept[value.number] = value
        return True

    def _keep(self, value: Value) -> None:
        """See that an operand of a product or a sum, or a result, is in memory."""
        root, _, _ = root_of(value)
        if value.op == "transpose" or root.number in self.constant or root.op in ("carry", "xs"):
            return
        if value.number not in self.places and root.number not in self.places:
            self.work.append((value.shape, value.boolean))
            self._put(value, f"w{len(self.work) - 1}")

    def _place_of(self, value: Any) -> Place:
        """Where a value is, on its own or as rows of what is kept."""
        assert isinstance(value, Value)
        if value.shape[1] != self.batch:
            raise Untraceable("an operand that is not as wide as the carry")
        if value.number in self.places:
            return self.places[value.number]
        root, start, stop = root_of(value)
        if root.number in self.places:
            return self.places[root.number].inside(start, stop - start)
        if root.op in ("carry", "xs"):
            return Place(f"{root.op[0]}{root.detail[0]}", start, stop - start, root.shape[0])
        raise Untraceable("an operand that is not in memory")

    def _product(self, value: Value) -> Product:
        left, right = value.operands
        assert isinstance(left, Value)
        transposed = left.op == "transpose"
        (matrix,) = left.operands if transposed else (left,)
        if not isinstance(matrix, Value) or matrix.number not in self.constant:
            raise Untraceable("a product whose left side changes from step to step")
        return Product(self._constant_name(matrix), transposed, self._place_of(right), self.places[value.number])

    def _term(self, value: Value) -> Term:
        left, *right = [self._place_of(operand) for operand in value.operands]
        return Term(left, right[0] if right else None)

    def _constant_name(self, value: Value) -> str:
        if value.op == "shared":
            return f"s{value.detail[0]}"
        number = self.hoisted.setdefault(value.number, len(self.hoisted))
        return f"h{number}"

    # ------------------------------------------------------------------ kernels

    def _kernels_of(self, level: int) -> list[Kernel]:
        """What has to be computed at a level, results of one row by themselves."""
        own = [v for v in self.kept.values() if self.level[v.number] == level and not self._is_barrier(v)]
        groups = [[v for v in own if v.shape[0] == 1], [v for v in own if v.shape[0] > 1]]
        return [_Filler(self, level, group).fill() for group in groups if group]

    def _give_away(self, found: Stages) -> None:
        """Let outputs take the place of rows of the first input that no later stage reads.

        Within a kernel an element is read before it is written, and no other element is looked at.
        """
        first = self.graph.inputs["xs"][0]
        if any(root_of(value)[0] is first for value in (*self.graph.outputs, *self.graph.carry)):
            return
        reads = [(*rows, k) for k, stage in enumerate(found.stages) for rows in rows_read(stage, "x0")]
        taken: list[tuple[int, int]] = []
        for s in sorted(range(len(self.stacks)), key=lambda s: -self.stacks[s].shape[0]):
            stack = self.stacks[s]
            writers = [k for k, stage in enumerate(found.stages) if writes(stage, f"y{s}")]
            if stack.carry is not None or stack.boolean or stack.shape[1:] != first.shape[1:] or len(writers) != 1:
                continue
            kernel = found.stages[writers[0]]
            if not isinstance(kernel, Kernel) or any(rows_read(stage, f"y{s}") for stage in found.stages):
                continue
            for start in sorted({0, *(r[0] for r in reads), *(t[1] for t in taken)}):
                stop = start + stack.shape[0]
                if stop > first.shape[0] or start % kernel.rows or any(a < stop and start < b for a, b in taken):
                    continue
                if all(k <= writers[0] for a, b, k in reads if a < stop and start < b):
                    stack.given = start
                    taken.append((start, stop))
                    break


class _Again(Exception):  # noqa: N818
    """An earlier level has to keep one more value."""

    def __init__(self, value: Value) -> None:
        self.value = value


class _Filler:
    """Write one kernel: the row blocks of some values, and all that they need."""

    def __init__(self, cutter: _Cutter, level: int, group: list[Value]) -> None:
        self.cutter, self.level, self.group = cutter, level, group
        self.kernel = Kernel(self._rows())
        self.known: dict[tuple[int, int], Any] = {}

    def _rows(self) -> int:
        """The largest row block of which all that the kernel touches is made up."""
        rows, stack, seen = 0, list(self.group), set[int]()
        single = self.group[0].shape[0] == 1
        while stack:
            value = stack.pop()
            if value.number in seen:
                continue
            seen.add(value.number)
            if value.shape[0] > 1 or single:
                rows = math.gcd(rows, value.shape[0], *(value.detail if value.op == "rows" else ()))
            if value.op not in ("matmul", "sum"):
                stack += [operand for operand in value.operands if isinstance(operand, Value)]
        return rows

    def fill(self) -> Kernel:
        """The kernel."""
        rows = self.kernel.rows
        for value in self.group:
            place = self.cutter.places[value.number]
            if place.start % rows:
                raise Untraceable("row blocks that don't fit")
            for block in range(value.shape[0] // rows):
                name = self._number(value, block, stored=True)
                self.kernel.stores.append((Access(place.base, place.start // rows + block), name))
        return self.kernel

    def _number(self, value: Any, block: int, *, stored: bool = False) -> Any:
        """The name of an element of a row block."""
        if not isinstance(value, Value):
            return float(value)
        key = (value.number, block)
        if key not in self.known:
            self.known[key] = self._made(value, block, stored)
            if len(self.kernel.statements) > _MOST_STATEMENTS:
                raise Untraceable("too many row blocks")
        return self.known[key]

    def _made(self, value: Value, block: int, stored: bool) -> Any:
        rows = self.kernel.rows
        if value.op == "fill":
            return float(value.operands[0])  # type: ignore[arg-type]
        if value.number in self.cutter.constant:
            return self._load(self.cutter._constant_name(value), value, block)
        if value.number in self.cutter.places and not stored:
            place = self.cutter.places[value.number]
            if self.cutter.level[value.number] < self.level or value.op in ("matmul", "sum"):
                if place.start % rows:
                    raise Untraceable("row blocks that don't fit")
                return self._load(place.base, value, place.start // rows + block)
        if value.op in ("carry", "xs"):
            return self._load(f"{value.op[0]}{value.detail[0]}", value, block)
        if value.op in ("rows", "concat") and value.shape[0] == 1 < rows:
            raise Untraceable("one row out of several, for all rows")
        if value.op == "rows":
            start = value.detail[0]
            if start % rows:
                raise Untraceable("row blocks that don't fit")
            return self._number(value.operands[0], block + start // rows)
        if value.op == "concat":
            for part in value.operands:
                assert isinstance(part, Value)
                if part.shape[0] % rows:
                    raise Untraceable("row blocks that don't fit")
                if block < part.shape[0] // rows:
                    return self._number(part, block)
                block -= part.shape[0] // rows
        if value.op not in POINTWISE:
            raise Untraceable(f"{value.op} inside a kernel")
        if self.cutter.level[value.number] < self.level:
            raise _Again(value)
        operands = []
        for operand in value.operands:
            whole = not isinstance(operand, Value) or operand.shape[0] == value.shape[0]
            operands.append(self._number(operand, block if whole else 0))
        name = f"v{len(self.kernel.statements)}"
        self.kernel.statements.append((name, value.op, tuple(operands)))
        return name

    def _load(self, array: str, value: Value, block: int) -> str:
        if value.ndim != 2:
            raise Untraceable("an array that is no matrix")
        spread = ""
        if value.shape[0] == 1 and self.kernel.rows > 1:
            spread, block = "row", 0
        if value.shape[1] == 1 and self.cutter.batch > 1:
            if spread:
                raise Untraceable("a single number as an array")
            spread = "column"
        if not spread and value.shape[0] % self.kernel.rows:
            raise Untraceable("row blocks that don't fit")
        access = Access(array, block, spread)
        return self.kernel.loads.setdefault(access, f"a{len(self.kernel.loads)}")
