"""`SimpleRNN` beside the notebook's own code: an epoch of its loop, the same as one batch, a batch of a larger network.

Run ``python benchmarks/notebook_speed.py``: a table of ratios of time, each the median of rounds in which the two take
turns, after some rounds that don't count. NumPy's products run on one thread, since more make ones this small slower;
loops of machine code (extra ``[fast]``) take those that they want. Exits with 1 when a target is missed. NumPy,
float64, a few seconds.

The notebook itself is not in this repository: `NotebookRNN` is reconstructed from its formula (``docs/notebook.md``),
both faults included, because they are part of what it costs. The last two rows say why a ratio is what it is and
have no target: the same in half the precision, and the matrix products that no exact gradient can do without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products this small gain nothing from a second thread

import numpy as np

import portable_rnn as prnn
from portable_rnn.notebook import SimpleRNN

SUMS = ((1, 2), (0, 5), (3, 4), (2, 1))
HIDDEN, SEQUENCES, STEPS = 128, 32, 50  # of the larger network
ROUNDS = 41

Column = np.ndarray[Any, Any]
Sequence = tuple[list[Column], Column]  # inputs and target
Row = tuple[str, tuple[float, float, float], float | None]


# ---------------------------------------------------------------------- the notebook


def tanh(x: Column) -> Column:
    """As in the notebook."""
    return np.tanh(x)


def dtanh(x: Column) -> Column:
    """As in the notebook, which gives it h where it wants a."""
    return 1 - np.tanh(x) ** 2


class NotebookRNN:
    """One column at a time: a loop of small products forward, the gradients added up step by step backward."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, learning_rate: float) -> None:
        self.hidden_size, self.lr = hidden_size, learning_rate
        rng = np.random.default_rng(0)
        self.Wxh = rng.standard_normal((hidden_size, input_size)) * 0.01
        self.Whh = rng.standard_normal((hidden_size, hidden_size)) * 0.01
        self.Why = rng.standard_normal((output_size, hidden_size)) * 0.01
        self.bh = np.zeros((hidden_size, 1))
        self.by = np.zeros((output_size, 1))

    def forward(self, inputs: list[Column]) -> Column:
        """``y = Why @ h[T] + by``."""
        h = np.zeros((self.hidden_size, 1))
        self.last_inputs = inputs
        self.last_hs = {0: h}
        for i, x in enumerate(inputs):
            h = tanh(np.dot(self.Wxh, x) + np.dot(self.Whh, h) + self.bh)
            self.last_hs[i + 1] = h
        return np.dot(self.Why, h) + self.by

    def backward(self, d_y: Column) -> None:
        """Backward through the steps with both faults, then one step of gradient descent."""
        n = len(self.last_inputs)
        d_Why = np.dot(d_y, self.last_hs[n].T)
        d_by = d_y
        d_Wxh, d_Whh, d_bh = np.zeros_like(self.Wxh), np.zeros_like(self.Whh), np.zeros_like(self.bh)
        d_h_next = np.zeros_like(self.last_hs[0])
        for t in reversed(range(n)):
            d_h = np.dot(self.Why.T, d_y) + d_h_next
            d_a = d_h * dtanh(self.last_hs[t + 1])
            d_bh += d_a
            d_Wxh += np.dot(d_a, self.last_inputs[t].T)
            d_Whh += np.dot(d_a, self.last_hs[t].T)
            d_h_next = np.dot(self.Whh.T, d_a)
        self.Wxh -= self.lr * d_Wxh
        self.Whh -= self.lr * d_Whh
        self.Why -= self.lr * d_Why
        self.bh -= self.lr * d_bh
        self.by -= self.lr * d_by

    def train(self, inputs: list[Column], target: Column) -> Any:
        """One update; the loss before it."""
        y = self.forward(inputs)
        loss = np.sum((y - target) ** 2)
        self.backward(2 * (y - target))
        return loss


# ---------------------------------------------------------------------- measuring


def loop(network: NotebookRNN | SimpleRNN, data: list[Sequence]) -> Callable[[], Any]:
    """The body of the notebook's training loop: an update for each sequence."""

    def epoch() -> Any:
        total_loss = 0
        for inputs, target in data:
            total_loss += network.train(inputs, target)
        return total_loss

    return epoch


def as_batch(data: list[Sequence]) -> Sequence:
    """Sequences of one length side by side."""
    steps = zip(*(inputs for inputs, _ in data), strict=True)
    return [np.concatenate(columns, axis=1) for columns in steps], np.concatenate([t for _, t in data], axis=1)


def small_data() -> list[Sequence]:
    """The notebook's sums."""
    return [([np.array([[a]]), np.array([[b]])], np.array([[a + b]])) for a, b in SUMS]


def large_data(sequences: int, steps: int) -> list[Sequence]:
    """Random sequences and their sums."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((sequences, steps, 1, 1))
    return [(list(x), x.sum(axis=0)) for x in inputs]


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, calls: int) -> tuple[float, float, float]:
    """Medians of the time of `calls` calls of each, in seconds a call, and of the ratio of the two.

    The two take turns call by call, so that whatever else the machine does meets both.
    """
    for _ in range(calls):
        ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        spent = [0.0, 0.0]
        for _ in range(calls):
            for k, call in enumerate((ours, theirs)):
                started = time.perf_counter_ns()
                call()
                spent[k] += (time.perf_counter_ns() - started) / 1e9
        for own, seconds in zip(times, spent, strict=True):
            own.append(seconds / calls)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios)


def measured(rounds: int, large: tuple[int, int, int]) -> list[Row]:
    """The rows: what it is, the times and the ratio, the target if there is one."""
    data = small_data()
    small = {"input_size": 1, "hidden_size": 10, "output_size": 1, "learning_rate": 0.01}
    hidden, sequences, steps = large
    # so many sequences of so many steps are a large sum of gradients: a rate at which nothing explodes
    big = {"input_size": 1, "hidden_size": hidden, "output_size": 1, "learning_rate": 1e-5}
    many = large_data(sequences, steps)

    def products() -> None:
        """The matrix products of that batch and nothing else: h, dh and the gradient of Whh."""
        for _ in range(steps):
            weights @ columns
            weights.T @ columns
        everything @ everything.T

    batched, batched_big = SimpleRNN(**small, seed=0), SimpleRNN(**big, seed=0)
    batch, big_batch = as_batch(data), as_batch(many)
    narrow = SimpleRNN(**big, seed=0, backend=prnn.backend("numpy", dtype="float32"))
    weights, columns, everything = (np.ones((hidden, k)) for k in (hidden, sequences, sequences * steps))
    notebook, big_notebook = loop(NotebookRNN(**small), data), loop(NotebookRNN(**big), many)
    return [
        (
            "hidden 10, one epoch of its loop, one sequence at a time",
            ratio(loop(SimpleRNN(**small, seed=0), data), notebook, rounds, 100),
            1.0,
        ),
        ("hidden 10, the same data as one batch", ratio(lambda: batched.train(*batch), notebook, rounds, 100), 0.4),
        (
            f"hidden {hidden}, {sequences} sequences of {steps} steps as one batch",
            ratio(lambda: batched_big.train(*big_batch), big_notebook, rounds, 1),
            0.05,
        ),
        ("- the same in float32", ratio(lambda: narrow.train(*big_batch), big_notebook, rounds, 1), None),
        ("- its matrix products alone, float64", ratio(products, big_notebook, rounds, 1), None),
    ]


def main() -> int:
    """Print the table; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"the medians are of so many ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="11 rounds")
    arguments = parser.parse_args()
    rows = measured(11 if arguments.quick else arguments.rounds, (HIDDEN, SEQUENCES, STEPS))
    print("| `SimpleRNN` / the notebook's code | SimpleRNN, ms | notebook, ms | ratio | target | |")
    print("|---|---|---|---|---|---|")
    for name, (ours, theirs, found), target in rows:
        verdict = " | " if target is None else f"≤ {target} | {'met' if found <= target else '**not met**'}"
        print(f"| {name} | {1e3 * ours:.3f} | {1e3 * theirs:.3f} | {found:.3f} | {verdict} |")
    return int(any(found > target for _, (_, _, found), target in rows if target is not None))


if __name__ == "__main__":
    sys.exit(main())
