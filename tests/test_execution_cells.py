"""The cells as recorded loops, what is left to the plain loop, and what a program may share with the next call."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy as xp
import cases
import numpy as np
import pytest
import test_more_cells
from test_execution_programs import Written, check
from trees import flat, mapped

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.execution import programs as recorded_programs
from portable_rnn.execution.libraries import Library
from portable_rnn.execution.python_loop.program import PlannedProgram

CELLS = {**dict.fromkeys(cases.RECURRENT, cases), **dict.fromkeys(test_more_cells.FAMILIES, test_more_cells)}


# ---------------------------------------------------------------------- the library's cells, and a user's


@pytest.fixture
def fresh() -> Iterator[None]:
    """No programs of earlier tests, and none left behind."""
    programs = recorded_programs.program_of  # another stands there while a test runs
    programs.cache_clear()
    yield
    programs.cache_clear()


@pytest.fixture
def seen(fresh: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What becomes of each step that a test runs: the program, or None for the plain loop."""
    found: list[Any] = []
    original = recorded_programs.program_of

    def program(*args: Any) -> Any:
        found.append((args[3], original(*args)))
        return found[-1][1]

    program.cache_clear = original.cache_clear  # type: ignore[attr-defined]
    monkeypatch.setattr(recorded_programs, "program_of", program)
    return found


def run(case: cases.Case) -> Any:
    """(y, final state, dparams, dx, dstate) on NumPy."""
    y, final, pullback = case.layer.vjp(**case.inputs)
    return (y, final, *pullback(**case.cotangents))


def run_plainly(case: cases.Case, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same by the plain loop."""
    with monkeypatch.context() as patch:
        patch.setattr(execution, "library_of", lambda xp: Library())
        return run(case)


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_recorded(name: str, seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    case = CELLS[name].hard_case(name)
    seen.clear()
    got = run(case)
    assert {type(step).__name__ for step, _ in seen} == {"_Forward", "_Backward"}
    assert all(isinstance(program, PlannedProgram) for _, program in seen)
    check(got, run_plainly(case, monkeypatch), 1e-12)


@dataclass(frozen=True)
class Branching(prnn.cells.ElmanCell):
    """Asks for numbers while it runs."""

    def step(self, xp: Any, w: Any, z_t: Any, state: Any, drop: Any) -> Any:
        if float(xp.max(z_t)) > 1e9:
            raise OverflowError
        return super().step(xp, w, z_t, state, drop)


@dataclass(frozen=True)
class WithNumpy(prnn.cells.ElmanCell):
    """Computes with NumPy in place of the namespace that it is given."""

    def step(self, xp: Any, w: Any, z_t: Any, state: Any, drop: Any) -> Any:
        return super().step(np, w, np.multiply(z_t, 1.0), state, drop)


@pytest.mark.parametrize("cell", [Branching("tanh"), WithNumpy("tanh")])
def test_a_users_cell_that_cannot_be_recorded_runs_as_it_is(cell: Any, seen: list[Any]) -> None:
    case = cases.make_case(prnn.Recurrent(cell, 2, 3), (4, 5, 2))
    expected = cases.make_case(prnn.RNN(2, 3), (4, 5, 2))
    seen.clear()
    got = run(case)
    assert [program for step, program in seen if type(step).__name__ == "_Forward"] == [None]
    check(got, run(expected), 1e-14)


# ---------------------------------------------------------------------- programs and what they keep


def test_a_program_is_kept_for_each_form_dtype_and_configuration(fresh: None) -> None:
    def misses(layer: prnn.Layer, shape: tuple[int, ...], dtype: str = "float64") -> int:
        before = recorded_programs.program_of.cache_info().misses
        case = cases.make_case(layer, shape).astype(dtype)
        before = recorded_programs.program_of.cache_info().misses
        layer.apply(case.params, case.x)
        return recorded_programs.program_of.cache_info().misses - before

    case = cases.make_case(prnn.GRU(2, 3), (4, 5, 2))
    recorded_programs.program_of.cache_clear()
    case.layer.apply(case.params, case.x)
    assert misses(prnn.GRU(2, 3), (4, 5, 2)) == 0
    assert misses(prnn.GRU(2, 3), (4, 9, 2)) == 0  # another number of steps
    assert misses(prnn.GRU(2, 3, reverse=True), (4, 5, 2)) == 0
    assert misses(prnn.GRU(2, 3), (4, 5, 2), "float32") == 1
    # make_case has run these in float64, so in float32 they are new
    assert misses(prnn.GRU(2, 3), (3, 5, 2), "float32") == 1
    assert misses(prnn.GRU(2, 4), (4, 5, 2), "float32") == 1
    assert misses(prnn.GRU(2, 3, reset_after=False), (4, 5, 2), "float32") == 1


@pytest.mark.parametrize("name", ["rnn-tanh", "lstm-everything", "gru", "layer-norm-lstm"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_results_are_not_overwritten_by_later_calls(name: str, library: str, fresh: None) -> None:
    if library == "torch":
        pytest.importorskip("torch")
    target = prnn.backend(library, dtype="float64")
    case = CELLS[name].hard_case(name)
    scaled = {**case.inputs, "x": 1.5 * case.x, "state": mapped(np.negative, case.state)}

    def moved(tree: Any) -> Any:
        return mapped(lambda a: prnn.asarray(a.copy(), target, dtype=None if a.dtype == bool else "float64"), tree)

    def call(inputs: dict[str, Any]) -> Any:
        arrays = {key: value if key == "lengths" else moved(value) for key, value in inputs.items()}
        y, final, pullback = case.layer.vjp(**arrays)
        return (y, final, *pullback(**moved(case.cotangents)))

    first = call(case.inputs)
    before = mapped(lambda a: np.array(prnn.to_numpy(a)), first)
    second = call(scaled)
    check(mapped(prnn.to_numpy, first), before, 0.0)
    assert not np.array_equal(prnn.to_numpy(second[0]), before[0])
    check(mapped(prnn.to_numpy, call(case.inputs)), before, 0.0)


def test_two_pullbacks_of_one_program_do_not_share(fresh: None) -> None:
    case = cases.hard_case("lstm")
    other = cases.make_case(case.layer, case.x.shape, lengths=case.lengths, with_resets=True, seed=5)
    expected = [run(case), run(other)]
    y, final, pullback = case.layer.vjp(**case.inputs)
    z, last, other_pullback = other.layer.vjp(**other.inputs)
    check((z, last, *other_pullback(**other.cotangents)), expected[1], 0.0)
    check((y, final, *pullback(**case.cotangents)), expected[0], 0.0)
    check(pullback(**case.cotangents), expected[0][2:], 0.0)  # once more


def test_two_threads_at_once(fresh: None) -> None:
    layer = prnn.LSTM(2, 3, bidirectional=True)
    many = [cases.make_case(layer, (4, 30, 2), seed=seed) for seed in range(4)]
    expected = [run(case) for case in many]
    wrong: list[Any] = []
    together = threading.Barrier(len(many))

    def work(k: int) -> None:
        together.wait()
        for _ in range(20):
            try:
                check(run(many[k]), expected[k], 0.0)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(many))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", CELLS)
def test_inputs_are_not_written(name: str) -> None:
    case = CELLS[name].hard_case(name)
    before = mapped(np.copy, (case.inputs["params"], case.x, case.state, case.resets, case.masks, case.dy, case.dstate))
    run(case)
    after = (case.inputs["params"], case.x, case.state, case.resets, case.masks, case.dy, case.dstate)
    assert all(np.array_equal(a, b) for a, b in zip(flat(before), flat(after), strict=True))


def test_a_given_input_may_have_any_layout() -> None:
    rng = np.random.default_rng(0)
    x, h, w = rng.standard_normal((4, 3, 5)).transpose(2, 1, 0), np.zeros((3, 4)), rng.standard_normal((3, 3))
    step = Written(lambda xp, s, c, i: ((xp.tanh(c[0] + i[0]),), (s[0] @ xp.tanh(c[0] + i[0]),)))
    expected = execution.scan(xp, step, (h,), (x.copy(),), (w,))
    got = execution.scan(xp, step, (h,), (x,), (w,), recorded=True, donate=True)
    check(got, (expected[0], tuple(np.stack(column) for column in expected[1])))


@pytest.mark.parametrize("name", ["rnn-tanh", "lstm-everything", "gru", "layer-norm-lstm"])
def test_torch_calls_of_every_mode_may_follow_each_other(name: str, fresh: None) -> None:
    torch = pytest.importorskip("torch")
    case = CELLS[name].hard_case(name)
    expected = run(case)
    modes = {"train": contextlib.nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}

    def tensors(tree: Any) -> Any:
        return mapped(lambda a: torch.asarray(a.copy()), tree)

    def call(mode: str) -> Any:
        with modes[mode]():
            inputs = {key: tree if key == "lengths" else tensors(tree) for key, tree in case.inputs.items()}
            y, final, pullback = case.layer.vjp(**inputs)
            return mapped(torch.Tensor.numpy, (y, final, *pullback(**tensors(case.cotangents))))

    for order in itertools.permutations(modes):
        recorded_programs.program_of.cache_clear()  # the first call makes what is used again
        for mode in (*order, *order):
            check(call(mode), expected, 1e-12)
        with ThreadPoolExecutor(1) as pool:  # torch's modes are a thread's own
            check(pool.submit(call, "train").result(), expected, 1e-12)


# ---------------------------------------------------------------------- autograd sees every operation


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # its own, in forward mode
@pytest.mark.parametrize("transform", ["vmap", "jvp", "grad", "forward_ad"])
def test_torch_transforms_see_a_plain_loop(transform: str) -> None:
    torch = pytest.importorskip("torch")
    layer = prnn.LSTM(2, 3)
    params = layer.init(seed=0, backend=prnn.backend("torch", dtype="float64"))
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(2, 4, 2)
    along = torch.ones_like(x)

    def y(x: Any) -> Any:
        return layer.apply(params, x)[0]

    if transform == "vmap":
        found, expected = torch.func.vmap(y)(torch.stack([x, 2 * x])), torch.stack([y(x), y(2 * x)])
    elif transform == "grad":
        found = torch.func.grad(lambda x: y(x).sum())(x)
        expected = layer.vjp(params, x)[2](torch.ones(2, 4, 3, dtype=torch.float64))[1]
    else:
        expected = (y(x + 1e-6 * along) - y(x - 1e-6 * along)) / 2e-6
        if transform == "jvp":
            _, found = torch.func.jvp(y, (x,), (along,))
        else:
            with torch.autograd.forward_ad.dual_level():
                dual = y(torch.autograd.forward_ad.make_dual(x, along))
                found = torch.autograd.forward_ad.unpack_dual(dual).tangent.clone()
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-8)
