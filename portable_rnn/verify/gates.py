"""Why outputs differ from the textbook: the usual mistakes of a recurrent layer, tried one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from .subject import Finding, Host, Subject, compared

__all__ = ["explained"]

_NAMES = {3: "run", 4: "ifgo"}


def explained(subject: Subject, found: Finding, state: Any, lengths: Any) -> Finding:
    """The finding, with the mistake that explains it if one of the usual ones does."""
    got = subject.outputs(subject.x, state, lengths)
    for mistake, changed in _mistakes(subject):
        expected = changed.textbook(subject.x, state, lengths)
        if compared(got, expected, subject.limit, "", "").passed:
            return replace(found, where=f"{found.where}: as if {mistake}")
    return found


def _mistakes(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """(what went wrong, a subject whose textbook results are then ours)."""
    params = subject.host_params
    for gates, letters in _NAMES.items():
        for a, b in itertools.combinations(range(gates), 2):
            swapped = {
                name: _exchanged(p, a, b, gates) if _is_gated(params, name, gates) else p for name, p in params.items()
            }
            yield f"gates {letters[a]} and {letters[b]} were swapped", replace(subject, host_params=swapped)
    for kind in ("bias_ih", "bias_hh", "bias"):
        without = {name: 0 * p if kind in name else p for name, p in params.items()}
        yield f"{kind} were left out", replace(subject, host_params=without)
    twice = {name: 2 * p if "bias_ih" in name else 0 * p if "bias_hh" in name else p for name, p in params.items()}
    yield "bias_ih were taken for both biases", replace(subject, host_params=twice)


def _is_gated(params: dict[str, Host], name: str, gates: int) -> bool:
    """Whether a parameter's rows are those of so many gates."""
    prefix, found, end = name.rpartition("_l")
    first = prefix.rpartition(".")[0]
    recurrent = params.get(f"{first}.weight_hh_l{end}" if first else f"weight_hh_l{end}")
    return bool(found) and recurrent is not None and len(params[name]) == len(recurrent) == gates * recurrent.shape[1]


def _exchanged(p: Host, a: int, b: int, gates: int) -> Host:
    parts = np.split(p, gates, axis=0)
    parts[a], parts[b] = parts[b], parts[a]
    return np.concatenate(parts, axis=0)
