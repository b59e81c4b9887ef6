"""What the tasks share: a description, a run for each seed, a row of a Markdown table."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

COLUMNS = ("task", "measure", "without memory", "published", "ours", "seeds", "trained on", "seconds")


@dataclass(frozen=True)
class Task:
    """A task, where it comes from, and how to run it.

    Attributes
    ----------
    name, measure : str
    source : str
        Who published it.
    reference : str
        The measure without learning what the task is about.
    published : str
    run : callable
        ``run(seed) -> the measure``.
    trained_on : str
        How much a seed learns from.
    digits : int
        Decimals of the measure.
    seeds : tuple of int
    """

    name: str
    source: str
    measure: str
    reference: str
    published: str
    run: Callable[[int], float]
    trained_on: str
    digits: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)


def row(task: Task, seeds: Sequence[int]) -> str:
    """Run a task with every seed; its line of the table. What comes on the way goes to stderr."""
    started, values = time.perf_counter(), []
    for seed in seeds:
        values.append(task.run(seed))
        print(f"{task.name}, seed {seed}: {task.measure} {values[-1]:,.{task.digits}f}", file=sys.stderr, flush=True)
    seconds = f"{time.perf_counter() - started:.0f}"
    name = f"{task.name} ({task.source})"
    seeds_named = ", ".join(map(str, seeds))
    ours = summary(values, task.digits)
    return line((name, task.measure, task.reference, task.published, ours, seeds_named, task.trained_on, seconds))


def summary(values: Sequence[float], digits: int) -> str:
    """The median of the seeds and their range."""
    middle, low, high = (f"{f(values):,.{digits}f}" for f in (statistics.median, min, max))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(tasks: Sequence[Task], argv: Sequence[str] | None = None) -> None:
    """Run tasks and print their table; the seeds may be given on the command line."""
    parser = argparse.ArgumentParser(description="; ".join(task.name for task in tasks))
    parser.add_argument("--seeds", type=int, nargs="+", help="default: each task's own")
    arguments = parser.parse_args(argv)
    print(line(COLUMNS))
    print(line(["---"] * len(COLUMNS)))
    for task in tasks:
        print(row(task, arguments.seeds or task.seeds), flush=True)


def one_hot(symbols: np.ndarray, count: int) -> np.ndarray:
    """Integers (...) as float32 rows (..., count)."""
    return np.eye(count, dtype=np.float32)[symbols]
