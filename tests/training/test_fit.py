"""Whole fits: what they learn, what they leave as it was, and what stops them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

import steer
from steer.errors import FileFormatError, SteerError, UnknownNameError
from steer.prompts import Prompt
from steer.training import NotFiniteError, _checkpoint
from steer.training._frozen import frozen
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama, tokens
from tests.vectors.subjects import SUBJECTS, subject, word_tokenizer

from .helpers import QUICK, Broken, Shift, assert_as_before, state_of

EVERY = {"ce": 1.0, "kl_answer": 1.0, "mse": 0.1}


@pytest.fixture
def broken():
    """A method that breaks at its third look at itself."""
    Broken.times, Broken.error = 0, None
    yield Broken(shots=2)
    Broken.times, Broken.error = 0, None


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_fit_lowers_its_loss_and_leaves_the_model_as_it_was(name):
    one = subject(name)
    model = copy.deepcopy(one.model).train()
    model.get_output_embeddings().weight.requires_grad_(True)
    model.get_decoder().layers[0].eval()
    model(**one.by_hand(Prompt(one.examples[0])))  # transformers puts hooks of its own on at a first forward
    before = state_of(model)
    made = Shift(losses=EVERY, shots=2)
    options = {"max_steps": 12, "eval_every": 6, "batch_size": 8, "lr": 0.02, "progress": False}
    fitted = made.fit(model, one.processor, one.examples, dev=[], **options)
    assert fitted is made
    assert_as_before(model, before)
    first, last = made.provenance["training"]["history"]
    assert sum(last[term] * weight for term, weight in EVERY.items()) < sum(
        first[term] * weight for term, weight in EVERY.items()
    )
    assert made.tensors["vector"].abs().max() > 0


def test_a_fit_by_gradient_is_the_one_written_by_hand():
    """A vector at layer 1, cross-entropy, AdamW: the same numbers from a plain hook on prompts written by hand."""
    one = subject("llama")

    class AtOne(Shift):
        name = "at_one"

        def initial(self, model_map, generator):
            return {"vector": torch.zeros(model_map.tower().width)}

        def interventions(self, model_map):
            return [steer.Intervention(steer.sites.resid_out([1]), steer.ops.Add(self.tensors["vector"]))]

    options = {"lr": 0.05, "batch_size": 8, "max_steps": 3, "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    made = AtOne().fit(one.model, one.processor, one.examples, dev=[], progress=False, **options)
    vector = torch.zeros(64, requires_grad=True)
    optimiser = torch.optim.AdamW([vector], lr=0.05, weight_decay=0.0)
    handle = one.layers[1].register_forward_hook(
        lambda m, a, out: (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 3)
    for _ in range(3):
        optimiser.zero_grad()
        rows = [one.model(**one.by_hand(Prompt(e))).logits[0, -1] for e in one.examples]
        goals = torch.tensor([int(e.answer[1:]) for e in one.examples])
        functional.cross_entropy(torch.stack(rows), goals).backward()
        optimiser.step()
        schedule.step()
    handle.remove()
    torch.testing.assert_close(made.tensors["vector"], vector.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"micro_batch_size": 1}])
def test_what_saves_memory_changes_nothing_in_the_result(options):
    one = subject("llama")
    plain, saving = (
        Shift(losses=EVERY, shots=2, align="mlp_out").fit(
            one.model, one.processor, one.examples, **QUICK | {"max_grad_norm": 0.0} | more
        )
        for more in ({}, options)
    )
    torch.testing.assert_close(saving.tensors["vector"], plain.tensors["vector"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["llama", "florence2"])
def test_nothing_is_dropped_out_while_fitting(family, recompute):
    if family == "llama":
        model = tiny_llama(attention_dropout=0.5, implementation="eager")
        inputs = {"input_ids": tokens(2, 9)}
        blocks = model.model.layers
    else:
        model = FAMILIES["florence2"].model("eager")
        inputs = {"input_ids": tokens(2, 9) % 90, "decoder_input_ids": tokens(2, 4, seed=1) % 90}
        blocks = model.model.language_model.decoder.layers
        assert model.config.get_text_config().dropout > 0
    model.train()
    start = torch.zeros(model.config.get_text_config().hidden_size, requires_grad=True)

    def once() -> tuple[torch.Tensor, torch.Tensor]:
        def shifted(module, args, kwargs, out):
            return (out[0] + start, *out[1:]) if isinstance(out, tuple) else out + start

        handle = blocks[0].register_forward_hook(shifted, with_kwargs=True)
        logits = model(**inputs, use_cache=False).logits
        handle.remove()
        return logits.detach(), torch.autograd.grad(logits.square().sum(), start)[0]

    noisy = [once()[0] for _ in range(2)]
    assert not torch.allclose(*noisy)
    before = state_of(model)
    with frozen(model, recompute):
        still = [once() for _ in range(2)]
    assert_as_before(model, before)
    model.eval()
    truth = once()
    for got in still:
        torch.testing.assert_close(got[0], truth[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[1], truth[1], rtol=1e-5, atol=1e-5 * float(truth[1].abs().max()))


def test_an_encoder_and_decoder_is_fitted_and_left_as_it_was():
    model, examples = FAMILIES["florence2"].model(), subject("llama").examples
    before = state_of(model.train())
    made = Shift(losses=EVERY, shots=1)
    made.fit(model, word_tokenizer(padded=True), examples, gradient_checkpointing=True, **QUICK)
    assert_as_before(model, before)
    assert made.tensors["vector"].abs().max() > 0


def test_learned_tensors_are_fp32_beside_a_bf16_model():
    one = subject("llama")
    model = copy.deepcopy(one.model).bfloat16()
    seen = []

    class Watched(Shift):
        name = "watched"

        def interventions(self, model_map):
            seen.append((self.tensors["vector"].dtype, self.tensors["vector"].requires_grad))
            return super().interventions(model_map)

    # Steps that bf16 could not hold beside numbers of the size that they reach.
    made = Watched(losses=EVERY, shots=2).fit(model, one.processor, one.examples, dev=[], **QUICK)
    assert set(seen) == {(torch.float32, True)}
    (vector,) = made.tensors.values()
    assert (vector.dtype, vector.device.type, vector.requires_grad) == (torch.float32, "cpu", False)
    assert not torch.equal(vector, vector.bfloat16().float())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_what_was_fitted_is_saved_and_loaded_with_how(tmp_path):
    one = subject("llama")
    made = steer.create("live", shots=2)
    made.fit(one.model, one.processor, one.examples, seed=3, **QUICK)
    made.save_pretrained(tmp_path)
    again = steer.load(tmp_path, one.model)
    assert again == made
    assert again.tensors.keys() == made.tensors.keys()
    for name, value in made.tensors.items():
        assert torch.equal(again.tensors[name], value)
    how = again.provenance["training"]
    assert how == made.provenance["training"]
    assert (how["lr"], how["steps"], how["dev_examples"]) == (0.05, 4, 2)
    assert len(how["history"]) == 2
    assert again.number_of_parameters() == sum(value.numel() for value in made.tensors.values())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    one = subject("llama")
    made = [
        Shift(losses=EVERY, shots=2).fit(one.model, one.processor, one.examples, seed=seed, **QUICK)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(made[0].tensors["vector"], made[1].tensors["vector"])
    assert not torch.equal(made[0].tensors["vector"], made[2].tensors["vector"])


def test_a_loss_that_is_nan_stops_with_everything_as_it_was(broken, tmp_path):
    one = subject("llama")
    broken.tensors, broken.provenance = {"vector": torch.ones(3, 64)}, {"seed": 9}
    kept = broken.tensors["vector"]
    before = state_of(one.model)
    with pytest.raises(NotFiniteError, match="step 2") as caught:
        broken.fit(one.model, one.processor, one.examples, dev=[], folder=tmp_path, **QUICK | {"checkpoint_every": 1})
    assert str(tmp_path / _checkpoint.NAME) in str(caught.value)
    assert_as_before(one.model, before)
    assert broken.tensors["vector"] is kept
    assert broken.provenance == {"seed": 9}
    broken.after = 10**6
    with pytest.raises(SteerError, match="configuration"):
        broken.fit(one.model, one.processor, one.examples, dev=[], folder=tmp_path, **QUICK)
    broken.after, Broken.times = 2, -100
    broken.fit(one.model, one.processor, one.examples, dev=[], folder=tmp_path, **QUICK)
    whole = Shift(shots=2).fit(one.model, one.processor, one.examples, dev=[], **QUICK)
    assert torch.equal(broken.tensors["vector"], whole.tensors["vector"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_interrupt_leaves_method_and_model_as_they_were(broken, error):
    one = subject("llama")
    Broken.error = error
    before, tensors = state_of(one.model.train()), broken.tensors
    with pytest.raises(type(error)):
        broken.fit(one.model, one.processor, one.examples, dev=[], gradient_checkpointing=True, **QUICK)
    assert_as_before(one.model, before)
    one.model.eval()
    assert broken.tensors is tensors
    assert broken.provenance == {}


def test_a_checkpoint_of_a_model_with_other_weights_is_not_gone_on_from(tmp_path):
    one = subject("llama")
    Shift().fit(one.model, one.processor, one.examples, folder=tmp_path, **QUICK)
    other = tiny_llama(seed=1, pad_token_id=None)
    with pytest.raises(SteerError, match="weights differs"):
        Shift().fit(other, one.processor, one.examples, folder=tmp_path, **QUICK)
    with pytest.raises(SteerError, match=r"options, seed differ|configuration"):
        Shift().fit(one.model, one.processor, one.examples, seed=1, folder=tmp_path, **QUICK | {"lr": 0.1})


def test_a_damaged_teacher_s_file_stops_the_fit(tmp_path):
    one = subject("llama")
    given = {"dev": [], "folder": tmp_path, **QUICK}
    Shift(losses=EVERY, shots=2).fit(one.model, one.processor, one.examples, **given)
    (tmp_path / _checkpoint.NAME).unlink()
    for file in (tmp_path / "teacher").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(FileFormatError, match="delete it"):
        Shift(losses=EVERY, shots=2).fit(one.model, one.processor, one.examples, **given)


def test_mistakes_are_told_before_anything_is_run():
    one = subject("llama")
    given = (one.model, one.processor, one.examples)
    with pytest.raises(UnknownNameError, match="did you mean 'batch_size'"):
        Shift().fit(*given, batchsize=3)
    with pytest.raises(UnknownNameError, match="did you mean 'kl_answer'"):
        Shift(losses={"kl_answers": 1.0}).fit(*given)
    with pytest.raises(SteerError, match="at least one loss"):
        Shift(losses={}).fit(*given)
    with pytest.raises(SteerError, match="at least 2"):
        Shift().fit(one.model, one.processor, one.examples[:1])
    with pytest.raises(SteerError, match="no answer"):
        Shift().fit(one.model, one.processor, [steer.Example("w7"), *one.examples])
    with pytest.raises(SteerError, match="shown demonstrations"):
        Shift(losses={"mse": 1.0}).fit(one.model, one.processor, one.examples[:2])


def test_what_is_not_fitted_stays_at_its_start():
    one = subject("llama")

    class Half(Shift):
        name = "half"

        def initial(self, model_map, generator):
            return {**super().initial(model_map, generator), "fixed": torch.full((64,), 0.25)}

        def frozen_tensors(self):
            return frozenset({"fixed"})

        def interventions(self, model_map):
            fixed = steer.Intervention(steer.sites.resid_out([0]), steer.ops.Add(self.tensors["fixed"]))
            return [*super().interventions(model_map), fixed]

    made = Half().fit(one.model, one.processor, one.examples, weight_decay=0.5, **QUICK)
    assert torch.equal(made.tensors["fixed"], torch.full((64,), 0.25))
    assert made.tensors["vector"].abs().max() > 0


def test_demonstrations_are_compared_in_the_template_in_which_they_are_shown():
    one, seen = subject("llama"), []

    class Watched(steer.Demonstrations):
        def for_queries(self, queries, model=None, processor=None, *, template=None, batch_size=16):
            seen.append(template)
            return super().for_queries(queries, model, processor, template=template, batch_size=batch_size)

    told = Watched(tuple(one.examples), shots=1, choose="similar")
    template = "{images}Q: {question} A: {answer} "
    made = Shift(losses={"kl_answer": 1.0}, template=template)
    made.fit(one.model, one.processor, one.examples, dev=[], demonstrations=told, **QUICK)
    assert seen == [template]


def test_the_vocabulary_is_read_once_for_all_prompts_of_a_batch():
    """A slice of rows, as the model hands it over, would be a product for each prompt."""
    one, given = subject("llama"), []
    head = one.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: given.append(args[0].is_contiguous()))
    try:
        Shift(losses={"ce": 1.0}).fit(one.model, one.processor, one.examples, dev=one.examples[:3], **QUICK)
    finally:
        handle.remove()
    assert given
    assert all(given)
