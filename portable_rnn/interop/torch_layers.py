"""The children of a torch module as layers of ours, each with its parameters and with itself to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ..errors import InputError
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
from .common import Piece, first_line, name_of_type, tensor_to_host
from .selftest import Host

__all__ = ["pieces_of", "wide_copy"]


def wide_copy(torch: Any, module: Any) -> Any:
    """The module in float64 on the CPU, in evaluation mode."""
    try:
        return copy.deepcopy(module).to("cpu", torch.float64).eval()
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{type(module).__name__} can't be copied for the test ({first_line(error)}): pass its state_dict() instead"
        ) from error


def pieces_of(torch: Any, module: Any, name: str, notes: list[str]) -> list[Piece]:
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
        for piece in pieces_of(torch, child, f"{name}.{child_name}" if name else child_name, notes)
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
    wide = wide_copy(torch, module)

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
