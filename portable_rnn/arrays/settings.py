"""Settings of layers, cells, optimizers and callbacks, checked and made Python's own where an object is made.

A class that derives from `Configuration` says in its annotations what each field may be: `Size`, `Probability`,
``bool``, ``float | None`` and so on. NumPy's numbers and booleans are taken and kept as Python's, so that two objects
with equal settings are equal and can be written to a file. Checks call the checks: ``size("epochs", epochs)``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np

from ..errors import InputError, unexpected

__all__ = [
    "Check",
    "Configuration",
    "Count",
    "NonNegative",
    "Positive",
    "Probability",
    "Size",
    "count",
    "flag",
    "instance",
    "integer",
    "named",
    "non_negative",
    "number",
    "one_of",
    "optional",
    "positive",
    "probability",
    "size",
    "text",
]

LARGEST = 2**63 - 1  # of an array's axis


@dataclass(frozen=True)
class Check:
    """A check of one setting: called with its name and its value it returns the value as Python's own.

    Attributes
    ----------
    expected, remedy : str
        What an error says; ``{name}`` in the remedy becomes the setting's name.
    convert : callable (value) -> value
        Raises ValueError where the value does not fit, or InputError to say why.
    """

    expected: str
    remedy: str
    convert: Callable[[Any], Any]

    def __call__(self, name: str, value: Any) -> Any:
        try:
            return self.convert(value)
        except InputError as error:  # `convert` says itself why
            raise InputError(f"{name}: {error}") from None
        except (ValueError, OverflowError):
            raise unexpected(name, self.expected, value, self.remedy.format(name=name)) from None

    def read(self, value: Any, where: str) -> Any:
        """The same for a value that stands in a file."""
        return self(where, value)


def integer(low: int, high: int = LARGEST) -> Check:
    """A check for integers from `low` to `high`."""

    def convert(value: Any) -> int:
        if _is(numbers.Integral, value) and low <= value <= high:
            return int(value)
        raise ValueError

    expected = f"an integer of at least {low}" if high == LARGEST else f"an integer from {low} to {high}"
    return Check(expected, f"pass an integer such as {{name}}={max(low, 1)}", convert)


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> Check:
    """A check for finite numbers from `low` to `high`; without the ends themselves where `above` and `below` say so."""

    def convert(value: Any) -> float:
        found = float(value) if _is(numbers.Real, value) else math.nan
        inside = (found > low if above else found >= low) and (found < high if below else found <= high)
        if inside and math.isfinite(found):
            return found
        raise ValueError

    expected = "a finite number"
    if high < math.inf:
        expected = f"a number from {low:g} to {'below ' if below else ''}{high:g}"
    elif low > -math.inf:
        expected += f" above {low:g}" if above else f" of at least {low:g}"
    return Check(expected, f"pass a number such as {{name}}={0.5 if low <= 0.5 < high else low:g}", convert)


def one_of(*options: str) -> Check:
    """A check for one of a few words."""

    def convert(value: Any) -> str:
        if isinstance(value, str) and value in options:
            return str(value)
        raise ValueError

    return Check(f"one of {', '.join(map(repr, options))}", f"pass {{name}}={options[0]!r}", convert)


def instance(cls: type) -> Check:
    """A check for objects of a class."""

    def convert(value: Any) -> Any:
        if isinstance(value, cls):
            return value
        raise ValueError

    return Check(f"a {cls.__name__}", "pass an object of this class", convert)


def named(look_up: Callable[[str], Any]) -> Check:
    """A check for texts that a function knows."""

    def convert(value: Any) -> str:
        found = _text(value)
        look_up(found)
        return found

    return Check(text.expected, text.remedy, convert)


def optional(check: Check) -> Check:
    """None, or what another check takes."""

    def convert(value: Any) -> Any:
        return None if value is None else check.convert(value)

    return dataclasses.replace(check, expected=f"{check.expected}, or None", convert=convert)


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _flag(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError


def _text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise ValueError


flag = Check("True or False", "pass {name}=True or {name}=False", _flag)
text = Check("a string", "put it in quotes", _text)
size = integer(1)
count = integer(0)
positive = number(0.0, above=True)
non_negative = number(0.0)
probability = number(0.0, 1.0, below=True)

Size = Annotated[int, size]
Count = Annotated[int, count]
Positive = Annotated[float, positive]
NonNegative = Annotated[float, non_negative]
Probability = Annotated[float, probability]


class Configuration:
    """Base of dataclasses whose fields are settings.

    `__post_init__` replaces each by what the check of its annotation returns. What is computed from them and kept, a
    `functools.cached_property`, is left out of copies and pickles.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, check in _checks(cls):
            value = getattr(self, name)
            found = check(name, value)
            if found is not value:
                object.__setattr__(self, name, found)

    def __getstate__(self) -> dict[str, Any]:
        kept = vars(self).items()
        return {key: value for key, value in kept if not isinstance(getattr(type(self), key, None), cached_property)}


_PLAIN: dict[Any, Check] = {bool: flag, str: text, int: integer(-LARGEST), float: number()}


@functools.cache
def _checks(cls: Any) -> tuple[tuple[str, Check], ...]:
    """(field, check) of every field whose annotation says what it may be."""
    annotations: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        annotations |= _annotations(base)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    found = [(f.name, _check_of(annotations.get(f.name))) for f in fields if f.init]
    return tuple((name, check) for name, check in found if check is not None)


def _annotations(base: type) -> dict[str, Any]:
    """A class's own annotations; none where they name what only a type checker imports."""
    try:
        return inspect.get_annotations(base, eval_str=True)
    except NameError:
        return {}


def _check_of(annotation: Any) -> Check | None:
    if typing.get_origin(annotation) is Annotated:
        check: Check = annotation.__metadata__[0]
        return check
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        inside = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        only = _check_of(inside[0]) if len(inside) == 1 else None
        return None if only is None else optional(only)
    if isinstance(annotation, type) and issubclass(annotation, Configuration):
        return instance(annotation)
    return _PLAIN.get(annotation) if isinstance(annotation, Hashable) else None
