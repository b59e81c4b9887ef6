"""The public edge: what every entry point makes of lengths, of arrays that only look plain, and of what people have."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from trees import mapped, relative_error

import portable_rnn as prnn
from portable_rnn.arrays import leaves, on_their_device
from portable_rnn.layers import Activation, Ends, Flip, Masked, Merge, SharedDropout, Softmax

RNG = np.random.default_rng(0)
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
LOSSES = ("mse", "mae", "huber", "cross_entropy", "binary_cross_entropy")
# Layers that look at lengths, for two features
LAYERS: dict[str, prnn.Layer] = {
    "rnn": prnn.RNN(2, 3),
    "lstm-both": prnn.LSTM(2, 3, bidirectional=True),
    "gru-reverse": prnn.GRU(2, 3, reverse=True),
    "gru-stack": prnn.GRU(2, 3, 2),
    "linear": prnn.Linear(2, 3),
    "dropout": prnn.Dropout(0.5),
    "shared-dropout": SharedDropout(0.5),
    "relu": Activation("relu"),
    "softmax": Softmax(),
    "log-softmax": Softmax(log=True),
    "merge": Merge("mul"),
    "last": prnn.Last(),
    "mean": prnn.Mean(),
    "max": prnn.Max(),
    "flip": Flip(),
    "ends": Ends(),
    "masked": Masked(prnn.RNN(2, 3)),
    "sequential": prnn.Sequential(prnn.GRU(2, 3), prnn.Dropout(0.5)),
    "classifier": prnn.Sequential(prnn.LSTM(2, 3), prnn.Last(), prnn.Linear(3, 2)),
}


def placed(backend: Any, values: Any, dtype: str) -> Any:
    """Integers of one dtype on the library; skips what it doesn't have."""
    xp = backend.target.xp
    if not hasattr(xp, dtype):
        pytest.skip(f"{backend.name} has no {dtype}")
    return xp.asarray(np.asarray(values, dtype), device=backend.target.device)


def run(backend: Any, call: Callable[..., Any], *arrays: Any) -> Any:
    """The call's results as NumPy arrays; traced where the backend is."""
    if backend.entry.jitted:
        import jax

        call = jax.jit(call)
    return backend.numpy(call(*arrays))


# ---------------------------------------------------------------------- lengths


@pytest.mark.parametrize("dtype", INTEGERS)
def test_lengths_of_every_dtype_mean_the_same(backend: Any, dtype: str) -> None:
    """Counts that the dtype holds, over more steps than it can count."""
    most = int(np.iinfo(dtype).max)
    names = [*LAYERS] if backend.entry.examples >= 60 else ["mean", "flip"]  # else each costs a compilation
    for name in names:
        steps = 300 if name in ("linear", "last", "mean", "max", "flip", "ends", "softmax") else 140
        ends = [min(most, steps), 0, 1, min(most, steps - 7)]
        layer = LAYERS[name]
        params, x = backend.array((layer.init(0, prnn.backend("numpy", dtype="float64")), data(4, steps)))
        lengths = placed(backend, ends, dtype)
        y, _ = run(backend, lambda p, x, n, layer=layer: layer.apply(p, x, lengths=n), params, x, lengths)
        expected = backend.numpy(layer.apply(params, x, lengths=ends))[0]
        np.testing.assert_array_equal(y, expected) if not backend.entry.jitted else np.testing.assert_allclose(
            y, expected, rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int64"])
@on_their_device
def test_lengths_over_more_steps_than_sixteen_bits_count(backend: Any, dtype: str) -> None:
    steps = 32_769 if dtype != "uint16" else 65_537
    ends = [min(steps, int(np.iinfo(dtype).max)), 300]
    x, lengths = backend.array(data(2, steps)[:, :, :1]), placed(backend, ends, dtype)
    host = backend.numpy(x)
    y, _ = run(backend, lambda x, n: prnn.Mean().apply({}, x, lengths=n), x, lengths)
    np.testing.assert_allclose(y[:, 0], [host[k, :end, 0].mean() for k, end in enumerate(ends)], rtol=1e-9)
    value, _ = run(backend, prnn.losses.mae, x, 0 * x, lengths)
    assert value == pytest.approx(np.abs(np.concatenate([host[k, :end] for k, end in enumerate(ends)])).mean())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_lengths_of_losses(backend: Any, dtype: str, loss: str) -> None:
    ends = [min(300, int(np.iinfo(dtype).max)), 0, 7]
    prediction = backend.array(data(3, 300))
    target = backend.array((data(3, 300) > 0).astype("float64"))
    function = getattr(prnn.losses, loss) if loss != "huber" else prnn.losses.huber()
    found = run(backend, function, prediction, target, placed(backend, ends, dtype))
    expected = backend.numpy(function(prediction, target, ends))
    assert relative_error(found, expected) < 1e-12
    first = backend.numpy(function(prediction[:1, : ends[0], :], target[:1, : ends[0], :]))[1][0] * ends[0]
    np.testing.assert_allclose(found[1][0, : ends[0]] * (ends[0] + 7), first, rtol=1e-9)


@pytest.mark.parametrize("given", ["list", "numpy", "library"])
def test_lengths_that_are_none_are_refused_everywhere(backend: Any, given: str) -> None:
    x = backend.array(data(2, 5))
    y = backend.array(data(2, 5))
    model = prnn.Model(prnn.GRU(2, 2), backend.target)
    params = model.params

    def calls(lengths: Any) -> Iterator[Callable[[], Any]]:
        yield lambda: model.network.apply(params, x, lengths=lengths)
        yield lambda: model.network.vjp(params, x, lengths=lengths)
        yield lambda: prnn.Mean().apply({}, x, lengths=lengths)
        yield lambda: prnn.losses.mse(y, y, lengths)
        if not backend.entry.jitted:
            yield lambda: model.predict(x, lengths=lengths)
            yield lambda: model.evaluate(x, y, lengths=lengths)
            yield lambda: model.loss_and_grad(x, y, lengths=lengths)
            yield lambda: model.fit(x, y, lengths=lengths, epochs=1, progress=False)
            yield lambda: prnn.gradient_flow(model, x, y, lengths=lengths)

    for bad, dtype, message in (
        ([True, False], "bool", "lengths must be integers, got bool"),
        ([1.0, 2.0], "float64", "lengths must be integers, got float64"),
        ([6, 1], "uint8", "lengths must lie between 0 and 5 (the time steps of x), got 6"),
        ([1, -1], "int8", "lengths must lie between 0 and 5 (the time steps of x), got -1"),
        ([2**32 + 1, 1], "int64", f"got {2**32 + 1}"),
        ([1, 2, 3], "int64", "one integer for each of the 2 rows, got shape (3,)"),
        ([[1], [2]], "int32", "one integer for each of the 2 rows, got shape (2, 1)"),
        (3, "int64", "one integer for each of the 2 rows, got shape ()"),
    ):
        lengths = bad if given == "list" else np.asarray(bad, dtype)
        lengths = placed(backend, lengths, dtype) if given == "library" else lengths
        for call in calls(lengths):
            with pytest.raises(prnn.InputError) as caught:
                call()
            assert message in str(caught.value)


def test_traced_lengths_meet_the_same_checks() -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    x = jnp.ones((2, 5, 2))
    layer = prnn.GRU(2, 3)
    params = layer.init(0, prnn.backend("jax", dtype="float64"))
    calls = {
        "apply": lambda n: layer.apply(params, x, lengths=n)[0],
        "vjp": lambda n: layer.vjp(params, x, lengths=n)[0],
        "mean": lambda n: prnn.Mean().apply({}, x, lengths=n)[0],
        "mse": lambda n: prnn.losses.mse(x, 0 * x, n),
    }
    for name, call in calls.items():
        traced = jax.jit(call)
        for bad, message in (
            (jnp.asarray([1.0, 2.0]), "lengths must be integers, got float64"),
            (jnp.asarray([True, False]), "lengths must be integers, got bool"),
            (jnp.asarray([1, 2, 3]), "got shape (3,)"),
            (jnp.asarray(3), "got shape ()"),
            (jnp.asarray([[1, 2]]), "got shape (1, 2)"),
        ):
            with pytest.raises(prnn.InputError) as caught:
                traced(bad)
            assert message in str(caught.value), name
        # there are no values to refuse: what is out of range counts as its nearest end
        over, whole = traced(jnp.asarray([2**40, -3])), traced(jnp.asarray([5, 0]))
        assert relative_error(mapped(np.asarray, over), mapped(np.asarray, whole)) == 0, name


def data(batch: int, steps: int, features: int = 2) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((batch, steps, features))


# ---------------------------------------------------------------------- changes in place


def write(backend: Any, tree: Any) -> None:
    """Overwrite arrays where their library can."""

    def spoil(a: Any) -> Any:
        if a is not None and not (backend.entry.read_only and not a.flags.writeable):
            a *= -3
        return a

    mapped(spoil, tree)


@pytest.mark.parametrize("lengths", [None, [5, 0, 3]], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", LAYERS)
@on_their_device
def test_a_pullback_does_not_see_what_is_written_to_arrays(backend: Any, name: str, lengths: Any) -> None:
    """To x, the state, lengths and resets that were given, to y and the state that came, and to gradients."""
    if backend.entry.library == "jax":
        pytest.skip("its arrays can't be written to")
    layer = LAYERS[name]
    params, x = backend.array((layer.init(0, prnn.backend("numpy", dtype="float64")), data(3, 5)))
    recurrent = name in ("rnn", "lstm-both", "gru-reverse", "gru-stack")
    state = mapped(lambda s: s * 0 + 0.3, layer.apply(params, x)[1]) if recurrent else None
    ends = None if lengths is None else placed(backend, lengths, "int32")
    resets = backend.array(np.arange(15).reshape(3, 5) % 4 == 1) if recurrent else None
    y, final, pullback = layer.vjp(params, x, state, ends, resets=resets)
    dy = backend.array(np.random.default_rng(1).standard_normal(y.shape))
    dstate = mapped(lambda s: s * 0 + 0.7, final) if recurrent else None
    before = [prnn.to_numpy(a).copy() for a in leaves((params, x, dy))]
    expected = mapped(lambda a: prnn.to_numpy(a).copy(), pullback(dy, dstate))
    np.testing.assert_equal([prnn.to_numpy(a) for a in leaves((params, x, dy))], before)

    write(backend, (x, y, final, state, ends))
    if resets is not None and not backend.entry.read_only:
        resets &= False
    first = pullback(dy, dstate)
    np.testing.assert_equal(mapped(prnn.to_numpy, first), expected)
    write(backend, first)
    np.testing.assert_equal([prnn.to_numpy(a) for a in leaves(dy)], before[-1:])
    params.update({key: value * 2 for key, value in params.items()})
    np.testing.assert_equal(mapped(prnn.to_numpy, pullback(dy, dstate)), expected)


@pytest.mark.parametrize("name", LAYERS)
@on_their_device
def test_what_a_call_returns_shares_no_memory(backend: Any, name: str) -> None:
    if backend.entry.library == "jax":
        pytest.skip("its arrays can't be written to")
    layer = LAYERS[name]
    params, x = backend.array((layer.init(0, prnn.backend("numpy", dtype="float64")), data(3, 1)))
    given = list(leaves((params, x)))

    def unharmed(call: Callable[[], tuple[Any, Any]]) -> Any:
        """Write to the first of two results; the second, which is returned, and the arguments stay."""
        y, state = call()
        kept = [prnn.to_numpy(a).copy() for a in (*given, *leaves(state))]
        write(backend, y)
        np.testing.assert_equal([prnn.to_numpy(a) for a in (*given, *leaves(state))], kept)
        return state

    unharmed(lambda: layer.apply(params, x))
    model = prnn.Model(layer, backend.target)
    model.params = params
    unharmed(lambda: (model.predict(x), None))
    if layer.streams and not getattr(layer, "bidirectional", False) and not getattr(layer, "reverse", False):
        unharmed(lambda: model.step(x[:, 0, :], unharmed(lambda: model.step(x[:, 0, :]))))
        if params:
            streams = [prnn.Stream(model, batch_size=3) for _ in range(2)]
            for _ in range(3):
                written, untouched = (stream.step(x[:, 0, :]) for stream in streams)
                np.testing.assert_equal(prnn.to_numpy(written), prnn.to_numpy(untouched))
                write(backend, written)


@on_their_device
def test_the_natural_way_to_write_a_gradient_is_right(backend: Any) -> None:
    """``y -= target; pullback(y)``, against the same without a write."""
    layer = prnn.RNN(2, 3)
    params, x = backend.array((layer.init(0, prnn.backend("numpy", dtype="float64")), data(2, 4)))
    target = backend.array(data(2, 4, 3))
    y, _, pullback = layer.vjp(params, x)
    expected = mapped(prnn.to_numpy, pullback(y - target))
    y -= target
    np.testing.assert_equal(mapped(prnn.to_numpy, pullback(y)), expected)


def test_torch_tells_of_parameters_that_were_written_to() -> None:
    torch = pytest.importorskip("torch")
    layer = prnn.GRU(2, 3)
    params, x = layer.init(0, "torch"), torch.ones(2, 4, 2)
    y, _, pullback = layer.vjp(params, x)
    pullback(y)
    params["weight_hh_l0"] -= 0.1
    with pytest.raises(prnn.InputError, match=r"parameter 'weight_hh_l0': expected the values that vjp saw.*in place"):
        pullback(y)
    with torch.inference_mode():  # where torch doesn't count
        y, _, pullback = layer.vjp(layer.init(0, "torch"), torch.ones(2, 4, 2))
        pullback(y)


@on_their_device
def test_losses_and_the_notebook_keep_what_they_need(backend: Any) -> None:
    if backend.entry.library == "jax":
        pytest.skip("its arrays can't be written to")
    prediction, target = backend.array((data(2, 3), data(2, 3)))
    for loss in (prnn.losses.mse, prnn.losses.huber(0.1), prnn.losses.binary_cross_entropy):
        value, gradient = loss(prediction, target)
        kept = prnn.to_numpy(value).copy()
        write(backend, gradient)
        np.testing.assert_equal([prnn.to_numpy(a) for a in (prediction, target, value)], [data(2, 3), data(2, 3), kept])
    for steps in (3, 2000) if backend.name in ("numpy", "torch") else (3,):  # so many run as the layers do
        both = [prnn.SimpleRNN(1, 20, 1, backend=backend.target, seed=0) for _ in range(2)]
        inputs = [[np.full((1, 1), 0.1 * t) for t in range(steps)] for _ in both]
        outputs = [rnn.forward(column) for rnn, column in zip(both, inputs, strict=True)]
        for column in inputs[1]:
            column *= 7
        outputs[1] *= 7
        found = [mapped(prnn.to_numpy, rnn.backward([[1.0]])) for rnn in both]
        np.testing.assert_equal(*found)


# ---------------------------------------------------------------------- arrays that only look plain


class Tagged(np.ndarray):
    """Carries a note and computes as its base class does."""

    def __array_finalize__(self, other: Any) -> None:
        self.note = getattr(other, "note", "")


class Unit(np.ndarray):
    """Computes otherwise, as units do."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*(np.asarray(i) for i in inputs), **options)


class Reversed(np.ndarray):
    """Computes otherwise, by an operator."""

    def __sub__(self, other: Any) -> Any:
        return other - np.asarray(self)


ODD: dict[str, Callable[[np.ndarray], Any]] = {
    "masked": np.ma.masked_array,
    "hidden": lambda a: np.ma.masked_array(a, mask=np.arange(a.size).reshape(a.shape) == 0),
    "unit": lambda a: a.view(Unit),
    "operator": lambda a: a.view(Reversed),
    "record": lambda a: a.view(np.recarray),
}


def entries(odd: Callable[[np.ndarray], Any]) -> dict[str, Callable[[], Any]]:
    """Every way into the library with one argument made odd."""
    x, y = data(2, 3).astype("float32"), data(2, 3).astype("float32")
    model = prnn.Model(prnn.GRU(2, 2))
    layer, params = model.network, model.params
    state = np.zeros((1, 2, 2), "float32")
    resets = np.zeros((2, 3), bool)
    lengths = np.array([3, 2])
    pull = layer.vjp(params, x)[2]
    stream = prnn.Stream(model, 2)
    quiet: Any = {"epochs": 1, "progress": False}
    note = prnn.SimpleRNN(seed=0)
    column = np.ones((1, 1))
    note.forward([column])
    changed = {**params, "weight_hh_l0": odd(params["weight_hh_l0"])}
    return {
        "apply-x": lambda: layer.apply(params, odd(x)),
        "apply-rows": lambda: layer.apply(params, [x[0], odd(x[1])]),
        "apply-params": lambda: layer.apply(changed, x),
        "apply-state": lambda: layer.apply(params, x, odd(state)),
        "apply-lengths": lambda: layer.apply(params, x, lengths=odd(lengths)),
        "apply-resets": lambda: layer.apply(params, x, resets=odd(resets)),
        "pooling": lambda: prnn.Mean().apply({}, odd(x)),
        "vjp-x": lambda: layer.vjp(params, odd(x)),
        "dy": lambda: pull(odd(y)),
        "dstate": lambda: pull(y, odd(state)),
        "fit-x": lambda: model.fit(odd(x), y, **quiet),
        "fit-y": lambda: model.fit(x, odd(y), **quiet),
        "fit-rows": lambda: model.fit([odd(x[0]), x[1]], y, **quiet),
        "fit-targets": lambda: model.fit(x, [y[0], odd(y[1])], **quiet),
        "fit-lengths": lambda: model.fit(x, y, lengths=odd(lengths), **quiet),
        "fit-resets": lambda: model.fit(x, y, resets=odd(resets), **quiet),
        "validation": lambda: model.fit(x, y, validation_data=(odd(x), y), **quiet),
        "nested": lambda: model.predict([[odd(x[0, 0]), x[0, 1]], [x[1, 0], x[1, 1]]]),
        "predict": lambda: model.predict(odd(x)),
        "evaluate": lambda: model.evaluate(x, odd(y)),
        "loss_and_grad": lambda: model.loss_and_grad(odd(x), y),
        "gradient_flow": lambda: prnn.gradient_flow(model, odd(x), y),
        "step": lambda: model.step(odd(x[:, 0])),
        "step-state": lambda: model.step(x[:, 0], odd(state)),
        "stream": lambda: stream.step(odd(x[:, 0])),
        "prediction": lambda: prnn.losses.mse(odd(x), y),
        "target": lambda: prnn.losses.mse(x, odd(y)),
        "loss-lengths": lambda: prnn.losses.mse(x, y, odd(lengths)),
        "asarray": lambda: prnn.asarray(odd(x), "numpy"),
        "asarray-list": lambda: prnn.asarray([x[0], odd(x[1])], "numpy"),
        "asarray-ragged": lambda: prnn.asarray([x[0, :1], odd(x[1])], "numpy"),
        "to_numpy": lambda: prnn.to_numpy(odd(x)),
        "pad_sequences": lambda: prnn.data.pad_sequences([x[0], odd(x[1])]),
        "inputs": lambda: note.forward([odd(column)]),
        "notebook-target": lambda: note.train([column], odd(column)),
        "d_y": lambda: note.backward(odd(column)),
    }


@pytest.mark.parametrize("kind", [*ODD, "matrix"])
def test_subclasses_that_compute_otherwise_are_refused_everywhere(kind: str) -> None:
    refused = 0
    for name, call in entries(as_matrix if kind == "matrix" else ODD[kind]).items():
        with pytest.raises(prnn.InputError) as caught:
            call()
        message = str(caught.value)
        assert chr(10) not in message
        assert "expected a plain numpy.ndarray, got " in message, name
        assert ("fill it" if kind in ("masked", "hidden") else "np.asarray(") in message, name
        refused += 1
    assert refused > 30


def as_matrix(a: np.ndarray) -> Any:
    """A matrix has two dimensions, whatever it was."""
    return a.reshape(a.shape[0], -1).view(np.matrix)


@pytest.mark.parametrize("kind", ["tagged", "memmap"])
def test_subclasses_that_compute_as_arrays_are_arrays(kind: str, tmp_path: Any) -> None:
    def odd(a: np.ndarray) -> Any:
        if kind == "tagged":
            return a.view(Tagged)
        mapped_file = np.memmap(tmp_path / str(next(numbers)), a.dtype, "w+", shape=a.shape)
        mapped_file[...] = a
        return mapped_file

    numbers = itertools.count()
    plain, found = entries(lambda a: a), entries(odd)
    for name, call in found.items():
        result, expected = call(), plain[name]()
        if isinstance(expected, prnn.History):
            assert result.step_loss == expected.step_loss, name
            continue
        for a, b in zip(arrays_in(result), arrays_in(expected), strict=True):
            assert type(a) is type(b), name
            np.testing.assert_array_equal(a, b, err_msg=name)


def arrays_in(tree: Any) -> list[Any]:
    """The arrays of results, whatever holds them."""
    if isinstance(tree, prnn.GradientFlow):
        return [*tree.gradients.values()]
    if isinstance(tree, (tuple, list)):
        return [leaf for branch in tree for leaf in arrays_in(branch)]
    if isinstance(tree, dict):
        return arrays_in(list(tree.values()))
    return [tree] if isinstance(tree, np.ndarray) else []


def test_tensors_that_compute_otherwise_are_refused() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 3, 2)
    layer = prnn.GRU(2, 3)
    params = layer.init(0, "torch")

    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return super().__torch_function__(function, types, args, kwargs or {})

    for bad, message in (
        (x.as_subclass(Loud), r"expected a plain torch.Tensor, got Loud: do x.as_subclass\(torch.Tensor\)"),
        (x.to_sparse(), r"expected a dense torch.Tensor, got layout torch.sparse_coo: do x.to_dense\(\)"),
    ):
        with pytest.raises(prnn.InputError, match=message):
            layer.apply(params, bad)
    own = {name: torch.nn.Parameter(p) for name, p in params.items()}
    found, expected = (prnn.to_numpy(layer.apply(p, x)[0]) for p in (own, params))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# ---------------------------------------------------------------------- what people have

TAGGER = prnn.Sequential(prnn.GRU(2, 3), prnn.Linear(3, 3))
TOKENS = prnn.Sequential(prnn.Embedding(9, 2), prnn.GRU(2, 3), prnn.Linear(3, 3))
ENDS = [3, 0, 5, 1]


def ragged(backend: Any, features: tuple[int, ...] = (2,), classes: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    size = [(end, *features) for end in ENDS]
    return [rng.integers(0, classes, s) if classes else rng.standard_normal(s) for s in size]


def filled(rows: list[Any]) -> np.ndarray:
    return prnn.data.pad_sequences([np.asarray(row) for row in rows])[0]


@pytest.mark.parametrize("kind", ["arrays", "lists", "frames"])
def test_ragged_x_and_y_are_a_padded_batch_with_lengths(backend: Any, kind: str) -> None:
    """Labels (T_i,) and targets (T_i, O), as arrays of the library, nested lists and tables."""
    if backend.entry.jitted:
        pytest.skip("`Model` compiles by itself")
    rows, labels, targets = ragged(backend), ragged(backend, (), 3), ragged(backend, (3,))

    def given(some: list[np.ndarray]) -> Any:
        if kind == "arrays":
            return [backend.array(row) for row in some]
        if kind == "lists":
            return [row.tolist() for row in some]
        pandas = pytest.importorskip("pandas")
        return [(pandas.Series if row.ndim == 1 else pandas.DataFrame)(row) for row in some]

    model = prnn.Model(TAGGER, backend.target, seed=0)
    x = backend.array(filled(rows))
    for y, loss in ((labels, "cross_entropy"), (targets, "mse")):
        padded = backend.array(filled(y))
        settings = {"loss": loss, "lengths": ENDS}
        assert model.evaluate(given(rows), given(y), loss=loss) == model.evaluate(x, padded, **settings)
        found = model.loss_and_grad(given(rows), given(y), loss=loss)
        np.testing.assert_equal(backend.numpy(found), backend.numpy(model.loss_and_grad(x, padded, **settings)))
        assert model.evaluate(x, given(y), **settings) == model.evaluate(x, padded, **settings)
        fits = []
        for data, extra in (((given(rows), given(y)), ()), ((x, padded), (ENDS,))):
            fresh = prnn.Model(TAGGER, backend.target, seed=0)
            options: Any = {"loss": loss, "epochs": 1, "progress": False, "validation_data": (*data, *extra)}
            history = fresh.fit(*data, lengths=ENDS if extra else None, **options)
            fits.append((history.step_loss, history.val_loss))
        assert fits[0] == fits[1]
    np.testing.assert_equal(backend.numpy(model.predict(given(rows))), backend.numpy(model.predict(x, lengths=ENDS)))


def test_ragged_integer_lists_are_tokens(backend: Any) -> None:
    if backend.entry.jitted:
        pytest.skip("`Model` compiles by itself")
    tokens, labels = ([row.tolist() for row in ragged(backend, (), n)] for n in (9, 3))
    model = prnn.Model(TOKENS, backend.target, seed=0)
    whole = backend.array(filled([np.asarray(row, "int64") for row in tokens]))
    expected = backend.numpy(model.predict(whole, lengths=ENDS))
    for given in (tokens, prnn.asarray(tokens, backend.target), [tuple(row) for row in tokens]):
        np.testing.assert_equal(backend.numpy(model.predict(given)), expected)
    model.fit(tokens, labels, loss="cross_entropy", epochs=1, progress=False)


def test_numbers_without_a_library_take_the_models_dtype(backend: Any) -> None:
    """Integer lists and float64 tables for a float32 model; float64 arrays by one call."""
    if backend.entry.jitted:
        pytest.skip("`Model` compiles by itself")
    narrow = prnn.backend(backend.target, dtype="float32")
    model = prnn.Model(TAGGER, narrow, seed=0)
    whole = np.arange(12).reshape(2, 3, 2)
    expected = prnn.to_numpy(model.predict(prnn.asarray(whole, narrow, dtype="float32")))
    np.testing.assert_array_equal(prnn.to_numpy(model.predict(whole.tolist())), expected)
    rows = [whole[0], whole[1, :2]]
    by_lists = prnn.to_numpy(model.predict([row.tolist() for row in rows]))
    for step in (model.step, prnn.Stream(model, 2).step):
        found = step(whole[:, 0].tolist())
        y_t = prnn.to_numpy(found[0] if isinstance(found, tuple) else found)
        np.testing.assert_allclose(y_t, expected[:, 0], rtol=1e-6)
        with pytest.raises(prnn.InputError, match="expects floating x, got int64"):
            step(backend.array(whole[:, 0]))
    boxed = np.empty(2, object)
    boxed[:] = rows
    np.testing.assert_array_equal(prnn.to_numpy(model.predict(prnn.asarray(boxed, narrow, dtype="float32"))), by_lists)
    wide = [row.astype("float64") for row in rows]
    np.testing.assert_array_equal(prnn.to_numpy(model.predict(prnn.asarray(wide, model.backend))), by_lists)
    with pytest.raises(prnn.BackendError, match=r"portable_rnn.asarray\(x, model.backend\)"):
        model.predict([backend.array(row) for row in wide])
    with pytest.raises(prnn.BackendError, match=r"portable_rnn.asarray\(y, model.backend\)"):
        model.evaluate([row.tolist() for row in rows], [backend.array(row) for row in wide])


def test_asarray_moves_ragged_lists(backend: Any) -> None:
    rows = ragged(backend)
    for given in (rows, [row.tolist() for row in rows], [backend.array(row) for row in rows]):
        found = prnn.asarray(given, backend.target)
        assert isinstance(found, list)
        for row, expected in zip(backend.numpy(found), rows, strict=True):
            np.testing.assert_array_equal(row, expected)


def test_ragged_targets_must_fit_x() -> None:
    rows = ragged(None)
    model, pooled = (prnn.Model(n, dtype="float64") for n in (TAGGER, prnn.Sequential(prnn.GRU(2, 3), prnn.Last())))
    labels = [np.zeros(end, int) for end in ENDS]
    for y, message in (
        ([*labels[:3], labels[2]], r"y\[3\]: expected 1 steps, as x\[3\] has, got 5: give each step"),
        (labels[:3], r"one entry for each of the 4 rows of x, got a list of 3"),
        ([np.zeros((end, 1 + (end == 5))) for end in ENDS], r"y: the sequences of a list must agree"),
    ):
        with pytest.raises(prnn.InputError, match=message):
            model.evaluate(rows, y, loss="cross_entropy")
    with pytest.raises(prnn.InputError, match="one target for each row, since the network removes the time axis"):
        pooled.evaluate(rows, labels)
    with pytest.raises(prnn.InputError, match=r"y\[0\]: expected 5 steps, as x\[0\] has, got 3"):
        model.evaluate(filled(rows), labels, loss="cross_entropy")  # without lengths every row is whole


class Loader:
    """As torch's DataLoader: it yields batches, and has neither a shape nor a length that means rows."""

    def __iter__(self) -> Iterator[Any]:
        yield np.ones((2, 3, 2)), np.ones((2, 3, 3))


@pytest.mark.parametrize("method", ["fit", "evaluate", "loss_and_grad", "predict", "apply", "asarray", "pad"])
def test_what_yields_data_is_told_apart_from_data(method: str) -> None:
    model = prnn.Model(TAGGER, dtype="float64")
    y = np.zeros((2, 3, 3))
    settings = {"progress": False} if method == "fit" else {}
    call: Callable[[Any], Any] = {
        "asarray": lambda x: prnn.asarray(x, "numpy"),
        "pad": lambda x: prnn.data.pad_sequences([x]),
        "predict": model.predict,
        "apply": lambda x: TAGGER.apply(model.params, x),
    }.get(method) or functools.partial(lambda x: getattr(model, method)(x, y, **settings))
    whole = np.ones((2, 3, 2))
    for bad, name in ((Loader(), "Loader"), (iter(whole), "iterator"), ((row for row in whole), "generator")):
        with pytest.raises(prnn.InputError, match=rf"expected an array or a list of sequences, got .*{name}: collect"):
            call(bad)
    torch = pytest.importorskip("torch")
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(1, 2), torch.ones(3, 2)], enforce_sorted=False)
    with pytest.raises(prnn.InputError, match=r"got PackedSequence: do x, lengths = .*pad_packed_sequence"):
        call(packed)
    with pytest.raises(prnn.InputError, match=r"got DataLoader: collect"):
        call(torch.utils.data.DataLoader(list(range(3))))
    with pytest.raises(prnn.InputError, match=r"got dict: pass one of its values"):
        call({"x": whole})
