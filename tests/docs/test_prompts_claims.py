"""A claim is judged as its numbers demand, and a mean is shown where all that it is of is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.experiment_scripts import modules


@pytest.fixture
def scripts():
    with modules() as load:
        yield load


def _write(scripts, path: Path, right: dict[tuple[str, str, int, str], float], extra: dict | None = None):
    """Records of a whole run in which each (kind, row, shots, part) has one accuracy everywhere, of 1000 pictures."""
    scale = scripts("protocol").Scale()
    about = {"scale": scale.plain(), "classes": {name: list(map(str, range(20))) for name in scale.sets}}
    lines = {"about": about, **(extra or {})}
    for (kind, row, shots, part), value in right.items():
        for i, name in enumerate(scale.sets):
            for seed in scale.seeds:
                one = lines.setdefault(f"{kind}/{name}/{row}/{shots}/{seed}", {"right": {}, "of": {}})
                one["right"][part], one["of"][part] = round(1000 * value) + 10 * i + seed, 1000
    path.write_text("\n".join(json.dumps({"key": key, **one}) for key, one in lines.items()))
    return scripts("records").Records(path)


def _halves(**rows: tuple[float, float]) -> dict[tuple[str, str, int, str], float]:
    found = {}
    for row, pair in rows.items():
        found |= {("base-new", row, 16, part): value for part, value in zip(("base", "new"), pair, strict=True)}
    return found


AS_IN_THE_PAPERS = _halves(
    zero_shot=(0.70, 0.74), coop=(0.82, 0.63), cocoop=(0.80, 0.71), maple=(0.82, 0.75), coprompt=(0.84, 0.77)
)
REVERSED = _halves(
    zero_shot=(0.82, 0.63), coop=(0.70, 0.74), cocoop=(0.70, 0.70), maple=(0.82, 0.75), coprompt=(0.84, 0.77)
)


@pytest.mark.parametrize("key", ["learned", "loses", "recover", "harmonic"])
@pytest.mark.parametrize("right, word", [(AS_IN_THE_PAPERS, "held"), (REVERSED, "failed"), ({}, "not run")])
def test_claims_on_base_and_new_classes(scripts, tmp_path, key, right, word):
    found = scripts("claims")._TESTS[key](_write(scripts, tmp_path / "r.jsonl", right), None)
    assert found[0] == word, found


@pytest.mark.parametrize(
    "means, word",
    [
        ((0.4, 0.5, 0.55, 0.6, 0.7), "held"),
        ((0.4, 0.5, 0.45, 0.6, 0.7), "failed"),
        ((0.7, 0.6, 0.5, 0.4, 0.3), "failed"),
    ],
)
def test_growing_with_shots(scripts, tmp_path, means, word):
    right = {("few-shot", "coop, M=16", n, "all"): mean for n, mean in zip((1, 2, 4, 8, 16), means, strict=True)}
    assert scripts("claims")._TESTS["growing"](_write(scripts, tmp_path / "r.jsonl", right), None)[0] == word


@pytest.mark.parametrize("at_two, word", [(0.3, "held"), (0.6, "failed")])
def test_a_context_for_each_class_must_be_worse_at_both_numbers_of_shots(scripts, tmp_path, at_two, word):
    right = {("few-shot", "coop, M=16", n, "all"): 0.5 for n in (1, 2)}
    right |= {("few-shot", "coop, class-specific", n, "all"): value for n, value in ((1, 0.3), (2, at_two))}
    assert scripts("claims")._TESTS["specific"](_write(scripts, tmp_path / "r.jsonl", right), None)[0] == word


@pytest.mark.parametrize("accuracy, word", [(0.02, "held"), (0.2, "failed")])
def test_shuffled_labels_must_give_chance(scripts, tmp_path, accuracy, word):
    right = {("control", "coop, labels shuffled", 16, "all"): accuracy}
    assert scripts("claims")._TESTS["shuffled"](_write(scripts, tmp_path / "r.jsonl", right), None)[0] == word


@pytest.mark.parametrize("apart, word", [(1e-5, "held"), (0.1, "failed")])
def test_without_its_weight_one_method_must_be_another(scripts, tmp_path, apart, word):
    keys = [f"control/{name}/maple with adapters/16/{seed}" for name in ("food", "travel") for seed in range(3)]
    extra = {key: {"apart": 0.0, "same": 1.0} for key in keys} | {keys[2]: {"apart": apart, "same": 1.0}}
    assert scripts("claims")._TESTS["unheld"](_write(scripts, tmp_path / "r.jsonl", {}, extra), None)[0] == word


@pytest.mark.parametrize("slowest, most, words", [(3.1, 0.4, ("held", "held")), (2.9, 0.6, ("failed", "failed"))])
def test_the_slowest_ratio_decides(scripts, tmp_path, slowest, most, words):
    records = _write(scripts, tmp_path / "r.jsonl", {})
    speed = {"as they run": {"a": {"faster": 9.0}, "b": {"faster": slowest}}}
    speed["memory"] = {"a": {"share": 0.1}, "b": {"share": most}}
    assert tuple(scripts("claims")._TESTS[key](records, speed)[0] for key in ("speed", "memory")) == words


def test_a_cell_without_all_of_its_sets_is_not_shown(scripts, tmp_path):
    path = tmp_path / "r.jsonl"
    records = _write(scripts, path, AS_IN_THE_PAPERS)
    assert "| `maple` |" in scripts("tables").base_new(records)
    assert "base-new" not in _left_out(scripts, records, "`maple`")
    lines = [line for line in path.read_text().splitlines() if "base-new/travel/maple/16/2" not in line]
    path.write_text("\n".join(lines))
    records = scripts("records").Records(path)
    assert "| `maple` |" not in scripts("tables").base_new(records)
    assert "base-new" in _left_out(scripts, records, "`maple`")


def _left_out(scripts, records, row: str) -> str:
    """Where the page says that a row is missing."""
    return next(part for part in scripts("what_ran").left_out(records).split("; ") if row in part).split(": ")[1]
