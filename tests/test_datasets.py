"""The shipped data sets: their size, their values, where they come from, and no pandas."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from portable_rnn.data import Dataset, load_co2, load_seattle_temps, load_seattle_weather, load_sunspots

LOADERS = (load_co2, load_seattle_temps, load_seattle_weather, load_sunspots)
EXPECTED = {
    "co2": ((2284, 1), "D", 7, 59),
    "seattle_temps": ((8760, 1), "h", 1, 1),
    "seattle_weather": ((1461, 4), "D", 1, 0),
    "sunspots": ((309, 1), "Y", 1, 0),
}


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def data(request: pytest.FixtureRequest) -> Dataset:
    loader: Callable[[], Dataset] = request.param
    return loader()


def test_shape_steps_and_gaps_are_the_documented_ones(data: Dataset) -> None:
    shape, unit, step, gaps = EXPECTED[data.name]
    assert data.values.shape == data.filled.shape == shape
    assert data.values.dtype == np.float64
    assert len(data.columns) == len(data.units) == shape[1]
    assert data.times.shape == shape[:1]
    assert np.datetime_data(data.times.dtype) == (unit, 1)
    assert set(np.diff(data.times).astype(int).tolist()) == {step}
    assert data.filled.sum() == gaps


def test_every_value_is_finite(data: Dataset) -> None:
    assert np.isfinite(data.values).all()


def test_source_licence_and_description_are_stated(data: Dataset) -> None:
    assert data.source.strip()
    assert data.licence.startswith("Public domain")
    assert len(data.description) > 80
    assert all(data.units)


def test_each_call_returns_its_own_array() -> None:
    first = load_sunspots()
    first.values[0] = -1
    assert load_sunspots().values[0, 0] == 5.0


def test_known_seattle_temps() -> None:
    data = load_seattle_temps()
    assert data.values[:3, 0].tolist() == [39.4, 39.2, 39.0]
    assert str(data.times[0]) == "2010-01-01T00"
    assert str(data.times[-1]) == "2010-12-31T23"
    assert (data.values.min(), data.values.max()) == (37.5, 75.9)
    (gap,) = np.flatnonzero(data.filled[:, 0])
    assert str(data.times[gap]) == "2010-03-14T03"
    assert data.values[gap, 0] == pytest.approx((43.0 + 42.2) / 2, abs=1e-12)


def test_known_seattle_weather() -> None:
    data = load_seattle_weather()
    assert data.columns == ("precipitation", "temp_max", "temp_min", "wind")
    assert data.values[0].tolist() == [0.0, 12.8, 5.0, 4.7]
    assert str(data.times[-1]) == "2015-12-31"
    assert (data.values[:, 1] >= data.values[:, 2]).all()
    assert data.labels is not None
    assert len(data.labels) == len(data.values)
    assert set(data.labels) == {"drizzle", "fog", "rain", "snow", "sun"}
    assert data.labels[:2] == ("drizzle", "rain")


def test_labels_of_seattle_weather_change_their_use_over_the_years() -> None:
    data = load_seattle_weather()
    assert data.labels is not None
    years = data.times.astype("datetime64[Y]").astype(str)
    rain = np.array(data.labels) == "rain"
    assert [int(rain[years == year].sum()) for year in ("2012", "2014")] == [191, 3]


def test_known_sunspots() -> None:
    data = load_sunspots()
    assert data.values[:3, 0].tolist() == [5.0, 11.0, 16.0]
    assert data.values[-1, 0] == 2.9
    assert str(data.times[int(data.values[:, 0].argmax())]) == "1957"
    assert data.values.max() == 190.2


def test_known_co2_and_its_filled_gap() -> None:
    data = load_co2()
    assert (str(data.times[0]), data.values[0, 0]) == ("1958-03-29", 316.1)
    assert (str(data.times[-1]), data.values[-1, 0]) == ("2001-12-29", 371.5)
    week = int(np.flatnonzero(data.times == np.datetime64("1958-05-10"))[0])
    assert data.filled[week - 1 : week + 2, 0].tolist() == [False, True, False]
    assert data.values[week, 0] == pytest.approx((316.9 + 317.5) / 2, abs=1e-12)
    gap = (data.times >= np.datetime64("1964-01-25")) & (data.times <= np.datetime64("1964-05-23"))
    assert gap.sum() == 18
    assert data.filled[gap].all()
    # A straight line has no second difference, also where it meets the values beside the gap.
    first, last = np.flatnonzero(gap)[[0, -1]]
    assert np.abs(np.diff(data.values[first - 1 : last + 2, 0], n=2)).max() < 1e-10


def test_all_files_together_are_small() -> None:
    files = [path for path in resources.files("portable_rnn.data.datasets").iterdir() if path.name != "__pycache__"]
    packed = [path for path in files if path.name.endswith(".csv.gz")]
    assert len(packed) == 4
    assert sum(len(path.read_bytes()) for path in files) < 100_000


def test_files_carry_no_name_and_no_time() -> None:
    for name in EXPECTED:
        packed = resources.files("portable_rnn.data.datasets").joinpath(f"{name}.csv.gz").read_bytes()
        assert packed[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"


def test_loading_imports_neither_pandas_nor_a_network_client() -> None:
    code = (
        "import sys, portable_rnn.datasets as d; d.load_co2(); "
        "print(sorted({'pandas', 'urllib.request', 'http.client'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(
    importlib.util.find_spec("vega_datasets") is None or importlib.util.find_spec("statsmodels") is None,
    reason="vega_datasets and statsmodels, which the files are made from, are not installed",
)
def test_script_makes_the_shipped_files() -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "make_datasets.py"
    result = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("the same") == 4
