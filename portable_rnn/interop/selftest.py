"""The numeric test that every conversion has to pass: the source and the result on the same random input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from ..arrays import leaves
from ..errors import ConversionError, InputError
from ..layers import Embedding, Layer, Masked, Sequential
from .common import HostParams, Piece, assemble

__all__ = ["LENGTHS", "TOLERANCES", "check_chain", "check_piece", "difference", "random_input"]

Host = np.ndarray[Any, Any]

BATCH = 3
LENGTHS = (1, 6)
# By the dtype that the source computes in, relative to the largest output. Between right and wrong lie many orders of
# magnitude; float32 sums of a deep network are allowed to lose a few digits.
TOLERANCES = {"float64": 1e-9, "float32": 2e-4, "float16": 3e-2, "bfloat16": 0.2}


def random_input(network: Layer, batch: int, steps: int, rng: np.random.Generator) -> Host:
    """Input for a network: (B, T, features), or integers (B, T); masked steps among them where it masks any.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> random_input(prnn.LSTM(3, 5), 2, 4, np.random.default_rng(0)).shape
    (2, 4, 3)
    """
    first, masked = network, None
    while isinstance(first, (Sequential, Masked)):
        masked = first if isinstance(first, Masked) else masked
        first = first.layer if isinstance(first, Masked) else first.layers[0]
    if isinstance(first, Embedding):
        x: Host = rng.integers(0, first.num_embeddings, (batch, steps))
    else:
        # of few digits, so that a source in float32 is given the same numbers
        x = rng.standard_normal((batch, steps, _width(network) or 4)).astype("float32").astype("float64")
    if masked is not None:
        hidden = rng.random((batch, steps)) < 0.4
        hidden[0, :] = steps > 2  # a row that is masked throughout; with one or two steps, one that is not at all
        x[hidden] = masked.value
    return x


def _width(network: Layer) -> int | None:
    """Input features of the first layer that says so; those before it keep the number."""
    layers = network.layers if isinstance(network, Sequential) else (network,)
    found = (_width(layer) if isinstance(layer, Sequential) else layer.in_width for layer in layers)
    return next((width for width in found if width is not None), None)


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


def check_piece(piece: Piece, dtype: str, *, with_state: bool = False) -> float:
    """Run a piece and its source, each alone, on random input and, if asked for, a random initial state.

    Raises
    ------
    ConversionError
        They differ.
    """
    assert piece.run is not None
    rng = np.random.default_rng(0)
    worst = 0.0
    for steps in LENGTHS:
        x = random_input(piece.layer, BATCH, steps, rng)
        y, final = piece.layer.apply(as_float64(piece.params), x)
        if with_state:
            state = _random_like(final, rng)
            got: Any = piece.layer.apply(as_float64(piece.params), x, state)
            expected = piece.run(x, state)
        else:
            got, expected = y, piece.run(x)
        found, sentence = difference(got, expected, "y and state" if with_state else "y")
        refuse_if_wrong(found, sentence, dtype, f"{piece.name!r} with {steps} time steps")
        worst = max(worst, found)
    return worst


def check_chain(pieces: Sequence[Piece], run: Callable[[Host], Host], dtype: str) -> float:
    """Run all pieces, one after another, and the whole source on random input; the largest relative difference.

    Raises
    ------
    ConversionError
        They differ.
    """
    worst, sentence, steps = chain_difference(pieces, run)
    refuse_if_wrong(worst, sentence, dtype, f"the whole chain with {steps} time steps")
    return worst


def chain_difference(pieces: Sequence[Piece], run: Callable[[Host], Host]) -> tuple[float, str, int]:
    """(largest relative difference, where, at how many time steps) of the whole chain."""
    network, params = assemble(pieces)
    rng = np.random.default_rng(1)
    worst = (0.0, "y is equal", LENGTHS[-1])
    for steps in LENGTHS:
        x = random_input(network, BATCH, steps, rng)
        y, _ = network.apply(as_float64(params), x)
        found, sentence = difference(y, run(x), "y")
        worst = max(worst, (found, sentence, steps), key=lambda item: item[0])
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


def passed(worst: float, dtype: str) -> str:
    """The sentence for the passport."""
    lengths = ", ".join(map(str, LENGTHS))
    return f"outputs equal the source's in {dtype} at {lengths} time steps: largest relative difference {worst:.1e}"


def as_float64(params: HostParams) -> HostParams:
    """The parameters widened, which is exact."""
    return {name: value.astype("float64") for name, value in params.items()}


def _random_like(tree: Any, rng: np.random.Generator) -> Any:
    if isinstance(tree, tuple):
        return tuple(_random_like(part, rng) for part in tree)
    return None if tree is None else rng.standard_normal(tree.shape)
