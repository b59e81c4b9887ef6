"""Cut a recorded step into products, sums over rows, and kernels that do all the pointwise work between them.

Everything that has to be in memory (outputs, the carry, operands of products) is a block of rows. A kernel runs over
the elements of one row block: a row block of a pointwise result needs the same row block of its operands, so slices and
concatenations disappear into which block is loaded and stored. What remains is a list of scalar operations: one loop of
machine code, or one kernel on CuPy.
"""

from __future__ import annotations

import math

from .buffers import Buffer, Kind, Output, RowBlock, Source, Stack, root_of
from .instructions import Access, CutGraph, Instruction, Kernel, Operand, Product, RowSum, Spread, Statement, Term
from .memory import donate_input
from .operations import Op
from .trace import Graph, Shape, Untraceable, Value

__all__ = ["cut"]

_MOST_STATEMENTS = 400  # a step of more is cut into too many row blocks to be one kernel


def cut(graph: Graph, *, donate: bool) -> CutGraph:
    """Cut a step into instructions.

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
        self.work: list[tuple[Shape, bool]] = []
        self.placed: dict[int, RowBlock] = {}
        self.kept: dict[int, Value] = {}  # what has to be in memory
        self.needed = graph.needed()
        self.terms = graph.terms()
        self.batch = graph.inputs.carry[0].shape[-1]  # kernels, products and sums run over as many columns
        for value in self.needed:
            operands = [o for o in value.operands if isinstance(o, Value)]
            if value.op not in (Op.CARRY, Op.XS) and all(o.number in self.constant for o in operands):
                self.constant.add(value.number)
            below = max((self.level[o.number] for o in operands), default=0)
            self.level[value.number] = below + self._is_barrier(value)

    def cut(self) -> CutGraph:
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
        instructions: list[Instruction] = []
        for level, own in kernels.items():
            for value in self.needed:
                if self._is_barrier(value) and self.level[value.number] == level:
                    if value.op is Op.MATMUL:
                        instructions.append(self._product(value))
                    else:
                        (x,) = value.operands
                        instructions.append(RowSum(self._rows_of(x), self.placed[value.number]))
            instructions += own
        loaded = {access.buffer for own in kernels.values() for kernel in own for access in kernel.loads}
        if any(made.left in loaded for made in instructions if isinstance(made, Product)):
            raise Untraceable("a matrix that is also an operand element by element")
        hoisted = sorted(self.hoisted, key=lambda number: self.hoisted[number])
        found = CutGraph(
            instructions,
            self.stacks,
            self.work,
            outputs,
            ends,
            [self.graph.values[number] for number in hoisted],
            [self._term(value) for value in self.terms],
        )
        if self.donate:
            donate_input(self.graph, found)
        return found

    def _is_barrier(self, value: Value) -> bool:
        """Whether it is computed between two kernels."""
        return value.op in (Op.MATMUL, Op.SUM) and value.number not in self.constant

    # ------------------------------------------------------------------ what is in memory, and where

    def _outputs_and_ends(self) -> tuple[list[Output], list[Buffer]]:
        shifted = {root.detail[0] for root, _, _ in map(root_of, self.graph.outputs) if root.op is Op.CARRY}
        stack_of_carry = {k: self._new_stack(self.graph.inputs.carry[k], k) for k in sorted(shifted)}
        for k, value in enumerate(self.graph.carry):
            if k in stack_of_carry and not self._put(value, Buffer(Kind.STACK, stack_of_carry[k])):
                raise Untraceable("a carry that is kept twice")
        outputs = []
        for value in self.graph.outputs:
            root, start, stop = root_of(value)
            if root.op is Op.CARRY:
                outputs.append(Output(Source.BEFORE, stack_of_carry[root.detail[0]], start, stop))
            elif root.op is Op.XS:
                outputs.append(Output(Source.INPUT, root.detail[0], start, stop))
            else:
                if value.number not in self.placed:
                    self._put(value, Buffer(Kind.STACK, self._new_stack(value)))
                target = self.placed[value.number]
                if target.buffer.kind is not Kind.STACK:
                    raise Untraceable("an output in other memory")
                outputs.append(Output(Source.STACK, target.buffer.index, target.start, target.start + target.rows))
        ends = []
        for k, value in enumerate(self.graph.carry):
            if value.op is Op.CARRY and value.detail[0] == k and k not in stack_of_carry:
                ends.append(Buffer(Kind.CARRY, k))
                continue
            if value.number not in self.placed:
                self._put(value, Buffer(Kind.NEXT, k))
            target = self.placed[value.number]
            if target.buffer.kind is Kind.NEXT and target.buffer.index != k:
                raise Untraceable("one array for two carries")
            ends.append(target.buffer)
        return outputs, ends

    def _new_stack(self, value: Value, carry: int | None = None) -> int:
        self.stacks.append(Stack(value.shape, value.boolean, carry))
        return len(self.stacks) - 1

    def _put(self, value: Value, buffer: Buffer) -> bool:
        """Keep a value in memory of its own."""
        if value.op in (Op.CARRY, Op.XS) or len(value.shape) != 2 or value.shape[1] != self.batch:
            raise Untraceable("an output that is an input, or not as wide as the carry")
        if value.number in self.placed:
            return False
        self.placed[value.number] = RowBlock.whole(buffer, value.shape[0])
        self.kept[value.number] = value
        return True

    def _keep(self, value: Value) -> None:
        """See that an operand of a product or a sum, or a result, is in memory."""
        root, _, _ = root_of(value)
        if value.op is Op.TRANSPOSE or root.number in self.constant or root.op in (Op.CARRY, Op.XS):
            return
        if value.number not in self.placed and root.number not in self.placed:
            self.work.append((value.shape, value.boolean))
            self._put(value, Buffer(Kind.WORK, len(self.work) - 1))

    def _rows_of(self, value: object) -> RowBlock:
        """Where a value is, on its own or as rows of what is kept."""
        assert isinstance(value, Value)
        if value.shape[1] != self.batch:
            raise Untraceable("an operand that is not as wide as the carry")
        if value.number in self.placed:
            return self.placed[value.number]
        root, start, stop = root_of(value)
        if root.number in self.placed:
            return self.placed[root.number].inside(start, stop - start)
        if root.op in (Op.CARRY, Op.XS):
            return RowBlock(_argument(root), start, stop - start, root.shape[0])
        raise Untraceable("an operand that is not in memory")

    def _product(self, value: Value) -> Product:
        left, right = value.operands
        assert isinstance(left, Value)
        transposed = left.op is Op.TRANSPOSE
        (matrix,) = left.operands if transposed else (left,)
        if not isinstance(matrix, Value) or matrix.number not in self.constant:
            raise Untraceable("a product whose left side changes from step to step")
        return Product(self._constant(matrix), transposed, self._rows_of(right), self.placed[value.number])

    def _term(self, value: Value) -> Term:
        left, *right = [self._rows_of(operand) for operand in value.operands]
        return Term(left, right[0] if right else None)

    def _constant(self, value: Value) -> Buffer:
        if value.op is Op.SHARED:
            return Buffer(Kind.SHARED, value.detail[0])
        return Buffer(Kind.HOISTED, self.hoisted.setdefault(value.number, len(self.hoisted)))

    # ------------------------------------------------------------------ kernels

    def _kernels_of(self, level: int) -> list[Kernel]:
        """What has to be computed at a level, results of one row by themselves."""
        own = [v for v in self.kept.values() if self.level[v.number] == level and not self._is_barrier(v)]
        groups = [[v for v in own if v.shape[0] == 1], [v for v in own if v.shape[0] > 1]]
        return [_Filler(self, level, group).fill() for group in groups if group]


def _argument(value: Value) -> Buffer:
    """Of a carry, or of an input of this step."""
    return Buffer(Kind.CARRY if value.op is Op.CARRY else Kind.INPUT, value.detail[0])


class _Again(Exception):  # noqa: N818
    """An earlier level has to keep one more value."""

    def __init__(self, value: Value) -> None:
        self.value = value


class _Filler:
    """Write one kernel: the row blocks of some values, and all that they need."""

    def __init__(self, cutter: _Cutter, level: int, group: list[Value]) -> None:
        self.cutter, self.level, self.group = cutter, level, group
        self.kernel = Kernel(self._rows())
        self.known: dict[tuple[int, int], Operand] = {}

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
                rows = math.gcd(rows, value.shape[0], *(value.detail if value.op is Op.ROWS else ()))
            if value.op not in (Op.MATMUL, Op.SUM):
                stack += [operand for operand in value.operands if isinstance(operand, Value)]
        return rows

    def fill(self) -> Kernel:
        """The kernel."""
        rows = self.kernel.rows
        for value in self.group:
            target = self.cutter.placed[value.number]
            if target.start % rows:
                raise Untraceable("row blocks that don't fit")
            for block in range(value.shape[0] // rows):
                name = self._number(value, block, stored=True)
                self.kernel.stores.append((Access(target.buffer, target.start // rows + block), name))
        return self.kernel

    def _number(self, value: Value | float, block: int, *, stored: bool = False) -> Operand:
        """The name of an element of a row block."""
        if not isinstance(value, Value):
            return float(value)
        key = (value.number, block)
        if key not in self.known:
            self.known[key] = self._made(value, block, stored)
            if len(self.kernel.statements) > _MOST_STATEMENTS:
                raise Untraceable("too many row blocks")
        return self.known[key]

    def _made(self, value: Value, block: int, stored: bool) -> Operand:
        rows = self.kernel.rows
        if value.op is Op.FILL:
            return float(value.operands[0])  # type: ignore[arg-type]
        if value.number in self.cutter.constant:
            return self._load(self.cutter._constant(value), value, block)
        if value.number in self.cutter.placed and not stored:
            target = self.cutter.placed[value.number]
            if self.cutter.level[value.number] < self.level or value.op in (Op.MATMUL, Op.SUM):
                if target.start % rows:
                    raise Untraceable("row blocks that don't fit")
                return self._load(target.buffer, value, target.start // rows + block)
        if value.op in (Op.CARRY, Op.XS):
            return self._load(_argument(value), value, block)
        if value.op in (Op.ROWS, Op.CONCAT) and value.shape[0] == 1 < rows:
            raise Untraceable("one row out of several, for all rows")
        if value.op is Op.ROWS:
            start = value.detail[0]
            if start % rows:
                raise Untraceable("row blocks that don't fit")
            return self._number(value.operands[0], block + start // rows)
        if value.op is Op.CONCAT:
            for part in value.operands:
                assert isinstance(part, Value)
                if part.shape[0] % rows:
                    raise Untraceable("row blocks that don't fit")
                if block < part.shape[0] // rows:
                    return self._number(part, block)
                block -= part.shape[0] // rows
        if not value.op.is_pointwise:
            raise Untraceable(f"{value.op.value} inside a kernel")
        if self.cutter.level[value.number] < self.level:
            raise _Again(value)
        operands = []
        for operand in value.operands:
            whole = not isinstance(operand, Value) or operand.shape[0] == value.shape[0]
            operands.append(self._number(operand, block if whole else 0))
        name = f"v{len(self.kernel.statements)}"
        self.kernel.statements.append(Statement(name, value.op, tuple(operands)))
        return name

    def _load(self, buffer: Buffer, value: Value, block: int) -> str:
        if value.ndim != 2:
            raise Untraceable("an array that is no matrix")
        spread = Spread.NONE
        if value.shape[0] == 1 and self.kernel.rows > 1:
            spread, block = Spread.ROW, 0
        if value.shape[1] == 1 and self.cutter.batch > 1:
            if spread is Spread.ROW:
                raise Untraceable("a single number as an array")
            spread = Spread.COLUMN
        if spread is Spread.NONE and value.shape[0] % self.kernel.rows:
            raise Untraceable("row blocks that don't fit")
        access = Access(buffer, block, spread)
        return self.kernel.loads.setdefault(access, f"a{len(self.kernel.loads)}")
