"""Optimizers: pairs of pure functions, ``init(params) -> state`` and ``update(grads, state, params)``.

Nothing is changed in place, so a whole training step can be one compiled function. An optimizer is a frozen dataclass:
two with equal settings are equal, and JAX compiles a step with them once.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, ClassVar, Protocol, TypeAlias

import numpy as np

from ..arrays import (
    Array,
    Check,
    Configuration,
    NonNegative,
    Params,
    Positive,
    Probability,
    as_before,
    device_of,
    is_array,
    library_name,
    namespace_of,
    on_their_device,
    positive,
)
from ..errors import InputError, unexpected
from ..execution import fuse

__all__ = [
    "Adam",
    "Optimizer",
    "RMSprop",
    "Sgd",
    "adam",
    "adamw",
    "clip_by_global_norm",
    "global_norm",
    "optimizer_of",
    "rmsprop",
    "sgd",
]

# Number of updates so far, an array () or a number -> learning rate
Schedule: TypeAlias = Callable[[Any], Any]
OptimizerState: TypeAlias = dict[str, Any]

_rate_or_schedule = Check(
    f"{positive.expected}, or a schedule",
    "pass {name}=0.01, or such as prnn.cosine_decay(0.01, 1000)",
    lambda value: value if callable(value) else positive.convert(value),
)
LearningRate = Annotated[float | Schedule, _rate_or_schedule]


class Optimizer(Protocol):
    """What `Model.fit` needs of an optimizer."""

    def init(self, params: Params) -> OptimizerState:
        """The state before the first update."""

    def update(self, grads: Params, state: OptimizerState, params: Params) -> tuple[Params, OptimizerState]:
        """(new parameters, new state)."""


@dataclass(frozen=True)
class _Rule(Configuration, abc.ABC):
    """What the optimizers share: parameters and state keep the library, the dtype and the type that they have."""

    learning_rate: LearningRate

    slots: ClassVar[tuple[str, ...]] = ()  # what the state holds for each parameter, zero at the start

    @on_their_device
    def init(self, params: Params) -> OptimizerState:
        """The state before the first update."""
        xp = _namespace(params)
        first = next(iter(params.values()))
        zeros = {slot: {k: xp.zeros_like(p) for k, p in params.items()} for slot in self.slots}
        # the count is a float array so that a schedule can compute with it inside a compiled step
        return {"count": xp.zeros((), dtype=first.dtype, device=device_of(first)), **zeros}

    @on_their_device
    def update(self, grads: Params, state: OptimizerState, params: Params) -> tuple[Params, OptimizerState]:
        """(new parameters, new state)."""
        before = state["count"]
        rate = _rate(self.learning_rate, before)
        count = as_before(before + 1, before)
        new, moved = self.step(as_before(grads, params), state, params, rate, count)
        return as_before(new, params), {"count": count, **{slot: as_before(moved[slot], params) for slot in moved}}

    @abc.abstractmethod
    def step(
        self, grads: Params, state: OptimizerState, params: Params, rate: Any, count: Array
    ) -> tuple[Params, dict[str, Params]]:
        """New parameters and slots; `rate` is the learning rate, `count` the number of updates with this one."""


@dataclass(frozen=True)
class Sgd(_Rule):
    """Gradient descent with momentum; see `sgd`."""

    momentum: Probability = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise unexpected("momentum", "a number above 0 where nesterov=True", self.momentum, "pass momentum=0.9")

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]
        """The velocity, where there is momentum."""
        return ("velocity",) if self.momentum else ()

    def step(
        self, grads: Params, state: OptimizerState, params: Params, rate: Any, count: Array
    ) -> tuple[Params, dict[str, Params]]:
        if not self.momentum:
            return {k: p - rate * grads[k] for k, p in params.items()}, {}
        velocity = {k: self.momentum * v + grads[k] for k, v in state["velocity"].items()}
        steps = velocity
        if self.nesterov:
            steps = {k: grads[k] + self.momentum * v for k, v in velocity.items()}
        return {k: p - rate * steps[k] for k, p in params.items()}, {"velocity": velocity}


@dataclass(frozen=True)
class RMSprop(_Rule):
    """See `rmsprop`."""

    decay: Probability = 0.99
    eps: Positive = 1e-8

    slots = ("square",)

    def step(
        self, grads: Params, state: OptimizerState, params: Params, rate: Any, count: Array
    ) -> tuple[Params, dict[str, Params]]:
        xp = _namespace(params)
        square = {k: self.decay * s + (1 - self.decay) * grads[k] ** 2 for k, s in state["square"].items()}
        new = {k: p - rate * grads[k] / (xp.sqrt(square[k]) + self.eps) for k, p in params.items()}
        return new, {"square": square}


@dataclass(frozen=True)
class Adam(_Rule):
    """See `adam` and `adamw`."""

    beta1: Probability = 0.9
    beta2: Probability = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0

    slots = ("mean", "square")

    def step(
        self, grads: Params, state: OptimizerState, params: Params, rate: Any, count: Array
    ) -> tuple[Params, dict[str, Params]]:
        xp = _namespace(params)
        # the bias corrections of mean and square, folded into two numbers
        root, step = fuse(xp, _corrections)(rate, self.beta1**count, self.beta2**count)
        move, decay = fuse(xp, self._moved), rate * self.weight_decay
        moved = {
            k: move(p, grads[k], state["mean"][k], state["square"][k], decay, root, step) for k, p in params.items()
        }
        new, mean, square = ({k: arrays[i] for k, arrays in moved.items()} for i in range(3))
        return new, {"mean": mean, "square": square}

    def _moved(self, xp: Any, p: Any, grad: Any, mean: Any, square: Any, decay: Any, root: Any, step: Any) -> Any:
        """One parameter, its mean and its square after the update."""
        mean = self.beta1 * mean + (1 - self.beta1) * grad
        square = self.beta2 * square + (1 - self.beta2) * grad**2
        if self.weight_decay:
            p = p - decay * p
        return p - step * mean / (xp.sqrt(square) / root + self.eps), mean, square


def _corrections(xp: Any, rate: Any, mean_left: Any, square_left: Any) -> tuple[Any, Any]:
    return xp.sqrt(1 - square_left), rate / (1 - mean_left)


def sgd(learning_rate: float | Schedule = 0.01, momentum: float = 0.0, nesterov: bool = False) -> Sgd:
    """Gradient descent: ``v = momentum * v + g; p = p - learning_rate * v``, as `torch.optim.SGD`.

    Parameters
    ----------
    learning_rate : float or schedule
    momentum : float
    nesterov : bool
        Step along ``g + momentum * v``.

    Raises
    ------
    InputError
        A setting is out of its range.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> optimizer = prnn.sgd(0.5)
    >>> params = {"w": np.array([1.0])}
    >>> params, state = optimizer.update({"w": np.array([0.2])}, optimizer.init(params), params)
    >>> params["w"].tolist()
    [0.9]
    """
    return Sgd(learning_rate, momentum, nesterov)


def rmsprop(learning_rate: float | Schedule = 0.01, decay: float = 0.99, eps: float = 1e-8) -> RMSprop:
    """``s = decay * s + (1 - decay) * g**2; p = p - learning_rate * g / (sqrt(s) + eps)``, as `torch.optim.RMSprop`.

    Parameters
    ----------
    learning_rate : float or schedule
    decay : float
        Of the running mean of squared gradients, in [0, 1).
    eps : float
        Keeps the divisor from zero.

    References
    ----------
    Hinton, Neural networks for machine learning, lecture 6 (2012).
    """
    return RMSprop(learning_rate, decay, eps)


def adam(learning_rate: float | Schedule = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Adam:
    """Adam with bias correction, as `torch.optim.Adam`.

    Parameters
    ----------
    learning_rate : float or schedule
    beta1, beta2 : float
        Of the running means of gradients and of their squares, in [0, 1).
    eps : float
        Keeps the divisor from zero.

    References
    ----------
    Kingma and Ba (2014), Adam: a method for stochastic optimization, arXiv:1412.6980.
    """
    return adamw(learning_rate, beta1, beta2, eps, weight_decay=0.0)


def adamw(
    learning_rate: float | Schedule = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Adam:
    """Adam with decoupled weight decay, ``p = p - learning_rate * weight_decay * p``, as `torch.optim.AdamW`.

    Parameters
    ----------
    learning_rate, beta1, beta2, eps
        As in `adam`.
    weight_decay : float
        Share of a parameter that an update with learning rate 1 takes away.

    References
    ----------
    Loshchilov and Hutter (2017), Decoupled weight decay regularization, arXiv:1711.05101.
    """
    return Adam(learning_rate, beta1, beta2, eps, weight_decay)


_OPTIMIZERS: dict[str, Callable[[], Any]] = {"sgd": sgd, "rmsprop": rmsprop, "adam": adam, "adamw": adamw}


def optimizer_of(optimizer: str | Optimizer) -> Optimizer:
    """An optimizer by its name, with its default settings; an optimizer is returned as it is."""
    if isinstance(optimizer, str):
        if optimizer not in _OPTIMIZERS:
            raise InputError(f"unknown optimizer {optimizer!r}: expected one of {', '.join(_OPTIMIZERS)}")
        found: Optimizer = _OPTIMIZERS[optimizer]()
        return found
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise InputError(
            f"optimizer must be a name or have init and update, as prnn.adam(1e-3), got {type(optimizer).__name__}"
        )
    return optimizer


# ---------------------------------------------------------------------- clipping


@on_their_device
def global_norm(grads: Params) -> Array:
    """The Euclidean norm of all gradients together, an array ()."""
    xp = _namespace(grads)
    squared = fuse(xp, _sum_of_squares)
    return fuse(xp, _root_of_sum)(*(squared(g) for g in grads.values()))


def _sum_of_squares(xp: Any, x: Any) -> Any:
    return xp.sum(x * x)


def _root_of_sum(xp: Any, first: Any, *others: Any) -> Any:
    return xp.sqrt(sum(others, start=first))


@on_their_device
def clip_by_global_norm(grads: Params, max_norm: float, norm: Array | None = None) -> Params:
    """Scale all gradients together so that their global norm is at most `max_norm`.

    Raises
    ------
    InputError
        `max_norm` is not a positive finite number.

    Parameters
    ----------
    grads : dict of str to array
    max_norm : float
    norm : array (), optional
        The norm, where it is known already.

    Returns
    -------
    dict of str to array

    References
    ----------
    Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks, arXiv:1211.5063.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> prnn.clip_by_global_norm({"w": np.array([3.0, 4.0])}, 2.5)["w"].tolist()
    [1.5, 2.0]
    """
    xp = _namespace(grads)
    max_norm = positive("max_norm", max_norm)
    norm = global_norm(grads) if norm is None else norm
    scale = max_norm / xp.maximum(norm, xp.full_like(norm, max_norm))
    return {k: as_before(g * scale, g) for k, g in grads.items()}


# ---------------------------------------------------------------------- shared


def _namespace(arrays: Params) -> Any:
    return namespace_of(next(iter(arrays.values())))


def _rate(learning_rate: float | Schedule, count: Array) -> Any:
    """The learning rate of this update: a Python float, or an array () of the library and dtype of `count`.

    Neither widens the arrays that it is multiplied with.
    """
    if not callable(learning_rate):
        return learning_rate
    rate = learning_rate(count)
    if isinstance(rate, Real):  # Python's numbers and NumPy's
        return float(rate)
    xp = namespace_of(count)
    found = is_array(rate) and tuple(rate.shape) == ()
    if found and isinstance(rate, np.ndarray) and library_name(xp) != "numpy":
        return float(rate)  # on the host already
    if not found or namespace_of(rate) is not xp or not xp.isdtype(rate.dtype, "numeric"):
        got = f"an array {tuple(rate.shape)} of {type(rate).__module__}" if is_array(rate) else type(rate).__name__
        raise InputError(
            f"learning_rate: expected a schedule returning a number or an array () of the model's library, got {got}: "
            "write such as lambda count: 0.1 / (1 + count)"
        )
    return as_before(rate, count)


def _count(count: Any) -> tuple[Any, Any]:
    if not is_array(count) or isinstance(count, np.generic):
        count = np.asarray(count)  # a NumPy scalar keeps its dtype
    xp = namespace_of(count)
    if not xp.isdtype(count.dtype, "real floating"):
        count = xp.astype(count, xp.__array_namespace_info__().default_dtypes()["real floating"])
    return xp, count
