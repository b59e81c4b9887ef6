"""Weights from Keras 3 and to Keras 3: values and gradients equal Keras' own, round trips, files, refusals.

Keras runs on torch here, which compiles nothing, and on JAX in a process of its own. It rounds float64 to float32
wherever it computes on either; the table that says so is changed, so that what it would compute in float64 can be
compared to 1e-10.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import portable_rnn as prnn
from portable_rnn.layers import Activation, Ends, Flip, Masked, Merge, SharedDropout, Softmax

torch = pytest.importorskip("torch", reason="torch is not installed: Keras runs on it here")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed: nothing to convert from")
if keras.backend.backend() != "torch":
    pytest.skip("KERAS_BACKEND is not torch", allow_module_level=True)

from keras.src.backend.common import dtypes as keras_dtypes  # noqa: E402

# Keras' own reading of its weights
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

L = keras.layers
WIDE = {"dtype": "float64"}


@pytest.fixture(autouse=True, scope="module")
def _float64() -> Iterator[None]:
    table = keras_dtypes.BIT64_TO_BIT32_DTYPE
    kept, table["float64"] = table["float64"], "float64"
    yield
    table["float64"] = kept


def sequential(*layers: Any, features: int | None = 3) -> Any:
    """A Sequential in float64 with weights that none of the initializers makes zero or equal."""
    keras.utils.set_random_seed(7)
    first = keras.Input((None, features), **WIDE) if features else keras.Input((None,), dtype="int32")
    model = keras.Sequential([first, *layers])
    rng = np.random.default_rng(5)
    for variable in model.trainable_variables:
        variable.assign(0.6 * rng.standard_normal(variable.shape))
    return model


def gradients(model: Any, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
    """(y, the gradients of every variable and of x) of ``sum(y * dy)``, by torch."""
    tensor = torch.tensor(x, requires_grad=x.dtype.kind == "f")
    y = model(tensor)
    values = [v.value for v in model.trainable_variables]
    found = torch.autograd.grad(
        (y * torch.tensor(dy)).sum(), values + ([tensor] if tensor.requires_grad else []), materialize_grads=True
    )
    arrays = [g.numpy() for g in found]
    return y.detach().numpy(), arrays[: len(values)], arrays[-1] if tensor.requires_grad else None


def in_keras_order(layer: Any, params: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Gradients of one of our layers in the shapes and the order of Keras' variables; written out, gate by gate."""
    if isinstance(layer, prnn.Linear):
        return [params["weight"].T, *([params["bias"]] if layer.bias else [])]
    if isinstance(layer, prnn.Embedding):
        return [params["weight"]]
    if isinstance(layer, Masked):
        return in_keras_order(layer.layer, params)
    if isinstance(layer, prnn.Sequential):
        parts = [
            in_keras_order(part, {n[len(f"{k}.") :]: p for n, p in params.items() if n.startswith(f"{k}.")})
            for k, part in enumerate(layer.layers)
        ]
        return [array for part in parts for array in part]
    found = []
    for end in ("_l0", "_l0_reverse") if getattr(layer, "bidirectional", False) else ("_l0",):
        own = [params[name + end] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if name + end in params]
        if isinstance(layer, prnn.GRU):  # r z n -> z r h
            h = layer.hidden_size
            own = [np.concatenate([p[h : 2 * h], p[:h], p[2 * h :]]) for p in own]
        found += [own[0].T, own[1].T] if own else []
        if len(own) == 4:
            found.append(np.stack(own[2:]) if isinstance(layer, prnn.GRU) and layer.reset_after else own[2])
    return found


def check(model: Any, x: np.ndarray, tolerance: float = 1e-10) -> prnn.Model:
    """Convert; outputs and gradients to 1e-10, and back to Keras with the same weights."""
    ours = prnn.from_keras(model)
    assert ours.backend.dtype_name == "float64"
    y, _, pullback = ours.network.vjp(ours.params, x)
    dy = np.random.default_rng(3).standard_normal(y.shape)
    theirs, by_variable, by_x = gradients(model, x, dy)
    np.testing.assert_allclose(y, theirs, rtol=1e-10, atol=1e-12)
    dparams, dx, _ = pullback(dy)
    mine = in_keras_order(ours.network, dparams)
    assert len(mine) == len(by_variable)
    for got, expected in zip(mine, by_variable, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, float(np.max(np.abs(expected)))))
    if dx is not None and by_x is not None:
        np.testing.assert_allclose(dx, by_x, rtol=0, atol=tolerance * max(1.0, float(np.max(np.abs(by_x)))))
    back = prnn.to_keras(ours)
    for got, expected in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert prnn.from_keras(back).network == ours.network
    return ours


def numpy(y: Any) -> np.ndarray:
    """What Keras returns, on the host."""
    return y.detach().numpy()


def data(*shape: int) -> np.ndarray:
    """Random numbers that float32 has too."""
    return np.random.default_rng(1).standard_normal(shape).astype("float32").astype("float64")


# ---------------------------------------------------------------------- recurrent layers

SIXTH = 1e-7  # torch's backward of hardsigmoid has its sixth in float32
INSIDE = ("tanh", "sigmoid", "relu", "elu", "linear", "softsign", "softplus", "hard_sigmoid", "leaky_relu")


@st.composite
def recurrent_options(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Any kind with any options."""
    kind = draw(st.sampled_from(["SimpleRNN", "LSTM", "GRU"]))
    options: dict[str, Any] = {"activation": draw(st.sampled_from(INSIDE))}
    if kind != "SimpleRNN":
        options["recurrent_activation"] = draw(st.sampled_from(INSIDE))
    if kind == "GRU":
        options["reset_after"] = draw(st.booleans())
    options["units"] = draw(st.integers(1, 4))
    for name in ("use_bias", "return_sequences", "go_backwards"):
        options[name] = draw(st.booleans())
    return kind, options


@settings(max_examples=40)
@given(recurrent_options(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
def test_recurrent_layers_keep_outputs_and_gradients(
    layer: tuple[str, dict[str, Any]], features: int, batch: int, steps: int
) -> None:
    kind, options = layer
    model = sequential(getattr(L, kind)(**options, **WIDE), features=features)
    check(model, data(batch, steps, features), SIXTH if "hard_sigmoid" in options.values() else 1e-10)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave"])
def test_bidirectional_merge_modes(mode: str, return_sequences: bool) -> None:
    kind = {"concat": L.LSTM, "sum": L.GRU, "mul": L.SimpleRNN, "ave": L.LSTM}[mode]
    layer = L.Bidirectional(kind(2, return_sequences=return_sequences, **WIDE), merge_mode=mode, **WIDE)
    ours = check(sequential(layer), data(2, 4, 3))
    kinds = [type(part) for part in getattr(ours.network, "layers", (ours.network,))]
    assert (Ends in kinds) == (not return_sequences)
    assert (Merge in kinds) == (mode != "concat")


def test_cells_in_an_rnn_and_single_layers() -> None:
    for cell in (L.SimpleRNNCell(3, **WIDE), L.LSTMCell(3, **WIDE), L.GRUCell(3, reset_after=False, **WIDE)):
        ours = prnn.from_keras(sequential(L.RNN(cell, return_sequences=True, **WIDE)))
        assert type(ours.network).__name__ == type(cell).__name__.removesuffix("Cell").removeprefix("Simple")
    layer = L.LSTM(3, return_state=True, **WIDE)
    layer.build((None, None, 2))
    assert prnn.from_keras(layer).network == prnn.Sequential(prnn.LSTM(2, 3), prnn.Last())
    layer = L.GRU(3, dropout=0.3, recurrent_dropout=0.2, return_sequences=True, **WIDE)
    layer.build((None, None, 2))
    expected = prnn.Sequential(SharedDropout(0.3), prnn.GRU(2, 3, recurrent_dropout=0.2))
    assert prnn.from_keras(layer).network == expected


# ---------------------------------------------------------------------- masks


def masked_data(value: float) -> np.ndarray:
    """Masked steps at the start, inside and at the end; a row of nothing else."""
    x = data(4, 6, 3)
    x[0, [0, 1, 4]] = x[1, 5] = x[2] = value
    x[3, 2, 1] = value  # one feature only: not masked
    return x


MASKED = {
    "held": [L.LSTM(2, return_sequences=True, **WIDE), L.Dense(2, **WIDE)],
    "stack": [
        L.Dense(3, activation="tanh", **WIDE),
        L.GRU(2, return_sequences=True, **WIDE),
        L.Dense(2, **WIDE),
        L.LSTM(2, return_sequences=True, **WIDE),
    ],
    "last": [L.SimpleRNN(2, **WIDE), L.Dense(2, **WIDE)],
    "bidirectional": [
        L.Bidirectional(L.LSTM(2, return_sequences=True, **WIDE), merge_mode="sum", **WIDE),
        L.Dense(2, **WIDE),
    ],
    "bidirectional-last": [L.Bidirectional(L.GRU(2, **WIDE), **WIDE), L.Dense(2, **WIDE)],
    "backwards-last": [L.GRU(2, go_backwards=True, **WIDE), L.Dense(2, **WIDE)],
}


@pytest.mark.parametrize("name", MASKED)
def test_masking(name: str) -> None:
    x = masked_data(0.5)
    ours = check(sequential(L.Masking(0.5, **WIDE), *MASKED[name]), x)
    first = ours.network.layers[0] if isinstance(ours.network, prnn.Sequential) else ours.network
    assert isinstance(first, Masked)
    assert first.value == 0.5


def test_masks_of_an_embedding_and_of_the_mean() -> None:
    x = np.array([[0, 3, 0, 2, 0], [1, 2, 3, 4, 5], [0, 0, 0, 0, 4]])
    check(sequential(L.Embedding(6, 3, mask_zero=True, **WIDE), L.GRU(2, **WIDE), features=None), x)
    layers = [L.LSTM(2, return_sequences=True, **WIDE), L.GlobalAveragePooling1D(**WIDE)]
    model = sequential(L.Embedding(6, 3, mask_zero=True, **WIDE), *layers, features=None)
    ours = prnn.from_keras(model)  # Keras divides zero by zero for a row that is masked throughout
    assert "masked throughout" in ours.metadata["conversion_notes"]
    np.testing.assert_allclose(ours.predict(x[:2]), numpy(model(x[:2])), atol=1e-12)
    unused = sequential(L.Embedding(6, 3, mask_zero=True, **WIDE), L.Dense(2, **WIDE), features=None)
    assert prnn.from_keras(unused).network == prnn.Sequential(prnn.Embedding(6, 3), prnn.Linear(3, 2))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([L.Masking(**WIDE), L.Dense(2, **WIDE)], "not followed by a layer that leaves masked steps out"),
        ([L.Dense(3, **WIDE), L.Masking(**WIDE), L.GRU(2, **WIDE)], "must be the first"),
        ([L.Masking(**WIDE), L.Masking(1.0, **WIDE), L.GRU(2, **WIDE)], "two layers mask"),
        (
            [L.Masking(**WIDE), L.GRU(2, go_backwards=True, return_sequences=True, **WIDE), L.GRU(2, **WIDE)],
            "whose mask Keras does not turn around",
        ),
    ],
)
def test_masks_that_mean_something_else_are_refused(layers: Any, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.from_keras(sequential(*layers))


# ---------------------------------------------------------------------- whole models


def test_a_chain_of_everything() -> None:
    model = sequential(
        L.Embedding(7, 3, **WIDE),
        L.SpatialDropout1D(0.2, **WIDE),
        L.Bidirectional(L.GRU(2, return_sequences=True, **WIDE), **WIDE),
        L.Dropout(0.1, **WIDE),
        L.LSTM(3, return_sequences=True, **WIDE),
        L.Dense(4, use_bias=False, **WIDE),
        L.ELU(0.5, **WIDE),
        L.GlobalAveragePooling1D(**WIDE),
        L.Dense(2, activation="softmax", **WIDE),
        features=None,
    )
    check(model, np.array([[1, 2, 6, 0], [3, 3, 4, 5]]))


def test_time_distributed_and_other_spellings() -> None:
    model = sequential(
        L.LSTM(3, return_sequences=True, **WIDE),
        L.TimeDistributed(L.Dense(2, activation="relu", **WIDE), **WIDE),
        L.TimeDistributed(L.Activation("tanh", **WIDE), **WIDE),
        L.Identity(**WIDE),
        L.Dropout(0.2, noise_shape=(None, 1, None), **WIDE),
        L.LeakyReLU(0.3, **WIDE),
        L.ReLU(**WIDE),
        L.GlobalMaxPooling1D(**WIDE),
        L.Softmax(**WIDE),
    )
    ours = check(model, data(2, 5, 3))
    kinds = [
        "LSTM",
        "Linear",
        "Activation",
        "Activation",
        "SharedDropout",
        "Activation",
        "Activation",
        "Max",
        "Softmax",
    ]
    assert [type(layer).__name__ for layer in ours.network.layers] == kinds


@pytest.mark.parametrize("name", ["linear", *INSIDE, "exponential", "softmax", "log_softmax"])
def test_activations_of_dense(name: str) -> None:
    check(
        sequential(L.Dense(3, activation=name, **WIDE), L.Dense(2, **WIDE)),
        data(2, 3, 3),
        SIXTH if name == "hard_sigmoid" else 1e-10,
    )


def test_a_functional_model_with_another_inside(tmp_path: Path) -> None:
    inner = sequential(L.GRU(3, return_sequences=True, **WIDE), L.Dense(3, **WIDE))
    first = keras.Input((None, 3), **WIDE)
    plain = keras.Model(first, L.Dense(1, **WIDE)(L.LSTM(2, **WIDE)(inner(first))))
    ours = prnn.from_keras(plain)
    assert [type(layer).__name__ for layer in ours.network.layers] == ["GRU", "Linear", "LSTM", "Last", "Linear"]
    plain.save(tmp_path / "m.keras")
    from_file = prnn.from_keras(tmp_path / "m.keras")
    assert from_file.network == ours.network
    for name, value in ours.params.items():
        np.testing.assert_array_equal(from_file.params[name], value)
    assert from_file.metadata["source_framework"] == "keras"
    assert from_file.metadata["source_version"].startswith("3.")


def test_float32_models_and_backends() -> None:
    model = keras.Sequential([keras.Input((None, 3)), L.LSTM(4), L.Dense(2)])
    ours = prnn.from_keras(model, backend="torch")
    assert ours.backend.name == "torch"
    assert ours.backend.dtype_name == "float32"
    x = data(2, 5, 3).astype("float32")
    np.testing.assert_allclose(prnn.to_numpy(ours.predict(torch.tensor(x))), numpy(model(x)), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- what is refused


def _functional(outputs: Any) -> Any:
    first = keras.Input((None, 3))
    return keras.Model(first, outputs(first))


class Subclassed(keras.Model):
    """A model whose call is code."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, x: Any) -> Any:
        """The layer."""
        return self.dense(x)


def _called(model: Any) -> Any:
    model(np.ones((1, 2, 3), dtype="float32"))
    return model


def _shared(x: Any) -> Any:
    layer = L.Dense(3)
    return layer(layer(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.LayerNormalization(), "has no weights yet"),
        (lambda: sequential(L.LayerNormalization()), "keras LayerNormalization .* can't be converted"),
        (lambda: sequential(L.LSTM(2, activation="gelu")), "activation 'gelu'"),
        (lambda: sequential(L.Dense(2, activation="selu")), "activation 'selu'"),
        (lambda: sequential(L.ReLU(max_value=6.0)), "ReLU .* can't be converted"),
        (lambda: sequential(L.Dropout(0.1, noise_shape=(1, None, None))), "noise_shape"),
        (lambda: sequential(L.Bidirectional(L.LSTM(2), merge_mode=None)), "merge_mode=None"),
        (
            lambda: sequential(L.Bidirectional(L.LSTM(2), backward_layer=L.LSTM(3, go_backwards=True))),
            "directions of Bidirectional .* differ",
        ),
        (
            lambda: sequential(L.Bidirectional(L.LSTM(2, go_backwards=True), backward_layer=L.LSTM(2))),
            "exchange the two",
        ),
        (lambda: sequential(L.RNN([L.LSTMCell(2), L.LSTMCell(2)])), "StackedRNNCells"),
        (lambda: sequential(L.TimeDistributed(L.LayerNormalization())), "wraps keras LayerNormalization"),
        (lambda: sequential(L.GlobalMaxPooling1D(keepdims=True)), "keepdims"),
        (lambda: _functional(lambda x: L.Add()([L.Dense(3)(x), x])), "has 2 inputs"),
        (lambda: _functional(lambda x: x * 2.0), "one line"),
        (lambda: _functional(_shared), "used twice"),
        (lambda: _functional(lambda x: [L.Dense(2)(x), L.Dense(2)(x)]), "1 inputs and 2 outputs"),
        (lambda: _called(Subclassed()), "subclassed model"),
        (lambda: keras.Sequential([L.Dense(2)]), "no weights yet"),
        (lambda: 3, "got int"),
    ],
)
def test_what_can_not_be_converted_is_refused(make: Any, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.from_keras(make())


def test_swapped_gates_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_rnn.interop import keras_layers as interop

    model = sequential(L.GRU(2, **WIDE))
    monkeypatch.setattr(interop, "KERAS_GRU_GATES", (0, 1, 2))
    with pytest.raises(prnn.ConversionError, match=r"'gru.*' with 1 time steps .* difference is .*y\["):
        prnn.from_keras(model)
    monkeypatch.undo()
    honest = interop._named

    def swapped(weight: Any, recurrent: Any, biases: Any) -> Any:
        return honest(np.roll(weight, 1, axis=0), recurrent, biases)

    monkeypatch.setattr(interop, "_named", swapped)
    with pytest.raises(prnn.ConversionError, match="does not give the source's outputs"):
        prnn.from_keras(sequential(L.LSTM(2, **WIDE)))


def test_without_keras_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[keras\]"):
        prnn.from_keras("m.keras")
    with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[keras\]"):
        prnn.to_keras(prnn.Model(prnn.Linear(1, 1)))


def test_keras_without_its_backend_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    with monkeypatch.context() as patch:
        patch.setattr("portable_rnn.interop.keras_layers.require", missing)
        with pytest.raises(prnn.BackendError, match="KERAS_BACKEND"):
            prnn.from_keras("m.keras")
    monkeypatch.setattr(keras, "__version__", "2.15.0")
    with pytest.raises(prnn.InputError, match=r"got version 2\.15\.0"):
        prnn.from_keras("m.keras")


def test_bad_files_are_refused(tmp_path: Path) -> None:
    sequential(L.GRU(2, **WIDE)).save(tmp_path / "m.keras")
    whole = (tmp_path / "m.keras").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.keras").write_bytes(whole[:size])
        with pytest.raises(prnn.InputError, match="cut short"):
            prnn.from_keras(tmp_path / "cut.keras")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    for name, message in (("empty.keras", "without it"), ("none.keras", "no file"), ("m.h5", "no file")):
        with pytest.raises(prnn.InputError, match=message):
            prnn.from_keras(tmp_path / name)
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(prnn.InputError, match="unknown suffix"):
        prnn.from_keras(tmp_path / "m.h5")


@pytest.mark.filterwarnings("ignore:.*lambda.*:UserWarning")
def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((None, 3)), L.Lambda(lambda x: pytest.fail("code was run") if 0 else x)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(prnn.InputError, match="never run"):
        prnn.from_keras(tmp_path / "m.keras")


# ---------------------------------------------------------------------- to Keras, and around

TO_KERAS: dict[str, prnn.Layer] = {
    "stack": prnn.Sequential(prnn.LSTM(3, 4, 3, dropout=0.2), prnn.Last(), prnn.Linear(4, 2)),
    "deep-bidirectional": prnn.Sequential(prnn.GRU(3, 2, 2, bidirectional=True), Ends(), Merge("mul")),
    "deep-reverse": prnn.Sequential(prnn.RNN(3, 2, 2, reverse=True, nonlinearity="elu"), Flip(), prnn.Last()),
    "options-of-ours": prnn.LSTM(3, 4, initializer="keras", recompute_every=2),
    "unbiased": prnn.GRU(3, 2, bias=False, reset_after=False, recurrent_activation="hard_sigmoid(0.16666666666666666)"),
    "sums-biases": prnn.Sequential(prnn.LSTM(3, 2), prnn.Max()),
    "nested": prnn.Sequential(prnn.Sequential(prnn.RNN(3, 2), SharedDropout(0.1)), prnn.Mean(), Softmax(log=True)),
    "activations": prnn.Sequential(prnn.Linear(3, 2), Activation("leaky_relu"), Activation("elu(0.3)")),
    "masked": prnn.Sequential(Masked(prnn.Sequential(prnn.LSTM(3, 2), prnn.Last()), value=-2.0), prnn.Linear(2, 1)),
    "masked-embedding": Masked(prnn.Sequential(prnn.Embedding(5, 2), prnn.GRU(2, 2))),
}


@pytest.mark.parametrize("name", TO_KERAS)
def test_a_model_becomes_a_keras_model(name: str) -> None:
    model = prnn.Model(TO_KERAS[name], dtype="float64", seed=2)
    made = prnn.to_keras(model)
    x: Any = np.array([[0, 4, 2, 0]]) if model.network.takes_integers else data(2, 5, 3)
    np.testing.assert_allclose(numpy(made(x)), model.predict(x), atol=1e-12)
    again = prnn.from_keras(made)
    np.testing.assert_allclose(again.predict(x), model.predict(x), atol=1e-12)
    assert made.count_params() == sum(v.size for v in again.params.values()) - sum(
        v.size for n, v in again.params.items() if "bias_hh" in n and not v.any()
    )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (prnn.LSTM(2, 3, proj_size=1), "Keras's LSTM has no proj_size=1"),
        (prnn.LSTM(2, 3, peepholes=True), "no peepholes=True"),
        (prnn.LSTM(2, 3, output_activation="relu"), "no output_activation='relu'"),
        (prnn.GRU(2, 3, clip=1.0), "no clip=1.0"),
        (prnn.GRU(2, 3, zoneout=0.5), "no zoneout=0.5"),
        (prnn.GRU(2, 3, activation="scaled_tanh(2.0)"), "no activation 'scaled_tanh"),
        (prnn.RNN(2, 3, nonlinearity="hard_sigmoid"), "no activation 'hard_sigmoid' with these settings"),
        (prnn.RNN(2, 3, reverse=True), r"let Flip\(\) follow"),
        (prnn.Sequential(prnn.RNN(2, 3), prnn.Linear(3, 2), prnn.Last()), "Keras takes Last after a recurrent layer"),
        (prnn.Sequential(prnn.RNN(2, 3, bidirectional=True), prnn.Last()), "Keras takes Last after"),
        (prnn.Sequential(prnn.Linear(2, 2), Activation("affine(2.0)")), "no activation 'affine"),
        (prnn.Recurrent(prnn.cells.ElmanCell(), 2, 3), "no layer for Recurrent"),
        (prnn.Last(), "any number of features"),
        (Masked(prnn.Sequential(prnn.Embedding(5, 2), prnn.GRU(2, 2)), value=3.0), "masks 0 only, not 3"),
    ],
)
def test_what_keras_can_not_express_is_refused(layer: prnn.Layer, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.to_keras(prnn.Model(layer))


def test_to_keras_takes_a_model() -> None:
    with pytest.raises(prnn.InputError, match="got Linear"):
        prnn.to_keras(prnn.Linear(2, 2))  # type: ignore[arg-type]


def test_keras_to_ours_to_torch_to_ours_to_keras() -> None:
    model = sequential(
        L.Embedding(7, 3, **WIDE),
        L.LSTM(3, return_sequences=True, go_backwards=True, **WIDE),
        L.Bidirectional(L.GRU(2, **WIDE), merge_mode="ave", **WIDE),
        L.Dense(2, activation="softmax", **WIDE),
        features=None,
    )
    ours = prnn.from_keras(model)
    again = prnn.from_torch(prnn.to_torch(ours))
    assert again.network == ours.network
    back = prnn.to_keras(again)
    for got, expected in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)
    x = np.array([[1, 2, 6, 0]])
    np.testing.assert_array_equal(numpy(back(x)), numpy(model(x)))


ON_JAX = """
import keras, numpy as np, portable_rnn as prnn
L = keras.layers
assert keras.backend.backend() == "jax"
model = keras.Sequential([
    keras.Input((None, 3)),
    L.Masking(), L.LSTM(4, return_sequences=True), L.Bidirectional(L.SimpleRNN(3), merge_mode="sum"), L.Dense(2),
])
ours = prnn.from_keras(model)
back = prnn.to_keras(ours)
x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype("float32")
x[0, 2:4] = 0
np.testing.assert_allclose(ours.predict(x), model(x), atol=2e-6)
np.testing.assert_allclose(back(x), model(x), atol=2e-6)
print("done")
"""


@pytest.mark.slow
def test_on_keras_with_jax() -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed: Keras' other backend")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", ON_JAX], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip() == "done", done.stderr
