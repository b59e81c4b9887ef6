"""What a compiled loop is made for and what it takes: words, most of them addresses, for each thread."""

from __future__ import annotations

from typing import NamedTuple

from ..graph.buffers import Place
from ..graph.instructions import Kernel, Product, Stages

__all__ = ["Form", "collected", "matrices_of", "panels_of", "words_of"]


class Form(NamedTuple):
    """What a loop depends on beside its stages.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Of a step of each input, and of what is the same at each step.
    booleans : set of str
        Which inputs, stacks, carries and workspaces are.
    dtype : "float32" or "float64"
    lanes : int
        Numbers in a vector: see `vector_lanes`.
    single : bool
        A batch of one column.
    by_rows : bool
        Threads share the rows of each stage, not the columns; there is no `RowSum` then.
    few : int
        So many columns are the whole batch for each thread, and products take vectors of rows; or 0.
    own_sums : bool
        Each thread adds up the sums over time of its own columns, elsewhere. Otherwise each adds up some of their rows.
    """

    shapes: dict[str, tuple[int, ...]]
    booleans: set[str]
    dtype: str
    lanes: int
    single: bool
    by_rows: bool
    few: int
    own_sums: bool


def words_of(stages: Stages) -> list[str]:
    """The names of the words that the loop of `stages` takes, in their order.

    Those that are set for each call come first, up to "reverse": what it reads, its stacks and its sums. All of them:

    - "steps", "reverse", "batch"; "first" and "width", the thread's columns; "part" and "parts", which share of rows
      is its own, where they are shared; "counter", the address of a word that is 0; "capacity", how many columns are
      taken together for the sums over time, a multiple of the batch, or with `own_sums` of "width";
    - for an input over time: "x0", its address; "x0_step", the distance of two steps; "x0_row", that of two rows. If
      "x0_apart" is not 0, its columns are not side by side, "x0_row" is the distance of two columns, and a step is
      transposed to "x0_buffer";
    - for a stack "y0", and for what is the same at each step "s0" and "h0", the address;
    - for the left side of a product "s0_panels_of", its address, "s0_panels_row" and "s0_panels_column", the distances
      of its rows and columns, of which one is 1, and "s0_panels", where it is laid out; of a transposed one "s0_T_...";
    - for each carry "c0", and two buffers "n0" and "m0";
    - for workspace "w0"; for the terms "left0" and "right0", where columns are collected, and "sum0".

    The addresses "x0", "y0", "s0", "h0", "c0", "n0", "m0" are of the thread's first column. "w0" and "x0_buffer" are
    its own, but with `by_rows` all share "w0"; "left0", "right0" and "sum0" are with `own_sums`. Distances are numbers.
    """
    names = dict.fromkeys(["steps", "reverse", "batch", "first", "width", "part", "parts", "counter", "capacity"])
    arrays: dict[str, None] = {}
    for stage in stages.stages:
        if isinstance(stage, Kernel):
            arrays |= dict.fromkeys(stage.arrays())
        else:
            arrays |= {
                place.base: None for place in (stage.right if isinstance(stage, Product) else stage.x, stage.out)
            }
    for left, transposed, _, _ in matrices_of(stages):
        panels = panels_of(left, transposed)
        names |= dict.fromkeys([panels, f"{panels}_of", f"{panels}_row", f"{panels}_column"])
    for term in stages.terms:
        arrays |= dict.fromkeys(place.base for place in (term.left, term.right) if place is not None)
    for k, end in enumerate(stages.ends):
        arrays |= {f"c{k}": None, end: None} | ({f"m{k}": None} if end == f"n{k}" else {})
    for array in arrays:
        names[array] = None
        if array[0] == "x":
            names |= dict.fromkeys([f"{array}_{word}" for word in ("step", "row", "apart", "buffer")])
    for kind in ("left", "right"):
        names |= dict.fromkeys(f"{kind}{k}" for k in range(len(collected(stages, kind))))
    names |= dict.fromkeys(f"sum{k}" for k in range(len(stages.terms)))
    return sorted(names, key=_rank)


def _rank(word: str) -> tuple[int, int]:
    """Where a word stands in their order."""
    letters = word.rstrip("0123456789")
    if word.endswith("_of") or letters in ("x", "s", "h", "c"):
        return 0, 0
    groups = ("y", "sum", "steps", "reverse")
    return (1 + groups.index(letters), int(word[len(letters) :] or 0)) if letters in groups else (len(groups) + 1, 0)


def matrices_of(stages: Stages) -> list[tuple[str, bool, int, int]]:
    """The left sides of the products: matrix, whether it is transposed from that, rows, columns."""
    products = [stage for stage in stages.stages if isinstance(stage, Product)]
    return list(dict.fromkeys((p.left, p.transposed, p.out.rows, p.right.rows) for p in products))


def collected(stages: Stages, kind: str) -> list[Place]:
    """What is collected of each step, for the left or the right sides of the terms."""
    places = [term.left if kind == "left" else term.right for term in stages.terms]
    return list(dict.fromkeys(place for place in places if place is not None))


def panels_of(matrix: str, transposed: bool) -> str:
    """The word for the panels of a product's left side."""
    return f"{matrix}{'_T' if transposed else ''}_panels"
