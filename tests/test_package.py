"""What the package promises as a whole: metadata, public names, documentation, size, cheap import."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

import portable_rnn as prnn

ROOT = Path(__file__).parent.parent
PACKAGE = Path(prnn.__file__).parent
PUBLIC = (
    "portable_rnn",
    "portable_rnn.data",
    "portable_rnn.data.datasets",
    "portable_rnn.training.losses",
    "portable_rnn.notebook",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def test_version_is_the_installed_one() -> None:
    try:
        installed = importlib.metadata.version("portable-rnn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("portable-rnn itself is not installed: it runs from its folder")
    assert installed == prnn.__version__


def test_version_is_in_the_changelog() -> None:
    assert prnn.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_extras_that_errors_name_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        named = re.findall(r'(?:require\("[\w.]+"|MissingDependencyError\("[\w.-]+"), "(\w+)"', source)
        assert set(named) <= {*extras, "none"}, f"{file.name} names an extra that pyproject.toml lacks: {named}"


def test_types_are_shipped() -> None:
    assert resources.files("portable_rnn").joinpath("py.typed").is_file()


@pytest.mark.parametrize(
    "module", [".".join(("portable_rnn", *f.relative_to(PACKAGE).with_suffix("").parts)) for f in FILES]
)
def test_names_in_all_exist(module: str) -> None:
    if module.endswith("__main__"):
        return
    try:
        found = importlib.import_module(module.removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        if (error.name or "portable_rnn").startswith("portable_rnn"):
            raise
        pytest.skip(f"{error.name} is not installed")
    assert found.__doc__, f"{module} has no docstring"
    for name in getattr(found, "__all__", ()):
        assert hasattr(found, name), f"{module}.__all__ names {name}"


def test_public_names_are_in_the_reference() -> None:
    lines = {line.strip() for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines()}
    names = [name for name in prnn.__all__ if name != "__version__"]
    modules = {name: value.__name__ for name in names if isinstance(value := getattr(prnn, name), ModuleType)}
    modules["verify"] = "portable_rnn.verify.verify"  # the function, which stands before its package's name
    missing = [name for name in names if f"::: {modules.get(name, f'portable_rnn.{name}')}" not in lines]
    assert not missing, f"docs/api.md lacks {missing}"


@pytest.mark.parametrize("module", PUBLIC)
def test_public_objects_are_documented(module: str) -> None:
    """A summary line, and every parameter described there or in the docstring that this one refers to."""
    found = importlib.import_module(module)
    for name in found.__all__:
        value = getattr(found, name)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        doc = inspect.getdoc(value)
        assert doc, f"{module}.{name} has no docstring"
        assert doc.splitlines()[0].rstrip().endswith((".", ":", ";", "``")), f"{module}.{name}: {doc.splitlines()[0]}"
        if inspect.isfunction(value) and inspect.signature(value).parameters:
            described = any(word in doc for word in ("Parameters", "as in `", "see `", "As in `", "those of `"))
            assert described or _formula_names_all(value, doc), f"{module}.{name} does not describe its parameters"


def _formula_names_all(function: object, doc: str) -> bool:
    """Whether a short docstring at least uses every parameter's name."""
    return all(name in doc for name in inspect.signature(function).parameters)  # type: ignore[arg-type]


def code_lines(source: str) -> int:
    """Lines that hold code: without blank lines, comments and docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            doc = node.body[0]
            lines.difference_update(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
    return len(lines)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_modules_stay_small(file: Path) -> None:
    assert code_lines(file.read_text(encoding="utf-8")) <= 400


def test_code_lines_counts_code_only() -> None:
    assert code_lines('"""Two\nlines."""\n\n# why\nx = """a\nb"""\n\n\ndef f():\n    """Doc."""\n    return 1\n') == 4


def test_import_brings_no_array_library() -> None:
    others = ("jax", "torch", "cupy", "dpnp", "array_api_strict", "matplotlib", "tqdm")
    code = f"import sys, portable_rnn; print([n for n in {others} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
