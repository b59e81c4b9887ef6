"""Temporal exclusive or: predict the next bit of a stream in which every third bit is the XOR of the two before it.

The first and the second of three bits are random and can't be predicted: the best answer is 0.5, an error of 0.5. The
third can, by a network that keeps the bit before and knows, or finds out, where in the three it is.

Source: Elman (1990), Finding structure in time, Cognitive Science 14: one stream of 3,000 bits, read 600 times by a
network with two hidden units; the error falls at every third bit.

Run ``python -m benchmarks.tasks.xor`` in the repository's folder.
"""

from __future__ import annotations

import numpy as np

import portable_rnn as prnn

from .harness import Task, table

BITS = 3000


def stream(rng: np.random.Generator, count: int, bits: int = BITS) -> np.ndarray:
    """Streams of bits (count, bits), float32; bits 2, 5, 8, ... are the XOR of the two before."""
    pairs = rng.integers(0, 2, (count, -(-bits // 3), 2))
    triples = np.concatenate([pairs, pairs[:, :, :1] ^ pairs[:, :, 1:]], axis=2)
    return triples.reshape(count, -1)[:, :bits].astype(np.float32)


def run(seed: int, *, bits: int = BITS, hidden_size: int = 8, epochs: int = 200, piece: int = 30) -> float:
    """Train on one stream, cut into pieces with the state handed on; the error at third bits of another stream.

    Returns
    -------
    The root mean squared error at the bits that can be predicted.
    """
    rng = np.random.default_rng(seed)
    training, test = (stream(rng, 1, bits + 1)[:, :, None] for _ in range(2))
    network = prnn.Sequential(prnn.RNN(1, hidden_size), prnn.Linear(hidden_size, 1))
    model = prnn.Model(network, seed=seed)
    model.fit(
        training[:, :-1],
        training[:, 1:],
        loss="binary_cross_entropy",
        optimizer=prnn.adam(0.01),
        epochs=epochs,
        tbptt=piece,
        clip_norm=1.0,
        progress=False,
    )
    chance = 1 / (1 + np.exp(-prnn.to_numpy(model.predict(test[:, :-1]))))
    errors = (chance - test[:, 1:])[0, :, 0]
    return float(np.sqrt(np.mean(errors[1::3] ** 2)))  # the output after bit 1 is the forecast of bit 2


TASK = Task(
    name="Temporal XOR",
    source="Elman 1990",
    measure="RMS error at every third bit",
    reference="0.5 (and so at the others)",
    published="the error falls at every third bit (a plot, no number)",
    run=run,
    trained_on="RNN 8: 3,000 bits, 200 times",
)

if __name__ == "__main__":
    table([TASK])
