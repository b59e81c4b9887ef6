"""Gradients against finite differences, and which entry is wrong where they differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import leaves, map_leaves
from ..layers import walk
from .subject import Finding, Host, Subject

__all__ = ["check_finite_differences"]

# A central difference of this step is right to about 1e-9 of the gradient in float64.
STEP = 1e-5
LIMIT = 1e-6
DIRECTIONS = 2
# Rows of a recurrent layer's weights, by layer
GATES = {"LSTM": "ifgo", "LayerNormLSTM": "ifgo", "GRU": "run", "LayerNormGRU": "run", "MinGRU": "un", "MinLSTM": "fin"}


def check_finite_differences(subject: Subject) -> Finding:
    """Each parameter, the input and the initial state, with rows of every length and cotangents of all outputs.

    The derivative along random directions is compared, so every entry takes part.
    """
    subject = subject.exact
    lengths = subject.lengths if subject.has_steps else None
    x = subject.x
    y, final = subject.outputs(x, None, lengths)
    state = subject.cotangent(final, seed=11)
    dy, dstate = subject.cotangent(y, seed=12), subject.cotangent(final, seed=13)
    dparams, dx, dinitial = subject.pulled_back(x, state, lengths, dy=dy, dstate=dstate)

    def loss(params: Any, x: Any, state: Any) -> float:
        y, final = subject.network.apply(params, x, state, lengths)
        return sum(float(np.sum(a * b)) for a, b in zip(leaves((dy, dstate)), leaves((y, final)), strict=True))

    worst = Finding(0.0, LIMIT, "")
    for name, at, gradient, evaluate in _arguments(subject.host_params, x, state, dparams, dx, dinitial, loss):
        scale = max(float(np.linalg.norm(gradient)), 1e-6 * _scale((dparams, dx, dinitial)))
        for seed in range(DIRECTIONS):
            found, expected = _along(seed, at, gradient, evaluate)
            error = float(abs(found - expected) / (scale or 1.0))
            if not error <= (worst.error or 0.0):
                worst = Finding(error, LIMIT, f"the gradient of {name}")
                if not error <= LIMIT:
                    return Finding(error, LIMIT, _entry(name, at, gradient, evaluate, subject))
    return worst


def _arguments(params: Any, x: Host, state: Any, dparams: Any, dx: Any, dstate: Any, loss: Callable[..., float]) -> Any:
    """(name, value, gradient, the loss as a function of this argument) of everything that has a gradient."""
    for key in params:
        yield key, params[key], dparams[key], lambda value, key=key: loss(params | {key: value}, x, state)
    if dx is not None:
        yield "x", x, dx, lambda value: loss(params, value, state)
    parts, gradients = list(leaves(state)), list(leaves(dstate))
    for k, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):

        def with_part(value: Any, k: int = k) -> float:
            numbered = iter(range(len(parts)))
            changed = map_leaves(lambda old: value if next(numbered) == k else old, state)
            return loss(params, x, changed)

        yield f"the initial state, array {k}", part, gradient, with_part


def _along(seed: int, at: Host, gradient: Host, evaluate: Callable[[Host], float]) -> tuple[float, float]:
    """(finite difference, pullback's answer) along a random direction that meets no jump of a derivative."""
    for attempt in range(6):
        drawn = np.random.default_rng(100 * seed + attempt).standard_normal(at.shape)
        direction = drawn / float(np.linalg.norm(drawn) or 1.0)
        whole, half = (
            (evaluate(at + h * direction) - evaluate(at - h * direction)) / (2 * h) for h in (STEP, STEP / 2)
        )
        # two steps disagree where one of them crosses a jump, as relu's at 0
        if abs(whole - half) <= LIMIT / 10 * max(abs(whole), abs(half), float(np.linalg.norm(gradient)), 1e-3):
            break
    return half, float(np.sum(direction * gradient))


def _entry(name: str, at: Host, gradient: Host, evaluate: Callable[[Host], float], subject: Subject) -> str:
    """The entry that is farthest off, among at most 200."""
    worst, phrase = -1.0, f"the gradient of {name} is wrong"
    for flat in np.linspace(0, at.size - 1, min(at.size, 200)).astype(int):
        index = np.unravel_index(int(flat), at.shape)
        direction = np.zeros(at.shape)
        direction[index] = 1.0
        expected = (evaluate(at + STEP * direction) - evaluate(at - STEP * direction)) / (2 * STEP)
        if abs(expected - gradient[index]) > worst:
            worst = float(abs(expected - gradient[index]))
            place = ", ".join(str(int(k)) for k in index)
            gate = _gate(subject.network, name, int(index[0]))
            phrase = (
                f"the gradient of {name}[{place}]{gate} is {gradient[index]:.6g}, finite differences say {expected:.6g}"
            )
    return phrase


def _gate(network: Any, name: str, row: int) -> str:
    """Such as " (gate f)" for a row of a recurrent layer's weights."""
    prefix, own = name[: name.rfind(".") + 1], name.rpartition(".")[2]
    # of a layer and one that wraps it, the inner one comes last
    layer: Any = dict(walk(network))[prefix]
    letters = GATES.get(type(layer).__name__, "")
    if getattr(layer, "coupled", False):
        letters = "igo"
    if not letters or not own.startswith(("weight_ih", "weight_hh", "bias_", "gain_ih", "gain_hh")):
        return ""
    block = row // layer.hidden_size
    return f" (gate {letters[block]})" if block < len(letters) else ""


def _scale(tree: Any) -> float:
    return max((float(np.linalg.norm(a)) for a in leaves(tree)), default=0.0)
