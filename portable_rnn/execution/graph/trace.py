"""Record what a step computes: the step runs once on symbolic arrays, and every operation becomes a node of a graph.

The cells are written once, as plain array API code. A library that has no compiler of its own runs them from the
recorded graph, which can be executed with reused memory or as fused kernels (see `planning` and `kernels`). Only what
the standard's functions for recurrent steps need is known here; a step that does anything else raises `Untraceable`
and is run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from .operations import Op
from .pytrees import Structure, flattened, rebuilt

__all__ = [
    "Graph",
    "Inputs",
    "Operand",
    "Recorder",
    "Shape",
    "Step",
    "Untraceable",
    "Value",
    "broadcast",
    "trace",
]

Shape: TypeAlias = tuple[int, ...]
Operand: TypeAlias = "Value | float | int | bool"
Step: TypeAlias = Callable[..., tuple[Any, ...]]  # step(xp, shared, carry, inputs)


class Untraceable(Exception):  # noqa: N818
    """The step does something that the recorder does not know."""


class Value:
    """A symbolic array: the result of one operation.

    Attributes
    ----------
    op : Op
    operands : tuple of Value and numbers
    shape : tuple of int
    boolean : bool
        Else it has the floating dtype of the loop.
    detail : tuple of int
        ``(start, stop)`` of `Op.ROWS`, ``(index,)`` of an input.
    """

    __array_ufunc__ = None  # NumPy must not compute with it
    __slots__ = ("boolean", "detail", "graph", "number", "op", "operands", "shape")

    def __init__(
        self,
        graph: Graph,
        op: Op,
        operands: tuple[Operand, ...],
        shape: Shape,
        boolean: bool,
        detail: tuple[int, ...] = (),
    ) -> None:
        self.graph, self.op, self.operands, self.shape = graph, op, operands, shape
        self.boolean, self.detail = boolean, detail
        self.number = len(graph.values)
        graph.values.append(self)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> str:
        return "boolean" if self.boolean else "floating"

    @property
    def T(self) -> Value:
        if self.ndim != 2:
            raise Untraceable(f"transpose of {self.ndim} axes")
        return Value(self.graph, Op.TRANSPOSE, (self,), self.shape[::-1], self.boolean)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Untraceable("a symbolic array has no numbers")

    def __bool__(self) -> bool:
        raise Untraceable("a branch on the values of an array")

    def __iter__(self) -> Iterator[Any]:
        raise Untraceable("a loop over an array")

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is None and rest == [Ellipsis]:
            return Stacked(self)
        if len(rest) > self.ndim - (Ellipsis not in rest):
            raise Untraceable("too many indices")
        if first is Ellipsis or any(part is not Ellipsis and part != slice(None) for part in rest):
            raise Untraceable(f"index {index!r}")
        if not isinstance(first, slice) or first.step not in (None, 1):
            raise Untraceable(f"index {index!r}")
        start, stop, _ = first.indices(self.shape[0])
        shape = (max(stop - start, 0), *self.shape[1:])
        return Value(self.graph, Op.ROWS, (self,), shape, self.boolean, (start, stop))

    def __matmul__(self, other: Any) -> Value:
        return _matmul(self, other)

    def __pow__(self, exponent: Any) -> Value:
        if exponent != 2:
            raise Untraceable(f"power {exponent!r}")
        return _pointwise(Op.MULTIPLY, self, self)

    def __neg__(self) -> Value:
        return _pointwise(Op.NEGATIVE, self)

    def __abs__(self) -> Value:
        return _pointwise(Op.ABS, self)


class Stacked:
    """A value of this step as one of all steps, (T, M, B), of which sums over time and batch are taken."""

    __array_ufunc__ = None

    def __init__(self, value: Value) -> None:
        if value.ndim != 2:
            raise Untraceable("a stack of what is no matrix")
        self.value = value

    @property
    def shape(self) -> Shape:
        return (1, *self.value.shape)

    def __getitem__(self, index: Any) -> Stacked:
        if not isinstance(index, tuple) or len(index) != 3 or index[0] != slice(None):
            raise Untraceable(f"index {index!r} of a stack")
        return Stacked(self.value[index[1:]])


def _operator(op: Op, *, swapped: bool = False) -> Callable[[Any, Any], Any]:
    def apply(self: Any, other: Any) -> Any:
        if isinstance(self, Stacked) or isinstance(other, Stacked):
            pair = [part.value if isinstance(part, Stacked) else part for part in (self, other)]
            if pair[0] is self or any(isinstance(part, Value) for part in pair if part is other):
                raise Untraceable("a step's value with one of all steps")
            return Stacked(_pointwise(op, *(pair[::-1] if swapped else pair)))
        return _pointwise(op, other, self) if swapped else _pointwise(op, self, other)

    return apply


for _name, _op in (("add", Op.ADD), ("sub", Op.SUBTRACT), ("mul", Op.MULTIPLY), ("truediv", Op.DIVIDE)):
    for _kind in (Value, Stacked):
        setattr(_kind, f"__{_name}__", _operator(_op))
        setattr(_kind, f"__r{_name}__", _operator(_op, swapped=True))
for _name, _op in (("lt", Op.LESS), ("le", Op.LESS_EQUAL), ("gt", Op.GREATER), ("ge", Op.GREATER_EQUAL)):
    setattr(Value, f"__{_name}__", _operator(_op))


def _in_place(self: Value, other: Any) -> Value:
    raise Untraceable("an operation in place")  # other names of the array would see it


for _name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
    setattr(Value, f"__i{_name}__", _in_place)
# not in the class, which then would have no hash
Value.__eq__ = _operator(Op.EQUAL)  # type: ignore[method-assign]
Value.__ne__ = _operator(Op.NOT_EQUAL)  # type: ignore[method-assign]


def _pointwise(op: Op, *operands: Any) -> Value:
    for operand in operands:
        if type(operand) not in (Value, bool, int, float):  # a NumPy scalar has a dtype, which may widen the result
            raise Untraceable(f"{op.value} of {type(operand).__name__}")
    arrays = [operand for operand in operands if isinstance(operand, Value)]
    boolean = _is_boolean(op, operands)
    shape = broadcast([array.shape for array in arrays])
    # a constant array is the number it is filled with, where the other operands have the shape of the result
    others = [array.shape for array in arrays if array.op is not Op.FILL]
    known = list(operands)
    if others and broadcast(others) == shape:
        known = [o.operands[0] if isinstance(o, Value) and o.op is Op.FILL else o for o in operands]
    return Value(arrays[0].graph, op, tuple(known), shape, boolean)


def _is_boolean(op: Op, operands: tuple[Any, ...]) -> bool:
    """Whether the result is boolean, for operands that the standard allows."""
    condition, operands = (operands[:1], operands[1:]) if op is Op.WHERE else ((), operands)
    kinds = {operand.boolean for operand in operands if isinstance(operand, Value)}
    plain = {isinstance(operand, bool) for operand in operands if not isinstance(operand, Value)}
    either = op in (Op.WHERE, Op.EQUAL, Op.NOT_EQUAL)
    wanted = kinds if either else {op is Op.FLOAT or op.is_logical}
    if len(kinds) != 1 or kinds != wanted or (True in kinds and False in plain):
        raise Untraceable(f"{op.value} of booleans and numbers")
    if any(not isinstance(array, Value) or not array.boolean for array in condition):
        raise Untraceable("where without a boolean array")
    return True in kinds if op is Op.WHERE else op.gives_booleans


def broadcast(shapes: list[Shape]) -> Shape:
    """The shape that arrays of these have together."""
    longest = max(map(len, shapes))
    padded = [(1,) * (longest - len(shape)) + shape for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        wide = {size for size in sizes if size != 1}
        if len(wide) > 1:
            raise Untraceable(f"shapes {shapes} don't broadcast")  # the step itself will say so
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def _matmul(left: Any, right: Any) -> Value:
    if not (isinstance(left, Value) and isinstance(right, Value) and left.ndim == right.ndim == 2):
        raise Untraceable("a product of other than two matrices")
    if left.shape[1] != right.shape[0] or left.boolean or right.boolean:
        raise Untraceable("a product of matrices that don't fit, or are boolean")
    return Value(left.graph, Op.MATMUL, (left, right), (left.shape[0], right.shape[1]), False)


class Recorder:
    """The functions of the array API standard that a step may use, on symbolic arrays."""

    __name__ = "recorded"  # as a module has one

    def __init__(self) -> None:
        for op in Op:
            if op.is_pointwise and op not in (Op.WHERE, Op.FLOAT):
                setattr(self, op.value, lambda *arrays, op=op: _pointwise(op, *arrays))
        self.matmul = _matmul

    @staticmethod
    def where(condition: Value, first: Any, second: Any) -> Value:
        return _pointwise(Op.WHERE, condition, first, second)

    @staticmethod
    def clip(x: Value, /, min: float | None = None, max: float | None = None) -> Value:
        x = x if min is None else _pointwise(Op.MAXIMUM, x, min)
        return x if max is None else _pointwise(Op.MINIMUM, x, max)

    @staticmethod
    def astype(x: Value, dtype: str) -> Value:
        if dtype == x.dtype:
            return x
        if dtype != "floating":
            raise Untraceable(f"astype {dtype}")
        return _pointwise(Op.FLOAT, x)

    @staticmethod
    def zeros_like(x: Value) -> Value:
        return _fill(x, 0.0)

    @staticmethod
    def ones_like(x: Value) -> Value:
        return _fill(x, 1.0)

    @staticmethod
    def full_like(x: Value, number: float) -> Value:
        return _fill(x, number)

    @staticmethod
    def concat(parts: Any, axis: int = 0) -> Value:
        parts = tuple(parts)
        if axis != 0 or len({(part.shape[1:], part.boolean) for part in parts}) != 1:
            raise Untraceable("concat of other than row blocks")
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return parts[0] if len(parts) == 1 else Value(parts[0].graph, Op.CONCAT, parts, shape, parts[0].boolean)

    @staticmethod
    def tensordot(left: Any, right: Any, axes: Any) -> Value:
        if axes != ((0, 2), (0, 2)) or not (isinstance(left, Stacked) and isinstance(right, Stacked)):
            raise Untraceable("a product of stacks over other than time and batch")
        operands = (left.value, right.value)
        if operands[0].shape[1] != operands[1].shape[1] or any(operand.boolean for operand in operands):
            raise Untraceable("stacks that are not as wide as each other, or boolean")
        shape = (operands[0].shape[0], operands[1].shape[0])
        return Value(operands[0].graph, Op.OUTER, operands, shape, False)

    @staticmethod
    def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Value:
        if isinstance(x, Stacked) and axis == (0, 2) and not keepdims and not x.value.boolean:
            return Value(x.value.graph, Op.TOTAL, (x.value,), x.value.shape[:1], False)
        if not isinstance(x, Value) or axis != 0 or not keepdims or x.boolean:
            raise Untraceable("a sum over other than the rows")
        return Value(x.graph, Op.SUM, (x,), (1, *x.shape[1:]), False)

    @classmethod
    def mean(cls, x: Value, axis: int | None = None, keepdims: bool = False) -> Value:
        return _pointwise(Op.DIVIDE, cls.sum(x, axis, keepdims), x.shape[0])


def _fill(x: Value, number: float) -> Value:
    if x.boolean or type(number) not in (int, float):
        raise Untraceable("a constant array that is boolean")
    return Value(x.graph, Op.FILL, (number,), x.shape, False)


class Inputs(NamedTuple):
    """The leaves of a step's arguments."""

    carry: list[Value]
    xs: list[Value]
    shared: list[Value]


class Graph:
    """Everything one step computes.

    Attributes
    ----------
    values : list of Value
        In the order of recording; first the inputs.
    carry, outputs, sums : list of Value
        The leaves of the new carry, of the step's outputs, and of what is summed over the steps.
    output_structure, sum_structure
        Their structures, as from `flattened`.
    inputs : Inputs
    """

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.carry: list[Value] = []
        self.outputs: list[Value] = []
        self.sums: list[Value] = []
        self.output_structure: Any = None
        self.sum_structure: Any = None
        self.inputs = Inputs([], [], [])

    def needed(self) -> list[Value]:
        """What the outputs, the carry and the terms of the sums depend on, in order."""
        wanted: set[int] = set()
        stack = [*self.carry, *self.outputs]
        for term in self.terms():
            stack += [operand for operand in term.operands if isinstance(operand, Value)]
        while stack:
            value = stack.pop()
            if value.number not in wanted:
                wanted.add(value.number)
                stack += [operand for operand in value.operands if isinstance(operand, Value)]
        return [value for value in self.values if value.number in wanted]

    def terms(self) -> list[Value]:
        """The "outer" and "total" values that the sums are put together from, each once.

        Raises
        ------
        Untraceable
            A sum is other than such values, one above the other: the sum of a function is not that of the sum.
        """
        found: dict[int, Value] = {}
        stack = self.sums[::-1]
        while stack:
            value = stack.pop()
            if value.op is Op.CONCAT:
                stack += [operand for operand in value.operands[::-1] if isinstance(operand, Value)]
            elif value.op in (Op.OUTER, Op.TOTAL):
                found[value.number] = value
            else:
                raise Untraceable(f"the sum over time of {value.op.value}")
        return list(found.values())


def trace(
    step: Step, specs: Sequence[list[tuple[Shape, bool]]], structures: Sequence[Structure], *, summing: bool = False
) -> Graph:
    """Run ``step(xp, shared, carry, inputs)`` on symbolic arrays; with `summing` it returns sums as well.

    Parameters
    ----------
    step : callable
    specs : lists of (shape, whether boolean), of the leaves of carry, xs and shared
    structures : their structures, as from `flattened`

    Raises
    ------
    Untraceable
    """
    graph = Graph()
    trees = []
    for op, into, leaves, structure in zip((Op.CARRY, Op.XS, Op.SHARED), graph.inputs, specs, structures, strict=True):
        if any(not shape for shape, _ in leaves):
            raise Untraceable("an array without axes")
        into += [Value(graph, op, (), shape, boolean, (k,)) for k, (shape, boolean) in enumerate(leaves)]
        trees.append(rebuilt(structure, into))
    carry, xs, shared = trees
    try:
        found = step(Recorder(), shared, carry, xs)
    except Untraceable:
        raise
    except Exception as error:  # whatever it is, the step says it better when it runs as it is
        raise Untraceable(str(error)) from error
    carry, outputs, *sums = found
    structure = flattened(carry, graph.carry)
    graph.output_structure = flattened(outputs, graph.outputs)
    graph.sum_structure = flattened(sums[0] if summing else None, graph.sums)
    if not all(isinstance(value, Value) for value in graph.carry):
        raise Untraceable("a carry that is no array")
    forms = [(value.shape, value.boolean) for value in graph.carry]
    if structure != structures[0] or forms != [(v.shape, v.boolean) for v in graph.inputs.carry]:
        raise Untraceable("a carry that changes its form")
    if not all(isinstance(value, Value) for value in (*graph.outputs, *graph.sums)):
        raise Untraceable("an output that is no array")
    return graph
