"""Everything that looks through a network finds the layers inside it, however deep and inside whatever they are."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import portable_rnn as prnn
from portable_rnn.arrays import Marks
from portable_rnn.interop.selftest import random_input
from portable_rnn.layers import Wrapper, check_streams, map_layers, stack_backward, walk
from portable_rnn.layers.recurrent import RecurrentLayer
from portable_rnn.layers.registry import LIBRARY
from portable_rnn.layers.wrappers import Activation, Masked, Merge
from portable_rnn.models.checkpoint import network_from_config, network_to_config, read_checkpoint
from portable_rnn.training.memory_limit import limited

FEATURES = 2


@dataclasses.dataclass(frozen=True, repr=False)
class Residual(Wrapper):
    """``x + layer(x)``: a user's own layer with a layer inside."""

    def forward(self, params: Any, x: Any, state: Any, marks: Any, masks: Any) -> Any:
        y, final, residuals = self.layer.forward(params, x, state, marks, masks)
        return x + y, final, residuals

    def backward(self, params: Any, residuals: Any, dy: Any, dstate: Any) -> Any:
        grads, dx, dinitial = self.layer.backward(params, residuals, dy, dstate)
        return grads, dx + dy, dinitial


SIMPLE = [
    prnn.RNN(FEATURES, FEATURES),
    prnn.LSTM(FEATURES, FEATURES, 2),
    prnn.GRU(FEATURES, FEATURES, reset_after=False),
    prnn.MinGRU(FEATURES, FEATURES, reverse=True),
    prnn.LayerNormGRU(FEATURES, FEATURES),
    prnn.Sequential(prnn.GRU(FEATURES, FEATURES, bidirectional=True), Merge("sum")),
    prnn.Linear(FEATURES, FEATURES),
    Activation("tanh"),
    prnn.Dropout(0.5),
]

WRAPPED = {
    "Masked": lambda inner: Masked(inner, 7.0),
    "Residual": Residual,
    "Sequential": lambda inner: prnn.Sequential(prnn.Linear(FEATURES, FEATURES), inner),
}


def networks(*wrappers: str) -> st.SearchStrategy[prnn.Layer]:
    """Layers (B, T, 2) -> (B, T, 2), each of them inside any of the wrappers or beside others."""

    def grow(inside: st.SearchStrategy[prnn.Layer]) -> st.SearchStrategy[prnn.Layer]:
        wrapped = [inside.map(WRAPPED[name]) for name in wrappers or WRAPPED]
        return st.one_of(*wrapped, st.lists(inside, min_size=1, max_size=3).map(lambda row: prnn.Sequential(*row)))

    return st.recursive(st.sampled_from(SIMPLE), grow, max_leaves=5)


def recurrent(network: prnn.Layer) -> list[tuple[str, Any]]:
    return [(prefix, layer) for prefix, layer in walk(network) if isinstance(layer, RecurrentLayer)]


def by_fields(layer: prnn.Layer) -> list[prnn.Layer]:
    """The layers inside a layer as its fields have them: a second opinion on `children`."""
    values = [getattr(layer, field.name) for field in dataclasses.fields(layer)]
    return [part for value in values for part in (value if isinstance(value, tuple) else (value,)) if is_layer(part)]


def is_layer(value: Any) -> bool:
    return isinstance(value, prnn.Layer)


@given(networks())
def test_a_layer_names_all_that_are_inside_and_their_parameters(network: prnn.Layer) -> None:
    for _, layer in walk(network):
        assert list(layer.children().values()) == by_fields(layer)
    own = {
        prefix + name: shape
        for prefix, layer in walk(network)
        if not layer.children()
        for name, shape in layer.parameter_shapes().items()
    }
    assert network.parameter_shapes() == own
    assert {name: value.shape for name, value in network.init(0).items()} == own


@given(networks())
def test_a_map_over_layers_reaches_every_one(network: prnn.Layer) -> None:
    assert map_layers(lambda layer: layer, network) == network
    seen: list[prnn.Layer] = []
    map_layers(lambda layer: seen.append(layer) or layer, network)  # type: ignore[func-returns-value]
    assert sorted(map(repr, seen)) == sorted(repr(layer) for _, layer in walk(network))


@given(networks())
def test_a_memory_limit_counts_and_cuts_every_recurrent_layer(network: prnn.Layer) -> None:
    shape, layers = (3, 500, FEATURES), [layer for _, layer in recurrent(network)]
    if not layers:
        assert limited(network, shape, "float32", 1) == network
        return
    side_by_side = prnn.Sequential(*layers) if all(not layer.bidirectional for layer in layers) else None
    for limit in (100_000, 300_000, 10**9):
        try:
            found = limited(network, shape, "float32", limit)
        except prnn.InputError as refused:
            with pytest.raises(prnn.InputError, match=str(refused)[:40]):
                limited(side_by_side or network, shape, "float32", limit)
            continue
        every = {layer.recompute_every for _, layer in recurrent(found)}
        assert len(every) == 1
        if side_by_side is not None:
            plain = limited(side_by_side, shape, "float32", limit)
            assert every == {layer.recompute_every for _, layer in recurrent(plain)}
        assert map_layers(lambda layer: without_segments(layer), found) == network


def without_segments(layer: prnn.Layer) -> prnn.Layer:
    return dataclasses.replace(layer, recompute_every=None) if isinstance(layer, RecurrentLayer) else layer


@settings(max_examples=30)
@given(networks())
def test_gradient_flow_shows_every_recurrent_layer(network: prnn.Layer) -> None:
    model = prnn.Model(network, dtype="float64")
    x = np.random.default_rng(0).standard_normal((3, 4, FEATURES))
    y = np.zeros((3, 4, FEATURES))
    x[1, 1:3] = 7.0  # what `Masked` hides
    flow = prnn.gradient_flow(model, x, y, lengths=[4, 3, 0])
    expected = [
        f"{prefix}{type(layer).__name__}" for prefix, layer in recurrent(network) for _ in range(runs_of(layer))
    ]
    assert [layer.name.partition(" ")[0] for layer in flow.layers] == expected
    _, gradients = model.loss_and_grad(x, y, lengths=[4, 3, 0])
    assert flow.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(flow.gradients[name], gradient, rtol=1e-12, atol=1e-15)


def runs_of(layer: Any) -> int:
    return int(layer.num_layers * (2 if layer.bidirectional else 1))


def test_gradient_flow_inside_a_mask_is_that_of_the_shown_steps() -> None:
    x = np.random.default_rng(0).standard_normal((1, 5, FEATURES))
    with_gap = np.concatenate([x[:, :2], np.full((1, 3, FEATURES), 7.0), x[:, 2:]], axis=1)
    plain = prnn.Model(prnn.Sequential(prnn.GRU(FEATURES, 3), prnn.Last()), dtype="float64")
    masked = prnn.Model(Masked(prnn.Sequential(prnn.GRU(FEATURES, 3), prnn.Last()), 7.0), dtype="float64")
    expected = prnn.gradient_flow(plain, x, np.zeros((1, 3))).layers[0]
    found = prnn.gradient_flow(masked, with_gap, np.zeros((1, 3))).layers[0]
    np.testing.assert_allclose(found.norms[:5], expected.norms, rtol=1e-12)
    assert found.saturation == expected.saturation


@given(networks())
def test_a_stream_is_refused_for_a_layer_that_needs_the_whole_sequence(network: prnn.Layer) -> None:
    whole = [layer for _, layer in walk(network) if needs_the_whole(layer)]
    if whole:
        with pytest.raises(prnn.InputError, match="needs the whole sequence: it can't run step by step"):
            check_streams(network)
    else:
        check_streams(network)


def needs_the_whole(layer: Any) -> bool:
    return isinstance(layer, Masked) or getattr(layer, "bidirectional", False) or getattr(layer, "reverse", False)


@settings(max_examples=30)
@given(networks("Residual", "Sequential"))
def test_a_stream_gives_what_predict_and_step_give(network: prnn.Layer) -> None:
    assume(not any(needs_the_whole(layer) for _, layer in walk(network)))
    model = prnn.Model(network, dtype="float64")
    x = np.random.default_rng(0).standard_normal((2, 5, FEATURES))
    whole = model.predict(x)
    stream, state = prnn.Stream(model, batch_size=2), None
    for t in range(5):
        y, state = model.step(x[:, t], state)
        np.testing.assert_allclose(y, whole[:, t], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(stream.step(x[:, t]), whole[:, t], rtol=1e-10, atol=1e-12)


@given(networks("Masked", "Sequential"))
def test_a_network_comes_back_from_its_description(network: prnn.Layer) -> None:
    assert network_from_config(json.loads(json.dumps(network_to_config(network)))) == network


def test_a_file_names_the_variant_of_every_gru(tmp_path: Any) -> None:
    network = prnn.Sequential(Masked(prnn.Sequential(prnn.GRU(2, 2), Masked(prnn.GRU(2, 2, reset_after=False)))))
    prnn.Model(network).save(tmp_path / "m.safetensors")
    passport = read_checkpoint(tmp_path / "m.safetensors")[-1]
    (variants,) = (value for key, value in passport.items() if "gru" in key)
    assert "reset_after" in variants
    assert "reset_before" in variants


@given(networks("Masked", "Sequential"))
def test_a_converted_network_is_tested_on_input_that_fits(network: prnn.Layer) -> None:
    x = random_input(network, 2, 3, np.random.default_rng(0))
    network.check_input(x, np)


RECURRENT = [cls for cls in LIBRARY.values() if issubclass(cls, RecurrentLayer) and cls is not prnn.Recurrent]


@pytest.mark.parametrize("wrapper", [*WRAPPED, None])
@pytest.mark.parametrize("cls", RECURRENT, ids=lambda cls: cls.__name__)
def test_training_takes_no_gradient_of_x(cls: Any, wrapper: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first layer with parameters, in every recurrent layer, inside a mask too."""
    asked: list[bool] = []

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(options.get("with_dx", True))
        return stack_backward(*args, **options)

    network = cls(FEATURES, FEATURES)
    network = network if wrapper is None else WRAPPED[wrapper](network)
    params = network.init(0)
    x = np.random.default_rng(0).standard_normal((2, 4, FEATURES), dtype="float32")
    y, _, residuals = network.forward(params, x, None, Marks(), None)
    expected, _, _ = network.backward(params, residuals, np.ones_like(y), None)
    monkeypatch.setattr("portable_rnn.layers.recurrent.stack_backward", watched)
    found = network.parameter_gradients(params, residuals, np.ones_like(y), None)
    needs_dx = wrapper == "Sequential" or wrapper == "Residual"  # a Linear stands before it; one of a user's own
    assert asked == [needs_dx]
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient)
