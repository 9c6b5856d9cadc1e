"""Two processes find what one does, to the bit; a run that was killed goes on in another number of processes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

import steer
from steer.cli import main
from tests.suites.made import pope_files
from tests.training.processes import PATIENT, kill, launcher, start, together


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, list[str]]:
    """Command lines without `--out`, by the kind of data; shares and last batches differ in size."""
    folder = tmp_path_factory.mktemp("data")
    questions = [word for file in pope_files(folder, n=3) for word in ("--data", str(file))]
    steer.create("savs").fit(*steer.zoo.load(), steer.zoo.examples("plain:exists", "demo", 12)).save_pretrained(
        folder / "savs"
    )
    by_name = ["--method", "image_focus", "--config", "beta=2"]
    vlm = ["--model", "tiny-vlm", "--batch-size", "3", *by_name]
    two = ["--data", "zoo:position", "--data", "zoo:colour", "--limit", "7"]
    clip = ["--model", "tiny-clip", "--batch-size", "4", "--method", "zero_shot", "--config", "templates=the {}."]
    return {
        "examples": [*vlm, *two, "--shots", "2", "--pool", "zoo:position", "--method", str(folder / "savs")],
        "suite": [*vlm, "--suite", "pope", *questions, "--images", str(folder / "images")],
        "pictures": [*clip, "--data", "zoo:food", "--data", "zoo:food", "--limit", "9"],
        "halves": [*clip, "--data", "zoo:food", "--limit", "9", "--base-new"],
    }


def test_two_processes_find_what_one_does(calls, tmp_path, capsys):
    for number in ("one", "two"):
        (tmp_path / number).mkdir()
    both = {n: [[*words, "--out", str(tmp_path / n / k)] for k, words in calls.items()] for n in ("one", "two")}
    (tmp_path / "calls.json").write_text(json.dumps(both["two"]))
    together(lambda attempt: ["-m", "tests.distributed.eval_script", str(tmp_path / "calls.json")])
    for words in both["one"]:
        run(words, capsys)
    for kind in calls:
        one, two = (timeless(json.loads((tmp_path / number / kind).read_text())) for number in ("one", "two"))
        assert one == two, kind
        assert len(one["rows"]) > 1
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(calls)  # nothing is left beside them


def test_a_run_is_killed_and_goes_on_in_one_process(tmp_path, capsys):
    words = ["--model", "tiny-vlm", "--batch-size", "2", "--data", "zoo:colour", "--limit", "150"]
    out = tmp_path / "cut.json"
    process, until = start([*launcher(), "-m", "steer", "eval", *words, "--out", str(out)]), time.monotonic() + PATIENT
    folder = tmp_path / "cut.json.answers"
    try:
        while not all((folder / f"answers-{i}.jsonl").exists() for i in range(2)):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.002)
    finally:
        kill(process)
    assert not out.exists()
    before = {path.name: path.read_bytes().rpartition(b"\n")[0] for path in folder.iterdir()}
    there = sum(len(text.splitlines()) for text in before.values())
    assert 4 <= there < 150
    # Kept where the user says, so that it can be looked at afterwards.
    kept = folder.rename(tmp_path / "kept")
    run([*words, "--out", str(out), "--answers", str(kept)], capsys)
    run([*words, "--out", str(tmp_path / "whole.json")], capsys)
    assert timeless(json.loads(out.read_text())) == timeless(json.loads((tmp_path / "whole.json").read_text()))
    assert all((kept / name).read_bytes().startswith(text) for name, text in before.items())
    lines = [json.loads(line)["key"] for path in kept.iterdir() for line in path.read_text().splitlines()]
    assert set(lines) == {str(i) for i in range(150)}
    assert len(lines) <= 150 + 2  # what was whole was not asked again, but for a batch that was cut within
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "kept", "whole.json"]


def run(words: list[str], capsys) -> None:
    """In this process."""
    with pytest.raises(SystemExit) as left:
        main(["eval", *words])
    assert left.value.code == 0, capsys.readouterr().err


def timeless(data: Any) -> Any:
    """Without the time that it took."""
    if isinstance(data, dict):
        return {key: timeless(value) for key, value in data.items() if not key.startswith("ms_")}
    return [timeless(one) for one in data] if isinstance(data, list) else data
