"""Recomputed segments and `memory_limit` save the memory they promise, by NumPy's own count of what it allocates."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.execution import memory_pool

BATCH, STEPS, FEATURES, HIDDEN = 8, 2000, 32, 128


def last_step_network(**options: Any) -> prnn.Layer:
    return prnn.Sequential(prnn.LSTM(FEATURES, HIDDEN, **options), prnn.Last(), prnn.Linear(HIDDEN, 1))


def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, STEPS, FEATURES), dtype=np.float32)
    return x, rng.standard_normal((BATCH, 1), dtype=np.float32)


def peak(run: Callable[[], Any]) -> int:
    """Bytes that a call allocates at the most."""
    memory_pool.forget()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("direction", [{}, {"reverse": True}])
def test_recomputed_segments_take_a_part_of_the_memory(direction: dict[str, bool]) -> None:
    x, y = data()
    plain = prnn.Model(last_step_network(**direction))
    recomputed = prnn.Model(last_step_network(recompute_every=50, **direction))
    for model in (plain, recomputed):
        model.loss_and_grad(x[:, :100], y)  # what is compiled, is compiled
    # compiled loops keep less of each step to begin with
    share = 1 / 2 if os.environ["PORTABLE_RNN_COMPILE"] == "1" else 1 / 3
    assert peak(lambda: recomputed.loss_and_grad(x, y)) < share * peak(lambda: plain.loss_and_grad(x, y))


@pytest.mark.parametrize("megabytes", [60, 40])
def test_an_update_stays_below_its_memory_limit(megabytes: int) -> None:
    x, y = data()
    model = prnn.Model(last_step_network())
    settings: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "progress": False}
    assert peak(lambda: model.fit(x, y, **settings)) > 1.05 * megabytes * 1e6
    assert peak(lambda: model.fit(x, y, memory_limit=f"{megabytes}MB", **settings)) < megabytes * 1e6
