"""Pictures: what is drawn, with which labels, and that nothing global is touched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn import plotting
from portable_rnn.plotting import plot_forecasts, plot_gradient_flow, plot_history, style

PNG = b"\x89PNG\r\n\x1a\n"
N, WINDOW, HORIZON = 30, 12, 4


@pytest.fixture
def history() -> prnn.History:
    loss = [8.0, 2.0, 0.5, 0.2]
    return prnn.History(loss=loss, val_loss=[7.0, 1.0, 0.4, 0.6], step_loss=list(np.repeat(loss, 5)))


@pytest.fixture
def forecasts() -> dict[str, Any]:
    series = 10 + np.sin(np.arange(N + WINDOW + HORIZON) / 3)
    rows = np.lib.stride_tricks.sliding_window_view(series, WINDOW + HORIZON)[:N]
    past, truth = rows[:, :WINDOW], rows[:, WINDOW:]
    return {
        "past": past,
        "truth": truth,
        "forecast": truth + 0.125,
        "baselines": {"last value": np.repeat(past[:, -1:], HORIZON, axis=1), "far off": truth + 50},
    }


def size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header of a PNG."""
    data = path.read_bytes()
    assert data[:8] == PNG
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def lines(axes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """y by label."""
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}


def test_history_is_drawn_as_recorded(history: prnn.History, tmp_path: Path) -> None:
    figure = history.plot(tmp_path / "curves.png")
    assert size(tmp_path / "curves.png") == (900, 570)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "loss"
    drawn = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(drawn["training, mean of the epoch"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(drawn["training, mean of the epoch"].get_ydata(), history.loss)
    np.testing.assert_array_equal(drawn["validation"].get_ydata(), history.val_loss)
    updates = drawn["training, each update"]
    np.testing.assert_array_equal(updates.get_ydata(), history.step_loss)
    # five updates an epoch: the last one of each stands where the epoch's mean stands
    np.testing.assert_allclose(updates.get_xdata()[4::5], [1, 2, 3, 4])
    assert updates.get_alpha() < 0.5
    best = drawn["lowest validation loss: 0.4 (epoch 3)"]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (3, 0.4)
    assert axes.get_legend() is not None


def test_history_axis_is_logarithmic_where_curves_span_decades(history: prnn.History) -> None:
    assert plot_history(history).axes[0].get_yscale() == "log"
    narrow = prnn.History(loss=[1.0, 0.9], step_loss=[1.1, 0.9, 0.9, 0.9])
    assert plot_history(narrow).axes[0].get_yscale() == "linear"
    zero = prnn.History(loss=[1.0, 0.0])
    assert plot_history(zero).axes[0].get_yscale() == "linear"


def test_history_without_epochs_is_refused() -> None:
    with pytest.raises(prnn.InputError, match=r"call Model\.fit first"):
        plot_history(prnn.History())


def test_forecasts_show_what_was_known_what_came_and_what_was_forecast(
    forecasts: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "forecasts.png"
    figure = plot_forecasts(**forecasts, label="price", unit="$", name="net", step_name="hour", title="A", path=path)
    assert size(path) == (1485, 1140)
    assert len(figure.axes) == 7
    top, below, errors = figure.axes[0:6:2], figure.axes[1:6:2], figure.axes[6]
    assert figure.get_suptitle() == "A"
    assert top[0].get_ylabel() == r"price (\$)"
    assert below[0].get_ylabel() == r"forecast − truth (\$)"
    assert errors.get_ylabel() == r"mean absolute error (\$)"
    assert errors.get_xlabel() == "hours ahead"
    assert f"{N:,} test forecasts" in errors.get_title()
    for axes, under, k in zip(top, below, (5, 15, 25), strict=True):
        drawn = lines(axes)
        np.testing.assert_array_equal(drawn["known at forecast time"], forecasts["past"][k])
        last = forecasts["past"][k, -1:]
        np.testing.assert_array_equal(drawn["truth"], np.concatenate([last, forecasts["truth"][k]]))
        np.testing.assert_array_equal(drawn["net"], forecasts["forecast"][k])
        np.testing.assert_array_equal(drawn["last value"], np.repeat(last, HORIZON + 1))
        np.testing.assert_allclose(under.get_lines()[1].get_ydata(), 0.125, rtol=1e-12)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["known at forecast time", "truth", "net", "last value", "far off"]


def test_mean_errors_are_those_of_all_forecasts(forecasts: dict[str, Any]) -> None:
    errors = plot_forecasts(**forecasts).axes[-1]
    own, last, far = (np.asarray(line.get_ydata()) for line in errors.get_lines())
    np.testing.assert_allclose(own, 0.125)
    expected = np.abs(forecasts["baselines"]["last value"] - forecasts["truth"]).mean(axis=0)
    np.testing.assert_allclose(last, expected)
    np.testing.assert_allclose(far, 50)
    assert errors.get_yscale() == "log"


def test_a_forecast_far_off_does_not_flatten_the_errors_of_the_others(forecasts: dict[str, Any]) -> None:
    axes = plot_forecasts(**forecasts).axes
    assert axes[1].get_ylim()[1] < 10
    (note,) = axes[5].texts
    assert note.get_text() == "partly outside this range: far off"


def test_times_are_on_the_axis(forecasts: dict[str, Any], tmp_path: Path) -> None:
    hours = np.arange("2020-02-28", "2020-03-28", dtype="datetime64[h]").astype("datetime64[us]")
    times = np.lib.stride_tricks.sliding_window_view(hours, WINDOW + HORIZON)[:N]
    figure = plot_forecasts(**forecasts, times=times, examples=[0], path=tmp_path / "a.svg")
    assert len(figure.axes) == 3
    axes = figure.axes[0]
    assert axes.get_xlabel() == "time"
    assert axes.get_title() == "forecast made 2020-02-28 11:00"
    known = {line.get_label(): line for line in axes.get_lines()}["known at forecast time"]
    np.testing.assert_array_equal(known.get_xdata(orig=True), times[0, :WINDOW])
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_without_times_rows_are_counted_from_the_last_known_one(forecasts: dict[str, Any]) -> None:
    axes = plot_forecasts(**forecasts, step_name="row").axes[0]
    assert axes.get_xlabel() == "rows from the last known one"
    known = {line.get_label(): line for line in axes.get_lines()}["known at forecast time"]
    assert known.get_xdata()[-1] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": np.zeros(4)}, "truth: expected shape"),
        ({"past": np.zeros((3, WINDOW))}, "past: expected shape"),
        ({"forecast": np.zeros((N, HORIZON + 1))}, "forecast: expected shape"),
        ({"baselines": {"mine": np.zeros((N, 1))}}, "mine: expected shape"),
        ({"baselines": {str(k): np.zeros((N, HORIZON)) for k in range(4)}}, "up to 3"),
        ({"times": np.zeros((N, WINDOW + HORIZON))}, "times: expected datetime64"),
        ({"examples": [N]}, "examples: expected 1 to 4 numbers"),
        ({"examples": []}, "examples: expected 1 to 4 numbers"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(forecasts: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        plot_forecasts(**forecasts | change)


def test_gradient_flow_has_a_line_for_each_layer(tmp_path: Path) -> None:
    norms = {"0.GRU": np.geomspace(1e-6, 1, 40), "1.LSTM": np.append(np.zeros(10), np.ones(30))}
    figure = plot_gradient_flow(norms, tmp_path / "flow.png")
    assert size(tmp_path / "flow.png") == (900, 570)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "time step"
    drawn = lines(axes)
    np.testing.assert_array_equal(drawn["0.GRU"], norms["0.GRU"])
    assert np.isnan(drawn["1.LSTM"][:10]).all()
    with pytest.raises(prnn.InputError, match="at least one layer"):
        plot_gradient_flow({})


@pytest.mark.parametrize("name", ["nowhere/a.png", "a.txt", "a"])
def test_paths_that_can_not_be_written_are_refused(history: prnn.History, tmp_path: Path, name: str) -> None:
    with pytest.raises(prnn.InputError, match="picture"):
        plot_history(history, tmp_path / name)


def test_pyplot_is_left_alone(history: prnn.History, forecasts: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_history(history)
    plot_forecasts(**forecasts)
    assert plt.get_fignums() == before


def test_without_matplotlib_the_extra_is_named(history: prnn.History, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[plot\]"):
        history.plot()
    with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[plot\]"):
        plotting.check_picture("a.png")


def test_colours_differ_in_brightness() -> None:
    """Readers of a grey print, and colour-blind ones, tell lines apart by brightness, dashes and markers."""
    looks = [(s["linestyle"], s["marker"]) for s in style.STYLES]
    assert len(set(looks)) == len(looks)
    assert len({s["color"] for s in style.STYLES}) == len(looks)
