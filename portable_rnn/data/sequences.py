"""From a table to sequences, on the host: windows, splits, scaling, baselines, padding and batches.

Everything here is NumPy and pure: a function of its arguments, apart from the random generator that
the caller gives to :func:`batches`. Letters in the shapes: N windows, B sequences, T steps, F
features.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..arrays import host_arrays, is_array
from ..errors import InputError
from .csv import Table, read_csv
from .standardizer import Standardizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Standardizer",
    "Table",
    "batches",
    "last_value",
    "pad_sequences",
    "read_csv",
    "same_time_last_period",
    "split_by_time",
    "windows",
]


def windows(values: ArrayLike, targets: ArrayLike, window: int, horizon: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cut a series into windows, each with the targets that follow it.

    ``x[i] = values[i : i + window]`` and ``y[i] = targets[i + window : i + window + horizon]``, for
    every i that leaves both complete: N = rows - window - horizon + 1.

    Parameters
    ----------
    values : array_like, shape (rows, F)
        What to predict from, oldest row first.
    targets : array_like, shape (rows,)
        What to predict, row by row beside `values`.
    window : int
        Rows in a window, at least 1.
    horizon : int
        Targets after a window, at least 1.

    Returns
    -------
    x : ndarray, shape (N, window, F)
        A copy, of the dtype of `values`: `window` times its size.
    y : ndarray, shape (N, horizon)
        A copy, of the dtype of `targets`.

    Raises
    ------
    InputError
        If there are fewer than window + horizon rows, or a shape or a count is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.data import windows
    >>> series = np.arange(5.0)
    >>> x, y = windows(series[:, None], series, window=3, horizon=1)
    >>> x[..., 0].tolist(), y.tolist()
    ([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[3.0], [4.0]])
    """
    window = _count("window", window, 1)
    horizon = _count("horizon", horizon, 1)
    inputs = np.asarray(values)
    outputs = np.asarray(targets)
    if inputs.ndim != 2:
        fix = "write values[:, None]" if inputs.ndim == 1 else "pass one series at a time"
        raise InputError(f"values: expected shape (rows, features), received {inputs.shape}: {fix}")
    if outputs.shape != inputs.shape[:1]:
        raise InputError(
            f"targets: expected shape ({len(inputs)},), one a row of values, received "
            f"{outputs.shape}: "
            "pass the column to predict, as long as values"
        )
    needed = window + horizon
    if len(inputs) < needed:
        raise InputError(
            f"values: expected at least {needed} rows for window {window} and horizon {horizon}, "
            f"received {len(inputs)}: add {needed - len(inputs)} rows or make window or horizon "
            "smaller"
        )
    x = sliding_window_view(inputs[:-horizon], window, axis=0).swapaxes(1, 2)
    y = sliding_window_view(outputs[window:], horizon)
    return x.copy(order="C"), y.copy(order="C")


def split_by_time(n: int, test_fraction: float, *, gap: int = 0) -> tuple[slice, slice]:
    """Divide n rows in time order: the first to train on, the last to test on, a gap between.

    The test part has ``max(1, round(n * test_fraction))`` rows. Nothing leaks if

    - rows are split (gap 0), and :func:`windows` cuts each part on its own: every window and its
      targets lie within one part; or
    - windows are split, n being their number N, with ``gap = window + horizon - 1``: the first test
      window then starts on the row after the last target used in training. With gap 0 neighbouring
      windows share rows, and the test would see targets of the training.

    Fit a :class:`Standardizer` on the training part alone.

    Parameters
    ----------
    n : int
        Number of rows, or of windows.
    test_fraction : float
        Part of n to test on, between 0 and 1, both excluded.
    gap : int
        Rows to leave out between the two parts.

    Returns
    -------
    train, test : slice
        To index arrays with: ``values[train]``, ``values[test]``.

    Raises
    ------
    InputError
        If the fraction is not between 0 and 1, or no row is left for training.

    Examples
    --------
    >>> from portable_rnn.data import split_by_time
    >>> split_by_time(10, 0.2)
    (slice(0, 8, None), slice(8, 10, None))
    >>> split_by_time(10, 0.2, gap=3)
    (slice(0, 5, None), slice(8, 10, None))
    """
    n = _count("n", n, 0)
    gap = _count("gap", gap, 0)
    if not 0 < test_fraction < 1:
        raise InputError(
            f"test_fraction: expected a number between 0 and 1, both excluded, received "
            f"{test_fraction!r}: write 0.2 for the last fifth"
        )
    test = max(1, round(n * test_fraction))
    train = n - test - gap
    if train < 1:
        raise InputError(
            f"n: expected at least one row for training besides {test} for testing and a gap of "
            f"{gap}, "
            f"received {n}: use more rows, a smaller test_fraction or a smaller gap"
        )
    return slice(0, train), slice(n - test, n)


def last_value(history: ArrayLike, horizon: int) -> NDArray[Any]:
    """Forecast that nothing changes: the last value of each window, `horizon` times.

    Parameters
    ----------
    history : array_like, shape (N, window)
        The target over each window, oldest first.
    horizon : int
        Steps to forecast.

    Returns
    -------
    ndarray, shape (N, horizon)
        Of the dtype of `history`.

    Raises
    ------
    InputError
        If the shape or the horizon is wrong.

    Examples
    --------
    >>> from portable_rnn.data import last_value
    >>> last_value([[1.0, 2.0, 3.0]], horizon=2).tolist()
    [[3.0, 3.0]]
    """
    return same_time_last_period(history, horizon, 1)


def same_time_last_period(history: ArrayLike, horizon: int, period: int) -> NDArray[Any]:
    """Forecast the value one period earlier: hourly with period 24, the same hour yesterday.

    Step h, from 0, is ``history[:, window - period + h % period]``, so a horizon longer than a
    period repeats the last period known.

    Parameters
    ----------
    history : array_like, shape (N, window)
        The target over each window, oldest first.
    horizon : int
        Steps to forecast.
    period : int
        Steps in a period, at most `window`.

    Returns
    -------
    ndarray, shape (N, horizon)
        Of the dtype of `history`.

    Raises
    ------
    InputError
        If the window is shorter than a period, or a shape or a count is wrong.

    Examples
    --------
    >>> from portable_rnn.data import same_time_last_period
    >>> same_time_last_period([[1.0, 2.0, 3.0, 4.0]], horizon=5, period=3).tolist()
    [[2.0, 3.0, 4.0, 2.0, 3.0]]
    """
    horizon = _count("horizon", horizon, 1)
    period = _count("period", period, 1)
    past = np.asarray(history)
    if past.ndim != 2:
        raise InputError(
            f"history: expected shape (windows, window), received {past.shape}: "
            "pass the target's column of x, such as x[:, :, 0]"
        )
    if past.shape[1] < period:
        raise InputError(
            f"history: expected windows of at least one period ({period} rows), received "
            f"{past.shape[1]}: use a window of {period} or more"
        )
    return past[:, past.shape[1] - period + np.arange(horizon) % period]


def pad_sequences(sequences: Sequence[ArrayLike]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Stack sequences of different lengths into one array, with zeros after the end of each.

    Parameters
    ----------
    sequences : sequence of array_like, shapes (T_i, F) or (T_i,)
        Arrays, nested lists or tables such as a pandas DataFrame; alike but for T_i, which may be 0. Arrays are all of
        one dtype.

    Returns
    -------
    x : ndarray, shape (B, T, F) or (B, T)
        ``x[i, : lengths[i]]`` is ``sequences[i]``, the rest is 0. T is the longest T_i.
    lengths : ndarray of int64, shape (B,)
        The T_i.

    Raises
    ------
    InputError
        If the list is empty, or a sequence holds no numbers, is an array of another library, or has another shape
        (but for its length) or another dtype than the first.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.data import pad_sequences
    >>> x, lengths = pad_sequences([np.ones((2, 1)), np.ones((3, 1)), np.ones((0, 1))])
    >>> x[..., 0].tolist(), lengths.tolist()
    ([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [2, 3, 0])
    >>> pad_sequences([[4, 5, 6], [7]])[0].tolist()
    [[4, 5, 6], [7, 0, 0]]
    """
    if not len(sequences):
        raise InputError("sequences: expected at least one array, received an empty list: leave empty batches out")
    dtypes: dict[Any, int] = {}
    for index, sequence in enumerate(sequences):
        if isinstance(sequence, np.ndarray):
            dtypes.setdefault(sequence.dtype, index)
        elif is_array(sequence):
            raise InputError(
                f"sequences[{index}]: expected a NumPy array, received {type(sequence).__name__}: "
                "convert it with portable_rnn.to_numpy"
            )
    rows = host_arrays(sequences, "sequences")
    if len(dtypes) > 1:
        (first, _), (other, index) = list(dtypes.items())[:2]
        raise InputError(
            f"sequences[{index}]: expected dtype {first}, as of the arrays before it, received {other}: "
            f"convert it with .astype(np.{first})"
        )
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    x = np.zeros((len(rows), int(lengths.max()), *rows[0].shape[1:]), dtype=rows[0].dtype)
    for padded, row in zip(x, rows, strict=True):
        padded[: len(row)] = row
    return x, lengths


def batches(
    n: int, batch_size: int, rng: np.random.Generator | None, shuffle: bool = True
) -> Iterator[NDArray[np.int64]]:
    """Indices 0 to n - 1 in batches, each index once; the last batch may be smaller.

    The order is drawn when the function is called, by one raw 64-bit number an index, so that two
    calls after each other consume the generator in their own order, however their batches are
    consumed.

    Parameters
    ----------
    n : int
        Number of items; 0 gives no batch.
    batch_size : int
        Items in a batch, at least 1.
    rng : numpy.random.Generator or None
        Where the order comes from, such as ``Generator(Philox(seed))``; advanced by the call. None
        is allowed without `shuffle`, which leaves a generator as it is.
    shuffle : bool
        False for the order 0, 1, 2, ...

    Returns
    -------
    iterator of ndarray of int64
        The indices of one batch after the other.

    Raises
    ------
    InputError
        If a count is wrong, or there is nothing to shuffle with.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.data import batches
    >>> rng = np.random.Generator(np.random.Philox(0))
    >>> sorted(int(i) for batch in batches(5, 2, rng) for i in batch)
    [0, 1, 2, 3, 4]
    >>> [batch.tolist() for batch in batches(5, 2, None, shuffle=False)]
    [[0, 1], [2, 3], [4]]
    """
    n = _count("n", n, 0)
    batch_size = _count("batch_size", batch_size, 1)
    if not shuffle:
        order = np.arange(n, dtype=np.int64)
    elif isinstance(rng, np.random.Generator):
        # NumPy keeps a bit generator's numbers the same for ever, but not Generator.permutation's.
        raw = np.asarray(rng.bit_generator.random_raw(n), dtype=np.uint64)
        order = np.argsort(raw, kind="stable").astype(np.int64)
    else:
        raise InputError(
            "rng: expected a numpy.random.Generator to shuffle with, received "
            f"{type(rng).__name__}: "
            "pass np.random.Generator(np.random.Philox(seed)), or shuffle=False"
        )
    return (order[start : start + batch_size] for start in range(0, n, batch_size))


def _count(name: str, value: SupportsIndex, least: int) -> int:
    """A whole number of at least `least`; True and 3.0 are not accepted."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < least:
        raise InputError(
            f"{name}: expected a whole number of at least {least}, received {value!r}: "
            f"write {name}={max(least, 1)} or more"
        )
    return number
