"""Demonstrations and questions in words, as parts of one sequence: what a memory reads, and what is asked after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import SteerError
from ..examples import Example
from ..prompts import PLAIN, Batch, Prompt, encode, parts, renderer

_EARLIER = Example("?", "!")
"""Stands for the turns before a question: templates write a first turn in another way than a later one."""


class Words:
    """Writes demonstrations and questions through the processor's template, or a plain one, part after part."""

    def __init__(self, model: Any, processor: Any, template: str | None = None) -> None:
        self.model, self.processor, self.template = model, processor, template
        self._render = renderer(model, processor, template)

    def context(self, shots: Sequence[Example], chunk: int = 4) -> list[dict[str, torch.Tensor]]:
        """The inputs of consecutive parts of the demonstrations, `chunk` of them in each; each one row.

        Raises:
            SteerError: the template does not write demonstrations one after the other.
        """
        if chunk < 1 or not shots:
            raise SteerError(f"a context needs demonstrations and parts of one or more; got {len(shots)} in {chunk}s")
        made, written = [], ""
        for start in range(0, len(shots), chunk):
            text = self._render.shown(shots[: start + chunk])
            self._check(text, written)
            images = [image for shot in shots[start : start + chunk] for image in shot.images]
            special = not written and self._render.add_special_tokens([text])
            made.append(parts(self.model, self.processor, [text[len(written) :]], [images], special))
            written = text
        return made

    def questions(self, queries: Sequence[Example], after: bool = True) -> Batch:
        """The inputs of questions alone, as they go on after demonstrations; padded on the left, with their answers.

        Args:
            queries: what is asked.
            after: something was read before; False: they stand alone.
        """
        if not after:
            return encode(self.model, self.processor, [Prompt(q) for q in queries], template=self.template)
        earlier = self._render.shown([_EARLIER])
        texts = [self._render.prompt(Prompt(q, (_EARLIER,))) for q in queries]
        for text in texts:
            self._check(text, earlier)
        answers = [self._render.answer(Prompt(q, (_EARLIER,)), text) for q, text in zip(queries, texts, strict=True)]
        return encode_rest(self.model, self.processor, queries, [t[len(earlier) :] for t in texts], answers)

    def _check(self, text: str, written: str) -> None:
        if not text.startswith(written):
            raise SteerError(
                "this template writes earlier demonstrations in another way when more follow, so they cannot be read "
                f"in parts; give a plain one, such as template={PLAIN!r}"
            )


def encode_rest(model: Any, processor: Any, queries: Sequence[Example], texts: list[str], answers: list[str]) -> Batch:
    """A batch of prompts that go on after something, without the tokens that begin a text."""
    from ..prompts import tokens_of_answers

    inputs = parts(model, processor, texts, [list(q.images) for q in queries], False)
    if any(not q.answer for q in queries):
        return Batch(inputs)
    return Batch(inputs, tokens_of_answers(processor, texts, answers).to(model.device))
