"""Initial weights: functions of a host generator and a shape, and schemes for a whole recurrent layer.

Everything is drawn by NumPy on the host, so a seed gives the same numbers on every library. A matrix is (rows of
gates, features), as in torch.

Sources
-------
Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural networks. Saxe, McClelland
and Ganguli (2013), arXiv:1312.6120, orthogonal matrices. Le, Jaitly and Hinton (2015), arXiv:1504.00941, the IRNN.
Gers, Schmidhuber and Cummins (2000) and Jozefowicz, Zaremba and Sutskever (2015), the bias of the forget gate.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from ..arrays import named
from ..errors import InputError

__all__ = [
    "SCHEMES",
    "InitializerName",
    "Scheme",
    "draw",
    "glorot_uniform",
    "identity",
    "orthogonal",
    "scheme",
    "uniform",
]

HostArray = np.ndarray[Any, Any]
Shape = tuple[int, ...]


def uniform(rng: np.random.Generator, shape: Shape, bound: float) -> HostArray:
    """Entries from U(-bound, bound).

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
    bound : float
        Torch takes 1 / sqrt(hidden_size) for every parameter of a recurrent layer.

    Examples
    --------
    >>> import numpy as np
    >>> bool(np.abs(uniform(np.random.default_rng(0), (8, 3), 0.5)).max() < 0.5)
    True
    """
    return rng.uniform(-bound, bound, shape)


def glorot_uniform(rng: np.random.Generator, shape: Shape) -> HostArray:
    """Entries from U(-r, r) with ``r = sqrt(6 / (rows + columns))``.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of two int
        Of the whole matrix, all gates together, as in Keras.

    Examples
    --------
    >>> import numpy as np
    >>> bool(np.abs(glorot_uniform(np.random.default_rng(0), (16, 8))).max() < 0.5)
    True
    """
    return uniform(rng, shape, math.sqrt(6 / sum(shape)))


def orthogonal(rng: np.random.Generator, shape: Shape) -> HostArray:
    """A random matrix with orthonormal columns, or rows where it has more columns than rows.

    It is the orthogonal factor of a Gaussian matrix, its signs chosen so that it is uniformly distributed. Of several
    gates the whole (G * H, H) is drawn at once, as in Keras: ``W.T @ W`` is the identity.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of two int

    Examples
    --------
    >>> import numpy as np
    >>> W = orthogonal(np.random.default_rng(0), (8, 3))
    >>> bool(np.allclose(W.T @ W, np.eye(3)))
    True
    """
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return q if rows >= columns else q.T


def identity(rng: np.random.Generator, shape: Shape) -> HostArray:
    """The identity for every gate: (H, H), or G of them one above the other (G * H, H). Draws nothing.

    Parameters
    ----------
    rng : numpy.random.Generator
        Not used.
    shape : tuple of two int

    Raises
    ------
    InputError
        The rows are no multiple of the columns.

    Examples
    --------
    >>> identity(None, (2, 2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    rows, columns = shape
    if rows % columns:
        raise InputError(f"the identity needs square gates, got a matrix of shape {tuple(shape)}")
    return np.tile(np.eye(columns), (rows // columns, 1))


def _small_normal(rng: np.random.Generator, shape: Shape) -> HostArray:
    return rng.normal(0.0, 0.001, shape)


# ---------------------------------------------------------------------- schemes

# "uniform" is the one whose bound the layer's size gives
_MATRICES: dict[str, Callable[[np.random.Generator, Shape], HostArray] | None] = {
    "uniform": None,
    "glorot_uniform": glorot_uniform,
    "orthogonal": orthogonal,
    "identity": identity,
    "small_normal": _small_normal,
}


@dataclass(frozen=True)
class Scheme:
    """How the parameters of a recurrent layer are drawn.

    Attributes
    ----------
    input : str
        For ``weight_ih``, and every matrix but ``weight_hh``: "uniform" (U(-1 / sqrt(H), 1 / sqrt(H))),
        "glorot_uniform", "orthogonal", "identity" or "small_normal" (standard deviation 0.001).
    recurrent : str
        For ``weight_hh``, one of the same.
    bias : str
        For the biases, and all that is no matrix: "uniform" or "zeros".
    forget_bias : float, optional
        The bias of the forget gate, where a cell has one: ``bias_ih`` is set to it and ``bias_hh`` to zero, so that
        it is their sum. None leaves the two as they were drawn.
    """

    input: str = "uniform"
    recurrent: str = "uniform"
    bias: str = "uniform"
    forget_bias: float | None = None


SCHEMES: dict[str, Scheme] = {
    "torch": Scheme(),
    "keras": Scheme("glorot_uniform", "orthogonal", "zeros", 1.0),
    "irnn": Scheme("small_normal", "identity", "zeros"),
}


@functools.lru_cache(maxsize=256)
def scheme(spec: str) -> Scheme:
    """Look a scheme up by its name, with parts of it replaced in brackets.

    Parameters
    ----------
    spec : str
        "torch", all parameters from U(-1 / sqrt(H), 1 / sqrt(H)); "keras", glorot_uniform and orthogonal matrices, zero
        biases, 1 for the forget gate; "irnn", the identity and N(0, 0.001**2), for an `RNN` with relu. Then, such as in
        "torch(recurrent=orthogonal, forget_bias=1)", what differs: `input`, `recurrent`, `bias` or `forget_bias`
        of `Scheme`.

    Raises
    ------
    InputError
        There is no such scheme, part or value.

    Examples
    --------
    >>> scheme("torch(recurrent=orthogonal, forget_bias=1)")
    Scheme(input='uniform', recurrent='orthogonal', bias='uniform', forget_bias=1.0)
    """
    found = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", spec) if isinstance(spec, str) else None
    if found is None or found[1] not in SCHEMES:
        raise InputError(f"unknown initializer {spec!r}: expected one of {', '.join(SCHEMES)}")
    changes: dict[str, Any] = {}
    for part in (found[2] or "").split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        allowed = ("uniform", "zeros") if key == "bias" else tuple(_MATRICES)
        if key in ("input", "recurrent", "bias") and value in allowed:
            changes[key] = value
        elif key == "forget_bias":
            try:
                changes[key] = float(value)
            except ValueError:
                changes[key] = math.nan
            if not math.isfinite(changes[key]):
                raise InputError(f"forget_bias of initializer {spec!r} must be a finite number")
        elif key in ("input", "recurrent", "bias"):
            raise InputError(f"{key} of initializer {spec!r} must be one of {', '.join(allowed)}")
        elif part.strip():
            raise InputError(
                f"initializer {spec!r} has no part {part.strip()!r}: expected input=, recurrent=, bias= or forget_bias="
            )
    return replace(SCHEMES[found[1]], **changes)


InitializerName = Annotated[str, named(scheme)]


def draw(
    rng: np.random.Generator,
    how: Scheme,
    shapes: Mapping[str, Shape],
    hidden_size: int,
    *,
    constants: Mapping[str, float] | None = None,
    forget_gate: int | None = None,
) -> dict[str, HostArray]:
    """Draw the parameters of a recurrent layer, in the order of `shapes`.

    Parameters
    ----------
    rng : numpy.random.Generator
    how : Scheme
    shapes : dict of str to tuple of int
        As `Layer.parameter_shapes` gives them.
    hidden_size : int
        H of the bound 1 / sqrt(H).
    constants : dict of str to float, optional
        First words of names (``gain``) of parameters that start at a constant, whatever the scheme.
    forget_gate : int, optional
        Which row block of the biases is the forget gate's.

    Examples
    --------
    >>> import numpy as np
    >>> draw(np.random.default_rng(0), scheme("keras"), {"bias_ih_l0": (8,)}, 2, forget_gate=1)["bias_ih_l0"].tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    bound = 1 / math.sqrt(hidden_size)
    drawn: dict[str, HostArray] = {}
    for name, shape in shapes.items():
        constant = next((value for start, value in (constants or {}).items() if name.startswith(start)), None)
        kind = how.bias if len(shape) < 2 else how.recurrent if name.startswith("weight_hh") else how.input
        function = _MATRICES.get(kind)
        if constant is not None:
            drawn[name] = np.full(shape, constant)
        elif kind == "zeros":
            drawn[name] = np.zeros(shape)
        else:
            drawn[name] = uniform(rng, shape, bound) if function is None else function(rng, shape)
        if how.forget_bias is not None and forget_gate is not None and name.startswith(("bias_ih", "bias_hh")):
            rows = slice(forget_gate * hidden_size, (forget_gate + 1) * hidden_size)
            drawn[name][rows] = how.forget_bias if name.startswith("bias_ih") else 0.0
    return drawn
