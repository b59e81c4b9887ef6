"""The command line: what it prints, what it writes, and one line for whatever is wrong."""

from __future__ import annotations

import csv
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn import cli, files
from portable_rnn.cli import results
from portable_rnn.data import read_csv
from portable_rnn.forecasting import demo, load_forecaster

QUICK = ["--hidden-size", "4", "--epochs", "1", "--window", "25", "--horizon", "3"]
ROWS = 200


def write_csv(path: Path, columns: dict[str, Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def columns(rows: int = ROWS) -> dict[str, Any]:
    """Hours, a season of 24 of them, another column."""
    rng = np.random.default_rng(0)
    hours = np.datetime64("2022-03-01T00", "h") + np.arange(rows)
    load = 50 + 10 * np.sin(2 * np.pi * np.arange(rows) / 24) + rng.normal(0, 1, rows)
    return {"when": hours.astype(str), "load": load.round(3), "wind": rng.random(rows).round(3)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a table in it."""
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "power.csv", columns())
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file."""
    here = tmp_path_factory.mktemp("trained")
    path = write_csv(here / "power.csv", columns())
    model = here / "m.safetensors"
    options = ["--save", str(model), "--plot", str(here / "p.png"), "--quiet"]
    assert cli.main(["train", str(path), "--target", "load", *QUICK, *options]) == 0
    return model


def test_the_file_has_the_dtype_that_is_printed(trained: Path) -> None:
    """Training takes a learning-rate schedule."""
    assert {p.dtype.name for p in prnn.load(trained).params.values()} == {"float32"}


def error_line(capsys: pytest.CaptureFixture[str], code: int, expected_code: int = 2) -> str:
    """The one line on stderr; nothing else may be there."""
    assert code == expected_code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("portable-rnn: ")
    return lines[0].removeprefix("portable-rnn: ")


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


# ---------------------------------------------------------------------- train


def test_train_prints_errors_beside_baselines_and_writes_both_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "power.csv", "--target", "load", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "2022-03-01T00:00 to 2022-03-09T07:00, one hour apart" in out
    assert "In: load, wind over 25 rows. Out: load over 3." in out
    assert "numpy float32 on cpu" in out
    table = {line[:21].strip(): line[21:].split() for line in out.splitlines()}
    for name in ("network (GRU)", "same hour yesterday", "last value"):
        assert all(float(number) > 0 for number in table[name])
        assert len(table[name]) == 2
    assert "The network beats 'last value' by" in out or "The network does NOT beat 'last value'" in out
    assert out.splitlines()[-2:] == ["Model: power-forecast.safetensors", "Picture: power-forecast.png"]
    assert (folder / "power-forecast.png").read_bytes()[:4] == b"\x89PNG"
    assert load_forecaster(folder / "power-forecast.safetensors").recipe.target == "load"
    assert "step/s" in err
    assert "loss" in err


def test_quiet_prints_the_errors_and_the_files_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "power.csv", "--target", "load", *QUICK, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0].startswith("error on 38 test forecasts")
    assert "Data:" not in out


def test_every_option_arrives(folder: Path) -> None:
    options = "--inputs wind --time when --cell lstm --hidden-size 3 --layers 2 --window 30 --horizon 2 --epochs 1"
    more = "--batch-size 50 --learning-rate 0.001 --test-fraction 0.3 --period 12 --seed 5 --dtype float64 --quiet"
    files = ["--save", "a.safetensors", "--plot", "b.svg", "--backend", "numpy", "--device", "cpu"]
    assert cli.main(["train", "power.csv", "--target", "load", *options.split(), *more.split(), *files]) == 0
    forecaster = load_forecaster(folder / "a.safetensors")
    recipe, network = forecaster.recipe, forecaster.model.network
    assert (recipe.window, recipe.horizon, recipe.period, recipe.time) == (30, 2, 12, "when")
    assert recipe.inputs == ("load", "wind")
    assert recipe.seasonal == "12 rows earlier"
    assert network.layers[0] == prnn.LSTM(3, 3, 2)
    assert forecaster.model.backend.dtype_name == "float64"
    assert (folder / "b.svg").exists()


def test_same_seed_same_model(folder: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        options = ["--save", f"{name}.safetensors", "--seed", seed, "--quiet"]
        assert cli.main(["train", "power.csv", "--target", "load", *QUICK, *options]) == 0
    a, b, c = (prnn.load(folder / f"{name}.safetensors") for name in "abc")
    assert a.metadata == b.metadata
    assert all((a.params[name] == b.params[name]).all() for name in a.params)
    assert any((a.params[name] != c.params[name]).any() for name in a.params)


def test_a_network_that_loses_is_called_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = columns() | {"load": 50 + 10 * np.sin(2 * np.pi * (np.arange(ROWS) % 24) / 24)}
    write_csv(folder / "exact.csv", exact)
    assert cli.main(["train", "exact.csv", "--target", "load", *QUICK, "--quiet"]) == 0
    assert "does NOT beat 'same hour yesterday'" in capsys.readouterr().out
    assert results.verdict(3.0, 2.0, "'x'") == "does NOT beat 'x': its MAE is 50 % higher."
    assert results.verdict(1.0, 2.0, "'x'") == "beats 'x' by 50 % (MAE)."


# ---------------------------------------------------------------------- predict


def test_predictions_are_the_models(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(trained), "power.csv"]) == 0
    printed = rows_of(capsys.readouterr().out)
    assert [row["step"] for row in printed] == ["1", "2", "3"]
    assert [row["time"] for row in printed] == ["2022-03-09T08:00", "2022-03-09T09:00", "2022-03-09T10:00"]
    forecaster = load_forecaster(trained)
    recipe = forecaster.recipe
    window = read_csv("power.csv", target="load", inputs=recipe.inputs).values[None, -25:]
    departure = prnn.load(trained).predict(recipe.features(window).astype(np.float32)) * recipe.departure
    expected = recipe.baselines(recipe.past(window))[recipe.reference] + departure
    np.testing.assert_allclose([float(row["forecast"]) for row in printed], expected[0], rtol=1e-6)


def test_output_file_has_what_stdout_has(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(trained), "power.csv"]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["predict", str(trained), "power.csv", "--output", "out.csv"]) == 0
    assert capsys.readouterr().out == ""
    assert (folder / "out.csv").read_text(encoding="utf-8") == printed


def test_all_windows(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(trained), "power.csv", "--all"]) == 0
    printed = rows_of(capsys.readouterr().out)
    assert len(printed) == (ROWS - 24) * 3
    assert printed[0] == printed[0] | {"after_row": "25", "step": "1", "time": "2022-03-02T01:00"}
    assert cli.main(["predict", str(trained), "power.csv"]) == 0
    last = rows_of(capsys.readouterr().out)
    for row, single in zip(printed[-3:], last, strict=True):
        assert row["after_row"] == str(ROWS)
        assert float(row["forecast"]) == pytest.approx(float(single["forecast"]), rel=1e-6)


def test_exactly_one_window_without_times_is_enough(
    trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = columns(25)
    del data["when"]
    write_csv(folder / "short.csv", {"wind": data["wind"], "unused": data["wind"], "load": data["load"]})
    assert cli.main(["predict", str(trained), "short.csv"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "step,forecast"
    assert len(rows_of(out)) == 3


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_another_library_predicts_the_same(
    name: str, trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        prnn.backend(name)
    except prnn.BackendError as error:
        pytest.skip(str(error))
    found = []
    for backend in ("numpy", name):
        assert cli.main(["predict", str(trained), "power.csv", "--backend", backend]) == 0
        found.append([float(row["forecast"]) for row in rows_of(capsys.readouterr().out)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


# ---------------------------------------------------------------------- demo


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.demo, "demo", functools.partial(demo, epochs=1))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--seed", "2"]) == 0
    out, err = capsys.readouterr()
    assert "climate normals" in out
    assert "not measured weather" in out
    assert "MAE (°F)  RMSE (°F)" in out
    assert "beats 'same hour yesterday' by" in out
    assert "beats 'last value' by" in out
    assert "A rule without learning" in out
    assert "has MAE 0.0527" in out
    assert "step/s" in err
    model, picture = tmp_path / "seattle-temps-forecast.safetensors", tmp_path / "seattle-temps-forecast.png"
    assert f"Model: {model.name}" in out
    assert f"Picture: {picture.name}" in out
    assert load_forecaster(model).recipe.unit == "°F"
    assert picture.read_bytes()[:4] == b"\x89PNG"


# ---------------------------------------------------------------------- backends


def test_backends_lists_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["backends"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines()[1:6]}
    assert list(lines) == ["numpy", "jax", "cupy", "torch", "dpnp"]
    assert lines["numpy"][1:] == [np.__version__, "yes", "cpu"]
    assert "Without --backend: numpy" in out


def test_backends_says_why_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        prnn.BackendInfo("cupy", "14.0", False, (), "no CUDA driver; `portable-rnn backends` lists the devices"),
        prnn.BackendInfo("dpnp", None, False, (), "not installed: pip install 'portable-rnn[dpnp]'"),
    ]
    monkeypatch.setattr(cli.backends, "backends", lambda: found)
    monkeypatch.setenv("PORTABLE_RNN_BACKEND", "jax")
    assert cli.main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["cupy     14.0     no    -", "dpnp     -        no    -"]
    assert lines[3] == ("cupy: installed, but its arithmetic can't run here and has not been run here (no CUDA driver)")
    assert lines[4] == "dpnp: not installed: pip install 'portable-rnn[dpnp]'"
    assert lines[5] == "Without --backend: jax (from $PORTABLE_RNN_BACKEND)"
    assert cli.main(["backends", "--backend", "dpnp"]) == 0
    assert "cupy" not in capsys.readouterr().out


# ---------------------------------------------------------------------- bad input


def no_training(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("this must fail before training")


TRAIN = ["train", "power.csv", "--target", "load"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "power.csv"], "--target"),
        ([*TRAIN, "--hidden-size", "0"], "expected a whole number of at least 1, received '0'"),
        ([*TRAIN, "--learning-rate", "nan"], "expected a positive number, received 'nan'"),
        ([*TRAIN, "--test-fraction", "1"], "expected a number between 0 and 1, received '1'"),
        ([*TRAIN, "--cell", "tcn"], "invalid choice: 'tcn'"),
        ([*TRAIN, "--backend", "tensorflow"], "unknown backend 'tensorflow': expected one of numpy, jax"),
        ([*TRAIN, "--device", "abacus"], "can't use device 'abacus'"),
        (["train", "nowhere.csv", "--target", "load"], "does not exist"),
        (["train", "power.csv", "--target", "lod"], "did you mean 'load'?"),
        ([*TRAIN, "--inputs", "wind,rain"], "received 'rain'"),
        ([*TRAIN, "--time", "wind"], "expected an ISO 8601 time"),
        (["train", "text.csv", "--target", "load"], "received the text 'calm' in row 2 (line 3)"),
        ([*TRAIN, "--window", "500"], "200 rows: expected at least 506 of them for training"),
        ([*TRAIN, "--period", "30", "--window", "29"], "use a window of 31 or more"),
        ([*TRAIN, "--save", "nowhere/m.safetensors"], "the folder 'nowhere' does not exist"),
        ([*TRAIN, "--save", "."], "it is a folder"),
        ([*TRAIN, "--save", "power.csv"], "this command uses that file otherwise"),
        ([*TRAIN, "--plot", "nowhere/p.png"], "the folder 'nowhere' does not exist"),
        ([*TRAIN, "--plot", "p.docx"], "expected one of the endings"),
        ([*TRAIN, "--plot", "x.png", "--save", "x.png"], "this command uses that file otherwise"),
        (["demo", "--save", "nowhere/m.safetensors"], "the folder 'nowhere' does not exist"),
        (["demo", "--backend", "tensorflow"], "unknown backend 'tensorflow'"),
        (["backends", "--backend", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["predict", "MODEL", "nowhere.csv"], "does not exist"),
        (["predict", "nowhere.safetensors", "power.csv"], "no model file at nowhere.safetensors"),
        (["predict", "cut.safetensors", "power.csv"], "it was cut short or is of another kind"),
        (["predict", "text.csv", "power.csv"], "it was cut short or is of another kind"),
        (["predict", ".", "power.csv"], "no model file"),
        (["predict", "plain.safetensors", "power.csv"], "without a forecasting recipe"),
        (["predict", "MODEL", "other.csv"], "(the model's columns: load, wind)"),
        (["predict", "MODEL", "text.csv"], "received the text 'calm'"),
        (["predict", "MODEL", "short.csv"], "expected at least 25 rows, the model's window, received 24"),
        (["predict", "MODEL", "power.csv", "--output", "nowhere/o.csv"], "the folder 'nowhere' does not exist"),
        (["predict", "MODEL", "power.csv", "--output", "power.csv"], "this command uses that file otherwise"),
        (["predict", "MODEL", "power.csv", "--backend", "tensorflow"], "unknown backend 'tensorflow'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str],
    message: str,
    folder: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_csv(folder / "text.csv", {"load": [1, "calm", 3], "wind": [1, 2, 3]})
    write_csv(folder / "other.csv", {"when": ["2020-01-01"], "load": [1.0]})
    write_csv(folder / "short.csv", columns(24))
    (folder / "cut.safetensors").write_bytes(trained.read_bytes()[:-10])
    prnn.Model(prnn.GRU(1, 2)).save(folder / "plain.safetensors")
    monkeypatch.setattr(prnn.Model, "fit", no_training)
    before = sorted(folder.iterdir())
    line = error_line(capsys, cli.main([str(trained) if word == "MODEL" else word for word in argv]))
    assert line.startswith("error: ")
    assert message in line
    assert sorted(folder.iterdir()) == before, "a failed command leaves nothing behind"
    assert len((folder / "power.csv").read_text(encoding="utf-8").splitlines()) == ROWS + 1


@pytest.mark.parametrize("name", ["jax", "cupy", "torch", "dpnp"])
def test_a_library_that_is_not_installed(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["portable_rnn.arrays.backend"], "_find_spec", lambda library: None)
    line = error_line(capsys, cli.main([*TRAIN, "--backend", name]))
    assert f"backend '{name}' is not installed: run `pip install 'portable-rnn[{name}]'`" in line


def test_backend_from_the_environment(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORTABLE_RNN_BACKEND", "tensorflow")
    for argv in (["demo"], TRAIN, ["predict", str(trained), "power.csv"]):
        assert "unknown backend 'tensorflow'" in error_line(capsys, cli.main(argv))
    assert cli.main(["predict", str(trained), "power.csv", "--backend", "numpy"]) == 0


def test_write_protected_folder(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.writing, "_temporary", refuse)
    assert "Permission denied" in error_line(capsys, cli.main(TRAIN))


def test_a_loss_that_turns_nan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--learning-rate", "1e30", "--batch-size", "16", "--quiet"]
    line = error_line(capsys, cli.main([*TRAIN, *QUICK, *options, "--save", "m.safetensors"]))
    assert "try a smaller learning rate" in line
    assert not (folder / "m.safetensors").exists()


def test_interruption(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(prnn.Model, "fit", interrupt)
    assert error_line(capsys, cli.main([*TRAIN, "--quiet"]), 130) == "interrupted"


def test_without_matplotlib_there_is_no_picture_but_a_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] or ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    line = error_line(capsys, cli.main([*TRAIN, *QUICK, "--plot", "p.png"]))
    assert "pip install 'portable-rnn[plot]'" in line
    assert cli.main([*TRAIN, *QUICK, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("No picture: ")
    assert "Picture:" not in out
    assert (folder / "power-forecast.safetensors").exists()


# ---------------------------------------------------------------------- as a process


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(prnn.__file__).parent.parent)
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "portable_rnn", *argv],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"} | environment,
    )


def test_process_trains_and_predicts(folder: Path) -> None:
    done = run(*TRAIN, *QUICK, "--quiet", PYTHONWARNINGS="error")
    assert (done.returncode, done.stderr) == (0, "")
    done = run("predict", "power-forecast.safetensors", "power.csv", PYTHONWARNINGS="error")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(rows_of(done.stdout)) == 3


def test_process_fails_in_one_line(folder: Path) -> None:
    done = run("predict", "power.csv", "power.csv")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("portable-rnn: error: ")


def test_help_and_version() -> None:
    done = run("train", "--help")
    assert done.returncode == 0
    assert "--test-fraction" in done.stdout
    assert run("--version").stdout == f"portable-rnn {prnn.__version__}\n"


def test_terminal_that_can_not_show_a_degree_sign(folder: Path) -> None:
    write_csv(folder / "°.csv", columns())
    done = run("train", "°.csv", "--target", "load", *QUICK, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "Data: ?.csv" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes close otherwise on Windows")
def test_closed_pipe_is_no_traceback(trained: Path, folder: Path) -> None:
    write_csv(folder / "long.csv", columns(3000))
    command = f"'{sys.executable}' -m portable_rnn predict '{trained}' long.csv --all | head -n 1"
    root = str(Path(prnn.__file__).parent.parent)
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": root}
    )
    assert done.stdout == "after_row,step,time,forecast\n"
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_computes_in_float64_only_where_asked(folder: Path) -> None:
    options = [*TRAIN, *QUICK, "--backend", "jax"]
    done = run(*options, "--dtype", "float64", JAX_ENABLE_X64="0")
    assert done.returncode == 0, done.stderr
    assert "on jax float64" in done.stdout
    assert load_forecaster(folder / "power-forecast.safetensors").model.backend.dtype_name == "float64"
    done = run("predict", "power-forecast.safetensors", "power.csv", "--backend", "jax", JAX_ENABLE_X64="0")
    assert done.returncode == 2
    assert "dtype" in done.stderr
    for dtype in prnn.arrays.DTYPES:
        again = ["predict", "power-forecast.safetensors", "power.csv", "--backend", "jax", "--dtype", dtype]
        assert run(*again, JAX_ENABLE_X64="0").returncode == 0
