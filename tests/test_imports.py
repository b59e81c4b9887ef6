"""Which file may import which: everything is read from the source, imports inside functions too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import portable_rnn

PACKAGE = Path(portable_rnn.__file__).parent

# The floors of the house, from the ground up. A file imports only from floors below its own, through their `__init__`.
# fmt: off
ORDER = [
    "errors", "version", "files", "arrays", "execution", "cells", "layers", "data", "datasets", "plotting",
    "training", "models", "interop", "forecasting", "verify", "estimators", "notebook", "bench",
    "cli", "__main__", "__init__",
]
# fmt: on

ARRAY_LIBRARIES = {"jax", "torch", "cupy", "dpnp", "array_api_compat", "array_api_strict", "cupyx", "dpctl", "llvmlite"}
# What else a room may import, and that only inside functions: all of it is optional.
LAZY = {
    "interop": {"torch", "keras", "flax", "jax", "onnx", "google"},
    "plotting": {"matplotlib"},
    "training": {"tqdm"},
    "bench": {"torch", "matplotlib"},
    "cli": {"matplotlib", "tqdm"},
    "estimators": {"sklearn"},
}
# Needed by all, so imported at the top.
REQUIRED = {"numpy": None, "safetensors": {"models", "interop"}, "array_api_compat": {"arrays", "execution"}}
# Files whose classes derive from the package's own, so at their top: they are themselves imported inside functions.
DERIVED = {"interop/torch_modules.py": {"torch", "array_api_compat"}, "estimators": {"sklearn"}}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it is inside a function) of everything a file imports; ours start with a dot."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _as_ours(alias.name), id(node) in lazy
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                for dotted in _relative(path, node):
                    yield dotted, id(node) in lazy
            else:
                yield _as_ours(node.module or ""), id(node) in lazy


def _as_ours(dotted: str) -> str:
    return dotted.removeprefix("portable_rnn") if dotted.partition(".")[0] == "portable_rnn" else dotted


def _relative(path: Path, node: ast.ImportFrom) -> Iterator[str]:
    """The absolute names of ``from .a import b``, as ".a" or, where b is a module itself, ".a.b"."""
    here = path.parent.relative_to(PACKAGE).parts
    base = here[: len(here) - (node.level - 1)]
    if node.module:
        base = (*base, *node.module.split("."))
    folder = PACKAGE.joinpath(*base)
    for alias in node.names:
        is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name / "__init__.py").exists()
        parts = (*base, alias.name) if is_module and folder.is_dir() else base
        yield "." + ".".join(parts)


def room(path: Path) -> str:
    """The entry of `ORDER` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def target_room(dotted: str) -> str:
    return dotted.split(".")[1] or "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(params=FILES, ids=_name)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_file_has_its_place(path: Path) -> None:
    assert room(path) in ORDER, f"put {room(path)!r} into ORDER, above all that it imports"


def test_a_file_imports_only_from_floors_below(path: Path) -> None:
    own = ORDER.index(room(path))
    for dotted, _ in imports(path):
        if dotted.startswith("."):
            other = target_room(dotted)
            assert other == room(path) or ORDER.index(other) < own, f"{room(path)} must not import {other}"


# Modules that are public names themselves, and functions that bear their module's name.
NAMED = {
    *(".cells.activations", ".layers.initializers", ".training.losses"),
    *(".arrays.backend", ".interop.convert", ".models.gradient_flow", ".verify.verify"),
}


def test_a_floor_is_used_through_its_face(path: Path) -> None:
    ours = {dotted for dotted, _ in imports(path) if dotted.startswith(".")}
    inner = {dotted for dotted in ours if target_room(dotted) != room(path) and dotted.count(".") > 1}
    assert inner <= NAMED, f"import from the folder's __init__: {sorted(inner - NAMED)}"


def test_no_folder_imports_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = "." + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[name] = {dotted for dotted, _ in imports(path) if dotted.startswith(".")} - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_only_the_seam_names_an_array_library(path: Path) -> None:
    if room(path) in ("arrays", "execution"):
        return
    found = {dotted.partition(".")[0] for dotted, _ in imports(path)}
    allowed = LAZY.get(room(path), set()) | DERIVED.get(_name(path), set())
    assert not (found & ARRAY_LIBRARIES) - allowed, f"{room(path)} must stay within the array API standard"


def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    own = room(path)
    for dotted, lazy in imports(path):
        top = dotted.partition(".")[0]
        if not top or top in sys.stdlib_module_names or top in DERIVED.get(_name(path), ()):
            continue
        if top in REQUIRED:
            where = REQUIRED[top]
            assert where is None or own in where, f"{own} must not import {top}"
        else:
            allowed = ARRAY_LIBRARIES if own in ("arrays", "execution") else LAZY.get(own, set())
            assert top in allowed, f"{own} must not import {top}"
            assert lazy, f"{own} must import {top} inside a function"


# ---------------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from .cells import Cell", [(".cells", False)]),
        ("from . import cells, InputError", [(".cells", False), (".", False)]),
        ("def f():\n    import torch.nn", [("torch.nn", True)]),
        ("class A:\n    def f(self):\n        from .model import Model", [(".model", True)]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", [("typing", False)]),
    ],
)
def test_imports_are_found(source: str, expected: list[tuple[str, bool]]) -> None:
    planted = _Planted(source)
    assert list(imports(planted)) == expected  # type: ignore[arg-type]


class _Planted:
    """A file of the package that isn't there."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.parent = PACKAGE

    def read_text(self, encoding: str) -> str:
        return self.source
