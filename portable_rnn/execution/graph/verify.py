"""Whether a graph is one: what every later part takes for granted, checked value by value in the tests."""

from __future__ import annotations

from .instructions import CutGraph, Kernel, Product, RowSum
from .operations import Op
from .trace import Graph, Value, broadcast

__all__ = ["verify", "verify_cut"]


def verify(graph: Graph) -> None:
    """Check a recorded step.

    Raises
    ------
    AssertionError
        It names the value.
    """
    for number, value in enumerate(graph.values):
        at = f"value {number}, {value.op.value}"
        assert value.number == number, f"{at}: numbered {value.number}"
        assert value.graph is graph, f"{at}: of another graph"
        assert value.op.arity in (None, len(value.operands)), f"{at}: {len(value.operands)} operands"
        operands = [operand for operand in value.operands if isinstance(operand, Value)]
        assert all(operand.number < number for operand in operands), f"{at}: an operand that comes later"
        assert all(size >= 0 for size in value.shape), f"{at}: shape {value.shape}"
        _verify_value(value, operands, at)
    for name, leaves, op in zip(graph.inputs._fields, graph.inputs, (Op.CARRY, Op.XS, Op.SHARED), strict=True):
        for k, leaf in enumerate(leaves):
            assert (leaf.op, leaf.detail) == (op, (k,)), f"{name} {k} is {leaf.op.value} {leaf.detail}"
    found, given = ([(v.shape, v.boolean) for v in leaves] for leaves in (graph.carry, graph.inputs.carry))
    assert found == given, f"the carry changes from {given} to {found}"
    assert all(value.graph is graph for value in (*graph.carry, *graph.outputs, *graph.sums)), "another graph's value"


def _verify_value(value: Value, operands: list[Value], at: str) -> None:
    op, shape = value.op, value.shape
    shapes = [operand.shape for operand in operands]
    booleans = [operand.boolean for operand in operands]
    if op.is_pointwise:
        # where a constant array became a number, the others have the shape of the result
        assert shape == broadcast(shapes), f"{at}: shape {shape} of {shapes}"
        if op.gives_booleans:
            assert value.boolean, f"{at}: not boolean"
        elif op is Op.WHERE:
            assert booleans[0], f"{at}: a condition that is not boolean"
            assert set(booleans[1:]) == {value.boolean}, f"{at}: of booleans and numbers"
        else:
            assert not value.boolean, f"{at}: boolean"
            assert set(booleans) == {op is Op.FLOAT}, f"{at}: of {booleans}"
    elif op is Op.ROWS:
        start, stop = value.detail
        assert 0 <= start <= stop <= shapes[0][0] or stop < start, f"{at}: rows {value.detail} of {shapes[0]}"
        assert shape == (max(stop - start, 0), *shapes[0][1:]), f"{at}: shape {shape}"
        assert [value.boolean] == booleans, f"{at}: changes its kind"
    elif op is Op.TRANSPOSE:
        assert ([shape[::-1]], [value.boolean]) == (shapes, booleans), f"{at}: shape {shape} of {shapes}"
    elif op is Op.CONCAT:
        assert shape == (sum(part[0] for part in shapes), *shapes[0][1:]), f"{at}: shape {shape} of {shapes}"
        assert {part[1:] for part in shapes} == {shape[1:]}, f"{at}: of {shapes}"
        assert set(booleans) == {value.boolean}, f"{at}: of both kinds"
    elif op in (Op.MATMUL, Op.OUTER):
        (rows, inner), (other, columns) = shapes[0], shapes[1] if op is Op.MATMUL else shapes[1][::-1]
        assert (inner, (rows, columns)) == (other, shape), f"{at}: shape {shape} of {shapes}"
        assert not value.boolean, f"{at}: boolean"
        assert not any(booleans), f"{at}: of booleans"
    elif op in (Op.SUM, Op.TOTAL):
        assert shape == ((1, *shapes[0][1:]) if op is Op.SUM else shapes[0][:1]), f"{at}: shape {shape} of {shapes}"
        assert not any((value.boolean, *booleans)), f"{at}: of booleans"
    else:
        assert not operands, f"{at}: an input with operands"


def verify_cut(cut: CutGraph) -> None:
    """Check a step that is cut into instructions: what they read was written, inside of its buffer.

    Raises
    ------
    AssertionError
    """
    for number, made in enumerate(cut.instructions):
        at = f"instruction {number}"
        if isinstance(made, Kernel):
            known = set(made.loads.values())
            for name, op, operands in made.statements:
                assert op.is_pointwise, f"{at}: {op.value} in a kernel"
                assert len(operands) == op.arity, f"{at}: {op.value} of {len(operands)}"
                assert all(o in known for o in operands if isinstance(o, str)), f"{at}: {name} of what is not there"
                assert name not in known, f"{at}: {name} twice"
                known.add(name)
            assert all(not isinstance(o, str) or o in known for _, o in made.stores), f"{at}: stores what is not there"
            assert made.stores, f"{at}: a kernel without a result"
            continue
        blocks = [made.right, made.out] if isinstance(made, Product) else [made.x, made.out]
        for block in blocks:
            assert 0 <= block.start <= block.start + block.rows <= block.total, f"{at}: rows outside of {block}"
        if isinstance(made, RowSum):
            assert made.out.rows == 1, f"{at}: {made.out.rows} rows of a sum"
    for k, end in enumerate(cut.ends):
        assert end.index >= 0, f"carry {k} ends in {end.name}"
