"""The Keras models that people have, and .keras files: each is right or refused by our own error, none is changed."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.layers import Flip, Masked

torch = pytest.importorskip("torch", reason="torch is not installed: Keras runs on it here")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed: nothing to convert from")
if keras.backend.backend() != "torch":
    pytest.skip("KERAS_BACKEND is not torch", allow_module_level=True)

# Keras' own reading of its weights, and its word on lambdas
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*lambda.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:The `keras.initializers.serialize.*:UserWarning"),
]
L = keras.layers


def stack(*layers: Any) -> Any:
    return keras.Sequential(list(layers))


def functional(first: Any, build: Callable[[Any], Any]) -> Any:
    return keras.Model(first, build(first))


def state_of_encoder(which: int, **options: Any) -> Any:
    first = keras.Input((None, 3))
    return keras.Model(first, L.Dense(2)(L.LSTM(4, return_state=True, **options)(first)[which]))


RIGHT: dict[str, Callable[[], Any]] = {
    "fixed time": lambda: functional(keras.Input((7, 3)), lambda x: L.Dense(2)(L.LSTM(4)(x))),
    "fixed time, every step": lambda: functional(
        keras.Input((7, 3)), lambda x: L.TimeDistributed(L.Dense(2))(L.LSTM(4, return_sequences=True)(x))
    ),
    "text": lambda: stack(keras.Input((20,)), L.Embedding(9, 4), L.LSTM(5), L.Dense(1, activation="sigmoid")),
    "text, functional": lambda: functional(
        keras.Input((20,), dtype="int32"), lambda x: L.Dense(2)(L.GRU(3)(L.Embedding(9, 4)(x)))
    ),
    "text, masked": lambda: stack(
        keras.Input((20,)), L.Embedding(9, 4, mask_zero=True), L.Bidirectional(L.LSTM(3)), L.Dense(1)
    ),
    "text, mean": lambda: stack(
        keras.Input((20,)),
        L.Embedding(9, 4, mask_zero=True),
        L.LSTM(3, return_sequences=True),
        L.GlobalAveragePooling1D(),
        L.Dense(1),
    ),
    "stateful": lambda: stack(
        keras.Input(batch_shape=(2, None, 3)), L.LSTM(4, stateful=True, return_sequences=True), L.Dense(1)
    ),
    "stateful, fixed time": lambda: functional(
        keras.Input(batch_shape=(2, 5, 3)), lambda x: L.Dense(1)(L.Bidirectional(L.GRU(4, stateful=True))(x))
    ),
    "dense only": lambda: stack(keras.Input((3,)), L.Dense(4, activation="relu"), L.Dense(2)),
    "dense only, functional": lambda: functional(
        keras.Input((3,)), lambda x: L.Dense(2, activation="softmax")(L.Dropout(0.2)(L.Dense(4)(x)))
    ),
    "no weights": lambda: stack(keras.Input((3,)), L.Dropout(0.2), L.Activation("tanh")),
    "GRU stack": lambda: stack(
        keras.Input((None, 3)),
        L.GRU(4, return_sequences=True, dropout=0.2, recurrent_dropout=0.1),
        L.Dropout(0.3),
        L.GRU(5),
        L.Dense(1),
    ),
    "unrolled": lambda: stack(keras.Input((5, 3)), L.LSTM(4, unroll=True), L.Dense(1)),
    "bag of words": lambda: stack(keras.Input((5,)), L.Embedding(9, 4), L.GlobalAveragePooling1D(), L.Dense(2)),
    "state h": lambda: state_of_encoder(1),
    "half precision": lambda: stack(keras.Input((None, 3)), L.LSTM(4, dtype="mixed_float16"), L.Dense(1)),
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "RepeatVector": (lambda: stack(keras.Input((6, 3)), L.LSTM(4), L.RepeatVector(3), L.LSTM(4)), "RepeatVector"),
    "Conv1D": (lambda: stack(keras.Input((None, 3)), L.Conv1D(4, 3), L.LSTM(4), L.Dense(1)), "Conv1D"),
    "Lambda": (lambda: stack(keras.Input((None, 3)), L.Lambda(lambda x: x * 2), L.LSTM(4)), "Lambda"),
    "BatchNormalization": (lambda: stack(keras.Input((None, 3)), L.LSTM(4), L.BatchNormalization()), "BatchNorm"),
    "Flatten": (lambda: stack(keras.Input((5, 3)), L.LSTM(4, return_sequences=True), L.Flatten()), "Flatten"),
    "state c": (lambda: state_of_encoder(2), "does not give the source's outputs"),
    "h of sequences": (lambda: state_of_encoder(1, return_sequences=True), "does not give the source's outputs"),
    "two inputs": (
        lambda: keras.Model([a := keras.Input((3,)), b := keras.Input((3,))], L.Dense(1)(L.Concatenate()([a, b]))),
        "2 inputs",
    ),
    "four axes": (lambda: stack(keras.Input((4, 5, 3)), L.Dense(2)), r"expected input of shape"),
    "endless": (lambda: stack(keras.Input((10**6, 3)), L.GRU(2)), "at most 20,000 steps"),
    "huge batch": (lambda: stack(keras.Input(batch_shape=(10**8, 5, 3)), L.Dense(2)), "entries to compare"),
    "StackedRNNCells": (lambda: stack(keras.Input((None, 3)), L.RNN([L.LSTMCell(4), L.LSTMCell(3)])), "StackedRNN"),
}


def snapshot(model: Any) -> list[Any]:
    """Everything about a model that a conversion could change."""
    layers = model._flatten_layers()
    return [
        [np.array(variable.value.detach()) for variable in model.variables],
        [np.array(s.value.detach()) for r in layers if isinstance(r, L.RNN) and r.stateful for s in r.states],
        [(one.name, one.built, len(one._inbound_nodes), len(one._outbound_nodes)) for one in layers],
        json.dumps(model.get_config(), default=str),
    ]


def with_numbers(model: Any) -> Any:
    """States that are not zero."""
    for layer in model._flatten_layers():
        if isinstance(layer, L.RNN) and layer.stateful:
            for state in layer.states:
                state.assign(np.full(state.shape, 0.25))
    return model


@pytest.mark.parametrize("name", RIGHT)
def test_a_model_is_right_and_stays_as_it_was(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = with_numbers(RIGHT[name]())
    before = snapshot(model)
    ours = prnn.from_keras(model)
    np.testing.assert_equal(snapshot(model), before)
    shape = [n or k for n, k in zip(model.inputs[0].shape, (2, 5, 3), strict=False)]
    rng = np.random.default_rng(0)
    integers = ours.network.takes_integers
    x: Any = rng.integers(1, 9, shape) if integers else rng.standard_normal(shape).astype("float32")
    for layer in model._flatten_layers():
        if isinstance(layer, L.RNN) and layer.stateful:
            layer.reset_state()
    expected = model(x, training=False).detach().float().numpy()
    np.testing.assert_allclose(ours.predict(x), expected, atol=1e-2 if name == "half precision" else 2e-6)
    if model.inputs[0].shape[1] is not None and len(shape) > 1 + (not integers):
        assert "time steps, the model any number" in ours.metadata["conversion_notes"]


@pytest.mark.parametrize("name", REFUSED)
def test_another_model_is_refused_and_stays_as_it_was(name: str) -> None:
    make, message = REFUSED[name]
    model = make()
    before = snapshot(model)
    with pytest.raises(prnn.InputError, match=message) as caught:
        prnn.from_keras(model)
    assert str(caught.value).isprintable()
    np.testing.assert_equal(snapshot(model), before)


def test_a_layer_alone_that_is_stateful() -> None:
    layer = L.LSTM(3, stateful=True)
    layer.build((2, None, 4))
    for state in layer.states:
        state.assign(np.full(state.shape, 0.5))
    assert prnn.from_keras(layer).network == prnn.Sequential(prnn.LSTM(4, 3), prnn.Last())
    assert all(float(state.value.min()) == 0.5 for state in layer.states)


@pytest.mark.parametrize("between", [(), (L.Dense, L.Activation)])
def test_masked_sequences_backwards(between: tuple[Any, ...]) -> None:
    """Keras repeats outputs at masked steps in the order that it goes; so does a layer forwards over turned input."""
    keras.utils.set_random_seed(1)
    inside = [kind(*((3,) if kind is L.Dense else ("tanh",))) for kind in between]
    model = stack(
        keras.Input((None, 3)),
        L.Masking(),
        *inside,
        L.GRU(4, go_backwards=True, return_sequences=True),
        L.Dense(2),
    )
    ours: Any = prnn.from_keras(model)
    assert isinstance(ours.network.layers[0], Flip)
    assert isinstance(ours.network.layers[1], Masked)
    x = np.random.default_rng(0).standard_normal((3, 6, 3)).astype("float32")
    x[0, [0, 2, 5]] = x[1, 3:] = x[2] = 0
    np.testing.assert_allclose(ours.predict(x), model(x).detach().numpy(), atol=2e-6)


# ---------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole file."""
    path = tmp_path_factory.mktemp("keras") / "m.keras"
    layers = [L.Embedding(9, 4), L.Bidirectional(L.LSTM(5, return_sequences=True)), L.TimeDistributed(L.Dense(3))]
    inner = [keras.Input((None, 3)), L.Dense(3, kernel_regularizer="l2", kernel_constraint="max_norm")]
    stack(keras.Input((7,)), *layers, L.RNN(L.GRUCell(2)), L.Dense(3), stack(keras.Input((3,)), *inner[1:])).save(path)
    return path


def rewritten(saved: Path, target: Path, change: Callable[[str, bytes], bytes], compressed: bool = False) -> Path:
    """The archive with each member as `change` makes it."""
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(target, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def described(saved: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """The archive with another description."""

    def member(name: str, data: bytes) -> bytes:
        if name != "config.json":
            return data
        config = json.loads(data)
        change(config)
        return json.dumps(config).encode()

    return rewritten(saved, target, member)


def refused(path: Path, message: str) -> None:
    started = time.process_time()
    with pytest.raises(prnn.InputError, match=message) as caught:
        prnn.from_keras(path)
    assert time.process_time() - started < 2
    assert str(caught.value).isprintable()


def test_a_file_is_read(saved: Path, tmp_path: Path) -> None:
    assert "LSTM(4, 5, bidirectional=True)" in str(prnn.from_keras(saved).network)
    packed = rewritten(saved, tmp_path / "m.keras", lambda name, data: data, compressed=True)
    assert prnn.from_keras(packed).network == prnn.from_keras(saved).network


def test_a_file_of_keras_2_is_called_so(saved: Path, tmp_path: Path) -> None:
    old = b'{"keras_version": "2.15.0", "date_saved": "2023-11-29"}'
    path = rewritten(saved, tmp_path / "m.keras", lambda name, data: old if name == "metadata.json" else data)
    refused(path, r"Keras 2\.15\.0 wrote, which Keras 3 can't load: load it with")


def test_what_is_no_keras_file_is_called_so(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refused(path, "cut short or of another kind")
    for gone in ("config.json", "model.weights.h5"):
        with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                if name != gone:
                    new.writestr(name, old.read(name))
        refused(path, f"expected {gone} in the archive")
    refused(rewritten(saved, path, lambda name, data: data[:-9] if name.endswith("json") else data), "expected JSON")
    refused(rewritten(saved, path, lambda name, data: data[:-900] if name.endswith("h5") else data), "HDF5")
    refused(rewritten(saved, path, lambda name, data: b"[" * 10**5 if name == "config.json" else data), "JSON")


def layer(config: Any, k: int) -> Any:
    return config["config"]["layers"][k]["config"]


def test_layers_that_are_code_or_unknown_are_named(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"

    def renamed(kind: str, module: str | None = "keras.layers") -> Callable[[Any], None]:
        def change(config: Any) -> None:
            config["config"]["layers"][1] |= {"class_name": kind, "module": module}

        return change

    refused(described(saved, path, renamed("Lambda")), "Lambda 'embedding.*' holds code, which is never run")
    refused(described(saved, path, renamed("Conv1D")), "keras Conv1D 'embedding.*' can't be converted")
    refused(described(saved, path, renamed("Mine", None)), "Mine 'embedding.*' is a class of its author's own")
    refused(described(saved, path, renamed("system", "os")), "a class of its author's own")
    evil = {"module": "builtins", "class_name": "__lambda__", "config": {"value": "x"}}
    refused(described(saved, path, lambda c: layer(c, 1).update(x=evil)), "holds code")
    refused(described(saved, path, lambda c: layer(c, 1).update(name="\x1b[2J\n", input_dim=0)), "input_dim")


def test_declared_sizes_are_checked_before_anything_is_made(saved: Path, tmp_path: Path) -> None:
    """Each would take gigabytes or minutes if it were believed."""
    path = tmp_path / "m.keras"

    def unrolled(config: Any) -> None:
        config["config"]["layers"][4]["build_config"]["input_shape"] = [None, 10**6, 3]
        layer(config, 4)["unroll"] = True

    for change, message in (
        (lambda c: layer(c, 1).update(input_dim=10**9), "description of"),
        (lambda c: layer(c, 1).update(output_dim=10**400), "description of"),
        (lambda c: layer(c, 5).update(units=10**7), "description of"),
        (lambda c: layer(c, 5).update(units=-1), "positive units"),
        (lambda c: layer(c, 5).update(units="3"), "positive units"),
        (lambda c: layer(c, 4)["cell"]["config"].update(units=10**6), "description of"),
        (lambda c: layer(c, 2)["layer"]["config"].update(units=10**5), "description of"),
        (lambda c: c["config"]["layers"][5]["build_config"].update(input_shape=[None, 10**9]), "description of"),
        (unrolled, "unrolled"),
        (lambda c: c["config"]["layers"].extend(c["config"]["layers"][5:6] * 600), "at most 500 layers"),
    ):  # fmt: skip
        refused(described(saved, path, change), message)
    bomb = rewritten(saved, path, lambda name, data: data + bytes(2**26) * (name == "metadata.json"), compressed=True)
    refused(bomb, "unpacks to at most 4 times")


def test_arrays_that_are_not_in_the_file_are_refused(saved: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")

    def with_dataset(make: Callable[[Any], Any]) -> Path:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            make(file)
        data = buffer.getvalue()
        return rewritten(saved, tmp_path / "m.keras", lambda name, old: data if name.endswith("h5") else old)

    (tmp_path / "secret").write_bytes(bytes(80))
    outside = [(str(tmp_path / "secret"), 0, 80)]
    makes: list[tuple[Callable[[Any], Any], str]] = [
        (lambda f: f.create_dataset("a", (2**20, 2**20), "f4", chunks=(1, 64)), "at most 4 times"),
        (lambda f: f.create_dataset("a", (10,), "f8", external=outside), "something else"),
        (lambda f: f.create_dataset("a", (1,), h5py.special_dtype(vlen=str)), "something else"),
        (lambda f: f.__setitem__("a", h5py.ExternalLink("other.h5", "/x")), "a link elsewhere"),
        (lambda f: f.__setitem__("a", h5py.SoftLink("/b")), "a link elsewhere"),
    ]
    for make, message in makes:
        refused(with_dataset(make), message)
