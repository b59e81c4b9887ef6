"""Exact gradients of a long sequence in little memory: `recompute_every` and `memory_limit` beside the plain backward.

Run ``python benchmarks/memory.py`` in the repository's folder. It prints the tables of ``docs/long-sequences.md``; some
minutes. NumPy, LSTM, batch 8, 10,000 steps, 32 features in, 128 hidden, one target for each sequence.

Memory is the largest resident set of a process of its own, less what it held just before the update (data, weights and
imports): measured, with everything that NumPy and the allocator add. Linux only. Times are from one process in which
the two variants take turns, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products this small gain nothing from a second thread

import numpy as np

import portable_rnn as prnn

BATCH, STEPS, FEATURES, HIDDEN = 8, 10_000, 32, 128
SEGMENT = 100
MEGABYTE = 10**6


def network(every: int | None) -> prnn.Layer:
    """LSTM, the output of the last step, one number."""
    return prnn.Sequential(prnn.LSTM(FEATURES, HIDDEN, recompute_every=every), prnn.Last(), prnn.Linear(HIDDEN, 1))


def data(steps: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Random sequences and targets."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape, dtype=dtype) for shape in ((BATCH, steps, FEATURES), (BATCH, 1)))


def resident(which: str) -> int:
    """A line of Linux's account of this process in bytes: VmRSS is what it holds, VmHWM the most it ever held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def update(every: int | None, limit: str | None, steps: int) -> dict[str, float]:
    """In a process of its own: one update of `Model.fit`, its memory and its time."""
    model = prnn.Model(network(every), seed=0)
    settings = {"epochs": 1, "batch_size": BATCH, "progress": False, "memory_limit": limit}
    short, target = data(20, "float32")
    model.fit(short, target, **settings)  # imports and buffers of the first call
    x, y = data(steps, "float32")
    before, started = resident("VmRSS"), time.perf_counter()
    model.fit(x, y, **settings)
    return {"bytes": resident("VmHWM") - before, "seconds": time.perf_counter() - started}


def measured(every: int | None, limit: str | None, steps: int) -> dict[str, float]:
    """`update` in a fresh process."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, __file__, "--child", json.dumps([every, limit, steps])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def time_ratio(steps: int, segment: int, rounds: int) -> float:
    """Time of loss and gradients with segments, as a share of without: the median of rounds, each both in turn."""
    x, y = data(steps, "float32")
    plain, recomputed = (prnn.Model(network(every), seed=0) for every in (None, segment))
    ratios = []
    for _ in range(rounds):
        started = time.perf_counter()
        plain.loss_and_grad(x, y)
        between = time.perf_counter()
        recomputed.loss_and_grad(x, y)
        ratios.append((time.perf_counter() - between) / (between - started))
    return statistics.median(ratios)


def gradient_error(steps: int, segment: int) -> float:
    """Largest relative difference between the plain and the recomputed gradient, float64, over all parameters."""
    x, y = data(steps, "float64")
    plain, recomputed = (
        prnn.Model(network(every), dtype="float64", seed=0).loss_and_grad(x, y)[1] for every in (None, segment)
    )
    return max(float(np.max(np.abs(recomputed[name] - g)) / np.max(np.abs(g))) for name, g in plain.items())


def print_recomputation(steps: int, segment: int, rounds: int) -> None:
    """The first table."""
    print(f"LSTM, B {BATCH}, T {steps:,}, I {FEATURES}, H {HIDDEN}, NumPy, float32; time: median of {rounds} rounds\n")
    print("| | peak memory of an update, MB | of plain | time of plain | gradients' largest relative error, float64 |")
    print("|---|---|---|---|---|")
    plain, recomputed = (measured(every, None, steps)["bytes"] for every in (None, segment))
    print(f"| plain | {plain / MEGABYTE:.0f} | 1 | 1.00 | |")
    ratio, error = time_ratio(steps, segment, rounds), gradient_error(steps, segment)
    share = f"1/{plain / recomputed:.1f}"
    print(
        f"| `recompute_every={segment}` | {recomputed / MEGABYTE:.0f} | {share} | {ratio:.2f} | {error:.0e} |",
        flush=True,
    )


def print_limits(steps: int, limits: tuple[str, ...]) -> None:
    """The second table: does an update stay below its limit?"""
    print("\n| `memory_limit` | peak memory of an update, MB |")
    print("|---|---|")
    for limit in (None, *limits):
        found = measured(None, limit, steps)
        print(f"| {limit or 'none'} | {found['bytes'] / MEGABYTE:.0f} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"length of the sequences ({STEPS:,})")
    parser.add_argument("--rounds", type=int, default=5, help="of the times (5)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(update(*json.loads(arguments.child))))
        return
    print_recomputation(arguments.steps, SEGMENT, arguments.rounds)
    print_limits(arguments.steps, ("512MB", "256MB", "160MB"))


if __name__ == "__main__":
    main()
