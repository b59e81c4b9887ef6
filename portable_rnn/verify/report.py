"""What `verify` found: one line a check, and what to do about a failure."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

__all__ = ["Check", "Report"]

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Check:
    """One check on one array library, device and dtype.

    Attributes
    ----------
    name : str
        What holds if it passes, such as "gradients equal finite differences".
    backend, device, dtype : str
    status : str
        "passed", "failed" or "skipped".
    error : float or None
        The largest relative error that was found; None where nothing is compared number by number.
    limit : float or None
        The largest one allowed.
    detail : str
        Of a failure: where it is. Of a skipped check: why.
    seconds : float
    """

    name: str
    backend: str
    device: str
    dtype: str
    status: str
    error: float | None
    limit: float | None
    detail: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """All checks of a model. True if none failed.

    Attributes
    ----------
    model : str
        The network that was checked.
    checks : tuple of Check
    versions : dict of str to str
        Of this library and of the array libraries that took part.
    """

    model: str
    checks: tuple[Check, ...]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == FAILED)

    def __bool__(self) -> bool:
        return self.passed

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def to_json(self) -> str:
        """Everything as JSON: ``model``, ``passed``, ``versions`` and ``checks``."""
        content = {"model": self.model, "passed": self.passed, "versions": self.versions}
        return json.dumps(content | {"checks": [asdict(check) for check in self.checks]}, indent=2)

    def __str__(self) -> str:
        rows = [("check", *self._columns())]
        rows += [(name, *(self._cell(name, column) for column in self._columns())) for name in self._names()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.model, ""]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        skipped = [f"- {check.name}: {check.detail}" for check in self.checks if check.status == SKIPPED]
        failed = [f"{c.name} ({_column(c)}): FAILED, {c.detail}" for c in self.failures]
        return "\n".join([*lines, "", *dict.fromkeys(skipped), *failed, self._verdict()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self._columns())
        body = []
        for name in self._names():
            cells = "".join(f"<td>{html.escape(self._cell(name, column))}</td>" for column in self._columns())
            body.append(f'<tr><th style="text-align: left">{html.escape(name)}</th>{cells}</tr>')
        failed = "".join(f"<li>{html.escape(f'{c.name}: {c.detail}')}</li>" for c in self.failures)
        return (
            f"<p><code>{html.escape(self.model)}</code></p>"
            f"<table><tr><th></th>{head}</tr>{''.join(body)}</table><ul>{failed}</ul><p>{html.escape(self._verdict())}</p>"
        )

    def _names(self) -> list[str]:
        return list(dict.fromkeys(check.name for check in self.checks))

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(map(_column, self.checks)))

    def _cell(self, name: str, column: str) -> str:
        found = [check for check in self.checks if check.name == name and _column(check) == column]
        if not found:
            return ""
        check = found[0]
        if check.status == SKIPPED:
            return "-"
        value = "" if check.error is None else f" {check.error:.0e}"
        return ("ok" if check.status == PASSED else "FAILED") + value

    def _verdict(self) -> str:
        done = sum(check.status != SKIPPED for check in self.checks)
        if not self.passed:
            return (
                f"{len(self.failures)} of {done} checks failed: report them with this text, the model's file and "
                f"the versions {', '.join(f'{name} {version}' for name, version in self.versions.items())}"
            )
        return f"all {done} checks passed"


def _column(check: Check) -> str:
    device = "" if check.device in ("", "cpu") else f" {check.device}"
    return f"{check.backend}{device} {check.dtype}".strip()
