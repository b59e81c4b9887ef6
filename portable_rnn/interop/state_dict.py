"""State dicts: which network do these arrays belong to?

What names and shapes say is read; what they don't say is asked for (pooling, activations, an RNN's nonlinearity, the
order of a file that keeps none) or, where no answer is needed to run, said in the model's metadata.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, printable
from ..layers import GRU, LSTM, RNN, Embedding, Layer, Linear
from ..models import Model
from .common import POOLINGS, HostParams, Piece, Source, model_of
from .state_dict_files import host_arrays
from .state_dict_gaps import Activations, Gap, answered, missing_numbers

__all__ = ["from_state_dict"]

_RECURRENT_NAME = re.compile(r"(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))_l(0|[1-9][0-9]{0,3})(?:_reverse)?")
_DECODER = re.compile(r"(?:^|[._])dec(?:oder)?(?:[._]|$)", re.IGNORECASE)
_WIDEST_SEARCH = 6  # layers whose order is looked for by their widths


def from_state_dict(
    state_dict: Mapping[str, Any],
    *,
    ordered: bool,
    pooling: str | None,
    activations: Activations,
    nonlinearity: str | None,
    order: Sequence[str] | None,
    network: Layer | None,
    backend: Any,
    dtype: Any,
) -> Model:
    """`from_torch` of a state dict; `ordered` says whether the order of its names means anything."""
    groups = _groups(host_arrays(state_dict))
    if not groups:
        raise InputError("the state dict is empty")
    for prefix, params in groups.items():
        if any(0 in value.shape for value in params.values()):
            raise InputError(
                f"{prefix!r} of the state dict has {_listed(params)}: expected at least one number in each"
            )
    decoder = next((p for p in groups if _DECODER.search(p) and _runs_over_time(groups[p])), None)
    if decoder is not None and order is None and network is None and sum(map(_runs_over_time, groups.values())) > 1:
        raise InputError(
            f"{decoder!r} of the state dict: expected layers in one chain, got a decoder, which may start from another "
            "layer's state or be given its last output: pass order= with the names in the order they run if it takes "
            "every step of the layer before it, and convert the parts by themselves if not"
        )
    if order is not None:
        named = isinstance(order, (list, tuple)) and all(isinstance(name, str) for name in order)
        if not named or sorted(order) != sorted(groups):
            raise InputError(f"order must name every layer once: expected {', '.join(map(repr, groups))}, got {order}")
        groups = {prefix: groups[prefix] for prefix in order}
        ordered = True
    if network is not None:
        open_ones = {"activations": activations, "nonlinearity": nonlinearity}
        given = [name for name, value in open_ones.items() if value is not None]
        if pooling not in ("auto", None) or given:
            raise InputError(f"{(given or ['pooling'])[0]}: expected None beside network=, which says it: leave it out")
        return _model([_fitted(network, groups, ordered)], (), backend, dtype)
    pieces = _chain(groups, nonlinearity) if ordered else _ordered(groups, nonlinearity)
    chain = " -> ".join(printable(piece.name, 60) for piece in pieces)
    pieces = _completed(pieces, pooling, activations)
    notes = (
        f"read as one chain, {chain}, each layer given every step of the one before it where nothing else is said: "
        "what a forward does beside calling its layers is not in a state dict",
        "dropout, what follows the last layer (a sigmoid, a softmax) and batch_first are not in a state dict either: "
        "the model has no dropout, ends with its last layer and takes (batch, time, features)",
    )
    return _model(pieces, notes, backend, dtype)


def _model(pieces: list[Piece], notes: tuple[str, ...], backend: Any, dtype: Any) -> Model:
    names = ", ".join(repr(printable(piece.name, 60)) for piece in pieces)
    check = f"names and shapes fit; a state dict can't be run, so no outputs were compared ({names})"
    return model_of(pieces, Source("torch", "unknown", "state dict", notes), check, backend, dtype)


# ---------------------------------------------------------------------- what is not in a state dict


def _completed(pieces: list[Piece], pooling: str | None, activations: Activations) -> list[Piece]:
    """The chain with its pooling and with what the caller says stands in its gaps."""
    place = _pooled_place(pieces, pooling)
    pooled = pooling in POOLINGS
    if pooling == "ends" and place is not None and not getattr(pieces[place - 1].layer, "bidirectional", False):
        raise InputError(
            f"pooling: expected 'last', 'mean', 'max' or None, as {pieces[place - 1].name!r} has one direction, got "
            "'ends'"
        )
    gaps = _gaps(pieces, place if pooled else None)
    completed = list[Piece]()
    between = dict(zip((gap.place for gap in gaps), answered(gaps, activations), strict=True))
    for k in range(len(pieces) + 1):
        if k == place and pooled:
            completed.append(Piece("pooling", POOLINGS[str(pooling)](), {}))
        layer = between.get(k)
        if layer is not None:
            completed.append(Piece(f"{layer}", layer, {}))
        completed += pieces[k : k + 1]
    _check_widths(completed)
    return completed


def _pooled_place(pieces: list[Piece], pooling: str | None) -> int | None:
    """In front of which piece the pooling stands, if there may be one."""
    recurrent = [k for k, piece in enumerate(pieces) if isinstance(piece.layer, (RNN, LSTM, GRU))]
    embedding = [k for k, piece in enumerate(pieces) if isinstance(piece.layer, Embedding)]
    if not recurrent and not embedding:
        if pooling not in ("auto", None):
            raise InputError(f"pooling: expected None, as no layer of the state dict runs over time, got {pooling!r}")
        return None
    place = (recurrent or embedding)[-1] + 1
    if place < len(pieces) and pooling == "auto":
        raise InputError(
            f"a state dict doesn't say what {pieces[place].name!r} is given, each step's output of "
            f"{pieces[place - 1].name!r} or one of them: pass pooling=None, 'last', 'ends', 'mean' or 'max'"
        )
    return place


def _gaps(pieces: list[Piece], pooled: int | None) -> list[Gap]:
    """Where the numbering leaves names out, and where a Linear is followed by a layer that it makes pointless.

    A pooling in front of piece `pooled` is what a number stands for that is missing right behind the layer it pools.
    """
    gaps = []
    names = [piece.name for piece in pieces]
    for k, missing in enumerate(missing_numbers(names)):
        if k and k == pooled and missing and missing[0].rpartition(".")[0] == names[k - 1].rpartition(".")[0]:
            missing = missing[1:]
        before = pieces[k - 1].layer if k else None
        behind_linear = isinstance(before, Linear) and not _adjoin(names[k - 1], names[k], pieces[k].layer)
        if missing or behind_linear:
            gaps.append(Gap(k, names[k - 1] if k else "", names[k], missing))
    return gaps


def _adjoin(left: str, right: str, layer: Layer) -> bool:
    """Whether two layers are neighbours in a Sequential by their numbers.

    Not said of two Linear: those are a ModuleList more often than not, with functions called between them.
    """
    (parent, _, first), (other, _, second) = left.rpartition("."), right.rpartition(".")
    digits = first.isascii() and first.isdigit() and second.isascii() and second.isdigit()
    return parent == other and digits and int(second) == int(first) + 1 and not isinstance(layer, Linear)


def _check_widths(pieces: Sequence[Piece]) -> None:
    width, giver = None, ""
    for piece in pieces:
        takes = piece.layer.in_width
        if None not in (width, takes) and width != takes:
            raise InputError(
                f"{piece.name!r} of the state dict takes {takes} features, but {giver!r} before it gives {width}: pass "
                "order= with the names in the order they run, or network= (with prnn.Merge('sum') where the directions "
                "of a bidirectional layer are added)"
            )
        width, giver = piece.layer.out_width(width), piece.name


# ---------------------------------------------------------------------- the order of the layers


def _groups(params: HostParams) -> dict[str, HostParams]:
    """The parameters of each layer, by the prefix of their names."""
    groups: dict[str, HostParams] = {}
    for name, value in params.items():
        prefix, _, leaf = name.rpartition(".")
        groups.setdefault(prefix, {})[leaf] = value
    return groups


def _runs_over_time(params: HostParams) -> bool:
    return not params.keys().isdisjoint(("weight_ih_l0", "weight_ih"))


def _chain(groups: Mapping[str, HostParams], nonlinearity: str | None) -> list[Piece]:
    names = list(groups)
    pieces = []
    for k, (prefix, params) in enumerate(groups.items()):
        following = _takes(groups[names[k + 1]]) if k + 1 < len(names) else None
        pieces.append(_piece(prefix, params, nonlinearity, following, first=k == 0))
    if nonlinearity is not None and not any(isinstance(piece.layer, RNN) for piece in pieces):
        raise InputError(f"nonlinearity: expected None, as there is no RNN in the state dict, got {nonlinearity!r}")
    return pieces


def _takes(params: HostParams) -> int | None:
    """Input features of a layer, by its parameters."""
    weight = params.get("weight_ih_l0", params.get("weight_ih", params.get("weight")))
    return int(weight.shape[1]) if weight is not None and weight.ndim == 2 else None


def _gives(params: HostParams) -> int | None:
    """Output features of a recurrent or linear layer, by its parameters."""
    recurrent = params.get("weight_hh_l0", params.get("weight_hh"))
    if recurrent is not None and recurrent.ndim == 2:
        return int(recurrent.shape[1]) * (2 if "weight_ih_l0_reverse" in params else 1)
    weight = params.get("weight")
    return int(weight.shape[0]) if weight is not None and weight.ndim else None


def _by_number(groups: Mapping[str, HostParams]) -> list[str] | None:
    """The prefixes by their numbers, where they are the numbers of one container, of containers in it too."""
    if len(groups) < 2:
        return list(groups)
    parts = {prefix: prefix.split(".") for prefix in groups}
    shared = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts.values(), strict=False)))
    own = {prefix: part[shared:] for prefix, part in parts.items()}
    if not all(re.fullmatch("[0-9]{1,9}", p) for numbers in own.values() for p in numbers):
        return None
    return sorted(groups, key=lambda prefix: [int(p) for p in own[prefix]])


def _ordered(groups: Mapping[str, HostParams], nonlinearity: str | None) -> list[Piece]:
    """The chain of a file that keeps no order: by number where the names are numbers, else by the widths."""
    ranked = _by_number(groups)
    if ranked is not None:
        return _chain({prefix: groups[prefix] for prefix in ranked}, nonlinearity)
    fitting = []
    for prefixes in itertools.permutations(groups) if len(groups) <= _WIDEST_SEARCH else ():
        pairs = itertools.pairwise(groups[prefix] for prefix in prefixes)
        if all(_fits(left, right, first=k == 0) for k, (left, right) in enumerate(pairs)):
            fitting.append(prefixes)
    if len(fitting) != 1:
        raise InputError(
            f"the file keeps no order of its layers ({', '.join(groups)}) and their widths fit in {len(fitting)} "
            f"orders: pass order=({', '.join(map(repr, groups))}) in the order they run"
        )
    return _chain({prefix: groups[prefix] for prefix in fitting[0]}, nonlinearity)


def _fits(left: HostParams, right: HostParams, *, first: bool) -> bool:
    if _gives(left) == _takes(right):
        return True
    return first and left.keys() == {"weight"} and left["weight"].shape[-1] == _takes(right)  # an embedding


# ---------------------------------------------------------------------- names and shapes to layers


def _piece(prefix: str, params: HostParams, nonlinearity: str | None, following: int | None, *, first: bool) -> Piece:
    name = prefix or "the layer"
    if "weight_ih" in params:  # a cell
        params = {f"{key}_l0": value for key, value in params.items()}
    if "weight_ih_l0" in params:
        layer = _recurrent(name, params, nonlinearity)
    elif params.keys() <= {"weight", "bias"} and "weight" in params and params["weight"].ndim == 2:
        layer = _plain(name, params, following, first=first)
    else:
        raise InputError(
            f"{name!r} of the state dict has {_listed(params)}: expected the parameters of an RNN, LSTM, GRU, Linear "
            "or Embedding; pass network= if they are others'"
        )
    try:
        layer.check_params(params)
    except InputError as error:
        raise InputError(f"{name!r} of the state dict looks like {layer}, but {error}") from error
    return Piece(name, layer, {n: params[n] for n in layer.parameter_shapes()})


def _listed(params: HostParams) -> str:
    shown = [f"{name} {value.shape}" for name, value in itertools.islice(params.items(), 20)]
    return ", ".join(shown) + (f" and {len(params) - 20} more" if len(params) > 20 else "")


def _recurrent(name: str, params: HostParams, nonlinearity: str | None) -> Layer:
    weight, recurrent = params["weight_ih_l0"], params.get("weight_hh_l0")
    if recurrent is None or weight.ndim != 2 or recurrent.ndim != 2:
        raise InputError(f"{name!r} of the state dict has {_listed(params)}: weight_ih_l0 needs a weight_hh_l0")
    numbers = [_RECURRENT_NAME.fullmatch(key) for key in params]
    layers = {int(match[1]) for match in numbers if match}
    if not all(numbers) or layers != set(range(len(layers))):
        raise InputError(
            f"{name!r} of the state dict has {_listed(params)}: expected names of torch's recurrent layers numbered "
            "from 0, as weight_ih_l0; pass network= if they are others'"
        )
    projection = params.get("weight_hr_l0")
    hidden = int(recurrent.shape[1] if projection is None else projection.shape[-1])
    gates, rest = divmod(weight.shape[0], hidden)
    options: dict[str, Any] = {
        "num_layers": len(layers),
        "bias": "bias_ih_l0" in params,
        "bidirectional": "weight_ih_l0_reverse" in params,
    }
    if rest or gates not in (1, 3, 4):
        raise InputError(
            f"{name!r} of the state dict has {weight.shape[0]} rows of gates for {hidden} hidden features: expected "
            "1 (RNN), 3 (GRU) or 4 (LSTM) times as many"
        )
    if gates == 4:
        return LSTM(weight.shape[1], hidden, proj_size=0 if projection is None else projection.shape[0], **options)
    if gates == 3:
        return GRU(weight.shape[1], hidden, **options)
    if nonlinearity is None:
        raise InputError(f"{name!r} is an RNN, and a state dict doesn't say which: pass nonlinearity='tanh' or 'relu'")
    return RNN(weight.shape[1], hidden, nonlinearity=nonlinearity, **options)


def _plain(name: str, params: HostParams, following: int | None, *, first: bool) -> Layer:
    rows, columns = params["weight"].shape
    as_embedding = first and "bias" not in params and following is not None and following == columns
    as_linear = following is None or following == rows
    if "bias" not in params and first and ((as_embedding and as_linear) or following is None):
        raise InputError(
            f"{name!r} of the state dict has one weight {(rows, columns)} only, as a Linear without bias and an "
            "Embedding have: pass network="
        )
    return Embedding(rows, columns) if as_embedding else Linear(columns, rows, "bias" in params)


def _fitted(network: Layer, groups: Mapping[str, HostParams], ordered: bool) -> Piece:
    """The parameters under the names of a given network, layer by layer."""
    if not isinstance(network, Layer):
        raise InputError(f"network: expected a layer such as prnn.LSTM(1, 8), got {type(network).__name__}")
    shapes = network.parameter_shapes()
    wanted: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        prefix, _, leaf = name.rpartition(".")
        wanted.setdefault(prefix, {})[leaf] = shape
    if len(wanted) != len(groups):
        raise InputError(
            f"the network has {len(wanted)} layers with parameters, the state dict {len(groups)}: {', '.join(groups)}"
        )
    params: HostParams = {}
    for (prefix, leaves), source in zip(wanted.items(), _in_order(list(wanted.values()), groups, ordered), strict=True):
        group = {leaf if leaf in leaves else f"{leaf}_l0": value for leaf, value in groups[source].items()}
        if group.keys() != leaves.keys():
            raise InputError(
                f"{source!r} of the state dict has {_listed(groups[source])}, the network wants {list(leaves)}"
            )
        params |= {f"{prefix}.{leaf}" if prefix else leaf: group[leaf] for leaf in leaves}
    network.check_params(params)
    return Piece("the given network", network, {name: params[name] for name in shapes})


def _in_order(wanted: list[dict[str, tuple[int, ...]]], groups: Mapping[str, HostParams], ordered: bool) -> list[str]:
    """The prefixes in the order of a network's layers; those of a file that keeps no order by numbers or by shapes."""
    ranked = None if ordered else _by_number(groups)
    if ordered or ranked is not None:
        return ranked or list(groups)
    kinds = {prefix: {leaf.removesuffix("_l0"): v.shape for leaf, v in own.items()} for prefix, own in groups.items()}
    found = []
    for leaves in wanted:
        kind = {leaf.removesuffix("_l0"): shape for leaf, shape in leaves.items()}
        alike = [prefix for prefix, own in kinds.items() if own == kind]
        if len(alike) != 1:
            raise InputError(
                f"the file keeps no order of its layers ({', '.join(groups)}), and {len(alike)} of them have the "
                f"shapes {kind}: pass order=({', '.join(map(repr, groups))}) in the order of the network's layers"
            )
        found += alike
    return found
