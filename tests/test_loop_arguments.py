"""What a time loop is given: nests recognised by their form, arrays of any layout, and None for what is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cases
import numpy as np
import pytest
from trees import mapped, relative_error

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.arrays import on_their_device
from portable_rnn.cells import ElmanCell, GRUCell, LSTMCell
from portable_rnn.execution import scan
from portable_rnn.execution.graph import pytrees
from portable_rnn.execution.graph.arguments import Arguments, Programs
from portable_rnn.execution.machine import program as machine_loops
from portable_rnn.execution.machine import workspace
from portable_rnn.layers.time import one_direction as direction


class Pair(NamedTuple):
    a: Any
    b: Any


class Other(NamedTuple):
    a: Any
    b: Any


def array(*shape: int, dtype: str = "float64") -> Any:
    return np.zeros(shape, dtype)


def nest(**changes: Any) -> tuple[Any, Any, Any]:
    """Carry, inputs over five steps and what is shared, with parts exchanged."""
    parts = {"kind": Pair, "h": array(3, 2), "x": array(5, 4, 2), "none": None, "names": ("w", "b")} | changes
    shared = dict(zip(parts["names"], (array(3, 3), array(3, 1)), strict=True))
    return (parts["h"],), (parts["x"], parts["kind"](array(5, 1, 2), parts["none"])), shared


def reader_of(trees: Any) -> Callable[..., Any]:
    given = Arguments("step", *trees)
    return pytrees.reader(given.structures, given.form, (0, 1, 0))


def test_a_nest_of_the_same_form_is_taken_apart() -> None:
    carry, xs, shared = nest(x=array(7, 4, 2))  # of other steps
    found = reader_of(nest())(carry, xs, shared)
    expected = [[carry[0]], [xs[0], xs[1].a], [shared["w"], shared["b"]]]
    assert [[id(leaf) for leaf in leaves] for leaves in found] == [[id(leaf) for leaf in leaves] for leaves in expected]


@pytest.mark.parametrize(
    "changes",
    [
        {"h": array(3, 3)},
        {"h": array(3, 2, dtype="float32")},
        {"h": None},
        {"h": (array(3, 2),)},
        {"x": array(5, 4, 1)},
        {"x": None},
        {"none": array(5, 1, 2)},
        {"kind": Other},
        {"kind": lambda a, b: (a, b)},
        {"names": ("b", "w")},
        {"names": ("w", "c")},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_nest_of_another_form_is_not(changes: dict[str, Any]) -> None:
    assert reader_of(nest())(*nest(**changes)) is None
    assert reader_of(nest(**changes))(*nest()) is None
    assert reader_of(nest())(*nest()) is not None


def test_a_list_is_no_array() -> None:
    assert reader_of(nest())(*nest(x=[array(4, 2)] * 5)) is None


def test_the_program_of_each_form_is_found_again_however_many_there_are() -> None:
    made: list[Any] = []

    def make(structures: Any, forms: Any) -> Any:
        made.append(forms)
        return f"program {forms[0][0][0]}"

    programs = Programs(make)
    for _ in range(3):
        for size in range(1, 20):
            trees = nest(h=array(size, 2))
            found = programs.find(*trees) or programs.add(Arguments("step", *trees))
            program, build, leaves = found
            assert program == f"program ({size}, 2)"
            assert leaves[0][0] is trees[0][0]
            assert build("h") == ("h",)
    assert len(made) == 19


def test_the_address_of_an_array() -> None:
    a = np.zeros((4, 6))
    for view in (a, a.T, a[1:, ::2], a[::-1], np.broadcast_to(a[0], (3, 6))):
        assert workspace.address_of(view) == view.ctypes.data
    assert workspace.address_of(np.zeros(9, dtype=np.uint8)[1:].view("float64")) == 0  # the loop gets a copy


@pytest.mark.parametrize("compile_loops", ["0", "1"])
def test_arrays_that_stand_anywhere_give_the_same(compile_loops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTABLE_RNN_COMPILE", compile_loops)
    execution.forget()
    monkeypatch.setattr(machine_loops, "FEWEST_COLUMNS", 1)

    def misaligned(a: Any) -> Any:
        memory = np.zeros(a.nbytes + 1, dtype=np.uint8)
        found = memory[1:].view(a.dtype).reshape(a.shape)
        found[...] = a
        assert a.dtype == bool or not found.flags.aligned
        return found

    def read_only(a: Any) -> Any:
        found = a.copy()
        found.flags.writeable = False
        return found

    def backwards(a: Any) -> Any:
        return np.flip(np.flip(a).copy())

    case = cases.make_case(prnn.LSTM(3, 5, bidirectional=True), (4, 9, 3), lengths=[9, 2, 0, 5], with_resets=True)

    def run(changed: Callable[[Any], Any]) -> Any:
        inputs = {key: tree if key == "lengths" else mapped(changed, tree) for key, tree in case.inputs.items()}
        y, final, pullback = case.layer.vjp(**inputs)
        return y, final, *pullback(**mapped(changed, case.cotangents))

    expected = run(np.copy)
    for layout in (misaligned, np.asfortranarray, read_only, backwards, np.copy):
        assert relative_error(run(layout), expected) < 1e-14, layout
    execution.forget()


@on_their_device
def test_a_scan_may_have_no_first_input(backend: Any) -> None:
    x = np.arange(12.0).reshape(4, 3, 1)

    def step(xp: Any, shared: Any, carry: Any, inputs: Any) -> Any:
        missing, (x_t,) = inputs
        assert missing is None
        return carry + x_t, (carry * x_t,)

    carry, (products,) = scan(backend.target.xp, step, backend.array(np.zeros((3, 1))), (None, (backend.array(x),)))
    before = np.cumsum(x, axis=0) - x
    products = backend.numpy(products)
    assert np.array_equal(backend.numpy(carry), x.sum(axis=0))
    assert np.array_equal(np.stack(products) if isinstance(products, list) else products, before * x)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", [ElmanCell(), LSTMCell(), LSTMCell(peepholes=True), GRUCell()], ids=repr)
@on_their_device
def test_a_loss_that_sees_the_final_state_only(
    cell: Any, reverse: bool, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cotangent of the outputs is as good as one of zeros, in fewer operations."""
    monkeypatch.setattr(machine_loops, "FEWEST_COLUMNS", 1)
    rng = np.random.default_rng(0)
    steps, batch, features, hidden = 6, 3, 2, 4
    p = {name: rng.standard_normal(shape) for name, shape in cell.parameter_shapes(features, hidden, True).items()}
    p, x = mapped(backend.array, p), backend.array(rng.standard_normal((steps, features, batch)))
    sizes = cell.state_sizes(hidden)
    state, dstate = (tuple(backend.array(rng.standard_normal((n, batch))) for n in sizes) for _ in range(2))
    xp = backend.target.xp
    hs, _, saved = direction.run_direction(xp, cell, reverse, p, x, state, direction.Span(), None)
    with_zeros, without = (
        backend.numpy(direction.run_direction_backward(xp, cell, reverse, p, saved, dhs, dstate)[:3])
        for dhs in (xp.zeros_like(hs), None)
    )
    assert relative_error(without, with_zeros) < 1e-13
    assert np.max(np.abs(without[1])) > 1e-3
