"""Files that are damaged, hostile or of another kind: the library's own errors, in bounded time and memory.

``PORTABLE_RNN_FUZZ=4000 pytest tests/test_files_reading.py`` mutates each file so often; in a usual run it is done
a few hundred times in all.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import safetensors.numpy

import portable_rnn as prnn
from portable_rnn import layers
from portable_rnn.cli.entry import main
from portable_rnn.data import Standardizer, read_csv
from portable_rnn.files import Boolean, Integer, Items, Json, Number, Text, parse_json, record_of
from portable_rnn.forecasting import Forecaster, Recipe, load_forecaster
from portable_rnn.interop.convert import describe

COUNT = int(os.environ.get("PORTABLE_RNN_FUZZ", "40"))
EVIL = "\x1b[2J\x07\x00\x9b\u202egpj.exe\u2066\u2028\r\nforged: line"

LAYERS: dict[str, prnn.Layer] = {
    "rnn": prnn.RNN(2, 3, 2, nonlinearity="elu(0.5)", bidirectional=True, clip=2.0),
    "lstm": prnn.LSTM(2, 3, proj_size=2, peepholes=True, recompute_every=2),
    "gru": prnn.Sequential(prnn.GRU(2, 3, reset_after=False), prnn.Last(), prnn.Linear(3, 1)),
    "norm": prnn.Sequential(prnn.LayerNormLSTM(2, 3), prnn.LayerNormGRU(3, 2)),
    "minimal": prnn.Sequential(prnn.MinGRU(2, 3), prnn.MinLSTM(3, 2), prnn.Mean()),
    "composite": prnn.Sequential(
        layers.Masked(prnn.GRU(2, 2, bidirectional=True), value=-1.0),
        layers.Merge("ave"),
        layers.SharedDropout(0.5),
        layers.Activation("relu"),
        layers.Flip(),
        prnn.Max(),
        layers.Softmax(log=True),
    ),
    "embedding": prnn.Sequential(prnn.Embedding(5, 3), prnn.Dropout(0.5), prnn.GRU(3, 2), layers.Ends()),
}


def recipe() -> Recipe:
    return Recipe(
        target="sold",
        inputs=("sold", "price"),
        time="day",
        window=4,
        horizon=2,
        period=3,
        seasonal="same day last week",
        reference="last value",
        scaler=Standardizer(np.array([0.0, 1.0, 0.0]), np.array([1.0, 2.0, 1.5])),
        departure=1.5,
        unit="€",
    )


def forecaster() -> Forecaster:
    network = prnn.Sequential(prnn.GRU(3, 4), prnn.Last(), prnn.Linear(4, 2))
    return Forecaster(prnn.Model(network, seed=0), recipe())


def saved(name: str, folder: Path) -> bytes:
    path = folder / "source"
    if name == "forecaster":
        forecaster().save(path)
    else:
        model = prnn.Model(LAYERS[name], seed=0)
        model.metadata = {"note": "plain"}
        model.save(path)
    return path.read_bytes()


# ---------------------------------------------------------------------- one outcome


def outcome(read: Callable[[], Any], size: int) -> str:
    """ "" for a file that was read, else its error: the library's own, in one printable line, within the bounds.

    Memory is bounded by four times the file and what a small file may cost; the processor's time by two seconds.
    """
    tracemalloc.reset_peak()
    before, started = tracemalloc.get_traced_memory()[0], time.process_time()
    try:
        read()
        message = ""
    except prnn.InputError as error:
        message = str(error)
        assert message.isprintable(), repr(message)
        assert len(message) < 5000
    taken, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1] - before
    assert taken < 2, f"{taken:.1f} s: {message[:200]}"
    assert peak < 4 * size + 2**23, f"{peak:,} bytes for a file of {size:,}: {message[:200]}"
    return message


@pytest.fixture(autouse=True, scope="module")
def traced() -> Any:
    tracemalloc.start()
    yield
    tracemalloc.stop()


# ---------------------------------------------------------------------- mutations

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e308, -1e308,
    "", "x", "tanh", EVIL, "\ud800", "9" * 5000, "a" * 200_000, [], [[]], {}, {"type": "GRU"}, [None] * 1000,
    {"a": {"b": 1}}, "elu(1e999)", "elu(nan)", "²", "1" * 4301,
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in pairs:
        found += places(entry, (*path, key))
    return found


def changed_json(text: str, rng: random.Random) -> str:
    """JSON with one entry replaced, removed, added, doubled, or wrapped many times."""
    value = json.loads(text)
    place = rng.choice(places(value))
    if not place:
        return rng.choice(["", "null", "NaN", "[" * 5000, '{"a":' * 2000, "1" * 5000, text[: rng.randrange(len(text))]])
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    kind = rng.randrange(5)
    if kind == 0:
        del parent[place[-1]]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(["new", EVIL, "type", "layers"])] = rng.choice(VALUES)
    elif kind == 2:
        for _ in range(rng.choice([2, 40, 400])):
            parent[place[-1]] = rng.choice([{"type": "Masked", "layer": parent[place[-1]]}, [parent[place[-1]]]])
    else:
        parent[place[-1]] = rng.choice(VALUES)
    return json.dumps(value)


def changed_header(data: bytes, rng: random.Random) -> bytes:
    """A checkpoint with one entry of its metadata, or the entry of one array, changed."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    about = header["__metadata__"]
    key = rng.choice([*about, "array"])
    if key == "array":
        name = rng.choice([name for name in header if name != "__metadata__"])
        entry = header.pop(name)
        field = rng.choice([*entry, "name"])
        if field == "name":
            name = rng.choice([EVIL, "", "x" * 1000, name + "_l99999999999999999999"])
        elif field == "dtype":
            entry[field] = rng.choice(["F16", "BF16", "F8_E4M3", "I64", "BOOL", "C64", "F64", "??"])
        else:
            entry[field] = [rng.choice([0, 1, 2**62, 2**64, -1]) for _ in range(rng.randrange(4))]
        header[name] = entry
    elif key in ("network", "gate_order", "user.forecaster") and rng.random() < 0.8:
        about[key] = changed_json(about[key], rng)
    else:
        about[key] = rng.choice([value for value in VALUES if isinstance(value, str) and value != "\ud800"])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, a piece cut out, or repeated."""
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1 and len(data) > 8:
        return struct.pack("<Q", rng.choice([0, 1, len(data), 2**40, 2**63, rng.randrange(2000)])) + data[8:]
    if kind == 2:
        start, stop = sorted(rng.randrange(len(data)) for _ in range(2))
        return data[:start] + data[start:stop] * rng.choice([0, 2, 3]) + data[stop:]
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


@pytest.mark.parametrize("name", [*LAYERS, "forecaster"])
def test_mutated_checkpoints(name: str, tmp_path: Path) -> None:
    data, path = saved(name, tmp_path), tmp_path / "mutated"
    read = load_forecaster if name == "forecaster" else prnn.load
    outcomes = set()
    for seed in range(COUNT):
        rng = random.Random(f"{name} {seed}")
        mutated = rng.choice([changed_header, changed_header, changed_bytes])(data, rng)
        path.write_bytes(mutated)
        message = outcome(lambda: used(read(path)), len(mutated))
        outcomes.add(message)
        if not message:
            assert all(line.isprintable() for line in describe(path).split("\n"))
    assert len(outcomes) > min(COUNT, 20) / 4


def used(found: Any) -> None:
    """A model that was loaded works, or says why it doesn't."""
    if isinstance(found, Forecaster):
        found.forecast(
            np.ones((2, found.recipe.window, len(found.recipe.inputs)))
        ) if found.recipe.window < 100 else None
    elif found.params and not found.network.takes_integers:
        with np.errstate(all="ignore"):  # a setting such as elu(1e308) is taken at its word
            found.predict(np.zeros((1, 3, 2), found.backend.dtype_name))


CSV = "day,sold,price\n" + "".join(f"2024-05-{k:02d},{k * 1.5},{k}\n" for k in range(1, 20))
CELLS = [
    "",
    "x",
    "nan",
    "inf",
    "-1e400",
    "1_0",
    "1,5",
    '"',
    '""',
    '"a""b"',
    EVIL,
    "é",
    "2024",
    "\x00",
    "9" * 5000,
    ";",
    "\t",
]


def changed_csv(data: bytes, rng: random.Random) -> bytes:
    """A table with a cell replaced, a row or a header changed, or a very long cell."""
    rows = [line.split(b",") for line in data.splitlines()]
    kind = rng.randrange(6)
    row = rows[rng.randrange(len(rows))]
    if kind < 3:
        row[rng.randrange(len(row))] = rng.choice(CELLS).encode()
    elif kind == 3:
        rows[0][rng.randrange(3)] = rng.choice(
            [b"x" * 131_073, b'"' + b"x" * 200_000 + b'"', b"sold", b"", EVIL.encode()]
        )
    elif kind == 4:
        row.extend([b"1"] * rng.choice([1, 70_000]))
    else:
        row.clear()
    return rng.choice([b"\n", b"\r\n", b"\r"]).join(b",".join(cells) for cells in rows)


def test_mutated_tables(tmp_path: Path) -> None:
    path = tmp_path / "mutated.csv"
    outcomes = set()
    for seed in range(4 * COUNT if COUNT < 1000 else COUNT):
        rng = random.Random(seed)
        mutated = rng.choice([changed_csv, changed_csv, changed_bytes])(CSV.encode(), rng)
        path.write_bytes(mutated)
        outcomes.add(outcome(lambda: read_csv(path, target="sold"), len(mutated)))
    assert len(outcomes) > 10
    assert "" in outcomes


# ---------------------------------------------------------------------- small files that declare much

BOUNDED = """
import resource, sys, time
import portable_rnn as prnn
from portable_rnn.data import read_csv
import portable_rnn.interop.convert
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[3]), size + int(sys.argv[3])))
started = time.process_time()
try:
    found = prnn.load(sys.argv[2]) if sys.argv[1] == "model" else read_csv(sys.argv[2], target="c0")
    print("read")
except prnn.InputError as error:
    print(error)
assert time.process_time() - started < 2, time.process_time() - started
"""


def bounded(kind: str, path: Path, memory: int) -> str:
    """What reading a file says in a process that gets only so much more memory, and two seconds."""
    environment = os.environ | {"PYTHONPATH": str(Path(prnn.__file__).parents[1])}
    command = [sys.executable, "-c", BOUNDED, kind, str(path), str(memory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def declaring(network: dict[str, Any], path: Path) -> Path:
    """A checkpoint of one small array whose description is this."""
    about = {"format": "portable_rnn", "format_version": "1.0", "network": json.dumps(network)}
    safetensors.numpy.save_file({"weight": np.ones((1, 1), np.float32)}, path, about)
    return path


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "LayerNormLSTM", "LayerNormGRU", "MinGRU", "MinLSTM"])
@pytest.mark.parametrize("depth", [9_000, 10_000_000, 2**62])
def test_a_deep_stack_is_refused_before_it_is_built(kind: str, depth: int, tmp_path: Path) -> None:
    stack: dict[str, Any] = {"type": kind, "input_size": 2, "hidden_size": 3, "num_layers": depth}
    for network in (stack, {"type": "Sequential", "layers": [{"type": "Masked", "layer": stack}]}):
        path = declaring(network, tmp_path / "m")
        expected = "arrays of" if depth <= 10_000 else "num_layers: expected an integer from 1 to 10000"
        assert expected in outcome(lambda path=path: prnn.load(path), path.stat().st_size)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from /proc")
def test_sizes_that_are_only_declared_take_no_memory(tmp_path: Path) -> None:
    wide = {"type": "GRU", "input_size": 2**40, "hidden_size": 2**40, "bidirectional": True}
    deep = {"type": "GRU", "input_size": 2, "hidden_size": 2, "num_layers": 10_000_000}
    both = {
        "type": "Sequential",
        "layers": [deep, wide, {"type": "Embedding", "num_embeddings": 2**62, "embedding_dim": 9}],
    }
    assert "expected" in bounded("model", declaring(both | {"layers": [deep]}, tmp_path / "m"), 2**25)
    assert "missing" in bounded("model", declaring(wide, tmp_path / "m"), 2**25)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from /proc")
@pytest.mark.parametrize(
    ("columns", "rows", "cell"), [(20_000, 30, "1"), (1, 1_000_000, "1"), (3, 200_000, "2.5"), (1, 1, "1" * 100_000)]
)
def test_a_table_takes_little_more_than_its_numbers(columns: int, rows: int, cell: str, tmp_path: Path) -> None:
    """Columns are 8 bytes a number; one more stands apart as the target."""
    path = tmp_path / "t.csv"
    header = ",".join(f"c{k}" for k in range(columns))
    path.write_text(header + "\n" + (",".join([cell] * columns) + "\n") * rows)
    numbers = 8 * rows * (columns + 1)
    said = bounded("table", path, 2 * numbers + 2**26)
    assert said.startswith("read") or len(cell) > 100


def test_a_table_of_one_line_is_not_split(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for head in ("", "a,b\n"):
        path.write_text(head + "12," * 500_000)
        assert "cells in" in outcome(lambda: read_csv(path, target="a"), path.stat().st_size)


# ---------------------------------------------------------------------- text from files is printed safely


def test_info_and_errors_print_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = prnn.Model(prnn.Linear(2, 1))
    model.metadata = {"author": EVIL, EVIL: "x"}
    path = tmp_path / "m.safetensors"
    model.save(path)
    assert main(["info", str(path)]) == 0
    assert prnn.load(path).metadata == model.metadata
    (tmp_path / "t.csv").write_text(f'{EVIL.partition(chr(13))[0]},"a\nb"\nx,1\n', encoding="utf-8")
    assert main(["train", str(tmp_path / "t.csv"), "--target", "nothing"]) == 2
    found = capsys.readouterr()
    assert "\\x1b[2J" in found.out
    assert "\\x1b[2J" in found.err
    assert all(line.isprintable() for line in (found.out + found.err).split("\n"))
    assert "forged: line" not in found.out.split("\n")


def test_train_prints_column_names_safely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{k},{k % 3}\n" for k in range(120))
    (tmp_path / "t.csv").write_text(f'"sold\x1b[2J\nforged","a\u202eb"\n{rows}', encoding="utf-8", newline="")
    options = [
        "--epochs",
        "1",
        "--window",
        "4",
        "--horizon",
        "2",
        "--hidden-size",
        "2",
        "--plot",
        str(tmp_path / "p.svg"),
    ]
    target = ["--target", "sold\x1b[2J\nforged", "--save", str(tmp_path / "m")]
    assert main(["train", str(tmp_path / "t.csv"), *target, *options]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert all(line.isprintable() for line in lines)
    assert any("sold\\x1b[2J\\nforged, a\\u202eb" in line for line in lines)
    assert load_forecaster(tmp_path / "m").recipe.target == "sold\x1b[2J\nforged"


# ---------------------------------------------------------------------- weights that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = prnn.Model(prnn.GRU(2, 3))
    weight = model.params["weight_hh_l0"].copy()
    weight[4, 1] = weight[5, 2] = value
    model.params = model.params | {"weight_hh_l0": weight}
    path = tmp_path / "m.safetensors"
    model.save(path)
    with pytest.raises(prnn.InputError, match=r"'weight_hh_l0' holds 2 NaN or infinite values, .* index \(4, 1\)"):
        prnn.load(path)
    found = prnn.load(path, check_finite=False)
    np.testing.assert_array_equal(found.params["weight_hh_l0"], weight)
    assert main(["info", str(path)]) == 0
    assert "NOT FINITE: parameter 'weight_hh_l0' holds 2" in capsys.readouterr().out


# ---------------------------------------------------------------------- conventions


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gate_order", '{"GRU": "z r n"}'),
        ("gate_order", "i f g o"),
        ("gru_variant", "reset_before (Cho et al. 2014)"),
    ],
)
def test_other_conventions_are_refused(key: str, value: str, tmp_path: Path) -> None:
    """A file whose gates stand in another order would give other numbers."""
    path = tmp_path / "m"
    prnn.Model(prnn.GRU(2, 3)).save(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        about = file.metadata()
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, about | {key: value})
    with pytest.raises(prnn.InputError, match=key):
        prnn.load(path)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    deep: prnn.Layer = prnn.GRU(2, 3)
    for _ in range(70):
        deep = layers.Masked(deep)
    with pytest.raises(prnn.InputError, match="nested"):
        prnn.Model(deep).save(tmp_path / "m")
    model = prnn.Model(prnn.Linear(1, 1))
    model.metadata["log"] = "x" * 10_000_000
    with pytest.raises(prnn.InputError, match="metadata"):
        model.save(tmp_path / "m")
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------- the schema


@dataclass(frozen=True)
class Inner:
    """A record in a record."""

    rate: Annotated[float, Number(above=0, below=1)]


@dataclass(frozen=True)
class Outer:
    """Every annotation that a schema takes from a dataclass."""

    count: Annotated[int, Integer(1, 9)]
    inner: Inner
    names: tuple[str, ...] = ()
    flag: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.flag and self.limit is None:
            raise prnn.InputError("flag needs a limit")


def test_a_record_is_read_from_its_dataclass() -> None:
    given = {"count": 3, "inner": {"rate": 0.5}, "names": ["a"], "flag": True, "limit": 2}
    assert record_of(Outer).read(given, "run") == Outer(3, Inner(0.5), ("a",), True, 2)
    assert record_of(Outer).read({"count": 3, "inner": {"rate": 0.5}}, "run") == Outer(3, Inner(0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 10}, "run.count: expected a whole number from 1 to 9, got 10"),
        ({"count": True}, "run.count: expected a whole number from 1 to 9, got True"),
        ({"count": 3.0}, "run.count: expected a whole number"),
        ({"inner": {"rate": 0}}, "run.inner.rate: expected a finite number above 0 below 1, got 0"),
        ({"inner": {"rate": 10**400}}, "run.inner.rate: expected a finite number"),
        ({"inner": {}}, "run.inner: expected a field 'rate'"),
        ({"inner": []}, "run.inner: expected an object with rate, got []"),
        ({"names": ["a", 1]}, "run.names[1]: expected a text, got 1"),
        ({"names": "ab"}, "run.names: expected a list, got 'ab'"),
        ({"flag": 1}, "run.flag: expected true or false, got 1"),
        ({"flag": True}, "run: flag needs a limit"),
        ({"limit": "2"}, "run.limit: expected a whole number, got '2'"),
        ({"la\x1bte": 1}, "got unknown field 'la\\x1bte'"),
    ],
)
def test_a_field_of_another_type_or_range_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(prnn.InputError) as caught:
        record_of(Outer).read({"count": 3, "inner": {"rate": 0.5}} | change, "run")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "NaN",
        "[Infinity]",
        "1" * 4301,
        '{"a": 1, "a": 2}',
        "[" * 65 + "]" * 65,
        "[" * 10**6,
        "[[]," * 10**6,
        "1," * 10**6,
    ],
)
def test_json_that_is_not_trusted(text: str) -> None:
    with pytest.raises(prnn.InputError):
        parse_json(text, "text")
    assert parse_json("[" * 64 + "]" * 64, "text") is not None


def test_texts_that_no_encoding_can_write() -> None:
    for kind, value in (
        (Text(), "\ud800"),
        (Text(5), "123456"),
        (Json(Boolean()), '"true"'),
        (Items(Text(), 1), ["a", "b"]),
    ):
        with pytest.raises(prnn.InputError):
            kind.read(value, "field")
