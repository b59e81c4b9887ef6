"""Run a piece of Python in a process of its own: for what ends in a fault, or needs other variables."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

HEAD = "import cupy_on_cpu, cupy, numpy\n"
_OPTIONS = [f"CUPY_ON_CPU_{name}" for name in ("DEVICES", "PEER", "REVERSE", "GUARD")]


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`code` after ``import cupy_on_cpu, cupy, numpy``; keywords are environment variables, without CUPY_ON_CPU_."""
    own = {name: value for name, value in os.environ.items() if name not in _OPTIONS}
    own |= {name if name.startswith("CUPY") else f"CUPY_ON_CPU_{name}": value for name, value in variables.items()}
    tests = Path(__file__).parents[1]
    own["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent), own.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", HEAD + textwrap.dedent(code)]
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=300, check=False)
