"""Copying memory: repeat ten symbols after a long pause.

Ten symbols out of eight, then blanks, then a mark that says "now", then ten blanks during which the symbols are to be
repeated; the answer before that is blank. Without memory the best answer is to spread the odds over the eight symbols:
a cross-entropy of 10 * ln(8) / (T + 20) a step.

Source: Arjovsky, Shah and Bengio (2016), Unitary evolution recurrent neural networks, arXiv:1511.06464, after
Hochreiter and Schmidhuber (1997). The network that solves it here is the one of Henaff, Szlam and LeCun (2016),
Recurrent orthogonal networks and long-memory tasks, arXiv:1602.06662: no nonlinearity in the recurrence, whose matrix
starts orthogonal. A GRU beside it shows what gates make of the same task.

Run ``python -m benchmarks.tasks.copying`` in the repository's folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

import portable_rnn as prnn

from .harness import Task, one_hot, table

PAUSE = 20
SYMBOLS, COPIED = 8, 10
BLANK, MARK = 0, SYMBOLS + 1
LINEAR = prnn.RNN(
    SYMBOLS + 2,
    128,
    nonlinearity="identity",
    initializer="torch(input=glorot_uniform, recurrent=orthogonal, bias=zeros)",
)
GATED = prnn.GRU(SYMBOLS + 2, 64, initializer="keras")


def sequences(rng: np.random.Generator, count: int, pause: int = PAUSE) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, integers (count, pause + 20): 0 is blank, 1 to 8 are the symbols, 9 is the mark."""
    symbols = rng.integers(1, SYMBOLS + 1, (count, COPIED))
    x = np.full((count, pause + 2 * COPIED), BLANK)
    x[:, :COPIED] = symbols
    x[:, COPIED + pause - 1] = MARK
    y = np.full_like(x, BLANK)
    y[:, -COPIED:] = symbols
    return x, y


def without_memory(pause: int = PAUSE) -> float:
    """The cross-entropy of the best answer that doesn't know the symbols."""
    return COPIED * math.log(SYMBOLS) / (pause + 2 * COPIED)


def run(
    seed: int,
    *,
    layer: prnn.Layer = LINEAR,
    rate: float = 0.002,
    updates: int = 600,
    batch_size: int = 32,
    pause: int = PAUSE,
    tests: int = 500,
) -> float:
    """Train on sequences that are all new; the cross-entropy of a step, in nats, on as yet unseen ones."""
    rng = np.random.default_rng(seed)
    symbols, y = sequences(rng, updates * batch_size, pause)
    model = prnn.Model(prnn.Sequential(layer, prnn.Linear(layer.hidden_size, SYMBOLS + 1)), seed=seed)
    model.fit(
        one_hot(symbols, SYMBOLS + 2),
        y,
        loss="cross_entropy",
        optimizer=prnn.adam(prnn.cosine_decay(rate, updates, rate / 20)),
        epochs=1,
        batch_size=batch_size,
        clip_norm=1.0,
        progress=False,
    )
    symbols, y = sequences(rng, tests, pause)
    return model.evaluate(one_hot(symbols, SYMBOLS + 2), y)


def task(name: str, trained_on: str, run: Callable[[int], float], seeds: tuple[int, ...]) -> Task:
    """The same task for another network."""
    return Task(
        name=f"Copying memory, T = {PAUSE}, {name}",
        source="Arjovsky, Shah and Bengio 2016",
        measure="cross-entropy, nats",
        reference=f"{without_memory():.4f}",
        published="LSTM stays near the reference at T = 100 and more",
        run=run,
        trained_on=trained_on,
        seeds=seeds,
    )


TASKS = [
    task("linear recurrence", "RNN 128, orthogonal: 19,200 sequences", run, (0, 1, 2)),
    task("gated", "GRU 64: 48,000 sequences", partial(run, layer=GATED, rate=0.01, updates=1500), (0,)),
]

if __name__ == "__main__":
    table(TASKS)
