"""Plant small faults, one at a time, and see whether the tests notice: ``python tests/mutation.py``.

Forty places are drawn at random, in equal shares from cells, layers, training and the graph that a step becomes. In
each, one thing is changed in a copy of the repository: an operator, a comparison, a constant, a sign, or the order of
two arguments. The group's fast tests then run on NumPy until the first failure. A change that no test sees has
*survived*: it gets a test, or its line stands in `NO_FAULT` with the reason why it is no fault. Needs a system that can
fork (Linux, macOS).

Another ``--seed`` draws other places; ``--paths`` looks at files of your choice; ``--list`` only shows the changes.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import array_api_compat.numpy  # noqa: F401  (for run_tests, as torch is)
import pytest

with contextlib.suppress(ImportError):
    import torch  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "portable_rnn"

# Where to change something (globs inside the package), and the tests that have to see it, those that see most first.
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cells": (
        ("cells/*.py",),
        (
            "test_contract.py::test_every_kind_of_layer_matches_the_textbook",
            "test_gradients.py::test_gradients_match_finite_differences",
            "test_more_cells.py::test_hard_case_is_the_textbook",
            "test_more_cells.py::test_gradients_match_finite_differences",
            "test_more_cells.py::test_gradient_flow_sees_the_gates",
            "test_sequences.py::test_gradient_flow_has_each_gates_own_values",
            "test_options.py::test_derivatives_from_the_output_match_finite_differences",
            "test_options.py::test_activations_stay_finite_far_out",
        ),
    ),
    "layers": (
        ("layers/**/*.py",),
        (
            "test_contract.py::test_every_kind_of_layer_matches_the_textbook",
            "test_gradients.py::test_gradients_match_finite_differences",
            "test_composite.py",
            "test_initializers.py",
            "test_bad_input.py",
            "test_contract.py",
            "test_options.py::test_a_recurrent_layer_is_one_layer_that_reads_forward_unless_told",
            "test_options.py::test_a_recurrent_mask_scales_the_columns_of_weight_hh",
            "test_sequences.py::test_recomputed_segments_change_nothing",
        ),
    ),
    "training": (
        ("training/*.py",),
        (
            "test_losses.py",
            "test_optimizers.py",
            "test_model.py",
            "test_training.py::test_recorded_losses_and_norms_are_those_before_the_update",
            "test_training.py::test_the_recorded_norm_is_that_before_clipping",
            "test_training.py::test_early_stopping_gives_back_the_best_weights",
            "test_training.py::test_early_stopping_settings",
            "test_training.py::test_callbacks_see_every_epoch_and_stop_training",
            "test_training.py::test_lengths_are_rounded_up_to_powers_of_two_and_three_times_those",
            "test_training.py::test_padding_for_the_compiler_changes_no_dropout_mask",
            "test_sequences.py::test_truncated_backpropagation_hands_the_state_on",
            "test_sequences.py::test_lengths_under_truncation",
            "test_sequences.py::test_a_memory_limit_changes_the_memory_and_nothing_else",
            "test_memory.py::test_an_update_stays_below_its_memory_limit",
        ),
    ),
    "graph": (
        (
            *("execution/graph/*.py", "execution/tracing.py", "execution/planning.py"),
            *("execution/places.py", "execution/recording.py"),
        ),
        (
            "test_execution.py",
            "test_execution_programs.py::test_hazards",
            "test_execution_cells.py::test_every_cell_is_recorded",
            "test_gradients.py::test_gradients_match_finite_differences",
            "test_execution_cells.py",
            "test_execution_programs.py",
        ),
    ),
}
FASTEST = "not jax and not random"  # one token needs neither a compiler nor many examples

# Changes that are no faults: (file, the line as it stands, the line as it would be) and why.
NO_FAULT: dict[tuple[str, str, str], str] = {}

SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}


# Functions whose arguments are not swapped: some fail wherever they run, others give the same.
ORDER_SAYS_NOTHING = {"isinstance", "getattr", "max", "min", "maximum", "minimum", "logical_and", "logical_or"}


@dataclass(frozen=True)
class Change:
    """One replacement in a file: the bytes from `start` to `end` become `text`."""

    path: Path
    start: int
    end: int
    text: bytes

    def applied(self) -> bytes:
        """The changed file."""
        source = (ROOT / self.path).read_bytes()
        return source[: self.start] + self.text + source[self.end :]

    def lines(self) -> tuple[int, str, str]:
        """The number of the line, as it stands and as it would be."""
        source = (ROOT / self.path).read_bytes()
        number = source.count(b"\n", 0, self.start)
        before, after = source.splitlines()[number], self.applied().splitlines()[number]
        return number + 1, before.decode().strip(), after.decode().strip()


def changes(path: Path) -> list[Change]:
    """Every change of one token that makes sense in a file, in the order of the source."""
    source = (ROOT / path).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def between(left: ast.AST, right: ast.AST, operator: ast.AST) -> Iterator[Change]:
        if type(operator) in SWAPS:
            old, new = SWAPS[type(operator)]
            begin, end = span(left)[1], span(right)[0]
            found = re.search(re.escape(old.encode()), source[begin:end])
            if found:
                yield Change(path, begin + found.start(), begin + found.end(), new.encode())

    def of_node(node: ast.AST) -> Iterator[Change]:
        start, end = span(node) if hasattr(node, "lineno") else (0, 0)
        match node:
            case ast.BinOp(left=left, op=op, right=right) if not (_is_text(left) or _is_text(right)):
                yield from between(left, right, op)
            case ast.BoolOp(op=op, values=[*values]):
                yield from between(values[0], values[1], op)
            case ast.Compare(left=left, ops=[op, *_], comparators=[right, *_]):
                yield from between(left, right, op)
            case ast.UnaryOp(op=ast.USub()):
                yield Change(path, start, start + 1, b"+")
            case ast.UnaryOp(op=ast.Not()):
                yield Change(path, start, start + len(b"not "), b"")
            case ast.Constant(value=bool(value)):
                yield Change(path, start, end, str(not value).encode())
            case ast.Constant(value=int(value) | float(value)):
                yield Change(path, start, end, str(value + 1).encode())
            case ast.Call(func=called, args=[first, second, *_]) if _name(called) not in ORDER_SAYS_NOTHING:
                (a, b), (c, d) = span(first), span(second)
                if source[a:b] != source[c:d] and not any(isinstance(x, ast.Starred) for x in (first, second)):
                    yield Change(path, a, d, source[c:d] + source[b:c] + source[a:b])

    found = [change for node in _code(ast.parse(source)) for change in of_node(node)]
    return sorted(found, key=lambda change: change.start)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute something: no annotations, decorators, texts or errors."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.Assert, ast.JoinedStr)):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from _code(child)


def drawn(count: int, seed: int, paths: list[str]) -> list[tuple[str, Change]]:
    """The changes to try: a group's name and a change each, in equal shares."""
    rng = random.Random(seed)
    found: list[tuple[str, Change]] = []
    shares = [(count + place) // len(GROUPS) for place in range(len(GROUPS))]
    for (name, (globs, _)), share in zip(GROUPS.items(), shares, strict=True):
        files = sorted({file for glob in globs for file in (ROOT / PACKAGE).glob(glob)})
        if not files:
            raise SystemExit(f"{name}: no file matches {globs}: name those that hold it now")
        if paths:
            files = [file for file in files if any(file.match(f"*{path}") for path in paths)]
        all_changes = [change for file in files for change in changes(file.relative_to(ROOT))]
        found += [(name, change) for change in rng.sample(all_changes, min(share, len(all_changes)))]
    return found


def run_tests(folder: Path, group: str, limit: float) -> str:
    """What the group's tests say in `folder`: "" if they pass, else why not."""
    tests = [f"tests/{name}" for name in GROUPS[group][1]]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--backend", "numpy", "-m", "not slow", "-k", FASTEST]
    child = os.fork()  # what takes long to import is imported already
    if child == 0:
        status = 70
        try:
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            sys.dont_write_bytecode = True
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
            status = int(pytest.main([*options, *tests]))
            sys.stdout.flush()
        finally:
            os._exit(status)
    started = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - started > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "too long"
        time.sleep(0.02)
    said = (folder / "said").read_text(encoding="utf-8").strip().splitlines()
    return "" if status == 0 else (said or ["nothing"])[-1]


def main() -> int:
    """The exit status: 0 where at most one change in twenty survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", nargs="+", default=[], metavar="FILE", help="only in files whose path ends so")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--list", action="store_true", help="show the changes and run nothing")
    options = parser.parse_args()
    planned = [pair for pair in drawn(options.count, options.seed, options.paths) if pair[0] in options.groups]
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.list:
            for part in (PACKAGE, "tests", "benchmarks", "pyproject.toml"):
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, folder / part)
            limits = {}
            for group in sorted({group for group, _ in planned}):
                started = time.monotonic()
                if reason := run_tests(folder, group, 600):
                    print(f"the tests of {group} fail without any change: {reason}")
                    return 2
                limits[group] = 3 * (time.monotonic() - started) + 20
        print("| file | line | change | what became of it |\n|---|---|---|---|")
        for group, change in planned:
            number, before, after = change.lines()
            file = str(change.path.relative_to(PACKAGE))
            verdict = ""
            if not options.list:
                (folder / change.path).write_bytes(change.applied())
                killed = run_tests(folder, group, limits[group])
                shutil.copy(ROOT / change.path, folder / change.path)
                reason = NO_FAULT.get((file, before, after))
                verdict = "killed" if killed else f"no fault: {reason}" if reason else "**survived**"
                survivors += verdict == "**survived**"
            print(f"| {file} | {number} | `{before}` → `{after}` | {verdict} |", flush=True)
    if not options.list:
        print(f"{len(planned) - survivors} of {len(planned)} did not survive")
    return int(survivors > len(planned) / 20)


if __name__ == "__main__":
    sys.exit(main())
