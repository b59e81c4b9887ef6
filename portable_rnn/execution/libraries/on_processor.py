"""NumPy and torch: loops that compute into given memory, or as machine code."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt

from ...arrays import Array, leaves
from .. import memory_pool
from ..graph.arguments import DType, Program
from ..graph.pytrees import PyTree
from ..graph.report import dump
from ..graph.trace import Graph, Step
from ..machine.compiler import has_llvm, is_loaded
from ..machine.program import CompiledProgram, TorchProgram, compiled_scan
from ..python_loop.calls import Calls, NumpyCalls, TorchCalls
from ..python_loop.plan import make_plan
from ..python_loop.program import PlannedProgram
from .base import Library

__all__ = ["NumpyLibrary", "TorchLibrary"]


class _OnProcessor(Library):
    """NumPy and torch: loops that compute into given memory, or as machine code."""

    records = True
    has_cache = True

    def calls(self) -> Calls:
        """How the library's calls are written."""
        raise NotImplementedError

    def compiled_program(self, program: CompiledProgram) -> Program:
        """A program of machine code, over the library's arrays."""
        return program

    def can_compile(self, carry: PyTree) -> bool:
        """Whether the arrays are where the processor reads them."""
        return True

    def program(self, graph: Graph, step: Step, dtype: DType, *, donate: bool) -> Program | None:
        calls = self.calls()
        plan = make_plan(graph, calls, donate=donate)
        dump("source", step, plan.source)
        return PlannedProgram(plan, calls, graph)

    def scan_in_one(
        self,
        xp: ModuleType,
        step: Step,
        carry: PyTree,
        xs: tuple[PyTree, ...],
        shared: PyTree,
        *,
        reverse: bool,
        summing: bool,
        compiling: bool,
    ) -> tuple[PyTree, PyTree, PyTree] | None:
        if not (is_loaded() or (compiling and has_llvm())) or not self.can_compile(carry):
            return None
        if self.is_watched((carry, xs, shared)):
            return None
        return compiled_scan(xp, self.compiled_program, step, carry, xs, shared, reverse=reverse, summing=summing)


class NumpyLibrary(_OnProcessor):
    """NumPy: large arrays come from the memory pool."""

    name = "numpy"

    def calls(self) -> Calls:
        return NumpyCalls()

    def can_donate(self, x: PyTree) -> bool:
        return isinstance(x, np.ndarray) and x.flags.c_contiguous and x.flags.writeable  # products go only into these

    def in_order(self, xp: ModuleType, x: Array) -> Array:
        if x[0].flags.c_contiguous:
            return x
        steps, features, batch = x.shape
        out = memory_pool.empty(x.shape, x.dtype)
        if batch < 64:
            out[...] = x
            return out
        # Many rows that stand far apart share a few lines of the cache: reading across them takes 8 ms at
        # (64, 50, 512), and 0.8 ms by way of a few steps at a time, in rows a little longer.
        few = max((1 << 15) // (batch * features), 1)
        near = xp.empty((few, batch, features + 16), dtype=x.dtype)[:, :, :features]
        for start in range(0, steps, few):
            part = xp.permute_dims(x[start : start + few], (0, 2, 1))
            near[: part.shape[0]] = part
            out[start : start + few] = xp.permute_dims(near[: part.shape[0]], (0, 2, 1))
        return out

    def side_by_side(self, xp: ModuleType, a: Array) -> Array:
        steps, rows, batch = a.shape
        columns = memory_pool.empty((rows, steps, batch), a.dtype)
        columns[...] = xp.permute_dims(a, (1, 0, 2))
        return xp.permute_dims(columns, (1, 0, 2))

    def product(self, xp: ModuleType, left: Array, right: Array) -> Array:
        shape = (*right.shape[:-2], left.shape[-2], right.shape[-1])
        return np.matmul(left, right, out=memory_pool.empty(shape, right.dtype))

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array | None:
        return memory_pool.empty(shape, dtype)


class TorchLibrary(_OnProcessor):
    """torch: its transforms must see every operation."""

    name = "torch"

    def calls(self) -> Calls:
        return TorchCalls()

    def compiled_program(self, program: CompiledProgram) -> Program:
        return TorchProgram(program)

    def can_compile(self, carry: PyTree) -> bool:
        return all(leaf.device.type == "cpu" for leaf in leaves(carry))

    def is_watched(self, tree: PyTree) -> bool:
        from torch._C._functorch import is_functorch_wrapped_tensor
        from torch.autograd import forward_ad

        watches = forward_ad._current_level >= 0
        return watches or any(leaf.requires_grad or is_functorch_wrapped_tensor(leaf) for leaf in leaves(tree))
