"""What is taken from each row's steps: rows of every length from 0 and 1 on, batches and sequences of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import portable_rnn as prnn
from portable_rnn.layers import Ends, Flip
from portable_rnn.training import loss_function

Row = np.ndarray


def _at(row: Row, values: list[tuple[int, slice, Any]]) -> Row:
    """Zeros like `row`, with values at some steps and features."""
    found = np.zeros_like(row)
    for step, features, value in values:
        found[step, features] = value
    return found


FIRST, SECOND = slice(0, 2), slice(2, 4)
# layer: what it makes of the steps of one row (at least one), and the gradient of sum(dy * y) with respect to them
POOLING: dict[str, tuple[prnn.Layer, Callable[[Row], Row], Callable[[Row, Row], Row]]] = {
    "last": (prnn.Last(), lambda row: row[-1], lambda row, dy: _at(row, [(-1, slice(None), dy)])),
    "mean": (prnn.Mean(), lambda row: row.mean(axis=0), lambda row, dy: np.ones_like(row) * dy / len(row)),
    "max": (
        prnn.Max(),
        lambda row: row.max(axis=0),
        lambda row, dy: (np.arange(len(row))[:, None] == row.argmax(axis=0)) * dy,
    ),
    "ends": (
        Ends(),
        lambda row: np.concatenate([row[-1, FIRST], row[0, SECOND]]),
        lambda row, dy: _at(row, [(-1, FIRST, dy[FIRST]), (0, SECOND, dy[SECOND])]),
    ),
    "flip": (Flip(), lambda row: row[::-1], lambda row, dy: dy[::-1]),
}


@st.composite
def ragged(draw: st.DrawFn) -> tuple[int, list[int] | None, int]:
    """Time steps, lengths of the rows, and a seed; short above all."""
    steps = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(0, steps), min_size=1, max_size=3))
    return steps, draw(st.sampled_from([lengths, [steps] * len(lengths), None])), draw(st.integers(0, 99))


@pytest.mark.parametrize("name", POOLING)
def test_a_row_gives_what_its_steps_alone_give(backend: Any, name: str) -> None:
    layer, of_row, gradient_of_row = POOLING[name]

    @backend.for_all(ragged())
    def check(case: tuple[int, list[int] | None, int]) -> None:
        steps, lengths, seed = case
        rng = np.random.default_rng(seed)
        rows = 2 if lengths is None else len(lengths)
        x = rng.integers(-3, 4, (rows, steps, 4)).astype(float)  # often with equal values
        dy = rng.standard_normal(x.shape if layer.keeps_time else (rows, 4))
        y, _, _, dx, _ = backend.vjp(layer, params={}, x=x, lengths=lengths, dy=dy)
        expected, gradient = np.zeros_like(y), np.zeros_like(x)
        for b, end in enumerate([steps] * rows if lengths is None else lengths):
            if end:
                part = slice(0, end) if layer.keeps_time else ...
                expected[b][part] = of_row(x[b, :end])
                gradient[b, :end] = gradient_of_row(x[b, :end], dy[b][part])
        np.testing.assert_allclose(y, expected, rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(dx, gradient, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "cross_entropy", "binary_cross_entropy"])
def test_a_loss_is_that_of_the_valid_steps_in_a_line(backend: Any, name: str) -> None:
    loss = loss_function(name)

    @backend.for_all(ragged())
    def check(case: tuple[int, list[int] | None, int]) -> None:
        steps, lengths, seed = case
        rng = np.random.default_rng(seed)
        rows = 2 if lengths is None else len(lengths)
        prediction = rng.standard_normal((rows, steps, 3))
        target = rng.integers(0, 3, (rows, steps)) if name == "cross_entropy" else rng.random((rows, steps, 3))
        ends = None if lengths is None else np.asarray(lengths, dtype=np.int32)
        value, gradient = backend.numpy(loss(*backend.array((prediction, target, ends))))
        counts = np.arange(steps) < np.asarray([steps] * rows if lengths is None else lengths)[:, None]
        expected_gradient = np.zeros_like(prediction)
        expected = 0.0
        if counts.any():
            expected, expected_gradient[counts] = loss(prediction[counts], target[counts])
        assert value == pytest.approx(expected, rel=1e-13)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-13, atol=1e-15)
