"""Sequences, tables and data sets on the host, before they become arrays of a library."""

from .csv import Table, read_csv
from .datasets import Dataset, load_co2, load_seattle_temps, load_seattle_weather, load_sunspots
from .sequences import batches, last_value, pad_sequences, same_time_last_period, split_by_time, windows
from .standardizer import Standardizer

__all__ = [
    "Dataset",
    "Standardizer",
    "Table",
    "batches",
    "last_value",
    "load_co2",
    "load_seattle_temps",
    "load_seattle_weather",
    "load_sunspots",
    "pad_sequences",
    "read_csv",
    "same_time_last_period",
    "split_by_time",
    "windows",
]
