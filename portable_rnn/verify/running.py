"""`verify`: every check of a model on every library, device and dtype of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import DTYPES, Backend, backend, backends, to_numpy, version_of
from ..errors import BackendError, InputError
from ..models import Model
from ..version import __version__
from .checks import CHECKS, ONCE
from .report import FAILED, PASSED, SKIPPED, Check, Report
from .subject import NotApplicableError, Subject

__all__ = ["verify"]


def verify(
    model: Model,
    backends: str | ModuleType | Backend | Sequence[str | ModuleType | Backend] = "all",
    dtypes: Sequence[str] = DTYPES,
    *,
    seed: int = 0,
) -> Report:
    """Check a model on this machine: that its outputs and gradients are right wherever it can run.

    Outputs are compared with a textbook's one-step-at-a-time NumPy and across libraries; gradients with finite
    differences and across libraries; ragged batches with single rows, pieces with the whole, streams with `predict`,
    compiled loops with plain ones. Library, device and dtype are kept, what is passed in stays as it is, and a saved
    model comes back. The model itself is not changed.

    Parameters
    ----------
    model : Model
    backends : "all", or a name, a module or a Backend, or a sequence of them
        "all" is every library of `portable_rnn.backends` that is available, on each of its devices.
    dtypes : sequence of "float32" and "float64"
    seed : int
        Of the random inputs.

    Returns
    -------
    Report
        ``report.passed``, ``report.checks``, ``report.failures``, ``report.to_json()``; it prints as a table.

    Raises
    ------
    InputError
        `model` is no Model, or a dtype is unknown.
    BackendError
        A library that is named is not available.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> report = prnn.verify(prnn.Model(prnn.GRU(2, 3)), backends="numpy")
    >>> report.passed
    True
    """
    if not isinstance(model, Model):
        raise InputError(f"model: expected a portable_rnn.Model, got {type(model).__name__}: wrap it in prnn.Model")
    unknown = [dtype for dtype in dtypes if dtype not in DTYPES]
    if isinstance(dtypes, str) or unknown or not dtypes:
        raise InputError(f"dtypes: expected some of {', '.join(DTYPES)}, got {dtypes!r}: pass a tuple of them")
    host = {name: np.array(to_numpy(p)).astype("float64") for name, p in model.params.items()}
    exact = Subject(model.network, host, backend("numpy", dtype="float64"), seed)
    checks = [_run(name, check, exact) for name, check in ONCE.items()]
    versions = {"portable_rnn": __version__}
    for target, reason in _targets(backends, dtypes):
        if reason:
            checks.append(Check("available", target.name, "", target.dtype, SKIPPED, None, None, reason, 0.0))
            continue
        versions[target.name] = version_of(target.name)
        checks += [_run(name, check, exact.at(target)) for name, check in CHECKS.items()]
    return Report(repr(model.network), tuple(checks), versions)


def _targets(wanted: Any, dtypes: Iterable[str]) -> Iterator[tuple[Any, str]]:
    """(target, "") for each library, device and dtype, or (what was meant, why it can't be had)."""
    named = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    found = {info.name: info for info in backends()} if "all" in named else {}
    libraries = [info.name for info in found.values() if info.available] if found else named
    for library in libraries:
        devices: Sequence[Any] = found[library].devices if library in found else (None,)
        for dtype in dtypes:
            seen = set()
            for device in devices or (None,):
                try:
                    target = _on_device(library, device, dtype)
                except BackendError as error:
                    if not found:
                        raise
                    yield _Missing(str(library), dtype), str(error)
                    continue
                if str(target.device) not in seen:
                    seen.add(str(target.device))
                    yield target, ""


def _on_device(library: Any, device: Any, dtype: str) -> Backend:
    """A device that the library lists but doesn't take by that name is its default one."""
    if isinstance(library, Backend):
        library, device = library.xp, library.device
    try:
        return backend(library, device, dtype)
    except BackendError:
        return backend(library, None, dtype)


class _Missing:
    """A library and dtype that this machine does not have."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = dtype


def _run(name: str, check: Callable[[Subject], Any], subject: Subject) -> Check:
    """One check; whatever it raises is a failure, not the end."""
    target = subject.target
    where = (target.name, str(target.device), target.dtype_name)
    started = time.perf_counter()
    try:
        with np.errstate(all="ignore"):
            found = check(subject)
    except NotApplicableError as reason:
        return Check(name, *where, SKIPPED, None, None, str(reason), time.perf_counter() - started)
    except Exception as error:
        text = f"raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return Check(name, *where, FAILED, None, None, text, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    status = PASSED if found.passed else FAILED
    return Check(name, *where, status, found.error, found.limit, found.where, seconds)
