"""A character model of Python's own help text: predict the next character.

The text is `pydoc_data.topics` of the standard library, what ``help("if")`` prints, its topics in the order of their
names. The last tenth is the test. The text differs from one Python version to the next, so a figure belongs to its
version.

Source: the task is Graves's (2013), Generating sequences with recurrent neural networks, arXiv:1308.0850, and
Karpathy's char-rnn (2015). No published figure for this text; the file compressors of the standard library, given the
training text before the test, are what there is to compare with.

Run ``python -m benchmarks.tasks.characters`` in the repository's folder.
"""

from __future__ import annotations

import bz2
import lzma
import math
import platform

import numpy as np

import portable_rnn as prnn

from .harness import Task, table


def help_text() -> str:
    """All topics, one after the other."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def split(text: str) -> tuple[str, str]:
    """The first nine tenths and the rest."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def numbers(text: str, alphabet: str) -> np.ndarray:
    """Each character's place in the alphabet; the last place for one that isn't there."""
    places = {c: k for k, c in enumerate(alphabet)}
    return np.array([places.get(c, len(alphabet)) for c in text], dtype=np.int64)


def streams(symbols: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The text as rows of a batch, each going on where the one above ends: inputs and next characters (count, T)."""
    steps = (len(symbols) - 1) // count
    return tuple(symbols[k : k + count * steps].reshape(count, steps) for k in (0, 1))


def single_letter_bits(training: np.ndarray, test: np.ndarray, count: int) -> float:
    """Bits a character under the frequencies of the training text."""
    seen = np.bincount(training, minlength=count) + 0.1
    return float(-np.mean(np.log2(seen / seen.sum())[test]))


def compressed_bits(training: str, test: str) -> float:
    """Bits a character that the better of bz2 and xz needs for the test text once it has seen the training text."""
    whole, known = (training + test).encode(), training.encode()
    return min(8 * (len(f(whole)) - len(f(known))) / len(test) for f in (bz2.compress, lzma.compress))


def run(
    seed: int,
    *,
    text: str | None = None,
    hidden_size: int = 128,
    epochs: int = 8,
    rows: int = 64,
    piece: int = 50,
    rate: float = 0.01,
) -> float:
    """Train on the first nine tenths, in pieces with the state handed on; bits a character on the rest.

    The test text is read as one sequence from its start.
    """
    training, test = split(text or help_text())
    alphabet = "".join(sorted(set(training)))
    count = len(alphabet) + 1
    x, y = streams(numbers(training, alphabet), rows)
    network = prnn.Sequential(
        prnn.Embedding(count, 32),
        prnn.LSTM(32, hidden_size, initializer="keras"),
        prnn.Linear(hidden_size, count),
    )
    model = prnn.Model(network, seed=seed)
    updates = epochs * -(-x.shape[1] // piece)
    model.fit(
        x,
        y,
        loss="cross_entropy",
        optimizer=prnn.adam(prnn.cosine_decay(rate, updates, rate / 50)),
        epochs=epochs,
        batch_size=rows,
        tbptt=piece,
        clip_norm=1.0,
        progress=False,
    )
    return model.evaluate(*streams(numbers(test, alphabet), 1)) / math.log(2)


def task() -> Task:
    """The task with the references that this Python's text gives."""
    training, test = split(help_text())
    alphabet = "".join(sorted(set(training)))
    single = single_letter_bits(numbers(training, alphabet), numbers(test, alphabet), len(alphabet) + 1)
    return Task(
        name=f"Help text of Python {platform.python_version()}, next character",
        source="Graves 2013 on other text",
        measure="bits a character",
        reference=f"{single:.2f} (frequencies); {compressed_bits(training, test):.2f} (xz, which knows all before)",
        published="none for this text",
        run=run,
        trained_on=f"LSTM 128: {len(training):,} characters, 8 times",
        digits=3,
        seeds=(0,),
    )


if __name__ == "__main__":
    table([task()])
