"""Data and settings that a `Model` can't use: one line that says what was expected and what was received."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn

LENGTHS = [3, 0, 4, 1, 2]
RNG = np.random.default_rng(8)
X = RNG.standard_normal((5, 4, 2))
STEPS = RNG.standard_normal((5, 4, 1))
TOKENS = RNG.integers(0, 6, (5, 4))
CLASSES = RNG.integers(0, 3, (5, 4))
PER_STEP = prnn.Sequential(prnn.GRU(2, 3), prnn.Linear(3, 1))
LAST_STEP = prnn.Sequential(prnn.GRU(2, 3), prnn.Last(), prnn.Linear(3, 1))
TAGGER = prnn.Sequential(prnn.GRU(2, 3), prnn.Linear(3, 3))
CLASSIFIER = prnn.Sequential(prnn.GRU(2, 3), prnn.Last(), prnn.Linear(3, 3))
EMBEDDED = prnn.Sequential(prnn.Sequential(prnn.Embedding(6, 2), prnn.GRU(2, 3)), prnn.Linear(3, 1))


@dataclass
class Calls:
    """Calls of a model with NumPy arrays, placed on its library."""

    backend: Any
    model: prnn.Model

    def place(self, tree: Any) -> Any:
        return self.backend.array(tree)

    def fit(self, x: Any, y: Any, **settings: Any) -> Any:
        data = self.place((x, y))
        return self.model.fit(*data, **{"epochs": 1, "progress": False} | settings)

    def predict(self, x: Any, _: Any = None, **settings: Any) -> Any:
        return self.model.predict(self.place((x,))[0], **settings)

    def evaluate(self, x: Any, y: Any, **settings: Any) -> Any:
        return self.model.evaluate(*self.place((x, y)), **settings)

    def loss_and_grad(self, x: Any, y: Any, **settings: Any) -> Any:
        return self.model.loss_and_grad(*self.place((x, y)), **settings)

    def validate(self, x: Any, y: Any, **settings: Any) -> Any:
        """As validation data of a fit that is otherwise in order."""
        model = self.model
        good = {"y": np.zeros((5, 4, 1)) if model.network.keeps_time else np.zeros((5, 1))}
        if settings.get("loss") == "cross_entropy":
            good = {"y": CLASSES if model.network.keeps_time else CLASSES[:, 0]}
        extra = (settings.pop("lengths"),) if "lengths" in settings else ()
        inputs = TOKENS if model.network.takes_integers else X
        return self.fit(inputs, good["y"], validation_data=(*self.place((x, y)), *extra), **settings)


def calls(backend: Any, network: prnn.Layer = PER_STEP) -> Calls:
    return Calls(backend, prnn.Model(network, backend.target, dtype="float64"))


def refused(
    call: Callable[[], Any],
    *parts: str,
    model: prnn.Model | None = None,
    error: type[Exception] = prnn.InputError,
) -> None:
    """The call is an error in one line with all these parts, and leaves the model as it is."""
    before = None if model is None else (dict(model.params), model.loss)
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    if before is not None:
        assert all(model.params[name] is p for name, p in before[0].items())
        assert model.loss is before[1]


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


METHODS = ["fit", "predict", "evaluate", "loss_and_grad", "validate"]
WITH_TARGETS = ["fit", "evaluate", "loss_and_grad", "validate"]


# ---------------------------------------------------------------------- x


@pytest.mark.feeds_nan
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_nan_and_infinity_in_x(backend: Any, method: str, value: float) -> None:
    use = calls(backend)
    bad = changed(changed(X, (3, 1, 0), value), (4, 0, 1), value)
    run = getattr(use, method)
    expected = ("x holds 2 NaN or infinite values, the first at index (3, 1, 0)", "expected finite numbers")
    refused(lambda: run(bad, STEPS), *expected, model=use.model)
    refused(lambda: run(bad, STEPS, lengths=[4, 4, 4, 2, 4]), *expected)
    run(bad, STEPS, lengths=[4, 4, 4, 1, 0])  # both stand behind their row's end


@pytest.mark.feeds_nan
@pytest.mark.parametrize("method", METHODS)
def test_nan_in_a_list_of_sequences(backend: Any, method: str) -> None:
    use = calls(backend)
    bad = changed(X, (3, 1, 0), np.nan)
    rows = [row[:end] for row, end in zip(bad, [4, 1, 0, 2, 3], strict=True)]
    refused(lambda: getattr(use, method)(rows, STEPS), "x holds 1 NaN or infinite values", "(3, 1, 0)")
    rows[3] = rows[3][:1]
    getattr(use, method)(rows, STEPS)


@pytest.mark.parametrize("method", METHODS)
def test_shapes_of_x(backend: Any, method: str) -> None:
    use = calls(backend)
    run = getattr(use, method)
    for bad, received in (
        (X[0], "(4, 2)"),
        (X[0, 0], "(2,)"),
        (X[None], "(1, 5, 4, 2)"),
        (X[:0], "(0, 4, 2)"),
        (X[:, :0], "(5, 0, 2)"),
    ):
        refused(lambda bad=bad: run(bad, STEPS), "expect", received, model=use.model)
    refused(lambda: run(np.ones((5, 4, 3)), STEPS), "expects 2 features, got 3 (shape (5, 4, 3))", model=use.model)


@pytest.mark.parametrize("method", METHODS)
def test_kinds_of_x(backend: Any, method: str) -> None:
    use = calls(backend)
    run = getattr(use, method)
    for kind in ("int64", "bool"):
        refused(
            lambda kind=kind: run(X.astype(kind), STEPS), "expects floating x, got", kind, "dtype=", model=use.model
        )
    tokens = calls(backend, EMBEDDED)
    refused(lambda: getattr(tokens, method)(TOKENS.astype(float), STEPS), "expects integers, got float64")


@pytest.mark.parametrize("method", ["predict", "evaluate"])
def test_what_is_no_array(backend: Any, method: str) -> None:
    model = calls(backend).model
    targets = () if method == "predict" else backend.array((STEPS,))
    run = getattr(model, method)
    for bad, received in ((None, "object"), ("text", "<U4"), ([[["a", "b"]]], "<U1")):
        refused(lambda bad=bad: run(bad, *targets), "expected numbers, got an array of dtype", received)
    refused(lambda: run({"x": 1}, *targets), "expected an array or a list of sequences, got dict", "one of its values")
    refused(lambda: run([[[1.0, 2.0]], [[1.0, 2.0], [3.0]]], *targets), "x[1]: expected a rectangular nest", "list of")
    refused(lambda: run([], *targets), "expects x of shape (batch, time, features), got shape (0,)")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [6, -1, 99])
def test_integers_without_a_row_of_the_embedding(backend: Any, method: str, value: int) -> None:
    use = calls(backend, EMBEDDED)
    bad = changed(TOKENS, (2, 3), value)
    run = getattr(use, method)
    expected = f"Embedding expects integers from 0 to 5, got {value}"
    refused(lambda: run(bad, STEPS), expected, model=use.model)
    run(bad, STEPS, lengths=[4, 4, 3, 4, 4])


@pytest.mark.parametrize("method", METHODS)
def test_lists_whose_sequences_do_not_fit(backend: Any, method: str) -> None:
    use = calls(backend)
    run = getattr(use, method)
    refused(lambda: run([X[0], X[1, :, :1]], STEPS[:2]), "agree in all but their length", "(4, 2)", "(4, 1)")
    if method != "validate":
        refused(lambda: run([X[0], X[1]], STEPS[:2], lengths=[4, 4]), "x is a list of sequences", "leave lengths out")


# ---------------------------------------------------------------------- lengths and resets


@pytest.mark.parametrize("method", METHODS)
def test_lengths_that_do_not_fit(backend: Any, method: str) -> None:
    use = calls(backend)
    run = getattr(use, method)
    for bad, *parts in (
        ([4, 4, 4, 4, 5], "between 0 and 4", "got 5"),
        ([4, -1, 4, 4, 4], "between 0 and 4", "got -1"),
        ([4, 4], "one integer for each of the 5 rows", "(2,)"),
        ([[4], [4], [4], [4], [4]], "one integer for each of the 5 rows", "(5, 1)"),
        (4, "one integer for each of the 5 rows", "()"),
        ([4.0, 3.0, 2.0, 1.0, 0.0], "must be integers, got float64"),
        ([True] * 5, "must be integers, got bool"),
    ):
        refused(lambda bad=bad: run(X, STEPS, lengths=bad), *parts, model=use.model)


def test_lengths_without_a_time_axis(backend: Any) -> None:
    use = calls(backend, prnn.Linear(2, 3))
    for method in ("predict", "evaluate", "fit"):
        run = getattr(use, method)
        refused(lambda run=run: run(X[:, 0], STEPS[:, :3, 0], lengths=[1, 2, 2, 1, 2]), "need a time axis", "(5, 2)")


def test_resets_that_do_not_fit(backend: Any) -> None:
    use = calls(backend)
    for bad, received in ((np.zeros((5, 3), bool), "bool of shape (5, 3)"), (np.zeros((5, 4)), "float64 of shape")):
        (placed,) = backend.array((bad,))
        refused(
            lambda placed=placed: use.predict(X, resets=placed), "resets must be booleans of shape (5, 4)", received
        )


# ---------------------------------------------------------------------- y


@pytest.mark.feeds_nan
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", WITH_TARGETS)
def test_nan_and_infinity_in_y(backend: Any, method: str, value: float) -> None:
    use = calls(backend)
    bad = changed(STEPS, (3, 1, 0), value)
    run = getattr(use, method)
    expected = "y holds 1 NaN or infinite values, the first at index (3, 1, 0)"
    refused(lambda: run(X, bad), expected, model=use.model)
    refused(lambda: run(X, bad, lengths=[4, 4, 4, 2, 4]), expected)
    run(X, bad, lengths=[4, 4, 4, 1, 4])
    last = calls(backend, LAST_STEP)
    # without a time axis in the targets no length excuses one
    refused(lambda: getattr(last, method)(X, bad[:, 1], lengths=LENGTHS), "y holds 1 NaN", "(3, 0)")


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("method", WITH_TARGETS)
def test_shapes_of_y(backend: Any, method: str, lengths: Any) -> None:
    settings = {} if lengths is None else {"lengths": lengths}
    use = calls(backend)
    run = getattr(use, method)
    for bad, received in (
        (STEPS[:, 0], "(5, 1)"),
        (STEPS[:, 0, 0], "(5,)"),
        (STEPS[:, :3], "(5, 3, 1)"),
        (np.ones((5, 7, 1)), "(5, 7, 1)"),
        (np.ones((5, 4, 2)), "(5, 4, 2)"),
        (STEPS[None, :, :, 0].repeat(5, axis=0), "(5, 5, 4)"),
    ):
        refused(lambda bad=bad: run(X, bad, **settings), "must have the shape of the prediction", f"got {received}")
    for bad, received in ((STEPS[:4], "(4, 4, 1)"), (STEPS[0, 0, 0], "()")):
        refused(lambda bad=bad: run(X, bad, **settings), "y must have one entry for each of the 5 rows of x", received)
    last = calls(backend, LAST_STEP)
    refused(lambda: getattr(last, method)(X, STEPS, **settings), "shape of the prediction", "got (5, 4, 1)")


@pytest.mark.parametrize("method", ["fit", "evaluate", "loss_and_grad"])
def test_kinds_of_y(backend: Any, method: str) -> None:
    model = calls(backend).model
    (x,) = backend.array((X,))
    settings = {"epochs": 1, "progress": False} if method == "fit" else {}
    run = getattr(model, method)
    refused(lambda: run(x, None, **settings), "y must be the targets of the 5 rows of x, got None", model=model)
    refused(lambda: run(x, "text", **settings), "expected numbers, got an array of dtype <U4", model=model)
    if backend.entry.library == "numpy":
        for bad in (STEPS.astype("complex128"), STEPS.astype(str), STEPS.astype(object)):
            refused(lambda bad=bad: run(x, bad, **settings), "y must be real numbers, got", str(bad.dtype), model=model)


@pytest.mark.parametrize("value", [3, -1, -100])
@pytest.mark.parametrize("method", WITH_TARGETS)
def test_classes_out_of_range(backend: Any, method: str, value: int) -> None:
    use = calls(backend, TAGGER)
    run = getattr(use, method)
    bad = changed(CLASSES, (2, 3), value)
    expected = f"class targets must lie between 0 and 2 (the network has 3 outputs), got {value}"
    refused(lambda: run(X, bad, loss="cross_entropy"), expected, model=use.model)
    run(X, bad, loss="cross_entropy", lengths=[4, 4, 3, 4, 4])
    last = calls(backend, CLASSIFIER)
    refused(lambda: getattr(last, method)(X, bad[:, 3], loss="cross_entropy", lengths=LENGTHS), expected)


@pytest.mark.parametrize("method", ["fit", "evaluate", "loss_and_grad"])
def test_one_hot_integers_may_hold_anything_in_the_padding(backend: Any, method: str) -> None:
    use = calls(backend, TAGGER)
    one_hot = changed(np.eye(3, dtype="int64")[CLASSES], (2, 3), -100)
    refused(lambda: getattr(use, method)(X, one_hot, loss="cross_entropy"), "between 0 and 2", "got -100")
    getattr(use, method)(X, one_hot, loss="cross_entropy", lengths=[4, 4, 3, 4, 4])


@pytest.mark.parametrize("method", ["fit", "evaluate", "loss_and_grad"])
def test_classes_that_are_not_integers(backend: Any, method: str) -> None:
    use = calls(backend, CLASSIFIER)
    run = getattr(use, method)
    refused(lambda: run(X, CLASSES[:, 0].astype(float), loss="cross_entropy"), "must be integers, got float64")
    refused(lambda: run(X, CLASSES, loss="cross_entropy"), "(integer classes) or", "got (5, 4)")


# ---------------------------------------------------------------------- another library, device or dtype


def test_arrays_of_another_library(backend: Any) -> None:
    use = calls(backend)
    model = use.model
    strict = pytest.importorskip("array_api_strict")
    other = prnn.backend(strict if backend.entry.library == "numpy" else "numpy", dtype="float64")
    x, y = (prnn.asarray(a, other) for a in (X, STEPS))
    good_x, good_y = backend.array((X, STEPS))
    quiet = {"progress": False}
    parts = (f"is {other}", f"the model is {model.backend}", "move it with portable_rnn.asarray(")
    backend_error = {"error": prnn.BackendError, "model": model}
    refused(lambda: model.predict(x), *parts, "x is", **backend_error)
    refused(lambda: model.predict([good_x[0, ...], x[1, ...]]), *parts, "x[1] is", **backend_error)
    refused(lambda: model.fit(good_x, y, **quiet), *parts, "y is", **backend_error)
    refused(lambda: model.fit(x, good_y, **quiet), *parts, **backend_error)
    refused(lambda: model.fit(good_x, good_y, validation_data=(x, good_y), **quiet), *parts, **backend_error)
    refused(lambda: model.evaluate(good_x, y), *parts, **backend_error)
    refused(lambda: model.loss_and_grad(x, good_y), *parts, **backend_error)
    refused(lambda: model.step(x[:, 0, :]), *parts, "x_t is", **backend_error)
    _, state = model.step(good_x[:, 0, :])
    moved = (prnn.asarray(state[0], other), None)
    refused(lambda: model.step(good_x[:, 0, :], moved), *parts, "state[0] is", **backend_error)


def test_arrays_of_another_dtype(backend: Any) -> None:
    use = calls(backend)
    narrow = X.astype("float32")
    parts = ("x is", "float32", "but the model is", "float64")
    refused(lambda: use.predict(narrow), *parts, error=prnn.BackendError)
    refused(lambda: use.fit(narrow, STEPS), *parts, error=prnn.BackendError, model=use.model)
    refused(lambda: use.fit(X, STEPS.astype("float32")), "y is", "float32", error=prnn.BackendError)
    refused(lambda: use.model.step(*backend.array((narrow[:, 0],))), "x_t is", error=prnn.BackendError)
    refused(lambda: use.predict([X[0], narrow[1]]), "x[1] is", "float32", error=prnn.BackendError)


def test_arrays_on_another_device() -> None:
    strict = pytest.importorskip("array_api_strict")
    model = prnn.Model(PER_STEP, prnn.backend(strict, device="device1", dtype="float64"))
    x = strict.asarray(X)
    refused(lambda: model.predict(x), "x is array_api_strict float64 on", "device1", error=prnn.BackendError)
    refused(lambda: model.step(x[:, 0, :]), "x_t is array_api_strict", "device1", error=prnn.BackendError)


def test_nested_lists_are_taken_as_they_are(backend: Any) -> None:
    """The one conversion that is made unasked: what is no array yet has no library."""
    use = calls(backend)
    np.testing.assert_array_equal(backend.numpy(use.model.predict(X.tolist())), backend.numpy(use.predict(X)))
    assert use.model.evaluate(X.tolist(), STEPS.tolist()) == use.evaluate(X, STEPS)


# ---------------------------------------------------------------------- steps


@pytest.mark.feeds_nan
def test_steps_that_do_not_fit(backend: Any) -> None:
    model = calls(backend).model
    for bad, *parts in (
        (X, "x_t must be one time step of shape (batch, features)", "(5, 4, 2)"),
        (X[0, 0], "x_t must be one time step", "(2,)"),
        (X[0, 0, 0], "x_t must be one time step", "()"),
        (STEPS[:, 0], "expects 2 features, got 1"),
        (X[:0, 0], "at least one row", "(0, 1, 2)"),
        (X[:, 0].astype("int64"), "expects floating x, got int64"),
        (changed(X[:, 0], (2, 1), np.nan), "x_t holds 1 NaN or infinite values, the first at index (2, 1)"),
        (changed(X[:, 0], (2, 1), np.inf), "x_t holds 1 NaN or infinite values"),
    ):
        (placed,) = backend.array((bad,))
        refused(lambda placed=placed: model.step(placed), *parts)
    tokens = calls(backend, EMBEDDED).model
    for bad, *parts in (
        (TOKENS, "x_t must be one time step", "(batch,) integers", "(5, 4)"),
        (TOKENS[:, 0].astype(float), "expects integers, got float64"),
        (changed(TOKENS[:, 0], 3, 6), "Embedding expects integers from 0 to 5, got 6"),
    ):
        (placed,) = backend.array((bad,))
        refused(lambda placed=placed: tokens.step(placed), *parts)


def test_states_that_do_not_fit(backend: Any) -> None:
    model = calls(backend).model
    (x_t, few, wide) = backend.array((X[:, 0], np.zeros((1, 4, 3)), np.zeros((1, 5, 4))))
    for bad, *parts in (
        ((few, None), "state of GRU must be an array (1, 5, 3)", "(1, 4, 3)"),
        ((wide, None), "state of GRU must be an array (1, 5, 3)", "(1, 5, 4)"),
        (((few, few), None), "state of GRU must be an array (1, 5, 3)"),
        (few, "one element for each of its 2 layers"),
        ((few,), "one element for each of its 2 layers", "1 element"),
        ((None, few), "Linear has no state"),
    ):
        refused(lambda bad=bad: model.step(x_t, bad), *parts)


# ---------------------------------------------------------------------- settings

SETTINGS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"epochs": 0}, ("epochs: expected an integer of at least 1, got 0",)),
    ({"epochs": -3}, ("epochs: expected an integer of at least 1, got -3",)),
    ({"epochs": 2.0}, ("epochs: expected an integer of at least 1, got 2.0",)),
    ({"epochs": True}, ("epochs: expected an integer of at least 1, got True",)),
    ({"batch_size": 0}, ("batch_size: expected an integer of at least 1, got 0",)),
    ({"batch_size": -1}, ("batch_size: expected an integer of at least 1, got -1",)),
    ({"batch_size": "32"}, ("batch_size: expected an integer of at least 1, got '32'",)),
    ({"batch_size": None}, ("batch_size: expected an integer of at least 1, got None",)),
    ({"clip_norm": 0}, ("clip_norm: expected a finite number above 0, or None, got 0",)),
    ({"clip_norm": -1.0}, ("clip_norm: expected a finite number above 0, or None, got -1.0",)),
    ({"clip_norm": float("nan")}, ("clip_norm: expected a finite number above 0, or None, got nan",)),
    ({"clip_norm": float("inf")}, ("clip_norm: expected a finite number above 0, or None, got inf",)),
    ({"clip_norm": "1"}, ("clip_norm: expected a finite number above 0, or None, got '1'",)),
    ({"optimizer": "lion"}, ("unknown optimizer 'lion': expected one of sgd, rmsprop, adam, adamw",)),
    ({"optimizer": 0.1}, ("optimizer must be a name or have init and update", "got float")),
    ({"optimizer": prnn.adam}, ("optimizer must be a name or have init and update", "prnn.adam(1e-3)")),
    ({"loss": "l2"}, ("unknown loss 'l2': expected one of mse, mae, huber",)),
    ({"loss": None}, ("unknown loss None: expected one of mse",)),
    ({"seed": -1}, ("seed must be a non-negative integer", "got -1")),
    ({"seed": "1"}, ("seed must be a non-negative integer", "got '1'")),
    ({"callbacks": prnn.EarlyStopping()}, ("callbacks must be a sequence of functions", "got EarlyStopping")),
    ({"callbacks": [None]}, ("callbacks must be a sequence of functions",)),
    ({"callbacks": "stop"}, ("callbacks must be a sequence of functions", "got str")),
    ({"validation_data": X}, ("validation_data must be (x, y) or (x, y, lengths)",)),
    ({"validation_data": (X,)}, ("validation_data must be (x, y) or (x, y, lengths)",)),
    ({"validation_data": 0.2}, ("validation_data must be (x, y) or (x, y, lengths)",)),
    ({"tbptt": 0}, ("tbptt: expected an integer of at least 1, or None, got", "got 0")),
    ({"tbptt": 1.5}, ("tbptt: expected an integer of at least 1, or None, got", "got 1.5")),
    ({"stateful": True}, ("stateful=True", "shuffle=False")),
    ({"stateful": True, "shuffle": False, "batch_size": 2}, ("batches of equal size", "5 rows in batches of 2")),
    ({"memory_limit": "lots"}, ("'512MB'", "got 'lots'")),
    ({"memory_limit": -1}, ("positive number of bytes", "got -1")),
]


def _test_id(value: Any) -> str:
    """The settings without addresses, which differ from process to process."""
    return str(value).partition(" at 0x")[0][:40] if isinstance(value, dict) else ""


@pytest.mark.parametrize(("settings", "parts"), SETTINGS, ids=_test_id)
def test_settings_of_fit(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    model = prnn.Model(PER_STEP, dtype="float64")
    refused(lambda: model.fit(X, STEPS, progress=False, **settings), *parts, model=model)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8", True])
def test_batch_sizes(batch_size: Any) -> None:
    model = prnn.Model(PER_STEP, dtype="float64")
    expected = ("batch_size: expected an integer of at least 1", f"got {batch_size!r}")
    refused(lambda: model.predict(X, batch_size=batch_size), *expected)
    refused(lambda: model.evaluate(X, STEPS, batch_size=batch_size), *expected)


def test_losses_by_another_name() -> None:
    model = prnn.Model(PER_STEP, dtype="float64")
    refused(lambda: model.evaluate(X, STEPS, loss="l2"), "unknown loss 'l2'")
    refused(lambda: model.loss_and_grad(X, STEPS, loss="l2"), "unknown loss 'l2'")


def test_a_network_without_parameters_has_nothing_to_train() -> None:
    model = prnn.Model(prnn.Last(), dtype="float64")
    refused(lambda: model.fit(X, X[:, -1], progress=False), "Last() has no parameters to train")
    assert model.evaluate(X, X[:, -1]) == 0
    assert model.loss_and_grad(X, X[:, -1])[1] == {}


def test_seeds_of_a_model() -> None:
    for seed in (-1, 1.5, "0", None, True):
        refused(lambda seed=seed: prnn.Model(PER_STEP, seed=seed), "seed must be a non-negative integer", repr(seed))


def test_a_refused_fit_changes_nothing(backend: Any) -> None:
    use = calls(backend)
    use.fit(X, STEPS, loss="mae")
    weights = {k: p.copy() for k, p in backend.numpy(use.model.params).items()}
    for bad in ({"epochs": 0}, {"clip_norm": -1}, {"optimizer": "lion"}, {"seed": -1}):
        refused(lambda bad=bad: use.fit(X, STEPS, loss="huber", **bad), model=use.model)
    refused(lambda: use.fit(X, STEPS[:, :3], loss="huber"))
    assert use.model.loss is prnn.losses.mae
    np.testing.assert_equal(backend.numpy(use.model.params), weights)
