"""What `verify` runs: a network with its parameters, random inputs of every kind, and how two results are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import Array, Backend, backend, from_host, leaves, map_leaves, to_numpy
from ..errors import InputError
from ..execution import jit
from ..layers import Layer, walk
from ..models import Model
from ..training import History, exponential_decay, sgd
from .textbook import network_outputs

__all__ = ["Finding", "NotApplicableError", "Subject", "compared", "difference"]

Host = np.ndarray[Any, Any]
BATCH, STEPS = 4, 8  # a loop of fewer than 32 columns of all steps is not compiled
RATE = 0.5  # of the update that is checked


class NotApplicableError(Exception):
    """A check that this model, library or machine gives no occasion for; the text says why."""


@dataclass(frozen=True)
class Finding:
    """What a check found: the largest relative error, the largest that is allowed, and where it is."""

    error: float | None
    limit: float | None
    where: str

    @property
    def passed(self) -> bool:
        return self.error is None or (self.limit is not None and self.error <= self.limit)


def compared(got: Any, expected: Any, limit: float, what: str, against: str) -> Finding:
    """The finding that holds two pytrees of arrays against each other."""
    error, where = difference(got, expected, what)
    return Finding(error, limit, f"{where}, {against}")


def difference(got: Any, expected: Any, what: str) -> tuple[float, str]:
    """(largest error relative to the largest number of its array, a phrase that says where) of two pytrees.

    An array that is small beside the others is a sum that nearly cancelled: its scale is a thousandth of theirs.
    """
    pairs = list(zip(_named(got, what), _named(expected, what), strict=False))
    if len(list(leaves(got))) != len(list(leaves(expected))):
        return np.inf, f"{what} has {len(list(leaves(got)))} arrays in place of {len(list(leaves(expected)))}"
    largest = max((float(np.max(np.abs(b), initial=0.0)) for _, (_, b) in pairs), default=0.0)
    worst, phrase = 0.0, f"{what} is equal"
    for (name, a), (_, b) in pairs:
        if a.shape != b.shape:
            return np.inf, f"{name} has shape {a.shape} in place of {b.shape}"
        if not a.size:
            continue
        scale = max(float(np.max(np.abs(b))), 1e-3 * largest) or 1.0
        off = np.where(np.isfinite(a), np.abs(a.astype("float64") - b.astype("float64")), np.inf) / scale
        if float(np.max(off)) > worst:
            worst = float(np.max(off))
            index = np.unravel_index(int(np.argmax(off)), off.shape)
            place = ", ".join(str(int(k)) for k in index)
            phrase = f"{name}[{place}] is {float(a[index]):.6g} in place of {float(b[index]):.6g}"
    return worst, phrase


def _named(tree: Any, name: str) -> list[tuple[str, Host]]:
    """The leaves on the host, each with its path."""
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _named(tree[key], f"{name}[{key!r}]")]
    if isinstance(tree, (tuple, list)):
        return [leaf for k, branch in enumerate(tree) for leaf in _named(branch, f"{name}[{k}]")]
    return [(name, np.asarray(to_numpy(tree)))]


@dataclass(frozen=True)
class Subject:
    """A network, its parameters in float64 on the host, and the library to run it on.

    Attributes
    ----------
    network : Layer
    host_params : dict of str to ndarray
    target : Backend
    exact : Reference
        The same network's results from NumPy in float64.
    limit : float
        The largest relative difference between two runs in the target's dtype.
    """

    network: Layer
    host_params: dict[str, Host]
    target: Backend
    seed: int = 0

    @property
    def limit(self) -> float:
        return 1e-9 if self.target.dtype_name == "float64" else 2e-4

    def at(self, target: Backend) -> Subject:
        """The same on another library."""
        return Subject(self.network, self.host_params, target, self.seed)

    @cached_property
    def exact(self) -> Subject:
        """The same in float64 on NumPy."""
        return self.at(backend("numpy", dtype="float64"))

    # ------------------------------------------------------------------ inputs, on the host

    @cached_property
    def x(self) -> Host:
        """(B, T, F), or integers (B, T)."""
        return self.input_of(self.seed)

    @cached_property
    def has_steps(self) -> bool:
        """Whether the input has a time axis."""
        return self.network.needs_time or self.x.ndim == 3

    def input_of(self, seed: int, batch: int = BATCH, steps: int = STEPS) -> Host:
        """Random input."""
        rng = np.random.default_rng(seed)
        if self.network.takes_integers:
            sizes = (getattr(layer, "num_embeddings", None) for _, layer in walk(self.network))
            return rng.integers(0, next(size for size in sizes if size is not None), (batch, steps))
        width = next((layer.in_width for _, layer in walk(self.network) if layer.in_width is not None), 3)
        # a float32 holds these exactly, so that both dtypes are given the same numbers
        return rng.standard_normal((batch, steps, width)).astype("float32").astype("float64")

    @cached_property
    def lengths(self) -> list[int]:
        """A whole row, one that is one step short, one of one step, an empty one."""
        return [STEPS, STEPS - 1, 1, 0]

    def cotangent(self, like: Any, seed: int = 7) -> Any:
        """Random numbers of the shapes of a pytree."""
        rng = np.random.default_rng(seed)
        return map_leaves(lambda a: rng.standard_normal(a.shape).astype("float32").astype("float64"), like)

    # ------------------------------------------------------------------ runs, on the target

    def place(self, tree: Any) -> Any:
        """Host arrays on the target, in its dtype."""
        dtype = self.target.dtype_name
        return map_leaves(lambda a: from_host(a.astype(dtype) if a.dtype.kind == "f" else a, self.target), tree)

    @cached_property
    def params(self) -> dict[str, Array]:
        found: dict[str, Array] = self.place(self.host_params)
        return found

    @cached_property
    def model(self) -> Model:
        """A model of its own on the target."""
        model = Model(self.network, self.target, seed=self.seed)
        model.params = dict(self.params)
        return model

    @cached_property
    def targets(self) -> Host:
        """Random targets for y."""
        found: Host = self.cotangent(self.exact.outputs(self.x)[0], 21)
        return found

    @cached_property
    def trained(self) -> tuple[Model, History]:
        """A model after two updates of gradient descent with a schedule, and its history."""
        model = self.at(self.target).model
        rate = sgd(exponential_decay(RATE, 0.5))
        settings: Any = {"optimizer": rate, "epochs": 2, "batch_size": BATCH, "shuffle": False, "progress": False}
        return model, model.fit(self.place(self.x), self.place(self.targets), loss="mse", **settings)

    @cached_property
    def arguments(self) -> tuple[Any, ...]:
        """(x, state, lengths, dy, dstate) of both passes, on the host; rows of every length where there is time."""
        lengths = np.asarray(self.lengths, dtype=np.int32) if self.has_steps else None
        y, final = self.exact.outputs(self.x, None, self.lengths if self.has_steps else None)
        return self.x, self.cotangent(final, 11), lengths, self.cotangent(y, 12), self.cotangent(final, 13)

    def outputs(self, x: Host, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """(y, final state) on the host."""
        lengths = None if lengths is None else np.asarray(lengths, dtype=np.int32)
        run = jit(self.target.xp, _outputs, static=("network",))
        y, final = run(self.params, *map(self.place, (x, state, lengths)), network=self.network)
        return to_host(y), to_host(final)

    def gradients(self, arguments: tuple[Any, ...], *, eager: bool = False) -> Any:
        """(dparams, dx, dstate) from placed `arguments`."""
        run = _pulled_back if eager else jit(self.target.xp, _pulled_back, static=("network",))
        return run(self.params, *arguments, network=self.network)

    def pulled_back(
        self, x: Host, state: Any = None, lengths: Any = None, *, dy: Any = None, dstate: Any = None
    ) -> tuple[Any, Any, Any]:
        """(dparams, dx, dstate) on the host."""
        lengths = None if lengths is None else np.asarray(lengths, dtype=np.int32)
        dparams, dx, dinitial = self.gradients(tuple(map(self.place, (x, state, lengths, dy, dstate))))
        return to_host(dparams), to_host(dx), to_host(dinitial)

    def textbook(self, x: Host, state: Any = None, lengths: Any = None) -> tuple[Host, Any]:
        """(y, final state) as the textbook has it."""
        found = network_outputs(self.network, self.host_params, x, state, lengths)
        if found is None:
            raise NotApplicableError("a layer of this network stands in no textbook: other checks cover it")
        return found


def _outputs(params: Any, x: Any, state: Any, lengths: Any, *, network: Layer) -> Any:
    return network.apply(params, x, state, lengths)


def _pulled_back(params: Any, x: Any, state: Any, lengths: Any, dy: Any, dstate: Any, *, network: Layer) -> Any:
    _, _, pullback = network.vjp(params, x, state, lengths)
    return pullback(dy, dstate)


def to_host(tree: Any) -> Any:
    """Copies on the host."""
    return map_leaves(lambda a: np.array(to_numpy(a)), tree)


def refused(call: Callable[[], Any]) -> str:
    """The text of the library's own refusal of a call, or nothing where it is done."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""
