"""Pytrees of tuples and dicts as their leaves and a structure that is hashable."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, cast

from ...arrays import Array

Leaf = TypeVar("Leaf")

__all__ = ["PyTree", "Structure", "builder", "expression", "flattened", "reader", "rebuilt"]

# Arrays in tuples and dicts, and None. What a step takes and returns is the cell's own: static checking stops here.
PyTree: TypeAlias = Any


class Branch(NamedTuple):
    """The structure of a tuple or a dict: its type, the names of a dict, and the structures of what is in it."""

    kind: type
    names: tuple[str, ...]
    branches: tuple[Structure, ...]


Structure: TypeAlias = "Branch | Literal[True] | None"  # True for a leaf
Known: TypeAlias = dict[str, object]  # what source code refers to


def flattened(tree: PyTree, into: list[Array]) -> Structure:
    """Append the leaves of a tree; return its structure, which is hashable."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return Branch(dict, tuple(tree), tuple([flattened(branch, into) for branch in tree.values()]))
    if isinstance(tree, tuple):
        return Branch(type(tree), (), tuple([flattened(branch, into) for branch in tree]))
    into.append(tree)
    return True


def rebuilt(structure: Structure, leaves: Sequence[Leaf]) -> PyTree:
    """The tree of a structure around new leaves."""
    return builder(structure)(leaves)


@functools.lru_cache(maxsize=512)
def builder(structure: Structure) -> Callable[[Sequence[Leaf]], PyTree]:
    """The function that puts leaves together as the tree of a structure."""
    known: Known = {}
    text = expression(structure, (f"leaves[{k}]" for k in itertools.count()), known)
    build: Callable[[Sequence[Leaf]], PyTree] = eval(f"lambda leaves: {text}", known)
    return build


def expression(structure: Structure, leaves: Iterator[str], known: Known) -> str:
    """The tree of a structure as an expression of Python, of those of its leaves; what it names is put into `known`."""
    if structure is None:
        return "None"
    if structure is True:
        return next(leaves)
    kind, names, branches = structure
    parts = [expression(branch, leaves, known) for branch in branches]
    if kind is dict:
        pairs = zip(names, parts, strict=True)
        return f"{{{', '.join(f'{_named(name, known)}: {part}' for name, part in pairs)}}}"
    inside = "".join(f"{part}, " for part in parts)
    if kind is tuple:
        return f"({inside})"
    return f"{_named(kind, known)}({inside})" if hasattr(kind, "_fields") else f"{_named(kind, known)}(({inside}))"


def reader(
    structures: Sequence[Structure], forms: Sequence[Sequence[tuple[tuple[int, ...], object]]], skipped: Sequence[int]
) -> Callable[..., tuple[list[Array], list[Array], list[Array]] | None]:
    """A function of trees of these structures and forms, which returns their leaves, a list for each.

    It returns None where the trees are others: asking this takes less time than taking any tree apart. A form is the
    (shape, dtype) of each leaf, of whose axes so many are skipped.
    """
    known: Known = {}
    lines: list[str] = []
    numbers = itertools.count()

    def read(structure: Structure, tree: str, into: list[str]) -> None:
        if structure is None:
            lines.append(f"if {tree} is not None: return None")
            return
        if structure is True:
            into.append(tree)
            return
        kind, names, branches = structure
        if kind is dict:
            wanted = f"[{', '.join(_named(name, known) for name in names)}]"
            lines.append(f"if type({tree}) is not dict or [*{tree}] != {wanted}: return None")
            tree += ".values()"
        else:
            lines.append(f"if type({tree}) is not {_named(kind, known)} or len({tree}) != {len(branches)}: return None")
        parts = [f"part{next(numbers)}" for _ in branches]
        lines.extend(f"{''.join(f'{part}, ' for part in parts)}= {tree}" for _ in parts[:1])
        for branch, part in zip(branches, parts, strict=True):
            read(branch, part, into)

    trees = [f"tree{k}" for k in range(len(structures))]
    groups: list[list[str]] = [[] for _ in trees]
    for structure, tree, group, form, axes in zip(structures, trees, groups, forms, skipped, strict=True):
        read(structure, tree, group)
        for leaf, (shape, dtype) in zip(group, form, strict=True):
            own = f"{leaf}.shape[{axes}:]" if axes else f"{leaf}.shape"
            lines.append(f"if {own} != {tuple(shape)!r} or {leaf}.dtype != {_named(dtype, known)}: return None")
    found = ", ".join(f"[{', '.join(group)}]" for group in groups)
    body = "\n".join(f"        {line}" for line in [*lines, f"return {found}"])
    no_array = "    except AttributeError:\n        return None"
    text = f"def read({', '.join(trees)}):\n    try:\n{body}\n{no_array}"
    exec(text, known)
    return cast(Callable[..., tuple[list[Array], list[Array], list[Array]] | None], known["read"])


def _named(value: object, known: Known) -> str:
    """An expression of a value, which is put into `known` under a name where it has none of its own."""
    if isinstance(value, str):
        return repr(value)
    if value is tuple:
        return "tuple"
    name = f"known{len(known)}"
    known[name] = value
    return name
