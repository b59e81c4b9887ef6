"""The notebook's class: its own training cell, exact gradients on every array library, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn import notebook as simple
from portable_rnn.notebook import SimpleRNN, dsigmoid, dtanh, sigmoid, tanh

# Pairs a + b that the notebook's cell learns; 2 + 3 is in none of them.
SUMS = {"A": ((1, 2), (0, 5), (3, 4), (2, 1)), "B": ((1, 2), (4, 2), (1, 5), (4, 3))}
WEIGHTS = ("Wxh", "Whh", "Why", "bh", "by")


def training_cell(rnn: SimpleRNN, pairs: Any, epochs: int) -> tuple[list[float], float]:
    """The notebook's training and test cell: the summed loss of each epoch, and 2 + 3."""
    data = [([np.array([[a]]), np.array([[b]])], np.array([[a + b]])) for a, b in pairs]
    losses = []
    for _ in range(epochs):
        total_loss = 0.0
        for inputs, target in data:
            total_loss += rnn.train(inputs, target)
        losses.append(total_loss)
    pred = rnn.predict([np.array([[2]]), np.array([[3]])])
    return losses, pred.flatten()[0]


def random_network(backend: Any, sizes: tuple[int, int, int], steps: int, batch: int, seed: int) -> Any:
    """A network with weights of order one, and a sequence and d_y for it as read-only host arrays."""
    rng = np.random.default_rng(seed)
    inputs, hidden, outputs = sizes
    rnn = SimpleRNN(inputs, hidden, outputs, backend=backend.target, seed=0)
    for name in WEIGHTS:
        shape = tuple(getattr(rnn, name).shape)
        setattr(rnn, name, backend.array(0.6 * rng.standard_normal(shape)))
    x, d_y = rng.standard_normal((steps, inputs, batch)), rng.standard_normal((outputs, batch))
    x.flags.writeable = d_y.flags.writeable = False
    return rnn, list(x), d_y


def finite_differences(backend: Any, rnn: SimpleRNN, inputs: Any, d_y: np.ndarray) -> dict[str, np.ndarray]:
    """Central differences of ``sum(y * d_y)`` in every entry of every weight."""
    step = 1e-5
    gradients = {}
    for name in WEIGHTS:
        kept = getattr(rnn, name)
        host = prnn.to_numpy(kept)
        gradient = np.empty(host.shape)
        for index in np.ndindex(host.shape):
            values = []
            for sign in (1, -1):
                moved = host.copy()
                moved[index] += sign * step
                setattr(rnn, name, backend.array(moved))
                values.append(np.sum(rnn.forward(inputs) * d_y))
            gradient[index] = (values[0] - values[1]) / (2 * step)
        setattr(rnn, name, kept)
        gradients[name] = gradient
    return gradients


def original_gradients(rnn: SimpleRNN, inputs: Any, d_y: np.ndarray) -> dict[str, np.ndarray]:
    """The notebook's formula, with both of its faults."""
    rnn.forward(inputs)
    hs = rnn.last_hs
    total = {name: np.zeros_like(getattr(rnn, name)) for name in WEIGHTS}
    total["Why"], total["by"] = d_y @ hs[len(inputs)].T, d_y
    dh_next = 0
    for t in range(len(inputs), 0, -1):
        dh = rnn.Why.T @ d_y + dh_next
        da = dh * dtanh(hs[t])
        total["Wxh"] += da @ inputs[t - 1].T
        total["Whh"] += da @ hs[t - 1].T
        total["bh"] += da
        dh_next = rnn.Whh.T @ da
    return total


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Of a against b, in the Euclidean norm."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# ---------------------------------------------------------------------- the notebook's cell


@pytest.mark.parametrize("seeding", ["np.random.seed(s)", "seed=s"])
@pytest.mark.parametrize("pairs", SUMS.values(), ids=SUMS)
def test_ten_seeds_learn_the_sums(pairs: Any, seeding: str) -> None:
    for s in range(10):
        if seeding == "seed=s":
            rnn = SimpleRNN(input_size=1, hidden_size=10, output_size=1, learning_rate=0.01, seed=s)
        else:
            np.random.seed(s)  # as the notebook does  # noqa: NPY002
            rnn = SimpleRNN(input_size=1, hidden_size=10, output_size=1, learning_rate=0.01)
        losses, two_plus_three = training_cell(rnn, pairs, 1000)
        assert losses[-1] < 1e-3, s
        assert 5.4 <= two_plus_three <= 5.8, s


@pytest.mark.parametrize("seed", [0, 1])
def test_trajectory_is_that_of_numpy(backend: Any, seed: int) -> None:
    expected, there = (
        training_cell(SimpleRNN(learning_rate=0.05, backend=b, seed=seed), SUMS["A"], 15)
        for b in ("numpy", backend.target)
    )
    np.testing.assert_allclose(there[0], expected[0], rtol=0, atol=1e-9)
    assert abs(there[1] - expected[1]) < 1e-9
    assert expected[0][-1] < expected[0][0] / 2


def test_initial_weights_are_the_same_everywhere(backend: Any) -> None:
    here, there = SimpleRNN(2, 3, 4, seed=5), SimpleRNN(2, 3, 4, backend=backend.target, seed=5)
    for name in WEIGHTS:
        np.testing.assert_array_equal(backend.numpy(getattr(there, name)), getattr(here, name))


def test_global_seed_gives_the_notebooks_weights(backend: Any) -> None:
    np.random.seed(3)  # noqa: NPY002
    rnn = SimpleRNN(2, 10, 3, backend=backend.target)
    np.random.seed(3)  # noqa: NPY002
    for name, shape in (("Wxh", (10, 2)), ("Whh", (10, 10)), ("Why", (3, 10))):
        expected = np.random.randn(*shape) * 0.01  # noqa: NPY002
        np.testing.assert_array_equal(backend.numpy(getattr(rnn, name)), expected)
    assert not backend.numpy(rnn.bh).any()
    assert rnn.bh.shape == (10, 1)
    assert not backend.numpy(rnn.by).any()
    assert rnn.by.shape == (3, 1)


def test_looking_up_a_library_does_not_change_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first import of JAX draws from NumPy's global generator."""

    def drawing(*args: Any, **options: Any) -> prnn.Backend:
        np.random.standard_normal(7)  # noqa: NPY002
        return prnn.backend(*args, **options)

    np.random.seed(0)  # noqa: NPY002
    expected = np.random.randn(10, 1) * 0.01  # noqa: NPY002
    monkeypatch.setattr(simple, "as_backend", drawing)
    np.random.seed(0)  # noqa: NPY002
    np.testing.assert_array_equal(SimpleRNN().Wxh, expected)


# ---------------------------------------------------------------------- the gradient


@pytest.fixture(params=["as the notebook", "as a layer"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of running a sequence, of which the second is that of large ones."""
    monkeypatch.setattr(simple, "LARGE", 0 if request.param == "as a layer" else 1 << 60)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_gradients_are_finite_differences(backend: Any, steps: int) -> None:
    batch = 1 + steps % 3
    rnn, inputs, d_y = random_network(backend, (2, 3, 2), steps, batch, seed=steps)
    rnn.forward(inputs)
    gradients = backend.numpy(rnn.backward(d_y, learning=False))
    expected = finite_differences(backend, rnn, inputs, d_y)
    assert set(gradients) == set(WEIGHTS)
    for name in WEIGHTS:
        if np.any(expected[name]):
            assert relative_error(gradients[name], expected[name]) < 1e-6, name
        else:  # one step: Whh has seen nothing but the zero state
            assert name == "Whh"
            assert steps == 1
            assert not gradients[name].any()


@pytest.mark.usefixtures("either_way")
def test_gradients_are_those_of_the_layers(backend: Any) -> None:
    """Against RNN and Linear on NumPy, with more columns than one product takes."""
    steps, batch = 7, 75
    assert steps * batch > 2 * simple.BLOCK
    rnn, inputs, d_y = random_network(backend, (2, 3, 2), steps, batch, seed=8)
    rnn.forward(inputs)
    gradients = backend.numpy(rnn.backward(d_y, learning=False))
    w = {name: backend.numpy(getattr(rnn, name)) for name in WEIGHTS}
    network = prnn.Sequential(prnn.RNN(2, 3), prnn.Last(), prnn.Linear(3, 2))
    params = dict(
        zip(
            network.parameter_shapes(),
            (w["Wxh"], w["Whh"], w["bh"][:, 0], np.zeros(3), w["Why"], w["by"][:, 0]),
            strict=True,
        )
    )
    y, _, pullback = network.vjp(params, np.stack(inputs).transpose(2, 0, 1))
    dparams, _, _ = pullback(d_y.T)
    np.testing.assert_allclose(rnn.forward(inputs), y.T, rtol=1e-12, atol=1e-12)
    by_name = dict(zip(("Wxh", "Whh", "bh", "_", "Why", "by"), dparams.values(), strict=True))
    for name in WEIGHTS:
        np.testing.assert_allclose(gradients[name], by_name[name].reshape(w[name].shape), rtol=1e-11, atol=1e-11)


def test_the_original_formula_is_wrong_and_this_one_is_not(backend: Any) -> None:
    if backend.target.name != "numpy":
        return  # its formula is NumPy
    rnn, inputs, d_y = random_network(backend, (1, 10, 1), 4, 1, seed=0)
    exact = finite_differences(backend, rnn, inputs, d_y)
    original = original_gradients(rnn, inputs, d_y)
    rnn.forward(inputs)
    ours = rnn.backward(d_y, learning=False)
    for name in ("Wxh", "Whh", "bh"):
        assert relative_error(original[name], exact[name]) > 0.2, name
        assert relative_error(ours[name], exact[name]) < 1e-6, name


@pytest.mark.usefixtures("either_way")
def test_a_batch_is_the_sum_of_its_sequences(backend: Any) -> None:
    rnn, inputs, d_y = random_network(backend, (2, 4, 3), 3, 5, seed=1)
    y = rnn.forward(inputs)
    whole = backend.numpy(rnn.backward(d_y, learning=False))
    parts = []
    for k in range(5):
        np.testing.assert_allclose(rnn.forward([x[:, [k]] for x in inputs]), y[:, [k]], rtol=1e-12)
        parts.append(backend.numpy(rnn.backward(d_y[:, [k]], learning=False)))
    for name in WEIGHTS:
        np.testing.assert_allclose(whole[name], sum(part[name] for part in parts), rtol=1e-11, atol=1e-12)


# ---------------------------------------------------------------------- the calls


@pytest.mark.usefixtures("either_way")
def test_train_is_forward_squared_error_and_backward(backend: Any) -> None:
    rnn, inputs, _ = random_network(backend, (2, 3, 2), 3, 1, seed=2)
    other, _, _ = random_network(backend, (2, 3, 2), 3, 1, seed=2)
    target = np.array([[1.0], [-2.0]])
    y = other.forward(inputs)
    other.backward(2 * (y - target))
    loss = rnn.train(inputs, target)
    assert float(loss) == pytest.approx(float(np.sum((y - target) ** 2)), rel=1e-14)
    for name in WEIGHTS:
        there, here = backend.numpy((getattr(other, name), getattr(rnn, name)))
        np.testing.assert_allclose(here, there, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("either_way")
def test_backward_learns_only_when_told(backend: Any) -> None:
    rnn, inputs, d_y = random_network(backend, (2, 3, 2), 3, 1, seed=3)
    before = {name: backend.numpy(getattr(rnn, name)).copy() for name in WEIGHTS}
    rnn.lr = 0.5
    rnn.forward(inputs)
    still = backend.numpy(rnn.backward(d_y, learning=False))
    for name in WEIGHTS:
        np.testing.assert_array_equal(backend.numpy(getattr(rnn, name)), before[name])
    learnt = backend.numpy(rnn.backward(d_y))
    for name in WEIGHTS:
        np.testing.assert_array_equal(learnt[name], still[name])
        after = backend.numpy(getattr(rnn, name))
        np.testing.assert_allclose(after, before[name] - 0.5 * learnt[name], rtol=1e-14, atol=1e-16)


def test_a_large_batch_runs_as_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    inputs, target = list(rng.standard_normal((40, 1, 32))), rng.standard_normal((1, 32))
    large, plain = (SimpleRNN(1, 64, seed=0, learning_rate=1e-4) for _ in range(2))
    losses = [large.train(inputs, target) for _ in range(3)]
    assert large._saved is not None
    monkeypatch.setattr(simple, "LARGE", 1 << 60)
    np.testing.assert_allclose(losses, [plain.train(inputs, target) for _ in range(3)], rtol=1e-12)
    assert plain._saved is None
    assert relative_error(large.Whh, plain.Whh) < 1e-11


def test_gradients_do_not_share_memory_with_d_y() -> None:
    rnn = SimpleRNN(seed=0)
    rnn.forward([[[1]]])
    d_y = np.ones((1, 1))
    gradients = rnn.backward(d_y)
    d_y[:] = 5
    assert gradients["by"] == 1


@pytest.mark.usefixtures("either_way")
def test_what_it_keeps(backend: Any) -> None:
    rnn = SimpleRNN(2, 3, 1, learning_rate=0.25, backend=backend.target, seed=0)
    inputs = [np.array([[1], [2]]), np.array([[3], [4]])]
    y = rnn.forward(inputs)
    assert isinstance(y, np.ndarray)
    assert y.shape == (1, 1)
    assert rnn.last_inputs is inputs
    assert list(rnn.last_hs) == [0, 1, 2]
    hs = backend.numpy(rnn.last_hs)
    w = {name: backend.numpy(getattr(rnn, name)) for name in WEIGHTS}
    assert not hs[0].any()
    for t, x in enumerate(inputs):
        expected = np.tanh(w["Wxh"] @ x + w["Whh"] @ hs[t] + w["bh"])
        np.testing.assert_allclose(hs[t + 1], expected, rtol=1e-13)
    np.testing.assert_allclose(y, w["Why"] @ hs[2] + w["by"], rtol=1e-12)
    assert (rnn.input_size, rnn.hidden_size, rnn.output_size) == (2, 3, 1)
    assert rnn.lr == 0.25
    assert rnn.backend == backend.target


def test_results_are_numpy(backend: Any) -> None:
    rnn = SimpleRNN(backend=backend.target, seed=0)
    assert isinstance(rnn.predict([[[2]], [[3]]]).flatten()[0], np.float64)
    assert isinstance(rnn.train([[[2]], [[3]]], 5), np.float64)


@pytest.mark.parametrize("target", [5, 5.0, [5], [[5]], np.array([[5]]), np.int32(5), np.array(5)])
def test_targets(target: Any) -> None:
    column = [np.array([[2]]), np.array([[3]])]
    assert SimpleRNN(seed=0).train(column, target) == SimpleRNN(seed=0).train(column, np.array([[5.0]]))


def test_inputs_may_be_lists_integers_or_the_librarys_own_arrays(backend: Any) -> None:
    rnn = SimpleRNN(backend=backend.target, seed=0)
    expected = rnn.forward([np.array([[2.0]]), np.array([[3.0]])])
    for inputs in (
        [[[2]], [[3]]],
        np.array([[[2]], [[3]]]),
        (np.array([[2]], dtype="uint8"), np.array([[3]], dtype="float32")),
        [backend.array(np.array([[2.0]])), backend.array(np.array([[3.0]]))],
        iter([[[2]], [[3]]]),
    ):
        np.testing.assert_array_equal(rnn.forward(inputs), expected)


def test_jax_without_x64_computes_in_float32() -> None:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(False):
        rnn = SimpleRNN(backend="jax", seed=0)
        assert rnn.backend.dtype_name == "float32"
        losses, _ = training_cell(rnn, SUMS["A"], 3)
    expected, _ = training_cell(SimpleRNN(seed=0), SUMS["A"], 3)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_backend_keeps_its_dtype(backend: Any) -> None:
    narrow = prnn.backend(backend.target, dtype="float32")
    rnn = SimpleRNN(backend=narrow, seed=0)
    assert rnn.backend.dtype_name == "float32"
    assert rnn.forward([[[1]], [[2]]]).dtype == np.float32
    assert rnn.Whh.dtype == narrow.dtype


# ---------------------------------------------------------------------- the four functions


def test_functions_of_the_pre_activation(backend: Any) -> None:
    x = np.linspace(-3, 3, 13).reshape(1, 13)
    s = 1 / (1 + np.exp(-x))
    for function, expected in (
        (sigmoid, s),
        (dsigmoid, s * (1 - s)),
        (tanh, np.tanh(x)),
        (dtanh, 1 - np.tanh(x) ** 2),
    ):
        np.testing.assert_allclose(backend.numpy(function(backend.array(x))), expected, rtol=1e-13)
        np.testing.assert_allclose(
            prnn.to_numpy(function(backend.array(x.astype("int64")))), function(x.astype("int64")), rtol=1e-5
        )


@pytest.mark.parametrize("function", [sigmoid, dsigmoid, tanh, dtanh])
def test_functions_take_numbers_and_keep_float32(function: Any) -> None:
    assert float(function(1)) == float(function(1.0)) == float(function([1.0])[0])
    assert function(np.ones((2, 1), dtype="float32")).dtype == np.float32
    assert np.shape(function(0.5)) == ()


def test_derivatives_are_finite_differences() -> None:
    x = np.linspace(-4, 4, 33)
    for function, derivative in ((sigmoid, dsigmoid), (tanh, dtanh)):
        np.testing.assert_allclose(derivative(x), (function(x + 1e-6) - function(x - 1e-6)) / 2e-6, atol=1e-9)


def test_sigmoid_far_out() -> None:
    """No overflow (a warning would fail this test), and small values keep their digits."""
    np.testing.assert_array_equal(sigmoid(np.array([-1000.0, 1000.0])), [0.0, 1.0])
    assert sigmoid(-40.0) == pytest.approx(math.exp(-40), rel=1e-12)
    assert dsigmoid(40.0) == pytest.approx(math.exp(-40), rel=1e-12)
    assert np.isnan(sigmoid(math.nan))


# ---------------------------------------------------------------------- what it refuses

COLUMN = np.array([[1.0]])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "at least one step"),
        (None, "list of columns, got NoneType"),
        (3, "list of columns, got int"),
        ([1, 2], r"inputs\[0\] must have shape \(1, 1\).*got \(\): np.reshape"),
        ([np.array([1])], r"got \(1,\): np.reshape\(inputs\[0\], \(1, 1\)\)"),
        ([COLUMN, np.ones((2, 1))], r"inputs\[1\] must have shape \(1, 1\).*got \(2, 1\)"),
        ([COLUMN, np.ones((1, 3))], r"inputs\[1\] must have shape \(1, 1\).*got \(1, 3\)"),
        ([np.ones((1, 0))], r"got \(1, 0\)"),
        ([COLUMN, np.array([[np.nan]])], "must be finite"),
        ([np.array([[np.inf]])], "must be finite"),
        ([np.array([["1"]])], "must be numbers, got dtype <U1"),
        ([np.array([[1j]])], "must be numbers, got dtype complex128"),
        ([[[1], [2, 3]]], "rows of different lengths"),
    ],
)
def test_bad_inputs(inputs: Any, words: str) -> None:
    rnn = SimpleRNN(seed=0)
    for call in (rnn.forward, rnn.predict, lambda x: rnn.train(x, 1)):
        with pytest.raises(prnn.InputError, match=words) as caught:
            call(inputs)
        assert "\n" not in str(caught.value)
    assert rnn.last_hs == {}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (np.nan, "target must be finite"),
        ([1, 2], r"target must have shape \(1, 1\).*got \(2,\)"),
        ([[1], [2]], r"got \(2, 1\)"),
        (None, "target must"),
        ("five", "target must be numbers"),
    ],
)
def test_bad_targets_leave_the_weights_alone(target: Any, words: str) -> None:
    rnn = SimpleRNN(seed=0)
    before = rnn.Why
    with pytest.raises(prnn.InputError, match=words) as caught:
        rnn.train([COLUMN], target)
    assert "\n" not in str(caught.value)
    assert rnn.Why is before


def test_a_number_is_no_target_for_several_outputs() -> None:
    with pytest.raises(prnn.InputError, match=r"target must have shape \(1, 2\)"):
        SimpleRNN(seed=0).train([np.ones((1, 2))], 1)
    with pytest.raises(prnn.InputError, match=r"target must have shape \(2, 1\)"):
        SimpleRNN(output_size=2, seed=0).train([COLUMN], 1)


def test_backward_needs_a_forward_pass_and_a_d_y_that_fits() -> None:
    rnn = SimpleRNN(seed=0)
    with pytest.raises(prnn.InputError, match=r"call rnn.forward\(inputs\) first"):
        rnn.backward(COLUMN)
    rnn.forward([COLUMN])
    with pytest.raises(prnn.InputError, match=r"d_y must have shape \(1, 1\)"):
        rnn.backward(np.ones((2, 1)))
    with pytest.raises(prnn.InputError, match="d_y must be finite"):
        rnn.backward([[np.nan]])


@pytest.mark.parametrize(
    "options",
    [
        {"input_size": 0},
        {"hidden_size": -1},
        {"output_size": 1.0},
        {"hidden_size": True},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"learning_rate": "fast"},
        {"seed": -1},
        {"seed": 0.5},
        {"backend": "nonesuch"},
    ],
    ids=str,
)
def test_bad_configuration(options: dict[str, Any]) -> None:
    with pytest.raises(prnn.InputError) as caught:
        SimpleRNN(**options)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    name = next(iter(options))
    assert name in str(caught.value)


def test_a_loss_that_explodes_keeps_the_last_good_weights() -> None:
    rnn = SimpleRNN(learning_rate=1e9, seed=0)

    def diverge() -> None:
        for _ in range(1000):
            rnn.train([[[1]], [[2]]], 3)

    with pytest.raises(prnn.NonFiniteError, match="smaller learning_rate") as caught:
        diverge()
    assert caught.value.step > 1
    assert caught.value.good_params.keys() == set(WEIGHTS)
    for name in WEIGHTS:
        assert getattr(rnn, name) is caught.value.good_params[name]
        assert np.all(np.isfinite(getattr(rnn, name)))
    assert math.isfinite(float(np.sum(rnn.predict([[[1]], [[2]]]) ** 2)))
