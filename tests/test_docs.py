"""The Python blocks of README.md and of the pages in docs/ run, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import portable_rnn as prnn

ROOT = Path(__file__).parent.parent
PAGES = {page.name: page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
GUIDES = ("CONTRIBUTING.md", "docs/development.md", ".github/RELEASING.md")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A block that names one of these needs it.
LIBRARIES = re.compile(r'"(jax|torch|cupy|dpnp)"|^import (jax|torch|cupy|dpnp)\b', re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return [code for name, code in FENCE.findall(text) if name == language]


def missing_library(code: str) -> str:
    """Why a block can't run here, or nothing."""
    for name in {a or b for a, b in LIBRARIES.findall(code)}:
        try:
            prnn.backend(name)
        except prnn.BackendError as error:
            return str(error)
    if "import onnx" in code and importlib.util.find_spec("onnx") is None:
        return "onnx is not installed"
    return ""


class Session:
    """The blocks of a page run one after another in one namespace, as a reader would type them."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.codes = blocks(page, "python")
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.done = 0

    def run(self, last: int) -> None:
        """Run the blocks up to `last` that have not run yet; those that can't run here are left out."""
        while self.done <= last:
            code = self.codes[self.done]
            self.done += 1
            if not missing_library(code):
                lines = self.page.read_text(encoding="utf-8").partition(code)[0].count("\n")
                # newlines in front, so that a traceback shows the line of the page
                exec(compile("\n" * lines + code, str(self.page), "exec"), self.namespace)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    """One for each page."""
    return {name: Session(page, tmp_path_factory.mktemp(page.stem)) for name, page in PAGES.items()}


def numbered_blocks(*, of_cupy: bool) -> list[tuple[str, int]]:
    """(page, number) of the Python blocks that name CuPy, or of the others."""
    found = [(name, k, code) for name, page in PAGES.items() for k, code in enumerate(blocks(page, "python"))]
    return [(name, k) for name, k, code in found if ('"cupy"' in code) == of_cupy]


@pytest.mark.parametrize(("name", "number"), numbered_blocks(of_cupy=True))
def test_python_blocks_with_cupy_run(
    name: str, number: int, sessions: dict[str, Session], monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    if backend.name != "cupy":
        pytest.skip("it is the other library")
    test_python_blocks_run(name, number, sessions, monkeypatch)


@pytest.mark.parametrize(("name", "number"), numbered_blocks(of_cupy=False))
def test_python_blocks_run(
    name: str, number: int, sessions: dict[str, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions[name]
    matplotlib.use("agg")
    monkeypatch.chdir(session.folder)
    if reason := missing_library(session.codes[number]):
        pytest.skip(reason)
    session.run(number)


def test_readme_has_its_two_commands() -> None:
    lines = PAGES["README.md"].read_text(encoding="utf-8").splitlines()
    assert lines.count('pip install ".[cli]" && portable-rnn demo') == 1
    assert lines.count('pip install -e ".[test]" && pytest') == 1


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str) -> None:
    page = PAGES[name]
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target and target != "changelog.md":
            assert (page.parent / target).exists(), f"{name} links to {target}"


@pytest.mark.parametrize("page", GUIDES)
def test_files_that_guides_name_exist(page: str) -> None:
    """A path in backquotes is one from the root of the repository or from the package."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+(?:/|\.(?:py|md|txt|toml|yml|cff)))`", text)
    assert named
    missing = [path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "portable_rnn"))]
    assert not missing, f"{page} names {missing}"


@pytest.mark.parametrize("name", PAGES)
def test_command_lines_parse(name: str) -> None:
    from portable_rnn.cli import build_parser

    for code in blocks(PAGES[name], "sh"):
        for line in code.splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                if words[:1] == ["portable-rnn"] and "--help" not in words:
                    build_parser().parse_args(words[1:])
