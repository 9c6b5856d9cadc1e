"""What one regulariser alone has: ProGrad's projection, PromptSRC's mean of epochs, CoPrompt's views and sentences."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from steer_prompts import _fit
from steer_prompts._pictures import Pictures
from tests.prompts import models, parity, stepping
from tests.prompts.reference import prograd, promptsrc, step
from tests.prompts.reference import tip_adapter as tip
from tests.prompts.test_parity_logits import close
from tests.prompts.truth import Truth


@pytest.fixture(scope="module")
def one() -> parity.Subject:
    return parity.subject(torch.float64)


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("against", [False, True])
def test_prograd_projects_where_the_gradients_disagree(one, against, micro, monkeypatch):
    """Labels that the teacher holds likelier than the student does are learned as by CoOp, others across its way."""
    method = parity.bound("prograd", one, torch.float64)
    truth, before = Truth("prograd", method, one), parity.learned(method, {"context": method.tensors["context"]})
    teacher = truth.zero_shot()
    wished = truth.logits(before).softmax(-1) - teacher.softmax(-1)
    truth.labels = wished.argmax(-1) if against else wished.argmin(-1)
    examples = [(x, parity.CLASSES[y]) for x, y in zip(parity.PICTURES, truth.labels, strict=True)]
    made = stepping.fitted(monkeypatch, "prograd", one, torch.float64, examples=examples, micro_batch_size=micro)
    given = truth.clip, truth.ids, truth.images, truth.labels
    plain, general = (
        step.gradients(lambda x, i=i: prograd.losses(*given, x, teacher)[i], before)[1]["ctx"] for i in (0, 1)
    )
    inner, gradient = (plain * general).sum(), made.gradients["context"]
    assert (inner < 0) == against
    close(gradient, plain - against * inner / general.square().sum() * general, 1e-9)
    close(gradient, stepping.gradients(truth, before)["ctx"], 1e-9)
    assert ((gradient - plain).norm() > 0.05 * plain.norm()) == against


def test_promptsrc_is_the_mean_of_its_epochs(one, monkeypatch):
    made = stepping.fitted(monkeypatch, "promptsrc", one, torch.float64, epochs=3, schedule="epochs", warmup_lr=1e-3)
    truth = Truth("promptsrc", made.method, one)
    rates = [1e-3, stepping.RATE, stepping.RATE * 0.75]
    epochs = stepping.steps(truth, parity.learned(made.method, made.before), rates)
    # where the authors have it for 20 epochs: at 15, as wide as 1
    weights = promptsrc.epoch_weights(3, 15 * 3 / 20, 3 / 20)
    for key in made.before:
        theirs = parity.renamed(made.method, key)
        mean = sum(weight * epoch[theirs] for weight, epoch in zip(weights, epochs, strict=True))
        close(made.method.tensors[key], mean, 1e-9)
        assert (mean - epochs[-1][theirs]).norm() > 1e-4 * mean.norm()


def test_promptsrc_keeps_the_best_instead_where_there_are_dev_pictures(one, monkeypatch):
    made = stepping.fitted(monkeypatch, "promptsrc", one, torch.float64, epochs=3, dev=stepping.EXAMPLES)
    truth = Truth("promptsrc", made.method, one)
    before = parity.learned(made.method, made.before)
    epochs = stepping.steps(truth, before, [stepping.RATE * factor for factor in (1, 0.75, 0.25)])
    with torch.no_grad():
        losses = [float(truth.terms(epoch)["ce"]) for epoch in epochs]
    assert [entry["dev"] for entry in made.method.provenance["training"]["history"]] == pytest.approx(losses, rel=1e-9)
    best = epochs[losses.index(min(losses))]
    for key in made.before:
        close(made.method.tensors[key], best[parity.renamed(made.method, key)], 1e-9)


def test_coprompt_compares_two_views_and_the_sentence_of_the_step(one, monkeypatch):
    """The student sees the first view and the teacher the second; every class the same one of its sentences."""
    views = parity.PICTURES, models.pictures(len(parity.PICTURES), seed=7)
    templates = ["a photo of the {}.", "a {}.", "the small {}."]
    sentences = {name: [template.format(name) for template in templates] for name in parity.CLASSES}
    monkeypatch.setattr(Pictures, "_perturbed", lambda self, number, view: views[view][number])
    drawn = SimpleNamespace(Random=lambda seed: SimpleNamespace(randrange=lambda count: count - 1))
    monkeypatch.setattr(_fit, "random", drawn)
    made = stepping.fitted(monkeypatch, "coprompt", one, torch.float64, augment="rand", sentences=sentences)
    truth = Truth("coprompt", made.method, one)
    truth.sentences, truth.second = templates[-1], one.pixels(views[1])
    before = parity.learned(made.method, made.before)
    assert made.terms == pytest.approx({key: float(value) for key, value in truth.terms(before).items()}, rel=1e-9)
    gradients = stepping.gradients(truth, before)
    for key, gradient in made.gradients.items():
        close(gradient, gradients[parity.renamed(made.method, key)], 1e-9)
    for changed in ({"second": truth.images}, {"sentences": templates[0]}):
        other = Truth("coprompt", made.method, one)
        other.__dict__ |= {"sentences": truth.sentences, "second": truth.second, **changed}
        assert abs(other.terms(before)["consistency"] - made.terms["consistency"]) > 1e-3


def test_tip_adapter_keeps_the_pictures(one):
    method = parity.preset("tip_adapter")
    method.fit(one.model, one.processor, stepping.EXAMPLES, progress=False)
    keys, values = tip.cache(one.clip, one.images, parity.LABELS, 4)
    close(method.tensors["cache.keys"], keys, 1e-9)
    assert torch.equal(torch.nn.functional.one_hot(method.tensors["cache.labels"], 4), values.long())
