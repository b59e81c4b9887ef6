"""Loops of machine code as calls of XLA: JAX's arrays against the NumPy plan, and what else JAX does with them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import cases
import numpy as np
import pytest
from test_compiled import both_directions
from test_execution_cells import CELLS, run
from test_gradients import check_against_finite_differences
from trees import flat, mapped, relative_error

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.execution.machine import program as machine_loops

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("llvmlite") is None, reason="llvmlite is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed"),
]

if importlib.util.find_spec("jax") is not None:
    import jax
    import jax.numpy as jnp

    from portable_rnn.execution.machine import xla_call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Loops of any size are calls, and the list grows with each that runs: by whether it adds up gradients."""
    ran: list[bool] = []
    original = machine_loops.CompiledProgram.compute

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        ran.append(bool(self.sum_forms))
        return original(self, *args, **options)

    def forget() -> None:
        xla_call.can_call.cache_clear()
        jax.clear_caches()
        execution.forget()  # the variable is read again

    monkeypatch.setenv("PORTABLE_RNN_COMPILE", "0")
    monkeypatch.setattr(xla_call, "has_llvm", lambda: True)  # NumPy's loops stay planned
    monkeypatch.setattr(machine_loops.CompiledProgram, "compute", noted)
    monkeypatch.setattr(xla_call, "WORTH_A_CALL", 0)
    forget()
    yield ran
    forget()


def on_jax(tree: Any) -> Any:
    return mapped(lambda a: jnp.asarray(np.array(a)), tree)


def run_on_jax(case: cases.Case) -> Any:
    inputs = {key: tree if key == "lengths" else on_jax(tree) for key, tree in case.inputs.items()}
    y, final, pullback = case.layer.vjp(**inputs)
    return mapped(np.asarray, (y, final, *pullback(**on_jax(case.cotangents))))


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_gives_what_the_plan_gives(name: str, calls: list[bool]) -> None:
    case = both_directions(name)
    found = run_on_jax(case)
    assert sorted(calls) == [False, False, True, True]
    assert relative_error(found, run(case)) < 1e-11


@pytest.mark.parametrize("name", ["rnn-tanh", "lstm", "gru"])
def test_gradients_match_finite_differences(name: str, calls: list[bool], jax_backend: Any) -> None:
    check_against_finite_differences(jax_backend, CELLS[name].hard_case(name))
    assert {False, True} == set(calls)


def test_float32_and_steps_in_between(calls: list[bool]) -> None:
    case = cases.make_case(prnn.LSTM(3, 5, 2, recompute_every=4), (6, 10, 3)).astype("float32")
    found = run_on_jax(case)
    assert {a.dtype.name for a in flat(found)} == {"float32"}
    assert relative_error(found, run(case)) < 1.4e-5
    assert len(calls) >= 4


@pytest.mark.parametrize("compiled", [False, True])
def test_derivatives_are_those_of_jax(compiled: bool, calls: list[bool]) -> None:
    layer = prnn.GRU(2, 3)
    case = cases.make_case(layer, (4, 6, 2), lengths=[6, 3, 1, 4], with_masks=False)
    params, x, dy = on_jax((case.params, case.x, case.cotangents["dy"]))

    def loss(params: Any, x: Any) -> Any:
        return jnp.sum(layer.apply(params, x, lengths=case.lengths)[0] * dy)

    wrapped = jax.jit(loss) if compiled else loss
    got = jax.grad(wrapped, argnums=(0, 1))(params, x)
    _, _, pullback = layer.vjp(params, x, lengths=case.lengths)
    expected = pullback(dy)[:2]
    assert relative_error(mapped(np.asarray, got), mapped(np.asarray, expected)) < 1e-12
    direction = jnp.ones_like(x)
    _, along = jax.jvp(lambda x: wrapped(params, x), (x,), (direction,))
    assert float(along) == pytest.approx(float(jnp.sum(expected[1] * direction)), rel=1e-10)
    assert calls


def test_derivatives_of_derivatives_are_those_of_jax(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = prnn.RNN(1, 2)
    params, x = on_jax((mapped(lambda a: a.astype("float64"), layer.init(0)), np.ones((2, 3, 1))))

    def curvature() -> Any:
        jax.clear_caches()
        return np.asarray(jax.hessian(lambda x: jnp.sum(layer.apply(params, x)[0] ** 2))(x))

    found = curvature()
    monkeypatch.setattr(xla_call, "WORTH_A_CALL", 1 << 60)
    assert relative_error(found, curvature()) < 1e-12


def test_vmap_runs_many(calls: list[bool]) -> None:
    layer = prnn.LSTM(2, 3)
    params, x = on_jax(
        (mapped(lambda a: a.astype("float64"), layer.init(0)), np.random.default_rng(0).random((5, 4, 6, 2)))
    )
    many = jax.vmap(lambda x: layer.apply(params, x)[0])(x)
    one_by_one = jnp.stack([layer.apply(params, part)[0] for part in x])
    assert calls == [False] * 5
    assert relative_error(np.asarray(many), np.asarray(one_by_one)) < 1e-12


def test_an_error_in_a_call_comes_out_of_jax(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = prnn.RNN(2, 3)
    params = layer.init(0, "jax")

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        raise MemoryError("no room for the loop")

    monkeypatch.setattr(machine_loops.CompiledProgram, "compute", broken)
    with pytest.raises(Exception, match="MemoryError: no room for the loop"):
        layer.apply(params, jnp.ones((2, 4, 2), dtype="float32"))[0].block_until_ready()


@pytest.mark.parametrize("reason", ["small", "several devices", "another platform", "turned off"])
def test_where_jax_runs_the_loop_itself(reason: str, calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.make_case(prnn.LSTM(2, 3), (4, 6, 2))
    if reason == "small":
        monkeypatch.setattr(xla_call, "WORTH_A_CALL", 1 << 24)
    elif reason == "several devices":
        monkeypatch.setattr(jax, "device_count", lambda: 2)
    elif reason == "another platform":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    else:
        monkeypatch.setattr(xla_call, "has_llvm", lambda: False)
    xla_call.can_call.cache_clear()
    found = run_on_jax(case)
    assert calls == []
    assert relative_error(found, run(case)) < 1e-11


def test_a_jax_without_callbacks_on_buffers_runs_the_loop_itself(
    calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jax.experimental.buffer_callback", None)
    monkeypatch.delattr(jax.experimental, "buffer_callback", raising=False)
    xla_call.can_call.cache_clear()
    case = cases.make_case(prnn.GRU(2, 3), (4, 6, 2))
    assert relative_error(run_on_jax(case), run(case)) < 1e-11
    assert calls == []
