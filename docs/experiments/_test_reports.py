"""What pytest says of tests that are named by a class of transformers, kept by file, class and kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAME = re.compile(r"([\w.]+)::\w+\[([A-Za-z]\w*)(?:-([\w-]+))?\]")
_RANK = ("failed", "passed", "skipped")


@dataclass
class Reports:
    """A pytest plugin; of several tests with one file, class and kind the worst is kept.

    Attributes:
        found: (file, class, kind) -> (outcome, detail); the kind is what follows the class in the test's name.
    """

    found: dict[tuple[str, str, str], tuple[str, str]] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest for the set-up, the call and the end of each test."""
        name = _NAME.search(report.nodeid)
        if name is None or (report.when != "call" and report.outcome == "passed"):
            return
        detail = str(dict(report.user_properties).get("detail", ""))
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            detail = report.longrepr[2].removeprefix("Skipped: ")
        self._keep((name[1], name[2], name[3] or ""), report.outcome, detail)

    def _keep(self, key: tuple[str, str, str], outcome: str, detail: str) -> None:
        known = self.found.get(key)
        if known is None or _RANK.index(outcome) < _RANK.index(known[0]):
            self.found[key] = outcome, detail

    def cell(self, file: str, name: str, kind: str | None = None) -> str:
        """One cell of a table: the worst of a class's tests, of one kind or of all."""
        found = [v for (f, n, k), v in self.found.items() if f == file and n == name and kind in (None, k)]
        if not found:
            return "not run"
        outcome, detail = min(found, key=lambda result: _RANK.index(result[0]))
        reason = detail.partition(";")[0].replace("|", "/")
        return {"passed": "pass", "failed": f"**failed** {reason}".strip(), "skipped": f"— {reason}"}[outcome]

    def numbers(self, word: str) -> list[float]:
        """Every number that follows a word in the details of tests that passed."""
        details = " ".join(detail for outcome, detail in self.found.values() if outcome == "passed")
        return [float(number) for number in re.findall(rf"{word} (\d[\d.e+-]*)", details)]


def run(root: Path, files: Iterable[Path], names: Iterable[str] = ()) -> Reports:
    """Run test files in this process, for every class or for those whose names hold one of `names`."""
    reports = Reports()
    chosen = ["-k", " or ".join(names)] if names else []
    code = pytest.main(["-q", "-n0", "--rootdir", str(root), *chosen, *map(str, files)], plugins=[reports])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"pytest did not run the tests: {code!r}")
    return reports
