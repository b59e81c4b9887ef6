"""Streams: a network run one time step at a time, with constant memory and little overhead for a step."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import (
    MODEL,
    Array,
    Marks,
    Params,
    State,
    asarray,
    checked_array,
    copied,
    from_host,
    instance,
    is_array,
    leaves,
    map_leaves,
    namespace_of,
    on_their_device,
    placed,
    size,
    tree_to_numpy,
    zeros_beside,
)
from ..errors import InputError
from ..execution import jit
from ..layers import (
    Layer,
    Linear,
    RecurrentLayer,
    Sequential,
    check_streams,
    flat_layers,
    one_direction,
    own_parameters,
    state_sizes,
    suffixes,
)
from .model import Model

__all__ = ["Stream"]


class Stream:
    """A model that is fed one time step at a time.

    The weights are laid out once, when the stream is made; a step then costs the cell's arithmetic and little else.
    The model's later training doesn't reach a stream that exists already.

    Parameters
    ----------
    model : Model
    batch_size : int
        Streams that run side by side.

    Raises
    ------
    InputError
        A bidirectional or reversed layer, or a pooling over time, needs the whole sequence.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> model = prnn.Model(prnn.Sequential(prnn.LSTM(3, 8), prnn.Linear(8, 2)), seed=0)
    >>> stream = prnn.Stream(model)
    >>> x = np.ones((1, 5, 3), dtype="float32")
    >>> steps = [stream.step(x[:, t]) for t in range(5)]
    >>> bool(np.allclose(steps[-1], model.predict(x)[:, -1], atol=1e-6))
    True
    """

    @on_their_device
    def __init__(self, model: Model, batch_size: int = 1) -> None:
        model, batch_size = instance(Model)("model", model), size("batch_size", batch_size)
        check_streams(model.network)
        self.batch_size = batch_size
        self._model = model
        self.backend = model.backend
        self._network = model.network
        self._prepare_to_run()
        self._weights = jit(self._xp, prepare, static=("network",))(model.params, network=model.network)
        width = () if model.network.takes_integers else (model.network.in_width,)
        self._shape: tuple[int | None, ...] = (batch_size, *width)
        self._state: Any = None
        self.reset()

    @on_their_device
    def step(self, x_t: Array) -> Array:
        """Take one time step.

        Parameters
        ----------
        x_t : array (B, F) of the model's library, or (B,) integers where the network starts with an Embedding

        Returns
        -------
        y_t : array (B, ...)
        """
        if not is_array(x_t):
            dtype = None if self._network.takes_integers else self._model.backend.dtype_name
            x_t = asarray(x_t, self._model.backend, dtype=dtype)
        if x_t.dtype != self._model.backend.dtype or type(x_t) is not type(self._like):
            x_t = checked_array("x_t", x_t, self._model.backend, MODEL)
        if x_t.shape != self._shape:
            self._check_shape(x_t)
        elif (x_t.dtype == self._model.backend.dtype) == self._network.takes_integers:
            self._network.check_input(x_t[:, None, ...], self._xp)
        y, self._state = self._run(self._weights, x_t, self._state, network=self._network)
        return copied(y)  # it may be a part of the state

    def _check_shape(self, x_t: Array) -> None:
        if self._shape[1:] == (None,) and x_t.ndim == 2 and x_t.shape[0] == self.batch_size:
            self._network.check_input(x_t[:, None, ...], self._xp)
            self._shape = tuple(x_t.shape)  # the network takes any number of features, from now on this one
        else:
            raise InputError(f"a step of this stream must have shape {self._shape}, got {tuple(x_t.shape)}")

    @on_their_device
    def reset(self, rows: Any = None) -> None:
        """Go back to the zero state.

        Parameters
        ----------
        rows : B booleans, optional
            Which of the streams; all of them when left out.

        Raises
        ------
        InputError
            Not one boolean for each stream, or a graph from ONNX: only all of its streams can be reset.
        """
        zeros = jit(self._xp, zero_state, static=("network", "batch_size"))
        fresh = zeros(self._like, network=self._network, batch_size=self.batch_size)
        if rows is None:
            self._state = fresh
            return
        if len(list(leaves(fresh))) != len(list(leaves(self._state))):
            raise InputError("rows: expected None, as a layer here keeps a state of its own form: reset all rows")
        flags = asarray(rows, self._model.backend)
        if tuple(flags.shape) != (self.batch_size,) or not self._xp.isdtype(flags.dtype, "bool"):
            raise InputError(
                f"rows must be {self.batch_size} booleans, got {flags.dtype} of shape {tuple(flags.shape)}"
            )
        self._state = jit(self._xp, choose)(flags, fresh, self._state)

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_xp", "_run", "_like")
        return {name: tree_to_numpy(value) for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        backend = state["_model"].backend
        vars(self).update({name: placed(value, backend) for name, value in state.items()})
        self._prepare_to_run()

    def _prepare_to_run(self) -> None:
        backend = self._model.backend
        self._xp = backend.xp
        self._run = jit(self._xp, stream_step, static=("network",))
        self._like = from_host(np.zeros(1, backend.dtype_name), backend)

    @property
    @on_their_device
    def state(self) -> State:
        """The state in the form that `Layer.apply` and `Model.step` take."""
        return jit(self._xp, public_state, static=("network",))(self._state, network=self._network)


# ---------------------------------------------------------------------- pure functions of (weights, x, state)
# Inside a stream everything is feature-first: x and y are columns (F, B), and the state of a recurrent layer is a list
# with one tuple of columns for each layer of its stack. Any other layer keeps its state in its own form, at first None.


def prepare(params: Params, *, network: Layer) -> list[Any]:
    """Each layer's weights as a step wants them."""
    prepared: list[Any] = []
    for prefix, layer in flat_layers(network):
        own = own_parameters(params, prefix)
        if isinstance(layer, RecurrentLayer):
            xp = namespace_of(own["weight_ih_l0"])
            own_of = [one_direction(own, end) for (end,) in suffixes(layer)]
            prepared.append([layer.cell.prepare(xp, p) for p in own_of])
        else:
            prepared.append(own)
    return prepared


def zero_state(like: Array, *, network: Layer, batch_size: int) -> list[Any]:
    """The state before the first step, beside an array."""
    return [
        [tuple(zeros_beside(like, (rows, batch_size)) for rows in state_sizes(layer)) for _ in range(layer.num_layers)]
        if isinstance(layer, RecurrentLayer)
        else None
        for _, layer in flat_layers(network)
    ]


def stream_step(weights: list[Any], x_t: Array, state: list[Any], *, network: Layer) -> tuple[Array, list[Any]]:
    """One time step through all layers: x_t (B, F) -> y_t (B, O), new state."""
    y = _turned(x_t)
    new_state = []
    for (_, layer), own, start in zip(flat_layers(network), weights, state, strict=True):
        if isinstance(layer, RecurrentLayer):
            y, start = _recurrent_step(layer, own, y, start)
        elif isinstance(layer, Linear):
            y = own["weight"] @ y + own["bias"][:, None] if layer.bias else own["weight"] @ y
        else:
            x = y[:, None] if layer.takes_integers else _turned(y)[:, None, ...]
            out, start, _ = layer.forward(own, x, start, Marks(), None)
            y = _turned(out[:, 0, ...] if layer.keeps_time else out)
        new_state.append(start)
    return _turned(y), new_state


def _turned(x: Array) -> Array:
    """Rows (B, F) as columns, and back; what has more axes stays, rows first."""
    return x.T if x.ndim == 2 else x


def _recurrent_step(layer: Any, weights: list[Params], x: Array, state: list[Any]) -> tuple[Array, list[Any]]:
    xp = namespace_of(x)
    new_state = []
    for w, start in zip(weights, state, strict=True):
        z = w["Wx"] @ x
        if "b" in w:
            z = z + w["b"]
        new, _ = layer.cell.step(xp, w, z, start, None)
        if layer.zoneout:
            new = tuple(n + layer.zoneout * (old - n) for n, old in zip(new, start, strict=True))
        new_state.append(new)
        x = new[0]
    return x, new_state


def choose(flags: Array, first: Any, second: Any) -> Any:
    """Column by column, `first` where the flag is true, else `second`."""
    xp = namespace_of(flags)
    pairs = iter(list(leaves(first)))
    return map_leaves(lambda other: xp.where(flags, next(pairs), other), second)


def public_state(state: list[Any], *, network: Layer) -> State:
    """A stream's state as the network's own."""
    parts = iter(state)

    def build(layer: Any) -> State:
        if isinstance(layer, Sequential):
            return tuple(build(part) for part in layer.layers)
        own = next(parts)
        if not isinstance(layer, RecurrentLayer):
            return own
        xp = namespace_of(own[0][0])
        arrays = tuple(xp.stack([xp.permute_dims(columns[k], (1, 0)) for columns in own]) for k in range(len(own[0])))
        return arrays if len(arrays) > 1 else arrays[0]

    return build(network)
