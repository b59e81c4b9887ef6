"""Walks over a network: every layer names the layers inside it, and these functions use nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..arrays import Params
from .base import Layer, prefixed

__all__ = ["map_layers", "own_parameters", "walk"]


def own_parameters(params: Params, prefix: str) -> Params:
    """The parameters whose name starts with `prefix`, without it."""
    if not prefix:
        return params
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}


def walk(network: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """A layer and all layers inside it, parents first, each with the prefix of its parameters.

    Examples
    --------
    >>> import portable_rnn as prnn
    >>> [prefix for prefix, _ in walk(prnn.Sequential(prnn.GRU(1, 8), prnn.Linear(8, 1)))]
    ['', '0.', '1.']
    """
    yield prefix, network
    for child, layer in network.children().items():
        yield from walk(layer, prefix + prefixed(child, ""))


def map_layers(function: Callable[[Layer], Layer], network: Layer) -> Layer:
    """The network with every layer replaced by what `function` makes of it, those inside first."""
    return function(network.map_children(lambda child: map_layers(function, child)))
