"""The page on coverage is made of its record, and no reason is of a line or a function that is gone."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Not by its own name, which is that of the library.
_spec = importlib.util.spec_from_file_location("steer_coverage_page", ROOT / "docs/experiments/coverage.py")
coverage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(coverage)
REASONS = json.loads(coverage.REASONS.read_text())


def functions(tree: ast.AST, before: str = "") -> Iterator[str]:
    """The functions of a file as coverage.py names them."""
    for node in ast.iter_child_nodes(tree):
        inner = before
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{before}.{node.name}".lstrip(".")
            if not isinstance(node, ast.ClassDef):
                yield inner
        yield from functions(node, inner)


@pytest.mark.parametrize("path", REASONS)
def test_every_reason_is_of_a_line_or_a_function_that_is_there(path):
    text = (ROOT / path).read_text()
    lines, known = {line.strip() for line in text.splitlines()}, set(functions(ast.parse(text)))
    for key, reason in REASONS[path].items():
        assert key in lines | known, f"{path} has no line and no function {key!r} any more"
        assert len(reason) > 10


@pytest.mark.skipif(
    not coverage.RECORD.exists(), reason="coverage was not measured yet: docs/experiments/coverage.py run"
)
def test_the_page_is_made_of_the_record():
    assert coverage.PAGE.read_text() == coverage.page(json.loads(coverage.RECORD.read_text()), REASONS)


def test_the_record_and_the_page_of_a_report():
    report = {
        "files": {
            "steer/errors.py": {
                "summary": {"num_statements": 20},
                "functions": {"unknown_name": {"missing_lines": [1]}, "": {"missing_lines": []}},
            },
            "steer/data/_rows.py": {"summary": {"num_statements": 10}, "functions": {}},
        }
    }
    first = (ROOT / "steer/errors.py").read_text().splitlines()[0].strip()
    found = coverage.record(report, ["-q"], 1)
    assert found["files"]["steer/errors.py"] == {"statements": 20, "missed": [["unknown_name", first]]}
    page = coverage.page(found, {"steer/errors.py": {"unknown_name": "because of this"}})
    for fact in ("| steer | 20 | 1 | 95.0 % |", "| steer/data | 10 | 0 | 100.0 % |", "| all | 30 | 1 | 96.7 % |"):
        assert fact in page
    assert "because of this" in page
    assert "some failed (exit code 1)" in page
    assert "not explained yet" in coverage.page(found, {})
