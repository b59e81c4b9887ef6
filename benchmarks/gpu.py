"""Training steps and forward passes on a GPU: this library on CuPy and on torch arrays beside cuDNN, through torch.nn.

Run ``python benchmarks/gpu.py`` in the repository's folder, on a machine with an NVIDIA GPU, CuPy and a torch that was
built for CUDA. Elsewhere it says what is missing and ends with status 2. **It has not been run yet**: no GPU was at
hand when it was written, so that nothing is known about the times it will print.

All have the same weights and inputs, in float32 without TF32, and their outputs and gradients must agree to 1e-4. In
each round each is called once, in random order; a call ends when the GPU has done its work (this library's calls by
reading one number back, torch.nn's by synchronizing). Printed are medians of at least 11 rounds after 3 that don't
count, and, for one time step, the calls that are put into the GPU's queue (`gpu_launches.py`).
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]  # the checkout, whether the package is installed or not

import numpy as np

from benchmarks import gpu_launches
from portable_rnn.bench.cases import CELLS, KINDS, SIZES, Case, Task
from portable_rnn.bench.libraries import ours, torch_layer

TOLERANCE = 1e-4
WARM_UP = 3
LEAST_ROUNDS = 11


def missing() -> str | None:
    """What this machine lacks, or None."""
    for package in ("cupy", "torch"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    import cupy
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device ({error})"
    return None if found else "CuPy finds no CUDA device"


def on_gpu(case: Case) -> dict[str, Task]:
    """The same work in all libraries; the first is what the others are compared with."""
    return {
        "cuDNN": torch_layer(case, device="cuda"),
        "CuPy": ours(case, library="cupy"),
        "torch arrays": ours(case, library="torch", device="cuda"),
    }


def disagreement(tasks: dict[str, Task]) -> float:
    """The largest relative difference of an output or a gradient from the first library's."""
    first, *others = (task.outputs(task.call()) for task in tasks.values())
    worst = np.float64(0)
    for other in others:
        for name, expected in first.items():
            worst = np.maximum(worst, np.linalg.norm(other[name] - expected) / np.linalg.norm(expected))  # keeps NaN
    return float(worst)


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for k in range(WARM_UP + rounds):
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            if k >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(own) for name, own in times.items()}


def launches(case: Case) -> int:
    """Of one time step on CuPy, forward and, in a training step, backward."""
    layer, options = gpu_launches.LAYERS[case.cell]
    found = gpu_launches.count(layer, options)
    return found["forward"].fused + (found["backward"].fused if case.kind == "train" else 0)


def row(case: Case, milliseconds: dict[str, float], per_step: int) -> str:
    """One line of the table: times, and ratios to the first."""
    first, *others = milliseconds.values()
    cells = [f"{first:.2f}"]
    for own in others:
        cells += [f"{own:.2f}", f"{own / first:.2f}"]
    return f"| {case} | {' | '.join(cells)} | {per_step} |"


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help=f"at least {LEAST_ROUNDS}")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    args = parser.parse_args(argv)
    if args.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds {args.rounds}: expected at least {LEAST_ROUNDS}")
    lacking = missing()
    if lacking is not None:
        print(f"gpu.py: error: {lacking}: expected an NVIDIA GPU, CuPy and torch with CUDA", file=sys.stderr)
        return 2
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, float32, medians of {args.rounds} rounds in ms, ratios to cuDNN\n")
    print("| cell (B, T, I, H) | cuDNN | CuPy | ratio | torch arrays | ratio | CuPy's launches a step |")
    print("|---|---|---|---|---|---|---|")
    for case in (Case(cell, size, kind) for cell in args.cells for kind in KINDS for size in SIZES):
        tasks = on_gpu(case)
        away = disagreement(tasks)
        if not away <= TOLERANCE:
            print(f"gpu.py: error: {case}: results differ by {away:.1e}: expected {TOLERANCE}", file=sys.stderr)
            return 1
        print(row(case, medians({name: task.call for name, task in tasks.items()}, args.rounds), launches(case)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
