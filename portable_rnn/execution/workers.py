"""Threads that run compiled loops beside each other."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["at_once", "threads", "waiting_for_each_other"]


@functools.lru_cache(maxsize=1)
def threads() -> int:
    """How many to use: the processors that this process may run on, or ``$OMP_NUM_THREADS`` if that is less."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(usable, int(given)), 1) if given.isdigit() else usable


class _Workers:
    """A pool of threads, one less than the processors, that is started at its first use."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.one_after_another = threading.Lock()  # of those whose calls wait for each other

    def submit(self, call: Callable[[], None]) -> Future[None]:
        if self.pool is None:
            self.pool = ThreadPoolExecutor(max(threads() - 1, 1), thread_name_prefix="portable_rnn")
        return self.pool.submit(call)


_workers = _Workers()


def _start_anew() -> None:
    global _workers
    _workers = _Workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)  # a child has none of the threads


def at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Run all of them, the first in this thread."""
    waiting = [_workers.submit(call) for call in calls[1:]]
    try:
        calls[0]()
    finally:  # whatever interrupts this thread, the others still use its arrays
        for future in waiting:
            future.result()


@contextmanager
def waiting_for_each_other(most: int) -> Iterator[int]:
    """How many calls, up to `most`, `at_once` will run at the same time: of the others, only one set does so."""
    free = most > 1 and _workers.one_after_another.acquire(blocking=False)
    try:
        yield min(most, threads()) if free else 1
    finally:
        if free:
            _workers.one_after_another.release()
