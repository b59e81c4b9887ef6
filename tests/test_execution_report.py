"""What is said about steps: which run as they are written and why, what was made of the others, whether it is sound."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import cases
import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.execution.graph import pytrees, report, trace, verify
from portable_rnn.execution.graph.operations import Op
from portable_rnn.execution.libraries import on_processor


def nothing_is_known() -> None:
    """Of steps that ran before."""
    execution.forget()
    report.say_once.cache_clear()


@dataclass(frozen=True)
class Branching(prnn.cells.ElmanCell):
    """Asks for numbers while it runs."""

    def step(self, xp: Any, w: Any, z_t: Any, state: Any, drop: Any) -> Any:
        if float(xp.max(z_t)) > 1e9:
            raise OverflowError
        return super().step(xp, w, z_t, state, drop)


@dataclass(frozen=True)
class Unhashable(prnn.cells.ElmanCell):
    """Holds what has no hash."""

    settings: Any = ()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [(Branching("tanh"), "max"), (Unhashable("tanh", settings=[1]), "the step has no hash")],
    ids=["branch", "hash"],
)
def test_falling_back_is_logged_once_for_each_step_and_reason(
    cell: Any, reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTABLE_RNN_COMPILE", "0")  # a compiled loop is another step, which says so too
    case = cases.make_case(prnn.Recurrent(cell, 2, 3), (4, 5, 2), with_masks=False)
    nothing_is_known()
    with caplog.at_level(logging.INFO, logger="portable_rnn.execution"):
        for _ in range(3):
            case.layer.apply(case.params, case.x)
            execution.forget()
    (record,) = caplog.records
    assert record.name == "portable_rnn.execution"
    assert type(cell).__name__ in record.message
    assert "has no recorded loop" in record.message
    assert reason in record.message


def test_nothing_is_said_of_the_librarys_own_cells(caplog: pytest.LogCaptureFixture) -> None:
    case = cases.make_case(prnn.LayerNormGRU(2, 3, bidirectional=True), (4, 5, 2))
    nothing_is_known()
    with caplog.at_level(logging.DEBUG, logger="portable_rnn.execution"):
        case.layer.vjp(**case.inputs)[2](**case.cotangents)
    assert not caplog.records


def test_what_is_made_of_a_step_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases.make_case(prnn.GRU(2, 3), (4, 5, 2))
    nothing_is_known()
    case.layer.apply(case.params, case.x)
    assert capsys.readouterr().err == ""
    nothing_is_known()
    monkeypatch.setenv("PORTABLE_RNN_DUMP", "graph,source")
    case.layer.apply(case.params, case.x)
    printed = capsys.readouterr().err
    assert "# graph of _Forward(GRUCell)" in printed
    assert "= matmul(" in printed
    assert "# source of _Forward(GRUCell)" in printed
    assert "def loop(" in printed
    assert "# stages" not in printed


def test_the_instructions_of_a_compiled_step_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(on_processor, "has_llvm", lambda: True)
    monkeypatch.setenv("PORTABLE_RNN_DUMP", "stages")
    case = cases.make_case(prnn.LayerNormLSTM(2, 5), (8, 5, 2), with_masks=False)
    nothing_is_known()
    case.layer.vjp(**case.inputs)[2](**case.cotangents)
    printed = capsys.readouterr().err
    assert "# stages of _BackwardOfInput" in printed
    for part in ("kernel of 5 rows", "= sum of the rows of", "sum over time: ", " @ "):
        assert part in printed


# ---------------------------------------------------------------------- the verifier


def a_graph() -> trace.Graph:
    def step(xp: Any, shared: Any, carry: Any, inputs: Any) -> Any:
        h = xp.tanh(xp.concat([carry[0][:2, :], inputs[0]], axis=0))
        chosen = xp.where(h > 0, h, xp.astype(h > 0, h.dtype))
        return (shared[0] @ chosen,), (xp.sum(chosen, axis=0, keepdims=True) + chosen.T.T,)

    specs = [[((4, 3), False)], [((2, 3), False)], [((4, 4), False)]]
    return trace.trace(step, specs, [pytrees.flattened((0,), []) for _ in specs])


CHANGES: dict[str, tuple[Op, dict[str, Any]]] = {
    "shape of a pointwise value": (Op.TANH, {"shape": (4, 2)}),
    "kind of a comparison": (Op.GREATER, {"boolean": False}),
    "kind of a number": (Op.TANH, {"boolean": True}),
    "rows behind the end": (Op.ROWS, {"detail": (3, 5)}),
    "shape of a concatenation": (Op.CONCAT, {"shape": (5, 3)}),
    "shape of a product": (Op.MATMUL, {"shape": (3, 4)}),
    "shape of a sum": (Op.SUM, {"shape": (4, 3)}),
    "shape of a transpose": (Op.TRANSPOSE, {"shape": (4, 4)}),
    "number of operands": (Op.TANH, {"operands": ()}),
    "its own number": (Op.TANH, {"number": 1}),
    "an operation": (Op.WHERE, {"op": Op.ADD}),
    "which argument": (Op.XS, {"detail": (1,)}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_verifier_finds_what_is_wrong_with_a_graph(name: str) -> None:
    op, changes = CHANGES[name]
    graph = a_graph()
    verify.verify(graph)
    value = next(value for value in graph.values if value.op is op)
    for attribute, wrong in changes.items():
        setattr(value, attribute, wrong)
    with pytest.raises(AssertionError, match=r"value \d+, |xs 0 is"):
        verify.verify(graph)


def test_the_verifier_finds_an_operand_that_comes_later() -> None:
    graph = a_graph()
    value = next(value for value in graph.values if value.op is Op.TANH)
    value.operands = (graph.values[-1],)
    with pytest.raises(AssertionError, match="comes later"):
        verify.verify(graph)


def test_every_operation_says_what_it_is() -> None:
    for op in Op:
        assert op.arity is None or 0 <= op.arity <= 3
        assert op.is_input == (op.value in ("carry", "xs", "shared"))
        if op.is_pointwise and op is not Op.FLOAT:
            assert hasattr(np, op.value)
