"""Recycled memory: used again only when nothing refers to it."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.execution import memory_pool

SHAPE = (64, 64, 8)  # of float64, 256 kB

pytestmark = pytest.mark.skipif(not hasattr(sys, "getrefcount"), reason="this Python does not count references")


@pytest.fixture(autouse=True)
def _no_blocks() -> Iterator[None]:
    memory_pool.forget()
    yield
    memory_pool.forget()


def address(a: Any) -> int:
    return int(a.__array_interface__["data"][0])


def test_memory_is_used_again() -> None:
    a = memory_pool.empty(SHAPE, "float64")
    first = address(a)
    del a
    assert address(memory_pool.empty(SHAPE, "float64")) == first
    assert address(memory_pool.empty((64, 64, 16), "float32")) == first  # as many bytes
    assert address(memory_pool.empty((64, 64, 6), "float64")) == first  # a little less
    assert address(memory_pool.empty((64, 64, 3), "float64")) != first  # less than half would waste the rest
    assert address(memory_pool.empty((64, 64, 9), "float64")) != first


def test_an_array_is_what_was_asked_for() -> None:
    for dtype in ("float32", "float64", "bool"):
        a = memory_pool.empty((8, *SHAPE), dtype)
        assert (a.shape, a.dtype) == ((8, *SHAPE), np.dtype(dtype))
        assert a.flags.c_contiguous
        assert a.flags.writeable
        assert address(a) % 64 == 0


def test_small_arrays_are_not_kept() -> None:
    a = memory_pool.empty((4, 4), "float64")
    assert a.shape == (4, 4)
    assert not memory_pool.blocks


def test_a_number_of_arrays_at_once_share_nothing() -> None:
    many = [memory_pool.empty(SHAPE, "float64") for _ in range(8)]
    for k, a in enumerate(many):
        a[...] = k
    assert [float(a.min()) for a in many] == [float(a.max()) for a in many] == list(range(8))


def by_dlpack(a: np.ndarray) -> Any:
    return np.from_dlpack(a)


def to_torch(a: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(a)


def to_torch_by_dlpack(a: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_dlpack(a)


def through_ctypes(a: np.ndarray) -> Any:
    return a.ctypes.data_as(ctypes.POINTER(ctypes.c_double))


def as_strided(a: np.ndarray) -> Any:
    return np.lib.stride_tricks.as_strided(a, (2,), (8,))


class Own(np.ndarray):
    """A class of the user's own."""


KEEPS: dict[str, Callable[[np.ndarray], Any]] = {
    "the array": lambda a: a,
    "a view": lambda a: a[1:2],
    "one number of it": lambda a: a[3:4, 0, 0],
    "a view of a view": lambda a: a[1:][2:].T,
    "transposed": lambda a: a.T,
    "reshaped": lambda a: a.reshape(-1),
    "flat": lambda a: a.flat,
    "of another dtype": lambda a: a.view("uint8"),
    "of another class": lambda a: a.view(Own),
    "of another class, a view": lambda a: a.view(Own)[1:],
    "masked": lambda a: np.ma.MaskedArray(a, copy=False),
    "broadcast": lambda a: np.broadcast_to(a, (2, *SHAPE)),
    "a memoryview": memoryview,
    "a part of a memoryview": lambda a: memoryview(a)[1:2],
    "an array of a memoryview": lambda a: np.asarray(memoryview(a)),
    "frombuffer": lambda a: np.frombuffer(a, dtype="float64", count=3),
    "as_strided": as_strided,
    "an iterator": lambda a: np.nditer(a),
    "DLPack": by_dlpack,
    "a DLPack capsule": lambda a: a.__dlpack__(),
    "a pointer of ctypes": through_ctypes,
    "in a list": lambda a: [a],
    "in a cycle": lambda a: (lambda cycle: cycle.append(cycle) or cycle)([a]),
    "torch": to_torch,
    "torch by DLPack": to_torch_by_dlpack,
    "a view in torch": lambda a: to_torch(a)[1:2].mT,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", KEEPS)
def test_memory_that_something_refers_to_is_not_used_again(name: str) -> None:
    a = memory_pool.empty(SHAPE, "float64")
    a[...] = 7.0
    first, kept = address(a), KEEPS[name](a)
    del a
    gc.collect()
    others = [memory_pool.empty(SHAPE, "float64") for _ in range(3)]
    assert first not in [address(other) for other in others]
    del kept, others
    gc.collect()
    # nothing is left over either: it is free once the last of them is gone
    assert first in [address(other) for other in [memory_pool.empty(SHAPE, "float64") for _ in range(4)]]


def test_jax_keeps_its_numbers() -> None:
    jax = pytest.importorskip("jax")
    a = memory_pool.empty(SHAPE, "float64")
    a[...] = 7.0
    kept = jax.numpy.asarray(a)
    del a
    for _ in range(4):
        memory_pool.empty(SHAPE, "float64")[...] = 0.0
    assert float(kept.min()) == 7.0


def test_what_is_kept_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 8 * 64 * 64 * 8
    monkeypatch.setattr(memory_pool, "MOST", 3 * size)
    many = [memory_pool.empty(SHAPE, "float64") for _ in range(5)]
    for k, a in enumerate(many):
        a[...] = k
    assert len(memory_pool.blocks) == 3
    assert [float(a.max()) for a in many] == list(range(5))  # those that are no longer kept still are their owners'
    memory_pool.empty((4, *SHAPE), "float64")
    assert sum(block.nbytes for block in memory_pool.blocks) <= 3 * size


def test_forget_leaves_what_is_in_use() -> None:
    a, b = memory_pool.empty(SHAPE, "float64"), memory_pool.empty(SHAPE, "float64")
    a[...] = 7.0
    del b
    memory_pool.forget()
    assert not memory_pool.blocks
    other = memory_pool.empty(SHAPE, "float64")
    other[...] = 0.0
    assert float(a.min()) == 7.0
    assert address(other) != address(a)


def test_threads_get_memory_of_their_own() -> None:
    wrong: list[Any] = []
    together = threading.Barrier(4)

    def work(k: int) -> None:
        together.wait()
        for _ in range(100):
            a = memory_pool.empty((96, 96), "float64")
            a[...] = k
            b = memory_pool.empty((96, 100), "float64")
            b[...] = -k
            if not (np.all(a == k) and np.all(b == -k)):
                wrong.append(k)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_results_that_users_keep_stay_what_they_are() -> None:
    layer = prnn.LSTM(16, 32)
    params = layer.init(seed=0)
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((32, 40, 16), dtype="float32") for _ in range(3)]
    kept, copies = [], []
    for x in xs:
        y, final, pullback = layer.vjp(params, x)
        dparams, dx, dstate = pullback(np.ones_like(y))
        leaves = [y[:, -1, :], *final, *dparams.values(), dx.T, *dstate]
        kept.append(leaves)
        copies.append([np.array(leaf) for leaf in leaves])
        del y, final, pullback, dparams, dx, dstate
    assert memory_pool.blocks
    for mine, before in zip(kept, copies, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, before, strict=True))
