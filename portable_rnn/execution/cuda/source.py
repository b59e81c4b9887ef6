"""The kernels of a step as CUDA C."""

from __future__ import annotations

from ..graph.buffers import Buffer
from ..graph.instructions import Access, Kernel, Operand, Spread
from ..graph.operations import Op

__all__ = ["NUMBER_TYPES", "cuda_source"]

NUMBER_TYPES = {"float32": "float", "float64": "double"}

_FORMS = {
    Op.ADD: "{0} + {1}",
    Op.SUBTRACT: "{0} - {1}",
    Op.MULTIPLY: "{0} * {1}",
    Op.DIVIDE: "{0} / {1}",
    # a NaN stays one
    Op.MAXIMUM: "({0} >= {1} || {0} != {0}) ? {0} : {1}",
    Op.MINIMUM: "({0} <= {1} || {0} != {0}) ? {0} : {1}",
    Op.LESS: "{0} < {1}",
    Op.LESS_EQUAL: "{0} <= {1}",
    Op.GREATER: "{0} > {1}",
    Op.GREATER_EQUAL: "{0} >= {1}",
    Op.EQUAL: "{0} == {1}",
    Op.NOT_EQUAL: "{0} != {1}",
    Op.LOGICAL_AND: "{0} && {1}",
    Op.LOGICAL_OR: "{0} || {1}",
    Op.LOGICAL_NOT: "!{0}",
    Op.NEGATIVE: "-{0}",
    # C++ takes the function of a float for a float
    Op.ABS: "fabs({0})",
    Op.TANH: "tanh({0})",
    Op.EXP: "exp({0})",
    Op.LOG1P: "log1p({0})",
    Op.SQRT: "sqrt({0})",
    Op.WHERE: "{0} ? {1} : {2}",
    Op.FLOAT: "{0} ? 1 : 0",
}


def cuda_source(kernel: Kernel, name: str, dtype: str, booleans: set[Buffer]) -> str:
    """One kernel as CUDA C; the body is plain C.

    Its arguments are, for each of ``kernel.buffers()``, the array and how many elements lie between two time steps (0:
    it is the same at each), then the rows of a row block, the batch size and the number of the step, all ``long long``.

    Parameters
    ----------
    kernel : Kernel
    name : str
    dtype : "float32" or "float64"
    booleans : set of Buffer
        Which are of booleans.
    """
    number = NUMBER_TYPES[dtype]
    stored = {access.buffer for access, _ in kernel.stores}
    kinds: dict[Operand, str] = {}  # of each number

    def written(operand: Operand) -> str:
        return operand if isinstance(operand, str) else f"({number})({operand!r})"

    parameters = []
    for buffer in kernel.buffers():
        kind = "bool" if buffer in booleans else number
        constant = "" if buffer in stored else "const "
        parameters += [f"{constant}{kind}* {buffer.name}", f"long long {buffer.name}_step"]
    parameters += ["long long rows", "long long batch", "long long t"]
    lines = [
        "const long long size = rows * batch;",
        "const long long e = (long long)blockIdx.x * blockDim.x + threadIdx.x;",
        "if (e >= size) return;",
    ]
    spreads = {access.spread for access in kernel.loads}
    if spreads != {Spread.NONE}:  # int: a division of long long takes several times as long
        lines.append("const int r = (int)e / (int)batch;")
    if Spread.ROW in spreads:
        lines.append("const int b = (int)e - r * (int)batch;")
    for access, variable in kernel.loads.items():
        kinds[variable] = "bool" if access.buffer in booleans else number
        lines.append(f"const {kinds[variable]} {variable} = {_element(access)};")
    for variable, op, operands in kernel.statements:
        kinds[variable] = number
        if op.gives_booleans or (op is Op.WHERE and kinds.get(operands[1]) == "bool"):
            kinds[variable] = "bool"
        lines.append(f"const {kinds[variable]} {variable} = {_FORMS[op].format(*map(written, operands))};")
    lines += [f"{_element(access)} = {written(result)};" for access, result in kernel.stores]
    body = "\n    ".join(lines)
    return f'extern "C" __global__ void {name}({", ".join(parameters)})\n{{\n    {body}\n}}\n'


def _element(access: Access) -> str:
    array, block = access.buffer.name, access.block
    within = {Spread.ROW: "b", Spread.COLUMN: f"{block} * rows + r", Spread.NONE: f"{block} * size + e"}[access.spread]
    return f"{array}[t * {array}_step + {within}]"
