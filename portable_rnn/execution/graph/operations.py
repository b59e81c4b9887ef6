"""The operations that a step is recorded as."""

from __future__ import annotations

from enum import Enum

__all__ = ["Op"]


class Op(Enum):
    """An operation; its value is the name of the standard's function, where there is one."""

    # what a value comes from
    CARRY = "carry"
    XS = "xs"
    SHARED = "shared"
    FILL = "fill"  # a number in every element

    # element by element
    ADD = "add"
    SUBTRACT = "subtract"
    MULTIPLY = "multiply"
    DIVIDE = "divide"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    LESS = "less"
    LESS_EQUAL = "less_equal"
    GREATER = "greater"
    GREATER_EQUAL = "greater_equal"
    EQUAL = "equal"
    NOT_EQUAL = "not_equal"
    LOGICAL_AND = "logical_and"
    LOGICAL_OR = "logical_or"
    LOGICAL_NOT = "logical_not"
    NEGATIVE = "negative"
    TANH = "tanh"
    EXP = "exp"
    LOG1P = "log1p"
    SQRT = "sqrt"
    ABS = "abs"
    WHERE = "where"
    FLOAT = "float"  # a boolean as 0 or 1

    # which move elements
    ROWS = "rows"  # a row block
    TRANSPOSE = "transpose"
    CONCAT = "concat"  # over axis 0

    # which add up
    MATMUL = "matmul"
    SUM = "sum"  # over axis 0, which stays
    OUTER = "outer"  # over all steps and columns: left @ right.T
    TOTAL = "total"  # over all steps and columns

    @property
    def is_input(self) -> bool:
        """Whether it is an argument of the step."""
        return self in _INPUTS

    @property
    def is_pointwise(self) -> bool:
        """Whether it works element by element."""
        return self in _ARITY

    @property
    def arity(self) -> int | None:
        """The number of its operands, or None for any."""
        return None if self is Op.CONCAT else _ARITY.get(self, _OTHER_ARITY.get(self, 0))

    @property
    def gives_booleans(self) -> bool:
        """Whether its result is boolean, whatever its operands are."""
        return self in _COMPARISONS or self in _LOGICAL

    @property
    def is_logical(self) -> bool:
        """Whether its operands are boolean."""
        return self in _LOGICAL


_INPUTS = frozenset({Op.CARRY, Op.XS, Op.SHARED})
_COMPARISONS = frozenset({Op.LESS, Op.LESS_EQUAL, Op.GREATER, Op.GREATER_EQUAL, Op.EQUAL, Op.NOT_EQUAL})
_LOGICAL = frozenset({Op.LOGICAL_AND, Op.LOGICAL_OR, Op.LOGICAL_NOT})
_ARITY = {
    **dict.fromkeys((Op.ADD, Op.SUBTRACT, Op.MULTIPLY, Op.DIVIDE, Op.MAXIMUM, Op.MINIMUM), 2),
    **dict.fromkeys((*_COMPARISONS, Op.LOGICAL_AND, Op.LOGICAL_OR), 2),
    **dict.fromkeys((Op.NEGATIVE, Op.TANH, Op.EXP, Op.LOG1P, Op.SQRT, Op.ABS, Op.LOGICAL_NOT, Op.FLOAT), 1),
    Op.WHERE: 3,
}
_OTHER_ARITY = {Op.FILL: 1, Op.ROWS: 1, Op.TRANSPOSE: 1, Op.MATMUL: 2, Op.SUM: 1, Op.OUTER: 2, Op.TOTAL: 1}
