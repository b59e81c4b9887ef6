"""Layers one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Marks, Params, State
from ..errors import InputError
from .base import Layer, prefixed
from .walks import own_parameters, walk

__all__ = ["Sequential", "check_streams", "flat_layers"]


@dataclass(frozen=True, init=False, repr=False)
class Sequential(Layer):
    """Layers one after another.

    Parameters carry the layer's number as a prefix, as in `torch.nn.Sequential`: ``0.weight_ih_l0``, ``2.bias``. The
    state is a tuple with one element for each layer, None for those without state.

    Parameters
    ----------
    *layers : Layer

    Raises
    ------
    InputError
        A layer does not take what the one before gives.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> network = prnn.Sequential(prnn.LSTM(3, 8), prnn.Last(), prnn.Linear(8, 2))
    >>> params = network.init(seed=0)
    >>> y, state = network.apply(params, np.ones((4, 6, 3), dtype="float32"), lengths=[6, 2, 0, 5])
    >>> y.shape, [part is None for part in state]
    ((4, 2), [False, True, True])
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        object.__setattr__(self, "layers", tuple(layers))
        if not layers:
            raise InputError("Sequential expects at least one layer, got none")
        given: tuple[Any, ...] = layers
        for k, layer in enumerate(given):
            if not isinstance(layer, Layer):
                hint = "; pass the layers one by one, not as a list" if isinstance(layer, (list, tuple)) else ""
                raise InputError(f"layer {k} of Sequential must be a layer, got {type(layer).__name__}{hint}")
        features, has_time = layers[0].in_width, True
        for k, layer in enumerate(layers):
            if k and layer.in_width is not None and features is not None and layer.in_width != features:
                raise InputError(
                    f"layer {k} ({type(layer).__name__}) takes {layer.in_width} features, "
                    f"but layer {k - 1} ({type(layers[k - 1]).__name__}) gives {features}"
                )
            if layer.needs_time and not has_time:
                raise InputError(
                    f"layer {k} ({type(layer).__name__}) needs a time axis, which an earlier layer has removed"
                )
            if k and layer.takes_integers:
                raise InputError(
                    f"layer {k} ({type(layer).__name__}) takes integers, "
                    f"but layer {k - 1} ({type(layers[k - 1]).__name__}) gives floats"
                )
            features, has_time = layer.out_width(features), has_time and layer.keeps_time

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        """Whether no layer removes the time axis."""
        return all(layer.keeps_time for layer in self.layers)

    @property
    def needs_time(self) -> bool:  # type: ignore[override]
        """Whether any layer needs a time axis."""
        return any(layer.needs_time for layer in self.layers)

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """As the first layer."""
        return self.layers[0].takes_integers

    @property
    def in_width(self) -> int | None:
        for layer in self.layers:
            if layer.in_width is not None or layer.out_width(2) != 2:  # those before keep the number of features
                return layer.in_width
        return None

    def out_width(self, features: int | None) -> int | None:
        for layer in self.layers:
            features = layer.out_width(features)
        return features

    def children(self) -> dict[str, Layer]:
        return {str(k): layer for k, layer in enumerate(self.layers)}

    def map_children(self, function: Callable[[Layer], Layer]) -> Sequential:
        return Sequential(*map(function, self.layers))

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        masks = []
        for layer in self.layers:
            masks.append(layer.dropout_masks(rng, shape))
            leading = shape if layer.takes_integers else shape[:-1]
            shape = (*(leading if layer.keeps_time else shape[:1]), layer.out_width(shape[-1]) or shape[-1])
        return masks if any(mask is not None for mask in masks) else None

    def check_input(self, x: Array, xp: Any) -> None:
        self.layers[0].check_input(x, xp)
        if x.ndim == 2 and self.needs_time and not self.takes_integers:
            raise InputError(f"{self} expects x of shape (batch, time, features), got shape {tuple(x.shape)}")

    def check_values(self, x: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None) -> None:
        self.layers[0].check_values(x, lengths)

    def check_state(self, state: State, batch_size: int) -> None:
        if state is None:
            return
        if not isinstance(state, (tuple, list)) or len(state) != len(self.layers):
            got = f"{len(state)} elements" if isinstance(state, (tuple, list)) else type(state).__name__
            raise InputError(
                f"state of Sequential must be a tuple with one element for each of its {len(self.layers)} layers, "
                f"as it returns, got {got}"
            )
        for layer, part in zip(self.layers, state, strict=True):
            layer.check_state(part, batch_size)

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        count = len(self.layers)
        states = (None,) * count if state is None else state
        all_masks = (None,) * count if masks is None else masks
        finals, residuals = [], []
        for k, layer in enumerate(self.layers):
            x, final, saved = layer.forward(own_parameters(params, f"{k}."), x, states[k], marks, all_masks[k])
            if not layer.keeps_time:
                marks = Marks()
            finals.append(final)
            residuals.append(saved)
        return x, tuple(finals), residuals

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        dinitials: list[State] = [None] * len(self.layers)
        grads: Params = {}
        dx: Array | None = dy
        for k, own, dfinal in self._backwards(params, dstate):
            found, dx, dinitials[k] = self.layers[k].backward(own, residuals[k], dx, dfinal)
            grads |= {f"{k}.{name}": g for name, g in found.items()}
        return {name: grads[name] for name in params}, dx, tuple(dinitials)

    def parameter_gradients(self, params: Params, residuals: Any, dy: Array, dstate: State) -> Params:
        grads: Params = {}
        first = min((int(name.partition(".")[0]) for name in params), default=0)  # of the layers that have any
        dx: Array | None = dy
        for k, own, dfinal in self._backwards(params, dstate):
            if k == first:
                found = self.layers[k].parameter_gradients(own, residuals[k], dx, dfinal)
            elif k > first:
                found, dx, _ = self.layers[k].backward(own, residuals[k], dx, dfinal)
            else:
                break
            grads |= {f"{k}.{name}": g for name, g in found.items()}
        return {name: grads[name] for name in params}

    def _backwards(self, params: Params, dstate: State) -> Iterator[tuple[int, Params, State]]:
        """Number, parameters and cotangent of the final state of each layer, from the last."""
        dfinals = (None,) * len(self.layers) if dstate is None else dstate
        for k in reversed(range(len(self.layers))):
            yield k, own_parameters(params, f"{k}."), dfinals[k]

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"


def flat_layers(network: Layer) -> list[tuple[str, Any]]:
    """The links of a chain, nested Sequentials taken apart, in order, each with the prefix of its parameters."""
    return list(_links(network, ""))


def _links(network: Layer, prefix: str) -> Iterator[tuple[str, Layer]]:
    if not isinstance(network, Sequential):
        yield prefix, network
        return
    for child, layer in network.children().items():
        yield from _links(layer, prefix + prefixed(child, ""))


def check_streams(network: Layer) -> None:
    """Raise InputError where a network can't run one step at a time."""
    for _, layer in walk(network):
        if not layer.streams:
            raise InputError(
                f"{layer} needs the whole sequence: it can't run step by step; use layers that run forward in time, "
                "with Last as the pooling, or call predict with the whole sequence"
            )
