"""Check what is installed in this environment: the data files and py.typed, under 100 kB of data, and no tests."""

from __future__ import annotations

import sys
from importlib.metadata import files

DATA = {"co2", "seattle_temps", "seattle_weather", "sunspots"}

installed = {str(path): path for path in files("portable-rnn") or ()}
data = {name: path.size or 0 for name, path in installed.items() if name.endswith(".csv.gz")}
problems = [
    *(
        f"no portable_rnn/data/datasets/{name}.csv.gz"
        for name in DATA
        if f"portable_rnn/data/datasets/{name}.csv.gz" not in data
    ),
    *(f"{name} does not belong there" for name in installed if name.startswith(("tests", "benchmarks", "docs"))),
    *(f"no {name}" for name in ("portable_rnn/py.typed", "portable_rnn/cli/entry.py") if name not in installed),
]
if not any(name.endswith("licenses/LICENSE") for name in installed):
    problems.append("no LICENSE")
if sum(data.values()) > 100_000:
    problems.append(f"{sum(data.values())} bytes of data: expected at most 100,000")
print(f"wheel: {len(installed)} files, {sum(data.values())} bytes of data")
for problem in problems:
    print(f"wheel: {problem}")
sys.exit(1 if problems else 0)
