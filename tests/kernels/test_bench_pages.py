"""The pages about the kernels' speed say what their records say; a target is met where all its rows meet it."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from steer_kernels.bench import Options
from steer_kernels.bench.rows import Row, write_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def script(monkeypatch):
    """The modules of kernels/bench by name."""
    names = ("_page", "_targets", "_words", "record")
    monkeypatch.syspath_prepend(str(ROOT / "kernels" / "bench"))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def test_the_pages_are_what_their_records_give(script, tmp_path):
    for file in RESULTS.glob("kernels-*"):
        if file.suffix != ".md":
            shutil.copy(file, tmp_path)
    pages = script("_page").write(tmp_path)
    committed = {path.name: path.read_text(encoding="utf-8") for path in RESULTS.glob("kernels*.md")}
    assert pages == committed


def test_the_records_are_whole_and_of_known_sizes(script):
    for file in RESULTS.glob("kernels-*.json"):
        about, rows = script("_page").read(file)
        assert about["scale"] in ("cpu", "cuda"), "a quick run says nothing"
        for row in rows:
            assert row.error or row.ms_low <= row.ms <= row.ms_high
            assert row.device == about["device"]


ABOUT = {
    "device": "A card",
    "type": "cuda",
    "cores": 4,
    "cpu": "A processor",
    "threads": 4,
    "cache_mb": 50,
    "rounds": 15,
    "python": "3.12",
    "versions": {"torch": "2.11"},
    "date": "2026-01-01",
    "seed": 0,
    "scale": "cuda",
}


def row(kernel, direction="forward", large=True, **given) -> Row:
    given = {"sizes": "T=8", "dtype": "bf16", "ms": 1.0, "device": "A card", **given}
    return Row(kernel, "form", direction, large=large, **given)


def verdicts(text: str) -> dict[str, tuple[str, str]]:
    """By target: the figure and the verdict."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    return {line[0]: (line[1], line[2]) for line in lines if len(line) == 4}


def test_a_target_is_the_worst_of_its_rows_and_blank_without_any(script, tmp_path):
    rows = [
        row("shift", of_copy=0.95),
        row("shift", of_copy=0.86),
        row("shift", of_copy=0.2, large=False),
        row("shift", direction="forward+backward", of_copy=0.1),
        row("compact", of_copy=0.84),
        row("head_shift", x_eager=3.5, x_compiled=1.1),
        row("jsd", x_liger=4.0, peak_ours_mb=1.0, peak_liger_mb=100.0),
        row("jsd", direction="forward+backward", x_liger=1.0, peak_ours_mb=101.0, peak_liger_mb=100.0),
    ]
    write_json(tmp_path / "kernels-a-card.json", ABOUT, rows)
    text = script("_page").write(tmp_path)["kernels-a-card.md"]
    found = verdicts(text)
    assert found["`shift`: at least 0.85 of copy bandwidth"] == ("0.86", "met")
    assert found["`compact`: at least 0.85 of copy bandwidth"] == ("0.84", "**not met**")
    assert found["`query_shift`: at least 0.85 of copy bandwidth"] == ("", "")
    assert found["`head_shift`, forward: at least 3 x plain torch"] == ("3.50", "met")
    assert found["`head_shift`, forward: at least 1.2 x torch.compile"] == ("1.10", "**not met**")
    assert found["`jsd`, forward: at least 1.1 x Liger-Kernel"] == ("4.00", "met")
    assert found["`jsd`, forward+backward: at least 1.1 x Liger-Kernel"] == ("1.00", "**not met**")
    memory = "`jsd`, forward+backward: no more memory than Liger-Kernel (a share of it)"
    assert found[memory] == ("1.01", "**not met**")
    assert "not measured" in text


def test_rows_in_new_memory_count_for_their_own_target(script, tmp_path):
    rows = [row("compact", of_copy=0.5), row("compact", of_copy=0.9, memory="new memory")]
    write_json(tmp_path / "kernels-cpu.json", {**ABOUT, "type": "cpu"}, rows)
    found = verdicts(script("_page").write(tmp_path)["kernels-cpu.md"])
    target = "`compact`: within 1.3 x of copying as many bytes (0.77 of copy bandwidth)"
    assert found[target] == ("0.50", "**not met**")
    assert found[f"{target}, in new memory"] == ("0.90", "met")


@pytest.mark.parametrize("big, verdict", [(8.0, "met"), (16.0, "**not met**")])
def test_memory_that_grows_with_the_square_is_not_linear(script, tmp_path, big, verdict):
    sizes = ((32_768, 2.0), (131_072, big))
    rows = [
        Row("token_scores", "grouped", "forward", f"S={s}", "bf16", "A card", ms=1.0, peak_ours_mb=mb)
        for s, mb in sizes
    ]
    write_json(tmp_path / "kernels-a-card.json", ABOUT, rows)
    found = verdicts(script("_page").write(tmp_path)["kernels-a-card.md"])
    target = "`token_scores`: memory linear in S (4 times the keys, at most 4.2 times the memory)"
    assert found[target] == (f"{big / 2:.2f}", verdict)


def test_what_went_wrong_or_was_left_out_is_on_the_page(script, tmp_path):
    rows = [row("jsd", ms=None, error="jsd and the plain formula differ"), row("shift", note="liger is not here")]
    tests = {"passed": 7, "failed": 1, "errors": 1, "skipped": 0}
    write_json(tmp_path / "kernels-a-card.json", {**ABOUT, "left_out": ["one row"], "tests": tests}, rows)
    text = script("_page").write(tmp_path)["kernels-a-card.md"]
    for said in ("plain formula differ", "liger is not here", "one row", "7 passed, 2 failed", "**not all**"):
        assert said in text


def test_without_a_gpu_the_index_has_the_targets_blank_and_the_command(script, tmp_path):
    write_json(tmp_path / "kernels-cpu.json", {**ABOUT, "type": "cpu"}, [])
    pages = script("_page").write(tmp_path)
    assert {figure for figure, _ in verdicts(pages["kernels.md"]).values()} == {""}
    assert "python kernels/bench/record.py" in pages["kernels.md"]
    assert "no GPU was available" in pages["kernels.md"]
    assert "no GPU was available" in pages["kernels-cpu.md"]
    write_json(tmp_path / "kernels-a-card.json", ABOUT, [])
    assert "no GPU was available" not in script("_page").write(tmp_path)["kernels.md"]


def test_every_target_names_a_kernel_and_a_bound_that_is_in_its_words(script):
    targets = script("_targets")
    for target in (*targets.gpu(), *targets.cpu()):
        assert target.met(target.bound)
        assert not target.met(target.bound * (0.99 if target.least else 1.01))
        assert f"{target.bound:.2f}".rstrip("0").rstrip(".") in target.text or "no more" in target.text


def test_the_one_command_writes_record_table_picture_and_pages(script, tmp_path, monkeypatch, capsys):
    record = script("record")
    monkeypatch.setattr(record, "Options", lambda **given: Options(**{**given, "kernels": ("js_select",)}))
    monkeypatch.setattr(sys, "argv", ["record.py", "--quick", "--out", str(tmp_path), "--device", "cpu"])
    assert record.main() == 0
    assert {path.name for path in tmp_path.iterdir()} >= {f"kernels-cpu.{end}" for end in ("json", "csv", "md")}
    assert json.loads((tmp_path / "kernels-cpu.json").read_text())["about"]["scale"] == "quick"
    assert "](kernels-cpu.md)" in (tmp_path / "kernels.md").read_text()
    assert "js_select" in capsys.readouterr().out


def test_the_one_command_counts_the_tests(script, tmp_path, monkeypatch):
    record = script("record")
    folder = tmp_path / "tests" / "kernels"
    folder.mkdir(parents=True)
    tests = ["def test_a(): pass", "def test_b(): assert False", "import pytest", "def test_c(): pytest.skip()"]
    (folder / "test_some.py").write_text("\n".join([*tests, "def test_d(nothing): pass"]))
    (tmp_path / "tests" / "engine").mkdir()
    (tmp_path / "tests" / "engine" / "test_kernels.py").write_text("def test_e(): pass")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record._tests(60) == {"passed": 2, "failed": 1, "errors": 1, "skipped": 1}
