"""The step between the rows of a table: how long, what it is called, how many make a season."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TimeStep", "time_text"]

_MINUTE = np.timedelta64(1, "m")
_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class TimeStep:
    """An even step.

    Attributes
    ----------
    length : numpy.timedelta64
        In months for calendar steps (months, quarters, years), else a fixed duration.
    name : str
        What to call one step: "hour", "day", or "step" where there is no word.
    period : int or None
        Steps in the season that such data usually have: the hours of a day, the days of a week, the months of a year.
    period_name : str
        What the value one period earlier is: "same hour yesterday"; empty without a period.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.forecasting import TimeStep
    >>> hours = np.arange("2010-01-01", "2010-01-03", dtype="datetime64[h]")
    >>> step = TimeStep.of(hours)
    >>> step.name, step.period, step.period_name
    ('hour', 24, 'same hour yesterday')
    >>> step.after(hours[-1], 2).astype(str).tolist()
    ['2010-01-03T00:00:00.000000', '2010-01-03T01:00:00.000000']
    """

    length: np.timedelta64
    name: str
    period: int | None
    period_name: str

    @classmethod
    def of(cls, times: NDArray[np.datetime64] | None) -> TimeStep | None:
        """The step of a table's times; None where they are unknown or not evenly spaced.

        Parameters
        ----------
        times : ndarray of datetime64, or None
        """
        if times is None or len(times) < 2:
            return None
        months = times.astype("datetime64[M]")
        calendar = len(times) > 2 and bool((months == times).all())
        gaps = np.diff(months if calendar else times.astype("datetime64[us]"))
        if (gaps != gaps[0]).any() or gaps[0] <= np.timedelta64(0):
            return None
        return cls(gaps[0], *(_calendar_names if calendar else _duration_names)(gaps[0]))

    def after(self, time: np.datetime64, count: int) -> NDArray[np.datetime64]:
        """The times of the next `count` rows.

        Parameters
        ----------
        time : numpy.datetime64
            Of the row before them.
        count : int
        """
        calendar = np.datetime_data(self.length)[0] == "M"
        start = time.astype("datetime64[M]" if calendar else "datetime64[us]")
        times: NDArray[np.datetime64] = start + self.length * np.arange(1, count + 1)
        return times.astype("datetime64[us]")


def time_text(times: NDArray[np.datetime64]) -> list[str]:
    """Times as ISO 8601 text, without parts that are zero in all of them.

    Parameters
    ----------
    times : ndarray of datetime64

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.forecasting import time_text
    >>> time_text(np.array(["2010-01-01T00:00", "2010-01-01T01:30"], dtype="datetime64[us]"))
    ['2010-01-01T00:00', '2010-01-01T01:30']
    """
    unit = next((u for u in ("D", "m", "s") if bool((times.astype(f"datetime64[{u}]") == times).all())), "us")
    return [str(text) for text in np.datetime_as_string(times, unit=unit)]  # type: ignore[call-overload]


def _calendar_names(gap: np.timedelta64) -> tuple[str, int | None, str]:
    names: dict[int, tuple[str, int | None, str]] = {
        1: ("month", 12, "same month last year"),
        3: ("quarter", 4, "same quarter last year"),
        12: ("year", None, ""),
    }
    return names.get(int(gap.astype(int)), ("step", None, ""))


def _duration_names(gap: np.timedelta64) -> tuple[str, int | None, str]:
    if gap == 60 * _MINUTE:
        return "hour", 24, "same hour yesterday"
    if gap == _DAY:
        return "day", 7, "same day last week"
    if gap == 7 * _DAY:
        return "week", 52, "same week last year"
    name = "minute" if gap == _MINUTE else "step"
    if _MINUTE <= gap < _DAY and _DAY % gap == np.timedelta64(0):
        return name, int(_DAY // gap), "same time yesterday"
    return name, None, ""
