"""What every conversion shares: named pieces, the model made of them, and its passport."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import Array, Backend, asarray
from ..errors import InputError, MissingDependencyError, printable
from ..layers import Ends, Last, Layer, Max, Mean, Sequential
from ..models import Model, not_finite

__all__ = [
    "POOLINGS",
    "Piece",
    "Source",
    "assemble",
    "first_line",
    "model_of",
    "name_of_type",
    "refuse_not_finite",
    "refuse_options",
    "require",
]

POOLINGS: dict[str, Callable[[], Layer]] = {"last": Last, "ends": Ends, "mean": Mean, "max": Max}
# Options that say how to start or how to compute, not what
_ONLY_HERE = ("initializer", "recompute_every")
HostParams = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Piece:
    """A layer that came from somewhere.

    Attributes
    ----------
    name : str
        What its source is called there.
    layer : Layer
    params : dict of str to NumPy array
        Named as the layer names them.
    run : callable, optional
        The source itself, from a NumPy array to one, or to (y, state).
    """

    name: str
    layer: Layer
    params: HostParams
    run: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Source:
    """Where a model came from, for its passport.

    Attributes
    ----------
    framework, version, kind : str
        Such as "torch", "2.6.0" and "LSTM".
    notes : tuple of str
        What differs: the layout of the input, what training does not carry over.
    """

    framework: str
    version: str
    kind: str
    notes: tuple[str, ...] = ()


def require(package: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Raises
    ------
    MissingDependencyError
        It is not installed.

    Examples
    --------
    >>> require("json", "none", "this example").__name__
    'json'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.partition(".")[0]:
            raise
        raise MissingDependencyError(package.partition(".")[0], extra, purpose) from error


def tensor_to_host(torch: ModuleType, tensor: Any) -> np.ndarray[Any, Any]:
    """A copy of a tensor on the host, float32 where NumPy lacks the dtype."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    host: np.ndarray[Any, Any] = tensor.numpy().copy()
    return host


def name_of_type(value: Any) -> str:
    """The class with its library, such as "torch LayerNorm".

    Examples
    --------
    >>> name_of_type(1.5)
    'float'
    """
    cls = type(value)
    library = cls.__module__.partition(".")[0]
    return cls.__name__ if library in ("builtins", "__main__") else f"{library} {cls.__name__}"


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def first_line(error: BaseException) -> str:
    """What another library's exception says, in at most a line; without the colours that some write.

    Examples
    --------
    >>> first_line(ValueError("\\x1b[1mshapes differ.\\x1b[0m\\nmore"))
    'shapes differ'
    """
    text = _COLOURS.sub("", str(error)).strip() or type(error).__name__
    return printable(text.splitlines()[0].rstrip("."))


def refuse_options(layer: Layer, supported: Collection[str], framework: str, where: str = "") -> None:
    """Raise InputError where a layer uses an option that a framework's has no counterpart of.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> refuse_options(prnn.RNN(1, 2, clip=3.0), {"input_size", "hidden_size"}, "torch")
    Traceback (most recent call last):
    portable_rnn.errors.InputError: RNN(1, 2, clip=3.0): torch's RNN has no clip=3.0
    """
    for option in dataclasses.fields(layer):
        value = getattr(layer, option.name)
        if option.name not in (*supported, *_ONLY_HERE) and value != option.default:
            raise InputError(f"{where}{layer}: {framework}'s {type(layer).__name__} has no {option.name}={value!r}")


def refuse_not_finite(params: HostParams) -> None:
    """Raise InputError where a parameter holds NaN or an infinity, and name it.

    Examples
    --------
    >>> refuse_not_finite({"weight": np.array([1.0, np.nan])})
    Traceback (most recent call last):
    portable_rnn.errors.InputError: parameter 'weight' holds 1 NaN or infinite values, the first at index (1,): ...
    """
    for name, what in not_finite(params).items():
        raise InputError(
            f"parameter {name!r} holds {what}: expected finite weights; take those saved before the training that lost "
            "them"
        )


def assemble(pieces: Sequence[Piece]) -> tuple[Layer, HostParams]:
    """One network and its parameters: the layer itself where there is one only, else a `Sequential`."""
    if not pieces:
        raise InputError("there is nothing to convert: the source has no layers")
    if len(pieces) == 1:
        return pieces[0].layer, dict(pieces[0].params)
    params = {f"{k}.{name}": value for k, piece in enumerate(pieces) for name, value in piece.params.items()}
    return Sequential(*(piece.layer for piece in pieces)), params


def model_of(
    pieces: Sequence[Piece],
    source: Source,
    check: str,
    backend: str | ModuleType | Array | Backend,
    dtype: Any,
) -> Model:
    """The model of a checked conversion; its dtype is the parameters' where `dtype` is None."""
    network, params = assemble(pieces)
    network.check_params(params)
    refuse_not_finite(params)
    if dtype is None and not isinstance(backend, Backend):
        kinds = {value.dtype.name for value in params.values()}
        dtype = "float64" if "float64" in kinds else "float32"
    model = Model(network, backend, dtype)
    model.params = {name: asarray(params[name].copy(), model.backend) for name in network.parameter_shapes()}
    model.metadata = {
        "source_framework": source.framework,
        "source_version": source.version,
        "source_type": source.kind,
        "conversion_check": check,
    }
    if source.notes:
        model.metadata["conversion_notes"] = printable("; ".join(source.notes), 4000)
    return model
