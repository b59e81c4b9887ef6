"""What the backward pass shows: how the gradient flows through time, and which gates and units are stuck."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array, Lengths, Marks, Params, State, namespace_of, on_their_device, to_numpy
from ..execution import jit
from ..layers import Layer, RecurrentLayer, Wrapper, map_layers, stack_backward, suffixes, walk
from ..training import Loss, loss_function, unchecked
from .model import Model

__all__ = ["GradientFlow", "LayerFlow", "gradient_flow"]

# A gate counts as saturated outside this range, as in Karpathy, Johnson and Fei-Fei (2015), arXiv:1506.02078.
SATURATED = (0.1, 0.9)
# A unit counts as dead whose output moves less than this over all data.
DEAD = 1e-6


@dataclass(frozen=True)
class LayerFlow:
    """One layer and direction of a network.

    Attributes
    ----------
    name : str
        Such as "0.GRU" or "0.LSTM l1 reverse".
    norms : array (T,)
        ``||dL/dh_t||``, over features and batch.
    saturation : dict of str to (float, float)
        For each gate, the share of its values below 0.1 and above 0.9.
    dead_units : tuple of int
        Units whose output is the same at every step of every row.
    """

    name: str
    norms: np.ndarray[Any, Any]
    saturation: dict[str, tuple[float, float]]
    dead_units: tuple[int, ...]


@dataclass(frozen=True)
class GradientFlow:
    """What `gradient_flow` found.

    Attributes
    ----------
    layers : tuple of LayerFlow
        In the order of computation.
    loss : float
    gradients : dict of str to array
        As `Model.loss_and_grad` gives them: the diagnosis costs no pass of its own.
    """

    layers: tuple[LayerFlow, ...]
    loss: float
    gradients: Params

    def plot(self, path: Any = None) -> Any:
        """Draw ``||dL/dh_t||`` over time, a line for each layer (matplotlib, extra ``[plot]``).

        Parameters
        ----------
        path : path, optional
            Where to save the picture.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from ..plotting import plot_gradient_flow

        return plot_gradient_flow({layer.name: layer.norms for layer in self.layers}, path)


@on_their_device
def gradient_flow(
    model: Model,
    x: Array | Sequence[Array],
    y: Array,
    *,
    lengths: Lengths = None,
    loss: str | Loss | None = None,
) -> GradientFlow:
    """How large the loss's derivative with respect to the hidden state is at each time step.

    A norm that shrinks towards the first steps is a vanishing gradient: the network can't learn from what happened
    there. One that grows is an exploding gradient.

    Parameters
    ----------
    model : Model
    x, y, lengths, loss
        As in `Model.loss_and_grad`.

    Returns
    -------
    GradientFlow

    Source: Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> model = prnn.Model(prnn.Sequential(prnn.LSTM(1, 8), prnn.Last(), prnn.Linear(8, 1)), seed=0)
    >>> flow = prnn.gradient_flow(model, np.ones((2, 30, 1), "float32"), np.ones((2, 1), "float32"))
    >>> flow.layers[0].norms.shape, flow.layers[0].norms[0] < flow.layers[0].norms[-1]
    ((30,), np.True_)
    """
    data = model.checked_data(x, y, lengths)
    function = model.loss if loss is None else loss_function(loss)
    network = map_layers(_watched, model.network)
    value, _, residuals = network.forward(model.params, data.x, None, data.marks(model.backend), None)
    ends = data.marks(model.backend).lengths if network.keeps_time else None
    total, cotangent = unchecked(function)(value, data.y, ends)
    gradients, _, _ = network.backward(model.params, residuals, cotangent, None)
    flows = [
        flow
        for prefix, watched in walk(network)
        if isinstance(watched, _Watched)
        for flow in _layer_flows(watched.layer, prefix, **watched.seen)
    ]
    return GradientFlow(tuple(flows), float(to_numpy(total)), gradients)


@dataclass(frozen=True, repr=False)
class _Watched(Wrapper):
    """A recurrent layer that keeps what its passes showed, wherever in a network it is."""

    layer: RecurrentLayer
    seen: dict[str, Any] = field(default_factory=dict, compare=False)

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        y, final, residuals = self.layer.forward(params, x, state, marks, masks)
        self.seen["runs"] = residuals[0]
        self.seen["lengths"] = None if marks.lengths is None else to_numpy(marks.lengths)
        return y, final, residuals

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        run = jit(namespace_of(dy), stack_backward, static=("layer", "watch"))
        grads, dx, dinitial, norms = run(params, residuals, dy, dstate, layer=self.layer, watch=True)
        self.seen["norms"] = norms
        return grads, dx, dinitial


def _watched(layer: Layer) -> Layer:
    if not isinstance(layer, RecurrentLayer):
        return layer
    return _Watched(dataclasses.replace(layer, recompute_every=None))


def _layer_flows(
    layer: Any, prefix: str, runs: list[Any], norms: list[Array], lengths: np.ndarray[Any, Any] | None
) -> list[LayerFlow]:
    """One `LayerFlow` for each layer and direction of a stack; `runs` are what `run_direction` saved."""
    flows = []
    ends = [end for pair in suffixes(layer) for end in pair]
    for end, run, norm in zip(ends, runs, norms, strict=True):
        hs = run.hs
        xp = namespace_of(hs)
        gate_values = getattr(layer.cell, "gate_values", None)
        gates = gate_values(xp, run.residuals) if gate_values else {}
        name = f"{prefix}{type(layer).__name__}"
        if len(ends) > 1:
            name += f" {end[1:].replace('_', ' ')}"
        hidden = _valid_columns(to_numpy(hs), lengths)
        dead = np.flatnonzero(np.ptp(hidden, axis=1) < DEAD) if hidden.size else np.empty(0, dtype=int)
        flows.append(
            LayerFlow(
                name,
                to_numpy(norm),
                {key: _saturation(_valid_columns(to_numpy(gate), lengths)) for key, gate in gates.items()},
                tuple(int(k) for k in dead),
            )
        )
    return flows


def _valid_columns(values: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """(T, H, B) as (H, number of steps before the rows' ends)."""
    steps, hidden, batch = values.shape
    columns = np.moveaxis(values, 1, 0).reshape(hidden, steps * batch)
    if lengths is None:
        return columns
    return columns[:, (np.arange(steps)[:, None] < lengths[None, :]).reshape(-1)]


def _saturation(gate: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = SATURATED
    return (float(np.mean(gate < low)), float(np.mean(gate > high))) if gate.size else (0.0, 0.0)
