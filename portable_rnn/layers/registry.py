"""Which classes a model file may name: the library's own, and a user's once they are registered.

A file names a class of the library by its name, such as "LSTM", and a user's by its module and name, such as
"my_cells:LeakyCell". Reading a file looks names up here and nowhere else: no name in a file causes an import.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from ..cells import (
    ElmanCell,
    GRUCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    MinGRUCell,
    MinLSTMCell,
)
from ..errors import InputError, shown, unexpected
from .base import Layer
from .feedforward import Dropout, Embedding, Linear
from .more_recurrent import LayerNormGRU, LayerNormLSTM, MinGRU, MinLSTM
from .pooling import Last, Max, Mean
from .recurrent import GRU, LSTM, RNN, Recurrent, cell_methods_missing
from .sequential import Sequential
from .wrappers import Activation, Ends, Flip, Masked, Merge, SharedDropout, Softmax

__all__ = ["LIBRARY", "register", "registered", "registered_name"]

Class = TypeVar("Class", bound=type)

_RECURRENT = (RNN, LSTM, GRU, LayerNormLSTM, LayerNormGRU, MinGRU, MinLSTM, Recurrent)
_OTHERS = (Linear, Embedding, Last, Mean, Max, Dropout, SharedDropout, Activation, Softmax, Flip, Ends, Merge)
_CELLS = (ElmanCell, LSTMCell, GRUCell, LayerNormLSTMCell, LayerNormGRUCell, MinGRUCell, MinLSTMCell)
LIBRARY: dict[str, type] = {cls.__name__: cls for cls in (*_RECURRENT, *_OTHERS, Masked, Sequential, *_CELLS)}
_classes = dict(LIBRARY)
_names = {cls: name for name, cls in LIBRARY.items()}


def register(cls: Class, name: str | None = None) -> Class:
    """Let model files name a class of your own: a cell for `Recurrent`, or a layer.

    A program that loads such a file registers the class first, too.

    Parameters
    ----------
    cls : type
        A frozen dataclass with fields that JSON can hold, or other registered objects.
    name : str, optional
        What files call it; its module and name, "my_cells:LeakyCell", when left out. A class that has moved can be
        registered a second time, under the name that older files have.

    Returns
    -------
    type
        `cls`, so that this is a decorator too.

    Raises
    ------
    InputError
        It is not a dataclass, no layer and no cell, or the name is one of the library's.

    Examples
    --------
    >>> import dataclasses, portable_rnn as prnn
    >>> @prnn.register
    ... @dataclasses.dataclass(frozen=True)
    ... class LeakyCell(prnn.cells.ElmanCell):
    ...     leak: float = 0.1
    """
    fits = isinstance(cls, type) and dataclasses.is_dataclass(cls)
    if not fits or not (issubclass(cls, Layer) or not cell_methods_missing(cls)):
        raise unexpected(
            "cls", "a dataclass that is a layer or a cell", cls, "decorate it with @dataclass(frozen=True)"
        )
    name = f"{cls.__module__}:{cls.__qualname__}" if name is None else name
    if name in LIBRARY:
        raise unexpected("name", "a name that the library has no class for", name, "leave it out")
    _classes[name] = cls
    _names.setdefault(cls, name)
    return cls


def registered(name: Any) -> type:
    """The class that a file means by a name; InputError where there is none."""
    found = _classes.get(name) if isinstance(name, str) else None
    if found is not None:
        return found
    module, colon, qualified = name.partition(":") if isinstance(name, str) else ("", "", "")
    if colon:
        raise InputError(
            f"type: expected a registered class, got {shown(name)}: import {shown(module)[1:-1]} and call "
            f"prnn.register({shown(qualified.rpartition('.')[2])[1:-1]}) before loading"
        )
    raise InputError(
        f"type: expected a layer or cell that this version knows, got unknown layer {shown(name)}: upgrade "
        "portable-rnn, or the file is damaged"
    )


def registered_name(cls: type) -> str:
    """What a file calls a class; InputError where it is not registered."""
    if cls in _names:
        return _names[cls]
    known = ", ".join(LIBRARY)
    if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
        raise InputError(f"a layer of type {cls.__name__} can't be saved: only {known} can")
    raise InputError(
        f"network: expected layers and cells that a file can name, got a {cls.__name__}: call "
        f"prnn.register({cls.__name__}) before saving and before loading"
    )
