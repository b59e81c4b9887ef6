"""What recurrent dropout and zoneout cost: training steps of an LSTM with and without them, interleaved.

Run ``python benchmarks/dropout_cost.py [ROUNDS] [BACKEND]``. A step draws its masks, moves them, and runs forward and
backward. Each round times every variant once, in random order, and divides by the plain step of the same round, so that
a busy machine slows both; printed are medians, and the quartiles of the ratio. "plain again" is the same step once
more: what it is away from 1 is noise. The target is 1.15.

Where other programs run, wall time says little. Processor time of one thread does:
``OPENBLAS_NUM_THREADS=1 python benchmarks/dropout_cost.py``, and then the last column is the one to read.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable

import portable_rnn as prnn
from portable_rnn.layers import place_masks, random_generator

SIZES = ((32, 100, 32, 64), (64, 100, 64, 256))  # (B, T, I, H)
VARIANTS: dict[str, dict[str, float]] = {
    "plain": {},
    "plain again": {},  # what the ratio of equal things comes out as
    "recurrent_dropout": {"recurrent_dropout": 0.25},
    "zoneout": {"zoneout": 0.1},
    "both": {"recurrent_dropout": 0.25, "zoneout": 0.1},
}
TARGET = 1.15


def training_step(options: dict[str, float], size: tuple[int, int, int, int], name: str) -> Callable[[], float]:
    """A function that runs one step and returns the seconds that drawing and moving its masks took."""
    batch, steps, inputs, hidden = size
    target = prnn.backend(name)
    layer = prnn.LSTM(inputs, hidden, **options)
    params = layer.init(0, target)
    rng = random_generator(0)
    x = prnn.asarray(rng.standard_normal((batch, steps, inputs)), target, dtype="float32")
    dy = prnn.asarray(rng.standard_normal((batch, steps, hidden)), target, dtype="float32")

    def step() -> float:
        start = time.perf_counter()
        masks = place_masks(layer.dropout_masks(rng, (batch, steps, inputs)), target)
        drawn = time.perf_counter() - start
        _, _, pullback = layer.vjp(params, x, masks=masks)
        dparams, _, _ = pullback(dy)
        prnn.to_numpy(dparams["bias_ih_l0"])  # waits for a device that runs ahead
        return drawn

    return step


def timed(step: Callable[[], float]) -> tuple[float, float, float]:
    """(wall time of the step, its processor time, wall time of its masks) in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    drawn = step()
    return time.perf_counter() - wall, time.process_time() - processor, drawn


def measure(size: tuple[int, int, int, int], rounds: int, name: str) -> dict[str, list[tuple[float, float, float]]]:
    """For each variant the times of all rounds."""
    steps = {variant: training_step(options, size, name) for variant, options in VARIANTS.items()}
    for step in steps.values():
        step()  # compilation, first allocations
    times: dict[str, list[tuple[float, float, float]]] = {variant: [] for variant in steps}
    order = list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for variant in order:
            times[variant].append(timed(steps[variant]))
    return times


def ratio(own: list[tuple[float, float, float]], plain: list[tuple[float, float, float]], column: int) -> str:
    """Median and quartiles of the ratio of one column, round by round."""
    low, middle, high = statistics.quantiles([a[column] / b[column] for a, b in zip(own, plain, strict=True)], n=4)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def main(rounds: int, name: str) -> None:
    """Print the tables."""
    for size in SIZES:
        times = measure(size, rounds, name)
        print(f"LSTM (B, T, I, H) = {size}, {name}, {rounds} rounds, target {TARGET}")
        print(f"  {'':<18} {'wall':>10} {'processor':>11} {'masks':>9}   {'ratio, wall':<22} ratio, processor")
        for variant, own in times.items():
            wall, processor, masks = (1e3 * statistics.median(column) for column in zip(*own, strict=True))
            ratios = f"{ratio(own, times['plain'], 0):<22} {ratio(own, times['plain'], 1)}"
            print(f"  {variant:<18} {wall:7.1f} ms {processor:8.1f} ms {masks:6.1f} ms   {ratios}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 41, sys.argv[2] if len(sys.argv) > 2 else "numpy")
