"""How an interpreter ends while the library is in use: sub-interpreters, and predictions at the very end."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest

IN_SUB_INTERPRETER = '''
import _xxsubinterpreters as interpreters
inner = interpreters.create(isolated=False)  # NumPy can be loaded by one interpreter of a process
interpreters.run_string(inner, """
import warnings
warnings.simplefilter("ignore")  # of NumPy, that it was not made for this
import numpy as np, portable_rnn as prnn
layer = prnn.LSTM(32, 64)
y, _, pullback = layer.vjp(layer.init(0), np.ones((64, 40, 32), dtype="float32"))
pullback(y)
print("ran", flush=True)
""")
interpreters.destroy(inner)
print("ended")
'''

AT_EXIT = """
import numpy as np, portable_rnn as prnn
class Last:
    def __init__(self):
        self.model = prnn.Model(prnn.Sequential(prnn.GRU(2, 3, bidirectional=True), prnn.Last(), prnn.Linear(6, 1)))
        self.x, self.print = np.ones((8, 20, 2), dtype="float32"), print
    def __del__(self):
        self.print(self.model.predict(self.x).shape, flush=True)
last = Last()
"""


def run(script: str, **variables: str) -> tuple[int, str, str]:
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment | variables, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("_xxsubinterpreters") is None, reason="under this name up to Python 3.12")
@pytest.mark.parametrize("compile_loops", ["0", "1"])
def test_sub_interpreters_end(compile_loops: str) -> None:
    assert run(IN_SUB_INTERPRETER, PORTABLE_RNN_COMPILE=compile_loops) == (0, "ran\nended\n", "")


@pytest.mark.parametrize("before", ["", "last.model.predict(last.x)", "last.itself = last"])
@pytest.mark.parametrize("compile_loops", ["0", "1"])
def test_a_prediction_at_the_end_of_the_interpreter(compile_loops: str, before: str) -> None:
    code, out, errors = run(f"{AT_EXIT}\n{before}\n", PORTABLE_RNN_COMPILE=compile_loops)
    assert (code, errors) == (0, "")
    assert out == "(8, 1)\n"
