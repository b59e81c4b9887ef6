"""Input that doesn't fit: one line which says what was expected, what was received and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn

LSTM = prnn.LSTM(3, 4)
GRU = prnn.GRU(3, 4, 2, bidirectional=True)
LINEAR = prnn.Linear(3, 2)
EMBEDDING = prnn.Embedding(5, 2)
NETWORK = prnn.Sequential(prnn.GRU(3, 4), prnn.Last(), prnn.Linear(4, 2))
X = np.ones((2, 6, 3), dtype="float32")
TOKENS = np.ones((2, 6), dtype="int64")


def call(layer: prnn.Layer, x: Any = X, **others: Any) -> Callable[[], Any]:
    return lambda: layer.apply(others.pop("params", None) or layer.init(seed=0), x, **others)


def pull(dy: Any = None, dstate: Any = None, layer: prnn.Layer = LSTM) -> Callable[[], Any]:
    return lambda: layer.vjp(layer.init(seed=0), X)[2](dy, dstate)


def with_params(layer: prnn.Layer, change: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: layer.apply(change(layer.init(seed=0)), X)


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype=dtype)


# name: (call, what its message must hold, in this order)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    # x
    "rank too low": (
        call(LSTM, zeros(6, 3)),
        r"LSTM expects x of shape \(batch, time, features\), got shape \(6, 3\); add the missing axis",
    ),
    "rank too high": (call(LSTM, zeros(1, 2, 6, 3)), r"LSTM expects .*got shape \(1, 2, 6, 3\)$"),
    "rank of rows": (call(LINEAR, zeros(3)), r"\(batch, features\) or \(batch, time, .* \(3,\)"),
    "features": (
        call(LSTM, zeros(2, 6, 5)),
        r"LSTM expects 3 features, got 5 \(shape \(2, 6, 5\)\)",
    ),
    "features of linear": (call(LINEAR, zeros(2, 5)), r"Linear expects 3 features, got 5"),
    "no rows": (call(LSTM, zeros(0, 6, 3)), r"at least one row, step and feature, .*\(0, 6, 3\)"),
    "no steps": (call(LSTM, zeros(2, 0, 3)), r"at least one row, step and feature, .*\(2, 0, 3\)"),
    "integers": (
        call(LSTM, zeros(2, 6, 3, dtype="int64")),
        r"LSTM expects floating x, got int64: convert it with portable_rnn.asarray",
    ),
    "complex": (
        call(LSTM, zeros(2, 6, 3, dtype="complex64")),
        r"expects floating x, got complex64",
    ),
    "a list": (call(LSTM, X.tolist()), r"x must be an array, got list: pass portable_rnn.asarray"),
    "text": (call(LSTM, "abc"), r"x must be an array, got str"),
    "dtype": (
        call(LSTM, X.astype("float64")),
        r"x is numpy float64 on cpu, but the parameters are numpy float32 on cpu: move it with ",
    ),
    "floating tokens": (call(EMBEDDING, zeros(2, 6)), r"Embedding expects integers, got float32"),
    "tokens of another rank": (
        call(EMBEDDING, zeros(2, 6, 1, dtype="int64")),
        r"Embedding expects x of shape \(batch, time\), not empty, got \(2, 6, 1\)",
    ),
    "token too large": (call(EMBEDDING, TOKENS * 5), r"integers from 0 to 4, got 5"),
    "negative token": (call(EMBEDDING, TOKENS * -1), r"integers from 0 to 4, got -1"),
    "nested token too large": (
        call(prnn.Sequential(prnn.Sequential(EMBEDDING), prnn.GRU(2, 3)), TOKENS * 7),
        r"integers from 0 to 4, got 7",
    ),
    "pooling rows": (call(prnn.Mean(), zeros(2, 3)), r"Mean expects .*got shape \(2, 3\)"),
    "rows into a network with time": (
        call(prnn.Sequential(LINEAR, prnn.Last()), zeros(2, 3)),
        r"expects x of shape \(batch, time, features\), got shape \(2, 3\)",
    ),
    "rows into a nested network with time": (
        call(prnn.Sequential(prnn.Sequential(LINEAR), prnn.Last()), zeros(2, 3)),
        r"expects x of shape \(batch, time, features\), got shape \(2, 3\)",
    ),
    "rows of a list": (
        call(LSTM, [zeros(4, 3), zeros(2, 2)]),
        r"the sequences of a list must agree in all but their length, got .*\(4, 3\) and \(2, 2\)",
    ),
    "list and lengths": (
        call(LSTM, [zeros(4, 3), zeros(2, 3)], lengths=[4, 2]),
        r"a list of sequences, which have their own lengths: leave lengths out",
    ),
    # lengths and resets
    "length too long": (call(LSTM, lengths=[6, 7]), r"between 0 and 6 .*, got 7"),
    "negative length": (call(LSTM, lengths=[-1, 6]), r"between 0 and 6 .*, got -1"),
    "floating lengths": (call(LSTM, lengths=[1.0, 2.0]), r"lengths must be integers, got float64"),
    "boolean lengths": (call(LSTM, lengths=[True, False]), r"lengths must be integers, got bool"),
    "number of lengths": (call(LSTM, lengths=[1, 2, 3]), r"each of the 2 rows, got shape \(3,\)"),
    "one length": (call(LSTM, lengths=3), r"each of the 2 rows, got shape \(\)"),
    "ragged lengths": (call(LSTM, lengths=[[1], [1, 2]]), r"rectangular nest of numbers"),
    "lengths of rows": (
        call(LINEAR, zeros(2, 3), lengths=[1, 2]),
        r"lengths and resets need a time axis, but x has shape \(2, 3\)",
    ),
    "shape of resets": (
        call(LSTM, resets=zeros(2, 5, dtype="bool")),
        r"resets must be booleans of shape \(2, 6\), .*got bool of shape \(2, 5\)",
    ),
    "dtype of resets": (call(LSTM, resets=zeros(2, 6)), r"resets must be booleans .* got float32"),
    # state
    "state of a plain layer": (
        call(LINEAR, state=zeros(1, 2, 2)),
        r"Linear has no state: expected state=None, got ndarray",
    ),
    "one array for two": (
        call(LSTM, state=zeros(1, 2, 4)),
        r"state of LSTM must be a tuple of arrays \(1, 2, 4\), \(1, 2, 4\), got an array of shape",
    ),
    "two arrays for one": (
        call(prnn.GRU(3, 4), state=(zeros(1, 2, 4), zeros(1, 2, 4))),
        r"state of GRU must be an array \(1, 2, 4\), got a tuple of shape",
    ),
    "shape of the state": (
        call(GRU, state=zeros(2, 2, 4)),
        r"must be an array \(4, 2, 4\), got an array of shape \(2, 2, 4\)",
    ),
    "state of numbers": (call(GRU, state=[1.0, 2.0]), r"state\[0\] must be an array, got float"),
    "dtype of the state": (
        call(GRU, state=zeros(4, 2, 4, dtype="float64")),
        r"state\[0\] is numpy float64 on cpu, but the parameters are numpy float32",
    ),
    "state of a network": (
        call(NETWORK, state=zeros(1, 2, 4)),
        r"tuple with one element for each of its 3 layers, as it returns, got ndarray",
    ),
    "state of a networks layer": (
        call(NETWORK, state=(zeros(1, 2, 5), None, None)),
        r"state of GRU must be an array \(1, 2, 4\), got an array of shape \(1, 2, 5\)",
    ),
    # cotangents
    "shape of dy": (pull(zeros(2, 6, 5)), r"dy must have shape \(2, 6, 4\), got \(2, 6, 5\)"),
    "dtype of dy": (pull(zeros(2, 6, 4, dtype="float64")), r"dy is numpy float64 .* float32"),
    "dy as a list": (pull([[1.0]]), r"dy must be an array, got list"),
    "structure of dstate": (
        pull(None, zeros(1, 2, 4)),
        r"dstate must be a tuple of 2, as the state, got ndarray",
    ),
    "shape of dstate": (
        pull(None, (zeros(1, 2, 4), zeros(1, 2, 5))),
        r"dstate\[1\] must have shape \(1, 2, 4\), got \(1, 2, 5\)",
    ),
    "dstate of a plain layer": (
        pull(None, zeros(1, 2, 4), prnn.Last()),
        r"dstate must be None: this layer has no state",
    ),
    # parameters
    "missing parameter": (
        with_params(LINEAR, lambda p: {"weight": p["weight"]}),
        r"parameters do not fit Linear\(3, 2\): missing bias; unexpected none",
    ),
    "unknown parameter": (
        with_params(LINEAR, lambda p: {**p, "scale": p["bias"]}),
        r"missing none; unexpected scale",
    ),
    "shape of a parameter": (
        with_params(LINEAR, lambda p: {**p, "bias": p["bias"][:1]}),
        r"parameter 'bias' must have shape \(2,\), got \(1,\)",
    ),
    "parameters as a list": (
        with_params(LINEAR, lambda p: list(p.values())),
        r"params must be a dict of arrays, as layer.init\(\) returns, got list",
    ),
    "parameter as a list": (
        with_params(LINEAR, lambda p: {**p, "bias": [1.0, 2.0]}),
        r"parameter 'bias' must be an array, got list",
    ),
    "integer parameters": (
        with_params(LINEAR, lambda p: {n: v.astype("int64") for n, v in p.items()}),
        r"x is numpy float32 on cpu, but the parameters are numpy int64 on cpu",
    ),
    "mixed parameters": (
        with_params(LINEAR, lambda p: {**p, "bias": p["bias"].astype("float64")}),
        r"bias is numpy float64 on cpu, but the parameters are numpy float32 on cpu",
    ),
    # configuration
    "hidden_size 0": (lambda: prnn.RNN(3, 0), r"hidden_size: expected an integer of at least 1, got 0: pass"),
    "floating size": (lambda: prnn.GRU(3.0, 2), r"input_size: expected an integer .*, got 3\.0"),
    "boolean size": (lambda: prnn.GRU(3, True), r"hidden_size: expected an integer .*, got True"),
    "num_layers": (lambda: prnn.GRU(3, 2, -1), r"num_layers: expected an integer from 1 to 10000, got -1"),
    "dropout of 1": (lambda: prnn.RNN(3, 2, dropout=1.0), r"dropout: expected a number from 0 to below 1, got 1\.0"),
    "recurrent_dropout": (
        lambda: prnn.RNN(3, 2, recurrent_dropout=-0.1),
        r"recurrent_dropout: expected a number from 0 to below 1, got -0\.1",
    ),
    "zoneout": (lambda: prnn.RNN(3, 2, zoneout=float("nan")), r"zoneout: expected .*, got nan"),
    "p": (lambda: prnn.Dropout(2), r"p: expected a number from 0 to below 1, got 2"),
    "nonlinearity": (
        lambda: prnn.RNN(3, 2, nonlinearity="swish"),
        r"unknown activation 'swish': expected one of tanh, sigmoid, relu",
    ),
    "activation": (lambda: prnn.GRU(3, 2, activation=None), r"activation: expected a string, got None"),
    "settings": (lambda: prnn.RNN(3, 2, nonlinearity="tanh(2)"), r"'tanh' has no settings, got"),
    "more settings": (
        lambda: prnn.RNN(3, 2, nonlinearity="elu(1,2)"),
        r"'elu' has 1 settings, got",
    ),
    "worded setting": (lambda: prnn.RNN(3, 2, nonlinearity="elu(x)"), r"must be finite numbers"),
    "clip": (lambda: prnn.RNN(3, 2, clip=0.0), r"clip: expected a finite number above 0, or None, got 0\.0"),
    "worded clip": (lambda: prnn.RNN(3, 2, clip="1"), r"clip: expected a finite number above 0, or None, got '1'"),
    "two directions and reverse": (
        lambda: prnn.RNN(3, 2, bidirectional=True, reverse=True),
        r"reverse=True runs one direction, from the end: it can't be bidirectional as well",
    ),
    "proj_size": (
        lambda: prnn.LSTM(3, 2, proj_size=2),
        r"proj_size: expected 0 \(no projection\), or less than hidden_size 2, got 2",
    ),
    "embedding": (lambda: prnn.Embedding(0, 2), r"num_embeddings: expected an integer .*, got 0"),
    "linear": (lambda: prnn.Linear(2, 0), r"out_features: expected an integer .*, got 0"),
    "seed": (lambda: LINEAR.init(seed=-1), r"seed must be a non-negative integer .*, got -1"),
    "floating seed": (lambda: LINEAR.init(seed=1.5), r"seed must be .*, got 1\.5"),
    # networks
    "no layers": (lambda: prnn.Sequential(), r"Sequential expects at least one layer, got none"),
    "a list of layers": (
        lambda: prnn.Sequential([LSTM]),
        r"layer 0 of Sequential must be a layer, got list; pass the layers one by one",
    ),
    "widths that do not chain": (
        lambda: prnn.Sequential(LSTM, prnn.Dropout(0.1), prnn.Linear(5, 1)),
        r"layer 2 \(Linear\) takes 5 features, but layer 1 \(Dropout\) gives 4",
    ),
    "both directions forgotten": (
        lambda: prnn.Sequential(GRU, prnn.Linear(4, 1)),
        r"layer 1 \(Linear\) takes 4 features, but layer 0 \(GRU\) gives 8",
    ),
    "time that is gone": (
        lambda: prnn.Sequential(LSTM, prnn.Last(), prnn.GRU(4, 2)),
        r"layer 2 \(GRU\) needs a time axis, which an earlier layer has removed",
    ),
    "embedding in the middle": (
        lambda: prnn.Sequential(LSTM, EMBEDDING),
        r"layer 1 \(Embedding\) takes integers, but layer 0 \(LSTM\) gives floats",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(prnn.InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_matrix_refuses_the_same(backend: Any) -> None:
    if backend.entry.jitted:
        pytest.skip("a traced call gives the same errors while it is traced, wrapped by JAX")
    params = backend.array(LSTM.init(seed=0))
    for x, message in (
        (zeros(6, 3), "expects x of shape"),
        (zeros(2, 6, 5), "expects 3 features, got 5"),
        (zeros(2, 6, 3, dtype="int64"), "expects floating x, got int64"),
        (zeros(2, 6, 3, dtype="float64"), "float64 on .* float32 on"),
    ):
        with pytest.raises(prnn.InputError, match=message):
            LSTM.apply(params, backend.array(x))
    for lengths in ([7, 1], backend.array(np.asarray([1, -1]))):
        with pytest.raises(prnn.InputError, match="lengths must lie between 0 and 6"):
            LSTM.apply(params, backend.array(X), lengths=lengths)
    tokens, table = backend.array((TOKENS * 5, EMBEDDING.init(seed=0)))
    with pytest.raises(prnn.InputError, match="integers from 0 to 4, got 5"):
        EMBEDDING.apply(table, tokens)


def test_bad_shapes_are_found_while_tracing() -> None:
    jax = pytest.importorskip("jax")
    params = LSTM.init(seed=0, backend="jax")
    with pytest.raises(prnn.InputError, match="LSTM expects 3 features, got 5"):
        jax.jit(LSTM.apply)(params, jax.numpy.zeros((2, 6, 5), dtype="float32"))


def test_messages_do_not_depend_on_the_length_of_the_repr() -> None:
    deep = prnn.Sequential(*(prnn.Linear(3, 3) for _ in range(30)))
    with pytest.raises(prnn.InputError) as caught:
        deep.apply({}, X)
    assert "\n" not in str(caught.value)
    assert re.search(r"missing 0\.bias", str(caught.value))
