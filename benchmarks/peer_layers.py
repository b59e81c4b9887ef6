"""The layers of other frameworks as tasks for the benchmark; each is imported in a process of its own.

Where a framework's weights have another form, they are drawn by that framework: the shapes and the work are the same,
the numbers are not. Each does what its own documentation shows, compiled where it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import portable_rnn as prnn
from portable_rnn.bench.cases import Case, Task

Arrays = dict[str, np.ndarray]


def jax_task(case: Case, run: Callable[[Any, Any], Any], params: Any) -> Task:
    """``run(params, x) -> y`` compiled, with JAX's own gradient."""
    import jax

    x, dy = (jax.device_put(array) for array in case.arrays())

    def train(params: Any, x: Any, dy: Any) -> Any:
        y, pullback = jax.vjp(run, params, x)
        dparams, dx = pullback(dy)
        return y, dx, dparams

    step = jax.jit(run if case.kind == "forward" else train)
    arguments = (params, x) if case.kind == "forward" else (params, x, dy)

    def outputs(result: Any) -> Arrays:
        if case.kind == "forward":
            return {"y": np.asarray(result)}
        y, dx, dparams = result
        found = {"y": y, "dx": dx} | {f"d{k}": leaf for k, leaf in enumerate(jax.tree.leaves(dparams))}
        return {name: np.asarray(array) for name, array in found.items()}

    return Task(lambda: jax.block_until_ready(step(*arguments)), outputs)


def flax(case: Case) -> Task:
    """``flax.nnx.RNN``; of its two LSTM cells the faster one."""
    from flax import nnx

    cell = {"RNN": nnx.SimpleCell, "GRU": nnx.GRUCell, "LSTM": nnx.OptimizedLSTMCell}[case.cell]
    layer = nnx.RNN(cell(*case.size[2:], rngs=nnx.Rngs(0)))
    # given, for what draws an initial state counts its draws in the layer, which can't be changed under jax.jit
    carry = layer.cell.initialize_carry((case.size[0], case.size[2]), nnx.Rngs(0))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    return jax_task(case, lambda params, x: nnx.merge(graph, params, rest)(x, initial_carry=carry), params)


def equinox(case: Case) -> Task:
    """``equinox.nn`` cells under ``lax.scan``, with ``vmap`` over the rows, as its documentation does."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    inputs, hidden = case.size[2:]
    key = jax.random.key(0)
    if case.cell == "RNN":  # it has no cell for this one
        parts = (
            eqx.nn.Linear(inputs, hidden, key=key),
            eqx.nn.Linear(hidden, hidden, use_bias=False, key=jax.random.key(1)),
        )
    else:
        parts = {"GRU": eqx.nn.GRUCell, "LSTM": eqx.nn.LSTMCell}[case.cell](inputs, hidden, key=key)
    params, static = eqx.partition(parts, eqx.is_inexact_array)

    def run(params: Any, x: Any) -> Any:
        cell = eqx.combine(params, static)
        zero = jnp.zeros(hidden, x.dtype)

        def step(state: Any, x_t: Any) -> Any:
            if case.cell == "RNN":
                state = jnp.tanh(cell[0](x_t) + cell[1](state))
                return state, state
            state = cell(x_t, state)
            return state, state[0] if case.cell == "LSTM" else state

        start = (zero, zero) if case.cell == "LSTM" else zero
        return jax.vmap(lambda row: jax.lax.scan(step, start, row)[1])(x)

    return jax_task(case, run, params)


def _keras_layer(case: Case) -> Any:
    import keras

    kind = {"RNN": keras.layers.SimpleRNN, "GRU": keras.layers.GRU, "LSTM": keras.layers.LSTM}[case.cell]
    batch, steps, inputs, hidden = case.size
    layer = kind(hidden, return_sequences=True)
    layer.build((batch, steps, inputs))
    return layer


def keras_jax(case: Case) -> Task:
    """A Keras layer on JAX, through ``stateless_call``."""
    layer = _keras_layer(case)
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def run(params: Any, x: Any) -> Any:
        return layer.stateless_call(params, fixed, x)[0]

    return jax_task(case, run, [variable.value for variable in layer.trainable_variables])


def keras_torch(case: Case) -> Task:
    """A Keras layer on PyTorch, with autograd."""
    import torch

    layer = _keras_layer(case)
    x, dy = (torch.from_numpy(array) for array in case.arrays())
    x.requires_grad_(case.kind == "train")
    learnt = [variable.value for variable in layer.trainable_variables]

    def forward() -> Any:
        with torch.no_grad():
            return layer(x)

    def train() -> Any:
        for array in (x, *learnt):
            array.grad = None
        y = layer(x)
        y.backward(dy)
        return y

    def outputs(y: Any) -> Arrays:
        found = {"y": y}
        if case.kind == "train":
            found |= {"dx": x.grad} | {f"d{k}": array.grad for k, array in enumerate(learnt)}
        return {name: array.detach().numpy() for name, array in found.items()}

    return Task(forward if case.kind == "forward" else train, outputs)


def thinc(case: Case) -> Task:
    """thinc's own LSTM, given a padded batch in the time-first form that it computes in."""
    from thinc.api import LSTM
    from thinc.types import Padded

    batch, steps, inputs, hidden = case.size
    x, dy = (np.ascontiguousarray(array.transpose(1, 0, 2)) for array in case.arrays())
    model = LSTM(hidden, inputs)
    model.initialize()
    rows = np.full(steps, batch, dtype="int32"), np.full(batch, steps, dtype="int32"), np.arange(batch, dtype="int32")
    given, cotangent = Padded(x, *rows), Padded(dy, *rows)

    def forward() -> Any:
        return model(given, is_train=False)[0], None

    def train() -> Any:
        y, backprop = model(given, is_train=True)
        model.set_grad("LSTM", np.zeros_like(model.get_param("LSTM")))
        return y, backprop(cotangent)

    def first() -> Any:
        y, backprop = model(given, is_train=True)
        return y, backprop(cotangent)

    def outputs(result: Any) -> Arrays:
        y, dx = result
        found = {"y": y.data.transpose(1, 0, 2)}
        if case.kind == "train":
            found |= {"dx": dx.data.transpose(1, 0, 2), "d": model.get_grad("LSTM")}
        return found

    if case.kind == "train":
        first()  # the gradient's array must be there before it can be cleared
    return Task(forward if case.kind == "forward" else train, outputs)


def onnxruntime(case: Case, *, threads: int | None = None) -> Task:
    """onnxruntime with the file that `to_onnx` writes."""
    import onnxruntime as ort

    model = prnn.Model(case.layer, seed=0)
    model.params = case.layer.init(0)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    written = prnn.to_onnx(model).SerializeToString()
    session = ort.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    x, _ = case.arrays()
    return Task(lambda: session.run(["y"], {"x": x})[0], lambda y: {"y": y})
