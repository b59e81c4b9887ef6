"""Optimizers, schedules and clipping against PyTorch's, and the same on every library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.training import global_norm, optimizer_of

UPDATES = 20
# name: (ours, torch's class and options)
OPTIMIZERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "sgd": (prnn.sgd(0.1), "SGD", {"lr": 0.1}),
    "momentum": (prnn.sgd(0.05, momentum=0.9), "SGD", {"lr": 0.05, "momentum": 0.9}),
    "nesterov": (
        prnn.sgd(0.05, momentum=0.8, nesterov=True),
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "nesterov": True},
    ),
    "rmsprop": (prnn.rmsprop(0.02), "RMSprop", {"lr": 0.02}),
    "rmsprop-others": (prnn.rmsprop(0.02, 0.7, 1e-3), "RMSprop", {"lr": 0.02, "alpha": 0.7, "eps": 1e-3}),
    "adam": (prnn.adam(0.01), "Adam", {"lr": 0.01}),
    "adam-others": (
        prnn.adam(0.03, beta1=0.8, beta2=0.9, eps=1e-4),
        "Adam",
        {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-4},
    ),
    "adamw": (prnn.adamw(0.01), "AdamW", {"lr": 0.01}),
    "adamw-others": (prnn.adamw(0.03, weight_decay=0.3), "AdamW", {"lr": 0.03, "weight_decay": 0.3}),
}
SCHEDULES = {
    "cosine": prnn.cosine_decay(0.1, steps=10, final=0.02),
    "warm-up": prnn.warmup_cosine_decay(0.1, warmup_steps=4, steps=12),
    "exponential": prnn.exponential_decay(0.1, 0.5, steps=5),
    "piecewise": prnn.piecewise_constant(0.1, {3: 0.5, 7: 0.1}),
    "function": lambda count: 0.1 / (1 + count),
}


def start() -> dict[str, np.ndarray]:
    """Parameters of different ranks."""
    rng = np.random.default_rng(0)
    return {"weight": rng.standard_normal((3, 2)), "bias": rng.standard_normal(3), "scale": rng.standard_normal(())}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Gradients of step `step`, some exactly zero and over four orders of magnitude."""
    rng = np.random.default_rng(100 + step)
    found = {name: rng.standard_normal(p.shape) * 10.0 ** rng.integers(-3, 2) for name, p in start().items()}
    found["bias"][step % 3] = 0.0
    return found


def run(backend: Any, optimizer: Any) -> dict[str, np.ndarray]:
    """The parameters after `UPDATES` updates."""
    update = optimizer.update
    if backend.entry.jitted:
        import jax

        update = jax.jit(update)
    params = backend.array(start())
    state = optimizer.init(params)
    for step in range(UPDATES):
        params, state = update(backend.array(gradients(step)), state, params)
    return backend.numpy(params)


def run_numpy(optimizer: Any) -> dict[str, np.ndarray]:
    """The same with plain NumPy arrays."""
    params = start()
    state = optimizer.init(params)
    for step in range(UPDATES):
        params, state = optimizer.update(gradients(step), state, params)
    return params


def worst(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest absolute difference; the parameters are of order 1."""
    assert got.keys() == expected.keys()
    assert all(got[name].shape == p.shape for name, p in expected.items())
    return max(float(np.max(np.abs(got[name] - p))) for name, p in expected.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    optimizer, peer, options = OPTIMIZERS[name]
    tensors = {k: torch.asarray(p.copy()).requires_grad_() for k, p in start().items()}
    theirs = getattr(torch.optim, peer)(tensors.values(), **options)
    for step in range(UPDATES):
        for k, g in gradients(step).items():
            tensors[k].grad = torch.asarray(g)
        theirs.step()
    expected = {k: t.detach().numpy() for k, t in tensors.items()}
    assert worst(expected, start()) > 0.01
    assert worst(run_numpy(optimizer), expected) < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_equal_across_libraries(backend: Any, name: str) -> None:
    optimizer = OPTIMIZERS[name][0]
    assert worst(run(backend, optimizer), run_numpy(optimizer)) < 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [prnn.sgd, prnn.adamw])
def test_schedules_are_equal_across_libraries(backend: Any, kind: Any, schedule: str) -> None:
    rates = [float(SCHEDULES[schedule](k)) for k in range(UPDATES)]
    # the reference takes each update with a constant rate, put in by hand
    params = start()
    state = kind(1.0).init(params)
    for step, rate in enumerate(rates):
        params, state = kind(rate or 1e-300).update(gradients(step), state, params)
    assert len(set(rates)) > 2
    assert worst(run(backend, kind(SCHEDULES[schedule])), params) < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_is_changed_in_place(backend: Any, name: str) -> None:
    optimizer = OPTIMIZERS[name][0]
    params, grads = backend.array((start(), gradients(0)))
    state = optimizer.init(params)
    first, state = optimizer.update(grads, state, params)
    kept = backend.numpy(state)
    kept = {k: {n: v.copy() for n, v in s.items()} if isinstance(s, dict) else s.copy() for k, s in kept.items()}
    first_values = {k: p.copy() for k, p in backend.numpy(first).items()}
    optimizer.update(grads, state, first)
    for slot, value in backend.numpy(state).items():
        np.testing.assert_equal(value, kept[slot])
    np.testing.assert_equal(backend.numpy(first), first_values)
    np.testing.assert_equal(backend.numpy(params), start())
    np.testing.assert_equal(backend.numpy(grads), gradients(0))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_stays_float32(backend: Any, name: str) -> None:
    optimizer = OPTIMIZERS[name][0]
    params, grads = (
        backend.array({k: v.astype("float32") for k, v in tree.items()}) for tree in (start(), gradients(0))
    )
    params, state = optimizer.update(grads, optimizer.init(params), params)
    assert {p.dtype.name for p in backend.numpy(params).values()} == {"float32"}
    slots = [v for s in backend.numpy(state).values() for v in (s.values() if isinstance(s, dict) else [s])]
    assert {v.dtype.name for v in slots} == {"float32"}


def test_settings_may_be_numbers_of_numpy(backend: Any) -> None:
    for number in (np.float64, np.float32):
        rate, beta = number(0.01), number(0.5)
        expected = run_numpy(prnn.adamw(float(rate), beta1=float(beta)))
        assert worst(run(backend, prnn.adamw(rate, beta1=beta)), expected) < 1e-12
    clipped = clip(backend, gradients(1), np.float64(0.25))
    np.testing.assert_equal(clipped, clip(backend, gradients(1), 0.25))


def test_equal_settings_are_equal_optimizers() -> None:
    assert prnn.adam(0.1) == prnn.adam(0.1)
    assert hash(prnn.adamw(prnn.cosine_decay(0.1, 5))) == hash(prnn.adamw(prnn.cosine_decay(0.1, 5)))
    assert prnn.adam(0.1) != prnn.adamw(0.1)
    assert hash(prnn.piecewise_constant(0.1, {5: 0.1})) == hash(prnn.piecewise_constant(0.1, {5: 0.1}))


def test_names() -> None:
    assert optimizer_of("adam") == prnn.adam()
    assert optimizer_of("sgd") == prnn.sgd()
    assert optimizer_of("rmsprop") == prnn.rmsprop()
    assert optimizer_of("adamw") == prnn.adamw()
    own = prnn.sgd(0.5)
    assert optimizer_of(own) is own


# ---------------------------------------------------------------------- schedules


def test_values_of_the_schedules() -> None:
    for k in range(15):
        t = min(k / 10, 1)
        assert float(SCHEDULES["cosine"](k)) == pytest.approx(0.02 + 0.08 * (1 + math.cos(math.pi * t)) / 2, rel=1e-14)
        assert float(SCHEDULES["exponential"](k)) == pytest.approx(0.1 * 0.5 ** (k / 5), rel=1e-14)
        stepped = 0.1 if k < 3 else 0.05 if k < 7 else 0.005
        assert float(SCHEDULES["piecewise"](k)) == pytest.approx(stepped, rel=1e-14)
        warm = 0.1 * (k + 1) / 4 if k < 4 else 0.1 * (1 + math.cos(math.pi * min((k - 4) / 8, 1))) / 2
        assert float(SCHEDULES["warm-up"](k)) == pytest.approx(warm, rel=1e-14, abs=1e-17)
    assert float(SCHEDULES["warm-up"](0)) > 0


def test_cosine_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.01)
    ours = prnn.cosine_decay(0.3, steps=20, final=0.01)
    for k in range(21):
        assert float(ours(k)) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=0)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["cosine", "warm-up", "exponential", "piecewise"])
def test_schedules_take_every_form_of_a_count(name: str) -> None:
    schedule = SCHEDULES[name]
    for k in (0, 2, 3, 8, 30):
        expected = float(schedule(k))
        for form in (float(k), np.int64(k), np.int32(k), np.asarray(k), np.asarray(float(k))):
            assert float(schedule(form)) == pytest.approx(expected, rel=1e-14, abs=1e-17), type(form)
    whole = schedule(np.arange(20))  # as to plot it
    np.testing.assert_allclose(whole, [float(schedule(k)) for k in range(20)], rtol=1e-14, atol=1e-17)


@pytest.mark.parametrize("name", ["cosine", "warm-up", "exponential", "piecewise"])
def test_schedules_compute_on_every_library(backend: Any, name: str) -> None:
    schedule = SCHEDULES[name]
    for k in (0, 3, 8):
        for count in (np.asarray(float(k)), np.asarray(k)):
            rate = backend.numpy(schedule(backend.array(count)))
            # an integer count may come back in the library's default of float32
            tolerance = 1e-14 if rate.dtype == np.float64 else 1e-6
            assert float(rate) == pytest.approx(float(schedule(k)), rel=tolerance, abs=1e-17)


# ---------------------------------------------------------------------- clipping


def clip(backend: Any, grads: dict[str, np.ndarray], limit: float) -> dict[str, np.ndarray]:
    """Clipped gradients, compiled where the backend is."""
    run = prnn.clip_by_global_norm
    if backend.entry.jitted:
        import jax

        run = jax.jit(run, static_argnums=1)
    return backend.numpy(run(backend.array(grads), limit))


def norm_of(grads: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(g**2) for g in grads.values())))


def test_clipping_gives_the_limit(backend: Any) -> None:
    grads = gradients(1)
    clipped = clip(backend, grads, 0.25)
    norm = norm_of(grads)
    assert norm > 0.25
    assert norm_of(clipped) == pytest.approx(0.25, rel=1e-14)
    for name, g in grads.items():
        np.testing.assert_allclose(clipped[name], g * (0.25 / norm), rtol=1e-14)


def test_clipping_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    grads = gradients(1)
    tensors = {name: torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for name, g in grads.items()}
    for name, g in grads.items():
        tensors[name].grad = torch.asarray(g.copy())
    norm = torch.nn.utils.clip_grad_norm_(tensors.values(), 0.25)
    assert float(global_norm(grads)) == pytest.approx(float(norm), rel=1e-14)
    clipped = prnn.clip_by_global_norm(grads, 0.25)
    for name, tensor in tensors.items():
        # torch divides by norm + 1e-6
        expected = tensor.grad.numpy() * ((float(norm) + 1e-6) / float(norm))
        np.testing.assert_allclose(clipped[name], expected, rtol=1e-12)


def test_small_gradients_pass_bit_for_bit(backend: Any) -> None:
    grads = gradients(1)
    for limit in (norm_of(grads) * (1 + 1e-12), 17.0, 1e300):
        np.testing.assert_equal(clip(backend, grads, limit), grads)


def test_zero_gradients_stay_zero(backend: Any) -> None:
    zeros = {name: np.zeros_like(g) for name, g in gradients(0).items()}
    np.testing.assert_equal(clip(backend, zeros, 1.0), zeros)


def test_clipping_changes_nothing_in_place(backend: Any) -> None:
    grads = backend.array(gradients(1))
    prnn.clip_by_global_norm(grads, 0.25)
    np.testing.assert_equal(backend.numpy(grads), gradients(1))


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("rate", [0, -0.1, float("nan"), float("inf"), "0.1", None])
@pytest.mark.parametrize("kind", [prnn.sgd, prnn.rmsprop, prnn.adam, prnn.adamw])
def test_a_learning_rate_is_a_positive_number_or_a_schedule(kind: Any, rate: Any) -> None:
    with pytest.raises(prnn.InputError, match=r"learning_rate: expected .* above 0, or a schedule, got") as caught:
        kind(rate)
    assert repr(rate) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (prnn.sgd, {"momentum": 1.0}),
        (prnn.sgd, {"momentum": -0.1}),
        (prnn.sgd, {"momentum": "0.9"}),
        (prnn.rmsprop, {"decay": 1.0}),
        (prnn.rmsprop, {"eps": -1e-8}),
        (prnn.adam, {"beta1": 1.5}),
        (prnn.adam, {"beta2": float("nan")}),
        (prnn.adam, {"eps": 0.0}),
        (prnn.adamw, {"weight_decay": -1.0}),
        (prnn.adamw, {"weight_decay": float("inf")}),
        (prnn.adamw, {"eps": "small"}),
    ],
)
def test_settings_out_of_range_are_an_error(kind: Any, setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(prnn.InputError, match=f"{name}: expected") as caught:
        kind(0.1, **setting)
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(prnn.InputError, match="momentum: expected a number above 0 where nesterov=True"):
        prnn.sgd(0.1, nesterov=True)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "1"])
def test_a_limit_is_a_positive_number(limit: Any) -> None:
    with pytest.raises(prnn.InputError, match="max_norm: expected a finite number above 0, got"):
        prnn.clip_by_global_norm(gradients(0), limit)


@pytest.mark.parametrize("optimizer", ["lion", None, prnn.adam, 0.1])
def test_what_is_no_optimizer_is_an_error(optimizer: Any) -> None:
    with pytest.raises(prnn.InputError, match=r"unknown optimizer 'lion': expected one of sgd|prnn.adam\(1e-3\), got"):
        optimizer_of(optimizer)
