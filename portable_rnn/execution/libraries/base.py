"""A library with nothing but the standard's functions, which the others derive from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from types import ModuleType
from typing import cast

import numpy.typing as npt

from ...arrays import Array
from ..graph.arguments import DType, Program
from ..graph.pytrees import PyTree
from ..graph.trace import Graph, Step
from ..plain_loop import plain_scan
from ..programs import planned_scan

__all__ = ["Library"]


class Library:
    """A library with nothing but the standard's functions: loops are Python's.

    Attributes
    ----------
    compiles : bool
        Whether it compiles a function anew for every shape it meets.
    records : bool
        Whether loops that are recorded run faster than as they are written, without `jit`: those that compute into
        given memory do.
    has_cache : bool
        Whether it helps to take a few time steps between two large products, so that they find their operands in the
        cache; on a GPU a launch for each block is what counts.
    """

    name = ""
    compiles = False
    records = False
    has_cache = False

    def jit(self, function: Callable[..., PyTree], static: tuple[str, ...]) -> Callable[..., PyTree]:
        """`function` compiled; `static` are the names of arguments that are no arrays."""
        return function

    def fuse(self, xp: ModuleType, function: Callable[..., Array]) -> Callable[..., Array]:
        """A pointwise function with `xp` bound, as one kernel."""
        return functools.partial(function, xp)

    def scan(
        self,
        xp: ModuleType,
        step: Step,
        carry: PyTree,
        xs: tuple[PyTree, ...],
        shared: PyTree,
        *,
        reverse: bool,
        recorded: bool,
        donate: bool,
    ) -> tuple[PyTree, PyTree]:
        """See `execution.scan`."""
        if recorded and self.records and not self.is_watched((carry, xs, shared)):
            donate = donate and self.can_donate(xs[0])
            found = planned_scan(xp, self, step, carry, xs, shared, reverse=reverse, donate=donate)
            if found is not None:
                return found
        return plain_scan(xp, step, carry, xs, shared, reverse=reverse)

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
        """See `execution.scan_in_one`."""
        return None

    def program(self, graph: Graph, step: Step, dtype: DType, *, donate: bool) -> Program | None:
        """Of a recorded step, where `records`; None if it has none."""
        return None

    def device_key(self, x: Array) -> Hashable:
        """By which programs of other devices are told apart."""
        return cast(Hashable, x.device)

    def is_watched(self, tree: PyTree) -> bool:
        """Whether autograd or a transform such as vmap watches an array: it must see operations that make new ones."""
        return False

    def can_donate(self, x: PyTree) -> bool:
        """Whether results can take the memory of `x`."""
        return True

    def keeps_carry(self, x: Array, numbers: int) -> bool:
        """See `execution.keeps_carry`; `numbers` is how many the parameters have."""
        return True

    def sums_in_loop(self, batch_size: int, numbers: int) -> bool:
        """See `execution.sums_in_loop`."""
        return False

    # ------------------------------------------------------------------ arrays over time

    def in_order(self, xp: ModuleType, x: Array) -> Array:
        """See `layout.in_order`."""
        return x

    def in_segments(self, xp: ModuleType, array: Array, start: int, stop: int, size: int) -> Sequence[Array] | Array:
        """See `layout.in_segments`."""
        return [array[k : k + size, ...] for k in range(start, stop, size)]  # without a copy

    def side_by_side(self, xp: ModuleType, a: Array) -> Array:
        """See `layout.side_by_side`."""
        return a

    def product(self, xp: ModuleType, left: Array, right: Array) -> Array:
        """See `layout.product`."""
        return xp.matmul(left, right)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array | None:
        """Memory that blocks may be written into, where arrays can be."""
        return None
