"""Every hand-written backward pass against finite differences and against two libraries' autodiff."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import OTHERS, RECURRENT, Case, hard_case, make_case, random_cases
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from trees import flat, inner, mapped, relative_error

import portable_rnn as prnn
from portable_rnn.arrays import Marks, on_their_device
from portable_rnn.execution import sums_in_loop
from portable_rnn.layers import stack_backward
from portable_rnn.verify import Textbook

MARGIN = 1e-3  # how far relu's arguments and Max's candidates must stay from a kink
# One of each kind, for what JAX takes a second or more to compile; torch.autograd sees them all.
FEW = (
    "rnn-tanh",
    "rnn-relu",
    "lstm",
    "lstm-everything",
    "lstm-peepholes-others",
    "gru",
    "gru-before-clipped",
    *OTHERS,
)


def kink_margin(case: Case) -> float:
    """How far the case is from a point where its derivative jumps."""
    if isinstance(case.layer, prnn.Max):
        steps = case.x.shape[1]
        ends = case.lengths or [steps] * len(case.x)
        tops = [np.sort(row[:end], axis=0)[-2:] for row, end in zip(case.x, ends, strict=True)]
        return min((float(np.min(top[1] - top[0])) for top in tops if len(top) == 2), default=np.inf)
    if isinstance(case.layer, (prnn.RNN, prnn.LSTM, prnn.GRU)):
        reference = Textbook(case.layer, case.params)
        reference.run(case.x, case.state, case.lengths, case.resets, case.masks)
        return reference.kink_margin
    return np.inf


def skip_all_but_few(backend: Any, name: str) -> None:
    """Traced, a case takes seconds to compile, and runs the same code as JAX's own entry: one of each kind will do."""
    if backend.entry.jitted and name not in FEW:
        pytest.skip("runs on the jax entry; traced, one case of each kind is compiled")


def check_against_finite_differences(backend: Any, case: Case) -> None:
    """Central differences along one random direction for the parameters, one for x, one for the state."""
    _, _, *gradients = backend.vjp(case.layer, **case.inputs, **case.cotangents)
    if case.state is None:
        gradients = [*gradients[:2], None]
    varied = ("params", "x", "state")
    rng = np.random.default_rng(0)
    step = 1e-5

    def direction(gradient: np.ndarray) -> np.ndarray:
        # Partly along the gradient, so that the derivative is not small by chance; partly random, so that an error
        # anywhere shows. Each array has unit norm and so the same weight.
        random = rng.standard_normal(gradient.shape)
        along = gradient / (np.linalg.norm(gradient) or 1.0) + random / (2 * np.linalg.norm(random))
        return along / np.linalg.norm(along)

    def loss(changed: dict[str, Any]) -> float:
        y, final = backend.apply(case.layer, **{**case.inputs, **changed})
        return inner(y, case.dy) + inner(final, case.dstate)

    for name, gradient in zip(varied, gradients, strict=True):
        if not flat(gradient):
            continue
        along = mapped(direction, gradient)
        ends = [loss({name: mapped(lambda v, d, s=s: v + s * d, case.inputs[name], along)}) for s in (step, -step)]
        measured = (ends[0] - ends[1]) / (2 * step)
        derived = inner(gradient, along)
        scale = max(abs(measured), abs(derived), np.linalg.norm([np.linalg.norm(g) for g in flat(gradient)]))
        assert abs(measured - derived) <= 1e-6 * scale, (name, measured, derived)


@pytest.mark.parametrize("name", [*RECURRENT, *OTHERS])
def test_gradients_match_finite_differences(backend: Any, name: str) -> None:
    skip_all_but_few(backend, name)
    check_against_finite_differences(backend, hard_case(name))


@pytest.mark.parametrize("names", [RECURRENT, OTHERS], ids=["recurrent", "others"])
def test_random_gradients_match_finite_differences(backend: Any, names: Any) -> None:
    @backend.for_all(st.sampled_from(sorted(names)).flatmap(random_cases))
    def check(case: Case) -> None:
        assume(kink_margin(case) > MARGIN)
        check_against_finite_differences(backend, case)


@pytest.mark.parametrize("name", [*RECURRENT, *OTHERS])
def test_the_hard_case_is_away_from_kinks(name: str) -> None:
    assert kink_margin(hard_case(name)) > MARGIN


# ---------------------------------------------------------------------- every entry, not one direction


@pytest.mark.parametrize("name", [*RECURRENT, *OTHERS])
def test_values_and_gradients_are_equal_across_libraries(backend: Any, name: str) -> None:
    skip_all_but_few(backend, name)
    case = hard_case(name)
    y, final, pullback = case.layer.vjp(**case.inputs)
    expected = (y, final, *pullback(**case.cotangents))
    assert relative_error(backend.vjp(case.layer, **case.inputs, **case.cotangents), expected) < 1e-12


@on_their_device
def parameter_gradients(backend: Any, case: Case) -> Any:
    """Without dx and the cotangent of the state, on the library's arrays."""
    given, dy, dstate = backend.arrays(case.inputs), backend.array(case.dy), backend.array(case.dstate)
    _, x, _, marks = case.layer._checked(*(given[name] for name in ("params", "x", "state", "lengths", "resets")))
    _, _, residuals = case.layer.forward(given["params"], x, given["state"], marks, given["masks"])
    return backend.numpy(case.layer.parameter_gradients(given["params"], residuals, dy, dstate))


@pytest.mark.parametrize("name", FEW)
def test_gradients_of_the_parameters_alone(backend: Any, name: str) -> None:
    case = hard_case(name)
    expected, _, _ = case.layer.vjp(**case.inputs)[2](**case.cotangents)
    found = parameter_gradients(backend, case)
    assert found.keys() == expected.keys()
    assert relative_error({key: found[key] for key in expected}, expected) < 1e-12


@pytest.mark.parametrize(
    "layers",
    [
        (prnn.Dropout(0.5), prnn.Sequential(prnn.LSTM(3, 4, 2, bidirectional=True)), prnn.Last(), prnn.Linear(8, 2)),
        (prnn.Sequential(prnn.Mean(), prnn.Linear(3, 2)), prnn.Linear(2, 2)),
        (prnn.Dropout(0.5), prnn.Last()),
    ],
    ids=["first without any", "nested", "none at all"],
)
def test_gradients_of_a_networks_parameters_alone(layers: Any, numpy_backend: Any) -> None:
    case = make_case(prnn.Sequential(*layers), (4, 5, 3), lengths=[5, 2, 0, 3])
    expected, _, _ = case.layer.vjp(**case.inputs)[2](**case.cotangents)
    found = parameter_gradients(numpy_backend, case)
    assert list(found) == list(expected)
    assert relative_error(found, expected) < 1e-13


def test_a_recurrent_layer_leaves_dx_out_where_nobody_wants_it() -> None:
    case = make_case(prnn.GRU(2, 3, 2, bidirectional=True), (4, 5, 2))
    for every in (None, 2):
        layer = dataclasses.replace(case.layer, recompute_every=every)
        _, _, residuals = layer.forward(case.params, case.x, None, Marks(), None)
        arguments = (case.params, residuals, case.dy, None)
        expected, dx, _, _ = stack_backward(*arguments, layer=layer)
        found, nothing, _, _ = stack_backward(*arguments, layer=layer, with_dx=False)
        assert dx.shape == case.x.shape
        assert nothing is None
        assert relative_error(found, expected) < 1e-14


@pytest.mark.parametrize("name", FEW)
def test_float32_agrees_with_float64(backend: Any, name: str) -> None:
    case = hard_case(name)
    expected = backend.vjp(case.layer, **case.inputs, **case.cotangents)
    narrow = case.astype("float32")
    got = backend.vjp(case.layer, **narrow.inputs, **narrow.cotangents)
    assert {a.dtype.name for a in flat(got)} == {"float32"}
    # The longest path, forward and back, is 2 layers of 3 steps, each about 20 roundings of at most 2**-24: 240 of
    # them, 1.4e-5 if every one fell the same way.
    assert relative_error(got, expected) < 1.4e-5


# ---------------------------------------------------------------------- two libraries' autodiff


def loss_of(case: Case, xp: Any, params: Any, x: Any, state: Any, arrays: Any) -> Any:
    """The scalar whose gradient the pullback of `case` computes, written with `apply` only."""
    resets, masks, dy, dstate = arrays
    y, final = case.layer.apply(params, x, state, case.lengths, resets=resets, masks=masks)

    def product(left: Any, right: Any) -> Any:
        if left is None:
            return 0.0
        if isinstance(left, tuple):
            return sum(product(a, b) for a, b in zip(left, right, strict=True))
        return xp.sum(left * right)

    return product(y, dy) + product(final, dstate)


def pulled_back(case: Case) -> list[Any]:
    """The library's own gradients, on NumPy: of the parameters, x, and the state where one is given."""
    _, _, pullback = case.layer.vjp(**case.inputs)
    dparams, dx, dstate = pullback(**case.cotangents)
    return [dparams, dx, dstate if case.state is not None else None]


def check_against_torch_autograd(case: Case) -> None:
    torch = pytest.importorskip("torch")

    def tensor(array: np.ndarray) -> Any:
        return torch.asarray(array.copy())

    def tracked(array: np.ndarray) -> Any:
        found = tensor(array)
        return found.requires_grad_() if found.is_floating_point() else found

    leaves = mapped(tracked, (case.params, case.x, case.state))
    others = mapped(tensor, (case.resets, case.masks, case.dy, case.dstate))
    loss = loss_of(case, torch, *leaves, others)
    if loss.requires_grad:
        loss.backward()

    def gradient(leaf: Any) -> np.ndarray:
        return np.zeros(tuple(leaf.shape)) if leaf.grad is None else leaf.grad.numpy()

    expected = list(mapped(gradient, leaves))
    if case.x.dtype.kind == "i":
        expected[1] = None
    assert relative_error(pulled_back(case), expected) < 1e-10


@pytest.mark.parametrize("name", [*RECURRENT, *OTHERS])
def test_gradients_match_torch_autograd(name: str) -> None:
    @settings(max_examples=10)
    @example(hard_case(name))
    @given(random_cases(name))
    def check(case: Case) -> None:
        assume(kink_margin(case) > 0)
        check_against_torch_autograd(case)

    check()


@pytest.mark.parametrize("name", FEW)
def test_gradients_match_jax_grad(name: str) -> None:
    jax = pytest.importorskip("jax")
    # one case each, the hard one: a gradient of a scanned network takes JAX a second to compile
    case = hard_case(name)
    place = jax.tree.map
    others = place(jax.numpy.asarray, (case.resets, case.masks, case.dy, case.dstate))
    inputs = place(jax.numpy.asarray, (case.params, case.x, case.state))
    wanted = [k for k in range(3) if k != 1 or case.x.dtype.kind == "f"]
    gradient = jax.jit(jax.grad(lambda *leaves: loss_of(case, jax.numpy, *leaves, others), argnums=wanted))
    found = pulled_back(case)
    assert relative_error([found[k] for k in wanted], list(gradient(*inputs))) < 1e-10


# ---------------------------------------------------------------------- the real peers

PEERS = {
    "rnn-tanh": {"nonlinearity": "tanh"},
    "rnn-relu": {"nonlinearity": "relu"},
    "lstm": {},
    "lstm-projected": {"proj_size": 1},
    "gru": {},
}


@st.composite
def peer_cases(draw: st.DrawFn, family: str) -> Case:
    """A case that torch's own modules can run: no masks, resets or rows of length zero, not only backward."""
    cases = random_cases(family)
    possible = draw(cases.filter(lambda c: not c.layer.reverse and min(c.lengths or [1]) > 0))
    return dataclasses.replace(possible, masks=None, resets=None)


@pytest.mark.parametrize("family", PEERS)
def test_forward_and_gradients_match_torch_modules(family: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    @settings(max_examples=25)
    @given(peer_cases(family))
    def check(case: Case) -> None:
        layer = case.layer
        module = getattr(torch.nn, type(layer).__name__)(
            layer.input_size,
            layer.hidden_size,
            layer.num_layers,
            bias=layer.bias,
            bidirectional=layer.bidirectional,
            batch_first=True,
            dtype=torch.float64,
            **PEERS[family],
        )
        module.load_state_dict(mapped(torch.asarray, case.params))
        x = torch.asarray(case.x.copy()).requires_grad_()
        state = mapped(lambda s: torch.asarray(s.copy()).requires_grad_(), case.state)
        if case.lengths is None:
            y, final = module(x, state)
        else:
            packed = pack_padded_sequence(x, case.lengths, batch_first=True, enforce_sorted=False)
            y, final = module(packed, state)
            y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
        finals = final if isinstance(final, tuple) else (final,)
        cotangents = case.dstate if isinstance(case.dstate, tuple) else (case.dstate,)
        torch.autograd.backward([y, *finals], mapped(torch.asarray, [case.dy, *cotangents]))
        ours, our_final, _ = layer.vjp(**case.inputs)
        expected = mapped(lambda t: t.detach().numpy(), (y, final))
        assert relative_error((ours, our_final), expected) < 1e-10
        gradients = ({n: p.grad for n, p in module.named_parameters()}, x.grad)
        expected_grads = [*gradients, mapped(lambda s: s.grad, state)]
        assert relative_error(pulled_back(case), expected_grads) < 1e-10

    check()


# ---------------------------------------------------------------------- the pullback's own contract


def test_a_missing_cotangent_is_zero(backend: Any) -> None:
    case = hard_case("lstm")
    zero_y, zero_state = np.zeros_like(case.dy), mapped(np.zeros_like, case.dstate)
    for given_ones, full in (
        ((case.dy, None), (case.dy, zero_state)),
        ((None, case.dstate), (zero_y, case.dstate)),
        ((None, (case.dstate[0], None)), (zero_y, (case.dstate[0], zero_state[1]))),
    ):
        got, expected = (
            backend.vjp(case.layer, **case.inputs, dy=dy, dstate=dstate) for dy, dstate in (given_ones, full)
        )
        assert relative_error(got, expected) < 1e-14


@on_their_device
def test_the_pullback_is_linear_and_can_be_called_again(backend: Any) -> None:
    if backend.entry.jitted:
        pytest.skip("the pullback stays inside the traced function")
    case = hard_case("gru")
    params, x, state, resets, masks, dy, dstate = backend.array(
        (case.params, case.x, case.state, case.resets, case.masks, case.dy, case.dstate)
    )
    _, _, pullback = case.layer.vjp(params, x, state, case.lengths, resets=resets, masks=masks)
    once = backend.numpy(pullback(dy, dstate))
    twice = backend.numpy(pullback(dy * 2, dstate * 2))
    assert relative_error(twice, mapped(lambda g: 2 * g, once)) < 1e-13


def test_jitted_vjp_needs_no_transfer() -> None:
    jax = pytest.importorskip("jax")
    network = prnn.Sequential(prnn.LSTM(2, 3, bidirectional=True), prnn.GRU(6, 3), prnn.Last(), prnn.Linear(3, 2))
    target = prnn.backend("jax", dtype="float64")
    params = network.init(seed=0, backend=target)
    x, dy = (prnn.asarray(np.ones(s), target) for s in ((4, 3, 2), (4, 2)))
    lengths = prnn.asarray(np.array([3, 0, 1, 2]), target)

    @jax.jit
    def run(params: Any, x: Any, lengths: Any, dy: Any) -> Any:
        y, _, pullback = network.vjp(params, x, lengths=lengths)
        return y, pullback(dy)

    with jax.transfer_guard("disallow"):
        y, (dparams, _, _) = run(params, x, lengths, dy)
        jax.block_until_ready((y, dparams))
    assert np.max(np.abs(prnn.to_numpy(dparams["0.weight_ih_l0"]))) > 0


@pytest.mark.parametrize("make", [prnn.LSTM, prnn.GRU, prnn.RNN])
def test_weight_gradients_added_up_in_the_loop_are_those_of_one_product(make: Any) -> None:
    pytest.importorskip("jax")
    batch, steps, inputs, hidden = 64, 160, 2, 128 if make is not prnn.RNN else 256
    assert sums_in_loop(prnn.backend("jax").xp, batch, batch * steps * hidden * (1 if make is prnn.RNN else 3))
    layer = make(inputs, hidden)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((batch, steps, size)).astype(np.float32) for size in (inputs, hidden))
    lengths = rng.integers(steps // 2, steps + 1, batch)
    found = []
    for library in ("numpy", "jax"):
        params = mapped(lambda p, to=library: prnn.asarray(p, to), layer.init(seed=0, backend="numpy"))
        _, _, pullback = layer.vjp(params, prnn.asarray(x, library), lengths=lengths)
        found.append(mapped(prnn.to_numpy, pullback(prnn.asarray(dy, library))))
    assert relative_error(found[1], found[0]) < 1e-4
