"""Threads that run compiled loops beside each other.

Between one loop and the next, which often follows at once, a thread looks for work for a while before it sleeps: waking
it takes as long as a small loop runs. It looks, runs, waits and sleeps in machine code, without the interpreter's lock,
for which it would have to wait as well.
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
from typing import Any

import numpy as np

from .llvm import Emitter, compiled

__all__ = ["at_once", "several", "threads"]

_WORDS = 16  # of a board: two lines of the cache, since processors fetch them in pairs
_STATE, _FUNCTION, _ARGUMENT, _ALARM = range(4)  # of which these are used
_ASLEEP, _IDLE, _BUSY = range(3)  # states
_TURNS = 3000  # of looking for work, about a millisecond
_LOOKS = 64  # in a turn
_MOST = 1024  # threads


@functools.lru_cache(maxsize=1)
def threads() -> int:
    """How many to use: the processors that this process may run on, or ``$OMP_NUM_THREADS`` if that is less."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(usable, int(given) if given.isdigit() else usable, _MOST), 1)


# ---------------------------------------------------------------------- machine code


@functools.lru_cache(maxsize=1)
def _functions() -> dict[str, Any]:
    from llvmlite import ir

    module = ir.Module()
    _write_serve(module)
    _write_lead(module)
    return compiled(str(module))


def _write_serve(module: Any) -> None:
    """Sleep until there is work on a board, and do what is put on it until nothing was for `turns`; without an end.

    Arguments: board, turns.
    """
    e = Emitter(module, "serve", ["board", "turns"])
    b, board = e.builder, e.arguments["board"]
    sleep, look, work, rest, tired = (b.append_basic_block() for _ in range(5))
    b.branch(sleep)
    b.position_at_end(sleep)
    e.call_at(_address("PyThread_acquire_lock"), e.load_word(e.address(board, _ALARM, 8)), 1)
    b.branch(look)

    b.position_at_end(look)
    count = b.phi(e.word)
    count.add_incoming(e.word(0), sleep)
    b.cbranch(e.equal(e.load_shared(e.address(board, _STATE, 8)), _BUSY), work, rest)

    b.position_at_end(work)
    e.call_at(e.load_word(e.address(board, _FUNCTION, 8)), e.load_word(e.address(board, _ARGUMENT, 8)))
    e.store_shared(_IDLE, e.address(board, _STATE, 8))
    count.add_incoming(e.word(0), b.block)
    b.branch(look)

    b.position_at_end(rest)
    more = e.plus(count, 1)
    e.give_way_every(_LOOKS, count)
    count.add_incoming(more, b.block)
    b.cbranch(e.less(more, e.times(e.arguments["turns"], _LOOKS)), look, tired)

    b.position_at_end(tired)  # unless there is work just now
    asleep = e.exchange(e.address(board, _STATE, 8), _IDLE, _ASLEEP)
    count.add_incoming(e.word(0), b.block)
    b.cbranch(asleep, sleep, look)


def _write_lead(module: Any) -> None:
    """Run a function here and by the boards' threads, and wait until all are done.

    Arguments: boards, count, function, arguments (of this thread, and of each board).
    """
    e = Emitter(module, "lead", ["boards", "count", "function", "arguments"])
    a = e.arguments
    with e.loop(0, a["count"]) as (k, _):
        board = e.address(a["boards"], k, 8 * _WORDS)
        e.store_word(a["function"], e.address(board, _FUNCTION, 8))
        e.store_word(e.load_word(e.address(a["arguments"], e.plus(k, 1), 8)), e.address(board, _ARGUMENT, 8))
        awake = e.exchange(e.address(board, _STATE, 8), _IDLE, _BUSY)
        with e.when(e.builder.not_(awake)):
            e.store_shared(_BUSY, e.address(board, _STATE, 8))
            e.call_at(_address("PyThread_release_lock"), e.load_word(e.address(board, _ALARM, 8)))
    e.call_at(a["function"], e.load_word(a["arguments"]))
    with e.loop(0, a["count"]) as (k, _):
        board = e.address(a["boards"], k, 8 * _WORDS)
        e.wait_while(lambda: e.equal(e.load_shared(e.address(board, _STATE, 8)), _BUSY))
    e.finish()


def _address(name: str) -> int:
    """Of a function of Python's own library, which needs no lock of the interpreter."""
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


# ---------------------------------------------------------------------- threads


class _Workers:
    """Threads, one less than the processors, that are started at their first use."""

    def __init__(self) -> None:
        self.beside = -1  # the processor that they leave to the thread which calls them
        self.numbers: list[int] = []  # of the threads, for the system
        self.placed = 0  # how many of them
        self.taken = threading.Lock()  # by one that calls them
        self.count = 0
        self.memory = np.zeros((_MOST + 1) * _WORDS, dtype=np.int64)
        size = 8 * _WORDS
        self.boards = -(-self.memory.ctypes.data // size) * size
        first = (self.boards - self.memory.ctypes.data) // 8
        self.states, self.alarms = (self.memory[first + word :: _WORDS] for word in (_STATE, _ALARM))

    def start(self, count: int) -> None:
        """Have so many threads."""
        for k in range(self.count, count):
            self.alarms[k] = _new_alarm()
            arguments = (self.memory, self.boards + 8 * _WORDS * k, self.numbers)
            threading.Thread(target=_work, args=arguments, name=f"portable-rnn-{k}", daemon=True).start()
            self.count = k + 1

    def run(self, function: int, arguments: Any) -> None:
        """The function at an address for each of its arguments, the first here."""
        count = len(arguments) - 1
        self.start(count)
        self.make_way()
        _functions()["lead"](self.boards, count, function, arguments.ctypes.data)

    def rest(self) -> None:
        """Wait until none looks for work any more."""
        deadline = time.monotonic() + 1
        while np.any(self.states == _IDLE) and time.monotonic() < deadline:
            time.sleep(0.001)

    def make_way(self) -> None:
        """Keep the threads off the processor on which this one runs: the system may wake them there, and leave them."""
        here = _processor()
        if here < 0 or (here == self.beside and len(self.numbers) == self.placed):
            return
        numbers = self.numbers.copy()
        others = os.sched_getaffinity(0) - {here}
        for number in numbers if others else ():
            with suppress(OSError):
                os.sched_setaffinity(number, others)
        self.beside, self.placed = here, len(numbers)


def _work(memory: Any, board: int, numbers: list[int]) -> None:
    """What a thread does; it keeps the memory of its board."""
    numbers.append(threading.get_native_id())
    _functions()["serve"](board, _TURNS)


def _new_alarm() -> int:
    """A lock of Python's own library, taken: a thread sleeps until another lets it go."""
    allocate = ctypes.pythonapi.PyThread_allocate_lock
    allocate.restype = ctypes.c_void_p
    alarm: int = allocate()
    ctypes.pythonapi.PyThread_acquire_lock(ctypes.c_void_p(alarm), 0)
    return alarm


@functools.lru_cache(maxsize=1)
def _finder() -> Any:
    """The C library's function for the processor that this thread runs on, where there is one (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.PyDLL(None), "sched_getcpu", None)  # which is too short to let go of Python's lock


def _processor() -> int:
    find = _finder()
    return -1 if find is None else int(find())


_workers = _Workers()


def _rest() -> None:
    _workers.rest()


atexit.register(_rest)  # at the end of the process the machine code that they run goes away


def _start_anew() -> None:
    global _workers
    _workers = _Workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)  # a child has none of the threads


@contextmanager
def several(most: int) -> Iterator[int]:
    """How many threads, up to `most`, `at_once` may use inside: of several callers only one has them."""
    mine = _workers
    free = most > 1 and mine.taken.acquire(blocking=False)
    try:
        yield min(most, threads()) if free else 1
    finally:
        if free:
            mine.taken.release()


def at_once(function: int, arguments: Any) -> None:
    """Run the function at an address for each of the words in an array, in a thread of its own; the first in this."""
    _workers.run(function, arguments)
