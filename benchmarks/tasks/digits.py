"""Handwritten digits, read row by row.

Each image of 8 x 8 pixels is a sequence of 8 steps with 8 features. The first half of the images is for training, the
second half, by other writers, for testing.

Source: the split of scikit-learn's example "Recognizing hand-written digits", whose support vector classifier sees all
pixels at once: an accuracy of 0.97. The data come with scikit-learn (Alpaydin and Kaynak 1998, UCI).

Run ``python -m benchmarks.tasks.digits`` in the repository's folder; it needs scikit-learn.
"""

from __future__ import annotations

import numpy as np

import portable_rnn as prnn

from .harness import Task, table


def images() -> tuple[np.ndarray, np.ndarray]:
    """x (1797, 8, 8) from 0 to 1, rows as steps; y (1797,) from 0 to 9."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8) / 16).astype(np.float32), y


def run(seed: int, *, epochs: int = 40, hidden_size: int = 64, batch_size: int = 32) -> float:
    """Train on the first half; the accuracy on the second."""
    x, y = images()
    half = len(x) // 2
    network = prnn.Sequential(
        prnn.Dropout(0.1),
        prnn.GRU(8, hidden_size, num_layers=2, bidirectional=True, dropout=0.3),
        prnn.Last(),
        prnn.Dropout(0.5),
        prnn.Linear(2 * hidden_size, 10),
    )
    model = prnn.Model(network, seed=seed)
    updates = epochs * -(-half // batch_size)
    model.fit(
        x[:half],
        y[:half],
        loss="cross_entropy",
        optimizer=prnn.adam(prnn.cosine_decay(3e-3, updates)),
        epochs=epochs,
        batch_size=batch_size,
        clip_norm=1.0,
        progress=False,
    )
    return float(np.mean(np.argmax(model.predict(x[half:]), axis=1) == y[half:]))


TASK = Task(
    name="Digits, row by row",
    source="scikit-learn's example",
    measure="accuracy",
    reference="0.10 (guessing)",
    published="0.97, a support vector classifier of all pixels",
    run=run,
    trained_on="GRU 2 x 64, both ways: 898 images, 40 times",
    digits=3,
)

if __name__ == "__main__":
    table([TASK])
