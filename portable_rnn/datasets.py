"""The short path of `portable_rnn.data.datasets`."""

from .data import Dataset, load_co2, load_seattle_temps, load_seattle_weather, load_sunspots

__all__ = ["Dataset", "load_co2", "load_seattle_temps", "load_seattle_weather", "load_sunspots"]
