"""Threads that run compiled loops beside each other."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

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
        self.beside = -1  # the processor that they leave to the thread which calls them
        self.numbers: list[int] = []  # of the threads, for the system
        self.placed = 0  # how many of them
        self.one_after_another = threading.Lock()  # of those whose calls wait for each other

    def submit(self, call: Callable[[], None]) -> Future[None]:
        if self.pool is None:
            self.pool = ThreadPoolExecutor(max(threads() - 1, 1), initializer=_note, initargs=(self.numbers,))
        self.make_way()
        return self.pool.submit(call)

    def make_way(self) -> None:
        """Keep the threads off the processor on which this one runs: the system may wake them there, and leave them."""
        here, numbers = _processor(), self.numbers.copy()
        if here < 0 or (here == self.beside and len(numbers) == self.placed):
            return
        others = os.sched_getaffinity(0) - {here}
        for number in numbers if others else ():
            with suppress(OSError):
                os.sched_setaffinity(number, others)
        self.beside, self.placed = here, len(numbers)


def _note(numbers: list[int]) -> None:
    numbers.append(threading.get_native_id())


@functools.lru_cache(maxsize=1)
def _finder() -> Callable[[], int] | None:
    """The C library's function for the processor that this thread runs on, where there is one (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    found: Callable[[], int] | None = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return found


def _processor() -> int:
    find = _finder()
    return -1 if find is None else find()


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
