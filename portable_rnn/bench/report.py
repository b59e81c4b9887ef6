"""What is made of the times: ratios, the tables, the targets, and what became slower between two runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .cases import CELLS, KINDS, SIZES, Case
from .libraries import GEMM_FLOPS, GEMM_SIZE

__all__ = ["FLOOR", "TARGETS", "Finding", "Target", "compare", "geometric_mean", "ratio", "report", "with_ratios"]

FLOOR = "floor"
_PEERS = ("torch", "flax", "equinox", "keras-jax", "keras-torch", "thinc")
SLOWER = 1.15  # a ratio that grew by more is a slowdown

Run = dict[str, Any]  # as `command.run` makes it and as it stands in a JSON file


@dataclass(frozen=True)
class Target:
    """A ratio that is to be kept small.

    Attributes
    ----------
    ours : str
        The peer whose time stands above the line.
    against : tuple of str
        Of these peers the fastest one at each size stands below it; or ``("floor",)``.
    kind : str
    cells : tuple of str
        Each is judged by itself.
    mean, worst : float, optional
        Limits of the geometric mean over the sizes, and of every size.
    min_batch, min_hidden : int
        The sizes it is about.
    """

    ours: str
    against: tuple[str, ...]
    kind: str
    cells: tuple[str, ...] = CELLS
    mean: float | None = None
    worst: float | None = None
    min_batch: int = 1
    min_hidden: int = 1

    def sizes(self) -> list[tuple[int, int, int, int]]:
        """Those of the benchmark that it is about."""
        return [size for size in SIZES if size[0] >= self.min_batch and size[3] >= self.min_hidden]

    def __str__(self) -> str:
        against = self.against[0] if len(self.against) == 1 else f"fastest of {', '.join(self.against)}"
        where = f", B ≥ {self.min_batch}" if self.min_batch > 1 else ""
        where += f", H ≥ {self.min_hidden}" if self.min_hidden > 1 else ""
        return f"{self.ours} / {against}, {KINDS[self.kind]}{where}"


TARGETS = (
    Target("ours-numpy", ("torch",), "train", ("LSTM",), mean=0.9, worst=1.15),
    Target("ours-numpy", ("torch",), "train", ("GRU", "RNN"), mean=0.6, worst=1.15),
    Target("ours-numpy", _PEERS, "train", mean=1.1, worst=1.5),
    Target("ours-numpy", ("torch",), "forward", mean=1.1, worst=1.6),
    Target("ours-numpy", ("onnxruntime",), "forward", worst=1.2, min_hidden=256),
    Target("ours-numpy", (FLOOR,), "train", worst=1.5, min_hidden=256),
    Target("ours-numpy", ("thinc",), "train", ("LSTM",), worst=0.4, min_batch=16),
    Target("ours-numpy", ("keras-torch",), "train", worst=0.4),
    Target("ours-jax", ("flax", "equinox"), "train", mean=0.8),
    Target("ours-jax", ("flax", "equinox"), "forward", mean=1.0),
    Target("ours-torch", ("torch",), "train", ("LSTM",), worst=1.5, min_hidden=128),
)


@dataclass(frozen=True)
class Finding:
    """A target at one cell: `mean` and `worst` as measured, at `measured` of the sizes it is about.

    `floor` is the ratio that the floor itself has to the same peer where ours is worst; None where it is not known.
    """

    target: Target
    cell: str
    mean: float
    worst: float
    worst_size: tuple[int, ...]
    measured: int
    floor: float | None = None

    @property
    def met(self) -> bool:
        """Whether both limits hold at what was measured."""
        limits = ((self.mean, self.target.mean), (self.worst, self.target.worst))
        return all(limit is None or found <= limit for found, limit in limits)

    @property
    def verdict(self) -> str:
        """Whether it is met, and if not, whether the matrix products alone would miss it."""
        text = "met" if self.met else "**not met**"
        if self.measured < len(self.target.sizes()):
            text += " at these sizes"
        if self.floor is None or self.target.worst is None or not self.worst > self.floor > self.target.worst:
            return text
        return f"{text}: the floor is {_short(self.floor)}"


# ---------------------------------------------------------------------- arithmetic


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios.

    Examples
    --------
    >>> geometric_mean([0.5, 2.0])
    1.0
    """
    return statistics.geometric_mean(values)


def ratio(case: dict[str, Any], ours: str, against: Sequence[str]) -> dict[str, Any] | None:
    """Time of `ours` over that of the fastest of `against`, round by round.

    Parameters
    ----------
    case : dict
        Of `measure`.
    ours : str
        Or "floor".
    against : sequence of str
        Which was fastest is decided by the medians; or ``("floor",)``, the time of the matrix products alone at the
        rate that the square product had in the same round.

    Returns
    -------
    dict or None
        "median", "low", "high" (quartiles) and "peer"; None where either was not measured.
    """
    seconds = dict(case["seconds"])
    if "gemm" in seconds:
        work = Case(case["cell"], tuple(case["size"]), case["kind"]).flops / GEMM_FLOPS
        seconds[FLOOR] = [work * product for product in seconds["gemm"]]
    there = [name for name in against if name in seconds]
    if ours not in seconds or not there:
        return None
    peer = min(there, key=lambda name: statistics.median(seconds[name]))
    ratios = [a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": _digits(middle), "low": _digits(low), "high": _digits(high), "peer": peer}


def with_ratios(run: Run) -> Run:
    """The run with "milliseconds" (medians) and "ratios" of every peer of ours in each case."""
    cases = []
    for case in run["cases"]:
        medians = {name: _digits(1e3 * statistics.median(times)) for name, times in case["seconds"].items()}
        others = [name for name in case["seconds"] if name != "gemm" and not name.startswith("ours-")]
        ratios: dict[str, dict[str, Any]] = {}
        for ours in (name for name in case["seconds"] if name.startswith("ours-")):
            found = {"torch": ratio(case, ours, ["torch"]), FLOOR: ratio(case, ours, [FLOOR])}
            if len(others) > 1:
                found["fastest"] = ratio(case, ours, others)
            ratios[ours] = {name: value for name, value in found.items() if value is not None}
        cases.append(case | {"milliseconds": medians, "ratios": ratios})
    return run | {"cases": cases}


def gemm_rate(run: Run) -> float:
    """Floating point operations a second of the square product: the median of the whole run."""
    return GEMM_FLOPS / statistics.median(
        float(t) for case in run["cases"] for t in case["seconds"].get("gemm", [math.nan])
    )


def findings(run: Run, targets: Sequence[Target] = TARGETS) -> list[Finding]:
    """Every target that the run says something about, cell by cell."""
    found = []
    for target in targets:
        for cell in target.cells:
            ratios: dict[tuple[int, ...], float] = {}
            floors: dict[tuple[int, ...], dict[str, Any] | None] = {}
            for case in run["cases"]:
                if (case["cell"], case["kind"]) == (cell, target.kind) and tuple(case["size"]) in target.sizes():
                    answer = ratio(case, target.ours, target.against)
                    # with one peer measured, "the fastest of all" would say nothing new
                    others = [name for name in target.against if name in case["seconds"]]
                    enough = target.against == (FLOOR,) or len(others) >= min(2, len(target.against))
                    if answer is not None and enough:
                        size = tuple(case["size"])
                        ratios[size], floors[size] = answer["median"], ratio(case, FLOOR, target.against)
            if ratios:
                worst = max(ratios, key=ratios.__getitem__)
                mean = geometric_mean(ratios.values())
                floor = floors[worst]
                below = None if floor is None else floor["median"]
                found.append(Finding(target, cell, mean, ratios[worst], worst, len(ratios), below))
    return found


# ---------------------------------------------------------------------- what is printed


def report(run: Run) -> str:
    """The run as Markdown: the machine, a table for each cell and kind, the targets."""
    run = with_ratios(run)
    parts = [_machine(run)]
    for cell in CELLS:
        for kind in KINDS:
            cases = [case for case in run["cases"] if (case["cell"], case["kind"]) == (cell, kind)]
            if cases:
                parts.append(f"## {cell}, {KINDS[kind]}\n\n{_table(run, cases)}")
    parts.append(f"## Targets\n\n{_targets(run)}")
    return "\n\n".join(parts)


def _machine(run: Run) -> str:
    machine, settings = run["machine"], run["settings"]
    threads = f"{settings['threads']} threads" if settings["threads"] else "each library's own number of threads"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; Python {machine['python']}",
        f"{versions}; NumPy's BLAS: {machine['blas']}",
        f"{GEMM_SIZE}³ float32 product: {gemm_rate(run) / 1e9:.0f} GFLOP/s; float32, medians of {settings['rounds']} "
        f"rounds, {threads}",
    ]
    lines += [f"{name}: not installed ({why})" for name, why in run["missing"].items()]
    return "\n".join(f"- {line}" for line in lines)


def _table(run: Run, cases: Sequence[dict[str, Any]]) -> str:
    peers = [name for name in run["peers"] if any(name in case["seconds"] or name in case["failed"] for case in cases)]
    columns = [name for name in ("torch", "fastest", FLOOR) if any(name in c["ratios"][run["ours"]] for c in cases)]
    titles = ["B, T, I, H", *(f"{name}, ms" for name in peers), *(f"ours / {name}" for name in columns)]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    notes = []
    for case in cases:
        size = ", ".join(map(str, case["size"]))
        times = [_milliseconds(case, name) for name in peers]
        ratios = case["ratios"][run["ours"]]
        rows.append([size, *times, *(_ratio_text(ratios.get(name)) for name in columns)])
        notes += [f"{name} at {size} failed: {why}" for name, why in case["failed"].items()]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join([text, *notes])


def _milliseconds(case: dict[str, Any], name: str) -> str:
    if name in case["failed"]:
        return "failed"
    return f"{case['milliseconds'][name]:.3g}" if name in case["milliseconds"] else "–"


def _ratio_text(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    median, low, high = (_short(found[name]) for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _short(value: float) -> str:
    """With two decimals, as ratios near 1 need them, and no more digits than a large one has."""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _targets(run: Run) -> str:
    found = findings(run)
    if not found:
        return "None of the targets is about what was measured."
    rows = [["target", "cell", "sizes", "geometric mean", "worst, at B, T, I, H", ""], ["---"] * 6]
    for one in found:
        mean, worst = (
            _short(value) + (f" (≤ {limit:g})" if limit is not None else "")
            for value, limit in ((one.mean, one.target.mean), (one.worst, one.target.worst))
        )
        sizes = f"{one.measured} of {len(one.target.sizes())}"
        where = ", ".join(map(str, one.worst_size))
        rows.append([str(one.target), one.cell, sizes, mean, f"{worst} at {where}", one.verdict])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# ---------------------------------------------------------------------- two runs


def compare(old: Run, new: Run, limit: float = SLOWER) -> tuple[str, list[str]]:
    """Two runs side by side.

    Times of two machines, or of one machine at two times, say little; ratios to the floor and to torch, measured in
    the same minutes, say more.

    Parameters
    ----------
    old, new : dict
        From JSON files.
    limit : float
        By how much a ratio may have grown.

    Returns
    -------
    text, slower
        A Markdown table, and a line for each ratio that grew by more than the limit.

    Raises
    ------
    InputError
        The runs have no ratio in common.
    """
    before, after = _ratios(old), _ratios(new)
    rows = [["what", "ratio to", "old", "new", "new / old"], ["---", "---", "---:", "---:", "---:"]]
    slower = []
    for key, was in before.items():
        if key in after:
            change = after[key] / was
            mark = " **slower**" if change > limit else ""
            rows.append([f"{key[0]}, {key[1]}", key[2], _short(was), _short(after[key]), f"{change:.2f}{mark}"])
            if change > limit:
                slower.append(f"{key[0]}, {key[1]}: ratio to {key[2]} {_short(was)} -> {_short(after[key])}")
    if len(rows) == 2:
        raise InputError("the two runs have no ratio to torch or to the floor in common")
    return "\n".join(f"| {' | '.join(row)} |" for row in rows), slower


def _ratios(run: Run) -> dict[tuple[str, str, str], float]:
    """By (peer, case, ratio)."""
    found = {}
    for case in with_ratios(run)["cases"]:
        name = str(Case(case["cell"], tuple(case["size"]), case["kind"]))
        for ours, ratios in case["ratios"].items():
            for against in ("torch", FLOOR):
                if against in ratios:
                    found[ours, name, against] = float(ratios[against]["median"])
    return found


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
