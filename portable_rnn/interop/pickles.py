"""A pickle machine that calls nothing: numbers, texts, lists, dicts, and names of what else there is.

Python's own unpickler calls what a file tells it to, and even one that is restricted to harmless names can be made to
allocate (``bytearray(10**10)``) or to hash a nested tuple for ever. This one builds plain values only, so what it costs
is bounded by the length of the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

from ..errors import InputError

__all__ = ["Foreign", "load_plain"]

MAX_OPERATIONS = 500_000
_Call = Callable[[str, tuple[Any, ...]], Any]
_SCALARS = frozenset((
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "SHORT_BINSTRING", "BINSTRING",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_KEYS = (str, bytes, int, float, type(None))


class Foreign(NamedTuple):
    """An object that is not built: the name of its class or function, such as "torch.nn.modules.linear.Linear"."""

    name: str


class _Name(NamedTuple):
    """A class or function that the pickle names."""

    name: str


def load_plain(file: BytesIO, call: _Call, persistent: Callable[[Any], Any]) -> Any:
    """The value of one pickle.

    Parameters
    ----------
    file : BytesIO
        Read up to the end of the pickle.
    call : callable (name, arguments) -> value
        What stands for a call of the pickle; it is given the name only. `Foreign` for those that it doesn't know.
    persistent : callable
        From a persistent id to a value.

    Raises
    ------
    InputError
        Not a whole pickle, or one of more than `MAX_OPERATIONS` steps.

    Examples
    --------
    >>> import io, pickle
    >>> data = io.BytesIO(pickle.dumps({"a": [1, 2.5], "b": print}))
    >>> load_plain(data, lambda name, arguments: Foreign(name), Foreign)
    {'a': [1, 2.5], 'b': Foreign(name='builtins.print')}
    """
    try:
        return _Machine(call, persistent).run(file)
    except InputError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise InputError("expected a whole pickle, got one that is cut short or damaged: save it again") from error


class _Machine:
    def __init__(self, call: _Call, persistent: Callable[[Any], Any]) -> None:
        self._call = call
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: BytesIO) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_OPERATIONS:
                raise InputError(f"expected a pickle of at most {MAX_OPERATIONS:,} steps, got a longer one")
            if operation.name == "STOP":
                return self._plain(self._stack.pop())
            self._step(operation.name, argument)
        raise ValueError("no end")

    @staticmethod
    def _plain(value: Any) -> Any:
        return Foreign(value.name) if isinstance(value, _Name) else value

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _SCALARS:
            stack.append(_VALUES.get(name, argument))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name.startswith("EMPTY_") or name in ("LIST", "TUPLE", "DICT", "FROZENSET", "TUPLE1", "TUPLE2", "TUPLE3"):
            self._collect(name)
        elif name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS"):
            self._add(name)
        elif name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            self._name(name, argument)
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "BUILD", "BINPERSID", "PERSID"):
            self._build(name, argument)
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(name)

    def _marked(self) -> list[Any]:
        """What stands above the last mark."""
        start = self._marks.pop()
        found = [self._plain(value) for value in self._stack[start:]]
        del self._stack[start:]
        return found

    def _collect(self, name: str) -> None:
        if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            parts = self._stack[-count:]
            if len(parts) != count:
                raise ValueError("too few")
            del self._stack[-count:]
        else:
            parts = [] if name.startswith("EMPTY_") else self._marked()
        if name.endswith("DICT"):
            found: Any = {}
            _fill(found, parts)
        else:
            # sets as lists: to hash what a file nests may take for ever
            found = tuple(map(self._plain, parts)) if "TUPLE" in name else parts
        self._stack.append(found)

    def _add(self, name: str) -> None:
        if name == "SETITEM":
            parts = self._stack[-2:]
            del self._stack[-2:]
        elif name == "APPEND":
            parts = [self._stack.pop()]
        else:
            parts = self._marked()
        target = self._stack[-1]
        parts = [self._plain(part) for part in parts]
        if isinstance(target, dict) and name.startswith("SET"):
            _fill(target, parts)
        elif isinstance(target, list) and not name.startswith("SET"):
            target.extend(parts)
        elif not isinstance(target, Foreign):  # what is put into an object that is not built is lost with it
            raise TypeError(name)

    def _name(self, name: str, argument: Any) -> None:
        if name == "STACK_GLOBAL":
            module, own = self._stack[-2:]
            del self._stack[-2:]
        else:
            module, own = argument.split(" ", 1)
        if not isinstance(module, str) or not isinstance(own, str):
            raise TypeError(name)
        if name == "INST":
            self._marked()
            self._stack.append(Foreign(f"{module}.{own}"))
        else:
            self._stack.append(_Name(f"{module}.{own}"))

    def _build(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "PERSID":
            stack.append(self._persistent(argument))
        elif name == "BINPERSID":
            stack.append(self._persistent(self._plain(stack.pop())))
        elif name == "BUILD":
            stack.pop()  # attributes, such as the _metadata of a state dict
            stack[-1]
        elif name == "OBJ":
            stack.append(Foreign(_name_of(self._marked()[0])))
        elif name == "NEWOBJ_EX":
            stack[-3:] = [Foreign(_name_of(stack[-3]))]
        else:
            arguments, function = stack.pop(), stack.pop()
            known = name == "REDUCE" and isinstance(function, _Name) and isinstance(arguments, tuple)
            stack.append(self._call(function.name, arguments) if known else Foreign(_name_of(function)))


def _name_of(value: Any) -> str:
    return value.name if isinstance(value, (_Name, Foreign)) else type(value).__name__


def _fill(target: dict[Any, Any], parts: list[Any]) -> None:
    if len(parts) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        if isinstance(key, _KEYS):
            target[key] = value
