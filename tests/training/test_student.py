"""The student's losses: answers only, each prompt as if it were alone, whatever it takes to compute them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import steer
from steer.prompts import Prompt
from steer.training._frozen import frozen
from tests.engine.families import FAMILIES
from tests.engine.helpers import randn
from tests.vectors.subjects import SUBJECTS, Subject, passing, subject, word_tokenizer

from .helpers import Shift, student, teacher

TERMS = ("ce", "kl_answer", "mse", "cosine", "lorentz")


def lengthened(one: Subject) -> Subject:
    """Answers of one to three tokens."""
    examples = [replace(e, answer=" ".join([e.answer, "w7", "w8"][: 1 + i % 3])) for i, e in enumerate(one.examples)]
    return Subject(one.model, one.processor, examples, one.layers, one.by_hand)


def shifted(model: torch.nn.Module, scale: float = 0.1) -> Shift:
    """A shift that does something, asking for gradients."""
    method = Shift()
    (start,) = method.initial(steer.inspect(model), torch.Generator()).values()
    method.tensors = {"vector": randn(*start.shape, seed=5, scale=scale).requires_grad_(True)}
    return method


def losses_and_gradient(made, indices, vector) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Every term (B,), and the gradient of their sum."""
    with made.open_batch(indices) as terms:
        total = sum(terms.values()).sum()
        (gradient,) = torch.autograd.grad(total, vector)
        return {name: value.detach() for name, value in terms.items()}, gradient


@pytest.mark.parametrize("name", SUBJECTS)
def test_cross_entropy_is_transformers_own_with_the_question_ignored(name):
    one = lengthened(subject(name)) if name == "llama" else subject(name)
    method = shifted(one.model)
    with student(one, terms=("ce",), items=[method]).open_batch(range(8)) as terms:
        got = terms["ce"].detach()
    for index, example in enumerate(one.examples):
        whole = one.by_hand(Prompt(example, answered=True)) if len(example.answer.split()) == 1 else None
        if whole is None:
            bare = one.by_hand(Prompt(replace(example, answer=example.answer.split()[0]), answered=True))["input_ids"]
            more = [[int(word[1:]) for word in example.answer.split()[1:]]]
            whole = {"input_ids": torch.cat([bare, torch.tensor(more)], 1)}
        labels = whole["input_ids"].clone()
        labels[:, : one.by_hand(Prompt(example))["input_ids"].shape[1]] = -100
        with steer.attach(one.model, method), torch.no_grad():
            truth = one.model(**whole, labels=labels).loss
        torch.testing.assert_close(got[index], truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_batch_is_its_prompts_one_by_one(name):
    one = lengthened(subject(name)) if name == "llama" else subject(name)
    told = teacher(one)
    told.prepare()
    method = shifted(one.model)
    made = student(one, terms=TERMS, items=[method], teacher=told)
    together, gradient = losses_and_gradient(made, range(8), method.tensors["vector"])
    alone = [losses_and_gradient(made, [i], method.tensors["vector"]) for i in range(8)]
    for term in TERMS:
        truth = torch.cat([values[term] for values, _ in alone])
        assert (truth > 0).all()
        torch.testing.assert_close(together[term], truth, rtol=1e-3, atol=1e-5)
    truth = sum(found for _, found in alone)
    torch.testing.assert_close(gradient, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))


def test_state_losses_are_means_over_layers_and_aligned_rows_by_hand():
    one = subject("llama")
    told = teacher(one)
    told.prepare()
    made = student(one, terms=("mse", "cosine", "kl_answer"), items=[], teacher=told)
    with torch.no_grad(), made.open_batch(range(8)) as terms:
        got = {name: value.clone() for name, value in terms.items()}
    for index, context in enumerate(told.contexts):
        bare = one.by_hand(Prompt(context.query))
        shown = one.by_hand(context)
        rows = told.of(index).rows
        pairs = [
            (passing(layer, one.model, bare)[0, -rows:], passing(layer, one.model, shown)[0, -rows:])
            for layer in one.layers
        ]
        mse = torch.stack([functional.mse_loss(a, b) for a, b in pairs]).mean()
        angle = torch.stack([1 - functional.cosine_similarity(a, b, dim=-1) for a, b in pairs]).mean()
        with torch.no_grad():
            ours, theirs = (one.model(**x).logits[0, -1].log_softmax(-1) for x in (bare, shown))
        kl = functional.kl_div(ours, theirs, reduction="sum", log_target=True)
        truths = {"mse": mse, "cosine": angle, "kl_answer": kl}
        for name, truth in truths.items():
            torch.testing.assert_close(got[name][index], truth, rtol=1e-3, atol=1e-5)


def test_what_the_model_would_write_within_the_question_does_not_count():
    """Scores are made for the answer's one token, and for no other."""
    one = subject("llama")
    made = student(one, terms=("ce",))
    with made.open_batch(range(8)) as terms:
        assert terms["ce"].shape == (8,)
    rows = []
    handle = one.model.lm_head.register_forward_hook(lambda m, a, out: rows.append(out.shape[1]))
    with made.open_batch(range(8)):
        pass
    handle.remove()
    assert rows == [1]


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("site", ["resid_out", "mlp_out"])
def test_gradient_checkpointing_gives_the_same_gradients(name, site):
    one = subject(name)
    told = teacher(one, site=steer.sites.Site(site))
    told.prepare()
    method = shifted(one.model)
    made = student(one, terms=TERMS, items=[method], teacher=told, site=site)
    plain, truth = losses_and_gradient(made, range(5), method.tensors["vector"])
    ran = []
    handle = one.layers[-1].self_attn.register_forward_hook(lambda *_: ran.append(1))
    with frozen(one.model, recompute=True):
        terms, gradient = losses_and_gradient(made, range(5), method.tensors["vector"])
    handle.remove()
    for term in TERMS:
        torch.testing.assert_close(terms[term], plain[term], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-5 * float(truth.abs().max()))
    assert len(ran) == 2  # once for the loss, once more for its gradient


@pytest.mark.parametrize("method", ["live", "mimic", "hyper_icl", "hificl", "head_shift"])
def test_gradient_checkpointing_under_each_built_in_method(method):
    one = subject("llama")
    made = steer.create(method)
    start = made.initial(steer.inspect(one.model), torch.Generator().manual_seed(0))
    made.tensors = {
        name: (value + 0.1 * randn(*value.shape, seed=3)).requires_grad_(True) for name, value in start.items()
    }
    learned = list(made.tensors.values())
    run = student(one, terms=("ce",), items=[made])
    found = []
    for recompute in (False, True):
        with frozen(one.model, recompute), run.open_batch(range(4)) as terms:
            found.append(torch.autograd.grad(terms["ce"].sum(), learned, allow_unused=True))
    for before, after in zip(*found, strict=True):
        assert before is not None
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max() + 1e-9))


def test_an_encoder_and_decoder_s_answers():
    model = FAMILIES["florence2"].model()
    examples = subject("llama").examples
    given = Subject(model, word_tokenizer(padded=True), examples, (), lambda prompt: {})
    with torch.no_grad(), student(given, terms=("ce",)).open_batch([0]) as terms:
        got = terms["ce"]
    ids = torch.tensor([given.processor(f"Q: {examples[0].question} A:")["input_ids"]])
    labels = torch.tensor([given.processor(examples[0].answer)["input_ids"]])
    start = torch.tensor([[model.config.get_text_config().decoder_start_token_id]])
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=torch.cat([start, labels[:, :-1]], 1)).logits
    torch.testing.assert_close(got, functional.cross_entropy(logits[0], labels[0])[None], rtol=1e-5, atol=1e-5)
