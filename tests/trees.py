"""Nests of arrays: dicts, tuples, named tuples, lists, and None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def mapped(function: Callable[..., Any], *trees: Any) -> Any:
    """The nest of what `function` gives for the corresponding leaves of `trees`."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, dict):
        return {key: mapped(function, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, (tuple, list)):
        parts = [mapped(function, *branches) for branches in zip(*trees, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return function(*trees)


def flat(tree: Any) -> list[np.ndarray]:
    """The leaves; those of a dict by name, which is the order JAX puts them in."""
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in flat(tree[name])]
    if isinstance(tree, (tuple, list)):
        return [leaf for branch in tree for leaf in flat(branch)]
    return [np.asarray(tree)]


def inner(left: Any, right: Any) -> float:
    """The sum of the products of two nests' entries."""
    pairs = zip(flat(left), flat(right), strict=True)
    return float(sum(np.sum(a * b, dtype=np.float64) for a, b in pairs))


def relative_error(got: Any, expected: Any) -> float:
    """The largest error of any array, relative to that array's largest entry.

    An array that is small beside the others is a sum that nearly cancelled: its scale is a thousandth of theirs.
    """
    got, expected = flat(got), flat(expected)
    assert [a.shape for a in got] == [b.shape for b in expected]
    largest = max((float(np.max(np.abs(b))) for b in expected), default=0.0)
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        assert np.all(np.isfinite(a))
        scale = max(float(np.max(np.abs(b))), 1e-3 * largest) or 1.0
        worst = max(worst, float(np.max(np.abs(a - b))) / scale)
    return worst
