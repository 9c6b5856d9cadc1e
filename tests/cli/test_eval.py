"""`steer eval` measures what a loop by hand measures, and always the model alone beside the rest."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steer
import steer.training
from steer._evaluating import Z_95, right, wilson
from steer.prompts import Prompt

ASKED = ("eval", "--model", "tiny-vlm", "--data", "zoo:position", "--limit", 12, "--max-new-tokens", 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A task vector and an in-context vector, fitted on what the first is good at."""
    model, processor = steer.zoo.load()
    pool = steer.zoo.examples("position", "demo", 24)
    folder = tmp_path_factory.mktemp("methods")
    for name, config in (
        ("task_vector", {"layer": 1, "shots": 4}),
        ("icv", {"template": "{images}{question} {answer}"}),
    ):
        steer.create(name, **config).fit(model, processor, pool).save_pretrained(folder / name)
    return folder


def by_hand(shots: int = 0, method: str | None = None) -> tuple[list[str], float, float]:
    """Answers, mean log-probability of the right ones and mean tokens of the prompts, one query at a time."""
    model, processor = steer.zoo.load()
    queries = steer.zoo.examples("position", "test", 12)
    pool = steer.zoo.examples("position", "demo")
    shown = (
        steer.Demonstrations(tuple(pool), shots, seed=0).for_queries(queries) if shots else list(map(Prompt, queries))
    )
    attached = [steer.load(method)] if method else []
    answers, log_probs, tokens = [], [], []
    for prompt in shown:
        batch = steer.prompts.encode(model, processor, [prompt])
        length = batch.inputs["input_ids"].shape[1]
        with steer.attach(model, *attached):
            written = model.generate(
                **batch.inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        answers.append(processor.decode(written.sequences[0, length:], skip_special_tokens=True).strip())
        log_probs.append(float(written.logits[0][0].double().log_softmax(-1)[batch.answers[0, 0]]))
        tokens.append(length)
    return answers, sum(log_probs) / len(log_probs), sum(tokens) / len(tokens)


def test_every_row_is_what_a_loop_by_hand_finds(steer_cli, saved, tmp_path):
    shown = ("--shots", 4, "--pool", "zoo:position")
    out = tmp_path / "found.json"
    ran = steer_cli(*ASKED, "--method", saved / "task_vector", *shown, "--batch-size", 5, "--out", out, "--json")
    assert ran.code == 0, ran.err
    data, written = json.loads(ran.out), json.loads(out.read_text())
    assert [row["name"] for row in data["rows"]] == ["zero-shot", "4-shot in context", "task_vector"]
    assert data["rows"] == written["rows"]
    queries = steer.zoo.examples("position", "test", 12)
    for row, way in zip(data["rows"], [{}, {"shots": 4}, {"method": saved / "task_vector"}], strict=True):
        answers, log_prob, tokens = by_hand(**way)
        assert [one["said"][row["name"]] for one in written["answers"]] == answers
        assert row["accuracy"] == sum(right(answers, queries)) / 12
        firsts = [(answer.split() or [""])[0] for answer in answers]  # every right answer is one token, one word
        assert row["begins_right"] == pytest.approx(sum(right(firsts, queries)) / 12)
        assert row["log_prob"] == pytest.approx(log_prob, abs=1e-4)
        assert row["tokens_per_query"] == tokens
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    assert [one["answer"] for one in written["answers"]] == [one.answer for one in queries]
    assert data["rows"][1]["accuracy"] > data["rows"][0]["accuracy"]


def test_a_method_with_its_own_template_has_a_baseline_with_it(steer_cli, saved):
    ran = steer_cli(*ASKED, "--method", saved / "icv", "--method", saved / "task_vector")
    assert ran.code == 0, ran.err
    assert "zero-shot, template '{images}{question} {answer}'" in ran.out
    assert ran.out.index("zero-shot ") < ran.out.index("icv")
    assert "on 12 examples" in ran.out


def test_a_method_that_answers_in_its_own_way_is_not_scored_by_the_models(steer_cli, tmp_path):
    model, processor = steer.zoo.load()
    steer.create("savs").fit(model, processor, steer.zoo.examples("position", "demo", 16)).save_pretrained(tmp_path)
    alone, savs = json.loads(steer_cli(*ASKED, "--method", tmp_path, "--json").out)["rows"]
    assert savs["accuracy"] > alone["accuracy"]
    assert (savs["begins_right"], savs["log_prob"]) == (None, None)
    assert savs["tokens_per_query"] == alone["tokens_per_query"]


def test_data_from_a_folder_and_demonstrations_from_its_train_file(steer_cli, tmp_path):
    steer.data.write(tmp_path, steer.zoo.examples("position", "test", 4), "test")
    steer.data.write(tmp_path, steer.zoo.examples("position", "demo", 4), "train")
    data = ("--data", tmp_path, "--pool", tmp_path, "--shots", 2)
    ran = steer_cli("eval", "--model", "tiny-vlm", *data, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["examples"] == 4


@pytest.mark.parametrize(
    "more, facts",
    [
        (("--shots", 2), ("--shots and --pool go together",)),
        (("--pool", "zoo:colour"), ("--shots and --pool go together",)),
        (("--out", "/nowhere/x.json"), ("/nowhere", "x.json")),
        (("--method", "./nowhere"), ("nowhere",)),
    ],
)
def test_errors_say_how_to_go_on(steer_cli, more, facts):
    ran = steer_cli(*ASKED, *more)
    assert ran.code == 1
    assert all(fact in ran.err for fact in facts), ran.err


def test_weights_that_one_process_is_told_to_spread_stay_as_they_are(steer_cli, monkeypatch):
    """As under `accelerate launch --num_processes 1` with docs/configs/fsdp2.yaml."""
    spread, shard = [], steer.training.shard
    monkeypatch.setattr("steer.training.shard", lambda model: spread.append(model) or shard(model))
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda *a, **k: pytest.fail("nothing to spread over"))

    def rows() -> list[tuple]:
        ran = steer_cli(*ASKED, "--json")
        assert ran.code == 0, ran.err
        return [(row["accuracy"], row["log_prob"]) for row in json.loads(ran.out)["rows"]]

    alone = rows()
    assert spread == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert rows() == alone
    assert len(spread) == 1


def test_queries_without_answers_are_refused(steer_cli, tmp_path):
    steer.data.write(tmp_path, [steer.Example("what?", "this"), steer.Example("who?")])
    ran = steer_cli("eval", "--model", "tiny-vlm", "--data", tmp_path)
    assert ran.code == 1
    assert "example 1 ('who?') has no answer" in ran.err


@given(trials=st.integers(1, 500), share=st.floats(0, 1))
def test_the_interval_ends_where_the_share_is_just_that_unlikely(trials, share):
    successes = round(share * trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            assert abs(successes / trials - p) == pytest.approx(
                Z_95 * math.sqrt(p * (1 - p) / trials), rel=1e-6, abs=1e-9
            )


def test_case_and_outer_spaces_do_not_count():
    queries = [steer.Example("q", answer) for answer in (" Red", "STRASSE", "red")]
    assert right(["red ", "straße", "red."], queries) == [True, True, False]
