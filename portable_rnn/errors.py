"""The exceptions of the public edge: each message says what was expected, what was received and the fix."""

from __future__ import annotations

import reprlib
from typing import Any

__all__ = [
    "BackendError",
    "ConversionError",
    "InputError",
    "MissingDependencyError",
    "NonFiniteError",
    "printable",
    "shown",
    "unexpected",
]


class InputError(ValueError):
    """An argument, array or file that the library can't use.

    The message is one line without control characters, whatever text from a file stands in it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message), limit=4000))


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
        self.purpose = purpose

    def __reduce__(self) -> Any:
        return type(self), (self.package, self.extra, self.purpose)


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


def printable(text: str, limit: int = 200) -> str:
    """Text that came from a file, safe to print on a terminal: one line, no control characters, at most `limit` long.

    Parameters
    ----------
    text : str
        A name, a header, a message of another library.
    limit : int
        The longest text that is shown whole; a longer one is cut and ends in "…".

    Returns
    -------
    str
        Each character that Python does not call printable (control and format characters, line ends, lone surrogates)
        is written as its escape, such as ``\\x1b``.

    Examples
    --------
    >>> printable("layer\\x1b[2J\\n")
    'layer\\\\x1b[2J\\\\n'
    >>> printable("a" * 50, limit=5)
    'aaaa…'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown if len(text) <= limit and len(shown) <= limit else f"{shown[: limit - 1]}…"


def unexpected(name: str, expected: str, got: Any, remedy: str) -> InputError:
    """The error for an argument that is not what it should be.

    Examples
    --------
    >>> unexpected("hidden_size", "an integer of at least 1", 0, "pass an integer such as hidden_size=8")
    InputError('hidden_size: expected an integer of at least 1, got 0: pass an integer such as hidden_size=8')
    """
    return InputError(f"{name}: expected {expected}, got {shown(got)}: {remedy}")


def shown(value: Any) -> str:
    """A value as an error shows it: short, on one line, whatever it is."""
    try:
        text = " ".join(reprlib.repr(value).split())
    except Exception:  # a repr of someone else's class, or of an integer with too many digits
        text = f"a value of type {type(value).__name__}"
    return printable(text, 80)
