"""The exceptions of the public edge: each message says what was expected, what was received and the fix."""

from __future__ import annotations

from typing import Any

__all__ = ["BackendError", "ConversionError", "InputError", "MissingDependencyError", "NonFiniteError"]


class InputError(ValueError):
    """An argument, array or file that the library can't use."""


class BackendError(InputError):
    """An array library that is unknown, not installed, or not the one the model lives on."""


class ConversionError(InputError):
    """A model of another framework whose conversion does not give that framework's outputs."""


class MissingDependencyError(ImportError):
    """An optional package that is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: run `pip install 'portable-rnn[{extra}]'`",
            name=package,
        )
        self.package = package
        self.extra = extra


class NonFiniteError(FloatingPointError):
    """A loss that became NaN or infinite. The model keeps the last weights whose loss was finite.

    Attributes
    ----------
    step : int
        Update number, from 1, whose loss was not finite.
    layer : str
        The first layer whose parameters, output or gradient are not finite.
    good_params : dict of str to array
        The last parameters whose loss was finite.
    """

    def __init__(self, message: str, *, step: int, layer: str, good_params: dict[str, Any]) -> None:
        super().__init__(message)
        self.good_params = good_params
        self.step = step
        self.layer = layer
