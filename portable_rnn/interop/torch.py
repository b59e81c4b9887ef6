"""From torch: modules, state dicts and files."""

from __future__ import annotations

import copy
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
    Activation,
    Dropout,
    Embedding,
    Ends,
    Flip,
    Last,
    Layer,
    Linear,
    Max,
    Mean,
    Merge,
    SharedDropout,
    Softmax,
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
    tensor_to_host,
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
    pieces = _pieces(torch, module, "", notes)
    refuse_not_finite(assemble(pieces)[1])
    params = [p for p in module.parameters() if p.is_floating_point()]
    wide = _wide_copy(torch, module)
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


def _wide_copy(torch: Any, module: Any) -> Any:
    """The module in float64 on the CPU, in evaluation mode."""
    try:
        return copy.deepcopy(module).to("cpu", torch.float64).eval()
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{type(module).__name__} can't be copied for the test ({first_line(error)}): pass its state_dict() instead"
        ) from error


# ---------------------------------------------------------------------- its children


def _pieces(torch: Any, module: Any, name: str, notes: list[str]) -> list[Piece]:
    nn = torch.nn
    if torch.nn.utils.parametrize.is_parametrized(module):
        raise InputError(
            f"{_named(name)}{name_of_type(module)} has parametrized weights: remove them with "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return [_recurrent(torch, module, name)]
    layer = _plain_layer(torch, module, name, notes)
    if layer is not None:
        params = _host_params(torch, module, name, layer.parameter_shapes())
        return [Piece(name or type(module).__name__, layer, params)] if not _is_nothing(module, nn) else []
    children = list(module.named_children())
    own = [parameter for parameter, _ in module.named_parameters(recurse=False)]
    if not children or own or _is_foreign(torch, module):
        what = f" with parameters of its own ({', '.join(own)})" if own and children else ""
        raise InputError(
            f"{_named(name)}{name_of_type(module)}{what} can't be converted: there is no such layer here; "
            "known are RNN, LSTM, GRU and their cells, Linear, Embedding, Dropout, Identity, activations and softmax"
        )
    return [
        piece
        for child_name, child in children
        for piece in _pieces(torch, child, f"{name}.{child_name}" if name else child_name, notes)
    ]


def _is_foreign(torch: Any, module: Any) -> bool:
    """A module of torch itself that is no container: a Transformer, a quantized layer."""
    containers = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
    return type(module).__module__.startswith("torch.") and not isinstance(module, containers)


def _is_nothing(module: Any, nn: Any) -> bool:
    return isinstance(module, nn.Identity)


def _named(name: str) -> str:
    return f"child {name!r}: " if name else ""


def _plain_layer(torch: Any, module: Any, name: str, notes: list[str]) -> Layer | None:
    nn = torch.nn
    if type(module) is nn.Linear:
        return Linear(module.in_features, module.out_features, module.bias is not None)
    if type(module) is nn.Embedding:
        if module.max_norm is not None:
            raise InputError(f"{_named(name)}Embedding with max_norm={module.max_norm} changes its table while it runs")
        if module.padding_idx is not None:
            notes.append(f"padding_idx={module.padding_idx} of {name or 'Embedding'}: here the row is trained as well")
        if module.scale_grad_by_freq:
            notes.append(f"scale_grad_by_freq of {name or 'Embedding'} is not carried over")
        return Embedding(module.num_embeddings, module.embedding_dim)
    if type(module) is nn.Dropout:
        return Dropout(module.p)
    if isinstance(module, nn.Identity):
        return Activation("identity")
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)):
        if module.dim != -1:
            raise InputError(f"{_named(name)}{module}: only dim=-1, over the features, can be converted")
        return Softmax(log=isinstance(module, nn.LogSoftmax))
    return _activation_layer(nn, module) or _own_layer(module)


def _activation_layer(nn: Any, module: Any) -> Layer | None:
    simple = {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.ReLU: "relu", nn.Softsign: "softsign"}
    if type(module) in simple:
        return Activation(simple[type(module)])
    if type(module) is nn.Softplus and module.beta == 1:
        return Activation("softplus")  # torch returns x itself beyond its threshold of 20: 2e-9 less
    if type(module) is nn.ELU:
        return Activation(f"elu({module.alpha!r})")
    if type(module) is nn.LeakyReLU and module.negative_slope > 0:
        return Activation(f"leaky_relu({module.negative_slope!r})")
    if type(module) is nn.Threshold and module.value == 0:
        return Activation(f"thresholded_relu({float(module.threshold)!r})")
    if type(module) is nn.Hardsigmoid:
        return Activation(f"hard_sigmoid({1 / 6!r}, 0.5)")
    return None


def _is_own(module: Any) -> bool:
    return type(module).__module__ == f"{__package__}.torch_modules"


def _own_layer(module: Any) -> Layer | None:
    """The layer that `to_torch` made a module of."""
    if not _is_own(module):
        return None
    kind = type(module).__name__
    small: dict[str, Callable[[], Layer]] = {
        "Last": Last,
        "Mean": Mean,
        "Max": Max,
        "Flip": Flip,
        "Ends": Ends,
        "Merge": lambda: Merge(module.mode),
        "SharedDropout": lambda: SharedDropout(module.p),
        "Elementwise": lambda: Activation(module.function),
    }
    return small[kind]() if kind in small else None


def _recurrent(torch: Any, module: Any, name: str) -> Piece:
    nn = torch.nn
    one_step = isinstance(module, nn.RNNCellBase)
    kind = type(module).__name__.removesuffix("Cell") if one_step else module.mode.partition("_")[0]
    layers = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
    options: dict[str, Any] = {"bias": bool(module.bias)}
    if kind == "RNN":
        options["nonlinearity"] = module.nonlinearity
    if not one_step:
        options |= {"bidirectional": module.bidirectional, "dropout": float(module.dropout)}
        options["num_layers"] = module.num_layers
        if kind == "LSTM":
            options["proj_size"] = module.proj_size
        options["reverse"] = _is_own(module)  # of ours, only the reversed ones are torch's recurrent modules
    if kind not in layers:
        raise InputError(f"{_named(name)}{name_of_type(module)} can't be converted: expected RNN, LSTM or GRU")
    layer = layers[kind](module.input_size, module.hidden_size, **options)
    ending = "_l0" if one_step else ""
    shapes = {n.removesuffix(ending): shape for n, shape in layer.parameter_shapes().items()}
    params = {n + ending: value for n, value in _host_params(torch, module, name, shapes).items()}
    return Piece(name or type(module).__name__, layer, params, _recurrent_runner(torch, module, one_step))


def _recurrent_runner(torch: Any, module: Any, one_step: bool) -> Callable[..., Any]:
    wide = _wide_copy(torch, module)

    def run(x: Host, state: Any = None) -> Any:
        given = state if isinstance(state, tuple) else (state,)
        tensors = tuple(torch.tensor(part) for part in given)
        steps = torch.tensor(x)
        with torch.no_grad():
            if one_step:
                return _run_cell(torch, wide, steps, tensors)
            steps = steps if wide.batch_first else steps.transpose(0, 1)
            y, final = wide(steps, tensors if len(tensors) > 1 else tensors[0])
            y = y if wide.batch_first else y.transpose(0, 1)
        return y.numpy(), tuple(f.numpy() for f in final) if isinstance(final, tuple) else final.numpy()

    return run


def _run_cell(torch: Any, cell: Any, x: Any, state: Any) -> Any:
    state = tuple(part[0] for part in state)
    ys = []
    for t in range(x.shape[1]):
        new = cell(x[:, t], state if len(state) > 1 else state[0])
        state = new if isinstance(new, tuple) else (new,)
        ys.append(state[0])
    final = tuple(part[None].numpy() for part in state)
    return torch.stack(ys, dim=1).numpy(), final if len(final) > 1 else final[0]


def _host_params(torch: Any, module: Any, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Host]:
    own = dict(module.named_parameters(recurse=False))
    if own.keys() != shapes.keys():
        raise InputError(
            f"{_named(name)}{name_of_type(module)} has parameters {', '.join(own) or 'none'}, expected "
            f"{', '.join(shapes)}: remove weight or spectral normalisation first"
        )
    return {n: tensor_to_host(torch, value) for n, value in own.items()}
