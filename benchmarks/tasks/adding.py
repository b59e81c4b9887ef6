"""The adding problem: add the two numbers of a long sequence that are marked.

A step has two inputs, a number from [0, 1) and a mark. One step of the first half and one of the second half are
marked; the target, after the last step, is the sum of the two numbers. Always answering 1 has a mean squared error of
1/6, the variance of the sum, and networks stay there until they keep the first number over tens of steps.

Source: Hochreiter and Schmidhuber (1997), Long short-term memory, experiment 4; T = 150 as in Le, Jaitly and Hinton
(2015), A simple way to initialize recurrent networks of rectified linear units, arXiv:1504.00941.

Run ``python -m benchmarks.tasks.adding`` in the repository's folder.
"""

from __future__ import annotations

import numpy as np

import portable_rnn as prnn

from .harness import Task, table

STEPS = 150


def sequences(rng: np.random.Generator, count: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """x (count, steps, 2): numbers and marks; y (count, 1): the sum of the marked numbers."""
    x = np.zeros((count, steps, 2), dtype=np.float32)
    x[:, :, 0] = rng.random((count, steps))
    rows, half = np.arange(count), steps // 2
    x[rows, rng.integers(0, half, count), 1] = 1
    x[rows, rng.integers(half, steps, count), 1] = 1
    return x, (x[:, :, 0] * x[:, :, 1]).sum(axis=1, keepdims=True)


def run(
    seed: int, *, steps: int = STEPS, updates: int = 600, batch_size: int = 64, hidden_size: int = 64, tests: int = 2000
) -> float:
    """Train on sequences that are all new; the mean squared error on as yet unseen ones."""
    rng = np.random.default_rng(seed)
    x, y = sequences(rng, updates * batch_size, steps)
    network = prnn.Sequential(prnn.GRU(2, hidden_size), prnn.Last(), prnn.Linear(hidden_size, 1))
    model = prnn.Model(network, seed=seed)
    rate = prnn.cosine_decay(0.01, updates)
    model.fit(x, y, optimizer=prnn.adam(rate), epochs=1, batch_size=batch_size, clip_norm=1.0, progress=False)
    return model.evaluate(*sequences(rng, tests, steps))


TASK = Task(
    name=f"Adding, T = {STEPS}",
    source="Hochreiter and Schmidhuber 1997",
    measure="mean squared error",
    reference="0.1667 (always 1)",
    published="LSTM, T = 100: solved after 74,000 sequences",
    run=run,
    trained_on="GRU 64: 38,400 sequences",
)

if __name__ == "__main__":
    table([TASK])
