"""From Equinox: LSTMCell and GRUCell."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import Array, Backend
from ..errors import InputError
from ..layers import GRU, LSTM
from ..models import Model
from .common import HostParams, Piece, Source, model_of, name_of_type, require
from .selftest import Host, check_chain, passed

__all__ = ["from_equinox"]


def from_equinox(
    cell: Any,
    *,
    backend: str | ModuleType | Array | Backend = "numpy",
    dtype: Any = None,
) -> Model:
    """An Equinox `LSTMCell` or `GRUCell` as a model of the layer that runs it over time.

    Equinox has one bias, at the input, and for the GRU's n a second one inside the reset gate; they become ``bias_ih``
    and the last third of ``bias_hh``.

    Parameters
    ----------
    cell : equinox.nn.LSTMCell or equinox.nn.GRUCell
    backend, dtype : as in `Model`
        float64 stays float64 and all else becomes float32 where `dtype` is left out.

    Returns
    -------
    Model

    Raises
    ------
    InputError
        Not one of these cells.
    ConversionError
        The result does not give the cell's outputs.
    MissingDependencyError
        Equinox is not installed.

    Examples
    --------
    ::

        cell = equinox.nn.GRUCell(3, 8, key=jax.random.key(0))
        prnn.from_equinox(cell).network  # GRU(3, 8)
    """
    equinox = require("equinox", "equinox", "from_equinox")
    jax = require("jax", "jax", "from_equinox")
    if not isinstance(cell, (equinox.nn.LSTMCell, equinox.nn.GRUCell)):
        raise InputError(f"from_equinox takes an equinox.nn.LSTMCell or GRUCell, got {name_of_type(cell)}")
    lstm = isinstance(cell, equinox.nn.LSTMCell)
    params = {"weight_ih_l0": _host(cell.weight_ih), "weight_hh_l0": _host(cell.weight_hh)} | _biases(cell, lstm)
    layer = (LSTM if lstm else GRU)(cell.input_size, cell.hidden_size, bias=bool(cell.use_bias))
    dtypes = cell.weight_ih.dtype.name

    def run(x: Host) -> Host:
        zero = jax.numpy.zeros(cell.hidden_size, dtype=cell.weight_ih.dtype)

        def over_time(row: Any) -> Any:
            state = (zero, zero) if lstm else zero
            ys = []
            for x_t in row:
                state = cell(x_t, state)
                ys.append(state[0] if lstm else state)
            return jax.numpy.stack(ys)

        return np.asarray(jax.vmap(over_time)(jax.numpy.asarray(x, dtype=cell.weight_ih.dtype)))

    piece = Piece(type(cell).__name__, layer, params)
    worst = check_chain([piece], run, dtypes)
    source = Source("equinox", str(equinox.__version__), type(cell).__name__)
    return model_of([piece], source, passed(worst, dtypes), backend, dtype)


def _biases(cell: Any, lstm: bool) -> HostParams:
    if not cell.use_bias:
        return {}
    bias = _host(cell.bias)
    other = np.zeros_like(bias)
    if not lstm:
        other[2 * cell.hidden_size :] = _host(cell.bias_n)
    return {"bias_ih_l0": bias, "bias_hh_l0": other}


def _host(value: Any) -> Host:
    found: Host = np.array(value)
    return found if found.dtype in (np.float32, np.float64) else found.astype("float32")
