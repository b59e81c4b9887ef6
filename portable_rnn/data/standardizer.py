"""Standardizing columns: fitted on the host, kept with the model as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import Items, Number, record_of, shown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Standardizer"]


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Bring each column to mean 0 and standard deviation 1: (x - mean) / std.

    Attributes
    ----------
    mean : ndarray of float64, shape (F,)
        Mean of each column, read-only.
    std : ndarray of float64, shape (F,)
        Standard deviation of each column (divisor n), read-only; 1 for a constant column.

    Raises
    ------
    InputError
        If the two have other shapes, are not finite, or a std is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.data import Standardizer
    >>> scaler = Standardizer.fit(np.array([[1.0, 7.0], [3.0, 7.0]]))
    >>> scaler.transform(np.array([[3.0, 8.0]])).tolist()
    [[1.0, 1.0]]
    >>> scaler.inverse(np.array([[1.0, 1.0]])).tolist()
    [[3.0, 8.0]]
    """

    mean: Annotated[NDArray[np.float64], Items(Number())]
    std: Annotated[NDArray[np.float64], Items(Number(above=0))]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or not self.mean.size:
            raise InputError(
                f"Standardizer: expected mean and std of one shape (columns,), received "
                f"{self.mean.shape} and {self.std.shape}: use Standardizer.fit(values)"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise InputError(
                "Standardizer: expected finite means and positive finite standard deviations, "
                "received "
                f"{self.mean.tolist()} and {self.std.tolist()}: use Standardizer.fit(values)"
            )

    @classmethod
    def fit(cls, values: ArrayLike) -> Standardizer:
        """Mean and standard deviation of each column, computed in float64.

        Parameters
        ----------
        values : array_like, shape (..., F) or (rows,)
            Over all axes but the last, so rows (rows, F) and windows (N, T, F) both work. One
            dimension is one column.

        Returns
        -------
        Standardizer

        Raises
        ------
        InputError
            If there is no row, or a value is NaN or infinite.
        """
        array = np.asarray(values, dtype=np.float64)
        columns = array.reshape(-1, 1) if array.ndim < 2 else array.reshape(-1, array.shape[-1])
        if not columns.size:
            raise InputError(
                f"values: expected at least one row and one column, received shape {array.shape}: "
                "fit on the training rows"
            )
        if not np.isfinite(columns).all():
            row, column = np.argwhere(~np.isfinite(columns))[0]
            raise InputError(
                f"values: expected finite numbers, received {columns[row, column]} in row {row}, "
                "column "
                f"{column} (from 0): fill or remove such rows first"
            )
        constant = columns.min(axis=0) == columns.max(axis=0)
        mean = np.where(constant, columns[0], columns.mean(axis=0))
        deviation = columns - mean
        # Relative to the largest one, so that the squares of tiny deviations don't vanish.
        largest = np.where(constant, 1, np.abs(deviation).max(axis=0))
        std = largest * np.sqrt(np.square(deviation / largest).mean(axis=0))
        return cls(mean, np.where(constant, 1, std))

    def transform(self, values: ArrayLike) -> NDArray[Any]:
        """Standardized values: (values - mean) / std.

        Parameters
        ----------
        values : array_like, shape (..., F)
            Any shape at all if there is one column: targets (rows,) and (N, horizon) too.

        Returns
        -------
        ndarray, the shape of `values`
            float32 for float32, else float64. Computed in float64.

        Raises
        ------
        InputError
            If the last axis is not as long as the columns.
        """
        array = self._checked(values)
        return ((array - self.mean) / self.std).astype(_floating(array))

    def inverse(self, values: ArrayLike) -> NDArray[Any]:
        """Values in the original units: values * std + mean.

        Parameters
        ----------
        values : array_like, shape (..., F)
            Any shape at all if there is one column.

        Returns
        -------
        ndarray, the shape of `values`
            float32 for float32, else float64. Computed in float64.

        Raises
        ------
        InputError
            If the last axis is not as long as the columns.
        """
        array = self._checked(values)
        return (array * self.std + self.mean).astype(_floating(array))

    def to_dict(self) -> dict[str, list[float]]:
        """The numbers as lists, ready for JSON, without loss."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[float]]) -> Standardizer:
        """The Standardizer that :meth:`to_dict` wrote.

        Raises
        ------
        InputError
            If ``mean`` or ``std`` is absent or no list of numbers.
        """
        try:
            found: Standardizer = record_of(cls).read(data, "Standardizer")
        except InputError as error:
            raise InputError(f"{error}; received {shown(data)}: pass what Standardizer.to_dict() returned") from error
        return found

    def _checked(self, values: ArrayLike) -> NDArray[Any]:
        array = np.asarray(values)
        if self.mean.size > 1 and (array.ndim == 0 or array.shape[-1] != self.mean.size):
            raise InputError(
                f"values: expected {self.mean.size} columns on the last axis, as fitted, received "
                "shape "
                f"{array.shape}: pass the same columns in the same order"
            )
        return array


def _floating(array: NDArray[Any]) -> np.dtype[Any]:
    """float32 stays, everything else is float64."""
    return array.dtype if array.dtype == np.float32 else np.dtype(np.float64)
