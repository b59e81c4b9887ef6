"""Learning-rate schedules: functions of the number of updates so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays import (
    count,
    non_negative,
    on_their_device,
    positive,
    size,
)
from ..errors import unexpected
from .optimizers import Schedule, _count

__all__ = ["cosine_decay", "exponential_decay", "piecewise_constant", "warmup_cosine_decay"]


@dataclass(frozen=True)
class _Cosine:
    initial: float
    steps: int
    final: float
    warmup: int = 0

    @on_their_device
    def __call__(self, count: Any) -> Any:
        xp, count = _count(count)
        progress = xp.clip((count - self.warmup) / max(self.steps - self.warmup, 1), 0.0, 1.0)
        rate = self.final + (self.initial - self.final) * (1 + xp.cos(progress * math.pi)) / 2
        return xp.where(count < self.warmup, self.initial * (count + 1) / max(self.warmup, 1), rate)


@dataclass(frozen=True)
class _Exponential:
    initial: float
    rate: float
    steps: float

    @on_their_device
    def __call__(self, count: Any) -> Any:
        _, count = _count(count)
        return self.initial * self.rate ** (count / self.steps)


@dataclass(frozen=True)
class _Piecewise:
    initial: float
    factors: tuple[tuple[int, float], ...]

    @on_their_device
    def __call__(self, count: Any) -> Any:
        xp, count = _count(count)
        rate = xp.full_like(count, self.initial)
        for boundary, factor in self.factors:
            rate = xp.where(count >= boundary, rate * factor, rate)
        return rate


def cosine_decay(initial: float, steps: int, final: float = 0.0) -> Schedule:
    """From `initial` down to `final` along half a cosine over `steps` updates, then constant.

    Parameters
    ----------
    initial, final : float
        Learning rates at the start and at the end.
    steps : int
        Updates in between.

    References
    ----------
    Loshchilov and Hutter (2016), SGDR: stochastic gradient descent with warm restarts, arXiv:1608.03983.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> schedule = prnn.cosine_decay(0.1, steps=100)
    >>> [round(float(schedule(k)), 4) for k in (0, 50, 100)]
    [0.1, 0.05, 0.0]
    """
    return _Cosine(positive("initial", initial), size("steps", steps), non_negative("final", final))


def warmup_cosine_decay(peak: float, warmup_steps: int, steps: int, final: float = 0.0) -> Schedule:
    """Linearly up to `peak`, then `cosine_decay` to `final`.

    Parameters
    ----------
    peak, final : float
        Learning rates after the warm-up and at the end.
    warmup_steps, steps : int
        The updates at which `peak` and `final` are reached.
    """
    warmup = count("warmup_steps", warmup_steps)
    return _Cosine(positive("peak", peak), size("steps", steps), non_negative("final", final), warmup)


def exponential_decay(initial: float, rate: float, steps: float = 1) -> Schedule:
    """``initial * rate ** (updates / steps)``.

    Parameters
    ----------
    initial, rate : float
    steps : float
        Updates in which the learning rate changes by the factor `rate`.
    """
    return _Exponential(positive("initial", initial), positive("rate", rate), positive("steps", steps))


def piecewise_constant(initial: float, factors: Mapping[int, float]) -> Schedule:
    """`initial`, multiplied by each factor from its update on.

    Parameters
    ----------
    initial : float
    factors : dict of int to float
        ``{100: 0.5}`` halves the learning rate at update 100.
    """
    if not isinstance(factors, Mapping):
        raise unexpected("factors", "a dict of updates and factors", factors, "pass factors={100: 0.5}")
    checked = {count("factors", update): positive("factors", factor) for update, factor in factors.items()}
    return _Piecewise(positive("initial", initial), tuple(sorted(checked.items())))
