"""Host-side preparation of sequences: CSV files, windows, splits, scaling, baselines, batches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from portable_rnn.data import (
    Standardizer,
    Table,
    batches,
    last_value,
    pad_sequences,
    read_csv,
    same_time_last_period,
    split_by_time,
    windows,
)
from portable_rnn.errors import InputError

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: str | bytes) -> Path:
        path = tmp_path / "data.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return to_file


def message(call: Callable[[], object]) -> str:
    """The text of the InputError that the call raises; one line, as every error of the library."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert "expected" in text
    assert "received" in text or "got" in text
    return text


def philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


# read_csv -----------------------------------------------------------------------------------------


def test_read_csv_uses_every_numeric_column_and_finds_the_time(write: Write) -> None:
    path = write("when,a,note,b\n2024-01-01,1,x,2.5\n2024-01-02,-3e2,y,4\n")
    table = read_csv(path, target="b")
    assert isinstance(table, Table)
    assert table.columns == ("a", "b")
    assert table.values.dtype == np.float64
    assert table.values.tolist() == [[1.0, 2.5], [-300.0, 4.0]]
    assert table.target == "b"
    assert table.targets.tolist() == [2.5, 4.0]
    assert table.times is not None
    assert table.times.astype("datetime64[D]").astype(str).tolist() == ["2024-01-01", "2024-01-02"]


def test_read_csv_inputs_keep_their_order_and_may_leave_the_target_out(write: Write) -> None:
    table = read_csv(write("a,b,c\n1,2,3\n4,5,6\n"), target="b", inputs=["c", "a"])
    assert table.columns == ("c", "a")
    assert table.values.tolist() == [[3.0, 1.0], [6.0, 4.0]]
    assert table.targets.tolist() == [2.0, 5.0]
    assert table.times is None


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_read_csv_finds_the_delimiter(write: Write, mark: str) -> None:
    text = "time,a,b\n2024-01-01 10:00,1,2\n2024-01-01 11:00,3,4\n".replace(",", mark)
    assert read_csv(write(text), target="a").values.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_read_csv_takes_another_delimiter_inside_quotes_as_text(write: Write) -> None:
    table = read_csv(write('"a, in m";b\n1;2\n'), target="a, in m")
    assert table.columns == ("a, in m", "b")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_read_csv_takes_every_line_end_bom_and_blank_lines_around(write: Write, end: str) -> None:
    text = end + "höhe,b" + end + "1,2" + end + "3,4" + end + end
    table = read_csv(write(b"\xef\xbb\xbf" + text.encode("utf-8")), target="höhe")
    assert table.columns == ("höhe", "b")
    assert table.targets.tolist() == [1.0, 3.0]


def test_read_csv_takes_one_column_and_a_path_as_text(write: Write) -> None:
    assert read_csv(str(write("a\n1\n2")), target="a").values.tolist() == [[1.0], [2.0]]


def test_read_csv_takes_an_unnamed_index_as_time_but_never_as_input(write: Write) -> None:
    dated = read_csv(write(",a\n2024-01-01,1\n2024-01-02,2\n"), target="a")
    assert dated.columns == ("a",)
    assert dated.times is not None
    counted = read_csv(write(",a\n0,1\n1,2\n"), target="a")
    assert counted.columns == ("a",)
    assert counted.times is None


def test_read_csv_takes_a_numeric_column_as_time_only_by_name(write: Write) -> None:
    path = write("year,a\n1700,5\n1701,11\n")
    assert read_csv(path, target="a").columns == ("year", "a")
    table = read_csv(path, target="a", time="year")
    assert table.columns == ("a",)
    assert table.times is not None
    assert table.times.astype("datetime64[Y]").astype(str).tolist() == ["1700", "1701"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-01", "2024-03-01T00:00:00.000000"),
        ("2024/03/01 04:05", "2024-03-01T04:05:00.000000"),
        ("2024-03-01T04:05:06.25", "2024-03-01T04:05:06.250000"),
        ("2024-03-01T04:05+02:00", "2024-03-01T02:05:00.000000"),
        ("2024-03-01T04:05Z", "2024-03-01T04:05:00.000000"),
        ("2024-03", "2024-03-01T00:00:00.000000"),
    ],
)
def test_read_csv_time_formats(write: Write, text: str, expected: str) -> None:
    times = read_csv(write(f"t,a\n{text},1\n"), target="a").times
    assert times is not None
    assert str(times[0]) == expected


def test_read_csv_skips_text_that_has_gaps(write: Write) -> None:
    assert read_csv(write("sky,a\nrain,1\nNaN,2\n,3\n"), target="a").columns == ("a",)


def test_table_is_frozen(write: Write) -> None:
    table = read_csv(write("a\n1\n"), target="a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.target = "b"  # type: ignore[misc]


def test_read_csv_missing_file(tmp_path: Path) -> None:
    text = message(lambda: read_csv(tmp_path / "no.csv", target="a"))
    assert "no.csv" in text
    assert "does not exist" in text


def test_read_csv_folder(tmp_path: Path) -> None:
    assert "can't be read" in message(lambda: read_csv(tmp_path, target="a"))


@pytest.mark.parametrize("content", [b"a\n\xff\n", "a\n1\n".encode("utf-16")])
def test_read_csv_not_utf8(write: Write, content: bytes) -> None:
    text = message(lambda: read_csv(write(content), target="a"))
    assert "UTF-8" in text
    assert "byte 0xff" in text


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_read_csv_empty_file(write: Write, content: str) -> None:
    assert "an empty file" in message(lambda: read_csv(write(content), target="a"))


def test_read_csv_header_only(write: Write) -> None:
    assert "the header only" in message(lambda: read_csv(write("a,b\n"), target="a"))


def test_read_csv_without_header(write: Write) -> None:
    text = message(lambda: read_csv(write("1,2\n3,4\n"), target="a"))
    assert "'1, 2'" in text
    assert "header" in text


def test_read_csv_unknown_column_suggests_a_near_one(write: Write) -> None:
    path = write("Temperature,wind\n1,2\n")
    text = message(lambda: read_csv(path, target="temprature"))
    assert "('Temperature', 'wind')" in text
    assert "did you mean 'Temperature'?" in text
    assert "received 'zzz': name one of these" in message(lambda: read_csv(path, target="wind", inputs=["zzz"]))
    assert "'when'" in message(lambda: read_csv(path, target="wind", time="when"))
    assert "did you mean 'CO2'?" in message(lambda: read_csv(write("CO2\n1\n"), target="co2"))


def test_read_csv_unknown_column_lists_at_most_twenty(write: Write) -> None:
    path = write(",".join(f"c{i}" for i in range(25)) + "\n" + ",".join("1" * 25) + "\n")
    text = message(lambda: read_csv(path, target="zzz"))
    assert "'c19' and 5 more)" in text
    assert "'c20'" not in text


def test_read_csv_text_in_a_numeric_column(write: Write) -> None:
    text = message(lambda: read_csv(write("a,b\n1,2\n3,oops\n"), target="a"))
    assert "column 'b'" in text
    assert "the text 'oops'" in text
    assert "row 2 (line 3)" in text


@pytest.mark.parametrize("cell", ["1_000", "0x10", "1.5 kg"])
def test_read_csv_takes_only_plain_numbers(write: Write, cell: str) -> None:
    assert repr(cell) in message(lambda: read_csv(write(f"a\n1\n{cell}\n"), target="a"))


def test_read_csv_long_text_is_cut_and_stays_on_one_line(write: Write) -> None:
    cell = '"' + "many\nwords " * 50 + '"'
    text = message(lambda: read_csv(write(f"a,b\n1,{cell}\n"), target="b"))
    assert len(text) < 350


def test_read_csv_text_column_as_target_or_input(write: Write) -> None:
    path = write("sky,a\nrain,1\nsun,2\n")
    assert "'rain' in row 1" in message(lambda: read_csv(path, target="sky"))
    assert "'rain' in row 1" in message(lambda: read_csv(path, target="a", inputs=["sky"]))


def test_read_csv_decimal_comma(write: Write) -> None:
    text = message(lambda: read_csv(write("a;b\n1;2,5\n"), target="b"))
    assert "decimal point" in text


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("", "an empty cell"),
        ("  ", "an empty cell"),
        ("NaN", "the missing value 'NaN'"),
        ("N/A", "the missing value 'N/A'"),
        ("inf", "the infinity 'inf'"),
        ("-Infinity", "the infinity '-Infinity'"),
        ("1e999", "the infinity '1e999'"),
    ],
)
def test_read_csv_gaps_and_infinities(write: Write, cell: str, problem: str) -> None:
    text = message(lambda: read_csv(write(f"a,b\n1,2\n3,4\n5,{cell}\n"), target="a"))
    assert f"column 'b', received {problem} in row 3 (line 4)" in text


def test_read_csv_blank_line_inside_one_column_is_an_empty_cell(write: Write) -> None:
    assert "an empty cell in row 2 (line 3)" in message(lambda: read_csv(write("a\n1\n\n2\n"), target="a"))


def test_read_csv_column_without_any_value(write: Write) -> None:
    assert "column 'b', received an empty cell" in message(lambda: read_csv(write("a,b\n1,\n2,\n"), target="a"))


@pytest.mark.parametrize(("row", "cells"), [("3", 1), ("3,4,5", 3), ("", 0)])
def test_read_csv_ragged_rows(write: Write, row: str, cells: int) -> None:
    text = message(lambda: read_csv(write(f"a,b\n1,2\n{row}\n5,6\n"), target="a"))
    assert "expected 2 cells" in text
    assert f"received {cells} in row 2 (line 3)" in text


def test_read_csv_duplicate_columns(write: Write) -> None:
    assert "'a' 2 times" in message(lambda: read_csv(write("a,b, a\n1,2,3\n"), target="b"))


def test_read_csv_open_quote(write: Write) -> None:
    assert "quote" in message(lambda: read_csv(write('a,b\n1,"2\n3,4\n'), target="a"))


def test_read_csv_inputs_must_be_a_list_with_names(write: Write) -> None:
    path = write("a\n1\n")
    assert "inputs=['a']" in message(lambda: read_csv(path, target="a", inputs="a"))
    assert "at least one column" in message(lambda: read_csv(path, target="a", inputs=[]))


@pytest.mark.parametrize("cell", ["31.01.2024", "soon", "0001-01-01T00:00+05:00"])
def test_read_csv_time_that_is_none(write: Write, cell: str) -> None:
    text = message(lambda: read_csv(write(f"t,a\n2024-01-01,1\n{cell},2\n"), target="a", time="t"))
    assert "column 't'" in text
    assert f"{cell!r} in row 2 (line 3)" in text


def test_read_csv_times_that_go_back(write: Write) -> None:
    text = message(lambda: read_csv(write("t,a\n2024-01-02,1\n2024-01-01,2\n"), target="a"))
    assert "row 2 (line 3)" in text
    assert "sort the rows" in text


# windows ------------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 20),
    features=st.integers(1, 3),
    window=st.integers(1, 8),
    horizon=st.integers(1, 5),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_windows_agree_with_a_loop(
    rows: int, features: int, window: int, horizon: int, dtype: type[np.floating[Any]]
) -> None:
    values = philox(rows).normal(size=(rows, features)).astype(dtype)
    targets = philox(rows + 1).normal(size=rows).astype(dtype)
    if rows < window + horizon:
        text = message(lambda: windows(values, targets, window, horizon))
        assert f"at least {window + horizon} rows" in text
        assert f"received {rows}" in text
        return
    starts = range(rows - window - horizon + 1)
    x, y = windows(values, targets, window, horizon)
    assert x.dtype == y.dtype == dtype
    np.testing.assert_array_equal(x, np.stack([values[i : i + window] for i in starts]))
    np.testing.assert_array_equal(y, np.stack([targets[i + window : i + window + horizon] for i in starts]))


def test_windows_are_copies_that_can_be_written() -> None:
    values = np.zeros((6, 1))
    x, y = windows(values, values[:, 0], 2, 1)
    assert x.flags.c_contiguous
    x[...] = 1
    y[...] = 1
    assert not values.any()


def test_windows_errors() -> None:
    values = np.zeros((6, 2))
    assert "values[:, None]" in message(lambda: windows(np.zeros(6), np.zeros(6), 2, 1))
    assert "one series at a time" in message(lambda: windows(np.zeros((2, 6, 1)), [0], 2, 1))
    assert "expected shape (6,)" in message(lambda: windows(values, np.zeros(5), 2, 1))
    assert "received (6, 1)" in message(lambda: windows(values, np.zeros((6, 1)), 2, 1))
    assert "window: expected" in message(lambda: windows(values, values[:, 0], 0, 1))
    assert "horizon: expected" in message(lambda: windows(values, values[:, 0], 2, 0))
    assert "received 2.0" in message(lambda: windows(values, values[:, 0], 2.0, 1))  # type: ignore[arg-type]
    assert "received True" in message(lambda: windows(values, values[:, 0], True, 1))


# split_by_time ------------------------------------------------------------------------------------


@given(
    n=st.integers(2, 60),
    fraction=st.floats(0.01, 0.99),
    window=st.integers(1, 6),
    horizon=st.integers(1, 4),
)
def test_split_of_windows_keeps_test_rows_off_train_rows(n: int, fraction: float, window: int, horizon: int) -> None:
    rows = np.arange(n + window + horizon - 1)
    x, y = windows(rows[:, None], rows, window, horizon)
    try:
        train, test = split_by_time(len(x), fraction, gap=window + horizon - 1)
    except InputError:
        assert n - max(1, round(n * fraction)) - (window + horizon - 1) < 1
        return
    assert y[train].max() + 1 == x[test].min()
    assert len(y[test]) == max(1, round(n * fraction))
    assert test.stop == n


@given(n=st.integers(2, 100), fraction=st.floats(0.01, 0.99))
def test_split_of_rows_uses_each_row_once_in_order(n: int, fraction: float) -> None:
    rows = np.arange(n)
    try:
        train, test = split_by_time(n, fraction)
    except InputError:
        assert round(n * fraction) == n
        return
    np.testing.assert_array_equal(np.concatenate([rows[train], rows[test]]), rows)
    assert len(rows[train]) >= 1
    assert len(rows[test]) >= 1


def test_split_without_gap_would_leak_and_a_smaller_gap_too() -> None:
    rows = np.arange(20)
    x, y = windows(rows[:, None], rows, 4, 2)
    for gap in range(5):
        train, test = split_by_time(len(x), 0.3, gap=gap)
        assert x[test].min() <= y[train].max()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_fraction_outside(fraction: float) -> None:
    assert "between 0 and 1" in message(lambda: split_by_time(10, fraction))


def test_split_too_few_rows() -> None:
    assert "received 1" in message(lambda: split_by_time(1, 0.5))
    assert "gap of 8" in message(lambda: split_by_time(10, 0.2, gap=8))
    assert "gap: expected" in message(lambda: split_by_time(10, 0.2, gap=-1))


# Standardizer -------------------------------------------------------------------------------------

TABLES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6),
    elements=st.floats(-1e6, 1e6, allow_nan=False, width=64),
)


@given(TABLES)
def test_standardizer_round_trip(values: np.ndarray) -> None:
    scaler = Standardizer.fit(values)
    columns = values.reshape(-1, values.shape[-1])
    scale = np.abs(columns).max(axis=0) + scaler.std
    error = np.abs(scaler.inverse(scaler.transform(values)) - values)
    assert (error <= 8 * np.finfo(np.float64).eps * scale).all()
    again = Standardizer.from_dict(json.loads(json.dumps(scaler.to_dict())))
    np.testing.assert_array_equal(again.mean, scaler.mean)
    np.testing.assert_array_equal(again.std, scaler.std)


@given(hnp.arrays(np.float64, (12, 2), elements=st.integers(-1000, 1000).map(lambda number: number / 8)))
def test_standardizer_gives_mean_0_and_std_1(values: np.ndarray) -> None:
    scaler = Standardizer.fit(values)
    result = scaler.transform(values)
    constant = np.ptp(values, axis=0) == 0
    np.testing.assert_allclose(scaler.mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(scaler.std[constant], 1)
    np.testing.assert_array_equal(result[:, constant], 0)
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(result.std(axis=0)[~constant], 1, rtol=1e-12)


def test_standardizer_takes_a_constant_column_whose_mean_would_round() -> None:
    scaler = Standardizer.fit(np.full((3, 1), 0.1))
    assert (scaler.mean[0], scaler.std[0]) == (0.1, 1.0)


def test_standardizer_keeps_tiny_deviations() -> None:
    assert Standardizer.fit([0.0, 2e-200]).std[0] == pytest.approx(1e-200)


def test_standardizer_dtypes() -> None:
    scaler = Standardizer.fit(np.array([[1, 2], [3, 6]]))
    assert scaler.mean.dtype == scaler.std.dtype == np.float64
    for dtype, expected in ((np.float32, np.float32), (np.float64, np.float64), (int, np.float64)):
        values = np.array([[1, 2]], dtype=dtype)
        assert scaler.transform(values).dtype == expected
        assert scaler.inverse(values).dtype == expected


def test_standardizer_computes_float32_in_float64() -> None:
    values = (2**24 + np.arange(4, dtype=np.float64) * 2).astype(np.float32)
    scaler = Standardizer.fit(values)
    np.testing.assert_allclose(scaler.transform(values), np.array([-3, -1, 1, 3]) / 5**0.5, rtol=1e-6)


def test_standardizer_of_one_column_takes_any_shape() -> None:
    scaler = Standardizer.fit([1.0, 3.0])
    assert scaler.transform([[1.0, 2.0, 3.0]]).tolist() == [[-1.0, 0.0, 1.0]]
    assert scaler.inverse(np.zeros((2, 3, 4))).tolist() == np.full((2, 3, 4), 2.0).tolist()
    assert scaler.transform(3.0) == 1.0


def test_standardizer_is_frozen_to_the_numbers() -> None:
    mean = np.zeros(1)
    scaler = Standardizer(mean, np.ones(1))
    mean[0] = 7
    assert scaler.mean[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        scaler.mean[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        scaler.std = mean  # type: ignore[misc]


def test_standardizer_errors() -> None:
    assert "at least one row" in message(lambda: Standardizer.fit(np.zeros((0, 2))))
    assert "received nan in row 1, column 0" in message(lambda: Standardizer.fit([[0.0, 1.0], [np.nan, 1.0]]))
    assert "received inf in row 0, column 1" in message(lambda: Standardizer.fit([[0.0, np.inf]]))
    scaler = Standardizer.fit(np.zeros((3, 2)))
    assert "expected 2 columns" in message(lambda: scaler.transform(np.zeros((4, 3))))
    assert "expected 2 columns" in message(lambda: scaler.inverse(np.zeros((2, 1))))
    assert "one shape" in message(lambda: Standardizer(np.zeros(2), np.ones(3)))
    assert "one shape" in message(lambda: Standardizer(np.zeros((1, 2)), np.ones((1, 2))))
    for mean, std in ((0.0, 0.0), (0.0, -1.0), (np.nan, 1.0), (0.0, np.inf)):
        assert "positive" in message(lambda mean=mean, std=std: Standardizer(np.array([mean]), np.array([std])))


@pytest.mark.parametrize("data", [{}, {"mean": [0.0]}, {"mean": ["a"], "std": [1.0]}, None])
def test_standardizer_from_another_dict(data: Any) -> None:
    assert "to_dict()" in message(lambda: Standardizer.from_dict(data))


# baselines ----------------------------------------------------------------------------------------


def test_last_value_repeats_the_last() -> None:
    history = np.array([[1, 2], [3, 4]], dtype=np.float32)
    result = last_value(history, 3)
    assert result.tolist() == [[2, 2, 2], [4, 4, 4]]
    assert result.dtype == np.float32


@given(window=st.integers(1, 9), horizon=st.integers(1, 12), period=st.integers(1, 9))
def test_same_time_last_period_is_exact_on_a_periodic_series(window: int, horizon: int, period: int) -> None:
    series = np.arange(40) % period
    x, y = windows(series[:, None], series, window, horizon)
    if window < period:
        text = message(lambda: same_time_last_period(x[:, :, 0], horizon, period))
        assert f"({period} rows), received {window}" in text
        return
    np.testing.assert_array_equal(same_time_last_period(x[:, :, 0], horizon, period), y)


def test_baseline_errors() -> None:
    for shape in ((3,), (3, 4, 1)):
        assert "x[:, :, 0]" in message(lambda shape=shape: last_value(np.zeros(shape), 1))
        assert "x[:, :, 0]" in message(lambda shape=shape: same_time_last_period(np.zeros(shape), 1, 1))
    assert "horizon: expected" in message(lambda: last_value(np.zeros((2, 3)), 0))
    assert "period: expected" in message(lambda: same_time_last_period(np.zeros((2, 3)), 1, 0))


# pad_sequences ------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    features=st.integers(0, 3),
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.bool_]),
)
def test_pad_sequences_keeps_every_value_and_adds_zeros(
    lengths: list[int], features: int, dtype: type[np.generic]
) -> None:
    sequences = [philox(i).integers(1, 9, (length, features)).astype(dtype) for i, length in enumerate(lengths)]
    x, found = pad_sequences(sequences)
    assert x.shape == (len(lengths), max(lengths), features)
    assert x.dtype == dtype
    assert found.dtype == np.int64
    assert found.tolist() == lengths
    for row, sequence, length in zip(x, sequences, lengths, strict=True):
        np.testing.assert_array_equal(row[:length], sequence)
        assert not row[length:].any()


def test_pad_sequences_takes_what_people_have() -> None:
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), pandas.DataFrame({"a": [3], "b": [4]})]
    x, found = pad_sequences(frames)
    assert (x.dtype, x.tolist(), found.tolist()) == (np.float64, [[[1, 0.5], [2, 1.5]], [[3, 4], [0, 0]]], [2, 1])
    for labels in ([[1, 2], [], [3]], [np.array([1, 2]), np.zeros(0, int), np.array([3])], [(1, 2), (), (3,)]):
        x, found = pad_sequences(labels)
        assert (x.dtype.kind, x.tolist(), found.tolist()) == ("i", [[1, 2], [0, 0], [3, 0]], [2, 0, 1])
    assert pad_sequences([[[1.0, 2.0]], []])[0].shape == (2, 1, 2)


def test_pad_sequences_errors() -> None:
    good = np.zeros((2, 3))
    assert "empty list" in message(lambda: pad_sequences([]))
    for bad, part in (
        (np.zeros((2, 4)), "expected the shape of sequences[0] but for its length, (2, 3), got (2, 4)"),
        (np.zeros(2), "got (2,)"),
        (np.zeros((1, 2, 3)), "got (1, 2, 3)"),
        (np.zeros((2, 3), dtype=np.float32), "received float32"),
        (np.array([["a"] * 3]), "expected numbers"),
        (np.empty((2, 3), dtype=object), "expected numbers, got dtype object"),
        ([[1.0], [1.0, 2.0, 3.0]], "expected a rectangular nest of numbers"),
    ):
        text = message(lambda bad=bad: pad_sequences([good, bad]))
        assert text.startswith("sequences[1]: ")
        assert part in text


# batches ------------------------------------------------------------------------------------------


@given(n=st.integers(0, 50), size=st.integers(1, 60), seed=st.integers(0, 2**32), mix=st.booleans())
def test_batches_hold_each_index_once(n: int, size: int, seed: int, mix: bool) -> None:
    found = list(batches(n, size, philox(seed), shuffle=mix))
    assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
    assert all(batch.dtype == np.int64 and 1 <= len(batch) <= size for batch in found)
    order = [int(index) for batch in found for index in batch]
    assert sorted(order) == list(range(n))
    if not mix:
        assert order == list(range(n))


def test_batches_follow_the_generator() -> None:
    first, second = (np.concatenate(list(batches(100, 7, philox(3)))) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    rng = philox(3)
    np.testing.assert_array_equal(np.concatenate(list(batches(100, 9, rng))), first)
    next_epoch = np.concatenate(list(batches(100, 7, rng)))
    assert (next_epoch != first).mean() > 0.9
    assert (np.concatenate(list(batches(100, 7, philox(4)))) != first).mean() > 0.9


def test_batches_draw_at_the_call() -> None:
    rng = philox(5)
    one, two = batches(20, 6, rng), batches(20, 6, rng)
    late = [batch.tolist() for batch in two]
    early = [batch.tolist() for batch in one]
    again = philox(5)
    assert early == [batch.tolist() for batch in batches(20, 6, again)]
    assert late == [batch.tolist() for batch in batches(20, 6, again)]


def test_batches_order_is_the_one_of_the_raw_philox_numbers() -> None:
    # Pinned: a saved run must be repeatable with a later NumPy.
    assert np.concatenate(list(batches(8, 8, philox(0)))).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_batches_are_uniform() -> None:
    rng = philox(0)
    counts = np.zeros((4, 4))
    for _ in range(4000):
        (order,) = batches(4, 4, rng)
        counts[np.arange(4), order] += 1
    assert np.abs(counts / 4000 - 0.25).max() < 0.03


def test_batches_without_shuffling_leave_the_generator_alone() -> None:
    rng = philox(1)
    assert len(list(batches(10, 3, rng, shuffle=False))) == 4
    assert rng.bit_generator.random_raw() == philox(1).bit_generator.random_raw()


def test_batches_errors_come_at_the_call() -> None:
    assert "n: expected" in message(lambda: batches(-1, 2, philox(0)))
    assert "batch_size: expected" in message(lambda: batches(3, 0, philox(0)))
    assert "received NoneType" in message(lambda: batches(3, 2, None))
    assert "received int" in message(lambda: batches(3, 2, 7))  # type: ignore[arg-type]
