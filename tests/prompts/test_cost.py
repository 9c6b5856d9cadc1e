"""What is computed once, in parts or all at once: what comes out is the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import steer
from steer_prompts import _encode, _explain, _fit, _pictures
from tests.prompts.models import CLASSES, build
from tests.prompts.quick import EXAMPLES, OPTIONS, PICTURES, QUICK, create, fitted

CLIP = build("clip")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_what_is_kept_of_the_texts_is_dropped_when_something_changes():
    model, processor = CLIP
    method = fitted(model, processor, "coop", text_adapter=0.2)

    def differs() -> bool:
        """Whether the scores are others than before; they are those of a method that keeps nothing."""
        nonlocal last
        fresh = copy.copy(method)
        fresh._texts = None
        made = method.scores(PICTURES)
        assert torch.equal(made, fresh.scores(PICTURES))
        last, before = made, last
        return not torch.equal(made, before)

    last = method.scores(PICTURES)
    assert not differs()
    method.tensors["context"].mul_(2)
    assert differs()
    method.tensors["context"] = torch.randn_like(method.tensors["context"])
    assert differs()
    method.text_adapter = 0.7
    assert differs()
    method.fit(model, processor, EXAMPLES, **QUICK)
    assert differs()
    method.set_classes(CLASSES[::-1])
    assert differs()
    assert not differs()


def test_texts_are_read_once_for_many_predictions(monkeypatch):
    method, calls = fitted(*CLIP, "coop"), []
    inner = _encode.texts
    monkeypatch.setattr(_encode, "texts", lambda *given: calls.append(1) or inner(*given))
    for _ in range(3):
        method.predict(PICTURES, batch_size=2)
    assert len(calls) == 1


def gradients(name: str, options: dict[str, Any], **given: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The losses and gradients of the first step of a fit."""
    seen: list[dict[str, torch.Tensor]] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([one["params"][0].grad.clone() for one in self.param_groups])
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Spy)
        method = create(name, **options).fit(*CLIP, EXAMPLES, **{**QUICK, "epochs": 1, "batch_size": 8, **given})
    names = [name for name in method.tensors if name not in _fit.NOT_FITTED]
    history = {k: v for k, v in method.provenance["training"]["history"][0].items() if k != "step"}
    return history, dict(zip(names, seen[0], strict=True))


LEARNING = sorted(set(OPTIONS) - {"tip_adapter"})
WAYS = {
    "classes one by one": {"class_batch": 1},
    "classes in threes": {"class_batch": 3},
    "pictures in threes": {"micro_batch_size": 3},
    "layers again": {"gradient_checkpointing": True},
    "all of these": {"class_batch": 3, "micro_batch_size": 3, "gradient_checkpointing": True},
}


# Beside the presets: vectors and slots that differ between classes, an ensemble of texts.
MORE = [
    ("coop", {"class_specific": True}),
    ("coop", {"class_position": "middle", "class_specific": True, "text_depth": 2}),
    ("vpt", {"templates": ["a {}.", "the big {}."], "text_adapter": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in LEARNING), *MORE])
def test_in_parts_or_at_once_the_gradient_is_the_same(name, options):
    losses, truth = gradients(name, options)
    assert all(one.abs().max() > 0 for one in truth.values())
    for way, given in WAYS.items():
        also, made = gradients(name, options, **given)
        assert also == pytest.approx(losses, rel=1e-5), way
        for key, one in truth.items():
            scale = float(one.abs().max())
            torch.testing.assert_close(made[key], one, rtol=1e-4, atol=2e-5 * scale + 1e-9, msg=f"{way}: {key}")


def test_texts_cut_to_the_longest_are_those_padded_to_every_slot():
    """Under causal attention no token sees the pads behind it."""
    for name in ("coop", "maple", "promptsrc"):
        method = fitted(*CLIP, name)
        stream, given = method.bound(), method.prompts_of_classes().inputs
        short = given["input_ids"].shape[1]
        assert short < stream.slots
        padded = {k: torch.nn.functional.pad(v, (0, stream.slots - short)) for k, v in given.items()}
        with torch.no_grad(), steer.attach(CLIP[0], method, strict=False):
            whole, cut = stream.text_features(padded), stream.text_features(given)
        torch.testing.assert_close(cut, whole, rtol=0, atol=1e-6)


def test_pictures_together_are_pictures_one_by_one():
    method = fitted(*CLIP, "cocoop")
    alone = torch.cat([method.scores([one]) for one in PICTURES])
    torch.testing.assert_close(method.scores(PICTURES), alone, rtol=0, atol=2e-5)
    assert (alone[:1] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("name", LEARNING)
def test_what_is_kept_of_the_pictures_changes_nothing(name, monkeypatch):
    """Features, or pixels where the vision tower learns: made again for every batch the tensors are the same."""
    options = {"augment": "none", "dev": EXAMPLES[:5]}
    kept = create(name).fit(*CLIP, EXAMPLES, **QUICK, **options)
    monkeypatch.setattr(_pictures, "KEPT_BYTES", 0)
    inner = _pictures.Pictures.features

    def anew(self: Any, numbers: Any, view: int = 0) -> torch.Tensor:
        self._features = None
        return inner(self, numbers, view)

    monkeypatch.setattr(_pictures.Pictures, "features", anew)
    made = create(name).fit(*CLIP, EXAMPLES, **QUICK, **options)
    for key, value in kept.tensors.items():
        torch.testing.assert_close(made.tensors[key], value, **CLOSE)


@pytest.mark.parametrize("name", ["coop", "clip_adapter", "vpt"])
def test_every_picture_goes_through_the_processor_once(name):
    """And through the vision tower once, where nothing changes in it."""
    model, processor = CLIP
    seen, forwards = [], []
    counting = copy.copy(processor)
    counting.image_processor = lambda images, **more: seen.extend(images) or processor.image_processor(images, **more)
    handle = model.vision_model.register_forward_hook(lambda *given: forwards.append(1))
    try:
        create(name).fit(model, counting, EXAMPLES, dev=EXAMPLES[:4], **{**QUICK, "epochs": 3})
    finally:
        handle.remove()
    counts = [sum(one is picture for one in seen) for picture in PICTURES]
    # The size of one is asked for before all are kept; those of `dev` are others to the fit.
    assert max(counts[4:]) <= 1 + (name == "vpt")
    assert max(counts[:4]) <= 2 + 2 * (name == "vpt")
    if name != "vpt":
        # TwoStream measures on a picture of its own
        assert len(forwards) <= 8


def test_names_are_read_by_the_tokenizer_all_at_once():
    model, processor = CLIP
    calls = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(processor.tokenizer, name)

        def __call__(self, *given: Any, **more: Any) -> Any:
            calls.append(1)
            return processor.tokenizer(*given, **more)

    one = copy.copy(processor)
    one.tokenizer = Counting()
    method = create("coop", classes=[f"cat {i}" for i in range(100)]).bind(model, one)
    calls.clear()
    method.set_classes([f"dog {i}" for i in range(100)])
    assert len(calls) < 10


def test_nearest_words_of_many_vectors_are_those_of_each(monkeypatch):
    method = fitted(*CLIP, "coop", class_specific=True)
    whole = method.explain()
    monkeypatch.setattr(_explain, "VECTORS", 2)
    assert method.explain() == whole
    table = CLIP[0].text_model.embeddings.token_embedding.weight
    words = [row for row in whole.rows if row.where == "text, token embeddings"]
    for row, vector in zip(words, method.tensors["context"].flatten(0, 1), strict=True):
        distances = (table - vector).norm(dim=-1).sort()
        assert [d for _, d in row.nearest] == pytest.approx(distances.values[:3].tolist(), abs=1e-3)
        assert [w for w, _ in row.nearest] == [CLIP[1].tokenizer.decode([i]).strip() for i in distances.indices[:3]]
