"""The embedded Reber grammar: predict which symbols may come next.

The Reber grammar is an automaton that writes strings such as BTXSE. The embedded one writes B, then T or P, then a
Reber string, then the same T or P again, then E, so the second symbol has to be remembered over the whole string in
between. The predicted symbols are the allowed ones if each of these has a larger output than all others.

Source: Hochreiter and Schmidhuber (1997), Long short-term memory, experiment 1: 256 strings for training, 256 for
testing, one string for each update, until every symbol of both sets is predicted. Their LSTM needed 8,440 to 39,740
strings, an Elman network did not get there in 200,000. Here both sets are drawn as there.

Run ``python -m benchmarks.tasks.reber`` in the repository's folder.
"""

from __future__ import annotations

import math

import numpy as np

import portable_rnn as prnn

from .harness import Task, one_hot, table

ALPHABET = "BTPSXVE"
# node -> (symbol, next node); the string ends after node 5
REBER = {0: ("TP", (1, 2)), 1: ("SX", (1, 3)), 2: ("TV", (2, 4)), 3: ("XS", (2, 5)), 4: ("PV", (3, 5))}


def reber_string(rng: np.random.Generator) -> tuple[str, list[str]]:
    """A string of the embedded grammar, and for each of its symbols but the last those that may follow."""
    chosen = "TP"[rng.integers(2)]
    string, allowed, node = "B" + chosen + "B", ["TP", "B"], 0
    while node != 5:
        symbols, following = REBER[node]
        way = rng.integers(2)
        string, node = string + symbols[way], following[way]
        allowed.append(symbols)
    return string + "E" + chosen + "E", [*allowed, "E", chosen, "E"]


def strings(rng: np.random.Generator, count: int) -> tuple[list[str], list[list[str]]]:
    """Strings and what may follow."""
    pairs = [reber_string(rng) for _ in range(count)]
    return [string for string, _ in pairs], [allowed for _, allowed in pairs]


def encoded(texts: list[str], allowed: list[list[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (N, T, 7), next symbols (N, T, 7), allowed symbols (N, T, 7) as booleans, and lengths."""
    lengths = np.array([len(text) - 1 for text in texts])
    symbols = np.zeros((len(texts), lengths.max() + 1), dtype=np.int64)
    may_follow = np.zeros((len(texts), lengths.max(), len(ALPHABET)), dtype=bool)
    for k, (text, sets) in enumerate(zip(texts, allowed, strict=True)):
        symbols[k, : len(text)] = [ALPHABET.index(c) for c in text]
        for t, following in enumerate(sets):
            may_follow[k, t, [ALPHABET.index(c) for c in following]] = True
    rows = one_hot(symbols, len(ALPHABET))
    return rows[:, :-1], rows[:, 1:], may_follow, lengths


def all_predicted(outputs: np.ndarray, may_follow: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether at every step each allowed symbol has a larger output than each other one."""
    least = np.where(may_follow, outputs, math.inf).min(axis=-1)
    others = np.where(may_follow, -math.inf, outputs).max(axis=-1)
    valid = np.arange(outputs.shape[1]) < lengths[:, None]
    return bool((least > others)[valid].all())


class Solved:
    """A callback: stop when both sets are predicted."""

    def __init__(self, *sets: tuple[np.ndarray, ...]) -> None:
        self.sets = sets
        self.solved = False

    def __call__(self, epoch: prnn.training.Epoch) -> bool:
        self.solved = all(
            all_predicted(epoch.model.predict(x, lengths=lengths), may_follow, lengths)
            for x, _, may_follow, lengths in self.sets
        )
        return self.solved


def run(seed: int, *, hidden_size: int = 12, most: int = 40_000, count: int = 256) -> float:
    """Train until both sets are predicted; the strings that took, or infinity. Looked at after every 256."""
    rng = np.random.default_rng(seed)
    training, test = (encoded(*strings(rng, count)) for _ in range(2))
    network = prnn.Sequential(prnn.LSTM(7, hidden_size), prnn.Linear(hidden_size, 7))
    model = prnn.Model(network, seed=seed)
    x, y, _, lengths = training
    solved = Solved(training, test)
    history = model.fit(
        x,
        y,
        lengths=lengths,
        loss="binary_cross_entropy",
        optimizer=prnn.adam(0.01),
        epochs=most // count,
        batch_size=1,
        clip_norm=1.0,
        callbacks=[solved],
        progress=False,
    )
    return float(len(history.loss) * count) if solved.solved else math.inf


TASK = Task(
    name="Embedded Reber grammar",
    source="Hochreiter and Schmidhuber 1997",
    measure="strings until all of 512 are predicted",
    reference="Elman network: not in 200,000",
    published="LSTM: 8,440 to 39,740",
    run=run,
    trained_on="LSTM 12: 256 strings again and again",
    digits=0,
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    table([TASK])
