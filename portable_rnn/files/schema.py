"""What a file may say: the type and range of every field, declared once and checked where the field is read.

A `Kind` reads a value that came from JSON and returns it as Python's, or raises `InputError` that names the field. A
`Record` builds a dataclass; `record_of` takes its fields and their kinds from the dataclass itself. A new kind of file
declares a dataclass, and nothing is checked by hand.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError, printable

__all__ = [
    "Boolean",
    "Choice",
    "Integer",
    "Items",
    "Json",
    "Kind",
    "Maybe",
    "Number",
    "Record",
    "Table",
    "Tagged",
    "Text",
    "parse_json",
    "read_json",
    "record_of",
    "shown",
]

TEXT_LIMIT = 1 << 22  # characters of one JSON text
NESTING_LIMIT = 64  # lists and objects inside each other
ITEM_LIMIT = 1 << 17  # entries of one list; lists and objects of a text; and four times as many commas
_LONE = re.compile("[\ud800-\udfff]")  # half a character of UTF-16, which no encoding can write


class Kind(Protocol):
    """The type and range of a field."""

    def read(self, value: Any, where: str) -> Any:
        """The value as Python's; InputError, with the field's name, where it is none of this kind."""


@dataclass(frozen=True)
class Integer:
    """A whole number from `low` to `high`; true and 1.0 are none."""

    low: int = -(2**63)
    high: int = 2**63 - 1

    def read(self, value: Any, where: str) -> int:
        """The number."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            usual = (self.low, self.high) == (Integer.low, Integer.high)
            raise unexpected(
                where, "a whole number" if usual else f"a whole number from {self.low} to {self.high}", value
            )
        return value


@dataclass(frozen=True)
class Number:
    """A finite number, above `above` and below `below`."""

    above: float = -math.inf
    below: float = math.inf

    def read(self, value: Any, where: str) -> float:
        """The number as a float."""
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
        except OverflowError:
            number = math.inf
        if not self.above < number < self.below:
            bounds = f" above {self.above:g}" if self.above > -math.inf else ""
            bounds += f" below {self.below:g}" if self.below < math.inf else ""
            raise unexpected(where, f"a finite number{bounds}", value)
        return number


@dataclass(frozen=True)
class Boolean:
    """True or false."""

    def read(self, value: Any, where: str) -> bool:
        """The value."""
        if not isinstance(value, bool):
            raise unexpected(where, "true or false", value)
        return value


@dataclass(frozen=True)
class Text:
    """A text of Unicode characters, at most `limit` long."""

    limit: int = 10_000

    def read(self, value: Any, where: str) -> str:
        """The text."""
        if not isinstance(value, str) or len(value) > self.limit or _LONE.search(value):
            raise unexpected(where, _at_most("a text", self.limit, "characters", value), value)
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few texts."""

    options: tuple[str, ...]

    def read(self, value: Any, where: str) -> str:
        """The text."""
        if not isinstance(value, str) or value not in self.options:
            raise unexpected(where, f"one of {', '.join(self.options)}", value)
        return value


@dataclass(frozen=True)
class Maybe:
    """A kind, or null."""

    kind: Kind

    def read(self, value: Any, where: str) -> Any:
        """None, or the value of the kind."""
        return None if value is None else self.kind.read(value, where)


@dataclass(frozen=True)
class Items:
    """A list whose entries are of one kind."""

    kind: Kind
    limit: int = ITEM_LIMIT

    def read(self, value: Any, where: str) -> tuple[Any, ...]:
        """The entries as a tuple."""
        if not isinstance(value, (list, tuple)) or len(value) > self.limit:
            raise unexpected(where, _at_most("a list", self.limit, "entries", value), value)
        return tuple(self.kind.read(entry, f"{where}[{k}]") for k, entry in enumerate(value))


@dataclass(frozen=True)
class Table:
    """An object with any names, whose values are of one kind."""

    kind: Kind
    limit: int = ITEM_LIMIT

    def read(self, value: Any, where: str) -> dict[str, Any]:
        """The values by name."""
        if not isinstance(value, Mapping) or len(value) > self.limit:
            raise unexpected(where, _at_most("an object", self.limit, "entries", value), value)
        return {name: self.kind.read(entry, named(where, name)) for name, entry in value.items()}


@dataclass(frozen=True)
class Record:
    """An object with these fields, which `make` takes as keyword arguments.

    Attributes
    ----------
    make : callable
        What it raises as InputError is raised with the record's place in front.
    fields : mapping of str to Kind
    optional : frozenset of str
        Fields that may be absent; `make` has defaults for them.
    others : bool
        Whether other fields may stand there. They are not looked at.
    """

    make: Callable[..., Any]
    fields: Mapping[str, Kind]
    optional: frozenset[str] = frozenset()
    others: bool = False

    def read(self, value: Any, where: str) -> Any:
        """What `make` makes of the fields."""
        if not isinstance(value, Mapping):
            raise unexpected(where, f"an object with {', '.join(self.fields)}", value)
        unknown = [name for name in value if name not in self.fields]
        if unknown and not self.others:
            known = ", ".join(self.fields) or "no field"
            raise unexpected(where, known, unknown[0], "unknown field ")
        for name in self.fields:
            if name not in value and name not in self.optional:
                raise InputError(f"{where}: expected a field {name!r}, got none of that name")
        found = {
            name: kind.read(value[name], named(where, name)) for name, kind in self.fields.items() if name in value
        }
        try:
            return self.make(**found)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


@dataclass(frozen=True)
class Tagged:
    """An object whose field `tag` says which record its other fields are.

    Attributes
    ----------
    tag : str
    find : callable
        The kind of the other fields for a tag's text; None where there is no such tag.
    what : str
        What an error calls it.
    """

    tag: str
    find: Callable[[str], Kind | None]
    what: str

    def read(self, value: Any, where: str) -> Any:
        """What the found record reads."""
        tag = value.get(self.tag) if isinstance(value, Mapping) else value
        kind = self.find(tag) if isinstance(value, Mapping) and isinstance(tag, str) else None
        if kind is None:
            raise unexpected(where, f"a known {self.what}", tag, f"unknown {self.what} ")
        return kind.read({name: entry for name, entry in value.items() if name != self.tag}, where)


@dataclass(frozen=True)
class Json:
    """A text that is JSON of a kind."""

    kind: Kind
    limit: int = TEXT_LIMIT

    def read(self, value: Any, where: str) -> Any:
        """What the kind reads of it."""
        return self.kind.read(parse_json(Text(self.limit).read(value, where), where, limit=self.limit), where)


def named(where: str, name: str) -> str:
    """The place of a field."""
    return f"{where}.{printable(name, 60)}" if where else printable(name, 60)


def unexpected(where: str, expected: str, got: Any, what: str = "") -> InputError:
    """The error for a value that is not what it should be."""
    return InputError(f"{where}: expected {expected}, got {what}{shown(got)}")


def _at_most(what: str, limit: int, units: str, value: Any) -> str:
    """What was expected, with its limit where that is what the value breaks."""
    too_long = hasattr(value, "__len__") and len(value) > limit
    return f"{what} of at most {limit:,} {units}" if too_long else what


def shown(value: Any) -> str:
    """A value for an error: its repr, cut to what a line takes."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


# ---------------------------------------------------------------------- JSON


def parse_json(text: str, where: str, *, limit: int = TEXT_LIMIT) -> Any:
    """Parse JSON that is not trusted: bounded in length, entries and nesting, finite numbers, each name once.

    Parameters
    ----------
    text : str
    where : str
        What an error calls it.
    limit : int
        Characters.

    Raises
    ------
    InputError
        It is no JSON, or beyond one of the bounds.
    """
    if len(text) > limit:
        raise InputError(f"{where}: expected at most {limit:,} characters, got {len(text):,}")
    if text.count("[") + text.count("{") > ITEM_LIMIT or text.count(",") > 4 * ITEM_LIMIT:
        raise InputError(f"{where}: expected at most {ITEM_LIMIT:,} lists and objects, and a few entries in each")
    try:
        found = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise InputError(f"{where}: expected lists and objects nested at most {NESTING_LIMIT} deep, got more") from None
    except ValueError as error:  # the number of digits that `int` takes is among them
        raise InputError(f"{where}: expected JSON, got a text that is none ({error})") from error
    level, deep = [[found]], 0
    while level := [part for each in level for part in _parts(each)]:
        deep += 1
        if deep > NESTING_LIMIT:
            raise InputError(f"{where}: expected lists and objects nested at most {NESTING_LIMIT} deep, got more")
    return found


def _parts(value: Any) -> list[Any]:
    """The lists and objects directly inside a list or object, itself counted as one level."""
    if not isinstance(value, (list, dict)):
        return []
    inside = value.values() if isinstance(value, dict) else value
    return [part for part in inside if isinstance(part, (list, dict))]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def read_json(path: str | os.PathLike[str], kind: Kind, *, limit: int = TEXT_LIMIT) -> Any:
    """Read a JSON file of a kind.

    Parameters
    ----------
    path : path
    kind : Kind
    limit : int
        Bytes of the largest file that is read.

    Raises
    ------
    InputError
        It can't be read, is too large, or is of another kind.
    """
    source = Path(path)
    try:
        if not source.is_file():
            raise InputError(f"can't read {str(source)!r}: expected a file, got none at this path")
        if source.stat().st_size > limit:
            raise InputError(f"can't read {str(source)!r}: expected at most {limit:,} bytes, got more")
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read {str(source)!r}: {error}") from error
    return Json(kind, limit).read(text, source.name)


# ---------------------------------------------------------------------- dataclasses


_PLAIN: dict[Any, Kind] = {int: Integer(), float: Number(), bool: Boolean(), str: Text()}


def record_of(cls: type, kinds: Mapping[Any, Kind] | None = None, make: Callable[..., Any] | None = None) -> Record:
    """The record of a dataclass: each field of the kind that its annotation names.

    Parameters
    ----------
    cls : type
        A dataclass. Its annotations may be int, float, bool, str, a class of `kinds`, another dataclass,
        `tuple[X, ...]`, `X | None`, or `Annotated[X, kind]` for a kind with a range.
    kinds : mapping of type to Kind, optional
        Kinds of other classes. A subclass is of its base's kind.
    make : callable, optional
        In place of the class.

    Examples
    --------
    >>> import dataclasses, typing
    >>> @dataclasses.dataclass
    ... class Point:
    ...     x: typing.Annotated[int, Integer(0, 9)]
    ...     name: str | None = None
    >>> record_of(Point).read({"x": 3}, "point")
    Point(x=3, name=None)
    >>> record_of(Point).read({"x": 10}, "point")
    Traceback (most recent call last):
    portable_rnn.errors.InputError: point.x: expected a whole number from 0 to 9, got 10
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [f for f in dataclasses.fields(cls) if f.init]
    missing = dataclasses.MISSING
    return Record(
        make or cls,
        {f.name: kind_of(hints[f.name], kinds or {}) for f in fields},
        frozenset(f.name for f in fields if f.default is not missing or f.default_factory is not missing),
    )


def kind_of(annotation: Any, kinds: Mapping[Any, Kind]) -> Kind:
    """The kind that an annotation names."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        found: Kind = next(kind for kind in arguments[1:] if hasattr(kind, "read"))
        return found
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return Maybe(kind_of(next(each for each in arguments if each is not type(None)), kinds))
    if origin is tuple and arguments[1:] == (...,):
        return Items(kind_of(arguments[0], kinds))
    for base in getattr(annotation, "__mro__", ()):
        if base in kinds:
            return kinds[base]
    if dataclasses.is_dataclass(annotation):
        return record_of(annotation, kinds)  # type: ignore[arg-type]
    return _PLAIN[annotation]
