"""Processes that take turns: each peer has one of its own, and only one of them computes at any time.

In one process the libraries would slow each other: OpenBLAS's and OpenMP's threads spin for a while after they have
nothing left to do. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import InputError
from .cases import Case, Peer, Task

__all__ = ["agreement", "measure", "missing"]

SHORTEST = 0.01  # seconds that one measurement takes at least, as a mean over calls
WARM_UP = 0.25  # seconds of calls before anything is timed: at least one, after the one whose outputs are checked
PAUSE = 0.03  # seconds between two measurements: OpenBLAS's threads spin for about as long before they sleep
TOLERANCE = 1e-4
_SAMPLE = 200  # numbers of each output that are compared

_BOOTSTRAP = """
import json, os, sys
given = json.loads(sys.argv[1])
sys.path[:0] = given["path"]
if given["threads"] and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given["threads"]])
from portable_rnn.bench.workers import serve
serve(given["factory"], given["options"])
"""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def missing(peer: Peer) -> str:
    """The packages that a peer needs and that are not installed, or an empty string."""
    return ", ".join(name for name in peer.packages if importlib.util.find_spec(name) is None)


def measure(
    peers: Sequence[Peer],
    cases: Sequence[Case],
    *,
    rounds: int,
    threads: int | None = None,
    path: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Time every peer at every case it can do.

    In each round every peer is timed once, in random order, so that a change of the machine's speed meets them all.

    Parameters
    ----------
    peers : sequence of Peer
        All of them installed.
    cases : sequence of Case
    rounds : int
    threads : int, optional
        At most so many, on as many processors; each library's own choice when left out.
    path : sequence of str
        Folders that the peers' factories are also looked for in.
    say : callable of str
        Told of the progress.

    Returns
    -------
    list of dict
        For each case "cell", "size", "kind", "seconds" (by peer, one for each round), "failed" (by peer: why).

    Raises
    ------
    InputError
        Outputs of libraries with the same weights differ.
    """
    measured = []
    order = random.Random(0)
    with contextlib.ExitStack() as stack:
        workers = {peer.name: stack.enter_context(_worker(peer, threads, path)) for peer in peers}
        for number, case in enumerate(cases, start=1):
            say(f"{number}/{len(cases)} {case}")
            able = [peer for peer in peers if peer.does(case)]
            failed, samples = {}, {}
            for peer in able:
                answer = workers[peer.name].ask({"prepare": [case.cell, case.size, case.kind]})
                if "error" in answer:
                    failed[peer.name] = answer["error"]
                elif peer.same_weights:
                    samples[peer.name] = answer["sample"]
            agreement(case, samples)
            seconds: dict[str, list[float]] = {peer.name: [] for peer in able if peer.name not in failed}
            for _ in range(rounds):
                for name in order.sample(list(seconds), len(seconds)):
                    time.sleep(PAUSE)
                    answer = workers[name].ask({"time": True})
                    if "error" in answer:
                        failed[name] = answer["error"]
                        del seconds[name]
                    else:
                        seconds[name].append(float(f"{answer['seconds']:.4g}"))
            measured.append(
                {"cell": case.cell, "size": list(case.size), "kind": case.kind, "seconds": seconds, "failed": failed}
            )
    return measured


def agreement(case: Case, samples: dict[str, dict[str, list[float]]]) -> None:
    """Raise InputError where one peer's outputs differ from those of the first by more than 1e-4 of their scale."""
    if not samples:
        return
    (first, expected), *others = samples.items()
    for name, found in others:
        if found.keys() != expected.keys():
            raise InputError(f"{case}: {name} gives {sorted(found)}, {first} gives {sorted(expected)}")
        for output, values in expected.items():
            scale = max(1.0, float(np.max(np.abs(values))))
            difference = float(np.max(np.abs(np.subtract(values, found[output]))))
            if not difference <= TOLERANCE * scale:
                raise InputError(f"{case}: {output} of {name} and of {first} differ by {difference:.3g}")


class _Worker:
    """The parent's end of a process."""

    def __init__(self, process: subprocess.Popen[str], errors: TextIO) -> None:
        self.process = process
        self.errors = errors

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; a dead process answers with its last words."""
        try:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        return {"error": f"its process ended with exit code {code}: {said[-1] if said else 'it said nothing'}"}


@contextlib.contextmanager
def _worker(peer: Peer, threads: int | None, path: Sequence[str]) -> Iterator[_Worker]:
    here = str(Path(__file__).resolve().parents[2])
    given = {"factory": peer.factory, "options": dict(peer.options), "path": [here, *path], "threads": threads}
    environment = os.environ | dict(peer.environment)
    if threads is not None:
        environment |= dict.fromkeys(_THREADS, str(threads))
    command = [sys.executable, "-P", "-c", _BOOTSTRAP, json.dumps(given)]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment)
        try:
            yield _Worker(process, errors)
        finally:
            # it has nothing to tidy up, and may be in the middle of a long computation
            process.kill()
            process.communicate()


# ---------------------------------------------------------------------- inside the process


def serve(factory: str, options: dict[str, Any]) -> None:
    """Answer requests on stdin until it closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    module, _, name = factory.partition(":")
    current: tuple[Task, int] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "prepare" in request:
                current = None  # two large cases need not fit into memory at once
                cell, size, kind = request["prepare"]
                case = Case(cell, tuple(size), kind)
                task = getattr(importlib.import_module(module), name)(case, **options)
                answer: dict[str, Any] = {"sample": _sample(case, task)}
                current = task, _calls(task)
            else:
                assert current is not None
                answer = {"seconds": _seconds(*current)}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(answer), file=answers, flush=True)


def _sample(case: Case, task: Task) -> dict[str, list[float]]:
    """Some numbers of every output, after a look whether the work asked for was done."""
    outputs = task.outputs(task.call())
    batch, steps, inputs, hidden = case.size
    for name, width in {"y": hidden, "dx": inputs}.items():
        if name in outputs and outputs[name].shape != (batch, steps, width):
            raise ValueError(f"{name} has shape {outputs[name].shape}, not {(batch, steps, width)}")
    if case.kind == "train" and "y" in outputs and "dx" not in outputs:
        raise ValueError("a training step gives the gradient of x")
    sample = {}
    for name, array in outputs.items():
        values = np.asarray(array, dtype=np.float64).ravel()
        if not np.all(np.isfinite(values)) or not np.any(values):
            raise ValueError(f"{name} is zero everywhere or not finite")
        sample[name] = values[np.linspace(0, values.size - 1, min(values.size, _SAMPLE)).astype(int)].tolist()
    return sample


def _calls(task: Task) -> int:
    """Warm up, and choose how many calls make one measurement."""
    started, done, shortest = time.perf_counter(), 0, math.inf
    while done < 1 or time.perf_counter() - started < WARM_UP:
        before = time.perf_counter()
        task.call()
        shortest = min(shortest, time.perf_counter() - before)
        done += 1
    return max(1, math.ceil(SHORTEST / shortest))


def _seconds(task: Task, calls: int) -> float:
    """Per call; where calls are short, after some that bring back what other processes pushed out of the caches."""
    for _ in range(calls // 4 + 1 if calls > 1 else 0):
        task.call()
    started = time.perf_counter()
    for _ in range(calls):
        task.call()
    return (time.perf_counter() - started) / calls
