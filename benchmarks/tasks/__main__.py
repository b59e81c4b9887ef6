"""Run all tasks and print the table of ``docs/tasks.md``: ``python -m benchmarks.tasks`` in the repository's folder."""

from __future__ import annotations

from . import adding, characters, copying, digits, reber, surnames, xor
from .harness import table

if __name__ == "__main__":
    table([xor.TASK, reber.TASK, adding.TASK, *copying.TASKS, digits.TASK, surnames.task(), characters.task()])
