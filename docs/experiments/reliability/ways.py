"""Ways of answering: the model alone, in other words, with a method, or by another library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from steer import positions, prompts, suites
from steer.suites import Answer, Question

BATCH = 128
WORDS = 4  # tokens of a caption at most: three objects and the end


@dataclass
class Way:
    """The model with a method or without, and how the question is put."""

    model: Any
    processor: Any
    method: Any = None
    wording: str = "{question}"

    def yes_or_no(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to yes-or-no questions, with the probability of yes."""
        return self._ask(suites.pope, questions, 1)

    def words(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in words."""
        return self._ask(suites.chair, questions, WORDS)

    def _ask(self, suite: Any, questions: Sequence[Question], length: int) -> list[Answer]:
        return suite.ask(
            self.model, self.processor, questions, self.method, wording=self.wording, batch_size=BATCH,
            max_new_tokens=length, progress=False,
        )  # fmt: skip


@dataclass
class Mitigv:
    """The same questions answered by PyPI's mitigv, on the very same model object.

    It writes a text and shows no probabilities, so rows of it have answers alone. Its PAI finds no layers in a LLaVA of
    transformers 5.23, and under SDPA, which is given no mask where it is causal, its own attention sees what comes
    after: so it is told where the text tower is, and runs with eager attention (`as_it_expects`).
    """

    model: Any
    processor: Any
    algorithm: str
    options: dict[str, Any]
    seed: int = 0

    def yes_or_no(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers without probabilities."""
        return self.words(questions, 1)

    def words(self, questions: Sequence[Question], length: int = WORDS) -> list[Answer]:
        """Answers in words."""
        from mitigv import mitigate

        torch.manual_seed(self.seed)
        found = []
        told = as_it_expects(self.model) if self.algorithm == "pai" else nullcontext()
        with told, mitigate(self.algorithm, model=self.model, processor=self.processor, **self.options) as run:
            for start in range(0, len(questions), BATCH):
                part = questions[start : start + BATCH]
                texts = run(
                    [one.example.images[0] for one in part], [one.example.question for one in part],
                    max_new_tokens=length, do_sample=False,
                )  # fmt: skip
                found += [Answer(one.key, text.strip()) for one, text in zip(part, texts, strict=True)]
        return found


@contextmanager
def as_it_expects(model: Any) -> Iterator[None]:
    """A LLaVA as mitigv 0.1.7's PAI knows it."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    model.__dict__["language_model"] = model.model.language_model
    try:
        yield
    finally:
        del model.__dict__["language_model"]
        model.set_attn_implementation(before)


@contextmanager
def reading_at(model: Any, processor: Any, side: int) -> Iterator[None]:
    """Pictures at `side` x `side` pixels: more picture tokens, and the tower's positions interpolated."""
    images = processor.image_processor
    before = images.size, images.crop_size
    images.size, images.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    # LLaVA in transformers does not hand this argument on to its tower
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "interpolate_pos_encoding": True}), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()
        images.size, images.crop_size = before


@dataclass
class Aside(Way):
    """PASTA on the picture beside the printed word, whose place is known; the model alone where there is none."""

    def _ask(self, suite: Any, questions: Sequence[Question], length: int) -> list[Answer]:
        found: dict[str, Answer] = {}
        for rows, tokens in ((None, None), ("top", range(4, 16)), ("bottom", range(12))):
            part = [one for one in questions if _strip(one) == rows]
            method = None if tokens is None or not part else self.method.on(self._span(part[0], tokens))
            asked = Way(self.model, self.processor, method)._ask(suite, part, length) if part else []
            found |= {one.key: one for one in asked}
        return [found[one.key] for one in questions]

    def _span(self, question: Question, tokens: range) -> positions.Positions:
        """These of the picture's tokens, which stand first; all of these prompts are equally long."""
        inputs = prompts.encode(self.model, self.processor, [prompts.Prompt(question.example)]).inputs
        inside = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
        inside[list(tokens)] = True
        return positions.mask(inside)


def _strip(question: Question) -> str | None:
    """Where the scene's strip with the word is: at its top, its bottom, or nowhere."""
    box = getattr(question.facts, "word_box", None)
    return None if box is None else "top" if box[1] == 0 else "bottom"
