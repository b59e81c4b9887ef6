"""What is the same at every step, computed once before the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TypeAlias

from ...arrays import Array
from .operations import Op
from .trace import Operand, Value

__all__ = ["Hoister"]

# (xp, operands, value, an array of the loop's dtype) -> result
Compute: TypeAlias = Callable[[ModuleType, list[Array], Value, Array], Array]

_OTHERS: dict[Op, Compute] = {
    Op.ROWS: lambda xp, found, value, like: found[0][value.detail[0] : value.detail[1]],
    Op.TRANSPOSE: lambda xp, found, value, like: found[0].T,
    Op.FILL: lambda xp, found, value, like: xp.broadcast_to(found[0], value.shape),
    Op.CONCAT: lambda xp, found, value, like: xp.concat(found, axis=0),
    Op.SUM: lambda xp, found, value, like: xp.sum(found[0], axis=0, keepdims=True),
    Op.FLOAT: lambda xp, found, value, like: xp.astype(found[0], like.dtype),
}


class Hoister:
    """Computes some values of a step from what is shared, by the standard's functions of any library.

    Parameters
    ----------
    values : sequence of Value
        They depend on nothing that changes from step to step.
    """

    def __init__(self, values: Sequence[Value]) -> None:
        self._wanted = [value.number for value in values]
        self._needed: dict[int, Value] = {}  # in an order in which they can be computed
        for value in values:
            self._add(value)

    def _add(self, value: Value) -> None:
        for operand in value.operands:
            if isinstance(operand, Value):
                self._add(operand)
        self._needed.setdefault(value.number, value)

    def __call__(self, xp: ModuleType, shared: Sequence[Array], like: Array) -> list[Array]:
        """The values; `like` is an array of the loop's dtype, on its device."""
        made: dict[int, Array] = {}

        def array(operand: Operand) -> Array:
            if isinstance(operand, Value):
                return made[operand.number]
            return xp.asarray(float(operand), dtype=like.dtype, device=like.device)

        for number, value in self._needed.items():
            if value.op is Op.SHARED:
                made[number] = shared[value.detail[0]]
                continue
            operands = [array(operand) for operand in value.operands]
            if value.op in _OTHERS:
                made[number] = _OTHERS[value.op](xp, operands, value, like)
            else:
                made[number] = getattr(xp, value.op.value)(*operands)
        return [made[number] for number in self._wanted]
