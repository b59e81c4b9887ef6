"""How cost grows: with the length of the sequences, the batch and the layers; and compilation by JAX with the length.

Run ``python benchmarks/scaling.py``; about three minutes. Exits with 1 when a target is missed. ``--only cost`` or
``compile`` prints one table, ``--quick`` runs both small.

The first table is NumPy, float32, processor time on one thread. An exponent is the slope of a straight line through
the logarithms of size and time, by least squares: 1 where twice the size takes twice the time. All sizes of a row take
turns, and the median of the rounds counts. The second table is tracing, lowering and compiling of a function that JAX
has not seen: caches are cleared before each.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

import portable_rnn as prnn

CELLS = {"LSTM": prnn.LSTM, "GRU": prnn.GRU, "RNN": prnn.RNN}
# what grows -> its values, those of --quick, and the exponent that must not be exceeded
GROWING: dict[str, tuple[tuple[int, ...], tuple[int, ...], float]] = {
    "T": ((100, 215, 464, 1000, 2154, 4642, 10_000), (100, 300, 1000), 1.05),
    "layers": ((1, 2, 4, 8), (1, 2, 4), 1.05),
    "B": ((1, 4, 16, 64, 256), (1, 4, 16), 1.05),
}
FIXED = {"T": 100, "layers": 1, "B": 8}
FEATURES = 64  # in and hidden
ROUNDS = 5
LENGTHS = (50, 2000)
COMPILE_TARGET = 1.2

Call = Callable[[], Any]


# ---------------------------------------------------------------------- arithmetic


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The p of ``seconds = c * sizes**p``, by least squares between the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def verdict(value: float, target: float) -> tuple[str, bool]:
    """The last two columns of a row, and whether the target is met."""
    met = value <= target
    return f"≤ {target:g} | {'met' if met else '**not met**'}", met


# ---------------------------------------------------------------------- what is measured


def forward(layer: prnn.Layer, params: Any, x: Any) -> Any:
    """The outputs."""
    return layer.apply(params, x)[0]


def training_step(layer: prnn.Layer, params: Any, x: Any) -> Any:
    """One step of gradient descent on ``sum(y**2) / 2``: the parameters after it."""
    y, _, pullback = layer.vjp(params, x)
    dparams, _, _ = pullback(y)
    return {name: p - 0.001 * dparams[name] for name, p in params.items()}


MEASURED: dict[str, Callable[[prnn.Layer, Any, Any], Any]] = {"forward": forward, "training step": training_step}


# ---------------------------------------------------------------------- cost


def call_of_size(function: Callable[..., Any], cell: str, growing: str, size: int) -> Call:
    """A call of `function` at one size."""
    sizes = FIXED | {growing: size}
    layer = CELLS[cell](FEATURES, FEATURES, sizes["layers"])
    params = layer.init(seed=0)
    x = np.random.default_rng(0).standard_normal((sizes["B"], sizes["T"], FEATURES), dtype="float32")
    return lambda: function(layer, params, x)


def processor_times(calls: list[Call], rounds: int) -> list[float]:
    """The median of each call's processor time, in seconds; the calls take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for round_ in range(rounds + 1):
        for call, own in zip(calls, times, strict=True):
            started = time.process_time()
            call()
            if round_:  # the first one warms up
                own.append(time.process_time() - started)
    return [statistics.median(own) for own in times]


def cost_table(quick: bool) -> list[bool]:
    """Exponents; whether each target is met."""
    fixed = ", ".join(f"{name} {size}" for name, size in FIXED.items())
    print(f"NumPy, {FEATURES} features in and hidden; what does not grow: {fixed}\n")
    print("| grows | cell | | from | to | ms | exponent | target | |\n|---|---|---|---|---|---|---|---|---|")
    targets = []
    for growing, (values, few, target) in GROWING.items():
        sizes = few if quick else values
        for cell in CELLS:
            for name, function in MEASURED.items():
                calls = [call_of_size(function, cell, growing, size) for size in sizes]
                seconds = processor_times(calls, 2 if quick else ROUNDS)
                found = exponent(sizes, seconds)
                end, met = verdict(found, target)
                times = f"{1e3 * seconds[0]:.2f} to {1e3 * seconds[-1]:.1f}"
                row = f"{growing} | {cell} | {name} | {sizes[0]} | {sizes[-1]:,} | {times} | {found:.2f} | {end}"
                print(f"| {row} |", flush=True)
                targets.append(met)
    return targets


# ---------------------------------------------------------------------- compilation


def compile_seconds(function: Callable[..., Any], layer: prnn.Layer, params: Any, steps: int) -> float:
    """Processor time of a compilation from scratch, in seconds."""
    import jax

    x = jax.ShapeDtypeStruct((16, steps, FEATURES), "float32")
    jax.clear_caches()
    started = time.process_time()
    jax.jit(lambda params, x: function(layer, params, x)).lower(params, x).compile()
    return time.process_time() - started


def compile_table(quick: bool) -> list[bool]:
    """Compilation at two lengths; whether each target is met."""
    short, long = LENGTHS
    print(f"| JAX compiles | T {short:,}, ms | T {long:,}, ms | ratio | target | |\n|---|---|---|---|---|---|")
    targets = []
    for cell, make in CELLS.items():
        layer = make(FEATURES, FEATURES)
        params = layer.init(seed=0, backend="jax")
        for name, function in MEASURED.items():
            compile_seconds(function, layer, params, short)  # imports and whatever else only the first one needs
            times: list[list[float]] = [[], []]
            for _ in range(3 if quick else 11):
                for steps, own in zip(LENGTHS, times, strict=True):
                    own.append(compile_seconds(function, layer, params, steps))
            ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
            end, met = verdict(ratio, COMPILE_TARGET)
            columns = " | ".join(f"{1e3 * statistics.median(own):.0f}" for own in times)
            print(f"| {cell}, {name} | {columns} | {ratio:.2f} | {end} |", flush=True)
            targets.append(met)
    return targets


def main() -> int:
    """Print the tables; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("cost", "compile"), help="one of the tables")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes, fewer rounds")
    arguments = parser.parse_args()
    targets = []
    if arguments.only != "compile":
        targets += cost_table(arguments.quick)
        print()
    if arguments.only != "cost":
        if importlib.util.find_spec("jax") is None:
            print("JAX is not installed: its compilation is left out")
        else:
            targets += compile_table(arguments.quick)
    return int(not all(targets))


if __name__ == "__main__":
    sys.exit(main())
