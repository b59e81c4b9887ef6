"""Time loops that run as a plan: recorded once for each step and form of its arguments, then called again and again."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..namespace import map_leaves
from . import reuse
from .compiled import compiled_loop, given_rows, has_numba, is_loaded, is_small
from .cuda import CudaProgram, cuda_program
from .dialects import NumpyDialect, TorchDialect
from .kernels import make_stages
from .planning import Plan, make_plan
from .stages import Kernel, Product, Stages
from .tracing import Graph, Untraceable, Value, flattened, rebuilt, trace

__all__ = ["planned_scan"]

# NumPy's float64 tanh is vector code, the compiled one is not.
KERNEL_DTYPES = {"float32"}
_DIALECTS: dict[str, type[NumpyDialect] | type[TorchDialect]] = {"numpy": NumpyDialect, "torch": TorchDialect}


@functools.lru_cache(maxsize=2)
def _dialect(library: str) -> NumpyDialect | TorchDialect:
    return _DIALECTS[library]()


class Program:
    """A planned loop and its workspace.

    The workspace goes from call to call. A call takes it out while it runs, so that a second one at the same time
    makes its own.
    """

    def __init__(self, plan: Plan, library: str, output_structure: Any) -> None:
        self.plan, self.output_structure = plan, output_structure
        self.dialect = _dialect(library)
        self.loop = plan.compiled()
        self.idle: list[Any] = []

    def run(self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool) -> tuple[Any, Any]:
        """(leaves of the final carry, nest of the outputs, each a stack over time)."""
        plan, like = self.plan, carry[0]
        steps = xs[0].shape[0]

        def empty(shape: tuple[int, ...], boolean: bool) -> Any:
            dtype = xp.bool if boolean else like.dtype
            if isinstance(like, np.ndarray):
                return reuse.empty(shape, dtype)
            return xp.empty(shape, dtype=dtype, device=like.device)

        try:
            work, numbers = self.idle.pop()
        except IndexError:
            work = [empty(*each) for each in plan.work]
            numbers = [xp.asarray(number, dtype=like.dtype, device=like.device) for number in plan.numbers]
        whole, after = [], []
        for stack in plan.stacks:
            if stack.carry is not None:
                memory = empty((steps + 1, *stack.shape), stack.boolean)
                memory[-1 if reverse else 0, ...] = carry[stack.carry]
                whole.append(memory)
                after.append(memory[:-1] if reverse else memory[1:])
            elif stack.given is not None:
                whole.append(xs[0][:, stack.given : stack.given + stack.shape[0]])
                after.append(whole[-1])
            else:
                whole.append(empty((steps, *stack.shape), stack.boolean))
                after.append(whole[-1])
        each = functools.partial(self.dialect.each, reverse=reverse)
        final = self.loop(each, carry, xs, shared, after, work, numbers)
        final = [xp.asarray(leaf, copy=True) for leaf in final]  # it stands in a workspace, or in a stack it would keep
        self.idle.append((work, numbers))
        found = _outputs(plan.outputs, xs, whole, after, reverse)
        return final, rebuilt(self.output_structure, iter(found))


class CompiledProgram:
    """A loop compiled by numba: all of it, or its kernels."""

    def __init__(
        self, stages: Stages, dtype: str, output_structure: Any, *, whole: bool, torch_products: bool = False
    ) -> None:
        self.stages, self.output_structure, self.whole = stages, output_structure, whole
        self.loop, self.names = compiled_loop(stages, dtype, whole=whole, torch_products=torch_products)
        self.given = given_rows(stages, whole)
        self.rows = [stage.rows for stage in stages.stages if isinstance(stage, Kernel)]
        self.products = {stage.left for stage in stages.stages if isinstance(stage, Product)}
        self.hoist = _hoisting(stages.hoisted, _dialect("numpy"))

    def run(self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool) -> tuple[Any, Any]:
        """As `Program.run`."""
        steps, (_, batch), dtype = xs[0].shape[0], carry[0].shape, carry[0].dtype

        def empty(shape: tuple[int, ...], boolean: bool) -> Any:
            return reuse.empty(shape, np.bool if boolean else dtype)

        # the kernels see a step at a time
        arrays: dict[str, Any] = {
            f"X{k}": x if not self.whole and x.flags.writeable and x[0].flags.c_contiguous else _plain(xp, x)
            for k, x in enumerate(xs)
        }
        arrays |= {f"c{k}": xp.array(leaf, order="C") for k, leaf in enumerate(carry)}
        # BLAS takes a transposed matrix as it is
        as_they_are = set() if self.whole else self.products
        arrays |= {f"s{k}": s if f"s{k}" in as_they_are else _plain(xp, s) for k, s in enumerate(shared)}
        arrays |= {f"h{k}": _plain(xp, leaf) for k, leaf in enumerate(self.hoist(shared, dtype.type))}
        arrays |= {f"w{k}": empty(*form) for k, form in enumerate(self.stages.work)}
        arrays |= {f"{which}{k}": np.empty(leaf.shape, leaf.dtype) for k, leaf in enumerate(carry) for which in "nm"}
        whole, after = [], []
        for k, stack in enumerate(self.stages.stacks):
            if f"y{k}" in self.given:
                start = self.given[f"y{k}"]
                memory = arrays["X0"][:, start : start + stack.shape[0]]
            else:
                memory = empty((steps + (stack.carry is not None), *stack.shape), stack.boolean)
            whole.append(memory)
            if stack.carry is not None:
                memory[-1 if reverse else 0, ...] = carry[stack.carry]
                memory = memory[:-1] if reverse else memory[1:]
            arrays[f"Y{k}"] = memory
            after.append(memory)
        ordered = []
        for name in self.names:
            array = arrays[name]
            if self.whole and name not in self.products:
                array = array.reshape(steps, -1) if name[0] in "XY" else array.reshape(-1)
            ordered.append(array)
        final = self.loop(steps, reverse, batch, *self.rows, *ordered)
        found = _outputs(self.stages.outputs, xs, whole, after, reverse)
        final = [leaf.reshape(like.shape).copy() for leaf, like in zip(final, carry, strict=True)]
        return final, rebuilt(self.output_structure, iter(found))


class TorchProgram:
    """A compiled loop over torch's tensors on the CPU, whose memory NumPy arrays share; its products are torch's.

    Products by NumPy would bring a second pool of threads, in the way of torch's own.
    """

    def __init__(self, program: CompiledProgram) -> None:
        self.program = program

    def run(self, xp: Any, carry: list[Any], xs: list[Any], shared: list[Any], *, reverse: bool) -> tuple[Any, Any]:
        """As `Program.run`."""
        matrices = set() if self.program.whole else self.program.products
        mixed = [s if f"s{k}" in matrices else s.numpy() for k, s in enumerate(shared)]
        final, outputs = self.program.run(
            np, [leaf.numpy() for leaf in carry], [leaf.numpy() for leaf in xs], mixed, reverse=reverse
        )
        return [xp.from_numpy(leaf) for leaf in final], map_leaves(xp.from_numpy, outputs)


def _outputs(
    outputs: list[tuple[str, int, int, int]], xs: list[Any], whole: list[Any], after: list[Any], reverse: bool
) -> list[Any]:
    """Each output of a plan over time, from the stacks (`whole` with the first value of a carry, `after` without)."""
    found = []
    for kind, k, start, stop in outputs:
        if kind == "before":
            memory = whole[k][1:] if reverse else whole[k][:-1]
        else:
            memory = xs[k] if kind == "input" else after[k]
        found.append(memory if stop - start == memory.shape[1] else memory[:, start:stop])
    return found


def _plain(xp: Any, array: Any) -> Any:
    """An array as compiled code wants it: in order, and writable, so that all have one type."""
    return array if array.flags.c_contiguous and array.flags.writeable else xp.array(array, order="C")


def _hoisting(values: list[Value], dialect: NumpyDialect | TorchDialect) -> Any:
    """``f(shared, number)``: the values that are the same at every step."""

    def written(value: Any) -> str:
        if not isinstance(value, Value):
            return f"number({value!r})"
        if value.op == "shared":
            return f"shared[{value.detail[0]}]"
        return dialect.expression(value.op, [written(operand) for operand in value.operands], value)

    source = f"lambda shared, number: [{', '.join(map(written, values))}]"
    return eval(source, dict(dialect.names))


@functools.lru_cache(maxsize=128)
def _program(
    library: str, place: Any, step: Any, structures: Any, specs: Any, donate: bool, compiling: bool
) -> Program | CompiledProgram | TorchProgram | CudaProgram | None:
    """The program of a step for arguments of this form, or None where it can't be recorded.

    `place` is the dtype and device: every program has its own workspace.
    """
    kinds = ("carry", "xs", "shared")
    try:
        graph = trace(
            step,
            {kind: list(leaves) for kind, leaves in zip(kinds, specs, strict=True)},
            dict(zip(kinds, structures, strict=True)),
        )
    except Untraceable:
        return None
    if library == "cupy":
        return cuda_program(graph, place[0].name, donate=donate)
    compiled = None
    if compiling and has_numba() and (library == "numpy" or place[1].type == "cpu"):
        compiled = _compiled(graph, str(place[0]).rpartition(".")[2], donate, library)
    return compiled or Program(make_plan(graph, _dialect(library), donate=donate), library, graph.output_structure)


def _compiled(graph: Graph, dtype: str, donate: bool, library: str) -> CompiledProgram | TorchProgram | None:
    """The program compiled by numba, where that is known to be faster and can be done."""
    try:
        stages = make_stages(graph, donate=donate)
    except Untraceable:
        return None
    shapes = {f"s{k}": value.shape for k, value in enumerate(graph.inputs["shared"])}
    shapes |= {f"h{k}": value.shape for k, value in enumerate(stages.hoisted)}
    whole = is_small(stages, shapes, graph.inputs["carry"][0].shape[1])
    if not whole and dtype not in KERNEL_DTYPES:
        return None
    if library == "numpy":
        return CompiledProgram(stages, dtype, graph.output_structure, whole=whole)
    if any(isinstance(stage, Product) and stage.left[0] == "h" for stage in stages.stages):
        return None
    return TorchProgram(CompiledProgram(stages, dtype, graph.output_structure, whole=whole, torch_products=True))


def _hashable(step: Any) -> bool:
    """Whether the program of a step can be found again: a user's cell may hold what has no hash."""
    try:
        hash(step)
    except TypeError:
        return False
    return True


def planned_scan(
    xp: Any,
    library: str,
    step: Any,
    carry: Any,
    xs: Any,
    shared: Any,
    *,
    reverse: bool,
    donate: bool,
    compiling: bool,
) -> tuple[Any, Any] | None:
    """`scan` by a planned loop, or None where the step can't be recorded."""
    groups: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    structures = tuple([flattened(tree, leaves) for tree, leaves in zip((carry, xs, shared), groups, strict=True)])
    carry_leaves, x_leaves, shared_leaves = groups
    floating, boolean = carry_leaves[0].dtype, xp.bool
    if floating not in (xp.float32, xp.float64) or not _hashable(step):
        return None
    specs = []
    for leaves, over_time in zip(groups, (0, 1, 0), strict=True):
        forms = []
        for leaf in leaves:
            if isinstance(leaf, list) or (leaf.dtype != floating and leaf.dtype != boolean):
                return None
            forms.append((tuple(leaf.shape[over_time:]), leaf.dtype != floating))
        specs.append(tuple(forms))
    # CuPy's devices have no hash; its programs keep no arrays
    place = (floating, None if library == "cupy" else carry_leaves[0].device)
    program = _program(library, place, step, structures, tuple(specs), donate, compiling or is_loaded())
    if program is None:
        return None
    final, outputs = program.run(xp, carry_leaves, x_leaves, shared_leaves, reverse=reverse)
    return rebuilt(structures[0], iter(final)), outputs
