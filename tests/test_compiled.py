"""Loops of machine code against the NumPy plan, and when they are used."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy as xp
import cases
import numpy as np
import pytest
from test_execution_cells import CELLS, run
from test_execution_programs import SHARED_BY, Written, share
from test_gradients import check_against_finite_differences
from trees import flat, mapped, relative_error

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.execution import memory_pool
from portable_rnn.execution.libraries import on_processor
from portable_rnn.execution.machine import compiler, loop, thread_pool
from portable_rnn.execution.machine import program as machine_loops
from portable_rnn.execution.machine.arguments import LoopForm

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llvmlite") is None, reason="llvmlite is not installed")


@pytest.fixture
def turn_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[bool]]]:
    """A function that has loops compiled from now on, and none before; its list grows by whether each could be."""
    ran: list[bool] = []
    original = machine_loops.compiled_scan

    def noted(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        ran.append(found is not None)
        return found

    def on(by: str | None = None) -> list[bool]:
        monkeypatch.setenv("PORTABLE_RNN_COMPILE", "1")
        execution.forget()
        monkeypatch.setattr(on_processor, "compiled_scan", noted)
        monkeypatch.setattr(machine_loops, "FEWEST_COLUMNS", 1)
        if by is not None:
            share(by, monkeypatch)
        return ran

    monkeypatch.setenv("PORTABLE_RNN_COMPILE", "0")
    execution.forget()
    yield on
    execution.forget()


# ---------------------------------------------------------------------- every cell


def both_directions(name: str) -> cases.Case:
    """One layer of the family, with all that holds the state back."""
    kind, options = cases.RECURRENT[name] if name in cases.RECURRENT else CELLS[name].FAMILIES[name]
    dropout = {} if name.startswith("min") else {"recurrent_dropout": 0.3}
    layer = kind(2, 3, 1, bidirectional=True, **dropout, **options)
    return cases.make_case(layer, (5, 7, 2), lengths=[2, 0, 3, 1, 7], with_resets=True, seed=5)


@pytest.mark.parametrize("by", SHARED_BY)
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_gives_what_the_plan_gives(name: str, by: str, turn_on: Any) -> None:
    case = both_directions(name)
    expected = run(case)
    ran = turn_on(by)
    got = run(case)
    assert ran == [True] * 4  # two directions, forward and backward
    assert relative_error(got, expected) < 1e-11


@pytest.mark.parametrize("by", SHARED_BY)
@pytest.mark.parametrize("name", ["lstm-everything", "gru-before-clipped", "layer-norm-lstm"])
def test_what_memory_held_before_is_not_seen(name: str, by: str, turn_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = both_directions(name)
    expected = run(case)
    turn_on(by)

    def full_of_nan(shape: Any, dtype: Any) -> Any:
        memory = np.empty(shape, dtype)
        memory.view(np.uint8)[...] = 255  # as a number, it is none
        return memory

    monkeypatch.setattr(memory_pool, "empty", full_of_nan)
    assert np.isnan(full_of_nan((1,), "float32")).all()
    assert relative_error(run(case), expected) < 1e-11


@pytest.mark.parametrize("name", CELLS)
def test_torchs_tensors_give_what_numpys_arrays_give(name: str, turn_on: Any) -> None:
    torch = pytest.importorskip("torch")
    case = both_directions(name)
    expected = run(case)
    ran = turn_on()

    def tensors(tree: Any) -> Any:
        return mapped(lambda a: torch.asarray(np.array(a)), tree)

    inputs = {key: tree if key == "lengths" else tensors(tree) for key, tree in case.inputs.items()}
    y, final, pullback = case.layer.vjp(**inputs)
    found = (y, final, *pullback(**{key: tensors(tree) for key, tree in case.cotangents.items()}))
    assert ran == [True] * 4
    assert relative_error(mapped(torch.Tensor.numpy, found), expected) < 1e-11


@pytest.mark.parametrize("name", CELLS)
def test_gradients_match_finite_differences(name: str, turn_on: Any, numpy_backend: Any) -> None:
    ran = turn_on()
    check_against_finite_differences(numpy_backend, CELLS[name].hard_case(name))
    assert set(ran) == {True}


@pytest.mark.parametrize("name", CELLS)
def test_float32_agrees_with_float64(name: str, turn_on: Any) -> None:
    case = CELLS[name].hard_case(name)
    expected = run(case)
    ran = turn_on()
    got = run(case.astype("float32"))
    assert set(ran) == {True}
    assert {a.dtype.name for a in flat(got)} == {"float32"}
    assert relative_error(got, expected) < 1.4e-5  # as test_gradients.py derives it


PAPERS = ["rnn-tanh", "lstm", "lstm-peepholes", "gru", "gru-before"]
PAPERS += ["layer-norm-lstm", "layer-norm-gru", "min-gru", "min-lstm"]


@pytest.mark.parametrize("name", PAPERS)
def test_gradients_in_float32_are_as_near_to_float64_as_the_plain_loops(name: str, turn_on: Any) -> None:
    """On average: layer norms of a few rows are ill-conditioned, and one case's errors differ by 0.1 to 30 times."""
    kind, options = cases.RECURRENT[name] if name in cases.RECURRENT else CELLS[name].FAMILIES[name]
    many = []
    for seed, hidden in itertools.product(range(12), (17, 33)):
        layer = kind(5, hidden, bidirectional=True, **options)
        case = cases.make_case(layer, (24, 40, 5), with_masks=False, seed=seed)
        case = dataclasses.replace(case, params=layer.init(seed))  # with large weights it would be chaos
        many.append(case.astype("float32").astype("float64"))
    plain = [(run(case), run(case.astype("float32"))) for case in many]
    ran = turn_on()
    ratios = []
    for case, (exact, expected) in zip(many, plain, strict=True):
        found = run(case.astype("float32"))
        for key, gradient in exact[2].items():
            errors = [float(np.linalg.norm(of[2][key] - gradient)) for of in (found, expected)]
            ratios.append(errors[0] / errors[1])
    assert set(ran) == {True}  # at every width
    assert np.exp(np.mean(np.log(ratios))) < 1.4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [1, 8, 21])
@pytest.mark.parametrize("batch", [1, 2, 8, 17, 40, 100])
def test_batches_and_layers_of_any_size(batch: int, hidden: int, dtype: str, turn_on: Any) -> None:
    case = cases.make_case(prnn.LSTM(3, hidden), (batch, 9, 3))
    expected = run(case)
    turn_on()
    assert relative_error(run(case.astype(dtype)), expected) < (1e-11 if dtype == "float64" else 1.4e-5)


@pytest.mark.parametrize("by", SHARED_BY)
def test_layers_wider_than_a_panel(by: str, turn_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right sides of the sums then stand as several panels, in which a thread's rows may begin anywhere."""
    forms: list[LoopForm] = []

    def noted(*options: Any) -> LoopForm:
        forms.append(LoopForm(*options))
        return forms[-1]

    monkeypatch.setattr(machine_loops, "LoopForm", noted)
    case = cases.make_case(prnn.LSTM(9, 29), (7, 9, 9), lengths=[9, 3, 0, 8, 9, 1, 5])
    expected = run(case)
    ran = turn_on(by)
    assert relative_error(run(case), expected) < 1e-11
    assert ran == [True, True]
    _, backward = forms
    assert (backward.by_rows, backward.own_sums) == (by.startswith("rows"), by in ("one thread", "columns"))
    assert backward.few == (7 if by.endswith("vectors") else 0)


@pytest.mark.parametrize("layout", ["steps first", "features first", "every second", "backwards", "fields"])
@pytest.mark.parametrize("batch", [1, 3])
def test_arrays_may_have_any_layout(layout: str, batch: int, turn_on: Any) -> None:
    layer = prnn.GRU(3, 4)
    params = {name: a.astype("float64") for name, a in layer.init(0).items()}
    order = {"steps first": (1, 0, 2), "features first": (2, 0, 1)}.get(layout, (0, 1, 2))

    def laid_out(a: np.ndarray) -> np.ndarray:
        if layout == "every second":
            return np.repeat(np.repeat(a, 2, axis=2), 2, axis=1)[:, ::2, ::2]
        if layout == "fields":  # distances that are no multiples of a number's size
            records = np.zeros(a.shape, dtype=[("first", "i2"), ("number", a.dtype)])
            records["number"] = a
            return records["number"]
        if layout == "backwards":
            return np.ascontiguousarray(a[:, ::-1, ::-1])[:, ::-1, ::-1]
        return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))

    def weight(a: np.ndarray) -> np.ndarray:
        if layout == "fields":
            return laid_out(a)
        return np.asfortranarray(a) if a.ndim == 2 else np.repeat(a, 2)[::2]

    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((batch, 6, 3)), rng.standard_normal((batch, 6, 4))
    expected = layer.vjp(params, x)[2](dy)
    ran = turn_on()
    got = layer.vjp({name: weight(a) for name, a in params.items()}, laid_out(x))[2](laid_out(dy))
    assert ran == [True] * 2
    assert relative_error(got, expected) < 1e-12


@pytest.mark.parametrize("by", SHARED_BY)
def test_results_are_not_overwritten_by_later_calls(by: str, turn_on: Any) -> None:
    turn_on(by)
    case = CELLS["lstm-everything"].hard_case("lstm-everything")
    first = run(case)
    before = mapped(np.array, first)
    second = run(dataclasses.replace(case, x=-case.x))
    assert not np.array_equal(first[0], second[0])
    assert all(np.array_equal(a, b) for a, b in zip(flat(first), flat(before), strict=True))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_not_a_number_stays_one(dtype: str, batch: int, turn_on: Any) -> None:
    def every(xp: Any, shared: Any, carry: Any, inputs: Any) -> Any:
        (w,), (h,), (x,) = shared, carry, inputs
        outputs = [x + h, x - h, x * h, x / (1 + h**2), -x, abs(x), xp.tanh(x), xp.exp(x), xp.log1p(x), xp.sqrt(x)]
        outputs += [xp.maximum(x, h), xp.maximum(h, x), xp.maximum(x, 0.0), xp.minimum(x, h), xp.minimum(h, x)]
        outputs += [xp.clip(x, -1.0, 1.0), xp.where(h > 0, x, x), w @ x, xp.sum(x, axis=0, keepdims=True)]
        outputs += [x == x, x != x, xp.logical_or(x <= h, xp.logical_not(x >= h))]
        return (xp.tanh(h + xp.where(x == x, x, xp.zeros_like(x))),), tuple(outputs)

    rng = np.random.default_rng(0)
    x, h, w = rng.random((2, 3, batch)), rng.random((3, batch)), rng.random((3, 3))
    x[0, 1, -1] = np.nan
    plain = execution.scan(xp, Written(every), (h,), (x,), (w,))
    turn_on()
    arrays = (h.astype(dtype),), (x.astype(dtype),), (w.astype(dtype),)
    found = execution.scan_in_one(xp, Written(every), *arrays)
    assert found is not None
    for a, b in zip(flat(found[:2]), [plain[0][0], *(np.stack(column) for column in plain[1])], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == "float32" else 1e-13)  # NaN where NaN is
    assert np.isnan(found[1][0]).sum() == 1


# ---------------------------------------------------------------------- when it is used


def test_it_is_turned_on_and_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llvmlite", raising=False)
    try:
        for value, found, loaded in (("", True, False), ("1", True, True), ("0", False, False)):
            monkeypatch.setenv("PORTABLE_RNN_COMPILE", value)
            execution.forget()
            assert (compiler.has_llvm(), compiler.is_loaded()) == (found, loaded)
    finally:
        execution.forget()


def test_machine_code_is_freed_with_the_programs_that_run_it(turn_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_on()
    made: list[weakref.ref[Any]] = []
    original = loop.Library

    def noted(*args: Any) -> compiler.Library:
        library = original(*args)
        made.extend(weakref.ref(function.keeps[0]) for function in library.functions.values())
        return library

    monkeypatch.setattr(loop, "Library", noted)
    run(both_directions("gru"))
    assert {reference() is None for reference in made} == {False}
    execution.forget()
    gc.collect()
    assert {reference() is None for reference in made} == {True}


@pytest.mark.parametrize("loaded", [True, False])
def test_predictions_are_compiled_only_where_the_compiler_is_loaded(
    loaded: bool, turn_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = turn_on()
    monkeypatch.setattr(on_processor, "is_loaded", lambda: loaded)
    layer = prnn.LSTM(3, 4)
    params, x = layer.init(0), np.ones((2, 5, 3), dtype="float32")
    y, _ = layer.apply(params, x)
    assert ran == [True] * loaded
    assert relative_error(y, layer.vjp(params, x)[0]) < 1e-6


@pytest.mark.parametrize(("steps", "batch", "compiled"), [(1, 1, False), (5, 4, False), (4, 9, True), (50, 1, True)])
def test_a_few_columns_are_left_to_the_plan(
    steps: int, batch: int, compiled: bool, turn_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewest = machine_loops.FEWEST_COLUMNS
    ran = turn_on()
    monkeypatch.setattr(machine_loops, "FEWEST_COLUMNS", fewest)
    layer = prnn.GRU(3, 4)
    layer.vjp(layer.init(0), np.ones((batch, steps, 3), dtype="float32"))
    assert ran == [compiled]


@dataclass(frozen=True)
class OwnSums(prnn.cells.ElmanCell):
    """Sums the squares of what would be the gradients: no sum over steps."""

    def parameter_gradients(self, xp: Any, dz: Any, h_before: Any, residuals: Any, emitted: Any) -> Any:
        found = super().parameter_gradients(xp, dz, h_before, residuals, emitted)
        return {name: gradient * gradient for name, gradient in found.items()}


def test_gradients_that_are_no_sums_are_left_to_the_plan(turn_on: Any) -> None:
    case = cases.make_case(prnn.Recurrent(OwnSums("tanh"), 2, 3), (4, 5, 2))
    expected = run(case)
    ran = turn_on()
    assert relative_error(run(case), expected) < 1e-12
    assert ran == [True, False]


@pytest.mark.parametrize("by", SHARED_BY)
def test_several_threads_at_once(by: str, turn_on: Any) -> None:
    turn_on(by)
    layer = prnn.LSTM(2, 3, bidirectional=True)
    many = [cases.make_case(layer, (7, 30, 2), seed=seed) for seed in range(4)]
    expected = [run(case) for case in many]
    together = threading.Barrier(len(many))

    def work(k: int) -> list[float]:
        together.wait()
        return [relative_error(run(many[k]), expected[k]) for _ in range(10)]

    with ThreadPoolExecutor(len(many)) as pool:
        errors = list(pool.map(work, range(len(many))))
    assert np.max(errors) < 1e-13  # as many threads as are free share the sums


@pytest.mark.parametrize("by", ["columns", "rows, which are vectors"])
def test_threads_that_fell_asleep(by: str, turn_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between loops each sleeps, or looks for work, or is about to sleep."""
    turn_on(by)
    monkeypatch.setattr(thread_pool, "POLLS_BEFORE_BLOCKING", 1280)
    case = cases.make_case(prnn.LSTM(2, 3), (7, 9, 2))
    expected = run(case)
    states = set()
    for k in range(100):
        time.sleep((k % 10) * 5e-5)
        states |= set(thread_pool.current().states.tolist())
        assert relative_error(run(case), expected) < 1e-14
    assert thread_pool.current().count == 2
    last_moment = time.monotonic() + 20  # on a busy machine a thread may not have come to sleep yet
    while thread_pool.BLOCKED not in states and time.monotonic() < last_moment:
        time.sleep(1e-3)
        states |= set(thread_pool.current().states.tolist())
    assert thread_pool.BLOCKED in states
    assert relative_error(run(case), expected) < 1e-14


def test_a_process_may_end_right_after_a_loop() -> None:
    script = (
        "import numpy as np, portable_rnn as prnn\n"
        "layer = prnn.LSTM(32, 64)\n"
        "y, _, pullback = layer.vjp(layer.init(0), np.ones((64, 40, 32), dtype='float32'))\n"
        "pullback(y)\n"
        "from portable_rnn.execution.machine import thread_pool\n"
        "print(thread_pool.current().count == min(thread_pool.thread_count(), 4) - 1)\n"
    )
    environment = os.environ | {"PORTABLE_RNN_COMPILE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")


def in_child(queue: Any, case: cases.Case) -> None:
    queue.put(run(case))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*")  # another library's threads, in the process that runs the tests
def test_a_forked_process_starts_threads_of_its_own(turn_on: Any) -> None:
    turn_on("columns")
    case = CELLS["gru"].hard_case("gru")
    expected = run(case)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue, case))
    child.start()
    try:
        got = queue.get(timeout=60)
    finally:
        child.terminate()
        child.join()
    assert relative_error(got, expected) == 0


@pytest.mark.parametrize("by", SHARED_BY)
def test_what_is_too_small_to_be_normal_is_zero_in_a_loop_and_stays_as_it_is_outside(by: str, turn_on: Any) -> None:
    turn_on(by)
    if not compiler.machine().has_control_word:
        pytest.skip("this processor is as fast with numbers that are too small to be normal")
    layer = prnn.RNN(1, 5, nonlinearity="relu", bias=False)
    params = {"weight_ih_l0": np.zeros((5, 1), "float32"), "weight_hh_l0": 0.5 * np.eye(5, dtype="float32")}
    normal, tiny = np.finfo("float32").smallest_normal, np.float32(2) ** -140
    y, _ = layer.apply(params, np.ones((7, 4, 1), "float32"), np.full((1, 7, 5), 4 * normal, "float32"))
    assert np.array_equal(y[:, :, 0] / normal, np.broadcast_to(np.float32([2, 1, 0, 0]), (7, 4)))
    assert np.full(5, tiny)[0] * np.float32(0.5) == np.float32(2) ** -141
