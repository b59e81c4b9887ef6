"""Nests of tuples and dicts as their leaves and a structure that is hashable."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["builder", "flattened", "rebuilt"]


def flattened(tree: Any, into: list[Any]) -> Any:
    """Append the leaves of a nest of tuples and dicts; return its structure, which is hashable."""
    if tree is None:
        return None
    kind: type = type(tree)
    names: Any
    branches: Any
    if isinstance(tree, dict):
        kind, names, branches = dict, tuple(tree), tree.values()
    elif isinstance(tree, tuple):
        names, branches = len(tree), tree
    else:
        into.append(tree)
        return True
    parts: list[Any] = []
    for branch in branches:  # most are leaves, for which a call would take longer than all the rest
        if branch is None or isinstance(branch, (tuple, dict)):
            parts.append(flattened(branch, into))
        else:
            into.append(branch)
            parts.append(True)
    return (kind, names, tuple(parts))


def rebuilt(structure: Any, leaves: Sequence[Any]) -> Any:
    """The nest of a structure around new leaves."""
    return builder(structure)(leaves)


@functools.lru_cache(maxsize=512)
def builder(structure: Any) -> Callable[[Sequence[Any]], Any]:
    """The function that puts leaves together as a nest of a structure."""
    numbers = itertools.count()
    known: dict[str, Any] = {}

    def name_of(value: Any) -> str:
        if isinstance(value, str):
            return repr(value)
        known[f"known{len(known)}"] = value
        return f"known{len(known) - 1}"

    def written(structure: Any) -> str:
        if structure is None:
            return "None"
        if structure is True:
            return f"leaves[{next(numbers)}]"
        kind, names, branches = structure
        parts = [written(branch) for branch in branches]
        if kind is dict:
            pairs = zip(names, parts, strict=True)
            return f"{{{', '.join(f'{name_of(name)}: {part}' for name, part in pairs)}}}"
        inside = "".join(f"{part}, " for part in parts)
        if kind is tuple:
            return f"({inside})"
        return f"{name_of(kind)}({inside})" if hasattr(kind, "_fields") else f"{name_of(kind)}(({inside}))"

    build: Callable[[Sequence[Any]], Any] = eval(f"lambda leaves: {written(structure)}", known)
    return build
