"""What a loop's program depends on: the form of its arguments; and the programs that were made, by that form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from ...arrays import Array
from .pytrees import PyTree, Structure, builder, flattened, reader
from .trace import Graph, Shape, Step, Untraceable, trace

__all__ = ["Arguments", "DType", "Form", "Leaves", "Program", "Programs", "Results", "recorded"]

_FORMS = 8  # of arguments, whose programs are found fast
_MOST_FORMS = 64  # whose programs are kept

Leaves: TypeAlias = tuple[list[Array], list[Array], list[Array]]  # of carry, xs and shared
Structures: TypeAlias = tuple[Structure, Structure, Structure]
DType: TypeAlias = object  # of any library
Form: TypeAlias = tuple[tuple[tuple[Shape, DType], ...], ...]  # of each leaf of carry, xs and shared, at one step


class Results(NamedTuple):
    """What a program gives: the leaves of the final carry, the outputs over time, and the sums over time or None."""

    carry: list[Array]
    outputs: PyTree
    sums: PyTree = None


class Program(Protocol):
    """A time loop for arguments of one form."""

    def run(
        self, xp: ModuleType, carry: list[Array], xs: list[Array], shared: list[Array], *, reverse: bool
    ) -> Results:
        """Run it over the leaves of its arguments."""


Made = TypeVar("Made")


class Arguments:
    """The leaves of a scan's arguments, and what its program depends on.

    Attributes
    ----------
    leaves : lists of the arrays of carry, xs and shared
    structures : their structures, as from `pytrees.flattened`
    form : tuple of tuples of (shape of a step, dtype)
    hindrance : str or None
        Why there can be no program.
    """

    def __init__(self, step: object, carry: PyTree, xs: PyTree, shared: PyTree) -> None:
        first: list[Array] = []
        over_time: list[Array] = []
        same: list[Array] = []
        self.leaves: Leaves = (first, over_time, same)
        self.structures: Structures = (flattened(carry, first), flattened(xs, over_time), flattened(shared, same))
        self.hindrance: str | None = None
        self.form: Form = ()
        if list in map(type, over_time):
            self.hindrance = "an input over time is a list"
        elif not _hashable(step):  # its program could not be found again
            self.hindrance = "the step has no hash"
        else:
            self.form = (
                tuple([(leaf.shape, leaf.dtype) for leaf in first]),
                tuple([(leaf.shape[1:], leaf.dtype) for leaf in over_time]),
                tuple([(leaf.shape, leaf.dtype) for leaf in same]),
            )


class Found(NamedTuple, Generic[Made]):
    """A program, or None, with what takes its arguments apart and puts its carry together."""

    program: Made | None
    build_carry: Callable[[list[Array]], PyTree]
    leaves: Leaves


class Programs(Generic[Made]):
    """The programs of a step for arguments of several forms, the last used first.

    Parameters
    ----------
    make : callable
        ``make(structures, form)``, as of `Arguments`, gives a program, or None.
    """

    def __init__(self, make: Callable[[Structures, Form], Made | None]) -> None:
        self._make = functools.lru_cache(maxsize=_MOST_FORMS)(make)
        self._known: list[tuple[Callable[..., Leaves | None], Made | None, Callable[[list[Array]], PyTree]]] = []

    def find(self, carry: PyTree, xs: PyTree, shared: PyTree) -> Found[Made] | None:
        """The program for arguments whose form is known, else None."""
        for known in self._known:
            read, program, build = known
            leaves = read(carry, xs, shared)
            if leaves is not None:
                if known is not self._known[0]:
                    self._put_first(known)
                return Found(program, build, leaves)
        return None

    def add(self, given: Arguments) -> Found[Made]:
        """The program for arguments of a form that is not known."""
        program, build = self.program(given), builder(given.structures[0])
        self._put_first((reader(given.structures, given.form, (0, 1, 0)), program, build))
        return Found(program, build, given.leaves)

    def program(self, given: Arguments) -> Made | None:
        """The program for arguments of this form, or None."""
        return self._make(given.structures, given.form)

    def _put_first(
        self, known: tuple[Callable[..., Leaves | None], Made | None, Callable[[list[Array]], PyTree]]
    ) -> None:
        self._known = [known, *(other for other in self._known if other is not known)][:_FORMS]


def recorded(xp: ModuleType, step: Step, structures: Structures, form: Form, *, summing: bool) -> Graph:
    """The graph of a step for such arguments.

    Raises
    ------
    Untraceable
    """
    floating = form[0][0][1]
    if floating not in (xp.float32, xp.float64):
        raise Untraceable("a loop that is not of float32 or float64")
    if any(dtype not in (floating, xp.bool) for leaves in form for _, dtype in leaves):
        raise Untraceable("arrays of several dtypes")
    specs = [[(tuple(shape), dtype != floating) for shape, dtype in leaves] for leaves in form]
    return trace(step, specs, structures, summing=summing)


def _hashable(step: object) -> bool:
    try:
        hash(step)
    except TypeError:
        return False
    return True
