"""The types and the shape letters that every docstring uses.

==== =====================================================================
B    batch size: number of sequences (rows)
T    number of time steps
I    input features
H    hidden features
O    output features
L    ``num_layers * num_directions``
G    gates of a cell: 1 (Elman), 3 (GRU), 4 (LSTM)
==== =====================================================================

Arrays at the public edge are batch-first, (B, T, I). Inside they are feature-first, (T, I, B), with the
weights on the left as in the papers: ``a = Wx @ x + Wh @ h + b``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Array", "Lengths", "Marks", "Params", "Pullback", "State"]

# An array of any library that follows the array API standard. The standard's libraries share no base class, so
# static checking stops here and `checks.py` checks at run time.
Array: TypeAlias = Any

# Parameters by their torch state-dict name.
Params: TypeAlias = dict[str, Array]

# One array, a tuple of arrays (LSTM), a tuple of those (Sequential), or None for a layer without state.
State: TypeAlias = Any

# Number of valid steps of each row: host integers or an integer array of the model's library.
Lengths: TypeAlias = Sequence[int] | Array | None

# (dy, dstate=None) -> (dparams, dx, dstate)
Pullback: TypeAlias = Callable[..., tuple[Params, Array | None, State]]


class Marks(NamedTuple):
    """What marks the time axis of a batch.

    Attributes
    ----------
    lengths : integer array (B,), or None
        Valid steps of each row.
    resets : boolean array (B, T), or None
        Steps that start from a zero state: sequences that stand one after another in one row.
    """

    lengths: Array | None = None
    resets: Array | None = None
