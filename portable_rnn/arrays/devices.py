"""The current device, for a library that computes there whatever ``device=`` says: CuPy."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

from .pytrees import leaves

__all__ = ["cupy_device", "device_scope", "on_their_device"]

P = ParamSpec("P")
R = TypeVar("R")
_NO_SCOPE: AbstractContextManager[Any] = nullcontext()
_NAME = re.compile(r"(?:cuda|gpu)(?::(\d+))?|(\d+)", re.ASCII)


def device_scope(*values: Any) -> AbstractContextManager[Any]:
    """Make the device of what is given the current one.

    CuPy makes new arrays and runs kernels on the current device, which need not be that of the arrays. For every other
    library nothing happens.

    Parameters
    ----------
    *values
        Arrays, Backends, objects with a ``backend``, and pytrees of them. CuPy's first device among them counts.
    """
    cupy = sys.modules.get("cupy")
    if cupy is None or not hasattr(cupy, "cuda"):
        return _NO_SCOPE
    for value in leaves(values):
        device = getattr(getattr(value, "backend", value), "device", None)
        if isinstance(device, cupy.cuda.Device):
            scope: AbstractContextManager[Any] = cupy.cuda.Device(device.id)
            return scope
    return _NO_SCOPE


def on_their_device(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in the `device_scope` of its arguments."""

    @functools.wraps(function)
    def run(*arguments: P.args, **keywords: P.kwargs) -> R:
        if "cupy" not in sys.modules:
            return function(*arguments, **keywords)
        with device_scope(arguments, keywords):
            return function(*arguments, **keywords)

    return run


def cupy_device(cupy: Any, device: Any) -> Any:
    """CuPy's own device of a name, a number or a device.

    Raises
    ------
    ValueError
        It is none of them, or the machine doesn't have it.
    """
    if device is None:
        return cupy.cuda.Device()
    if isinstance(device, cupy.cuda.Device):
        number = device.id
    elif isinstance(device, str) and (found := _NAME.fullmatch(device)):
        number = int(found[1] or found[2] or 0)
    elif isinstance(device, int) and not isinstance(device, bool):
        number = device
    else:
        raise ValueError("expected a name such as 'cuda:0', a number or a cupy.cuda.Device")
    count = cupy.cuda.runtime.getDeviceCount()
    if not 0 <= number < count:
        raise ValueError(f"expected a device from 0 to {count - 1}")
    return cupy.cuda.Device(number)
