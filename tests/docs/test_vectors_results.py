"""The page of results says what its records say, and a claim is judged as its numbers demand."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"


@pytest.fixture
def scripts(monkeypatch):
    """The experiment's own modules, by name."""
    monkeypatch.syspath_prepend(str(DOCS / "experiments" / "vectors"))
    return importlib.import_module


def test_the_page_is_what_its_records_give(scripts, tmp_path):
    for file in RESULTS.glob("vectors-*"):
        shutil.copy(file, tmp_path)
    written = scripts("page").write(tmp_path, draw=False)
    assert written == (RESULTS / "vectors.md").read_text(encoding="utf-8")
    assert all((RESULTS / name).exists() for name in ("vectors-A-accuracy.png", "vectors-B-accuracy.png"))


def test_every_accuracy_is_that_of_the_answers_kept_with_it():
    for file in RESULTS.glob("vectors-*.jsonl"):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if "right" in record:
                bits = record["right"]
                assert record["accuracy"] == pytest.approx(bits.count("1") / len(bits), abs=1e-6), record["key"]


def test_every_choice_is_the_best_try_on_dev(scripts):
    records = scripts("records").Records(RESULTS / "vectors-A.jsonl")
    for task in records.tasks:
        for row in ("live", "mimic", "hificl", "joint"):
            tries = [one for key, one in records.by_key.items() if key.startswith(f"A/{task}/try/{row}/")]
            if records.of(task, row):
                best = max(tries, key=lambda one: (one["accuracy"], one["log_prob"]))
                assert len(tries) == 8
                assert all(one["choice"] == best["choice"] for one in records.of(task, row))


def _records(path: Path, rows: dict[str, list[str]]) -> Path:
    lines = [
        {"key": f"A/task/{row}/{seed}", "right": bits, "accuracy": bits.count("1") / len(bits)}
        for row, seeds in rows.items()
        for seed, bits in enumerate(seeds)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_differences_are_taken_query_by_query_with_an_interval_that_covers(scripts, tmp_path):
    records = scripts("records").Records(
        _records(tmp_path / "r.jsonl", {"one": ["1100" * 25] * 3, "two": ["1010" * 25] * 3, "best": ["1110" * 25] * 3})
    )
    same, low, high = records.difference("one", "two", ["task"])
    assert same == 0
    assert low < 0 < high
    mean, low, high = records.difference("best", "one", ["task"])
    assert mean == pytest.approx(0.25)
    # Three times 100 queries of mean 1/4: a normal interval is 0.25 +- 0.05, seeds here being alike.
    assert (low, high) == pytest.approx((0.25 - 0.049, 0.25 + 0.049), abs=0.02)
    assert records.difference("best", "missing", ["task"]) is None


@pytest.mark.parametrize(
    "found, word",
    [
        ((0.1, 0.05, 0.2), "held"),
        ((0.1, -0.05, 0.2), "failed: not shown"),
        ((-0.1, -0.2, -0.05), "failed: the reverse"),
    ],
)
def test_a_claim_holds_only_where_its_whole_interval_does(scripts, found, word):
    assert scripts("claims")._judge(found)[0] == word


def test_controls_deal_gates_to_other_queries_and_hold_them_at_their_mean(scripts):
    import torch

    import steer
    from steer import gates, ops, sites
    from tests.engine.helpers import HEAD_DIM, HEADS, LAYERS, randn, tiny_llama, tokens

    controls = scripts("controls")
    model, ids = tiny_llama(), tokens(3, 7)
    gate = gates.Sigmoid(randn(LAYERS, HEADS, HEAD_DIM, seed=1))
    change = steer.Intervention(
        sites.head_out(0), ops.Add(randn(HEADS, HEAD_DIM, seed=2)), gates.Sigmoid(gate.weight[0])
    )
    kept = []

    class Watched(controls.Shuffled):
        def bind(self, slot):
            inner = self.inner.bind(slot)
            return lambda x, reading: kept.append(inner(x, reading)) or kept[-1].roll(1, dims=0)

    def out(one) -> torch.Tensor:
        with torch.no_grad(), steer.attach(model, one), steer.record(model, sites.head_out(0)) as acts:
            model(ids)
        return acts["head_out", 0]

    import dataclasses

    plain = out(dataclasses.replace(change, gate=None))
    with torch.no_grad(), steer.record(model, sites.head_out(0)) as acts:
        model(ids)
    bare = acts["head_out", 0]
    dealt = out(dataclasses.replace(change, gate=Watched(change.gate)))
    torch.testing.assert_close(dealt, bare + kept[0].roll(1, dims=0) * (plain - bare), rtol=1e-4, atol=1e-5)
    sums: dict = {}
    out(dataclasses.replace(change, gate=controls.Averaged(change.gate, sums, learning=True)))
    held = out(dataclasses.replace(change, gate=controls.Averaged(change.gate, sums, learning=False)))
    mean = kept[0].double().mean((0, 1)).float()
    torch.testing.assert_close(held, bare + mean * (plain - bare), rtol=1e-4, atol=1e-5)
    assert np.ptp(mean.numpy()) > 0
