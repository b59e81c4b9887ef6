"""Planned and compiled time loops against the plain one: random steps, and every way in which memory can be shared."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given, settings
from step_programs import Program, programs
from trees import flat, mapped

from portable_rnn.execution import programs as recorded_programs
from portable_rnn.execution.graph import pytrees, trace, verify
from portable_rnn.execution.libraries import library_of
from portable_rnn.execution.machine import program as machine_loops
from portable_rnn.execution.machine import thread_pool, workspace


def plain(program: Program) -> Any:
    """(final carry, outputs) of the loop as the standard's functions run it."""
    carry, steps = program.carry, program.xs[0].shape[0]
    outputs: list[Any] = [None] * steps
    for t in reversed(range(steps)) if program.reverse else range(steps):
        carry, outputs[t] = program.step(xp, program.shared, carry, tuple(x[t, ...] for x in program.xs))
    return carry, tuple(np.stack(column) for column in zip(*outputs, strict=True))


def planned(program: Program, library: str) -> Any:
    """The same by the plan; only the input that is given away may be written to."""
    array: Callable[[Any], Any] = np.copy
    namespace: Any = xp
    if library == "torch":
        torch = pytest.importorskip("torch")
        array, namespace = (lambda a: torch.asarray(a.copy())), pytest.importorskip("array_api_compat.torch")
    arrays = mapped(array, (program.carry, program.xs, program.shared))
    found = recorded_programs.planned_scan(
        namespace,
        library_of(namespace),
        program.step,
        *arrays,
        reverse=program.reverse,
        donate=program.donate,
    )
    assert found is not None, "not recorded"
    kept = (program.carry, program.xs[program.donate :], program.shared)
    carry, xs, shared = arrays
    check(mapped(np.asarray, (carry, xs[program.donate :], shared)), kept, 0.0)
    return mapped(np.asarray, found)


def recorded(program: Program) -> trace.Graph:
    """The graph of the program's step."""
    groups: tuple[list[Any], ...] = ([], [], [])
    trees = (program.carry, program.xs, program.shared)
    structures = [pytrees.flattened(tree, leaves) for tree, leaves in zip(trees, groups, strict=True)]
    specs = [
        [(leaf.shape[over_time:], leaf.dtype == bool) for leaf in leaves]
        for leaves, over_time in zip(groups, (0, 1, 0), strict=True)
    ]
    graph = trace.trace(program.step, specs, structures)
    verify.verify(graph)
    return graph


def compiled(program: Program) -> Any:
    """The same by machine code, or None where it has to be left to the plan, or llvmlite is missing."""
    if importlib.util.find_spec("llvmlite") is None:
        return None
    try:
        loop = machine_loops.CompiledProgram(recorded(program), "float64")
    except trace.Untraceable:
        return None
    verify.verify_cut(loop.cut)
    arrays = mapped(np.copy, (program.carry, program.xs, program.shared))
    carry, outputs, _ = loop.run(xp, *map(list, arrays), reverse=program.reverse)
    check(arrays, (program.carry, program.xs, program.shared), 0.0)
    return tuple(carry), outputs


SHARED_BY = ("one thread", "columns", "columns, sums by rows", "rows", "rows, which are vectors")


def share(by: str, patch: pytest.MonkeyPatch) -> None:
    """Have compiled loops run in one thread; or in three, of which each takes columns or rows, however few they are.

    Vectors hold two numbers, so that small arrays have full ones, a last one that is not, and several for each thread;
    four where threads are to share rows, which they do up to twice as many columns.
    """
    rows, vectors = by.startswith("rows"), by.endswith("vectors")
    patch.setattr(machine_loops, "vector_lanes", lambda dtype, batch: 4 if rows else 2)
    patch.setattr(machine_loops, "takes_rows", lambda dtype, columns: vectors and columns > 1)
    for module in (machine_loops, thread_pool):
        patch.setattr(module, "thread_count", lambda: 1 if by == "one thread" else 3)
    patch.setattr(thread_pool, "pool", thread_pool.ThreadPool())
    patch.setattr(machine_loops, "WORTH_A_THREAD", 0)
    patch.setattr(machine_loops, "LINE", 16)
    patch.setattr(machine_loops, "WORTH_WAITING", 0 if rows else 1 << 60)
    patch.setattr(workspace, "COLLECTED", 5)
    patch.setattr(machine_loops, "MOST_OWN_SUMS", 0 if by == "columns, sums by rows" else 1 << 20)
    patch.setattr(machine_loops, "FEWEST_COLUMNS", 1)
    machine_loops.programs.cache_clear()


def check(got: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(flat(got), flat(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if b.dtype == bool:
            assert np.array_equal(a, b)
        else:
            assert np.max(np.abs(a - b), initial=0) <= tolerance * max(1, np.max(np.abs(b), initial=0))


# ---------------------------------------------------------------------- random steps


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_random_steps_as_planned(library: str) -> None:
    @settings(max_examples=400)
    @given(programs())
    def check_one(program: Program) -> None:
        check(planned(program, library), plain(program))

    check_one()


@pytest.mark.parametrize("by", SHARED_BY)
def test_random_steps_as_machine_code(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    share(by, monkeypatch)
    ran = []

    @settings(max_examples=150)
    @given(programs())
    def check_one(program: Program) -> None:
        found = compiled(program)
        ran.append(found is not None)
        if found is not None:
            check(found, plain(program))

    check_one()
    assert sum(ran) > 20  # most are not as wide as the carry, or give an input back


# ---------------------------------------------------------------------- one hazard each


@dataclass(frozen=True)
class Written:
    """A step that is a function of (xp, shared, carry, inputs)."""

    function: Any

    def __call__(self, namespace: Any, shared: Any, carry: Any, inputs: Any) -> Any:
        return self.function(namespace, shared, carry, inputs)


# In all of them the carry is two (3, 4) arrays, the inputs (6, 4), (3, 4) and booleans (1, 4), shared (3, 3), (3, 1)
# and booleans (3, 1).
HAZARDS: dict[str, Any] = {
    "carry passed through": lambda xp, s, c, x: (c, (c[0] + x[1],)),
    "carry passed through, and an output": lambda xp, s, c, x: (c, (c[0], c[1] + x[1])),
    "swapped carries": lambda xp, s, c, x: ((c[1], c[0]), (c[0] + x[1],)),
    "swapped carries that are outputs": lambda xp, s, c, x: ((c[1], c[0]), (c[0], c[1])),
    "carries that change places while one is new": lambda xp, s, c, x: ((xp.tanh(c[1] + x[1]), c[0]), (c[0] * c[1],)),
    "one array for two carries": lambda xp, s, c, x: (lambda n: ((n, n), (n,)))(xp.tanh(c[0] - c[1] + x[1])),
    "one array for two carries, no output": lambda xp, s, c, x: (lambda n: ((n, n), (c[0] + 1,)))(
        xp.tanh(c[0] - 2 * c[1] + x[1])
    ),
    "the carry before the step": lambda xp, s, c, x: (
        (xp.tanh(s[0] @ c[0] + x[1]), c[1] * 0.5),
        (c[0], c[1][1:3, ...]),
    ),
    "an output that is a row block": lambda xp, s, c, x: (c, (xp.tanh(x[0])[2:5, ...],)),
    "a carry that is a row block of an output": lambda xp, s, c, x: (
        lambda a: ((a[:3, ...], a[3:, ...]), (a, a[1:2, ...]))
    )(xp.tanh(x[0] + 1)),
    "an output that is a concatenation": lambda xp, s, c, x: (lambda a, b: ((a, b), (xp.concat([b, a]), a)))(
        xp.tanh(c[0] + x[1]), xp.tanh(c[1] - x[1])
    ),
    "a part of a concatenation": lambda xp, s, c, x: (lambda a: (c, (a, xp.concat([x[1], a]), xp.concat([a, a]))))(
        xp.tanh(c[0] + x[1])
    ),
    "a carry as part of a concatenation": lambda xp, s, c, x: (
        (xp.tanh(c[1]), xp.tanh(c[0] + x[1])),
        (xp.concat([c[0], x[0], c[1]]),),
    ),
    "nested concatenations": lambda xp, s, c, x: (
        lambda a, b: ((a, b), (xp.concat([xp.concat([a, b]), xp.concat([b, x[1], a])]), b))
    )(xp.tanh(c[0] + x[1]), xp.tanh(c[1] * x[1])),
    "an output that is an input": lambda xp, s, c, x: ((c[1], xp.tanh(x[1])), (x[0], x[0][1:4, ...], x[2], c[0] + 1)),
    "a carry that is an input": lambda xp, s, c, x: ((x[1], x[0][3:, ...]), (c[0] + c[1],)),
    "constant outputs": lambda xp, s, c, x: (
        (xp.zeros_like(c[0]), c[1] + x[1]),
        (s[0], xp.zeros_like(x[1]), s[0] @ s[1], xp.sum(s[0], axis=0, keepdims=True), c[0]),
    ),
    "constant outputs as wide as the carry": lambda xp, s, c, x: (
        (xp.ones_like(c[0]) * 0.5, c[1]),
        (xp.zeros_like(x[1]), s[0] @ xp.ones_like(c[0]), xp.sum(s[1] + xp.zeros_like(c[0]), axis=0, keepdims=True)),
    ),
    "a value twice": lambda xp, s, c, x: (lambda a: ((a, c[1]), (a, a, a[1:, ...])))(xp.tanh(c[0] + x[1])),
    "the given input is read after an output": lambda xp, s, c, x: (
        lambda a: ((xp.tanh(a[:3, ...]), c[1]), (a, x[0] * a, x[0] - 1))
    )(xp.concat([c[0], c[1]])),
    "the given input is read by a product": lambda xp, s, c, x: (
        (xp.tanh(s[0] @ x[0][:3, ...]), c[1]),
        (x[0] * 2, s[0] @ x[0][3:, ...]),
    ),
    "the given input is read transposed": lambda xp, s, c, x: (
        lambda a: ((xp.tanh(a[:3, ...]), c[1]), (a, a @ (x[0].T @ a)))
    )(xp.tanh(x[0])),
    "the given input is not read": lambda xp, s, c, x: ((xp.tanh(c[0] + x[1]), c[1]), (xp.concat([c[1], c[0]]),)),
    "the given input and a product": lambda xp, s, c, x: (lambda a: ((s[0] @ a[:3, ...] * 0.1, c[1]), (a,)))(
        xp.tanh(x[0] + 1)
    ),
    "memory that is read transposed later": lambda xp, s, c, x: (
        lambda a: (c, (xp.tanh(xp.tanh(c[0] + 1) - 1) * 2, a.T @ (c[1] + 3)))
    )(xp.tanh(c[0] + x[1])),
    "transposed outputs": lambda xp, s, c, x: ((xp.tanh(c[0] + x[1]), c[0]), (x[0].T, c[0].T, xp.tanh(x[1]).T)),
    "where over its own operands": lambda xp, s, c, x: (
        lambda a, b: ((xp.where(x[2], a, b), xp.where(x[2], b, a)), (xp.where(a > 0.1, b, a),))
    )(xp.tanh(c[0] + x[1]), xp.tanh(c[1] - x[1])),
    "where as a chain": lambda xp, s, c, x: (
        lambda a: (
            (xp.where(x[2], xp.where(c[0] > 0.05, a, xp.zeros_like(a)), c[0]), xp.where(s[2], a, c[1])),
            (xp.where(x[2], xp.ones_like(a), xp.zeros_like(a)),),
        )
    )(xp.tanh(c[0] + x[1])),
    "one row in several": lambda xp, s, c, x: ((xp.tanh(c[0] * x[0][0:1, ...]), c[1]), (c[1] + x[1][2:3, ...],)),
    "a boolean as a number": lambda xp, s, c, x: (
        (xp.astype(s[2], c[0].dtype) * c[0], c[1]),
        (xp.astype(x[2], c[0].dtype), (s[0] * xp.astype(s[2], c[0].dtype)) @ c[0], xp.logical_not(x[2])),
    ),
    "an output wider than its operands": lambda xp, s, c, x: (
        c,
        (s[1] * xp.ones_like(c[0]), xp.where(x[2], xp.ones_like(c[0]), 2 * xp.ones_like(c[0]))),
    ),
    "minus zero": lambda xp, s, c, x: (
        c,
        (xp.where(x[2], -0.0, c[0]) + 0.0 * x[1], 1 / xp.where(x[2], -0.0, 1 + c[0] ** 2)),
    ),
}


def hazard_program(name: str, *, steps: int, reverse: bool, donate: bool, batch: int = 4) -> Program:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    return Program(
        Written(HAZARDS[name]),  # type: ignore[arg-type]
        (normal(3, batch), normal(3, batch)),
        (normal(steps, 6, batch), normal(steps, 3, batch), rng.random((steps, 1, batch)) < 0.5),
        (normal(3, 3), normal(3, 1), np.array([[True], [False], [True]])),
        reverse,
        donate,
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", HAZARDS)
def test_hazards(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for reverse, donate in itertools.product([False, True], repeat=2):
        program = hazard_program(name, steps=steps, reverse=reverse, donate=donate)
        with np.errstate(divide="ignore"):
            expected = finite(plain(program))
            check(finite(planned(program, "numpy")), expected)
            for by in SHARED_BY:
                share(by, monkeypatch)
                found = compiled(program)
                if found is not None:
                    check(finite(found), expected)


@pytest.mark.parametrize("name", HAZARDS)
def test_hazards_on_torch(name: str) -> None:
    for reverse, donate in itertools.product([False, True], repeat=2):
        program = hazard_program(name, steps=3, reverse=reverse, donate=donate)
        with np.errstate(divide="ignore"):
            check(finite(planned(program, "torch")), finite(plain(program)))


def finite(tree: Any) -> Any:
    """Infinities as the largest numbers."""
    return mapped(lambda a: a if a.dtype == bool else np.nan_to_num(a), tree)


def test_a_program_is_of_one_dtype() -> None:
    program = hazard_program("a boolean as a number", steps=3, reverse=False, donate=True)

    def narrow(a: np.ndarray) -> np.ndarray:
        return a if a.dtype == bool else a.astype("float32")

    arrays = mapped(narrow, (program.carry, program.xs, program.shared))
    got = planned(Program(program.step, *arrays, reverse=False, donate=True), "numpy")
    assert {a.dtype.name for a in flat(got)} == {"float32", "bool"}
    check(mapped(lambda a: a.astype("float64"), got), mapped(lambda a: a.astype("float64"), plain(program)), 1e-6)
