"""What the library weighs beside torch: memory of a training step, start to first prediction, installed size.

Run ``python benchmarks/footprint.py`` in the repository's folder; some minutes, Linux, with torch installed. The third
table installs the package into a fresh virtual environment and needs a package index. Exits with 1 when a target is
missed. ``--only memory``, ``start`` or ``size`` prints one table, ``--quick`` runs each of them small.

Memory is the largest resident set of a process of its own during one training step, less what it held just before:
data, weights, imports and the buffers of a first, short step are in neither. Both libraries train the same network, a
recurrent layer, the output of its last step and a linear layer, float32, by plain gradient descent on the squared
error.

A start is a whole process: import the library, load a saved model, predict once. The two take turns, after one run
that does not count and that leaves compiled bytecode of both behind. All of it on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

import portable_rnn as prnn

ROOT = Path(__file__).resolve().parent.parent
CELLS = ("LSTM", "GRU", "RNN")
SIZES = ((64, 100, 64, 256), (64, 50, 256, 512), (16, 784, 28, 128))  # B, T, I, H
QUICK_SIZES = ((64, 100, 64, 256),)
LEARNING_RATE = 0.01
MEGABYTE = 10**6
MEMORY_TARGET, START_TARGET, SIZE_TARGET = 1.0, 0.25, 60.0
START_SIZE = (1, 50, 8, 64)  # of the model that starts

Met = list[bool]  # whether the target of each row of a table is met


def verdict(value: float, target: float, sign: str = "≤") -> tuple[str, bool]:
    """The last two columns of a row, and whether the target is met."""
    met = value <= target if sign == "≤" else value < target
    return f"{sign} {target:g} | {'met' if met else '**not met**'}", met


# ---------------------------------------------------------------------- memory of a training step


def our_model(cell: str, features: int, hidden: int) -> prnn.Model:
    """The network on NumPy."""
    network = prnn.Sequential(getattr(prnn, cell)(features, hidden), prnn.Last(), prnn.Linear(hidden, 1))
    return prnn.Model(network, seed=0)


def our_step(model: prnn.Model, x: np.ndarray, y: np.ndarray) -> None:
    """One update of `Model.fit`."""
    optimizer = prnn.sgd(LEARNING_RATE)
    model.fit(x, y, optimizer=optimizer, epochs=1, batch_size=len(x), shuffle=False, progress=False)


def torch_model(cell: str, features: int, hidden: int) -> Any:
    """The same network of torch.nn."""
    import torch

    return torch.nn.ModuleList(
        [getattr(torch.nn, cell)(features, hidden, batch_first=True), torch.nn.Linear(hidden, 1)]
    )


def torch_step(model: Any, x: np.ndarray, y: np.ndarray) -> None:
    """One update, as everybody writes it."""
    import torch

    layer, linear = model
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    optimizer.zero_grad()
    out, _ = layer(torch.from_numpy(x))
    torch.nn.functional.mse_loss(linear(out[:, -1]), torch.from_numpy(y)).backward()
    optimizer.step()


LIBRARIES: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "portable_rnn": (our_model, our_step),
    "torch": (torch_model, torch_step),
}


def resident(which: str) -> int:
    """A line of Linux's account of this process in bytes: VmRSS is what it holds, VmHWM the most it ever held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def step_memory(library: str, cell: str, size: tuple[int, int, int, int]) -> int:
    """In a process of its own: bytes that a training step takes at its peak."""
    batch, steps, features, hidden = size
    make, step = LIBRARIES[library]
    model = make(cell, features, hidden)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape, dtype="float32") for shape in ((batch, steps, features), (batch, 1)))
    step(model, x[:, :2].copy(), y)  # imports, and what the first call compiles: few columns are left to other code
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from VmRSS
    step(model, x, y)
    return resident("VmHWM") - before


def measured_memory(library: str, cell: str, size: tuple[int, int, int, int], rounds: int) -> float:
    """The median of `step_memory` in so many fresh processes."""
    command = [sys.executable, __file__, "--child", json.dumps([library, cell, size])]
    found = [
        int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout)
        for _ in range(rounds)
    ]
    return statistics.median(found)


def memory_table(quick: bool) -> Met:
    """Peak memory of a training step, ours and torch's."""
    print("| peak memory of a training step | portable_rnn on NumPy, MB | torch.nn, MB | ratio | target | |")
    print("|---|---|---|---|---|---|")
    targets = []
    for cell in CELLS:
        for size in QUICK_SIZES if quick else SIZES:
            ours, theirs = (measured_memory(name, cell, size, 1 if quick else 3) for name in LIBRARIES)
            end, met = verdict(ours / theirs, MEMORY_TARGET)
            name = "{} B {} T {} I {} H {}".format(cell, *size)
            print(
                f"| {name} | {ours / MEGABYTE:.1f} | {theirs / MEGABYTE:.1f} | {ours / theirs:.2f} | {end} |",
                flush=True,
            )
            targets.append(met)
    return targets


# ---------------------------------------------------------------------- start to first prediction

# Each is a program with the file, and then B, T, I and H, as its arguments.
OUR_PROGRAM = """
import sys
import numpy as np
import portable_rnn as prnn

path, (batch, steps, features, hidden) = sys.argv[1], map(int, sys.argv[2:])
print(prnn.load(path).predict(np.ones((batch, steps, features), dtype="float32"))[0, 0])
"""
TORCH_PROGRAM = """
import sys
import torch

path, (batch, steps, features, hidden) = sys.argv[1], map(int, sys.argv[2:])


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.LSTM(features, hidden, batch_first=True)
        self.linear = torch.nn.Linear(hidden, 1)

    def forward(self, x):
        out, _ = self.layer(x)
        return self.linear(out[:, -1])


model = Network()
model.load_state_dict(torch.load(path))
model.eval()
with torch.no_grad():
    print(model(torch.ones(batch, steps, features))[0, 0].item())
"""
# what no program with NumPy arrays can do without
NUMPY_PROGRAM = "import numpy"


def save_models(folder: Path) -> dict[str, Path]:
    """The same weights as a file of each library."""
    import torch

    _, _, features, hidden = START_SIZE
    model = our_model("LSTM", features, hidden)
    paths = {"portable_rnn": folder / "model.safetensors", "torch": folder / "model.pt"}
    model.save(paths["portable_rnn"])
    ours, theirs = prnn.to_torch(model).state_dict(), {}
    for name, p in ours.items():
        _, _, own = name.rpartition(".")
        theirs[f"{'layer' if own.endswith('_l0') else 'linear'}.{own}"] = p
    torch.save(theirs, paths["torch"])
    return paths


def seconds(program: str, arguments: list[str], env: dict[str, str]) -> tuple[float, float, str]:
    """Wall and processor time of a fresh interpreter that runs `program`, and what it printed."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True, env=env
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def start_table(rounds: int) -> Met:
    """From the start of the interpreter to the first prediction."""
    with tempfile.TemporaryDirectory() as folder:
        paths = save_models(Path(folder))
        # Compiled once, as an installed package is, also where the environment says to write no bytecode.
        env = {k: v for k, v in environment().items() if k != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        numbers = [str(n) for n in START_SIZE]
        programs = {
            "portable_rnn": (OUR_PROGRAM, [str(paths["portable_rnn"]), *numbers]),
            "torch": (TORCH_PROGRAM, [str(paths["torch"]), *numbers]),
            "import numpy": (NUMPY_PROGRAM, []),
        }
        answers = {name: seconds(*program, env)[2] for name, program in programs.items()}
        if not math.isclose(float(answers["portable_rnn"]), float(answers["torch"]), rel_tol=1e-4):
            raise AssertionError(f"the two programs must predict the same, got {answers}")
        runs: dict[str, list[tuple[float, ...]]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, program in programs.items():
                runs[name].append(seconds(*program, env)[:2])
    print(
        f"| import, load, first prediction; median of {rounds} | portable_rnn, ms | torch, ms | import numpy, ms | "
        "ratio to torch | target | |\n|---|---|---|---|---|---|---|"
    )
    targets = []
    for kind, clock in enumerate(("wall", "processor")):
        ours, theirs, floor = ([run[kind] for run in runs[name]] for name in programs)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        end, met = verdict(ratio, START_TARGET)
        times = " | ".join(f"{1e3 * statistics.median(own):.0f}" for own in (ours, theirs, floor))
        print(f"| {clock} time | {times} | {ratio:.2f} | {end} |", flush=True)
        targets.append(met)
    return targets


# ---------------------------------------------------------------------- installed size

# Bytes of what the distributions ship and of the bytecode that pip compiles beside it, by name
SIZES_PROGRAM = """
import importlib.metadata, json, sys

sizes = {}
for distribution in importlib.metadata.distributions():
    if distribution.name in ("pip", "setuptools") or sys.argv[1:] not in ([], [distribution.name]):
        continue
    sizes[distribution.name] = [0, 0]
    for file in distribution.files or ():
        path = file.locate()
        if path.is_file():
            sizes[distribution.name][file.suffix == ".pyc"] += path.stat().st_size
print(json.dumps(sizes))
"""


def distribution_sizes(python: str, *names: str) -> dict[str, tuple[int, int]]:
    """Bytes of what is installed for an interpreter, or of one distribution: what it ships, and bytecode."""
    # not from here: the interpreter's own packages only
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([python, "-c", SIZES_PROGRAM, *names], check=True, capture_output=True, text=True, env=env)
    found: dict[str, tuple[int, int]] = json.loads(done.stdout)
    return found


def installed_sizes() -> dict[str, tuple[int, int]]:
    """What installing the package without extras brings into a fresh environment."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--quiet", str(ROOT)], check=True)
        return distribution_sizes(python)


def size_table() -> Met:
    """Installed size of the package and what it requires."""
    sizes = installed_sizes()
    print("| installed without extras | as shipped, MB | with bytecode, MB | target | |\n|---|---|---|---|---|")
    own = sizes.pop("portable-rnn")
    required = tuple(map(sum, zip(*sizes.values(), strict=True)))
    torch = distribution_sizes(sys.executable, "torch")["torch"]
    rows = dict(sorted(sizes.items(), key=lambda item: -sum(item[1]))) | {"these, which are required": required}
    rows |= {"portable-rnn": own, "torch alone, of this environment": torch}
    targets = []
    for name, (shipped, bytecode) in rows.items():
        both = shipped / MEGABYTE, (shipped + bytecode) / MEGABYTE
        end = " | "
        if name.startswith("these"):
            targets = [size < SIZE_TARGET for size in both]
            words = ("met" if met else "**not met**" for met in targets)
            end = "< {:g} | as shipped {}, with bytecode {}".format(SIZE_TARGET, *words)
        print("| {} | {:.1f} | {:.1f} | {} |".format(name, *both, end))
    return targets


# ---------------------------------------------------------------------- all of it


def environment() -> dict[str, str]:
    """The environment of a process that imports the package from this repository."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def main() -> int:
    """Print the tables; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("memory", "start", "size"), help="one of the tables")
    parser.add_argument(
        "--quick", action="store_true", help="one size, one process each; three starts; no installation"
    )
    parser.add_argument("--rounds", type=int, default=11, help="of the starts (11)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        library, cell, size = json.loads(arguments.child)
        print(step_memory(library, cell, size))
        return 0
    if importlib.util.find_spec("torch") is None:
        parser.error("torch must be installed, it is what is measured against: pip install '.[torch]'")
    tables: dict[str, Callable[[], Met]] = {
        "memory": lambda: memory_table(arguments.quick),
        "start": lambda: start_table(3 if arguments.quick else arguments.rounds),
        "size": size_table,
    }
    if arguments.quick and arguments.only is None:
        del tables["size"]
    targets: Met = []
    for name, table in tables.items():
        if arguments.only in (None, name):
            targets += table()
            print()
    return int(not all(targets))


if __name__ == "__main__":
    sys.exit(main())
