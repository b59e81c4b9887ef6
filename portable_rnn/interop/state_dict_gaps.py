"""What stands between the layers of a state dict and has no parameters: found by the numbering, and asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, printable
from ..layers import Activation, Layer, Softmax

__all__ = ["Activations", "Gap", "answered", "missing_numbers"]

Activations = str | Sequence[str | None] | Mapping[str, str | None] | None

_NUMBER = re.compile(r"[0-9]+")
_MOST_DIGITS = 6
_NOTHING = (None, "none", "dropout", "identity")
_CHOICES = "'relu', 'tanh', 'sigmoid', 'leaky_relu(0.01)', 'elu', 'softplus', 'softsign', 'softmax', 'log_softmax'"
_MAX_MISSING = 100


@dataclass(frozen=True)
class Gap:
    """A place where something without parameters may stand.

    Attributes
    ----------
    place : int
        Number of the layer in front of which it is.
    before, after : str
        Names of the layers around it; "" at the start.
    missing : tuple of str
        Names that the numbering leaves out there, such as ``head.1``; none where only the kinds of the layers ask.
    """

    place: int
    before: str
    after: str
    missing: tuple[str, ...]

    def __str__(self) -> str:
        where = f"between {self.before!r} and {self.after!r}" if self.before else f"in front of {self.after!r}"
        return f"{', '.join(map(repr, self.missing))} {where}" if self.missing else where


def missing_numbers(prefixes: Sequence[str]) -> list[tuple[str, ...]]:
    """For each prefix, in the order that the layers run, the numbered names left out in front of it.

    Examples
    --------
    >>> missing_numbers(["rnn", "head.0", "head.3", "blocks.1.fc"])
    [(), (), ('head.1', 'head.2'), ('blocks.0',)]
    """
    last: dict[str, int] = {}
    present = {prefix[:end] for prefix in prefixes for end in _ends(prefix)}
    found = []
    for prefix in prefixes:
        missing: list[str] = []
        for end in _ends(prefix):
            parent, _, number = prefix[:end].rpartition(".")
            if not _NUMBER.fullmatch(number):
                continue
            first = last.get(parent, -1) + 1
            if len(number) > _MOST_DIGITS or int(number) - first > _MAX_MISSING + len(prefixes):
                raise InputError(
                    f"{prefix!r} of the state dict: expected layers numbered from 0 with few left out, got "
                    f"{printable(number, 20)} after {first - 1}: pass network="
                )
            names = (f"{parent}.{k}" if parent else str(k) for k in range(first, int(number)))
            missing += [name for name in names if name not in present]
            last[parent] = max(int(number), first - 1)
        found.append(tuple(missing))
    return found


def _ends(prefix: str) -> list[int]:
    """Where each part of a dotted name ends."""
    return [k for k, character in enumerate(prefix) if character == "."] + [len(prefix)]


def answered(gaps: Sequence[Gap], activations: Activations) -> list[Layer | None]:
    """What the caller says stands in each gap; None for nothing.

    Raises
    ------
    InputError
        He doesn't say it of each, or of something that is no gap.
    """
    if not gaps:
        if activations is not None:
            raise InputError(
                f"activations: expected None, as no layer is left out in the state dict, got {activations!r}: leave it "
                "out, or pass network="
            )
        return []
    if activations is None or isinstance(activations, str):
        if activations is None:
            raise InputError(_question(gaps, "nothing"))
        return [_layer(activations)] * len(gaps)
    if isinstance(activations, Mapping):
        found = []
        for gap in gaps:
            named = [name for name in (*gap.missing, gap.before) if name in activations]
            if len(named) != 1:
                raise InputError(_question(gaps, f"{dict(activations)!r}"))
            found.append(_layer(activations[named[0]]))
        known = {name for gap in gaps for name in (*gap.missing, gap.before)}
        unknown = [name for name in activations if name not in known]
        if unknown:
            raise InputError(_question(gaps, f"{unknown[0]!r}, which is none of them"))
        return found
    if not isinstance(activations, Sequence) or len(activations) != len(gaps):
        raise InputError(_question(gaps, f"{activations!r}"))
    return [_layer(name) for name in activations]


def _question(gaps: Sequence[Gap], got: str) -> str:
    places = "; ".join(map(str, gaps))
    how = "one of them" if len(gaps) == 1 else f"one of them, or a list of {len(gaps)}"
    return (
        f"activations: expected what stands {places}, where a state dict doesn't say it, got {got}: pass activations= "
        f"{how}: {_CHOICES}, 'none' (Dropout, Identity or nothing); network= for anything else"
    )


def _layer(name: Any) -> Layer | None:
    if name in _NOTHING:
        return None
    if not isinstance(name, str):
        raise InputError(f"activations: expected names such as 'relu', got {name!r}: pass one of {_CHOICES} or 'none'")
    return Softmax(log=name == "log_softmax") if name in ("softmax", "log_softmax") else Activation(name)
