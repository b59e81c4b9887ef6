"""Batches: rows and time steps of the data, in few different shapes where a library compiles for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays import (
    Array,
    Backend,
    Marks,
    from_host,
    in_host_memory,
    leaves,
    map_leaves,
    namespace_of,
    to_numpy,
    zeros_beside,
)
from ..execution import compiles, jit
from ..layers import Layer, random_generator
from .losses import Loss, counts_valid_steps

__all__ = ["Batch", "Batches", "Buckets", "Data", "Piece", "drawn_masks", "has_steps", "has_target_steps"]


class Data(NamedTuple):
    """Checked data on the model's library; the lengths on the host, where batches are cut."""

    x: Array
    y: Array | None
    lengths: np.ndarray[Any, Any] | None
    resets: Array | None

    def marks(self, backend: Backend) -> Marks:
        """Lengths and resets on the backend."""
        placed = None if self.lengths is None else from_host(self.lengths.astype(np.int32), backend)
        return Marks(placed, self.resets)


class Batch(NamedTuple):
    """What one step computes with.

    Attributes
    ----------
    x, y : array
    marks : Marks
    rows : integer array (1,), or None
        How many rows count; those after them are padding, which has length 0 and copies of a row for its values.
    """

    x: Array
    y: Array | None
    marks: Marks
    rows: Array | None = None


class Piece(NamedTuple):
    """A batch, and what of it is data: so many rows and time steps (0 without a time axis) with this weight."""

    batch: Batch
    rows: int
    steps: int
    weight: float


def has_steps(network: Layer, x: Array) -> bool:
    """Whether x has a time axis: (B, T, F), or the integers (B, T) of an Embedding."""
    return x.ndim > 2 or (x.ndim == 2 and network.takes_integers)


def has_target_steps(network: Layer, x: Array, y: Array) -> bool:
    """Whether the targets have the time axis of x."""
    return network.keeps_time and has_steps(network, x) and y.ndim > 1 and y.shape[1] == x.shape[1]


# ---------------------------------------------------------------------- few different shapes


class Buckets:
    """The shapes that batches are padded to, so that a compiling library meets few different ones.

    The first `exact` shapes are taken as they are. From then on rows are rounded up to a power of two from 8 on, and
    time steps to 16 or the next ``2**k`` or ``1.5 * 2**k``. Batches of at most R rows and S steps so have at most
    ``exact + (log2(R / 8) + 2) * (2 * log2(S / 16) + 3)`` shapes.
    """

    exact = 8

    def __init__(self) -> None:
        self._met: set[tuple[int, int, bool]] = set()

    def shape(self, rows: int, steps: int, *, ragged: bool, keep_rows: bool = False) -> tuple[int, int, bool]:
        """(rows, steps, whether the batch has lengths) to compute a batch with.

        Parameters
        ----------
        rows, steps : int
            Of the batch; 0 steps where there is no time axis.
        ragged : bool
            Whether the batch has lengths; one that is rounded up always does.
        keep_rows : bool
            Round the steps only.
        """
        wanted = (rows, steps, ragged)
        if wanted not in self._met and len(self._met) >= self.exact:
            wanted = (rows if keep_rows else _next_power(max(rows, 8)), steps and round_up(max(steps, 16)), True)
        self._met.add(wanted)
        return wanted


def _next_power(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def round_up(steps: int) -> int:
    """The next number of the form 2**k or 3 * 2**k."""
    power = _next_power(steps)
    return power * 3 // 4 if power >= 4 and steps <= power * 3 // 4 else power


@dataclass
class Batches:
    """Cuts batches out of data.

    A library that compiles for every shape gets them in the shapes of `Buckets`, unless `loss` is a function of the
    user's, which need not know of lengths: then rows are never padded, and steps only where the data have lengths.

    Attributes
    ----------
    data : Data
    network : Layer
    backend : Backend
    buckets : Buckets
    size : int, optional
        Rows of a batch; the last one may have fewer. All at once when left out.
    loss : Loss, optional
        What is computed with the batches, if anything.
    """

    data: Data
    network: Layer
    backend: Backend
    buckets: Buckets
    size: int | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        data = self.data
        self.has_time = has_steps(self.network, data.x)
        self.y_has_time = data.y is not None and has_target_steps(self.network, data.x, data.y)
        self._compiles = compiles(self.backend.xp)
        self._pads = self._compiles and (self.loss is None or counts_valid_steps(self.loss))
        # arrays in the host's memory are cut and padded there, since XLA would compile that too for every shape
        self._on_host: Any = None
        if self._compiles and all(map(in_host_memory, leaves((data.x, data.y, data.resets)))):
            self._on_host = map_leaves(to_numpy, (data.x, data.y, data.resets))

    def in_order(self) -> Iterator[Piece]:
        """All rows with all their steps, so many at a time."""
        count = self.data.x.shape[0]
        size = self.size or count
        for start in range(0, count, size):
            yield self.piece(np.arange(start, min(start + size, count)))

    def longest(self, rows: np.ndarray[Any, Any]) -> int:
        """Time steps that are not padding of all these rows, at least 1; 0 without a time axis."""
        if not self.has_time:
            return 0
        lengths = self.data.lengths
        return int(self.data.x.shape[1] if lengths is None else max(int(lengths[rows].max()), 1))

    def piece(
        self, rows: np.ndarray[Any, Any], start: int = 0, steps: int | None = None, width: int | None = None
    ) -> Piece:
        """Some rows, and so many steps of them from `start` on (all when left out), in a batch of `width` rows."""
        if steps is None:
            steps = self.data.x.shape[1] if self.has_time else 0
        lengths = self.data.lengths
        own = None if lengths is None else np.clip(lengths[rows] - start, 0, steps)
        count, padded_steps, ragged = self._shape(len(rows), steps, width)
        if ragged and self.has_time:
            own = np.full(len(rows), steps) if own is None else own
            own = np.concatenate([own, np.zeros(count - len(rows), own.dtype)])
        index = np.concatenate([rows, np.repeat(rows[:1], count - len(rows))])
        x, y, resets = self._cut(index, start, steps, padded_steps)
        if own is None or not self.network.keeps_time:
            weight = len(rows) * (max(steps, 1) if self.network.keeps_time else 1)
        else:
            weight = int(own.sum())
        real = np.asarray([len(rows)], dtype=np.int32) if self._pads and ragged else None
        marks = Marks(None if own is None else from_host(own.astype(np.int32), self.backend), resets)
        batch = Batch(x, y, marks, None if real is None else from_host(real, self.backend))
        return Piece(batch, len(rows), steps, float(weight))

    def output(self, y: Array, piece: Piece) -> Array:
        """The part of a network's output that belongs to the data of a piece."""
        steps = piece.steps if self.has_time and self.network.keeps_time else None
        if y.shape[0] == piece.rows and (steps is None or y.shape[1] == steps):
            return y
        if in_host_memory(y):
            part = to_numpy(y)[: piece.rows]
            return from_host(np.ascontiguousarray(part if steps is None else part[:, :steps]), self.backend)
        return jit(self.backend.xp, _first, static=("rows", "steps"))(y, rows=piece.rows, steps=steps)

    def joined(self, outputs: list[Array]) -> Array:
        """Outputs one after another."""
        if len(outputs) == 1:
            return outputs[0]
        if self._on_host is not None:
            return from_host(np.concatenate([to_numpy(y) for y in outputs]), self.backend)
        return self.backend.xp.concat(outputs, axis=0)

    def _shape(self, rows: int, steps: int, width: int | None) -> tuple[int, int, bool]:
        ragged = self.data.lengths is not None
        if not self._compiles or not (self._pads or ragged):
            return width or rows, steps, ragged
        if width is not None or not self._pads:
            return self.buckets.shape(width or rows, steps, ragged=ragged, keep_rows=True)
        if self.size is not None and self.data.x.shape[0] >= self.size and (ragged or rows == self.size):
            return self.buckets.shape(self.size, steps, ragged=ragged, keep_rows=True)  # as the caller wants them
        return self.buckets.shape(rows, steps, ragged=ragged)

    def _cut(self, index: np.ndarray[Any, Any], start: int, steps: int, padded: int) -> tuple[Any, Any, Any]:
        """x, y and resets of some rows and steps, padded with zeros in time."""
        timed = (self.has_time, self.y_has_time, True)
        arrays = (self.data.x, self.data.y, self.data.resets)
        # NumPy's own `all` imports at its first call, which at the end of an interpreter it can't
        in_order = bool(np.logical_and.reduce(index == np.arange(len(index))))
        all_rows = len(index) == arrays[0].shape[0] and in_order
        all_steps = not self.has_time or (start, steps, padded) == (0, arrays[0].shape[1], arrays[0].shape[1])
        if all_rows and all_steps:
            return arrays
        if self._on_host is not None:
            parts = [
                None
                if a is None
                else from_host(_cut_on_host(a, index, start, steps, padded if time else None), self.backend)
                for a, time in zip(self._on_host, timed, strict=True)
            ]
            return parts[0], parts[1], parts[2]
        stop = min(start + padded, arrays[0].shape[1]) if self.has_time else 0
        if not all_rows:
            consecutive = bool((np.diff(index) == 1).all())
            if consecutive and not self._compiles:
                arrays = map_leaves(lambda a: a[int(index[0]) : int(index[-1]) + 1, ...], arrays)
            else:
                arrays = jit(self.backend.xp, taken)(arrays, from_host(index.astype(np.int64), self.backend))
        if not all_steps:
            run = jit(self.backend.xp, cut, static=("start", "stop", "extra", "timed"))
            arrays = run(arrays, start=start, stop=stop, extra=start + padded - stop, timed=timed)
        return arrays


def _cut_on_host(
    a: np.ndarray[Any, Any], index: np.ndarray[Any, Any], start: int, steps: int, padded: int | None
) -> np.ndarray[Any, Any]:
    if padded is None:
        return np.take(a, index, axis=0)
    part = np.zeros((len(index), padded, *a.shape[2:]), a.dtype)
    part[:, :steps] = a[index, start : start + steps]
    return part


def taken(arrays: Any, rows: Array) -> Any:
    """Some rows of every array of a nest."""
    xp = namespace_of(rows)
    return map_leaves(lambda a: xp.take(a, rows, axis=0), arrays)


def cut(arrays: Any, *, start: int, stop: int, extra: int, timed: tuple[bool, ...]) -> Any:
    """The time steps from `start` to `stop` of the arrays that are `timed`, and so many of zeros after them."""

    def part(a: Array | None, has_time: bool) -> Array | None:
        if a is None or not has_time:
            return a
        xp, a = namespace_of(a), a[:, start:stop, ...]
        zeros = zeros_beside(a, (a.shape[0], extra, *a.shape[2:]))
        return xp.concat([a, zeros], axis=1) if extra else a

    return tuple(part(a, time) for a, time in zip(arrays, timed, strict=True))


def _first(y: Array, *, rows: int, steps: int | None) -> Array:
    return y[:rows, ...] if steps is None else y[:rows, :steps, ...]


# ---------------------------------------------------------------------- dropout masks


def drawn_masks(network: Layer, rng: np.random.Generator, piece: Piece) -> Any:
    """Dropout masks of a batch: those of its data, then zeros.

    Padding for the compiler so leaves the stream of random numbers as it is.
    """
    padded = tuple(piece.batch.x.shape)
    shape = (piece.rows, *((piece.steps,) if piece.steps else ()), *padded[2 if piece.steps else 1 :])
    masks = network.dropout_masks(rng, shape)
    if masks is None or shape == padded:
        return masks
    wanted = leaves(network.dropout_masks(random_generator(0), padded))

    def extended(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.pad(mask, [(0, to - size) for size, to in zip(mask.shape, next(wanted).shape, strict=True)])

    return map_leaves(extended, masks)
