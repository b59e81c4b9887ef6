"""The kernels of a step as CUDA C."""

from __future__ import annotations

from typing import Any

from ..graph.instructions import Access, Kernel
from ..graph.trace import BOOLEAN

__all__ = ["NUMBER_TYPES", "cuda_source"]

NUMBER_TYPES = {"float32": "float", "float64": "double"}

_FORMS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    # a NaN stays one
    "maximum": "({0} >= {1} || {0} != {0}) ? {0} : {1}",
    "minimum": "({0} <= {1} || {0} != {0}) ? {0} : {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "logical_and": "{0} && {1}",
    "logical_or": "{0} || {1}",
    "logical_not": "!{0}",
    "negative": "-{0}",
    # C++ takes the function of a float for a float
    "abs": "fabs({0})",
    "tanh": "tanh({0})",
    "exp": "exp({0})",
    "log1p": "log1p({0})",
    "sqrt": "sqrt({0})",
    "where": "{0} ? {1} : {2}",
    "float": "{0} ? 1 : 0",
}


def cuda_source(kernel: Kernel, name: str, dtype: str, booleans: set[str]) -> str:
    """One kernel as CUDA C; the body is plain C.

    Its arguments are, for each of ``kernel.arrays()``, the array and how many elements lie between two time steps (0:
    it is the same at each), then the rows of a row block, the batch size and the number of the step, all ``long long``.

    Parameters
    ----------
    kernel : Kernel
    name : str
    dtype : "float32" or "float64"
    booleans : set of str
        Which arrays are of booleans.
    """
    number = NUMBER_TYPES[dtype]
    stored = {access.array for access, _ in kernel.stores}
    kinds: dict[str, str] = {}  # of each number

    def written(operand: Any) -> str:
        return operand if isinstance(operand, str) else f"({number})({operand!r})"

    parameters = []
    for array in kernel.arrays():
        kind = "bool" if array in booleans else number
        parameters += [f"{'' if array in stored else 'const '}{kind}* {array}", f"long long {array}_step"]
    parameters += ["long long rows", "long long batch", "long long t"]
    lines = [
        "const long long size = rows * batch;",
        "const long long e = (long long)blockIdx.x * blockDim.x + threadIdx.x;",
        "if (e >= size) return;",
    ]
    spreads = {access.spread for access in kernel.loads}
    if spreads != {""}:  # int: a division of long long takes several times as long
        lines.append("const int r = (int)e / (int)batch;")
    if "row" in spreads:
        lines.append("const int b = (int)e - r * (int)batch;")
    for access, variable in kernel.loads.items():
        kinds[variable] = "bool" if access.array in booleans else number
        lines.append(f"const {kinds[variable]} {variable} = {_element(access)};")
    for variable, op, operands in kernel.statements:
        kinds[variable] = number
        if op in BOOLEAN or (op == "where" and kinds.get(operands[1]) == "bool"):
            kinds[variable] = "bool"
        lines.append(f"const {kinds[variable]} {variable} = {_FORMS[op].format(*map(written, operands))};")
    lines += [f"{_element(access)} = {written(result)};" for access, result in kernel.stores]
    body = "\n    ".join(lines)
    return f'extern "C" __global__ void {name}({", ".join(parameters)})\n{{\n    {body}\n}}\n'


def _element(access: Access) -> str:
    array, block = access.array, access.block
    within = {"row": "b", "column": f"{block} * rows + r", "": f"{block} * size + e"}[access.spread]
    return f"{array}[t * {array}_step + {within}]"
