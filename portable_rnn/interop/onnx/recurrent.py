"""ONNX's RNN, GRU and LSTM, run by this library's cells and time loop.

Gates stand in another order there (LSTM ``i o f c``, GRU ``z r h``), and so do peepholes (``i o f``): blocks of rows
are put in order going in, and gradients back coming out.

Where the specification leaves room, this is what onnxruntime does: ``clip`` bounds what goes into the gates, but not
c' on its way into h; with ``input_forget`` the forget gate is ``1 - i`` and its own weights are not used;
``activation_alpha`` and ``activation_beta`` are consumed by the activations that need them, in order. A list as long as
the activations is taken one by one. A row of length zero keeps its initial state (onnxruntime gives zeros).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from ...arrays import Array, Params, namespace_of
from ...cells import Cell, ElmanCell, GRUCell, LSTMCell, split_rows
from ...errors import InputError
from ...execution import jit
from ...layers import Span, run_direction, run_direction_backward, valid_steps
from .nodes import Call, Node, Operator, Pullback

__all__ = ["ACTIVATION_NAMES", "GATES", "OPERATORS", "PEEPHOLES", "SETTINGS", "Unit", "unit_of"]

# ONNX's name -> ours, and which of (alpha, beta) the function has
ACTIVATION_NAMES = {
    "Relu": "relu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Softsign": "softsign",
    "Softplus": "softplus",
    "Elu": "elu",
    "LeakyRelu": "leaky_relu",
    "ThresholdedRelu": "thresholded_relu",
    "Affine": "affine",
    "ScaledTanh": "scaled_tanh",
    "HardSigmoid": "hard_sigmoid",
}
# The settings' values where a file gives none: those of the operators of the same name.
SETTINGS: dict[str, tuple[float, ...]] = {
    "elu": (1.0,),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1.0,),
    "affine": (1.0, 0.0),
    "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5),
}
_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
# The place of our gates among ONNX's: i f g o, or i g o, among i o f c; r u n among z r h. Peepholes i f o among i o f.
GATES = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1), "coupled": (0, 3, 1)}
PEEPHOLES = {"LSTM": (0, 2, 1), "coupled": (0, 1)}
_BLOCKS = {"RNN": 1, "GRU": 3, "LSTM": 4}
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


@dataclass(frozen=True)
class Unit:
    """A recurrent node's configuration.

    Attributes
    ----------
    op : str
        "RNN", "GRU" or "LSTM".
    cells : tuple of Cell
        One for each direction: their activations may differ.
    reverses : tuple of bool
    order, peephole_order : tuple of int
        For each of our row blocks, its place in the file.
    batch_first : bool
        ``layout=1``.
    hidden_size : int or None
        As the file states it.
    """

    op: str
    cells: tuple[Cell, ...]
    reverses: tuple[bool, ...]
    order: tuple[int, ...]
    peephole_order: tuple[int, ...]
    batch_first: bool
    hidden_size: int | None


@functools.lru_cache(maxsize=256)
def unit_of(node: Node) -> Unit:
    """Read a recurrent node's attributes.

    Raises
    ------
    InputError
        An attribute has a value that ONNX does not know.
    """
    reverses = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(
        node.get("direction", "forward")
    )
    if reverses is None:
        raise InputError(f"direction {node.get('direction')!r}: expected forward, reverse or bidirectional")
    layout = node.get("layout", 0)
    if layout not in (0, 1):
        raise InputError(f"layout {layout!r}: expected 0 or 1")
    hidden = node.get("hidden_size")
    if hidden is not None and hidden < 1:
        raise InputError(f"hidden_size {hidden}: expected at least 1")
    clip = node.get("clip") or None
    if clip is not None and not clip > 0:
        raise InputError(f"clip {clip!r}: expected a positive number")
    coupled = bool(node.get("input_forget", 0))
    kind = "coupled" if coupled else node.op
    given = _activations(node, len(reverses))
    count = len(_DEFAULTS[node.op])
    cells = tuple(_cell(node, given[k * count : (k + 1) * count], clip, coupled) for k in range(len(reverses)))
    return Unit(node.op, cells, reverses, GATES[kind], PEEPHOLES.get(kind, ()), bool(layout), hidden)


def _cell(node: Node, names: list[str], clip: float | None, coupled: bool) -> Cell:
    if node.op == "RNN":
        return ElmanCell(names[0], clip)
    if node.op == "GRU":
        return GRUCell(bool(node.get("linear_before_reset", 0)), names[1], names[0], clip)
    f, g, h = names
    return LSTMCell(0, node.has_input(7), coupled, g, f, h if h != g else None, clip)


def _activations(node: Node, directions: int) -> list[str]:
    """Our names of the activations of all directions, with their settings in brackets."""
    names = node.get("activations", _DEFAULTS[node.op] * directions)
    known = {name.lower(): ours for name, ours in ACTIVATION_NAMES.items()}
    wanted = len(_DEFAULTS[node.op]) * directions
    if node.op == "RNN" and len(names) > wanted:  # the default has two, whatever the direction
        names = names[:wanted]
    if len(names) != wanted:
        raise InputError(f"has {len(names)} activations: expected {wanted}")
    for name in names:
        if name.lower() not in known:
            raise InputError(f"activation {name!r}: expected one of {', '.join(ACTIVATION_NAMES)}")
    ours = [known[name.lower()] for name in names]
    settings: list[list[float]] = [[] for _ in ours]
    for k, key in enumerate(("activation_alpha", "activation_beta")):
        values = list(node.get(key, ()))
        users = [j for j, name in enumerate(ours) if len(SETTINGS.get(name, ())) > k]
        one_by_one = len(values) == len(ours)
        for place, j in enumerate(users):
            at = j if one_by_one else place
            settings[j].append(values[at] if at < len(values) else SETTINGS[ours[j]][k])
    return [f"{name}({', '.join(map(repr, s))})" if s else name for name, s in zip(ours, settings, strict=True)]


# ---------------------------------------------------------------------- the operator


def _recurrent(call: Call, *inputs: Array | None) -> tuple[tuple[Any, ...], Pullback | None]:
    given = {name: x for name, x in zip(_INPUTS, inputs, strict=False) if x is not None}
    unit = unit_of(call.node)
    _check_shapes(unit, given)
    outputs, saved = jit(call.xp, _forward, static=("unit",))(given, unit=unit)

    def pullback(*douts: Array) -> tuple[Array | None, ...]:
        found = jit(call.xp, _backward, static=("unit",))(given, saved, list(douts), unit=unit)
        return tuple(found.get(name) for name in _INPUTS[: len(inputs)])

    return outputs, pullback


def _check_shapes(unit: Unit, given: dict[str, Array]) -> None:
    missing = [name for name in ("X", "W", "R") if name not in given]
    if missing:
        raise InputError(f"lacks input {missing[0]}")
    for name in ("X", "W", "R"):
        if given[name].ndim != 3:
            raise InputError(f"{name} has shape {tuple(given[name].shape)}: expected three axes")
    hidden = int(given["R"].shape[2])
    if unit.hidden_size not in (None, hidden):
        raise InputError(f"hidden_size is {unit.hidden_size}, but R has shape {tuple(given['R'].shape)}")
    batch, directions = given["X"].shape[0 if unit.batch_first else 1], len(unit.cells)
    if 0 in given["X"].shape or 0 in given["R"].shape:
        raise InputError(f"X has shape {tuple(given['X'].shape)}: expected at least one row, step and feature")
    rows = _BLOCKS[unit.op] * hidden
    state = (batch, directions, hidden) if unit.batch_first else (directions, batch, hidden)
    expected = {
        "W": (directions, rows, given["X"].shape[2]),
        "R": (directions, rows, hidden),
        "B": (directions, 2 * rows),
        "sequence_lens": (batch,),
        "initial_h": state,
        "initial_c": state,
        "P": (directions, 3 * hidden),
    }
    for name, shape in expected.items():
        if name in given and tuple(given[name].shape) != tuple(shape):
            raise InputError(f"{name} must have shape {tuple(shape)}, got {tuple(given[name].shape)}")


def _forward(given: dict[str, Array], *, unit: Unit) -> tuple[tuple[Array, ...], Any]:
    x = given["X"]
    xp = namespace_of(x)
    x = xp.permute_dims(x, (1, 2, 0) if unit.batch_first else (0, 2, 1))  # (T, I, B)
    valid = None
    if "sequence_lens" in given:
        lengths = given["sequence_lens"]
        valid = xp.permute_dims(valid_steps(xp, lengths, x.shape[0], lengths), (1, 0))[:, None, :]
        x = xp.where(valid, x, xp.zeros_like(x))
    outputs, finals, saved = [], [], []
    for d, (cell, reverse) in enumerate(zip(unit.cells, unit.reverses, strict=True)):
        state = _initial(xp, unit, given, d)
        hs, final, residual = run_direction(xp, cell, reverse, _own(xp, unit, given, d), x, state, Span(valid), None)
        outputs.append(hs if valid is None else xp.where(valid, hs, xp.zeros_like(hs)))
        finals.append(final)
        saved.append(residual)
    y = xp.permute_dims(xp.stack(outputs), (3, 1, 0, 2) if unit.batch_first else (1, 0, 3, 2))
    axes = (2, 0, 1) if unit.batch_first else (0, 2, 1)
    states = (xp.permute_dims(xp.stack([f[part] for f in finals]), axes) for part in range(len(finals[0])))
    return (y, *states), (saved, valid)


def _backward(given: dict[str, Array], saved: Any, douts: list[Array], *, unit: Unit) -> dict[str, Array]:
    """Cotangents of the inputs by name, from those of Y, Y_h and, in an LSTM, Y_c."""
    residuals, valid = saved
    xp = namespace_of(given["X"])
    dy = xp.permute_dims(douts[0], (2, 1, 3, 0) if unit.batch_first else (1, 0, 3, 2))  # (D, T, H, B)
    if valid is not None:
        dy = xp.where(valid, dy, xp.zeros_like(dy))
    axes = (1, 2, 0) if unit.batch_first else (0, 2, 1)
    dfinals = [xp.permute_dims(d, axes) for d in douts[1:]]
    dx: Any = None
    grads, dinitials = [], []
    for d, (cell, reverse) in enumerate(zip(unit.cells, unit.reverses, strict=True)):
        dstate = tuple(part[d, ...] for part in dfinals)
        found, dx_d, dinitial, _ = run_direction_backward(
            xp, cell, reverse, _own(xp, unit, given, d), residuals[d], dy[d, ...], dstate
        )
        grads.append(_theirs(xp, unit, found))
        dinitials.append(dinitial)
        dx = dx_d if dx is None else dx + dx_d
    if valid is not None:
        dx = xp.where(valid, dx, xp.zeros_like(dx))
    cotangents = {"X": xp.permute_dims(dx, (2, 0, 1) if unit.batch_first else (0, 2, 1))}
    cotangents |= {name: xp.stack([g[name] for g in grads]) for name in grads[0]}
    axes = (2, 0, 1) if unit.batch_first else (0, 2, 1)
    for part, name in enumerate(("initial_h", "initial_c")[: len(dfinals)]):
        cotangents[name] = xp.permute_dims(xp.stack([d[part] for d in dinitials]), axes)
    return cotangents


def _initial(xp: Any, unit: Unit, given: dict[str, Array], d: int) -> tuple[Array, ...]:
    """One direction's initial state, feature-first (H, B)."""
    parts = []
    hidden, batch = given["R"].shape[2], given["X"].shape[0 if unit.batch_first else 1]
    for name in ("initial_h", "initial_c")[: 2 if unit.op == "LSTM" else 1]:
        if name not in given:
            zero = xp.zeros_like(given["R"][0, :1, :])
            parts.append(xp.broadcast_to(zero[:, :, None], (1, hidden, batch))[0, ...])
            continue
        state = given[name]
        parts.append((state[:, d, :] if unit.batch_first else state[d, ...]).T)
    return tuple(parts)


def _picked(xp: Any, a: Array, blocks: int, order: tuple[int, ...]) -> Array:
    """Row blocks of `a` in our order."""
    parts = split_rows(a, blocks)
    return xp.concat([parts[k] for k in order], axis=0) if blocks > 1 else a


def _put_back(xp: Any, d: Array, blocks: int, order: tuple[int, ...]) -> Array:
    """Reverse `_picked`: blocks that were not taken have no gradient."""
    parts = split_rows(d, len(order))
    return xp.concat([parts[order.index(k)] if k in order else xp.zeros_like(parts[0]) for k in range(blocks)], axis=0)


def _own(xp: Any, unit: Unit, given: dict[str, Array], d: int) -> Params:
    """One direction's weights under this library's names, gates in its order."""
    blocks = _BLOCKS[unit.op]
    p = {
        "weight_ih": _picked(xp, given["W"][d, ...], blocks, unit.order),
        "weight_hh": _picked(xp, given["R"][d, ...], blocks, unit.order),
    }
    if "B" in given:
        input_bias, hidden_bias = split_rows(given["B"][d, ...], 2)
        p["bias_ih"] = _picked(xp, input_bias, blocks, unit.order)
        p["bias_hh"] = _picked(xp, hidden_bias, blocks, unit.order)
    if "P" in given:
        p["weight_peephole"] = _picked(xp, given["P"][d, ...], 3, unit.peephole_order)
    return p


def _theirs(xp: Any, unit: Unit, grads: Params) -> Params:
    """One direction's gradients as W, R, B and P."""
    blocks = _BLOCKS[unit.op]
    put = functools.partial(_put_back, xp, blocks=blocks, order=unit.order)
    found = {"W": put(grads["weight_ih"]), "R": put(grads["weight_hh"])}
    if "bias_ih" in grads:
        found["B"] = xp.concat([put(grads["bias_ih"]), put(grads["bias_hh"])], axis=0)
    if "weight_peephole" in grads:
        found["P"] = _put_back(xp, grads["weight_peephole"], 3, unit.peephole_order)
    return found


OPERATORS = {
    "GRU": Operator(_recurrent, 22),
    "LSTM": Operator(_recurrent, 22),
    "RNN": Operator(_recurrent, 22),
}
