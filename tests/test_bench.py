"""The benchmark: its arithmetic, its processes, the command, and the comparison of two runs. No time is asserted."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare as compare_script
from benchmarks import peers as peers_script
from portable_rnn import cli
from portable_rnn.bench import command, report, workers
from portable_rnn.bench.cases import CELLS, KINDS, SIZES, Case, Peer
from portable_rnn.bench.libraries import GEMM_FLOPS, gemm_peer, ours_peer, torch_peer
from portable_rnn.bench.picture import draw
from portable_rnn.errors import InputError

TINY = SIZES[0]
LARGE = SIZES[5]  # H 512
HAS_TORCH = importlib.util.find_spec("torch") is not None


def case(size: tuple[int, ...] = LARGE, cell: str = "LSTM", kind: str = "train", **seconds: Any) -> dict[str, Any]:
    """As `measure` returns it; `ours_numpy=` stands for "ours-numpy"."""
    named = {name.replace("_", "-"): list(times) for name, times in seconds.items()}
    return {"cell": cell, "size": list(size), "kind": kind, "seconds": named, "failed": {}}


def run_of(*cases: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """As `command.run` returns it."""
    names = dict.fromkeys(name for case in cases for name in case["seconds"] if name != "gemm")
    made = {
        "format": 1,
        "date": "2026-01-01T00:00:00+00:00",
        "machine": {"processor": "P", "cores": 2, "system": "S", "python": "3", "blas": "B"},
        "versions": {"numpy": "2"},
        "settings": {"rounds": 3, "threads": None},
        "ours": "ours-numpy",
        "peers": list(names),
        "missing": {},
        "cases": list(cases),
    }
    return made | changed


# ---------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(("cell", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_flops_count_the_products_of_the_layers_own_matrices(cell: str, gates: int) -> None:
    forward = Case(cell, (2, 3, 5, 7), "forward")
    assert forward.flops == 2 * 2 * 3 * gates * 7 * (5 + 7)
    assert Case(cell, (2, 3, 5, 7), "train").flops == 3 * forward.flops
    matrices = [shape for name, shape in forward.layer.parameter_shapes().items() if name.startswith("weight")]
    assert forward.flops == sum(2 * 2 * 3 * rows * columns for rows, columns in matrices)


def test_ratios_are_taken_round_by_round() -> None:
    # the machine is ten times slower in the last round: the ratio of the medians would be 1.5
    found = report.ratio(case(ours_numpy=[2, 3, 40], torch=[1, 2, 20]), "ours-numpy", ["torch"])
    assert found == {"median": 2.0, "low": 1.75, "high": 2.0, "peer": "torch"}


def test_the_fastest_peer_is_the_one_with_the_lowest_median() -> None:
    times = case(ours_numpy=[4.0] * 3, torch=[1.0, 5, 5], flax=[2.0] * 3)
    found = report.ratio(times, "ours-numpy", ["torch", "flax", "equinox"])
    assert found is not None
    assert (found["peer"], found["median"]) == ("flax", 2.0)


def test_the_floor_is_the_work_at_the_rate_of_the_product() -> None:
    flops = Case("LSTM", LARGE, "train").flops
    found = report.ratio(case(ours_numpy=[3.0], gemm=[GEMM_FLOPS / flops]), "ours-numpy", ["floor"])
    assert found is not None
    assert found["median"] == 3.0


def test_what_was_not_measured_has_no_ratio() -> None:
    assert report.ratio(case(ours_numpy=[1.0]), "ours-numpy", ["torch"]) is None
    assert report.ratio(case(ours_numpy=[1.0]), "ours-numpy", ["floor"]) is None
    assert report.ratio(case(torch=[1.0]), "ours-numpy", ["torch"]) is None


def test_geometric_mean() -> None:
    assert report.geometric_mean([0.25, 1.0, 4.0]) == pytest.approx(1)
    assert report.geometric_mean([2.0, 8.0]) == pytest.approx(4)


# ---------------------------------------------------------------------- targets

TARGET = report.Target("ours-numpy", ("torch",), "train", ("LSTM",), mean=1.0, worst=1.5, min_hidden=256)


@pytest.mark.parametrize(
    ("times", "mean", "met"),
    [((0.5, 1.4), 0.8367, True), ((0.5, 1.6), 0.8944, False), ((0.9, 1.2), 1.0392, False)],
    ids=["both limits hold", "the worst is too high", "the mean is too high"],
)
def test_a_target_is_judged_by_both_limits(times: tuple[float, float], mean: float, met: bool) -> None:
    sizes = SIZES[4:6]
    small = case(TINY, ours_numpy=[9.0], torch=[1.0])  # not a size that the target is about
    other = case(sizes[0], cell="GRU", ours_numpy=[9.0], torch=[1.0])
    cases = [case(size, ours_numpy=[time], torch=[1.0]) for size, time in zip(sizes, times, strict=True)]
    (found,) = report.findings(run_of(small, other, *cases), [TARGET])
    assert found.mean == pytest.approx(mean, abs=1e-4)
    assert (found.worst, found.worst_size, found.measured, found.met) == (times[1], sizes[1], 2, met)
    assert len(TARGET.sizes()) == 3


@pytest.mark.parametrize(
    ("time", "product", "verdict"),
    [
        (0.3, 0.01, "met at these sizes"),
        (0.6, 0.01, "**not met** at these sizes"),
        (0.6, 0.5, "**not met** at these sizes: the floor is 0.50"),
        (0.4, 0.5, "met at these sizes"),
        (0.6, None, "**not met** at these sizes"),
    ],
)
def test_a_target_below_the_floor_is_said_to_be(time: float, product: float | None, verdict: str) -> None:
    target = report.Target("ours-numpy", ("torch",), "train", ("LSTM",), worst=0.4)
    one = case(SIZES[4], ours_numpy=[time], torch=[1.0])
    if product is not None:
        flops = Case("LSTM", SIZES[4], "train").flops
        one["seconds"]["gemm"] = [product * GEMM_FLOPS / flops]
    (found,) = report.findings(run_of(one), [target])
    assert found.verdict == verdict


def test_one_peer_says_nothing_about_the_fastest_of_several() -> None:
    target = report.Target("ours-numpy", ("torch", "flax"), "train", ("LSTM",), worst=1.0)
    assert report.findings(run_of(case(ours_numpy=[1.0], torch=[2.0])), [target]) == []
    (found,) = report.findings(run_of(case(ours_numpy=[1.0], torch=[2.0], flax=[0.5])), [target])
    assert found.worst == 2.0


def test_the_floor_is_a_target_too() -> None:
    target = report.Target("ours-numpy", (report.FLOOR,), "train", worst=1.5)
    (found,) = report.findings(run_of(case(ours_numpy=[1.0], gemm=[2.0])), [target])
    assert found.worst > 0


def test_the_targets_name_peers_that_exist() -> None:
    names = {peer.name for peer in peers_script.all_peers(None)} | {report.FLOOR}
    for target in report.TARGETS:
        assert {target.ours, *target.against} <= names, str(target)
        assert target.sizes(), str(target)


def test_the_report_has_a_row_for_each_size_and_says_what_failed() -> None:
    slow = case(TINY, ours_numpy=[3.0], torch=[1.0], gemm=[0.1])
    broken = case(ours_numpy=[1.0], gemm=[0.1]) | {"failed": {"torch": "OutOfMemory: no"}}
    text = report.report(run_of(slow, broken, missing={"thinc": "thinc"}))
    rows = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert rows["| 1, 50, 1, 10"].startswith("| 1, 50, 1, 10 | 3e+03 | 1e+03 | 3.00 (3.00 to 3.00) | ")
    assert rows["| 64, 50, 256, 512"].startswith("| 64, 50, 256, 512 | 1e+03 | failed | – | ")
    assert "torch at 64, 50, 256, 512 failed: OutOfMemory: no" in text
    assert "thinc: not installed (thinc)" in text
    assert "| ours-numpy / torch, training step | LSTM | 1 of 7 | 3.00 (≤ 0.9) | 3.00 (≤ 1.15) at" in text
    assert "**not met** at these sizes" in text


# ---------------------------------------------------------------------- two runs


def written(path: Path, *times: float) -> str:
    """A file with one case, ours at these times and torch at 1."""
    command.write_json(run_of(case(ours_numpy=times, torch=[1.0] * len(times))), path)
    return str(path)


def test_a_slowdown_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = written(tmp_path / "old.json", 1.0, 1.0, 1.0)
    little = written(tmp_path / "little.json", 1.14, 1.14, 1.14)
    slow = written(tmp_path / "slow.json", 1.16, 1.16, 1.16)
    once = written(tmp_path / "once.json", 1.0, 1.0, 9.0)
    assert compare_script.main([old, little]) == 0
    assert "Nothing became slower." in capsys.readouterr().out
    assert compare_script.main([old, once]) == 0
    assert compare_script.main([slow, old]) == 0
    capsys.readouterr()
    assert compare_script.main([old, slow]) == 1
    out = capsys.readouterr().out
    assert "| ours-numpy, LSTM 64, 50, 256, 512 training step | torch | 1.00 | 1.16 | 1.16 **slower** |" in out
    assert out.splitlines()[-1] == "ours-numpy, LSTM 64, 50, 256, 512 training step: ratio to torch 1.00 -> 1.16"
    assert compare_script.main([old, slow, "--limit", "1.2"]) == 0


def test_a_slowdown_against_the_floor_alone_is_one(tmp_path: Path) -> None:
    """Torch may have become slower too, as on another version of it."""
    old, new = (run_of(case(ours_numpy=[t], torch=[t], gemm=[0.1])) for t in (1.0, 2.0))
    _, slower = report.compare(old, new)
    assert len(slower) == 1
    assert "ratio to floor" in slower[0]


def test_files_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = written(tmp_path / "old.json", 1.0)
    alone = tmp_path / "alone.json"
    command.write_json(run_of(case(ours_numpy=[1.0])), alone)
    other = tmp_path / "other.json"
    other.write_text("[1]", encoding="utf-8")
    for new, message in ((alone, "in common"), (other, "is no file that"), (tmp_path / "none.json", "can't read")):
        assert compare_script.main([old, str(new)]) == 2
        assert message in capsys.readouterr().err


# ---------------------------------------------------------------------- processes

FACTORIES = """
import os
import numpy as np
from portable_rnn.bench.cases import Task

def made(case, **changed):
    batch, steps, inputs, hidden = case.size
    outputs = {"y": np.ones((batch, steps, hidden)), "dx": np.ones((batch, steps, inputs))} | changed
    return Task(lambda: print("noise", flush=True), lambda _: {k: v for k, v in outputs.items() if v is not None})

def good(case): return made(case)
def other(case): return made(case, dx=1.001 * np.ones(case.size[:3]))
def idle(case): return made(case, dx=np.zeros(case.size[:3]))
def half(case): return made(case, dx=None)
def flat(case): return made(case, y=np.ones(3))
def broken(case): raise RuntimeError("no such\\nlayer")
def dead(case): os.write(2, b"out of memory\\n"); os._exit(9)
"""


@pytest.fixture
def planted(tmp_path: Path) -> list[str]:
    """The folder of a module with factories."""
    (tmp_path / "planted_peers.py").write_text(FACTORIES, encoding="utf-8")
    return [str(tmp_path)]


def planted_peer(name: str, **options: Any) -> Peer:
    return Peer(name, f"planted_peers:{name}", **options)


def test_a_peer_that_fails_is_named_and_the_others_go_on(planted: list[str]) -> None:
    names = ["good", "idle", "half", "flat", "broken", "dead"]
    cases = [Case("RNN", TINY, "train"), Case("GRU", TINY, "train")]
    for found in workers.measure([planted_peer(name) for name in names], cases, rounds=2, path=planted):
        assert list(found["seconds"]) == ["good"]
        assert len(found["seconds"]["good"]) == 2
        assert all(time > 0 for time in found["seconds"]["good"])
        assert found["failed"].keys() == set(names) - {"good"}
        assert "dx is zero everywhere" in found["failed"]["idle"]
        assert "gives the gradient of x" in found["failed"]["half"]
        assert "y has shape (3,), not (1, 50, 10)" in found["failed"]["flat"]
        assert found["failed"]["broken"] == "RuntimeError: no such layer"
        assert found["failed"]["dead"] == "its process ended with exit code 9: out of memory"


def test_outputs_that_differ_stop_the_run(planted: list[str]) -> None:
    two = [planted_peer("good", same_weights=True), planted_peer("other", same_weights=True)]
    with pytest.raises(InputError, match=r"dx of other and of good differ by 0\.001"):
        workers.measure(two, [Case("RNN", TINY, "train")], rounds=1, path=planted)
    found = workers.measure([two[0], planted_peer("other")], [Case("RNN", TINY, "train")], rounds=1, path=planted)
    assert not found[0]["failed"]


def test_a_peer_is_left_out_where_it_can_do_nothing(planted: list[str]) -> None:
    peers = [planted_peer("good", cells=("LSTM",)), planted_peer("other", kinds=("forward",))]
    (found,) = workers.measure(peers, [Case("LSTM", TINY, "train")], rounds=1, path=planted)
    assert list(found["seconds"]) == ["good"]


# ---------------------------------------------------------------------- the command


@pytest.mark.slow
def test_bench_prints_the_table_and_writes_both_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PORTABLE_RNN_BACKEND", raising=False)
    options = ["--cells", "lstm", "--sizes", "1", "--rounds", "3", "--threads", "1", "--json", "times.json"]
    assert cli.main(["bench", *options]) == 0
    out, err = capsys.readouterr()
    found = json.loads(Path("times.json").read_text(encoding="utf-8"))
    peers = {"ours-numpy", "torch"} if HAS_TORCH else {"ours-numpy"}
    assert [(c["cell"], c["size"], c["kind"]) for c in found["cases"]] == [("LSTM", list(TINY), kind) for kind in KINDS]
    for case in found["cases"]:
        assert case["failed"] == {}
        assert case["seconds"].keys() == peers | {"gemm"}
        assert all(len(times) == 3 and min(times) > 0 for times in case["seconds"].values())
        assert case["ratios"]["ours-numpy"].keys() == ({"torch", "floor"} if HAS_TORCH else {"floor"})
    assert found["missing"] == ({} if HAS_TORCH else {"torch": "torch"})
    assert found["settings"] == {"rounds": 3, "threads": 1}
    assert found["versions"]["numpy"] == __import__("numpy").__version__
    assert "## LSTM, training step" in out
    assert "2048³ float32 product" in out
    assert ("| ours-numpy / torch, training step | LSTM | 1 of 7 |" in out) == HAS_TORCH
    assert out.splitlines()[-2:] == ["Times: times.json", "Picture: portable-rnn-bench.png"]
    assert err.splitlines()[0] == "1/2 LSTM 1, 50, 1, 10 training step"
    assert Path("portable-rnn-bench.png").read_bytes()[:4] == b"\x89PNG"
    assert compare_script.main(["times.json", "times.json"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "0"], "expected numbers from 1 to 7, or all, received '0'"),
        (["--sizes", "1,x"], "expected numbers from 1 to 7, or all, received '1,x'"),
        (["--cells", "lstm,cnn"], "expected some of RNN, GRU, LSTM, received 'lstm,cnn'"),
        (["--rounds", "0"], "expected a whole number of at least 1, received '0'"),
        (["--peers", "flax"], "--peers: expected some of ours-numpy, torch, received flax"),
        (["--forward-only", "--train-only"], "not allowed with argument"),
        (["--backend", "nothing"], "nothing"),
        (["--json", "no/folder.json"], "the folder 'no' does not exist"),
        (["--plot", "picture.doc"], "received 'doc'"),
        (["--json", "a.png", "--plot", "a.png"], "this command uses that file otherwise"),
    ],
)
def test_bad_options_end_with_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--backend", "numpy", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_a_picture_that_was_asked_for_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] or ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["bench", "--plot", "a.png"]) == 2
    assert "portable-rnn[plot]" in capsys.readouterr().err


def options_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return parser.parse_args(words)


def test_options_choose_the_cases() -> None:
    chosen = options_of("--cells", "lstm,RNN", "--sizes", "3,1", "--train-only")
    assert (chosen.cells, chosen.sizes, chosen.kinds) == (["RNN", "LSTM"], [SIZES[0], SIZES[2]], ["train"])
    everything = options_of("--sizes", "all")
    assert (everything.cells, everything.sizes, everything.kinds) == (list(CELLS), list(SIZES), list(KINDS))
    assert everything.rounds == 11


def test_a_missing_peer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    absent = Peer("absent", "absent:layer", ("numpy", "no_such_package"))
    args = options_of("--cells", "rnn", "--sizes", "1", "--rounds", "1", "--forward-only")
    found = command.run([ours_peer("numpy"), absent], gemm_peer("numpy"), args)
    assert found["missing"] == {"absent": "no_such_package"}
    assert found["peers"] == ["ours-numpy"]
    assert "- absent: not installed (no_such_package)" in report.report(found)


def test_a_failure_of_this_library_is_an_error() -> None:
    args = options_of("--cells", "rnn", "--sizes", "1", "--rounds", "1", "--forward-only")
    with pytest.raises(InputError, match="ours-numpy failed at RNN"):
        command.run([ours_peer("numpy", "no such device")], gemm_peer("numpy"), args)


@pytest.mark.slow
def test_every_peer_runs_or_is_named_as_missing(capsys: pytest.CaptureFixture[str]) -> None:
    peers = peers_script.all_peers(None)
    args = options_of("--cells", "lstm", "--sizes", "1", "--rounds", "1")
    found = command.run(peers, gemm_peer("numpy"), args, path=[str(peers_script.HERE)])
    assert found["missing"].keys() == {peer.name for peer in peers if workers.missing(peer)}
    for case in found["cases"]:
        assert case["failed"] == {}
        able = {p.name for p in peers if case["kind"] in p.kinds and p.name not in found["missing"]}
        assert case["seconds"].keys() == able | {"gemm"}


@pytest.mark.parametrize("name", ["other cells", "no torch"])
def test_the_picture_has_an_axis_for_each_ratio_and_cell(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = CELLS if name == "other cells" else ("GRU",)
    others = {"torch": [1.0, 2.0]} if name == "other cells" else {}
    cases = [
        case(size, cell, kind, ours_numpy=[0.5, 2.0], gemm=[0.1, 0.1], **others)
        for cell in cells
        for size in SIZES[:3]
        for kind in KINDS
    ]
    figure = draw(run_of(*cases), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0
    assert len(figure.axes) == len(cells) * (1 + len(others))
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert low < 1 < high
        assert any(line.get_ydata()[0] == 1 for line in axes.get_lines())
    # far above the others: a number at the edge instead of a mark
    lowest = figure.axes[-1]
    expected = report.with_ratios(run_of(case(TINY, cells[-1], ours_numpy=[0.5, 2.0], gemm=[0.1, 0.1])))
    number = expected["cases"][0]["ratios"]["ours-numpy"]["floor"]["median"]
    assert f"↑{number:,.0f}" in [text.get_text() for text in lowest.texts]
    text = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert text == ["1, 50, 1, 10", "1, 100, 32, 64", "32, 100, 32, 64"]


def test_a_kind_that_was_not_timed_is_not_in_the_legend() -> None:
    pytest.importorskip("matplotlib")
    figure = draw(run_of(case(kind="forward", ours_numpy=[0.5], torch=[1.0])))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["forward"]


def test_torch_has_the_same_parameters() -> None:
    assert torch_peer().same_weights
    assert ours_peer("jax").same_weights
    assert ours_peer("jax").is_ours
    assert not torch_peer().is_ours
