"""Pytrees: dicts, tuples and lists of arrays, and None."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .typing import Array

__all__ = ["leaves", "map_leaves"]


def leaves(tree: Any) -> Iterator[Array]:
    """The arrays of a nest of tuples, lists and dicts, in order, without the Nones."""
    if tree is None:
        return
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        yield tree
        return
    for branch in tree:
        yield from leaves(branch)


def map_leaves(function: Any, tree: Any) -> Any:
    """The same nest of tuples, lists and dicts with `function` applied to every array."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: map_leaves(function, branch) for key, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        mapped = [map_leaves(function, branch) for branch in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    return function(tree)
