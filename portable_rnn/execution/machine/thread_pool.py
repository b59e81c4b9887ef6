"""A pool of worker threads that run compiled loops beside each other.

Between one loop and the next, which often follows at once, a worker polls for a while before it blocks on its
semaphore: waking a blocked thread takes as long as a small loop runs. Workers poll, run and block inside machine code.
The system starts them at the machine code itself, so that they are no threads of Python: they need no interpreter's
lock, and an interpreter (a sub-interpreter too) ends without knowing them.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .compiler import Library
from .emitter import Emitter

if TYPE_CHECKING:
    from llvmlite import ir

__all__ = ["ThreadPool", "current", "run_in_threads", "several", "thread_count"]

_WORDS = 16  # of a worker's slot: two lines of the cache, since processors fetch them in pairs
_STATE, _FUNCTION, _ARGUMENT, _SEMAPHORE, _POLLS, _SYSTEM_ID = range(6)  # of which these are used
BLOCKED, POLLING, BUSY, ENDING, ENDED = range(5)  # states
POLLS_BEFORE_BLOCKING = 3000 * 64  # about a millisecond
_YIELD_EVERY = 64  # polls
_MOST = 1024  # threads


@functools.lru_cache(maxsize=1)
def thread_count() -> int:
    """How many to use: the processors that this process may run on, or ``$OMP_NUM_THREADS`` if that is less."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(usable, int(given) if given.isdigit() else usable, _MOST), 1)


# ---------------------------------------------------------------------- machine code


@functools.lru_cache(maxsize=1)
def _library() -> Library:
    from llvmlite import ir

    module = ir.Module()
    _write_worker(module)
    _write_run(module)
    _write_end(module)
    return Library(str(module), forever=True)


def _write_worker(module: ir.Module) -> None:
    """What a worker does: run what is put into its slot, poll for more, and block when nothing came for a while.

    Argument: the slot.
    """
    e = Emitter(module, "worker", ["slot"])
    b, slot = e.builder, e.arguments["slot"]
    block, poll, work, wait, tired, end = (b.append_basic_block() for _ in range(6))
    state = e.address(slot, _STATE, 8)
    if _knows_system_ids():
        e.store_word(e.call_at(_address("PyThread_get_thread_native_id")), e.address(slot, _SYSTEM_ID, 8))
    b.branch(block)
    b.position_at_end(block)
    e.call_at(_address("PyThread_acquire_lock"), e.load_word(e.address(slot, _SEMAPHORE, 8)), 1)
    b.branch(poll)

    b.position_at_end(poll)
    count = b.phi(e.word)
    count.add_incoming(e.word(0), block)
    found = e.load_shared(state)
    choice = b.switch(found, wait)
    choice.add_case(e.word(BUSY), work)
    choice.add_case(e.word(ENDING), end)

    b.position_at_end(work)
    e.call_at(e.load_word(e.address(slot, _FUNCTION, 8)), e.load_word(e.address(slot, _ARGUMENT, 8)))
    e.store_shared(POLLING, state)
    count.add_incoming(e.word(0), b.block)
    b.branch(poll)

    b.position_at_end(wait)
    more = e.plus(count, 1)
    e.give_way_every(_YIELD_EVERY, count)
    count.add_incoming(more, b.block)
    b.cbranch(e.less(more, e.load_word(e.address(slot, _POLLS, 8))), poll, tired)

    b.position_at_end(tired)  # unless there is work just now
    blocked = e.exchange(state, POLLING, BLOCKED)
    count.add_incoming(e.word(0), b.block)
    b.cbranch(blocked, block, poll)

    b.position_at_end(end)
    e.store_shared(ENDED, state)
    e.finish()


def _write_run(module: ir.Module) -> None:
    """Run a function here and by the workers, and wait until all are done.

    Arguments: slots, count (of workers), function, arguments (of this thread, and of each worker).
    """
    e = Emitter(module, "run", ["slots", "count", "function", "arguments"])
    a = e.arguments
    with e.loop(0, a["count"]) as (k, _):
        slot = e.address(a["slots"], k, 8 * _WORDS)
        e.store_word(a["function"], e.address(slot, _FUNCTION, 8))
        e.store_word(e.load_word(e.address(a["arguments"], e.plus(k, 1), 8)), e.address(slot, _ARGUMENT, 8))
        _tell(e, slot, BUSY)
    e.call_at(a["function"], e.load_word(a["arguments"]))
    with e.loop(0, a["count"]) as (k, _):
        state = e.address(e.address(a["slots"], k, 8 * _WORDS), _STATE, 8)
        e.wait_while(lambda: e.equal(e.load_shared(state), BUSY))
    e.finish()


def _write_end(module: ir.Module) -> None:
    """Tell workers that have nothing to do to end. Arguments: slots, count."""
    e = Emitter(module, "end", ["slots", "count"])
    with e.loop(0, e.arguments["count"]) as (k, _):
        _tell(e, e.address(e.arguments["slots"], k, 8 * _WORDS), ENDING)
    e.finish()


def _tell(e: Emitter, slot: ir.Value, state: int) -> None:
    """Set the state of a worker that polls or is blocked, and wake it if it is."""
    awake = e.exchange(e.address(slot, _STATE, 8), POLLING, state)
    with e.when(e.builder.not_(awake)):
        e.store_shared(state, e.address(slot, _STATE, 8))
        e.call_at(_address("PyThread_release_lock"), e.load_word(e.address(slot, _SEMAPHORE, 8)))


def _address(name: str) -> int:
    """Of a function of Python's own library, which needs no lock of the interpreter."""
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


def _knows_system_ids() -> bool:
    """Whether the system says on which processor a thread runs, and lets others keep off it (Linux)."""
    return hasattr(os, "sched_setaffinity") and hasattr(ctypes.pythonapi, "PyThread_get_thread_native_id")


# ---------------------------------------------------------------------- threads


class ThreadPool:
    """Worker threads, one less than the processors, that are started at their first use."""

    def __init__(self) -> None:
        self.taken = threading.Lock()  # by the caller that has them
        self.count = 0
        self.ended = False
        self._beside = -1  # the processor that the workers leave to the thread which calls them
        self._moved = 0  # how many of them
        self._memory = np.zeros((_MOST + 1) * _WORDS, dtype=np.int64)
        size = 8 * _WORDS
        self._slots = -(-self._memory.ctypes.data // size) * size
        first = (self._slots - self._memory.ctypes.data) // 8
        self._words = self._memory[first : first + _MOST * _WORDS].reshape(_MOST, _WORDS)

    @property
    def states(self) -> npt.NDArray[np.int64]:
        """Of each worker: `BLOCKED`, `POLLING`, `BUSY`."""
        return self._words[: self.count, _STATE]

    def start(self, count: int) -> None:
        """Have so many workers."""
        for k in range(self.count, count):
            self._words[k, [_STATE, _SEMAPHORE, _POLLS]] = BLOCKED, _new_semaphore(), POLLS_BEFORE_BLOCKING
            start = ctypes.pythonapi.PyThread_start_new_thread
            start.restype, start.argtypes = ctypes.c_ulong, [ctypes.c_void_p, ctypes.c_void_p]
            if start(_library().addresses["worker"], self._slots + 8 * _WORDS * k) == ctypes.c_ulong(-1).value:
                raise RuntimeError("the system starts no more threads")
            self.count = k + 1

    def run(self, function: int, arguments: npt.NDArray[np.int64]) -> None:
        """The function at an address for each of its arguments, the first here."""
        count = len(arguments) - 1
        self.start(count)
        self._make_way()
        _library().functions["run"](self._slots, count, function, arguments.ctypes.data)

    def end(self) -> None:
        """End the workers, before the memory that they look at goes away; none is started any more."""
        if self.ended:
            return
        self.ended = True
        if not self.taken.acquire(timeout=1):  # a daemon thread is still at work with them
            return
        if self.count:
            _library().functions["end"](self._slots, self.count)
        deadline = time.monotonic() + 1
        while np.any(self.states != ENDED) and time.monotonic() < deadline:
            time.sleep(0.0005)

    def forget(self) -> None:
        """In a forked process, which has none of the threads."""
        self.count, self.ended = 0, True

    def __del__(self) -> None:
        self.end()

    def _make_way(self) -> None:
        """Keep the workers off this thread's processor: the system may wake them there, and leave them there."""
        here = _processor()
        if here < 0:
            return
        started = [int(number) for number in self._words[: self.count, _SYSTEM_ID] if number]
        if here == self._beside and len(started) == self._moved:
            return
        others = os.sched_getaffinity(0) - {here}
        for number in started if others else ():
            with suppress(OSError):
                os.sched_setaffinity(number, others)
        self._beside, self._moved = here, len(started)


def _new_semaphore() -> int:
    """A lock of Python's own library, taken: a thread that takes it blocks until another lets it go."""
    allocate = ctypes.pythonapi.PyThread_allocate_lock
    allocate.restype = ctypes.c_void_p
    semaphore: int = allocate()
    ctypes.pythonapi.PyThread_acquire_lock(ctypes.c_void_p(semaphore), 0)
    return semaphore


@functools.lru_cache(maxsize=1)
def _finder() -> Any:
    """The C library's function for the processor that this thread runs on, where there is one (Linux)."""
    if not _knows_system_ids():
        return None
    return getattr(ctypes.PyDLL(None), "sched_getcpu", None)  # which is too short to let go of Python's lock


def _processor() -> int:
    find = _finder()
    return -1 if find is None else int(find())


pool = ThreadPool()


def current() -> ThreadPool:
    """The pool of this process."""
    return pool


def _end() -> None:
    pool.end()


atexit.register(_end)


def _start_anew() -> None:
    global pool
    pool.forget()
    pool = ThreadPool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


@contextmanager
def several(most: int) -> Iterator[int]:
    """How many threads, up to `most`, `run_in_threads` may use inside: of several callers only one has them."""
    mine = pool
    free = most > 1 and not mine.ended and mine.taken.acquire(blocking=False)
    try:
        yield min(most, thread_count()) if free else 1
    finally:
        if free:
            mine.taken.release()


def run_in_threads(function: int, arguments: npt.NDArray[np.int64]) -> None:
    """Run the function at an address for each of the words in an array, in a thread of its own; the first in this."""
    pool.run(function, arguments)
