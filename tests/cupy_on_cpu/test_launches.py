"""What an update asks of the device. A kernel too many is named here with its line."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import cupy_on_cpu
import portable_rnn as prnn
from cupy_on_cpu.counters import DEVICE_TO_HOST, HOST_TO_DEVICE, Counts

STEPS, BATCH = 12, 8


def updates(count: int, layer: prnn.Layer, optimizer: Any) -> Counts:
    """Counts of a fit of `count` updates, the second of its kind: kernels and constants are made by then."""
    network = prnn.Sequential(layer, prnn.Last(), prnn.Linear(8, 1))
    model = prnn.Model(network, backend="cupy", seed=0)
    rng = np.random.default_rng(0)
    x = prnn.asarray(rng.random((count * BATCH, STEPS, 3)), model.backend)
    y = prnn.asarray(rng.random((count * BATCH, 1)), model.backend)
    for _ in range(2):
        with cupy_on_cpu.counters.counting() as counts:
            model.fit(x, y, optimizer=optimizer, epochs=1, batch_size=BATCH, progress=False)
    return counts


def described(counts: Counts) -> str:
    lines = Counter(f"{launch.line} {launch.name}" for launch in counts.launches)
    lines.update(str(copy) for copy in counts.copies)
    return "\n".join(f"{number} x {line}" for line, number in lines.most_common())


@pytest.mark.parametrize("layer", [prnn.LSTM(3, 8), prnn.GRU(3, 8)], ids=str)
def test_kernels_and_copies_of_an_update(layer: prnn.Layer) -> None:
    one, five = (updates(count, layer, prnn.adam(1e-2)) for count in (1, 5))
    kernels = (five.kernels - one.kernels) / 4
    assert kernels <= MOST[type(layer).__name__], described(five)
    # the rows of a batch go to the device, the loss comes back: one copy each
    for kind in (HOST_TO_DEVICE, DEVICE_TO_HOST):
        assert len(five.copied(kind)) - len(one.copied(kind)) == 4, described(five)


MOST = {"LSTM": 78, "GRU": 90}


def test_a_kernel_for_each_array_of_adam() -> None:
    target = prnn.backend("cupy")
    params = prnn.LSTM(3, 8, num_layers=3).init(seed=0, backend=target)
    optimizer = prnn.adam(1e-2)
    state = optimizer.init(params)
    optimizer.update(params, state, params)
    with cupy_on_cpu.counters.counting() as counts:
        optimizer.update(params, state, params)
    assert counts.kernels <= len(params) + 4, described(counts)
    assert counts.copies == []


def test_a_prediction_copies_nothing_to_the_device() -> None:
    model = prnn.Model(prnn.LSTM(3, 8), backend="cupy", seed=0)
    x = prnn.asarray(np.ones((BATCH, STEPS, 3)), model.backend)
    model.predict(x)
    with cupy_on_cpu.counters.counting() as counts:
        model.predict(x)
    assert counts.copied(HOST_TO_DEVICE) == [], described(counts)
