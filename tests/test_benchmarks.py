"""The arithmetic of the benchmarks, on numbers made up: nothing here is timed."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from portable_rnn.execution.machine import elementwise
from portable_rnn.notebook import SimpleRNN

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import fit_tanh, footprint, notebook_gradient, notebook_speed, scaling

# ---------------------------------------------------------------------- exponents and verdicts


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5])
def test_exponent_is_that_of_a_power(p: float) -> None:
    sizes = scaling.GROWING["T"][0]
    assert scaling.exponent(sizes, [3e-5 * size**p for size in sizes]) == pytest.approx(p, abs=1e-12)


def test_exponent_is_by_least_squares() -> None:
    # in the logarithms to base ten: points (0, 0), (1, 1), (2, 3), whose slope is (3 - 0) / 2
    assert scaling.exponent([1, 10, 100], [1, 10, 1000]) == pytest.approx(1.5)
    # a cost that every call has flattens it
    assert scaling.exponent([1, 10, 100], [1.5, 10.5, 100.5]) < 1


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (scaling.verdict(1.05, 1.05), ("≤ 1.05 | met", True)),
        (scaling.verdict(1.051, 1.05), ("≤ 1.05 | **not met**", False)),
        (footprint.verdict(1.0, 1.0), ("≤ 1 | met", True)),
        (footprint.verdict(1.01, 1.0), ("≤ 1 | **not met**", False)),
        (footprint.verdict(60.0, 60.0, "<"), ("< 60 | **not met**", False)),
        (footprint.verdict(59.9, 60.0, "<"), ("< 60 | met", True)),
    ],
)
def test_verdicts(found: tuple[str, bool], expected: tuple[str, bool]) -> None:
    assert found == expected


# ---------------------------------------------------------------------- medians of calls that take turns


class Clock:
    """Processor time that passes only when a call says so, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "process_time", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter_ns", lambda: round(self.now * 1e9))

    def taking(self, *seconds: float) -> scaling.Call:
        """A call that takes these times, one after the other and over again."""
        times = itertools.cycle(seconds)

        def call() -> None:
            self.now += next(times)

        return call


def test_processor_times_are_medians_without_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = [clock.taking(50, 1, 9, 2), clock.taking(70, 5, 4, 6)]
    assert scaling.processor_times(calls, 3) == [2, 5]


def test_ratio_is_the_median_of_the_rounds_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    # rounds after the one that does not count: 2/4, 8/8, 3/9
    ours, theirs, ratio = notebook_speed.ratio(clock.taking(99, 2, 8, 3), clock.taking(99, 4, 8, 9), 3, 1)
    assert (ours, theirs, ratio) == pytest.approx((3, 8, 0.5))
    # two calls a round: (1 + 3) / 2 seconds a call
    assert notebook_speed.ratio(clock.taking(1, 3), clock.taking(5, 5), 3, 2) == pytest.approx((2, 5, 0.4))


# ---------------------------------------------------------------------- what is compared is the same


def test_the_notebooks_network_is_the_reconstructed_formula() -> None:
    rng = np.random.default_rng(0)
    notebook = notebook_speed.NotebookRNN(2, 4, 3, learning_rate=0.1)
    ours = SimpleRNN(2, 4, 3, learning_rate=0.1, seed=0)
    for name in ("Wxh", "Whh", "Why", "bh", "by"):
        value = 0.6 * rng.standard_normal(getattr(notebook, name).shape)
        setattr(notebook, name, value.copy())
        setattr(ours, name, value)
    inputs, target = list(rng.standard_normal((5, 2, 1))), rng.standard_normal((3, 1))
    y = ours.forward(inputs)
    expected = notebook_gradient.original_gradients(ours, 2 * (y - target))
    assert notebook.train(inputs, target) == pytest.approx(np.sum((y - target) ** 2), rel=1e-12)
    for name, gradient in expected.items():
        np.testing.assert_allclose(getattr(notebook, name), getattr(ours, name) - 0.1 * gradient, rtol=1e-12)


def test_a_batch_holds_the_sequences_side_by_side() -> None:
    inputs, target = notebook_speed.as_batch(notebook_speed.small_data())
    assert [x.tolist() for x in inputs] == [[[1, 0, 3, 2]], [[2, 5, 4, 1]]]
    assert target.tolist() == [[3, 5, 7, 3]]


def test_both_libraries_take_the_same_training_step() -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 5, 2), dtype="float32"), rng.standard_normal((3, 1), dtype="float32")
    ours, theirs = footprint.our_model("GRU", 2, 4), footprint.torch_model("GRU", 2, 4)
    before = [p.detach().numpy().copy() for p in theirs.parameters()]
    ours.params = dict(zip(ours.params, before, strict=True))
    footprint.our_step(ours, x, y)
    footprint.torch_step(theirs, x, y)
    for mine, other, old in zip(ours.params.values(), theirs.parameters(), before, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-5, atol=1e-6)
        assert not np.array_equal(mine, old)


# ---------------------------------------------------------------------- the polynomials of the compiled tanh


def test_the_compiled_tanh_has_the_coefficients_of_the_fit() -> None:
    numerator, denominator, _ = fit_tanh.fit()
    np.testing.assert_allclose(elementwise.TANH_NUMERATOR[::-1], numerator, rtol=1e-6)
    np.testing.assert_allclose(elementwise.TANH_DENOMINATOR[::-1], denominator, rtol=1e-6)
    assert elementwise.TANH_LIMIT == fit_tanh.LIMIT


def test_the_error_of_the_fit_is_that_of_float32() -> None:
    numerator, denominator, error = fit_tanh.fit()
    x = np.linspace(0.001, 12, 100_001, dtype="float32")
    assert error < 2e-9
    assert fit_tanh.largest_error(fit_tanh.in_float32(x, numerator, denominator), x) < 4e-7
