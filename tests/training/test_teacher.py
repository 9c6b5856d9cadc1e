"""The teacher's targets against prompts written out by hand and run alone, and what is kept of them on disk."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import torch

import steer
from steer.errors import FileFormatError, SteerError
from steer.prompts import Prompt
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama
from tests.vectors.subjects import SUBJECTS, Subject, passing, subject, word_tokenizer

from .helpers import counted, teacher


def answered(prompt: Prompt) -> Prompt:
    return Prompt(prompt.query, prompt.shots, answered=True)


@pytest.mark.parametrize("name", SUBJECTS)
def test_targets_are_those_of_prompts_run_alone_by_hand(name):
    """Contexts of different lengths in one batch; every row that is kept is the same token in the student's prompt."""
    one = subject(name)
    made = teacher(one)
    made.prepare()
    lengths = set()
    for index, (query, told) in enumerate(zip(made.queries, made.contexts, strict=True)):
        inputs, bare = one.by_hand(answered(told)), one.by_hand(answered(query))
        size = inputs["input_ids"].shape[1] - one.by_hand(told)["input_ids"].shape[1]
        with torch.no_grad():
            logits = one.model(**inputs).logits[0, -size - 1 : -1]
        seen = made.of(index)
        torch.testing.assert_close(seen.logits, logits, rtol=1e-4, atol=1e-4)
        states = torch.stack([passing(layer, one.model, inputs)[0] for layer in one.layers])[:, :-1]
        torch.testing.assert_close(seen.states, states[:, -seen.rows :], rtol=1e-4, atol=1e-4)
        ours, theirs = (x["input_ids"][0, :-1].tolist() for x in (bare, inputs))
        assert theirs[-seen.rows :] == ours[-seen.rows :]
        assert seen.rows == len(ours) or theirs[-seen.rows - 1] != ours[-seen.rows - 1]
        assert seen.rows >= len(one.by_hand(query)["input_ids"][0]) - 2  # all but what stands before the query
        lengths.add(len(theirs))
    assert len(lengths) > 1 or name == "tiny-vlm"


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
def test_states_at_other_sites(site):
    one = subject("llama")
    made = teacher(one, site=steer.sites.Site(site), want_logits=False)
    made.prepare()
    for index, told in enumerate(made.contexts):
        inputs = one.by_hand(answered(told))
        modules = [layer.mlp if site == "mlp_out" else layer.self_attn for layer in one.layers]
        states = torch.stack([passing(module, one.model, inputs)[0] for module in modules])[:, :-1]
        seen = made.of(index)
        torch.testing.assert_close(seen.states, states[:, -seen.rows :], rtol=1e-4, atol=1e-4)
        assert seen.logits is None


def test_only_the_rows_that_answers_are_written_from():
    one = subject("llama")
    examples = [
        steer.Example(e.question, f"{e.answer} w7 w8" if i % 2 else e.answer) for i, e in enumerate(one.examples)
    ]
    longer = Subject(one.model, one.processor, examples, one.layers, one.by_hand)
    whole, made = teacher(longer), teacher(longer, answer_only=True)
    whole.prepare(), made.prepare()
    for index in range(len(examples)):
        seen = made.of(index)
        assert seen.rows == (3 if index % 2 else 1) == len(seen.logits)
        torch.testing.assert_close(seen.states, whole.of(index).states[:, -seen.rows :])
        torch.testing.assert_close(seen.logits, whole.of(index).logits)


def test_an_encoder_and_decoder_is_aligned_in_the_decoder():
    model = FAMILIES["florence2"].model()
    examples = subject("llama").examples
    given = Subject(model, word_tokenizer(padded=True), examples, (), lambda prompt: {})
    made = teacher(given, batch_size=1)
    made.prepare()
    for index, told in enumerate(made.contexts):
        words = "".join(f"Q: {s.question} A: {s.answer} " for s in told.shots) + f"Q: {told.query.question} A:"
        ids = torch.tensor([given.processor(words)["input_ids"]])
        start = torch.tensor([[model.config.get_text_config().decoder_start_token_id]])
        with torch.no_grad():
            out = model(input_ids=ids, decoder_input_ids=start, output_hidden_states=True)
        seen = made.of(index)
        torch.testing.assert_close(seen.logits, out.logits[0], rtol=1e-4, atol=1e-4)
        states = torch.stack([h[0] for h in out.decoder_hidden_states[1:]])
        torch.testing.assert_close(seen.states, states, rtol=1e-4, atol=1e-4)


def test_what_was_cut_off_is_the_only_thing_made_again(tmp_path):
    one = subject("llama")
    first = teacher(one, folder=tmp_path)
    with counted(one.model) as calls:
        first.prepare()
    assert len(calls) == 3
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    kept = [first.of(i) for i in range(8)]
    files[1].unlink()
    again = teacher(one, folder=tmp_path)
    with counted(one.model) as calls:
        again.prepare()
    assert len(calls) == 1
    for index, seen in enumerate(kept):
        assert torch.equal(again.of(index).states, seen.states)
        assert torch.equal(again.of(index).logits, seen.logits)
    with counted(one.model) as calls:
        again.prepare()
    assert not calls


def other_model() -> Subject:
    one = subject("llama")
    model = tiny_llama(pad_token_id=None)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight
        weight[[0, 1]] = weight[[1, 0]]
    return Subject(model, one.processor, one.examples, model.model.layers, one.by_hand)


@pytest.mark.parametrize(
    "changed",
    [
        lambda folder: teacher(other_model(), folder=folder),
        lambda folder: teacher(subject("llama"), shots=3, folder=folder),
        lambda folder: teacher(subject("llama"), answer_only=True, folder=folder),
        lambda folder: teacher(subject("llama"), site=steer.sites.Site("mlp_out"), folder=folder),
        lambda folder: teacher(subject("llama"), want_logits=False, folder=folder),
    ],
    ids=["two rows of a weight changed places", "prompts", "rows", "site", "kinds"],
)
def test_another_teacher_s_files_are_not_taken(tmp_path, changed):
    teacher(subject("llama"), folder=tmp_path).prepare()
    other = changed(tmp_path)
    with counted(other.model) as calls:
        other.prepare()
    assert len(calls) == 3


def test_a_damaged_file_is_named(tmp_path):
    made = teacher(subject("llama"), folder=tmp_path)
    made.prepare()
    file = sorted(tmp_path.rglob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-40])
    assert made.of(0).rows
    with pytest.raises(FileFormatError, match="delete it") as caught:
        made.of(3)
    assert str(file) in str(caught.value)


def test_two_processes_leave_no_file_out_though_one_is_ahead(tmp_path):
    """The second looks at what is missing only after the first has written everything of its own."""
    made = teacher(subject("llama"), folder=tmp_path, batch_size=1)
    made.prepare()
    targets = made._targets
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    first = targets.missing(0, 2)
    for part in first:
        targets.keep(part, [seen for i in part for seen in [made._look(range(i, i + 1)).__next__()]])
    second = targets.missing(1, 2)
    assert sorted(i for part in (*first, *second) for i in part) == list(range(8))


def test_how_much_will_be_kept_is_said_before_it_is_made(tmp_path, capsys):
    made = teacher(subject("llama"), folder=tmp_path, progress=True)
    made.prepare()
    said = capsys.readouterr().err
    files = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    size = float(said.split("about ")[1].split(" MiB")[0]) * 2**20
    assert size == pytest.approx(files, rel=0.3)
    assert "8 examples" in said
    assert str(tmp_path) in said


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    made = teacher(subject("llama"), folder=tmp_path)
    with counted(made.model) as calls, pytest.raises(SteerError, match="GiB"):
        made.prepare()
    assert not calls
    assert not list(tmp_path.rglob("*.safetensors"))


class Shouting:
    """A tokenizer that reads the end of a long prompt in another way."""

    pad_token_id = 0

    def __call__(self, texts, add_special_tokens=True):
        rows = [texts] if isinstance(texts, str) else texts
        ids = [[7 + len(word) for word in row.split()] for row in rows]
        ids = [row[:-1] + [row[-1] + (len(row) > 9)] for row in ids]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}


def test_queries_that_end_in_another_token_after_demonstrations_are_refused():
    one = subject("llama")
    made = teacher(Subject(one.model, Shouting(), one.examples, one.layers, one.by_hand), shots=4)
    with pytest.raises(SteerError, match="another token"):
        made.prepare()


def test_answers_that_are_other_tokens_after_demonstrations_are_refused():
    one = subject("llama")
    made = teacher(Subject(one.model, Shouting(), one.examples, one.layers, one.by_hand), shots=4, site=None)
    made.queries, made.contexts = (list(map(answered, some)) for some in (made.queries, made.contexts))
    with pytest.raises(SteerError, match="tokenised in another way"):
        made.prepare()
