"""Lines of steer/ that the tests run: `coverage.py run [PYTEST ARGUMENTS]` measures, `coverage.py page` makes the page.

The record is docs/coverage.json, and the page docs/coverage.md is made of it and of coverage_reasons.json, where each
line that no test runs has its reason. Reasons are kept by file and function, or by file and the text of the line, so
that they survive edits. A whole run takes some ten minutes on two cores; processes that tests start are counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORD, PAGE, REASONS = ROOT / "docs/coverage.json", ROOT / "docs/coverage.md", HERE / "coverage_reasons.json"
SETTINGS = """\
[run]
source_pkgs = steer
parallel = True
patch =
    subprocess
    _exit
data_file = {folder}/data
[paths]
steer =
    {root}/steer
    */steer
[report]
exclude_also =
    if TYPE_CHECKING:
    ^\\s*\\.\\.\\.$
    @(abc\\.)?abstractmethod
"""


def run(arguments: list[str]) -> int:
    """Run the tests under coverage.py and keep what was found; the tests' exit code."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "coverage.ini"
        settings.write_text(SETTINGS.format(folder=folder, root=ROOT))
        command = [sys.executable, "-m", "coverage"]
        there = {"cwd": ROOT, "env": {**os.environ, "COVERAGE_RCFILE": str(settings)}}
        tests = subprocess.run([*command, "run", "-m", "pytest", *arguments], **there)
        subprocess.run([*command, "combine", "-q"], check=True, **there)
        report = Path(folder) / "report.json"
        subprocess.run([*command, "json", "-q", "-o", str(report)], check=True, **there)
        RECORD.write_text(
            json.dumps(record(json.loads(report.read_text()), arguments, tests.returncode), indent=1) + "\n"
        )
    return tests.returncode


def record(report: dict[str, Any], arguments: list[str], code: int) -> dict[str, Any]:
    """What is kept of coverage.py's report: for each file its statements, and each missed line by function and text."""
    files = {}
    for name, found in sorted(report["files"].items()):
        path = str(Path(name).resolve().relative_to(ROOT)) if Path(name).is_absolute() else name
        lines = (ROOT / path).read_text().splitlines()
        missed = [
            [function, lines[number - 1].strip()]
            for function, part in found["functions"].items()
            for number in part["missing_lines"]
        ]
        files[path] = {"statements": found["summary"]["num_statements"], "missed": missed}
    versions = {name: version(name) for name in ("coverage", "torch", "transformers")}
    python = ".".join(map(str, sys.version_info[:2]))
    return {"about": {"pytest": arguments, "exit": code, "python": python, **versions}, "files": files}


def page(found: dict[str, Any], reasons: dict[str, dict[str, str]]) -> str:
    """The page."""
    about = found["about"]
    asked = " ".join(["pytest", *about["pytest"]])
    versions = ", ".join(f"{name} {about[name]}" for name in ("coverage", "torch", "transformers"))
    state = "all passed" if about["exit"] == 0 else f"some failed (exit code {about['exit']})"
    parts = [
        "# What the tests run",
        "Lines of `steer/` that the tests run, measured by coverage.py; made by `docs/experiments/coverage.py`.",
        f"`{asked}`: {state}. Python {about['python']}, {versions}, on a CPU.",
        _table(found["files"]),
        "## Lines that no test runs",
        "By file and function, with the reason. A line that is run only in a GPU's presence is counted as missed here.",
        *_missed(found["files"], reasons),
    ]
    return "\n\n".join(parts) + "\n"


def _table(files: dict[str, Any]) -> str:
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path, one in files.items():
        for name in ("/".join(path.split("/")[:2]) if path.count("/") > 1 else "steer", "all"):
            sums[name][0] += one["statements"]
            sums[name][1] += len(one["missed"])
    order = [*sorted(set(sums) - {"all"}), "all"]
    rows = [f"| {name} | {sums[name][0]} | {sums[name][1]} | {_share(*sums[name])} |" for name in order]
    return "\n".join(["| package | statements | missed | run |", "|---|---|---|---|", *rows])


def _share(statements: int, missed: int) -> str:
    return f"{100 * (statements - missed) / statements:.1f} %" if statements else "100 %"


def _missed(files: dict[str, Any], reasons: dict[str, dict[str, str]]) -> list[str]:
    parts = []
    for path, one in files.items():
        if one["missed"]:
            by_function: dict[str, list[str]] = defaultdict(list)
            for function, text in one["missed"]:
                by_function[function].append(text)
            lines = [_entry(name, texts, reasons.get(path, {})) for name, texts in by_function.items()]
            parts.append("\n".join([f"**{path}**", "", *lines]))
    return parts


def _entry(function: str, texts: list[str], reasons: dict[str, str]) -> str:
    said = {reasons.get(text) or reasons.get(function) or "not explained yet" for text in texts}
    shown = f"`{texts[0]}`" + (f" and {len(texts) - 1} more" if len(texts) > 1 else "")
    return f"- `{function or 'module'}`: {shown}: {'; '.join(sorted(said))}"


def main() -> int:
    """Measure, or only write the page."""
    words = sys.argv[1:]
    if not words or words[0] not in ("run", "page"):
        print(__doc__)
        return 2
    code = run(words[1:]) if words[0] == "run" else 0
    found = json.loads(RECORD.read_text())
    PAGE.write_text(page(found, json.loads(REASONS.read_text())))
    print(_table(found["files"]))
    return code


if __name__ == "__main__":
    sys.exit(main())
