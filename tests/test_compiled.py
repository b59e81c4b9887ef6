"""Loops and kernels compiled by numba against the NumPy plan, the compiled tanh, and the files that keep them."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import array_api_compat.numpy as xp
import cases
import numpy as np
import pytest
from test_execution_cells import CELLS, run
from test_execution_programs import Written, as_python  # noqa: F401
from test_gradients import check_against_finite_differences
from trees import flat, mapped, relative_error

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.execution import compiled, loops

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")

FEW = ("rnn-tanh", "lstm-everything", "gru-before-clipped", "layer-norm-gru")  # for what compiles once more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled code is kept."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def turn_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """A function that turns numba on: whole loops, or kernels."""
    programs = loops._program
    monkeypatch.setenv("PORTABLE_RNN_CACHE_DIR", str(folder))

    def on(whole: bool) -> None:
        programs.cache_clear()
        monkeypatch.setattr(loops, "has_numba", lambda: True)
        monkeypatch.setattr(compiled, "SMALL", 1 << 30 if whole else -1)
        monkeypatch.setattr(loops, "KERNEL_DTYPES", {"float32", "float64"})

    yield on
    programs.cache_clear()


def compiled_programs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each program that runs from now on, whether it is a compiled whole loop."""
    ran: list[bool] = []
    original = loops.CompiledProgram.run

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        ran.append(self.whole)
        return original(self, *args, **options)

    monkeypatch.setattr(loops.CompiledProgram, "run", noted)
    return ran


# ---------------------------------------------------------------------- every cell


def both_directions(name: str) -> cases.Case:
    """One layer of the family, with all that holds the state back."""
    kind, options = cases.RECURRENT[name] if name in cases.RECURRENT else CELLS[name].FAMILIES[name]
    dropout = {} if name.startswith("min") else {"recurrent_dropout": 0.3}
    layer = kind(2, 3, 1, bidirectional=True, **dropout, **options)
    return cases.make_case(layer, (4, 3, 2), lengths=[2, 0, 3, 1], with_resets=True, seed=5)


@pytest.mark.usefixtures("as_python")
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "kernels"])
@pytest.mark.parametrize("name", CELLS)
def test_the_source_gives_what_the_plan_gives(
    name: str, whole: bool, turn_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = both_directions(name)
    expected = run(case)
    turn_on(whole)
    ran = compiled_programs(monkeypatch)
    got = run(case)
    assert ran == [whole] * 4  # two directions, forward and backward
    assert relative_error(got, expected) < 1e-11


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "kernels"])
@pytest.mark.parametrize("name", FEW)
def test_compiled_it_gives_the_same(name: str, whole: bool, turn_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = both_directions(name)
    expected = run(case)
    turn_on(whole)
    ran = compiled_programs(monkeypatch)
    got = run(case)
    assert ran == [whole] * 4
    assert relative_error(got, expected) < 1e-11


@pytest.mark.usefixtures("as_python")
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "kernels"])
@pytest.mark.parametrize("name", CELLS)
def test_torchs_tensors_give_what_numpys_arrays_give(
    name: str, whole: bool, turn_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    case = both_directions(name)
    expected = run(case)
    turn_on(whole)
    ran = compiled_programs(monkeypatch)

    def tensors(tree: Any) -> Any:
        return mapped(lambda a: torch.asarray(np.array(a)), tree)

    inputs = {key: tree if key == "lengths" else tensors(tree) for key, tree in case.inputs.items()}
    y, final, pullback = case.layer.vjp(**inputs)
    found = (y, final, *pullback(**{key: tensors(tree) for key, tree in case.cotangents.items()}))
    assert ran == [whole] * 4
    assert relative_error(mapped(torch.Tensor.numpy, found), expected) < 1e-11


@pytest.mark.parametrize("name", FEW[:2])
def test_gradients_match_finite_differences(name: str, turn_on: Any, numpy_backend: Any) -> None:
    turn_on(True)
    check_against_finite_differences(numpy_backend, CELLS[name].hard_case(name))


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "kernels"])
@pytest.mark.parametrize("name", ["rnn-tanh", "gru-before-clipped"])
def test_float32_agrees_with_float64(name: str, whole: bool, turn_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CELLS[name].hard_case(name)
    expected = run(case)
    turn_on(whole)
    ran = compiled_programs(monkeypatch)
    got = run(case.astype("float32"))
    assert set(ran) == {whole}
    assert {a.dtype.name for a in flat(got)} == {"float32"}
    assert relative_error(got, expected) < 1.4e-5  # as test_gradients.py derives it


def test_one_column_and_many(turn_on: Any) -> None:
    turn_on(True)
    for batch in (1, 2, 5):
        case = cases.make_case(prnn.GRU(3, 4), (batch, 6, 3))
        loops._program.cache_clear()
        got = run(case)
        parts = [dataclasses.replace(case, **_row(case, k)) for k in range(batch)]
        rows = [run(part) for part in parts]
        np.testing.assert_allclose(got[0], np.concatenate([row[0] for row in rows]), rtol=1e-11, atol=1e-12)
        total = {name: sum(row[2][name] for row in rows) for name in got[2]}
        assert relative_error(got[2], total) < 1e-11


def _row(case: cases.Case, k: int) -> dict[str, Any]:
    return {
        "x": case.x[k : k + 1],
        "dy": case.dy[k : k + 1],
        "state": case.state[:, k : k + 1],
        "dstate": case.dstate[:, k : k + 1],
    }


def test_results_are_not_overwritten_by_later_calls(turn_on: Any) -> None:
    turn_on(True)
    case = CELLS["lstm-everything"].hard_case("lstm-everything")
    first = run(case)
    before = mapped(np.array, first)
    second = run(dataclasses.replace(case, x=-case.x))
    assert not np.array_equal(first[0], second[0])
    assert all(np.array_equal(a, b) for a, b in zip(flat(first), flat(before), strict=True))


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "kernels"])
def test_not_a_number_stays_one(whole: bool, turn_on: Any) -> None:
    def every(xp: Any, shared: Any, carry: Any, inputs: Any) -> Any:
        (w,), (h,), (x,) = shared, carry, inputs
        outputs = [x + h, x - h, x * h, x / (1 + h**2), -x, abs(x), xp.tanh(x), xp.exp(x), xp.log1p(x), xp.sqrt(x)]
        outputs += [xp.maximum(x, h), xp.maximum(h, x), xp.maximum(x, 0.0), xp.minimum(x, h), xp.minimum(h, x)]
        outputs += [xp.clip(x, -1.0, 1.0), xp.where(h > 0, x, x), w @ x, xp.sum(x, axis=0, keepdims=True)]
        return (xp.tanh(h + xp.where(x == x, x, xp.zeros_like(x))),), tuple(outputs)

    rng = np.random.default_rng(0)
    x, h, w = rng.random((2, 3, 4)), rng.random((3, 4)), rng.random((3, 3))
    x[0, 1, 2] = np.nan
    plain = execution.scan(xp, Written(every), (h,), (x,), (w,))
    turn_on(whole)
    for dtype in ("float64", "float32"):
        arrays = (h.astype(dtype),), (x.astype(dtype),), (w.astype(dtype),)
        got = execution.scan(xp, Written(every), *arrays, recorded=True, compiling=True)
        for a, b in zip(flat(got), [plain[0][0], *(np.stack(column) for column in plain[1])], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == "float32" else 1e-13)  # NaN where NaN is
    assert np.isnan(got[1][0]).sum() == 1


# ---------------------------------------------------------------------- tanh


@pytest.fixture(scope="module")
def tanh32() -> Any:
    import numba

    scope: dict[str, Any] = {}
    source = compiled._PRELUDE.format(dtype="float32").replace("cache=True, ", "") + compiled._TANH32
    source += "\n\n@kernel\ndef every(x, out):\n    for k in range(x.size):\n        out[k] = tanh(x[k])\n"
    exec(source, scope)
    assert numba.config.DISABLE_JIT == 0

    def apply(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        scope["every"](x, out)
        return out

    return apply


def test_tanh_is_accurate_over_all_numbers(tanh32: Any) -> None:
    # every 3001st of all positive numbers, the subnormal ones too, and all around where it is cut off
    bits = np.arange(0, 0x7F800000, 3001, dtype=np.uint32)
    x = np.concatenate([bits.view("float32"), np.linspace(8.9, 9.3, 100_000, dtype="float32")])
    x = np.concatenate([x, -x])
    exact = np.tanh(x.astype("float64"))
    y = tanh32(x)
    normal = np.abs(x) >= np.finfo("float32").tiny
    assert np.max(np.abs(y[normal] - exact[normal]) / np.abs(exact[normal])) < 4e-7
    assert np.max(np.abs(y[~normal] - exact[~normal])) <= 2e-45  # one step of the subnormal numbers
    assert np.max(np.abs(y)) <= 1
    assert np.array_equal(y[: len(y) // 2], -y[len(y) // 2 :])


def test_tanh_at_its_ends(tanh32: Any) -> None:
    x = np.array([0.0, 9.2, 20.0, 3.4e38, np.inf], dtype="float32")
    y = tanh32(x)
    assert y[0] == 0
    assert set((1 - y[1:]).tolist()) <= {0.0, 2.0**-24, 2.0**-23}  # 1, or one of the two numbers below it
    assert np.array_equal(tanh32(-x), -y)
    assert np.isnan(tanh32(np.array([np.nan, -np.nan], dtype="float32"))).all()


# ---------------------------------------------------------------------- the files

SCRIPT = """
    import sys
    import numpy as np
    import portable_rnn as prnn
    from portable_rnn.execution import loops

    layer = prnn.RNN(2, 3)
    params = layer.init(seed=0)
    y, _, pullback = layer.vjp(params, np.ones((1, 4, 2), dtype="float32"))
    pullback(y)
    assert loops._program.cache_info().misses == 2
    print(float(y.sum()), sorted({m.__file__ for n, m in sys.modules.items() if n.startswith("portable_rnn_loop_")}))
"""


def in_new_process(folder: Path, **variables: str) -> str:
    """What the script prints."""
    environment = {**os.environ, "PORTABLE_RNN_CACHE_DIR": str(folder), "PORTABLE_RNN_NUMBA": "1", **variables}
    root = str(Path(prnn.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_second_process_does_not_compile_again(tmp_path: Path) -> None:
    first = in_new_process(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert len([path for path in files if path.suffix == ".py"]) == 2
    assert len([path for path in files if path.suffix == ".nbc"]) >= 2
    assert in_new_process(tmp_path) == first
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert after == files


def test_without_a_folder_it_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    total, modules = in_new_process(tmp_path / "file" / "folder").split(" ", 1)
    assert modules.strip() == "[]"
    plain, modules = in_new_process(tmp_path, PORTABLE_RNN_NUMBA="0").split(" ", 1)
    assert modules.strip() == "[]"
    assert float(total) == pytest.approx(float(plain), rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_file_of_the_same_name_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTABLE_RNN_CACHE_DIR", str(tmp_path))
    source = "kernel = str\n\n\ndef loop():\n    return 'mine'  # cache=True\n"
    assert compiled._loaded(source)() == "mine"
    (path,) = tmp_path.glob("loop_*.py")
    path.write_text("raise SystemExit('not mine')\n")
    assert compiled._loaded(source)() == "mine"
    assert path.read_text().startswith("raise")


def test_the_variable_turns_numba_off(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.has_numba.cache_clear()
    monkeypatch.setenv("PORTABLE_RNN_NUMBA", "0")
    assert not compiled.has_numba()
    compiled.has_numba.cache_clear()
    monkeypatch.setenv("PORTABLE_RNN_NUMBA", "1")
    assert compiled.has_numba()
    compiled.has_numba.cache_clear()


# ---------------------------------------------------------------------- when it is used


def test_numba_is_turned_on_and_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    try:
        for value, found, loaded in (("", True, False), ("1", True, True), ("0", False, False)):
            monkeypatch.setenv("PORTABLE_RNN_NUMBA", value)
            compiled.has_numba.cache_clear()
            assert (compiled.has_numba(), compiled.is_loaded()) == (found, loaded)
    finally:
        compiled.has_numba.cache_clear()


@pytest.mark.usefixtures("as_python")
@pytest.mark.parametrize("loaded", [True, False])
def test_predictions_are_compiled_only_where_numba_is_loaded(
    loaded: bool, turn_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_on(True)
    monkeypatch.setattr(loops, "is_loaded", lambda: loaded)
    ran = compiled_programs(monkeypatch)
    layer = prnn.LSTM(3, 4)
    params, x = layer.init(0), np.ones((2, 5, 3), dtype="float32")
    y, _ = layer.apply(params, x)
    assert ran == [True] * loaded
    assert relative_error(y, layer.vjp(params, x)[0]) < 1e-6
