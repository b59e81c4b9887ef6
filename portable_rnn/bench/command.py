"""The command `portable-rnn bench`, and what it shares with the benchmark of all peers."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import backend as as_backend
from ..errors import InputError
from ..files import Choice, Integer, Items, Maybe, Number, Record, Table, Text, write_file
from ..files import read_json as read_json_file
from ..version import __version__
from .cases import CELLS, KINDS, SIZES, Case, Peer
from .libraries import gemm_peer, ours_peer, torch_peer
from .picture import draw
from .report import Run, report, with_ratios
from .workers import measure, missing

__all__ = ["add_options", "bench", "run", "write_json"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that both commands have."""
    add = parser.add_argument
    add("--cells", metavar="A,B,...", type=_cells, default=list(CELLS), help="of RNN, GRU, LSTM (default: all)")
    sizes = "; ".join(f"{k}: {' '.join(map(str, size))}" for k, size in enumerate(SIZES, start=1))
    add("--sizes", metavar="N,N,...", type=_sizes, default=list(SIZES), help=f"B T I H of {sizes} (default: all)")
    add("--peers", metavar="A,B,...", type=_words, help="compare with these only (default: all that are installed)")
    add("--rounds", metavar="N", type=_count, default=11, help="times that each is timed (default: %(default)s)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--forward-only", dest="kinds", action="store_const", const=["forward"], default=list(KINDS))
    kinds.add_argument("--train-only", dest="kinds", action="store_const", const=["train"])
    add("--threads", metavar="N", type=_count, help="and processors for each library (default: its own choice)")
    add("--json", metavar="PATH", type=Path, help="write every time that was measured to this file")
    add("--plot", metavar="PATH", type=Path, help="picture of the ratios to torch and to the floor")


def bench(args: argparse.Namespace, plot: Path | None, say: Callable[[str], None]) -> None:
    """Time this library on one array library beside PyTorch, print the tables, write the files."""
    target = as_backend(args.backend, args.device, "float32")
    on_gpu = target.name != "numpy" and "cuda" in str(target.device).lower()
    peers = [ours_peer(target.name, args.device), torch_peer("cuda" if on_gpu else "cpu")]
    found = run(peers, gemm_peer(target.name, args.device), args)
    say(report(found))
    if args.json is not None:
        write_json(found, args.json)
        say(f"\nTimes: {args.json}")
    if plot is not None:
        draw(found, plot)
        say(f"Picture: {plot}")


def run(peers: Sequence[Peer], gemm: Peer, args: argparse.Namespace, path: Sequence[str] = ()) -> Run:
    """Time all peers that are wanted and installed.

    Parameters
    ----------
    peers : sequence of Peer
        The first one, which is always timed, is what the tables call "ours".
    gemm : Peer
        The square product behind the floor.
    args : Namespace
        Of `add_options`.
    path : sequence of str
        Folders that the peers' factories are also looked for in.

    Returns
    -------
    dict
        What `report`, `draw`, `compare` and a JSON file take.

    Raises
    ------
    InputError
        A peer has a name that nobody has, this library failed, or outputs differ.
    """
    ours = peers[0].name
    if args.peers is not None:
        unknown = ", ".join(sorted(set(args.peers) - {peer.name for peer in peers}))
        if unknown:
            raise InputError(f"--peers: expected some of {', '.join(p.name for p in peers)}, received {unknown}")
        peers = [peer for peer in peers if peer.name == ours or peer.name in args.peers]
    absent = {peer.name: missing(peer) for peer in peers if missing(peer)}
    peers = [peer for peer in peers if peer.name not in absent]
    cases = [Case(cell, size, kind) for cell in args.cells for kind in args.kinds for size in args.sizes]
    say = _progress if sys.stderr is not None else lambda text: None
    measured = measure([*peers, gemm], cases, rounds=args.rounds, threads=args.threads, path=path, say=say)
    for case in measured:
        if ours in case["failed"]:
            raise InputError(f"{ours} failed at {case['cell']} {tuple(case['size'])}: {case['failed'][ours]}")
    return {
        "format": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {"portable-rnn": __version__}
        | _versions(["numpy", "llvmlite", *(p for peer in peers for p in peer.packages)]),
        "settings": {"rounds": args.rounds, "threads": args.threads},
        "ours": ours,
        "peers": [peer.name for peer in peers],
        "missing": absent,
        "cases": measured,
    }


def write_json(found: Run, path: Path) -> None:
    """With the ratios, and a line for each case, so that two files can be compared by eye."""
    found = with_ratios(found)
    head = json.dumps({key: value for key, value in found.items() if key != "cases"}, indent=1, ensure_ascii=False)
    cases = ",\n  ".join(json.dumps(case) for case in found["cases"])
    write_file(path, f'{head[:-2]},\n "cases": [\n  {cases}\n ]\n}}\n'.encode())


def read_json(path: Path) -> Run:
    """A file of `write_json`.

    Raises
    ------
    InputError
        It can't be read, or is something else.
    """
    try:
        found: Run = read_json_file(path, _RUN)
    except InputError as error:
        raise InputError(f"{str(path)!r} is no file that `portable-rnn bench --json` wrote: {error}") from error
    return found


def _measured(size: tuple[int, ...], seconds: dict[str, tuple[float, ...]], **others: Any) -> dict[str, Any]:
    """A case of a file: every peer was timed in each round."""
    if len(size) != 4 or len({len(times) for times in seconds.values()} | {0}) > 2 or () in seconds.values():
        raise InputError(f"expected a size of 4 numbers and as many times for each peer, got {size} and {seconds}")
    return {"size": list(size), "seconds": {name: list(times) for name, times in seconds.items()}, **others}


_CASE = Record(
    _measured,
    {
        "cell": Choice(CELLS),
        "kind": Choice(tuple(KINDS)),
        "size": Items(Integer(1, 2**31)),
        "seconds": Table(Items(Number(above=1e-12, below=1e9))),
        "failed": Table(Text()),
    },
    others=True,  # ratios, which are made again from the seconds
)
_MACHINE = {name: Text() for name in ("processor", "system", "python", "blas")}
# What `write_json` writes
_RUN = Record(
    dict,
    {
        "format": Integer(1, 1),
        "date": Text(),
        "machine": Record(dict, {**_MACHINE, "cores": Maybe(Integer(1))}),
        "versions": Table(Text()),
        "settings": Record(dict, {"rounds": Integer(1), "threads": Maybe(Integer(1))}),
        "ours": Text(),
        "peers": Items(Text()),
        "missing": Table(Text()),
        "cases": Items(_CASE),
    },
)


# ---------------------------------------------------------------------- about the machine


def _machine() -> dict[str, Any]:
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Of importable names: a name may differ from that of the distribution (cupy)."""
    distributions = packages_distributions()
    found = {}
    for package in dict.fromkeys(packages):
        try:
            found[package] = version(distributions.get(package, [package])[0])
        except PackageNotFoundError:
            found[package] = "unknown" if importlib.util.find_spec(package) else "not installed"
    return found


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- what options mean


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _cells(text: str) -> list[str]:
    words = [word.upper() for word in _words(text)]
    if not words or not set(words) <= set(CELLS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(CELLS)}, received {text!r}")
    return [cell for cell in CELLS if cell in words]


def _sizes(text: str) -> list[tuple[int, int, int, int]]:
    if text == "all":
        return list(SIZES)
    words = _words(text)
    numbers = [int(word) for word in words if word.isdecimal() and 1 <= int(word) <= len(SIZES)]
    if not words or len(numbers) != len(words):
        raise argparse.ArgumentTypeError(f"expected numbers from 1 to {len(SIZES)}, or all, received {text!r}")
    return [size for k, size in enumerate(SIZES, start=1) if k in numbers]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, received {text!r}")
    return int(text)
