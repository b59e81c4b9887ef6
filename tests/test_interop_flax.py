"""Weights from Flax (nnx and linen) and Equinox: values and gradients equal theirs, refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.layers import Activation, Flip, Merge, SharedDropout, Softmax

jax = pytest.importorskip("jax", reason="JAX is not installed: Flax runs on it")
jnp = jax.numpy
flax = pytest.importorskip("flax", reason="Flax is not installed: nothing to convert from")
from flax import linen, nnx  # noqa: E402

WIDE = {"param_dtype": jnp.float64}
GATES = {"LSTM": "ifgo", "GRU": "rzn"}


def rngs() -> Any:
    """The same keys for every module."""
    return nnx.Rngs(3)


def shaken(tree: Any) -> Any:
    """Random values in place of all floating ones: Flax starts its biases at zero."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(9)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    moved = [
        jnp.asarray(0.6 * rng.standard_normal(leaf.shape), leaf.dtype) if f else leaf
        for leaf, f in zip(leaves, floating, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape)


def close(got: Any, expected: Any) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * max(1.0, float(np.max(np.abs(expected)))))


def ours_of(model: prnn.Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], Any]:
    """(y, its random cotangent, the gradients)."""
    y, _, pullback = model.network.vjp(model.params, x)
    dy = np.random.default_rng(3).standard_normal(y.shape)
    dparams, dx, _ = pullback(dy)
    return y, dy, dparams, dx


# ---------------------------------------------------------------------- linen

CELLS = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")


def check_linen_gradients(dparams: dict[str, np.ndarray], found: Any, kind: str, suffix: str = "_l0") -> None:
    """Ours, gate by gate, against the tree that Flax's parameters stand in."""
    if kind == "SimpleCell":
        close(dparams["weight_ih" + suffix], found["i"]["kernel"].T)
        close(dparams["weight_hh" + suffix], found["h"]["kernel"].T)
        close(dparams["bias_ih" + suffix], found["i"]["bias"])
        return
    letters = GATES[kind.removesuffix("Cell").removeprefix("Optimized")]
    for row, gate in enumerate(letters):
        for end, side in (("ih", "i"), ("hh", "h")):
            part = found[side + gate]
            own = np.split(dparams[f"weight_{end}{suffix}"], len(letters))[row]
            close(own, part["kernel"].T)
            if "bias" in part:
                close(np.split(dparams[f"bias_{end}{suffix}"], len(letters))[row], part["bias"])


@pytest.mark.parametrize("reverse", ["forward", "reverse", "reverse-kept"])
@pytest.mark.parametrize("kind", CELLS)
def test_linen_rnn_keeps_outputs_and_gradients(kind: str, reverse: str) -> None:
    time_major = reverse == "reverse-kept"
    module = linen.RNN(
        getattr(linen, kind)(3, **WIDE), reverse=reverse != "forward", keep_order=time_major, time_major=time_major
    )
    x = data(2, 4, 2)
    given = jnp.asarray(x.swapaxes(0, 1) if time_major else x)
    variables = shaken(module.init(jax.random.key(0), given))
    model = prnn.from_flax(module, variables)
    assert model.backend.dtype_name == "float64"
    flipped = isinstance(model.network, prnn.Sequential)
    assert flipped == (reverse == "reverse")
    y, dy, dparams, dx = ours_of(model, x)
    cotangent = jnp.asarray(dy.swapaxes(0, 1) if time_major else dy)
    theirs, pullback = jax.vjp(lambda v, x: module.apply(v, x), variables, given)
    found, found_x = pullback(cotangent)
    close(y, theirs.swapaxes(0, 1) if time_major else theirs)
    close(dx, found_x.swapaxes(0, 1) if time_major else found_x)
    check_linen_gradients({n.removeprefix("0."): g for n, g in dparams.items()}, found["params"]["cell"], kind)
    assert ("time_major" in model.metadata.get("conversion_notes", "")) == time_major


@pytest.mark.parametrize("kind", CELLS)
def test_a_linen_cell_alone_runs_over_time(kind: str) -> None:
    cell = getattr(linen, kind)(3, **WIDE)
    x = data(2, 4, 2)
    carry = cell.initialize_carry(jax.random.key(0), (2, 2))
    variables = shaken(cell.init(jax.random.key(0), carry, jnp.asarray(x[:, 0])))
    model = prnn.from_flax(cell, variables["params"])
    carry = jax.tree.map(lambda part: part.astype(jnp.float64), carry)
    for t in range(4):
        carry, y = cell.apply(variables, carry, jnp.asarray(x[:, t]))
    close(model.predict(x)[:, -1], y)
    assert model.metadata["source_type"] == f"linen {kind}"


@pytest.mark.slow
def test_a_linen_chain() -> None:
    module = linen.Sequential([
        linen.Embed(6, 3, **WIDE),
        linen.Bidirectional(linen.RNN(linen.GRUCell(2, **WIDE)), linen.RNN(linen.GRUCell(2, **WIDE))),
        linen.Dropout(0.2, broadcast_dims=(-2,), deterministic=True),
        linen.Dense(4, use_bias=False, **WIDE),
        jax.nn.soft_sign,
        linen.Dropout(0.1, deterministic=True),
        linen.Dense(2, **WIDE),
        jax.nn.log_softmax,
    ])  # fmt: skip
    x = np.array([[1, 2, 5], [0, 3, 3]])
    variables = shaken(module.init(jax.random.key(0), jnp.asarray(x)))
    model = prnn.from_flax(module, variables)
    assert model.network == prnn.Sequential(
        prnn.Embedding(6, 3),
        prnn.GRU(3, 2, bidirectional=True),
        SharedDropout(0.2),
        prnn.Linear(4, 4, bias=False),
        Activation("softsign"),
        prnn.Dropout(0.1),
        prnn.Linear(4, 2),
        Softmax(log=True),
    )
    y, dy, dparams, _ = ours_of(model, x)
    theirs, pullback = jax.vjp(lambda v: module.apply(v, jnp.asarray(x)), variables)
    found = pullback(jnp.asarray(dy))[0]["params"]
    close(y, theirs)
    close(dparams["0.weight"], found["layers_0"]["embedding"])
    close(dparams["6.weight"], found["layers_6"]["kernel"].T)
    recurrent = {name.removeprefix("1."): g for name, g in dparams.items() if name.startswith("1.")}
    for part, suffix in (("forward_rnn", "_l0"), ("backward_rnn", "_l0_reverse")):
        check_linen_gradients(recurrent, found["layers_1"][part]["cell"], "GRUCell", suffix)


# ---------------------------------------------------------------------- nnx


def nnx_vjp(module: Any, x: Any, dy: Any) -> tuple[Any, Any, Any]:
    """(y, gradients in a module's shape, dx)."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def run(params: Any, x: Any) -> Any:
        y = nnx.merge(graph, params, rest, copy=True)(x)
        return y[1] if getattr(module, "return_carry", False) else y

    y, pullback = jax.vjp(run, params, x)
    found, dx = pullback(dy)
    return y, nnx.merge(graph, found, rest), dx


def shaken_nnx(module: Any) -> Any:
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return nnx.merge(graph, shaken(params), rest)


def in_our_gates(cell: Any) -> dict[str, np.ndarray]:
    """The dense layers of an nnx cell, whose parameters may be gradients, as ours; None where it has no bias."""

    def joined(names: list[str], what: str) -> Any:
        parts = [getattr(getattr(cell, name), what, None) for name in names]
        arrays = [None if p is None else np.asarray(p[...]) for p in parts]
        if any(a is None for a in arrays):
            return None
        return np.concatenate([a.T if what == "kernel" else a for a in arrays])

    alone = hasattr(cell, "dense_i")
    inputs = ["dense_i"] if alone else ["ii", "if_", "ig", "io"]
    states = ["dense_h"] if alone else ["hi", "hf", "hg", "ho"]
    found = {"weight_ih": joined(inputs, "kernel"), "weight_hh": joined(states, "kernel")}
    return found | {"bias_ih": joined(inputs, "bias"), "bias_hh": joined(states, "bias")}


@pytest.mark.parametrize("options", [{}, {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.elu}])
@pytest.mark.parametrize("kind", CELLS)
def test_nnx_rnn_keeps_outputs_and_gradients(kind: str, options: dict[str, Any]) -> None:
    if kind == "SimpleCell":
        options = {name: f for name, f in options.items() if name != "gate_fn"} | {"dtype": jnp.float64}
    module = shaken_nnx(nnx.RNN(getattr(nnx, kind)(2, 3, **options, **WIDE, rngs=rngs())))
    x = data(2, 4, 2)
    if kind == "SimpleCell":  # its own carry is float32
        model = prnn.from_flax(module)
        carry = jnp.zeros((2, 3))
        theirs = module(jnp.asarray(x), initial_carry=carry)
        close(model.predict(x), theirs)
        return
    model = prnn.from_flax(module)
    y, dy, dparams, dx = ours_of(model, x)
    theirs, found, found_x = nnx_vjp(module, jnp.asarray(x), jnp.asarray(dy))
    close(y, theirs)
    close(dx, found_x)
    for name, expected in in_our_gates(found.cell).items():
        if expected is not None:
            close(dparams[f"{name}_l0"], expected)


@pytest.mark.parametrize("kind", CELLS)
def test_an_nnx_cell_alone_runs_over_time(kind: str) -> None:
    options = {"dtype": jnp.float64} if kind == "SimpleCell" else {}
    cell = shaken_nnx(getattr(nnx, kind)(2, 3, **options, **WIDE, rngs=rngs()))
    x = data(2, 4, 2)
    carry = cell.initialize_carry((2, 2), rngs())
    carry = jax.tree.map(lambda part: part.astype(jnp.float64), carry)
    for t in range(4):
        carry, y = cell(carry, jnp.asarray(x[:, t]))
    close(prnn.from_flax(cell).predict(x)[:, -1], y)


@pytest.mark.parametrize(
    ("merge", "layer"),
    [(None, None), (jnp.add, Merge("sum")), (jnp.multiply, Merge("mul")), (lambda a, b: (a + b) / 2, Merge("ave"))],
)
def test_nnx_bidirectional(merge: Any, layer: Any) -> None:
    options = {} if merge is None else {"merge_fn": merge}
    parts = [nnx.RNN(nnx.LSTMCell(2, 3, **WIDE, rngs=nnx.Rngs(seed))) for seed in (0, 1)]
    module = shaken_nnx(nnx.Bidirectional(*parts, **options, rngs=rngs()))
    model = prnn.from_flax(module)
    lstm = prnn.LSTM(2, 3, bidirectional=True)
    assert model.network == (lstm if layer is None else prnn.Sequential(lstm, layer))
    x = data(2, 4, 2)
    y, dy, dparams, dx = ours_of(model, x)
    theirs, found, found_x = nnx_vjp(module, jnp.asarray(x), jnp.asarray(dy))
    close(y, theirs)
    close(dx, found_x)
    for rnn, suffix in ((found.forward_rnn, "_l0"), (found.backward_rnn, "_l0_reverse")):
        for name, expected in in_our_gates(rnn.cell).items():
            if expected is not None:
                close(dparams[("" if layer is None else "0.") + name + suffix], expected)


def test_an_nnx_chain_in_float32() -> None:
    keys = rngs()
    module = nnx.Sequential(
        nnx.Embed(5, 3, rngs=keys),
        nnx.RNN(nnx.GRUCell(3, 4, rngs=keys), reverse=True),
        nnx.Dropout(0.3, rngs=keys),
        nnx.Linear(4, 2, rngs=keys),
        jnp.tanh,
        jax.nn.identity,
    )
    model = prnn.from_flax(module, backend="jax")
    assert model.backend.name == "jax"
    assert model.backend.dtype_name == "float32"
    kinds = [type(layer) for layer in model.network.layers]
    assert kinds == [prnn.Embedding, prnn.GRU, Flip, prnn.Dropout, prnn.Linear, Activation]
    assert "float32" in model.metadata["conversion_check"]
    assert model.metadata["source_version"] == flax.__version__


# ---------------------------------------------------------------------- what is refused


class OwnCell(nnx.RNNCellBase):
    """Not one that we know."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nnx.LayerNorm(3, rngs=rngs()), "nnx LayerNorm|flax LayerNorm"),
        (lambda: nnx.SimpleCell(2, 3, residual=True, rngs=rngs()), "residual=True"),
        (lambda: nnx.RNN(nnx.GRUCell(2, 3, activation_fn=jax.nn.gelu, rngs=rngs())), "activation 'gelu'"),
        (lambda: OwnCell(), "runs .*OwnCell"),
        (
            lambda: nnx.Bidirectional(
                nnx.RNN(nnx.GRUCell(2, 3, rngs=rngs())), nnx.RNN(nnx.GRUCell(2, 4, rngs=rngs())), rngs=rngs()
            ),
            "directions of .* differ",
        ),
        (
            lambda: nnx.Bidirectional(
                nnx.RNN(nnx.GRUCell(2, 3, rngs=rngs())),
                nnx.RNN(nnx.GRUCell(2, 3, rngs=rngs())),
                merge_fn=jnp.subtract,
                rngs=rngs(),
            ),
            "merge_fn",
        ),
        (lambda: nnx.Dropout(0.1, broadcast_dims=(0,), rngs=rngs()), "broadcast_dims"),
        (
            lambda: nnx.Sequential(
                nnx.RNN(nnx.GRUCell(2, 2, rngs=rngs())), nnx.RNN(nnx.GRUCell(2, 2, rngs=rngs()), time_major=True)
            ),
            "some of the modules have time_major=True",
        ),
        (lambda: linen.RNN(linen.GRUCell(3)), "pass variables"),
        (lambda: 3, "got int"),
    ],
)
def test_what_can_not_be_converted_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.from_flax(make())


def test_variables_of_an_nnx_module_and_of_another_linen_module() -> None:
    with pytest.raises(prnn.InputError, match="leave variables out"):
        prnn.from_flax(nnx.Linear(2, 2, rngs=rngs()), {})
    module = linen.RNN(linen.MGUCell(3, **WIDE))
    variables = module.init(jax.random.key(0), jnp.ones((1, 2, 2)))
    with pytest.raises(prnn.InputError, match="expected LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell"):
        prnn.from_flax(module, variables)


def test_swapped_gates_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_rnn.interop import flax as interop

    monkeypatch.setattr(interop, "LSTM_GATES", "igfo")
    with pytest.raises(prnn.ConversionError, match=r"largest relative difference is .*y\["):
        prnn.from_flax(shaken_nnx(nnx.LSTMCell(2, 3, **WIDE, rngs=rngs())))


def test_without_flax_or_equinox_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[flax\]"):
        prnn.from_flax(object())
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[equinox\]"):
        prnn.from_equinox(object())


# ---------------------------------------------------------------------- Equinox


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_equinox_cells_keep_outputs_and_gradients(kind: str, bias: bool) -> None:
    equinox = pytest.importorskip("equinox", reason="Equinox is not installed: nothing to convert from")
    cell = getattr(equinox.nn, kind)(2, 3, use_bias=bias, dtype=jnp.float64, key=jax.random.key(1))
    model = prnn.from_equinox(cell)
    assert model.backend.dtype_name == "float64"
    x = data(2, 4, 2)
    y, dy, dparams, dx = ours_of(model, x)

    def run(cell: Any, x: Any) -> Any:
        def row(x: Any) -> Any:
            zero = jnp.zeros(3)
            state = (zero, zero) if kind == "LSTMCell" else zero
            ys = []
            for x_t in x:
                state = cell(x_t, state)
                ys.append(state[0] if kind == "LSTMCell" else state)
            return jnp.stack(ys)

        return jax.vmap(row)(x)

    theirs, pullback = jax.vjp(run, cell, jnp.asarray(x))
    found, found_x = pullback(jnp.asarray(dy))
    close(y, theirs)
    close(dx, found_x)
    close(dparams["weight_ih_l0"], found.weight_ih)
    close(dparams["weight_hh_l0"], found.weight_hh)
    if bias:
        close(dparams["bias_ih_l0"], found.bias)
        if kind == "GRUCell":
            close(dparams["bias_hh_l0"][6:], found.bias_n)
    assert model.metadata["source_framework"] == "equinox"


def test_other_equinox_modules_are_refused() -> None:
    equinox = pytest.importorskip("equinox", reason="Equinox is not installed: nothing to convert from")
    with pytest.raises(prnn.InputError, match="equinox Linear"):
        prnn.from_equinox(equinox.nn.Linear(2, 2, key=jax.random.key(0)))
