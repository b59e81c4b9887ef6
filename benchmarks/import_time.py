"""What ``import portable_rnn`` costs over ``import numpy``: whole processes, interleaved, medians.

Run ``python benchmarks/import_time.py [REPEATS]``. Exits with 1 if an array library other than NumPy was imported.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

STATEMENTS = ("import numpy", "import numpy, portable_rnn")
ARRAY_LIBRARIES = ("jax", "torch", "cupy", "dpnp", "array_api_strict", "tensorflow")


def seconds(statement: str, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor time of a fresh interpreter that runs `statement`."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imported_libraries() -> list[str]:
    """The array libraries that ``import portable_rnn`` brings along."""
    statement = f"import sys, portable_rnn; print(*(n for n in {ARRAY_LIBRARIES} if n in sys.modules))"
    return subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True, text=True).stdout.split()


def main(repeats: int) -> int:
    """Print the table; 1 if a library was imported that should not be."""
    runs: list[list[tuple[float, float]]] = [[], []]
    with tempfile.TemporaryDirectory() as cache:
        # Compiled once, as an installed package is, also where the environment says to write no bytecode.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        for statement in STATEMENTS:
            seconds(statement, environment)
        for _ in range(repeats):
            for statement, own in zip(STATEMENTS, runs, strict=True):
                own.append(seconds(statement, environment))
    medians = [[1e3 * statistics.median(column) for column in zip(*own, strict=True)] for own in runs]
    print(f"{'median of ' + str(repeats):<28} {'wall':>9} {'processor':>12}")
    for statement, (wall, processor) in zip(STATEMENTS, medians, strict=True):
        print(f"{statement:<28} {wall:6.0f} ms {processor:9.0f} ms")
    print(f"{'portable_rnn':<28} {medians[1][0] - medians[0][0]:6.0f} ms {medians[1][1] - medians[0][1]:9.0f} ms")
    print(f"array libraries imported besides NumPy: {', '.join(found := imported_libraries()) or 'none'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 31))
