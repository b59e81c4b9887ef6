"""Makes the data files in ``portable_rnn/data/datasets`` from two packages that ship them.

Run ``pip install vega_datasets==0.9.0 statsmodels==0.15.0`` and then
``python benchmarks/make_datasets.py`` (``--check`` compares and writes nothing). Only the files
inside the packages are read, neither package is imported, and each input is pinned by its SHA-256,
so the CSV text is the same on every machine; the gzip header carries neither name nor time.

==================  ==========================================  ====================================
file                source                                      licence
==================  ==========================================  ====================================
seattle_temps       vega_datasets, ``seattle-temps.csv``:       public domain (U.S. government
                    NOAA NCDC hourly normals                    work), weather.gov/disclaimer
seattle_weather     vega_datasets, ``seattle-weather.csv``:     public domain (U.S. government
                    NOAA NCDC daily records                     work), weather.gov/disclaimer
sunspots            statsmodels, ``datasets/sunspots``:         public domain, as its ``COPYRIGHT``
                    NOAA National Geophysical Data Center       says
co2                 statsmodels, ``datasets/co2``:              public domain, as its ``COPYRIGHT``
                    Keeling and Whorf (2004), CDIAC             says
==================  ==========================================  ====================================

What changes on the way: dates are written as ISO 8601, columns are renamed, and the hour that
``seattle-temps.csv`` leaves out becomes a row with an empty cell. No number is touched; the weeks
without a CO2 value stay empty cells, and the loaders fill them.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "portable_rnn" / "data" / "datasets"

Rows = list[list[str]]


@dataclass(frozen=True)
class Recipe:
    """One data file: where its rows come from, its header, and what is done to the rows."""

    name: str
    package: str
    path: str
    sha256: str
    header: tuple[str, ...]
    convert: Callable[[Rows], Iterable[list[str]]]


def hourly(rows: Rows) -> Iterable[list[str]]:
    """ISO times, and a row with an empty cell for every hour that is left out."""
    expected = datetime.strptime(rows[0][0], "%Y/%m/%d %H:%M")
    for text, value in rows:
        time = datetime.strptime(text, "%Y/%m/%d %H:%M")
        while expected < time:
            yield [expected.strftime("%Y-%m-%dT%H"), ""]
            expected += timedelta(hours=1)
        yield [time.strftime("%Y-%m-%dT%H"), value]
        expected = time + timedelta(hours=1)


def daily(rows: Rows) -> Iterable[list[str]]:
    """ISO dates."""
    return ([date.replace("/", "-"), *rest] for date, *rest in rows)


def yearly(rows: Rows) -> Iterable[list[str]]:
    """As it is."""
    return rows


def weekly(rows: Rows) -> Iterable[list[str]]:
    """ISO dates from YYYYMMDD."""
    return ([f"{date[:4]}-{date[4:6]}-{date[6:]}", value] for date, value in rows)


RECIPES = (
    Recipe(
        "seattle_temps",
        "vega_datasets",
        "_data/seattle-temps.csv",
        "c220666521ff4bec4ffb6f0d9acfdc5c1056564b1aad6f78d3b06aa0a0c8b085",
        ("time", "temperature"),
        hourly,
    ),
    Recipe(
        "seattle_weather",
        "vega_datasets",
        "_data/seattle-weather.csv",
        "62f0609f787158128aa2bd102967173a4953122dd4f872bf1d502cae1037df0b",
        ("time", "precipitation", "temp_max", "temp_min", "wind", "weather"),
        daily,
    ),
    Recipe(
        "sunspots",
        "statsmodels",
        "datasets/sunspots/sunspots.csv",
        "f67889b1d9002cd5227f0e0ef54e35b419cdd85a31279adef6f73fb41e5c0a9b",
        ("time", "sunspots"),
        yearly,
    ),
    Recipe(
        "co2",
        "statsmodels",
        "datasets/co2/co2.csv",
        "16695fa2786e53414e5a6b54767a3fdf5de99cfbc68617f69d1362d92776a92f",
        ("time", "co2"),
        weekly,
    ),
)


def csv_text(recipe: Recipe) -> bytes:
    """The CSV file of one recipe, before compression."""
    spec = importlib.util.find_spec(recipe.package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{recipe.package} is not installed: see the first lines of this script")
    source = (Path(spec.submodule_search_locations[0]) / recipe.path).read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    if digest != recipe.sha256:
        raise SystemExit(
            f"{recipe.package}/{recipe.path}: expected SHA-256 {recipe.sha256}, received {digest}: "
            "install the version named in the first lines of this script"
        )
    _, *rows = csv.reader(io.StringIO(source.decode("utf-8"), newline=""))
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(recipe.header)
    writer.writerows(recipe.convert(rows))
    return target.getvalue().encode("utf-8")


def compress(text: bytes) -> bytes:
    """Gzip without a name or a time; GzipFile, unlike gzip.compress, writes no operating system."""
    target = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=target, mtime=0) as file:
        file.write(text)
    return target.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Write, or with ``--check`` compare, every file; 1 if one differs."""
    parser = argparse.ArgumentParser(description="Make the data files of portable_rnn.data.datasets.")
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    check = parser.parse_args(arguments).check
    differing = 0
    total = 0
    for recipe in RECIPES:
        text = csv_text(recipe)
        data = compress(text)
        total += len(data)
        path = OUTPUT / f"{recipe.name}.csv.gz"
        if check:
            # The text, not the bytes: another zlib may compress the same text differently.
            same = path.is_file() and gzip.decompress(path.read_bytes()) == text
            differing += not same
            print(f"{path.name}: {'the same' if same else 'differs'}")
        else:
            path.write_bytes(data)
            print(f"{path.name}: {len(text):,} bytes of CSV, {len(data):,} compressed")
    print(f"all together: {total:,} bytes")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
