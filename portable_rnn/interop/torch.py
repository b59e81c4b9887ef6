"""From torch: modules, state dicts and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import Array, Backend
from ..errors import ConversionError, InputError
from ..layers import (
    GRU,
    LSTM,
    RNN,
    Layer,
)
from ..models import Model
from .common import (
    POOLINGS,
    Piece,
    Source,
    assemble,
    first_line,
    model_of,
    name_of_type,
    refuse_not_finite,
    require,
)
from .selftest import (
    TOLERANCES,
    Host,
    as_float64,
    chain_difference,
    check_piece,
    passed,
    random_input,
    refuse_if_wrong,
)
from .state_dict import from_state_dict
from .state_dict_files import read_state_dict
from .state_dict_gaps import Activations
from .torch_layers import pieces_of, wide_copy

__all__ = ["from_torch"]


def from_torch(
    source: Any,
    *,
    pooling: str | None = "auto",
    activations: Activations = None,
    nonlinearity: str | None = None,
    order: Sequence[str] | None = None,
    network: Layer | None = None,
    backend: str | ModuleType | Array | Backend = "numpy",
    dtype: Any = None,
) -> Model:
    """A torch module, state dict or file as a model.

    A module is a chain: its children in the order they were defined, those of containers in their place. `RNN`, `LSTM`,
    `GRU` (every option) and their cells, `Linear`, `Embedding`, `Dropout`, `Identity`, activations and softmax are
    known. What ``forward`` does beside calling them isn't read: the module is run on random input in float64, and a
    chain that does not give its outputs is refused. The model is batch-first whatever the module was.

    Parameters
    ----------
    source : torch.nn.Module, mapping of str to array, or path
        A state dict, or a file: .safetensors, .pt, .pth or .bin. Tensors alone are read, and no object is ever built,
        so torch need not be installed.
    pooling : "last", "ends", "mean", "max", None or "auto"
        What stands after the last recurrent child: its last step, the end of each direction, the mean or the maximum
        over time, or nothing. "auto" takes the one that gives the module's outputs; a state dict can't be run, so
        there it has to be said where a layer follows a recurrent one.
    activations : str, sequence of str, or mapping, optional
        What stands in each place of a state dict where something without parameters may be: a number that an
        `nn.Sequential` leaves out (``head.0``, ``head.2``), or between two `Linear` of other names. One of
        `portable_rnn.activations.ACTIVATIONS`, "softmax", "log_softmax", or "none" for a Dropout, an Identity or
        nothing: one for all places, one for each, or by name, as ``{"head.1": "relu"}`` or, of the layer in front,
        ``{"fc1": "tanh"}``.
    nonlinearity : "tanh" or "relu", optional
        Of an RNN in a state dict, which doesn't say.
    order : sequence of str, optional
        The prefixes of a state dict's layers in the order they run, such as ``("embed", "lstm", "head")``; needed where
        neither the order of the names nor the widths tell.
    network : Layer, optional
        The network that a state dict belongs to, in place of one guessed from names and shapes.
    backend, dtype : as in `Model`
        float64 stays float64 and all else becomes float32 where `dtype` is left out.

    Returns
    -------
    Model
        Its metadata says where it came from and how well the outputs agreed.

    Raises
    ------
    InputError
        A child that there is no layer for, an option that no layer has, or a file that isn't whole or holds objects.
    ConversionError
        The chain does not give the module's outputs.
    MissingDependencyError
        torch is not installed and the source needs it.

    Notes
    -----
    ``padding_idx`` of an `Embedding` only holds back a gradient: the outputs are the same, but here the row is trained
    like any other. The model's metadata says so.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> state_dict = {"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}
    >>> prnn.from_torch(state_dict).network
    Linear(3, 2)
    """
    if pooling not in (*POOLINGS, "auto", None):
        raise InputError(f"pooling must be 'auto', 'last', 'ends', 'mean', 'max' or None, got {pooling!r}")
    if isinstance(source, (str, os.PathLike)):
        found = read_state_dict(source, backend, dtype)
        if isinstance(found, Model):
            return found
        source, ordered = found
    else:
        ordered = True
    if isinstance(source, Mapping):
        return from_state_dict(
            source,
            ordered=ordered,
            pooling=pooling,
            activations=activations,
            nonlinearity=nonlinearity,
            order=order,
            network=network,
            backend=backend,
            dtype=dtype,
        )
    torch = require("torch", "torch", "from_torch")
    if not isinstance(source, torch.nn.Module):
        raise InputError(f"from_torch takes a torch module, a state dict or a path, got {name_of_type(source)}")
    if any(option is not None for option in (activations, nonlinearity, order, network)):
        raise InputError(
            "activations, nonlinearity, order and network describe a state dict: a module says these itself"
        )
    return _from_module(torch, source, pooling, backend, dtype)


def _from_module(torch: Any, module: Any, pooling: str | None, backend: Any, dtype: Any) -> Model:
    notes: list[str] = []
    pieces = pieces_of(torch, module, "", notes)
    refuse_not_finite(assemble(pieces)[1])
    params = [p for p in module.parameters() if p.is_floating_point()]
    wide = wide_copy(torch, module)
    layouts = {child.batch_first for child in module.modules() if isinstance(child, torch.nn.RNNBase)}
    worst = max((check_piece(p, "float64", with_state=_has_state(p)) for p in pieces if p.run), default=0.0)
    if len(pieces) != 1 or _is_chain(torch, module):
        pieces, found, time_first = _pooled(torch, wide, pieces, pooling, layouts)
        worst = max(worst, found)
        if time_first:
            notes.append("the module takes (time, batch, features), the model (batch, time, features)")
    elif pooling in POOLINGS:
        pieces = [*pieces, Piece("pooling", POOLINGS[pooling](), {})]
    if layouts == {False} and not notes:
        notes.append("batch_first=False there: the model takes (batch, time, features)")
    if dtype is None and not isinstance(backend, Backend):
        dtype = "float64" if params and params[0].dtype == torch.float64 else "float32"
    source = Source("torch", str(torch.__version__), type(module).__name__, tuple(dict.fromkeys(notes)))
    return model_of(pieces, source, passed(worst, "float64"), backend, dtype)


def _is_chain(torch: Any, module: Any) -> bool:
    return not isinstance(module, (torch.nn.RNNBase, torch.nn.RNNCellBase)) and any(True for _ in module.children())


def _has_state(piece: Piece) -> bool:
    return isinstance(piece.layer, (RNN, LSTM, GRU))


# ---------------------------------------------------------------------- which chain the module is


def _pooled(
    torch: Any, module: Any, pieces: list[Piece], pooling: str | None, layouts: set[bool]
) -> tuple[list[Piece], float, bool]:
    """The pieces with the pooling that gives the module's outputs, the difference, and whether time comes first."""
    recurrent = [k for k, piece in enumerate(pieces) if _has_state(piece)]
    wanted = [None, *POOLINGS] if pooling == "auto" and recurrent else [None if pooling == "auto" else pooling]
    orders = [False, True] if layouts == {False, True} else [layouts == {False}]
    tried: list[tuple[float, str, str, list[Piece], bool]] = []
    errors: list[str] = []
    for time_first in orders:
        for name in wanted:
            chain = list(pieces)
            if name is not None:
                place = recurrent[-1] + 1 if recurrent else len(chain)
                chain.insert(place, Piece(f"{name} pooling", POOLINGS[name](), {}))
            try:
                found, sentence, length = chain_difference(chain, _runner(torch, module, time_first))
            except (InputError, RuntimeError, ValueError, IndexError) as error:
                errors.append(first_line(error))
                continue
            tried.append((found, sentence, length, chain, time_first))
            if found <= TOLERANCES["float64"]:
                return chain, found, time_first
    if not tried:
        raise ConversionError(f"the module could not be run as a chain of its children: {errors[0]}")
    found, sentence, length, chain, time_first = min(tried, key=lambda item: item[0])
    culprit = _first_difference(torch, module, chain, time_first)
    refuse_if_wrong(found, f"{sentence}; {culprit}", "float64", f"{type(module).__name__} with {length}")
    return chain, found, time_first


def _runner(torch: Any, module: Any, time_first: bool) -> Callable[[Host], Host]:
    """The module as a function of batch-first NumPy arrays."""

    def run(x: Host) -> Host:
        tensor = torch.tensor(x)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # for the zero states that a forward makes itself
        try:
            with torch.no_grad():
                y = module(tensor.transpose(0, 1) if time_first else tensor)
        finally:
            torch.set_default_dtype(default)
        y = y[0] if isinstance(y, (tuple, list)) else y
        if not isinstance(y, torch.Tensor):
            raise InputError(
                f"{type(module).__name__} returns {name_of_type(y)}: expected a tensor, or a tuple with one"
            )
        found: Host = (y.transpose(0, 1) if time_first and y.ndim == 3 else y).to(torch.float64).numpy()
        return found

    return run


def _first_difference(torch: Any, module: Any, chain: Sequence[Piece], time_first: bool) -> str:
    """Which child's output differs first, by hooks on the module's children."""
    children = dict(module.named_modules())
    seen: dict[str, Any] = {}
    hooks = [
        children[piece.name].register_forward_hook(lambda _m, _i, y, n=piece.name: seen.__setitem__(n, y))
        for piece in chain
        if piece.name in children
    ]
    x = random_input(assemble(chain)[0], 3, 5, np.random.default_rng(2))
    try:
        _runner(torch, module, time_first)(x)
        for piece in chain:
            x, _ = piece.layer.apply(as_float64(piece.params), x)
            if piece.name in children and piece.name not in seen:
                return f"its forward never calls {piece.name!r}"
            y = seen.get(piece.name)
            y = y[0] if isinstance(y, tuple) else y
            if y is None:
                continue
            y = y.transpose(0, 1) if time_first and y.ndim == 3 else y
            if tuple(y.shape) != x.shape or not np.allclose(y.numpy(), x, rtol=1e-9, atol=1e-12):
                return f"the first child that is given another input than in a chain is {piece.name!r}"
    except (InputError, RuntimeError, ValueError):
        return "its children can't be followed one by one"
    finally:
        for hook in hooks:
            hook.remove()
    return "every child agrees: what differs comes after the last one"
