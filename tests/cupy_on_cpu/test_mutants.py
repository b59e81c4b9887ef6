"""A fault in a kernel's source is found: each mutant must end in another number, or in a fault.

A mutant is the source that CuPy hands over, changed before it is compiled. The check is that of a user: forward and
backward of two layers against NumPy.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from .running import run

CHECK = """
import re
import numpy as np
import portable_rnn as prnn
from cupy_on_cpu import compiler

found, image_of = [], compiler.image_of

def mutated(source, options, names):
    if re.search({kernel!r}, source):
        changed = re.sub({pattern!r}, {replacement!r}, source, count={count})
        found.append(changed != source)
        source = changed
    return image_of(source, options, names)

compiler.image_of = mutated
rng = np.random.default_rng(0)
worst = 0.0
for layer in (prnn.LSTM(3, 5, bidirectional=True), prnn.GRU(3, 5)):
    results = []
    for library in ("numpy", "cupy"):
        target = prnn.backend(library, dtype="float64")
        params = layer.init(seed=1, backend=target)
        x = prnn.asarray(np.random.default_rng(2).normal(size=(4, 6, 3)), target)
        y, state, pullback = layer.vjp(params, x, lengths=[6, 2, 0, 5])
        loss, dy = prnn.losses.mse(y, target.xp.zeros_like(y))
        dparams, dx, _ = pullback(dy * 40)
        results.append([prnn.to_numpy(a) for a in (y, loss, dx, *dparams.values())])
    for one, other in zip(*results):
        worst = max(worst, float(np.nan_to_num(np.abs(one - other), nan=9).max()))
print("mutated", sum(found), "worst", worst)
"""


class Mutant(NamedTuple):
    """What is changed in the kernels whose source matches `kernel`."""

    kernel: str
    pattern: str
    replacement: str
    count: int = 0


OURS = r"blockIdx\.x \* blockDim\.x \+ threadIdx\.x;\s+if \(e >= size\) return;"
CUPYS_ADD = r"cupy_add"
CUPYS_SUM = r"__global__ void cupy_sum"
MUTANTS = {
    "none": Mutant(OURS, r"$^", ""),
    "another function": Mutant(OURS, r"\btanh\(", "sinh("),
    "another operator": Mutant(OURS, r"(= \w+) \* (\w+;)", r"\1 + \2", 1),
    "the step before": Mutant(OURS, r"\[t \* (x0_step)", r"[(t ? t - 1 : 0) * \1"),
    "the row beside": Mutant(OURS, r"size \+ e\]", "size + (e ? e - 1 : e)]", 1),
    "one element less": Mutant(OURS, r"e >= size\)", "e >= size - 1)"),
    "a block more": Mutant(OURS, r"if \(e >= size\) return;", ""),
    "CuPy's addition": Mutant(CUPYS_ADD, r"out0 = in0 \+ in1", "out0 = in0 - in1"),
    "CuPy's sum": Mutant(CUPYS_SUM, r"__syncthreads\(\);", ""),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    # an empty cache of CuPy's, so that each kernel is handed over
    done = run(CHECK.format(**mutant._asdict()), CUPY_CACHE_DIR=str(tmp_path), GUARD="1")
    if done.returncode:
        assert name != "none", done.stderr
        assert done.returncode == -signal.SIGSEGV, done.stderr
        return
    _, mutated, _, worst = done.stdout.split()
    if name == "none":
        assert float(worst) < 1e-12
    else:
        assert int(mutated) > 0, f"{mutant.pattern} is in no kernel"
        assert float(worst) > 1e-6, f"{name}: not found"
