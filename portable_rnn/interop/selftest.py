"""The numeric test that every conversion has to pass: the source and the result on the same random input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import leaves
from ..errors import ConversionError, InputError
from ..layers import Embedding, Layer, Masked
from .common import HostParams, Piece, assemble

__all__ = ["LENGTHS", "TOLERANCES", "Trial", "check_chain", "check_piece", "difference", "random_input"]

Host = np.ndarray[Any, Any]

BATCH = 3
LENGTHS = (1, 6)
# By the dtype that the source computes in, relative to the largest output. Between right and wrong lie many orders of
# magnitude; float32 sums of a deep network are allowed to lose a few digits.
TOLERANCES = {"float64": 1e-9, "float32": 2e-4, "float16": 3e-2, "bfloat16": 0.2}


@dataclass(frozen=True)
class Trial:
    """What a source can be run on.

    Attributes
    ----------
    batch : int
    lengths : tuple of int or None
        Numbers of time steps, one after another; None for input without a time axis.
    features : int, optional
        Where the network takes any number.
    empty_rows : bool
        Whether a row may be masked throughout.
    """

    batch: int = BATCH
    lengths: tuple[int | None, ...] = LENGTHS
    features: int | None = None
    empty_rows: bool = True

    def inputs(self, network: Layer, rng: np.random.Generator) -> Iterator[tuple[str, Host]]:
        """(a few words, the input) of each run."""
        for steps in self.lengths:
            x = random_input(network, self.batch, steps, rng, features=self.features, empty_rows=self.empty_rows)
            yield self.words(steps), x

    @staticmethod
    def words(steps: int | None) -> str:
        """How long the input is."""
        return "no time axis" if steps is None else f"{steps} time steps"


ANY = Trial()


def random_input(
    network: Layer,
    batch: int,
    steps: int | None,
    rng: np.random.Generator,
    *,
    features: int | None = None,
    empty_rows: bool = True,
) -> Host:
    """Input for a network: (B, T, features), or integers (B, T); masked steps among them where it masks any.

    Without steps it is (B, features).

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> random_input(prnn.LSTM(3, 5), 2, 4, np.random.default_rng(0)).shape
    (2, 4, 3)
    """
    first, masked = network, None
    while inside := list(first.children().values()):
        masked = first if isinstance(first, Masked) else masked
        first = inside[0]
    if isinstance(first, Embedding):
        x: Host = rng.integers(0, first.num_embeddings, (batch, steps or 1))
    else:
        # of few digits, so that a source in float32 is given the same numbers
        leading = (batch,) if steps is None else (batch, steps)
        x = rng.standard_normal((*leading, network.in_width or features or 4)).astype("float32").astype("float64")
    if masked is not None and steps is not None:
        hidden = rng.random((batch, steps)) < 0.4
        # the first row is masked throughout; with one or two steps, not at all
        hidden[0, :] = empty_rows and steps > 2
        hidden[:, -1] &= empty_rows
        x[hidden] = masked.value
    return x


def difference(got: Any, expected: Any, where: str) -> tuple[float, str]:
    """The largest relative difference of two nests of arrays, and a sentence that says where it is.

    Examples
    --------
    >>> import numpy as np
    >>> difference(np.array([1.0, 2.5]), np.array([1.0, 2.0]), "y")
    (0.25, 'y[1] is 2.5, the source has 2')
    """
    ours, theirs = list(leaves(got)), list(leaves(expected))
    if len(ours) != len(theirs):
        return float("inf"), f"{where} has {len(ours)} arrays, the source's has {len(theirs)}"
    worst, sentence = 0.0, f"{where} is equal"
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        name = where if len(ours) == 1 else f"{where}[{k}]"
        if a.shape != b.shape:
            return float("inf"), f"{name} has shape {a.shape}, the source's {b.shape}"
        if not a.size:
            continue
        off = np.abs(a.astype("float64") - b.astype("float64"))
        scale = max(float(np.max(np.abs(b))), 1e-6)
        largest = float(np.max(off)) / scale
        if not np.isfinite(largest):
            largest, off = float("inf"), np.where(np.isfinite(off), 0.0, 1.0)
        if largest > worst:
            index = np.unravel_index(int(np.argmax(off)), off.shape)
            place = ", ".join(str(int(i)) for i in index)
            worst, sentence = largest, f"{name}[{place}] is {float(a[index]):.6g}, the source has {float(b[index]):.6g}"
            sentence = sentence if largest > 1e-4 else f"largest at {name}[{place}]"
    return worst, sentence


def check_piece(piece: Piece, dtype: str, *, with_state: bool = False, trial: Trial = ANY) -> float:
    """Run a piece and its source, each alone, on random input and, if asked for, a random initial state.

    Raises
    ------
    ConversionError
        They differ.
    """
    assert piece.run is not None
    rng = np.random.default_rng(0)
    worst = 0.0
    for length, x in trial.inputs(piece.layer, rng):
        y, final = piece.layer.apply(as_float64(piece.params), x)
        if with_state:
            state = _random_like(final, rng)
            got: Any = piece.layer.apply(as_float64(piece.params), x, state)
            expected = piece.run(x, state)
        else:
            got, expected = y, piece.run(x)
        found, sentence = difference(got, expected, "y and state" if with_state else "y")
        refuse_if_wrong(found, sentence, dtype, f"{piece.name!r} with {length}")
        worst = max(worst, found)
    return worst


def check_chain(pieces: Sequence[Piece], run: Callable[[Host], Host], dtype: str, trial: Trial = ANY) -> float:
    """Run all pieces, one after another, and the whole source on random input; the largest relative difference.

    Raises
    ------
    ConversionError
        They differ.
    """
    worst, sentence, length = chain_difference(pieces, run, trial)
    refuse_if_wrong(worst, sentence, dtype, f"the whole chain with {length}")
    return worst


def chain_difference(
    pieces: Sequence[Piece], run: Callable[[Host], Host], trial: Trial = ANY
) -> tuple[float, str, str]:
    """(largest relative difference, where, on how long an input) of the whole chain."""
    network, params = assemble(pieces)
    rng = np.random.default_rng(1)
    worst = (0.0, "y is equal", trial.words(trial.lengths[-1]))
    for length, x in trial.inputs(network, rng):
        y, _ = network.apply(as_float64(params), x)
        found, sentence = difference(y, run(x), "y")
        worst = max(worst, (found, sentence, length), key=lambda item: item[0])
    return worst


def refuse_if_wrong(found: float, sentence: str, dtype: str, where: str) -> None:
    """Raise ConversionError where a relative difference is too large for the dtype."""
    if not found <= TOLERANCES[dtype]:
        raise ConversionError(
            f"the conversion of {where} does not give the source's outputs: the largest relative difference is "
            f"{found:.2g} ({sentence}), allowed is {TOLERANCES[dtype]:.0e} in {dtype}"
        )


def coarsest(dtypes: Collection[str]) -> str:
    """The dtype with the largest tolerance.

    Examples
    --------
    >>> coarsest({"float32", "float64"})
    'float32'
    """
    if not set(dtypes) <= set(TOLERANCES):
        raise InputError(f"the source computes in {', '.join(sorted(dtypes))}: expected {', '.join(TOLERANCES)}")
    return max(dtypes, key=lambda name: TOLERANCES[name])


def passed(worst: float, dtype: str, trial: Trial = ANY) -> str:
    """The sentence for the passport."""
    lengths = ", ".join(str(n) for n in trial.lengths if n is not None)
    where = f"at {lengths} time steps" if lengths else "on input without a time axis"
    return f"outputs equal the source's in {dtype} {where}: largest relative difference {worst:.1e}"


def as_float64(params: HostParams) -> HostParams:
    """The parameters widened, which is exact."""
    return {name: value.astype("float64") for name, value in params.items()}


def _random_like(tree: Any, rng: np.random.Generator) -> Any:
    if isinstance(tree, tuple):
        return tuple(_random_like(part, rng) for part in tree)
    return None if tree is None else rng.standard_normal(tree.shape)
