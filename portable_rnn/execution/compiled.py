"""Stages compiled by numba (extra ``[fast]``): the whole loop where its products are small, else its kernels.

A product of a few thousand terms takes less time than a call of BLAS, so a loop of such products is one compiled
function. Larger ones stay NumPy's, and each kernel between them is a function of its own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from .stages import Access, Kernel, Product, RowSum, Stages

__all__ = ["compiled_loop", "given_rows", "has_numba", "is_loaded", "is_small"]

# Multiplications in the products of one step, up to which they are compiled with the loop.
SMALL = 1 << 15

_PRELUDE = """
import math
from math import inf, nan

import numba
import numpy as np

F = np.{dtype}
kernel = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={{"contract"}})
inside = numba.njit(inline="always", error_model="numpy")
product = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={{"contract", "reassoc", "nsz"}})


@product
def multiply(left, right, out, batch):
    rows, inner = left.shape
    if batch == 1:
        for i in range(rows):
            total = F(0)
            for j in range(inner):
                total += left[i, j] * right[j]
            out[i] = total
        return
    for i in range(rows):
        row = out[i * batch : (i + 1) * batch]
        row[:] = F(0)
        for j in range(inner):
            weight = left[i, j]
            for b in range(batch):
                row[b] += weight * right[j * batch + b]


@product
def multiply_transposed(left, right, out, batch):
    rows, inner = left.shape
    out[: inner * batch] = F(0)
    for i in range(rows):
        if batch == 1:
            weight = right[i]
            for j in range(inner):
                out[j] += left[i, j] * weight
        else:
            for j in range(inner):
                weight = left[i, j]
                for b in range(batch):
                    out[j * batch + b] += weight * right[i * batch + b]


@product
def sum_rows(x, out, batch):
    out[:batch] = F(0)
    for i in range(x.size // batch):
        for b in range(batch):
            out[b] += x[i * batch + b]
"""

# tanh(x) / x as a quotient of polynomials in x**2 up to |x| = 9, beyond which tanh is within a rounding of 1. Unlike a
# library's tanh it becomes vector code. Fitted by benchmarks/fit_tanh.py, which prints its largest error.
_TANH32 = """

@inside
def tanh(x):
    c = F(-9) if x < F(-9) else x
    c = F(9) if c > F(9) else c
    u = c * c
    p = F(-1.2246230332308959e-11) * u + F(3.0642506747550595e-08)
    p = ((p * u + F(2.8031302585288815e-05)) * u + F(0.003869507599275691)) * u + F(0.13680856134878921)
    q = (F(1.289034496606532e-06) * u + F(0.00039407126715164354)) * u + F(0.027250155195703788)
    y = c * (p * u + F(0.9999999987269129)) / ((q * u + F(0.47014188225698933)) * u + F(1))
    y = F(1) if y > F(1) else y
    return F(-1) if y < F(-1) else y
"""
_TANH64 = """

@inside
def tanh(x):
    return math.tanh(x)
"""

_FORMS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    # a NaN stays one
    "maximum": "{0} if ({0} >= {1} or {0} != {0}) else {1}",
    "minimum": "{0} if ({0} <= {1} or {0} != {0}) else {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "logical_and": "{0} and {1}",
    "logical_or": "{0} or {1}",
    "logical_not": "not {0}",
    "negative": "-{0}",
    "abs": "abs({0})",
    "tanh": "tanh({0})",
    "exp": "math.exp({0})",
    "log1p": "math.log1p({0})",
    "sqrt": "math.sqrt({0})",
    "where": "{1} if {0} else {2}",
    "float": "F(1) if {0} else F(0)",
}


@functools.lru_cache(maxsize=1)
def has_numba() -> bool:
    """Whether numba is installed and not turned off by ``PORTABLE_RNN_NUMBA=0``."""
    if os.environ.get("PORTABLE_RNN_NUMBA") == "0":
        return False
    return "numba" in sys.modules or importlib.util.find_spec("numba") is not None


def is_loaded() -> bool:
    """Whether numba costs nothing to start with: it is imported, or was asked for by ``PORTABLE_RNN_NUMBA=1``."""
    return has_numba() and ("numba" in sys.modules or os.environ.get("PORTABLE_RNN_NUMBA") == "1")


def is_small(stages: Stages, shapes: dict[str, tuple[int, ...]], batch: int) -> bool:
    """Whether the products of a step are compiled with the loop."""
    products = [stage for stage in stages.stages if isinstance(stage, Product)]
    return sum(shapes[p.left][0] * shapes[p.left][1] * batch for p in products) <= SMALL


def compiled_loop(stages: Stages, dtype: str, *, whole: bool, torch_products: bool = False) -> tuple[Any, list[str]]:
    """The loop of `stages`, and the names of its arrays in the order in which it takes them.

    ``loop(steps, reverse, batch, *rows_of_each_kernel, *arrays)`` returns the final carry. Where it is compiled as a
    whole, arrays over time are (T, rows * B) and others (rows * B,), but for the left sides of products, which are
    matrices. With `torch_products`, products that are not compiled are torch's, on the memory of the same arrays.
    """
    given = given_rows(stages, whole)
    names = _arrays(stages, given)
    source = _PRELUDE.format(dtype=dtype) + (_TANH32 if dtype == "float32" else _TANH64)
    if torch_products and not whole:
        source += "\n\nfrom torch import from_numpy, mm\n"
    kernels = [stage for stage in stages.stages if isinstance(stage, Kernel)]
    if not whole:
        for k, kernel in enumerate(kernels):
            kernel_rows = f"rows{k}"
            arrays = _renamed(kernel.arrays(), given)
            lines = [f"{name} = {name}.reshape(-1)" for name in arrays]
            body = "\n    ".join([*lines, *_kernel_lines(kernel, kernel_rows, given)])
            source += f"\n\n@kernel\ndef kernel{k}({', '.join([*arrays, kernel_rows, 'batch'])}):\n    {body}\n"
    over_time = [name for name in names if name[0] in "XY"]
    steps = [f"{name.lower()} = {name}[t]" for name in over_time]
    inside: list[str] = []
    for stage in stages.stages:
        inside += _stage_lines(stage, whole, given, kernels, torch_products)
    ends = [_end(stages, end, given, whole) for end in stages.ends]
    alternating = [k for k, end in enumerate(ends) if end == f"n{k}"]
    moves = [(f"c{k}", end) for k, end in enumerate(ends) if end != f"c{k}"]
    moves += [(f"n{k}", f"m{k}") for k in alternating] + [(f"m{k}", f"n{k}") for k in alternating]
    if moves:
        inside.append(f"{', '.join(a for a, _ in moves)} = {', '.join(b for _, b in moves)}")
    inner = "\n        ".join(["t = steps - 1 - k if reverse else k", *steps, *inside])
    sizes = [f"rows{k}" for k in range(len(kernels))]
    source += (
        f"\n\n{'@kernel' if whole else ''}\ndef loop(steps, reverse, batch, {', '.join([*sizes, *names])}):\n"
        f"    for k in range(steps):\n        {inner}\n"
        f"    return ({', '.join(f'c{k}' for k in range(len(ends)))},)\n"
    )
    return _loaded(source), names


def given_rows(stages: Stages, whole: bool) -> dict[str, int]:
    """The stacks that stand in the first input, and at which row.

    A loop that is compiled as a whole takes an array over time as a matrix, which a part of its rows is not.
    """
    height = max((stack.shape[0] for stack in stages.stacks), default=0)
    full = [k for k, stack in enumerate(stages.stacks) if stack.given == 0 and stack.shape[0] == height]
    return {
        f"y{k}": stack.given
        for k, stack in enumerate(stages.stacks)
        if stack.given is not None and (not whole or (k in full and stages.first_rows == height))
    }


def _arrays(stages: Stages, given: dict[str, int]) -> list[str]:
    names: list[str] = []
    for stage in stages.stages:
        if isinstance(stage, Kernel):
            names += _renamed(stage.arrays(), given)
        elif isinstance(stage, Product):
            names += [stage.left, stage.right.base, stage.out.base]
        else:
            names += [stage.x.base, stage.out.base]
    for k, end in enumerate(stages.ends):
        names += [f"c{k}", end] + ([f"m{k}"] if end == f"n{k}" else [])
    names = _renamed(names, given)
    return [name.upper() if name[0] in "xy" else name for name in names]


def _renamed(names: list[str], given: dict[str, int]) -> list[str]:
    return list(dict.fromkeys("x0" if name in given else name for name in names))


def _end(stages: Stages, end: str, given: dict[str, int], whole: bool) -> str:
    """What a carry is after the step."""
    if end not in given:
        return end
    start = given[end]
    return "x0" if whole else f"x0[{start}:{start + stages.stacks[int(end[1:])].shape[0]}]"


def _stage_lines(
    stage: Any, whole: bool, given: dict[str, int], kernels: list[Kernel], torch_products: bool
) -> list[str]:
    if isinstance(stage, Kernel):
        number = next(k for k, kernel in enumerate(kernels) if kernel is stage)
        if whole:
            return _kernel_lines(stage, f"rows{number}", given)
        return [f"kernel{number}({', '.join([*_renamed(stage.arrays(), given), f'rows{number}', 'batch'])})"]
    if isinstance(stage, Product):
        right, out = _rows(stage.right, whole), _rows(stage.out, whole)
        if whole:
            return [f"multiply{'_transposed' if stage.transposed else ''}({stage.left}, {right}, {out}, batch)"]
        left = f"{stage.left}{'.T' if stage.transposed else ''}"
        if torch_products:
            return [f"mm({left}, from_numpy({right}), out=from_numpy({out}))"]
        return [f"{left}.dot({right}, {out})"]
    assert isinstance(stage, RowSum)
    x, out = _rows(stage.x, whole), _rows(stage.out, whole)
    return [f"sum_rows({x}, {out}, batch)" if whole else f"np.add.reduce({x}, 0, None, {out}, True)"]


def _rows(place: Any, whole: bool) -> str:
    if place.start == 0 and place.rows == place.total:
        return str(place.base)
    if whole:
        return f"{place.base}[{place.start} * batch : {place.start + place.rows} * batch]"
    return f"{place.base}[{place.start}:{place.start + place.rows}]"


def _kernel_lines(kernel: Kernel, rows: str, given: dict[str, int]) -> list[str]:
    lines = [f"size = {rows} * batch"]
    if any(access.spread for access in kernel.loads):  # two loops: a division for each element is no vector code
        lines += [f"for r in range({rows}):"]
        indent = " " * 8
        for access, name in kernel.loads.items():
            if access.spread == "column":
                lines.append(f"    {name} = {access.array}[{access.block} * {rows} + r]")
        lines += ["    start = r * batch", "    for b in range(batch):", "        e = start + b"]
    else:
        lines.append("for e in range(size):")
        indent = " " * 4
    for access, name in kernel.loads.items():
        if access.spread != "column":
            lines.append(f"{indent}{name} = {_element(access, kernel, given)}")
    for name, op, operands in kernel.statements:
        written = [operand if isinstance(operand, str) else f"F({operand!r})" for operand in operands]
        lines.append(f"{indent}{name} = {_FORMS[op].format(*written)}")
    for access, stored in kernel.stores:
        number = stored if isinstance(stored, str) else f"F({stored!r})"
        lines.append(f"{indent}{_element(access, kernel, given)} = {number}")
    return lines


def _element(access: Access, kernel: Kernel, given: dict[str, int]) -> str:
    if access.spread == "row":
        return f"{access.array}[b]"
    array, block = access.array, access.block
    if array in given:
        array, block = "x0", block + given[array] // kernel.rows
    return f"{array}[{block} * size + e]" if block else f"{array}[e]"


# ---------------------------------------------------------------------- compiled code is kept on disk


def _loaded(source: str) -> Any:
    """The loop of a source, from a file, so that numba finds what it compiled in an earlier process."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = _cache_folder() / f"loop_{digest}.py"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                file.write(source)
            os.replace(file.name, path)
        elif path.read_text(encoding="utf-8") != source:
            raise OSError("another file of this name")
        name = f"portable_rnn_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # numba imports it by this name
        spec.loader.exec_module(module)
        return module.loop
    except (OSError, RuntimeError):  # nowhere to write (RuntimeError: for numba): compiled anew in every process
        scope: dict[str, Any] = {}
        exec(compile(source.replace("cache=True", "cache=False"), "<compiled loop>", "exec"), scope)
        return scope["loop"]


def _cache_folder() -> Path:
    given = os.environ.get("PORTABLE_RNN_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "portable_rnn"
