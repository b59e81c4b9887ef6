"""`verify` passes what is right and names what is wrong: faults planted one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn import cells, cli, layers, models
from portable_rnn.arrays import library_name
from portable_rnn.execution.libraries import on_processor
from portable_rnn.layers.time import stack
from portable_rnn.training import loop, losses, optimizers
from portable_rnn.verify import Report, checks

DENSE = prnn.Sequential(prnn.LSTM(3, 4), prnn.Linear(4, 2))
GATED = prnn.Sequential(prnn.GRU(3, 4, bidirectional=True), prnn.Linear(8, 2))
POOLED = prnn.Sequential(prnn.Embedding(7, 3), prnn.GRU(3, 4, 2), prnn.Mean(), prnn.Dropout(0.2), prnn.Linear(4, 2))
Patch = pytest.MonkeyPatch


def verified(network: prnn.Layer, **options: Any) -> Report:
    """The report of a model on NumPy."""
    return prnn.verify(prnn.Model(network, seed=1), **{"backends": "numpy", **options})


NETWORKS = {
    "dense": DENSE,
    "gated": GATED,
    "pooled": POOLED,
    "rows": prnn.Linear(3, 2),
    "projected": prnn.LSTM(2, 4, proj_size=3, peepholes=True, zoneout=0.2),
    "normalised": prnn.Sequential(prnn.LayerNormGRU(2, 3), prnn.Last()),
    "minimal": prnn.MinLSTM(2, 3, positive=True),
    "masked": prnn.Sequential(layers.Masked(prnn.LSTM(2, 3), value=0.0), prnn.Max()),
    "own cell": prnn.Recurrent(cells.ElmanCell("relu"), 2, 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_model_passes(name: str) -> None:
    report = verified(NETWORKS[name])
    assert report.passed, str(report)
    assert sum(check.status == "passed" for check in report.checks) >= 20


def test_a_right_model_passes_on_every_library(backend: Any) -> None:
    report = verified(DENSE, backends=backend.target, dtypes=("float32",))
    assert report.passed, str(report)
    assert sum(check.backend == backend.target.name and check.status == "passed" for check in report.checks) >= 14


def test_a_report_says_everything() -> None:
    report = verified(DENSE, dtypes=("float32",))
    assert report
    content = json.loads(report.to_json())
    assert content["passed"] is True
    assert len(content["checks"]) == len(report.checks) == len(list(report))
    assert {check["dtype"] for check in content["checks"]} == {"float32", "float64"}
    assert "all" in str(report)
    assert "checks passed" in str(report)
    assert "<table>" in report._repr_html_()
    assert content["versions"]["numpy"] == np.__version__


def test_the_model_is_not_changed() -> None:
    model = prnn.Model(DENSE, seed=1)
    before = {name: p.copy() for name, p in model.params.items()}
    prnn.verify(model, backends="numpy", dtypes=("float32",))
    assert all(np.array_equal(before[name], p) for name, p in model.params.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": DENSE}, "model: expected a portable_rnn.Model, got Sequential"),
        ({"dtypes": ("float16",)}, "dtypes: expected some of float32, float64"),
        ({"dtypes": "float32"}, "dtypes: expected some of"),
        ({"backends": "fortran"}, "unknown backend 'fortran'"),
    ],
)
def test_what_cannot_be_verified(arguments: dict[str, Any], message: str) -> None:
    arguments = {"model": prnn.Model(DENSE), "backends": "numpy"} | arguments
    with pytest.raises(prnn.InputError, match=message):
        prnn.verify(**arguments)


# ---------------------------------------------------------------------- planted faults


def changed(patch: Patch, owner: Any, name: str, change: Callable[[Any], Any]) -> None:
    """`owner.name` replaced by a function whose result went through `change`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: change(original(*args, **kwargs)))


def swap_gates(a: int, b: int, count: int) -> Callable[[Patch], None]:
    """A layer reads the rows of two gates from each other's place."""

    def exchanged(p: Any) -> Any:
        parts = np.split(p, count, axis=0)
        parts[a], parts[b] = parts[b], parts[a]
        return np.concatenate(parts, axis=0)

    return lambda patch: changed(patch, stack, "one_direction", lambda p: {k: exchanged(v) for k, v in p.items()})


def lstm_backward_without_dc(patch: Patch) -> None:
    original = cells.LSTMCell.step_backward

    def wrong(self: Any, xp: Any, w: Any, residual: Any, dstate: Any, drop: Any) -> Any:
        dh, dc = dstate
        return original(self, xp, w, residual, (dh, dc * 0), drop)

    patch.setattr(cells.LSTMCell, "step_backward", wrong)


def one_step_too_many(patch: Patch) -> None:
    original = layers.base.valid_steps
    for module in (layers.base, stack, layers.pooling):
        patch.setattr(module, "valid_steps", lambda xp, lengths, steps, like: original(xp, lengths + 1, steps, like))


def mean_over_padding(patch: Patch) -> None:
    def wrong(self: Any, params: Any, x: Any, state: Any, marks: Any, masks: Any) -> Any:
        return original(self, params, x, state, prnn.arrays.Marks(), masks)

    original = prnn.Mean.forward
    patch.setattr(prnn.Mean, "forward", wrong)


def state_forgotten(patch: Patch) -> None:
    original = layers.recurrent.stack_forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        y, state, residuals = original(*args, **kwargs)
        return y, prnn.arrays.map_leaves(lambda part: part * 0, state), residuals

    patch.setattr(layers.recurrent, "stack_forward", wrong)


def stream_forgets(patch: Patch) -> None:
    def step(self: Any, x_t: Any) -> Any:
        y = original(self, x_t)
        self.reset()
        return y

    original = prnn.Stream.step
    patch.setattr(prnn.Stream, "step", step)


def wide_weights(patch: Patch) -> None:
    def widened(found: Any) -> Any:
        params, state = found
        return {name: p.astype("float64") for name, p in params.items()}, state

    changed(patch, optimizers.Sgd, "update", widened)
    patch.setattr(loop, "as_before", lambda new, before: new)


def stale_residuals(patch: Patch) -> None:
    """All pullbacks answer for the last call."""
    kept: dict[str, Any] = {}
    original = prnn.Linear.forward

    def forward(self: Any, *args: Any) -> Any:
        y, state, kept["residuals"] = original(self, *args)
        return y, state, None

    backward = prnn.Linear.backward
    patch.setattr(prnn.Linear, "forward", forward)
    patch.setattr(prnn.Linear, "backward", lambda self, p, _, dy, ds: backward(self, p, kept["residuals"], dy, ds))


def written_input(patch: Patch) -> None:
    original = prnn.LSTM.forward

    def forward(self: Any, params: Any, x: Any, *args: Any) -> Any:
        y, state, residuals = original(self, params, x, *args)
        x[...] *= 1.5
        return y, state, residuals

    patch.setattr(prnn.LSTM, "forward", forward)


def linear_that_adds(size: float, where: Callable[[Any], bool]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        original = prnn.Linear.forward

        def forward(self: Any, params: Any, x: Any, *args: Any) -> Any:
            y, state, residuals = original(self, params, x, *args)
            return y + size if where(x) else y, state, residuals

        patch.setattr(prnn.Linear, "forward", forward)

    return plant


def rounded_file(patch: Patch) -> None:
    original = models.model.write_checkpoint

    def write(path: Any, network: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        rough = {name: p.astype("float16").astype(p.dtype) for name, p in params.items()}
        original(path, network, rough, *args, **kwargs)

    patch.setattr(models.model, "write_checkpoint", write)


def loss_with(value: float, gradient: float) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        def wrong(prediction: Any, target: Any, lengths: Any = None) -> Any:
            found, slope = original(prediction, target, lengths)
            return found * value, slope * gradient

        original = losses.mse
        patch.setitem(losses._LOSSES, "mse", wrong)

    return plant


def resets_ignored(patch: Patch) -> None:
    original = stack._span
    patch.setattr(stack, "_span", lambda xp, x, marks, reverse: original(xp, x, marks._replace(resets=None), reverse))


def wide_outputs(patch: Patch) -> None:
    changed(patch, prnn.Linear, "forward", lambda found: (found[0].astype("float64"), *found[1:]))


def drawn_anew(patch: Patch) -> None:
    generator = np.random.default_rng(0)

    def draw(self: Any, rng: Any) -> Any:
        return {name: generator.random(shape) for name, shape in self.parameter_shapes().items()}

    patch.setattr(prnn.Linear, "draw", draw)


def only(**values: Any) -> Callable[[Any], Any]:
    return lambda found: found | {key: found[key] * value for key, value in values.items()}


# A step is traced once for its cell and shapes, so a fault in a cell gets a layer of its own size.
# name: (how it is planted, the network, the check that fails, what it says)
FAULTS: dict[str, tuple[Callable[[Patch], None], prnn.Layer, str, str]] = {
    "LSTM: gates swapped": (swap_gates(0, 1, 4), DENSE, "outputs equal the textbook", "gates i and f were swapped"),
    "GRU: gates swapped": (swap_gates(0, 1, 3), GATED, "outputs equal the textbook", "gates r and u were swapped"),
    "one bias of two": (
        lambda patch: patch.setattr(cells.lstm, "summed_bias", lambda p: {"b": p["bias_ih"][:, None]}),
        DENSE,
        "outputs equal the textbook",
        "bias_hh were left out",
    ),
    "one bias twice": (
        lambda patch: patch.setattr(cells.lstm, "summed_bias", lambda p: {"b": 2 * p["bias_ih"][:, None]}),
        DENSE,
        "outputs equal the textbook",
        "bias_ih were taken for both biases",
    ),
    "LSTM: no cotangent of c": (
        lstm_backward_without_dc,
        prnn.LSTM(3, 6),
        "gradients equal finite differences",
        "(gate",
    ),
    "GRU: a bias without gradient": (
        lambda patch: changed(patch, cells.GRUCell, "parameter_gradients", only(bias_hh=0)),
        prnn.GRU(3, 6),
        "gradients equal finite differences",
        "bias_hh_l0",
    ),
    "Linear: half a gradient": (
        lambda patch: changed(patch, prnn.Linear, "backward", lambda found: (found[0], found[1] / 2, None)),
        DENSE,
        "gradients equal finite differences",
        "weight_ih_l0",
    ),
    "lengths: one step too many": (one_step_too_many, DENSE, "ragged equals padded", "of row"),
    "Mean: padding counted": (mean_over_padding, POOLED, "ragged equals padded", "of row"),
    "final state forgotten": (state_forgotten, DENSE, "chunks equal the whole", "in two pieces"),
    "stream: state not carried": (stream_forgets, DENSE, "stream equals predict", "y of Stream"),
    "resets ignored": (resets_ignored, DENSE, "resets start anew", "y with a reset"),
    "optimizer: float64": (wide_weights, DENSE, "library, device and dtype kept", "weights after training"),
    "outputs: float64": (wide_outputs, DENSE, "library, device and dtype kept", "y: ndarray float64"),
    "stale residuals": (stale_residuals, DENSE, "a pullback keeps its own call", "gradients after another call"),
    "input written to": (written_input, DENSE, "arguments stay as they are", "(params, x, dy)[1]"),
    "file: rounded": (rounded_file, DENSE, "saved equals loaded", "(params, y) of the loaded model[0]"),
    "loss: half its gradient": (loss_with(1, 0.5), DENSE, "an update follows the gradient", "the weights"),
    "loss: a sum": (loss_with(64, 1), DENSE, "an update follows the gradient", "history.loss"),
    "weights: another seed": (drawn_anew, DENSE, "same seed, same weights", "initial weights"),
    "compiled: another result": (
        linear_that_adds(1e-3, lambda x: os.environ.get("PORTABLE_RNN_COMPILE") == "1"),
        DENSE,
        "compiled equals plain",
        "compiled[0]",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name: str, monkeypatch: Patch) -> None:
    plant, network, check, text = FAULTS[name]
    model = prnn.Model(network, seed=1)
    plant(monkeypatch)
    report = prnn.verify(model, backends="numpy")
    assert not report.passed
    named = {failure.name: failure.detail for failure in report.failures}
    assert check in named, str(report)
    assert text in named[check], str(report)


def test_a_library_that_computes_something_else(monkeypatch: Patch) -> None:
    linear_that_adds(1e-3, lambda x: library_name(prnn.arrays.namespace_of(x)) == "array_api_strict")(monkeypatch)
    report = prnn.verify(prnn.Model(DENSE, seed=1), backends=["numpy", array_api_strict])
    assert {(c.name, c.backend) for c in report.failures} >= {("outputs equal NumPy's", "array_api_strict")}
    assert not [c for c in report.failures if c.backend == "numpy"]


def test_an_array_on_another_device(monkeypatch: Patch) -> None:
    target = prnn.backend(array_api_strict, device="device1")
    assert prnn.verify(prnn.Model(DENSE, seed=1), backends=target, dtypes=("float64",)).passed
    monkeypatch.setattr(stack, "zeros_beside", lambda x, shape: array_api_strict.zeros(shape, dtype=x.dtype))
    report = prnn.verify(prnn.Model(DENSE, seed=1), backends=target, dtypes=("float64",))
    assert not report.passed
    assert "device" in report.failures[-1].detail


def test_a_transfer_in_a_step(monkeypatch: Patch) -> None:
    pytest.importorskip("jax")
    original = prnn.Linear.forward

    def forward(self: Any, params: Any, x: Any, *args: Any) -> Any:
        y, state, residuals = original(self, params, x, *args)
        return y * np.asarray(x).size, state, residuals  # a traced array has no numbers to look at

    monkeypatch.setattr(prnn.Linear, "forward", forward)
    report = prnn.verify(prnn.Model(prnn.Linear(3, 2), seed=1), backends="jax", dtypes=("float32",))
    assert "no transfers in a step" in {failure.name for failure in report.failures}


def test_compiled_loops_run_where_they_are_compared(monkeypatch: Patch) -> None:
    pytest.importorskip("llvmlite")
    ran: list[bool] = []
    original = on_processor.compiled_scan

    def noted(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        ran.append(found is not None)
        if found is None:
            return None
        final, outputs, sums = found
        return prnn.arrays.map_leaves(lambda a: a * 1.001, final), outputs, sums

    monkeypatch.setattr(on_processor, "compiled_scan", noted)
    report = prnn.verify(prnn.Model(DENSE, seed=1), backends="numpy", dtypes=("float64",))
    assert any(ran)
    assert "compiled equals plain" in {failure.name for failure in report.failures}


def test_every_check_is_needed_by_a_fault() -> None:
    named = {check for _, _, check, _ in FAULTS.values()}
    others = {"outputs equal NumPy's", "gradients equal NumPy's", "no transfers in a step"}
    assert named | others == {*checks.CHECKS, *checks.ONCE}


# ---------------------------------------------------------------------- on the command line


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    prnn.Model(DENSE, seed=1).save(path)
    argv = ["verify", str(path), "--backend", "numpy", "--dtype", "float32"]
    assert cli.main(argv) == 0
    table = capsys.readouterr().out
    assert "gradients equal finite differences" in table
    assert "checks passed" in table
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_the_command_fails_with_the_model(tmp_path: Path, capsys: Any, monkeypatch: Patch) -> None:
    path = tmp_path / "m.safetensors"
    prnn.Model(DENSE, seed=1).save(path)
    linear_that_adds(1e-3, lambda x: True)(monkeypatch)
    assert cli.main(["verify", str(path), "--backend", "numpy"]) == 1
    assert "outputs equal the textbook (numpy float32): FAILED" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "none.onnx")]) == 2
    assert "no file at" in capsys.readouterr().err
