"""The forecaster of the command line: what it sees, what it is fitted on, what it saves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.data import Table
from portable_rnn.forecasting import (
    LAST_VALUE,
    Forecaster,
    Recipe,
    Settings,
    TimeStep,
    demo,
    forecast_lines,
    load_forecaster,
    time_text,
    train_forecaster,
    yesterday_and_change,
)

SMALL = Settings(hidden_size=4, window=10, horizon=3, period=8, epochs=2, batch_size=64)
ROWS = 240


def table(rows: int = ROWS, *, times: bool = True) -> Table:
    """A season of 8 rows on a slow drift, and a second column."""
    rng = np.random.default_rng(0)
    row = np.arange(rows)
    target = 100 + 0.05 * row + 5 * np.sin(2 * np.pi * row / 8) + rng.normal(0, 0.2, rows)
    values = np.stack([rng.normal(3, 2, rows), target], axis=1)
    clock = np.datetime64("2021-01-01T00:00:00", "us") + row * np.timedelta64(3, "h") if times else None
    return Table(("other", "sold"), values, clock, "sold", target)


def changed(original: Table, rows: slice) -> Table:
    """The same table with other numbers in some rows."""
    values = original.values.copy()
    values[rows] = 1e3 * np.random.default_rng(1).random(values[rows].shape)
    return dataclasses.replace(original, values=values, targets=values[:, 1])


@pytest.fixture(scope="module")
def result() -> Any:
    return train_forecaster(table(), SMALL, progress=False)


def test_parts_follow_each_other_without_overlap(result: Any) -> None:
    parts = result.parts
    assert list(parts) == ["train", "validation", "test"]
    assert parts["train"].start == SMALL.window
    assert parts["train"].stop == parts["validation"].start
    assert parts["validation"].stop == parts["test"].start
    assert parts["test"] == slice(192, ROWS)
    assert len(result.truth) == 48 - SMALL.horizon + 1
    np.testing.assert_array_equal(result.truth[0], table().targets[192:195])
    np.testing.assert_array_equal(result.past[0], table().targets[182:192])
    np.testing.assert_array_equal(result.times[0], table().times[182:195])


def test_nothing_of_the_test_rows_reaches_the_training(result: Any) -> None:
    """Weights, scaling and the choice of the reference stay bit for bit the same with other test rows."""
    other = train_forecaster(changed(table(), result.parts["test"]), SMALL, progress=False)
    assert other.forecaster.recipe.to_json() == result.forecaster.recipe.to_json()
    assert other.history.val_loss == result.history.val_loss
    for name, weights in result.forecaster.model.params.items():
        np.testing.assert_array_equal(other.forecaster.model.params[name], weights)
    assert other.scores != result.scores


def test_scaling_knows_the_training_rows_only(result: Any) -> None:
    later = slice(result.parts["validation"].start, ROWS)
    other = train_forecaster(changed(table(), later), SMALL, progress=False)
    assert other.forecaster.recipe.to_json() == result.forecaster.recipe.to_json()
    rows = slice(0, result.parts["train"].stop)
    scaler = result.forecaster.recipe.scaler
    data = table().values[rows]
    season = np.std(data[8:, 1] - data[:-8, 1])
    np.testing.assert_allclose(scaler.mean, [data[:, 0].mean(), 0, 0])
    np.testing.assert_allclose(scaler.std, [data[:, 0].std(), data[:, 1].std(), season])


def test_forecast_is_the_reference_plus_what_the_network_says(result: Any) -> None:
    """Recomputed by hand from the numbers that are saved."""
    recipe, model = result.forecaster.recipe, result.forecaster.model
    saved = json.loads(recipe.to_json())
    assert saved["reference"] == "same time yesterday"
    values = table().values[-10:]
    own = values[:, 1]
    change = np.concatenate([np.zeros(8), own[8:] - own[:2]])
    x = np.stack([values[:, 0], own - own[-1], change], axis=1)
    x = (x - saved["scaler"]["mean"]) / saved["scaler"]["std"]
    y = model.predict(x[None].astype(np.float32))[0].astype(np.float64)
    expected = own[2:5] + y * saved["departure"]
    rows, forecasts = result.forecaster.forecast_table(table())
    assert rows.tolist() == [ROWS - 1]
    np.testing.assert_allclose(forecasts, [expected], rtol=1e-6)


def test_every_window_gives_the_same_as_one_by_one(result: Any) -> None:
    rows, forecasts = result.forecaster.forecast_table(table(14), every=True)
    assert rows.tolist() == [9, 10, 11, 12, 13]
    short = table(14)
    for row, forecast in zip(rows, forecasts, strict=True):
        upto = slice(0, int(row) + 1)
        part = dataclasses.replace(short, values=short.values[upto], targets=short.targets[upto], times=None)
        np.testing.assert_allclose(result.forecaster.forecast_table(part)[1][0], forecast, rtol=1e-6)


def test_only_the_window_is_looked_at(result: Any) -> None:
    other = changed(table(), slice(0, ROWS - SMALL.window))
    np.testing.assert_array_equal(
        result.forecaster.forecast_table(other)[1], result.forecaster.forecast_table(table())[1]
    )


def test_scores_are_the_errors_of_the_test(result: Any) -> None:
    assert [score.name for score in result.scores] == ["network (GRU)", "same time yesterday", LAST_VALUE]
    for score, guess in zip(result.scores, (result.forecast, *result.baselines.values()), strict=True):
        error = guess - result.truth
        assert score.mean_absolute == pytest.approx(np.abs(error).mean())
        assert score.root_mean_square == pytest.approx(np.sqrt((error**2).mean()))
    np.testing.assert_array_equal(result.baselines[LAST_VALUE][5], np.full(3, result.past[5, -1]))
    np.testing.assert_array_equal(result.baselines["same time yesterday"][5], result.past[5, 2:5])


def test_it_learns_a_season_with_drift() -> None:
    settings = dataclasses.replace(SMALL, epochs=30, hidden_size=8, batch_size=32, learning_rate=1e-2)
    own, seasonal, last = train_forecaster(table(800), settings, progress=False).scores
    assert own.mean_absolute < 0.8 * seasonal.mean_absolute < 0.8 * last.mean_absolute


def test_same_seed_same_run(result: Any) -> None:
    again = train_forecaster(table(), SMALL, progress=False)
    np.testing.assert_array_equal(again.forecast, result.forecast)
    other = train_forecaster(table(), dataclasses.replace(SMALL, seed=1), progress=False)
    assert (other.forecast != result.forecast).any()


def test_saved_and_loaded_forecaster_is_the_same(result: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    result.forecaster.save(path)
    loaded = load_forecaster(path)
    assert loaded.recipe.to_json() == result.forecaster.recipe.to_json()
    for name, weights in result.forecaster.model.params.items():
        np.testing.assert_array_equal(loaded.model.params[name], weights)
    # the arrays lie otherwise in memory than after training, so products may round otherwise
    again, forecasts = (each.forecast_table(table(), every=True)[1] for each in (loaded, result.forecaster))
    np.testing.assert_allclose(again, forecasts, rtol=1e-7)
    # everything lies in one file, under one key
    assert list(prnn.load(path).metadata) == ["forecaster"]


def test_recipe_goes_through_json_without_loss(result: Any) -> None:
    recipe = result.forecaster.recipe
    again = Recipe.from_json(recipe.to_json())
    assert again.to_json() == recipe.to_json()
    np.testing.assert_array_equal(again.scaler.std, recipe.scaler.std)
    assert again.inputs == ("other", "sold")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"window": 0}, "recipe.window: expected a whole number from 1"),
        ({"window": "ten"}, "recipe.window: expected a whole number"),
        ({"period": 11}, "don't fit"),
        ({"reference": "a guess"}, "don't fit"),
        ({"inputs": ["other"]}, "don't fit"),
        ({"inputs": 3}, "recipe.inputs: expected a list"),
        ({"scaler": {"mean": [0, 0], "std": [1, 1]}}, "don't fit"),
        ({"scaler": {"mean": [0, 0, 0]}}, "recipe.scaler: expected a field 'std'"),
        ({"departure": float("nan")}, "NaN is no number of JSON"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_damaged_recipes_are_refused(result: Any, change: dict[str, Any], message: str) -> None:
    fields = json.loads(result.forecaster.recipe.to_json())
    with pytest.raises(prnn.InputError, match=message):
        Recipe.from_json(json.dumps(fields | change))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"version": 1}', "null"])
def test_text_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(prnn.InputError, match="recipe can't be used"):
        Recipe.from_json(text)


def test_a_model_without_recipe_is_refused(tmp_path: Path) -> None:
    prnn.Model(prnn.GRU(1, 2)).save(tmp_path / "m.safetensors")
    with pytest.raises(prnn.InputError, match="without a forecasting recipe"):
        load_forecaster(tmp_path / "m.safetensors")


def test_without_period_the_last_value_is_corrected() -> None:
    plain = train_forecaster(table(times=False), dataclasses.replace(SMALL, period=None), progress=False)
    recipe = plain.forecaster.recipe
    assert (recipe.period, recipe.reference, recipe.sees_change, plain.step) == (None, LAST_VALUE, False, None)
    assert [score.name for score in plain.scores] == ["network (GRU)", LAST_VALUE]
    assert plain.forecaster.model.network.layers[0].input_size == 2


def test_window_as_long_as_the_period_has_the_baseline_but_no_change() -> None:
    recipe = train_forecaster(table(), dataclasses.replace(SMALL, window=8), progress=False).forecaster.recipe
    assert (recipe.period, recipe.seasonal, recipe.sees_change) == (8, "same time yesterday", False)


def test_period_and_window_come_from_the_times() -> None:
    recipe = train_forecaster(
        table(), dataclasses.replace(SMALL, period=None, window=None), progress=False
    ).forecaster.recipe
    assert (recipe.period, recipe.window) == (8, 24)
    short = train_forecaster(table(), dataclasses.replace(SMALL, period=None, window=5), progress=False)
    assert short.forecaster.recipe.period is None


def test_target_is_put_first_where_it_is_no_input() -> None:
    data = table()
    only = dataclasses.replace(data, columns=("other",), values=data.values[:, :1])
    assert train_forecaster(only, SMALL, progress=False).forecaster.recipe.inputs == ("sold", "other")


def test_constant_columns_are_no_trouble() -> None:
    data = table()
    flat = np.full((ROWS, 2), 7.0)
    flat_table = dataclasses.replace(data, values=flat, targets=flat[:, 1])
    scores = train_forecaster(flat_table, SMALL, progress=False).scores
    assert all(np.isfinite(score.mean_absolute) for score in scores)


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        ({}, 19, "expected at least 13 of them for training"),
        ({"period": 11}, ROWS, "use a window of 12 or more"),
        ({"test_fraction": 0.99}, ROWS, "are left besides 3 for validation and 238 for the test"),
        ({"test_fraction": 1.0}, ROWS, "test_fraction"),
        ({"cell": "xlstm"}, ROWS, "cell: expected one of 'rnn', 'lstm', 'gru'"),
        ({"horizon": 0}, ROWS, "horizon"),
        ({"window": -1}, ROWS, "window"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], rows: int, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        train_forecaster(table(rows), dataclasses.replace(SMALL, **settings), progress=False)


def test_least_number_of_rows_is_the_one_that_the_error_names() -> None:
    with pytest.raises(prnn.InputError, match="12 are left besides 3 for validation and 4 for the test"):
        train_forecaster(table(19), SMALL, progress=False)
    result = train_forecaster(table(20), SMALL, progress=False)
    assert {name: part.stop - part.start for name, part in result.parts.items()} == {
        "train": 3,
        "validation": 3,
        "test": 4,
    }


def test_too_short_or_other_tables_can_not_be_forecast(result: Any) -> None:
    forecaster: Forecaster = result.forecaster
    with pytest.raises(prnn.InputError, match=r"at least 10 rows.*put 3 more before"):
        forecaster.forecast_table(table(7))
    with pytest.raises(prnn.InputError, match="expected the columns"):
        forecaster.forecast_table(dataclasses.replace(table(), columns=("sold", "other")))


def test_lines_have_times_where_the_step_is_even() -> None:
    data = table(12)
    lines = list(forecast_lines(data, np.array([11]), np.array([[1.5, 2.25]])))
    assert lines == [
        ["step", "time", "forecast"],
        ["1", "2021-01-02T12:00", "1.5"],
        ["2", "2021-01-02T15:00", "2.25"],
    ]
    uneven = data.times.copy() if data.times is not None else np.array([])
    uneven[3] += np.timedelta64(1, "s")
    lines = list(
        forecast_lines(dataclasses.replace(data, times=uneven), np.array([11]), np.ones((1, 1)), numbered=True)
    )
    assert lines == [["after_row", "step", "forecast"], ["12", "1", "1"]]


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_other_libraries_give_the_same_forecasts(library: str, result: Any) -> None:
    try:
        prnn.backend(library)
    except prnn.BackendError as error:
        pytest.skip(str(error))
    other = train_forecaster(table(), SMALL, backend=library, progress=False)
    np.testing.assert_allclose(other.forecast, result.forecast, rtol=1e-4)


# ---------------------------------------------------------------------- time steps


@pytest.mark.parametrize(
    ("start", "unit", "step", "name", "period", "period_name"),
    [
        ("2020-01-01T05", "h", 1, "hour", 24, "same hour yesterday"),
        ("2020-01-01T05:10", "m", 10, "step", 144, "same time yesterday"),
        ("2020-01-01T05:10", "m", 1, "minute", 1440, "same time yesterday"),
        ("2020-01-01T05:10", "m", 7, "step", None, ""),
        ("2020-01-01", "D", 1, "day", 7, "same day last week"),
        ("2020-01-03", "D", 7, "week", 52, "same week last year"),
        ("2020-01", "M", 1, "month", 12, "same month last year"),
        ("2020-01", "M", 3, "quarter", 4, "same quarter last year"),
        ("1700", "Y", 1, "year", None, ""),
    ],
)
def test_steps_are_recognized(
    start: str, unit: str, step: int, name: str, period: int | None, period_name: str
) -> None:
    times = (np.datetime64(start, unit) + step * np.arange(9)).astype("datetime64[us]")
    found = TimeStep.of(times[:7])
    assert found is not None
    assert (found.name, found.period, found.period_name) == (name, period, period_name)
    np.testing.assert_array_equal(found.after(times[6], 2), times[7:])


@pytest.mark.parametrize(
    "times",
    [None, ["2020-01-01"], ["2020-01-01", "2020-01-01"], ["2020-01-01", "2020-01-02", "2020-01-04"]],
)
def test_unknown_or_uneven_steps_are_none(times: list[str] | None) -> None:
    assert TimeStep.of(None if times is None else np.array(times, dtype="datetime64[us]")) is None


def test_time_text_is_as_short_as_all_times_allow() -> None:
    days = np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[us]")
    assert time_text(days) == ["2020-01-01", "2020-01-02"]
    assert time_text(days + np.timedelta64(30, "s")) == ["2020-01-01T00:00:30", "2020-01-02T00:00:30"]


# ---------------------------------------------------------------------- the demo


def test_demo_beats_both_baselines() -> None:
    """Two epochs instead of twenty are enough for that."""
    result = demo(epochs=2, progress=False)
    recipe = result.forecaster.recipe
    assert (recipe.window, recipe.horizon, recipe.period, recipe.unit) == (25, 6, 24, "°F")
    own, yesterday, last = result.scores
    assert yesterday.name == "same hour yesterday"
    assert own.mean_absolute < 0.7 * yesterday.mean_absolute < last.mean_absolute
    assert result.parts["test"] == slice(7008, 8760)
    rule = yesterday_and_change(result)
    series = np.concatenate([result.past[7], result.truth[7]])
    np.testing.assert_allclose(rule[7], series[1:7] + series[24] - series[0])
