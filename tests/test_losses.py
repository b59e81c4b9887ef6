"""Losses: values and gradients against NumPy formulas, PyTorch and finite differences."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import portable_rnn as prnn
from portable_rnn.training import loss_function, loss_name

LENGTHS = [2, 0, 3, 1]
SHAPES: dict[str, tuple[tuple[int, ...], list[int] | None]] = {
    "rows": ((4, 3), None),
    "steps": ((4, 3, 2), None),
    "ragged": ((4, 3, 2), LENGTHS),
}
# name: (loss, kind of targets)
LOSSES = {
    "mse": ("mse", "real"),
    "mae": ("mae", "real"),
    "huber": ("huber", "real"),
    "huber-0.3": (prnn.losses.huber(0.3), "real"),
    "binary": ("binary_cross_entropy", "unit"),
    "classes": ("cross_entropy", "classes"),
    "one-hot": ("cross_entropy", "one-hot"),
    "probabilities": ("cross_entropy", "distribution"),
}
CASES = [(name, shape) for name in LOSSES for shape in SHAPES]


def make(name: str, shape: str) -> tuple[Any, np.ndarray, np.ndarray, list[int] | None]:
    """Loss, logits or values, targets, lengths; no error closer than 0.02 to a kink of mae or of huber."""
    loss, kind = LOSSES[name]
    size, lengths = SHAPES[shape]
    rng = np.random.default_rng(7)
    prediction = rng.standard_normal(size) * 2
    if kind == "real":
        distance = rng.uniform(0.02, 0.28, size) + rng.integers(0, 2, size) + 0.5 * rng.integers(0, 2, size)
        target = prediction - distance * rng.choice([-1.0, 1.0], size)
    elif kind == "unit":
        target = rng.random(size)
    elif kind == "distribution":
        target = rng.dirichlet(np.ones(size[-1]), size[:-1])
    else:
        target = rng.integers(0, size[-1], size[:-1])
        if kind == "one-hot":
            target = np.eye(size[-1])[target]
    return loss_function(loss), prediction, target, lengths


def call(backend: Any, loss: Any, prediction: Any, target: Any, lengths: Any = None) -> tuple[Any, Any]:
    """(value, gradient) as NumPy arrays; compiled where the backend is."""
    run = _jitted(loss) if backend.entry.jitted else loss
    ends = None if lengths is None else np.asarray(lengths, dtype=np.int32)
    return backend.numpy(run(*backend.array((prediction, target, ends))))


@functools.cache
def _jitted(loss: Any) -> Any:
    import jax

    return jax.jit(loss)


def counted(array: np.ndarray, lengths: list[int] | None) -> np.ndarray:
    """The entries that count, without the padded steps: (rows, ...)."""
    if lengths is None:
        return array.reshape(-1, array.shape[-1])
    return np.concatenate([row[:end] for row, end in zip(array, lengths, strict=True)])


def formula(name: str, prediction: np.ndarray, target: np.ndarray, lengths: list[int] | None) -> float:
    """The loss, written from its definition."""
    p = counted(prediction, lengths)
    if name == "classes":
        t = counted(target[..., None], lengths)[:, 0]
        return float(np.mean([np.log(np.sum(np.exp(row))) - row[k] for row, k in zip(p, t, strict=True)]))
    t = counted(target, lengths)
    if name in ("one-hot", "probabilities"):
        return float(np.mean(np.sum(t * (np.log(np.sum(np.exp(p), axis=1, keepdims=True)) - p), axis=1)))
    if name == "binary":
        q = 1 / (1 + np.exp(-p))
        return float(np.mean(-t * np.log(q) - (1 - t) * np.log(1 - q)))
    error = np.abs(p - t)
    if name == "mse":
        return float(np.mean(error**2))
    if name == "mae":
        return float(np.mean(error))
    delta = 0.3 if name == "huber-0.3" else 1.0
    return float(np.mean(np.where(error <= delta, error**2 / 2, delta * (error - delta / 2))))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_value_is_the_formula(backend: Any, name: str, shape: str) -> None:
    loss, prediction, target, lengths = make(name, shape)
    value, gradient = call(backend, loss, prediction, target, lengths)
    assert value.shape == ()
    assert gradient.shape == prediction.shape
    assert value == pytest.approx(formula(name, prediction, target, lengths), rel=1e-12, abs=0)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_gradient_matches_finite_differences(backend: Any, name: str, shape: str) -> None:
    loss, prediction, target, lengths = make(name, shape)
    _, gradient = call(backend, loss, prediction, target, lengths)
    step = 1e-5
    rng = np.random.default_rng(1)
    # the gradient's own direction, where nothing cancels, and two random ones
    for direction in (gradient, *rng.standard_normal((2, *prediction.shape))):
        direction = direction / np.linalg.norm(direction)
        ends = [call(backend, loss, prediction + s * step * direction, target, lengths)[0] for s in (1, -1)]
        measured = float(ends[0] - ends[1]) / (2 * step)
        assert abs(measured - np.sum(gradient * direction)) < 1e-6 * np.linalg.norm(gradient)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_entry_of_the_gradient_matches_finite_differences(name: str, shape: str) -> None:
    loss, prediction, target, lengths = make(name, shape)
    ends = None if lengths is None else np.asarray(lengths)
    _, gradient = loss(prediction, target, ends)
    measured = np.zeros_like(prediction)
    for index in np.ndindex(prediction.shape):
        shift = np.zeros_like(prediction)
        shift[index] = 1e-5
        measured[index] = (loss(prediction + shift, target, ends)[0] - loss(prediction - shift, target, ends)[0]) / 2e-5
    assert np.max(np.abs(gradient - measured)) < 1e-6 * np.max(np.abs(gradient))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_value_and_gradient_are_those_of_torch(name: str, shape: str) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    loss, prediction, target, lengths = make(name, shape)
    value, gradient = loss(prediction, target, None if lengths is None else np.asarray(lengths))
    p = torch.asarray(prediction.copy()).requires_grad_()
    rows = [p.reshape(-1, p.shape[-1])] if lengths is None else [p[k, :end] for k, end in enumerate(lengths)]
    if name == "classes":
        t = torch.asarray(counted(target[..., None], lengths)[:, 0])
    else:
        t = torch.asarray(counted(target, lengths))
    peer = {
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": functional.huber_loss,
        "huber-0.3": functools.partial(functional.huber_loss, delta=0.3),
        "binary": functional.binary_cross_entropy_with_logits,
    }.get(name, functional.cross_entropy)
    expected = peer(torch.concat(rows), t)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-12, abs=0)
    assert np.max(np.abs(gradient - p.grad.numpy())) < 1e-12 * np.max(np.abs(p.grad.numpy()))


# ---------------------------------------------------------------------- padding


@pytest.mark.feeds_nan
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -100.0])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing(backend: Any, name: str, rubbish: float) -> None:
    loss, prediction, target, lengths = make(name, "ragged")
    clean = call(backend, loss, prediction, target, lengths)
    prediction, target = prediction.copy(), target.copy()
    for row, end in enumerate(lengths):
        prediction[row, end:] = rubbish
        target[row, end:] = -100 if name == "classes" else rubbish
    value, gradient = call(backend, loss, prediction, target, lengths)
    assert value == clean[0]
    np.testing.assert_array_equal(gradient, clean[1])
    for row, end in enumerate(lengths):
        assert np.all(gradient[row, end:] == 0)
        assert np.all(gradient[row, :end] != 0)


def test_no_step_at_all_is_a_loss_of_zero(backend: Any) -> None:
    for name in LOSSES:
        loss, prediction, target, _ = make(name, "ragged")
        value, gradient = call(backend, loss, prediction, target, [0, 0, 0, 0])
        assert value == 0
        assert np.all(gradient == 0)


def test_lengths_do_not_matter_where_there_are_no_steps(backend: Any) -> None:
    loss, prediction, target, _ = make("classes", "rows")
    np.testing.assert_array_equal(
        call(backend, loss, prediction, target, LENGTHS)[1], call(backend, loss, prediction, target)[1]
    )


# ---------------------------------------------------------------------- forms of the targets


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_one_hot_and_integer_targets_agree(backend: Any, shape: str, dtype: str) -> None:
    loss, prediction, target, lengths = make("classes", shape)
    one_hot = np.eye(prediction.shape[-1])[target]
    integers = call(backend, loss, prediction, target.astype(dtype), lengths)
    for form in (one_hot, one_hot.astype(dtype)):
        value, gradient = call(backend, loss, prediction, form, lengths)
        assert value == integers[0]
        np.testing.assert_array_equal(gradient, integers[1])


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "binary"])
def test_targets_may_leave_out_a_last_axis_of_one(backend: Any, name: str) -> None:
    loss = make(name, "rows")[0]
    rng = np.random.default_rng(0)
    for size, lengths in (((5, 1), None), ((4, 3, 1), LENGTHS)):
        prediction, target = rng.standard_normal(size), rng.random(size)
        value, gradient = call(backend, loss, prediction, target[..., 0], lengths)
        expected = call(backend, loss, prediction, target, lengths)
        assert value == expected[0]
        np.testing.assert_array_equal(gradient, expected[1])


def test_integer_targets_of_binary_cross_entropy(backend: Any) -> None:
    loss = make("binary", "rows")[0]
    prediction, target = np.array([[0.3], [-1.2], [2.0]]), np.array([[1], [0], [1]])
    assert call(backend, loss, prediction, target)[0] == call(backend, loss, prediction, target.astype(float))[0]


@pytest.mark.parametrize(("dtype", "classes"), [("uint8", 300), ("int8", 200)])
def test_more_classes_than_the_target_dtype_can_count(backend: Any, dtype: str, classes: int) -> None:
    prediction = np.random.default_rng(0).standard_normal((3, classes))
    target = np.array([0, 44, 100])
    loss = loss_function("cross_entropy")
    value, gradient = call(backend, loss, prediction, target.astype(dtype))
    expected = call(backend, loss, prediction, target)
    assert value == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])


# ---------------------------------------------------------------------- extremes


@pytest.mark.parametrize(("name", "shape"), [(n, s) for n, s in CASES if n not in ("mse", "mae", "huber", "huber-0.3")])
def test_extreme_logits_give_finite_numbers(backend: Any, name: str, shape: str) -> None:
    loss, prediction, target, lengths = make(name, shape)
    extreme = np.where(prediction > 0, 1e4, -1e4)
    value, gradient = call(backend, loss, extreme, target, lengths)
    # log(1 + exp(1e4)) is 1e4 to the last bit, so the formula needs no exponential
    p = counted(extreme, lengths)
    if name == "binary":
        t = counted(target, lengths)
        expected = np.mean(np.maximum(p, 0) - t * p)
        slope = (p > 0) - t
    else:
        one_hot = np.eye(extreme.shape[-1])[target] if name == "classes" else target
        t = counted(one_hot, lengths)
        top = p == p.max(axis=1, keepdims=True)
        expected = np.mean(np.sum(t * (1e4 * np.sign(p.max(axis=1, keepdims=True)) - p), axis=1)) + np.mean(
            np.log(top.sum(axis=1))
        )
        slope = top / top.sum(axis=1, keepdims=True) - t
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)
    count = p.size if name == "binary" else len(p)
    np.testing.assert_allclose(counted(gradient, lengths), slope / count, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("logit", "target"), [(20.0, 1.0), (-20.0, 0.0), (50.0, 1.0)])
def test_binary_cross_entropy_of_a_confident_output_keeps_its_digits(backend: Any, logit: float, target: float) -> None:
    value, _ = call(backend, loss_function("binary_cross_entropy"), np.array([[logit]]), np.array([[target]]))
    assert value == pytest.approx(np.log1p(np.exp(-abs(logit))), rel=1e-12, abs=0)


INFINITE = [0.0, -0.0, 1.0, -3.5, 90.0, -90.0, 3e38, -3e38, 1e-45, float("-inf"), float("inf")]
FINITE = [value for value in INFINITE if np.isfinite(value)]


@pytest.mark.feeds_nan
def test_values_at_the_edges_are_those_of_torch(backend: Any) -> None:
    """In float32, logits up to the largest number and -inf for a class that is left out; where torch has a value."""
    functional = pytest.importorskip("torch").nn.functional
    peers = {
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": functional.huber_loss,
        "binary_cross_entropy": functional.binary_cross_entropy_with_logits,
        "cross_entropy": functional.cross_entropy,
    }
    size = st.tuples(st.integers(1, 3), st.integers(1, 3))

    @st.composite
    def cases(draw: st.DrawFn) -> tuple[str, np.ndarray, np.ndarray]:
        name, shape = draw(st.sampled_from(sorted(peers))), draw(size)
        entries = INFINITE if "entropy" in name else FINITE
        values = {
            "cross_entropy": st.integers(0, shape[1] - 1),
            "binary_cross_entropy": st.sampled_from([0.0, 1.0, 0.25]),
        }.get(name, st.sampled_from(FINITE))
        prediction = draw(arrays(np.float32, shape, elements=st.sampled_from(np.float32(entries).tolist())))
        if name == "cross_entropy":
            return name, prediction, draw(arrays(np.int64, shape[:1], elements=values))
        return name, prediction, draw(arrays(np.float32, shape, elements=values.map(lambda v: float(np.float32(v)))))

    @backend.for_all(cases())
    def check(case: tuple[str, np.ndarray, np.ndarray]) -> None:
        import torch

        name, prediction, target = case
        tensor = torch.asarray(prediction.copy()).requires_grad_()
        expected = peers[name](tensor, torch.asarray(target.copy()))
        if torch.isnan(expected):  # torch has NaN where one of two infinite terms has no weight
            return
        expected.backward()
        with np.errstate(over="ignore"):
            value, gradient = call(backend, loss_function(name), prediction, target)
        assert value == pytest.approx(expected.item(), rel=1e-5, abs=1e-37)
        if np.isfinite(value):
            scale = 1e-6 * max(1.0, float(tensor.grad.abs().max()))
            np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-5, atol=scale)


@pytest.mark.parametrize(
    ("name", "prediction", "target", "expected"),
    [
        ("cross_entropy", [[0.0, -np.inf]], [0], 0.0),
        ("cross_entropy", [[0.0, -np.inf]], [[1.0, 0.0]], 0.0),
        ("cross_entropy", [[0.0, -np.inf, 0.0]], [2], np.log(2)),
        ("cross_entropy", [[0.0, -np.inf]], [1], np.inf),
        ("cross_entropy", [[3e38, -3e38]], [0], 0.0),
        ("binary_cross_entropy", [[-np.inf, np.inf]], [[0.0, 1.0]], 0.0),
        ("binary_cross_entropy", [[-np.inf]], [[1.0]], np.inf),
        ("binary_cross_entropy", [[np.inf]], [[0.75]], np.inf),
        ("binary_cross_entropy", [[3e38, 3e38]], [[1.0, 0.0]], 1.5e38),
    ],
)
def test_what_has_no_weight_in_the_loss_may_be_infinite(
    backend: Any, name: str, prediction: Any, target: Any, expected: float
) -> None:
    given_target = np.asarray(target) if isinstance(target[0], int) else np.asarray(target, dtype="float32")
    value, gradient = call(backend, loss_function(name), np.asarray(prediction, dtype="float32"), given_target)
    assert value == pytest.approx(expected, rel=1e-6)
    assert np.all(np.isfinite(gradient))


@pytest.mark.feeds_nan
def test_a_nan_is_not_hidden_by_a_weight_of_zero(backend: Any) -> None:
    for name, prediction, target in (
        ("cross_entropy", [[np.nan, 0.0]], [1]),
        ("binary_cross_entropy", [[np.nan]], [[1.0]]),
        ("binary_cross_entropy", [[0.5]], [[np.nan]]),
    ):
        value, _ = call(backend, loss_function(name), np.array(prediction), np.array(target))
        assert np.isnan(value), name


def test_gradient_of_the_absolute_error_at_zero_is_zero(backend: Any) -> None:
    _, gradient = call(backend, loss_function("mae"), np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]]))
    assert gradient.tolist() == [[0.0, -0.5]]


@pytest.mark.parametrize("name", LOSSES)
def test_float32_stays_float32(backend: Any, name: str) -> None:
    loss, prediction, target, lengths = make(name, "ragged")
    narrow = target.astype("float32") if target.dtype.kind == "f" else target
    value, gradient = call(backend, loss, prediction.astype("float32"), narrow, lengths)
    assert value.dtype == gradient.dtype == np.float32
    # a few dozen roundings of 2**-24, relative to sums of numbers up to 10
    assert value == pytest.approx(formula(name, prediction, target, lengths), rel=3e-6, abs=0)


# ---------------------------------------------------------------------- errors and names


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "binary"])
def test_targets_of_another_shape_are_an_error(backend: Any, name: str) -> None:
    loss, prediction, target, _ = make(name, "rows")
    for wrong in (target[:, :1], target[:2], target[:, 0], target[None]):
        with pytest.raises(prnn.InputError, match=r"shape of the prediction, \(4, 3\), got \(") as caught:
            call(backend, loss, prediction, wrong)
        assert "\n" not in str(caught.value)
        assert str(wrong.shape) in str(caught.value)


def test_class_targets_that_are_not_classes_are_an_error(backend: Any) -> None:
    loss, prediction, target, _ = make("classes", "rows")
    for wrong in (target[:2], target[:, None], np.eye(2)[target % 2]):
        with pytest.raises(prnn.InputError, match=r"\(4,\) \(integer classes\) or \(4, 3\) \(one-hot\), got \("):
            call(backend, loss, prediction, wrong)
    with pytest.raises(prnn.InputError, match="must be integers, got float64"):
        call(backend, loss, prediction, target.astype(float))


def test_names() -> None:
    for name in ("mse", "mae", "huber", "cross_entropy", "binary_cross_entropy"):
        assert loss_name(loss_function(name)) == name
    assert loss_name(prnn.losses.huber(0.5)) is None
    assert loss_name(prnn.losses.huber(1.0)) == "huber"
    assert loss_function(prnn.losses.mse) is prnn.losses.mse
    with pytest.raises(prnn.InputError, match="unknown loss 'l2': expected one of mse, mae, huber, cross_entropy"):
        loss_function("l2")


@pytest.mark.parametrize("delta", [0, -1.0, float("nan"), "1"])
def test_the_threshold_of_huber_is_positive(delta: Any) -> None:
    with pytest.raises(prnn.InputError, match="delta: expected a finite number above 0") as caught:
        prnn.losses.huber(delta)
    assert repr(delta) in str(caught.value)
