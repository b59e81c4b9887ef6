"""Four small public-domain time series, shipped with the package: no network, no pandas.

============================  =========  =========================================================
loader                        shape      what
============================  =========  =========================================================
:func:`load_seattle_temps`    (8760, 1)  hourly temperature normals of one year
:func:`load_seattle_weather`  (1461, 4)  daily precipitation, temperatures and wind, 2012 to 2015
:func:`load_sunspots`         (309, 1)   yearly sunspot numbers, 1700 to 2008
:func:`load_co2`              (2284, 1)  weekly CO2 at Mauna Loa, 1958 to 2001
============================  =========  =========================================================

No loader returns a NaN. Where the source has no value, the loader puts the straight line between
the neighbours and says so in ``filled``; to get the gaps back::

    values = np.where(data.filled, np.nan, data.values)

``benchmarks/make_datasets.py`` makes the files.
"""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Dataset", "load_co2", "load_seattle_temps", "load_seattle_weather", "load_sunspots"]

_NOAA_LICENCE = "Public domain: a work of the U.S. government (NOAA), see https://www.weather.gov/disclaimer"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A time series at equal steps, with where it comes from and on which terms.

    Attributes
    ----------
    name : str
        The loader's name without ``load_``.
    columns : tuple of str
        The names of the columns of `values`.
    values : ndarray of float64, shape (rows, columns)
        The numbers, oldest first, all finite. Each call of a loader returns a new array.
    times : ndarray of datetime64, shape (rows,)
        The time of each row, in the unit of the step: hour, day or year.
    units : tuple of str
        The unit of each column.
    source : str
        Who measured it and which package it was taken from.
    licence : str
        The terms of use.
    description : str
        What the numbers are, and what to know before training on them.
    filled : ndarray of bool, shape (rows, columns)
        True where the source has no value and `values` has the straight line between its
        neighbours.
    labels : tuple of str or None
        One word a row, for a data set with a column of text.

    Examples
    --------
    >>> from portable_rnn.data.datasets import load_sunspots
    >>> data = load_sunspots()
    >>> data.columns, data.values.shape, str(data.times[0])
    (('sunspots',), (309, 1), '1700')
    """

    name: str
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    times: NDArray[np.datetime64]
    units: tuple[str, ...]
    source: str
    licence: str
    description: str
    filled: NDArray[np.bool_]
    labels: tuple[str, ...] | None = None


def _read(name: str, step: str) -> tuple[tuple[str, ...], NDArray[np.datetime64], list[list[str]]]:
    """Column names without the time, times in `step` units, and the cells column by column."""
    packed = resources.files(__name__).joinpath(f"{name}.csv.gz").read_bytes()
    rows = csv.reader(io.StringIO(gzip.decompress(packed).decode("utf-8"), newline=""))
    header = next(rows)
    times, *cells = (list(column) for column in zip(*rows, strict=True))
    return tuple(header[1:]), np.array(times, dtype=f"datetime64[{step}]"), cells


def _fill(cells: list[list[str]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers (rows, columns), empty cells replaced by linear interpolation, and where that was."""
    filled = np.array([[not cell for cell in column] for column in cells]).T
    values = np.array([[float(cell or "nan") for cell in column] for column in cells]).T
    row = np.arange(len(values), dtype=np.float64)
    for column in range(values.shape[1]):
        gap = filled[:, column]
        values[gap, column] = np.interp(row[gap], row[~gap], values[~gap, column])
    return np.ascontiguousarray(values), np.ascontiguousarray(filled)


def load_seattle_temps() -> Dataset:
    """Hourly temperature of an average year in Seattle, in degrees Fahrenheit.

    The file is known as "hourly temperatures in Seattle, 2010", but it holds climate normals dated
    2010, not measurements: it never leaves 37.5 to 75.9 °F, while summer 2010 passed 90 °F, and the
    collection it comes from has since replaced it by what it names the 1981-2010 hourly normals,
    means over thirty years. It is therefore much smoother than weather: good for learning a daily
    and a yearly cycle, no evidence of how well a model forecasts weather.

    Returns
    -------
    Dataset
        `values` is (8760, 1), column ``temperature``; `times` has the unit hour. One hour,
        2010-03-14 03:00, is absent from the source; it is filled by linear interpolation, so that
        24 rows are a day everywhere.

    Examples
    --------
    >>> from portable_rnn.data.datasets import load_seattle_temps
    >>> data = load_seattle_temps()
    >>> data.values.shape, float(data.values[0, 0]), data.units
    ((8760, 1), 39.4, ('°F',))
    """
    columns, times, cells = _read("seattle_temps", "h")
    values, filled = _fill(cells)
    return Dataset(
        name="seattle_temps",
        columns=columns,
        values=values,
        times=times,
        units=("°F",),
        source="NOAA National Climatic Data Center, hourly normals, Seattle; seattle-temps.csv of vega_datasets 0.9.0",
        licence=_NOAA_LICENCE,
        description="Hourly temperature of an average year in Seattle: climate normals dated 2010, "
        "not "
        "the measurements of 2010, and much smoother than weather. The hour 2010-03-14 03:00 is "
        "missing "
        "in the source and filled by linear interpolation.",
        filled=filled,
    )


def load_seattle_weather() -> Dataset:
    """Daily weather in Seattle, 2012 to 2015.

    Returns
    -------
    Dataset
        `values` is (1461, 4): ``precipitation`` in mm, ``temp_max`` and ``temp_min`` in °C,
        ``wind`` (mean speed of the day) in m/s; `times` has the unit day. Nothing is missing.
        `labels` is the word of the source's column ``weather``: drizzle, fog, rain, snow or sun.
        The words are made from several flags of the record and their use changes over the years
        ("rain": 191 days in 2012, 3 in 2014, while it rained as often), so a classifier of them
        learns the year as well.

    Examples
    --------
    >>> from portable_rnn.data.datasets import load_seattle_weather
    >>> data = load_seattle_weather()
    >>> data.columns
    ('precipitation', 'temp_max', 'temp_min', 'wind')
    >>> str(data.times[1]), data.values[1].tolist(), data.labels[1]
    ('2012-01-02', [10.9, 10.6, 2.8, 4.5], 'rain')
    """
    columns, times, cells = _read("seattle_weather", "D")
    values, filled = _fill(cells[:-1])
    return Dataset(
        name="seattle_weather",
        columns=columns[:-1],
        values=values,
        times=times,
        units=("mm", "°C", "°C", "m/s"),
        source="NOAA National Climatic Data Center, daily records, Seattle; seattle-weather.csv of vega_datasets 0.9.0",
        licence=_NOAA_LICENCE,
        description="Daily precipitation, highest and lowest temperature and mean wind speed in "
        "Seattle, "
        "2012 to 2015, nothing missing. The labels (drizzle, fog, rain, snow, sun) are made from "
        "several "
        "flags of the record whose use changes over the years: rain on 191 days in 2012, on 3 in "
        "2014.",
        filled=filled,
        labels=tuple(cells[-1]),
    )


def load_sunspots() -> Dataset:
    """Yearly sunspot numbers, 1700 to 2008.

    Returns
    -------
    Dataset
        `values` is (309, 1), column ``sunspots``; `times` has the unit year. Nothing is missing.
        The scale is the one in use before the revision of 2015, and values before 1749 are whole
        numbers.

    Examples
    --------
    >>> from portable_rnn.data.datasets import load_sunspots
    >>> data = load_sunspots()
    >>> str(data.times[-1]), float(data.values[-1, 0])
    ('2008', 2.9)
    """
    columns, times, cells = _read("sunspots", "Y")
    values, filled = _fill(cells)
    return Dataset(
        name="sunspots",
        columns=columns,
        values=values,
        times=times,
        units=("sunspot number",),
        source="NOAA National Geophysical Data Center, "
        "http://www.ngdc.noaa.gov/stp/solar/solarda3.html; statsmodels 0.15.0, datasets/sunspots",
        licence="Public domain, as statsmodels states",
        description="Yearly mean sunspot number, 1700 to 2008, on the scale in use before the "
        "revision of "
        "2015; a cycle of about 11 years of changing height. Nothing missing.",
        filled=filled,
    )


def load_co2() -> Dataset:
    """Weekly CO2 in the air at Mauna Loa, Hawaii, March 1958 to December 2001.

    Returns
    -------
    Dataset
        `values` is (2284, 1), column ``co2``, in parts per million by volume; `times` are
        Saturdays, with the unit day. 59 weeks have no value in the source, the longest gap being 18
        weeks in 1964; they are filled by linear interpolation and marked in `filled`. The line uses
        the value after the gap, so leave those weeks out where a forecast is scored.

    Examples
    --------
    >>> from portable_rnn.data.datasets import load_co2
    >>> data = load_co2()
    >>> str(data.times[0]), float(data.values[0, 0]), int(data.filled.sum())
    ('1958-03-29', 316.1, 59)
    """
    columns, times, cells = _read("co2", "D")
    values, filled = _fill(cells)
    return Dataset(
        name="co2",
        columns=columns,
        values=values,
        times=times,
        units=("ppm",),
        source="Keeling, C.D. and T.P. Whorf (2004), Atmospheric CO2 concentrations derived from "
        "flask air "
        "samples at sites in the SIO network, Carbon Dioxide Information Analysis Center, Oak "
        "Ridge "
        "National Laboratory; statsmodels 0.15.0, datasets/co2",
        licence="Public domain, as statsmodels states",
        description="Weekly mean CO2 from continuous air samples at Mauna Loa Observatory, 1958 to "
        "2001. "
        "59 of 2284 weeks have no value in the source and are filled by linear interpolation (see "
        "filled); the longest gap is 18 weeks in 1964.",
        filled=filled,
    )
