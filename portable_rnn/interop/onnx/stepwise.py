"""Whether a graph may be run one time step at a time: tried, not guessed from its operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...arrays import Marks, leaves
from ...errors import InputError
from .budget import FREE
from .nodes import Port

__all__ = ["runs_stepwise"]

_STEPS = 3


def runs_stepwise(graph: Any) -> bool:
    """Whether steps that hand on the state give what one call gives: on random weights, data and state, in float64.

    So a mean over time, a state that is no new value of one of the inputs, or two states in exchanged order are found
    whichever operators they are made of. A graph whose time axis is fixed at one step has nothing to compare with.
    """
    states, outputs = graph.states, graph.outputs[1:]
    if not states or len(outputs) != len(states):
        return False
    steps = _steps(graph)
    if steps not in (None, 1):
        return False
    rng = np.random.default_rng(0)
    params = {name: _weights(rng, shape) for name, shape in graph.weights}
    try:
        x = _drawn(rng, graph.inputs[0], graph.time_first, steps or _STEPS)
        initial: Any = [_state(rng, port, len(x)) for port in states]
        with np.errstate(all="ignore"):
            whole, final = _run(graph, params, x, initial)
            state = initial
            for t in range(x.shape[1]):
                y, state = _run(graph, params, x[:, t : t + 1, ...], state)
    except InputError:
        return False
    if graph.keeps_time:
        y, whole = y[:, -1, ...], whole[:, -1, ...]
    pairs = [(y, whole), *zip(state, final, strict=True), *((a, b) for a, b in zip(final, initial, strict=True))]
    same = [a.shape == b.shape for a, b in pairs]
    return all(same) and all(_close(a, b) for a, b in pairs[: 1 + len(states)])


def _steps(graph: Any) -> int | None:
    """Time steps that the file fixes."""
    dims = graph.inputs[0].dims
    size = dims[0 if graph.time_first else 1] if dims is not None and len(dims) > 1 else None
    return size if isinstance(size, int) else None


def _run(graph: Any, params: Any, x: Any, state: Any) -> tuple[Any, list[Any]]:
    given = tuple(state) if len(state) > 1 else state[0]
    y, final, _ = graph.forward(params, x, given, Marks(), None)
    return y, list(leaves(final))


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Positive, so that no root or logarithm is lost, and small enough that no activation saturates."""
    return rng.uniform(0.1, 1.0, shape) / (shape[-1] if len(shape) > 1 else 2)


def _drawn(rng: np.random.Generator, port: Port, time_first: bool, steps: int) -> np.ndarray[Any, Any]:
    """Input (B, T, ...): integers are zeros and ones."""
    dims = port.dims or (None, None, None)
    batch = dims[1 if time_first else 0] if len(dims) > 1 else dims[0]
    shape = (batch if isinstance(batch, int) else 2, steps, *(d if isinstance(d, int) else 4 for d in dims[2:]))
    if math.prod(shape) > FREE:
        raise InputError(f"the input {port} is too large to be tried")
    return rng.standard_normal(shape) if port.floating else rng.integers(0, 2, shape)


def _state(rng: np.random.Generator, port: Port, batch: int) -> np.ndarray[Any, Any]:
    if port.dims is None:
        raise InputError(f"the state {port} has no shape in the file")
    shape = [d if isinstance(d, int) else batch for d in port.dims]
    if math.prod(shape) > FREE:
        raise InputError(f"the state {port} is too large to be tried")
    return rng.uniform(-0.5, 0.5, shape)


def _close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-12))
