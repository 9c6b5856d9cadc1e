"""From demonstrations and a query to a model's inputs: several pictures in a prompt, batches, answers after it.

The words go through the chat template that the processor came with, or through a plain format where it has none or
where you give one. Batches are padded on the left, so that every prompt ends in the last column.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .errors import SteerError
from .examples import Example

__all__ = ["Batch", "Prompt", "batches", "draw", "encode", "write"]

PLAIN = "{images}Q: {question}\nA: {answer}\n\n"
IGNORED = -100
"""Stands in `Batch.answers` where a row has no more tokens, as in transformers' labels."""


@dataclass(frozen=True)
class Prompt:
    """A query after zero or more demonstrations.

    Attributes:
        query: what is asked; its answer is what should be written, and not part of the prompt.
        shots: demonstrations, each shown with its answer.
        answered: show the query's answer too; the prompt's last token is then the answer's last token.
    """

    query: Example
    shots: tuple[Example, ...] = ()
    answered: bool = False


@dataclass(frozen=True)
class Batch:
    """Prompts as a model takes them.

    Attributes:
        inputs: for `model.generate(**inputs)`, on the model's device; `input_ids` is (B, S), padded on the left.
        answers: the tokens of the queries' answers, (B, A), padded on the right with -100; None where a query has none.
        answered: the answers are part of the prompts.
    """

    inputs: dict[str, torch.Tensor]
    answers: torch.Tensor | None = None
    answered: bool = False

    def __len__(self) -> int:
        return int(self.inputs["input_ids"].shape[0])


def draw(
    examples: Sequence[Example], n: int, shots: int, *, seed: int = 0, shuffle_answers: bool = False
) -> list[Prompt]:
    """Draw prompts from a pool: every example is the query in turn, the shots are others in a random order.

    Args:
        examples: the pool.
        n: how many prompts.
        shots: demonstrations in each, without the query; fewer where the pool is smaller.
        seed: of the choice and of the order.
        shuffle_answers: deal the shots' answers out at random, so that they say nothing about the task.

    Returns:
        n prompts whose queries hold their right answers.
    """
    rng = random.Random(seed)
    pool = list(range(len(examples)))
    turns = [i for _ in range(-(-n // max(1, len(pool)))) for i in rng.sample(pool, len(pool))]
    made = []
    for turn in turns[:n]:
        others = [i for i in pool if i != turn]
        shown = [examples[i] for i in rng.sample(others, min(shots, len(others)))]
        if shuffle_answers:
            answers = rng.sample([one.answer for one in shown], len(shown))
            shown = [replace(one, answer=answer) for one, answer in zip(shown, answers, strict=True)]
        made.append(Prompt(examples[turn], tuple(shown)))
    return made


def encode(model: Any, processor: Any, prompts: Sequence[Prompt], *, template: str | None = None) -> Batch:
    r"""Make one batch.

    Args:
        model: where the inputs go: its device, and its dtype for what is not whole numbers.
        processor: the model's processor or tokenizer.
        prompts: the rows.
        template: how one example is written where no chat template should be used, such as
            `"{images}Q: {question}\nA: {answer}\n\n"`. None takes the processor's chat template, or that very one
            if there is none.

    Returns:
        The batch; its answers are tokenised as they go on after their prompts.

    Raises:
        SteerError: the processor is missing, or cannot take the pictures or the words; the template has no place for
            question and answer.
    """
    render = renderer(model, processor, template)
    pictured = any(example.images for prompt in prompts for example in (*prompt.shots, prompt.query))
    if pictured and not _sees(processor):
        raise SteerError(f"{type(model).__name__} came without an image processor; leave the pictures out")
    if len({prompt.answered for prompt in prompts}) != 1:
        raise SteerError("a batch needs one prompt or more, all answered or none")
    try:
        return _encode(model, processor, prompts, render)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SteerError(f"{type(processor).__name__} cannot make inputs of this: {error}") from error


def renderer(model: Any, processor: Any, template: str | None) -> _Chat | _Plain:
    """How examples are written: through the processor's chat template, or a plain one if it has none or one is given.

    Raises:
        SteerError: there is no processor, or the template has no place for question and answer.
    """
    if processor is None:
        raise SteerError(
            f"{type(model).__name__} came without a processor or tokenizer, so words cannot be given to it"
        )
    chat = template is None and getattr(processor, "chat_template", None) is not None
    return _Chat(processor) if chat else _Plain(processor, template or PLAIN)


def batches(
    model: Any, processor: Any, prompts: Sequence[Prompt], *, template: str | None = None, batch_size: int = 16
) -> Sequence[Batch]:
    """`encode` in batches of at most `batch_size` prompts, each made whenever it is asked for."""
    return _Batches(model, processor, prompts, template, batch_size)


def write(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    *,
    template: str | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 8,
) -> list[str]:
    """What the model writes after each prompt, greedily, special tokens and outer spaces dropped.

    Raises:
        SteerError: the model does not write text; or as `encode`.
    """
    check_writes(model)
    tokenizer = tokenizer_of(processor)
    written: list[str] = []
    for batch in batches(model, processor, prompts, template=template, batch_size=batch_size):
        out = model.generate(**batch.inputs, max_new_tokens=max_new_tokens, do_sample=False)
        start = 0 if model.config.is_encoder_decoder else batch.inputs["input_ids"].shape[1]
        written += [text.strip() for text in tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)]
    return written


def check_writes(model: Any) -> None:
    """Raise a SteerError if the model does not write text."""
    if not getattr(model, "can_generate", lambda: False)():
        raise SteerError(f"{type(model).__name__} does not write text; a model with `generate` is needed here")


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor, or the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


@dataclass(frozen=True)
class _Batches(Sequence[Batch]):
    """Batches that take no memory until they are asked for: pictures are large."""

    model: Any
    processor: Any
    prompts: Sequence[Prompt]
    template: str | None
    size: int

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.size)

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[i] for i in chosen]
        part = self.prompts[chosen * self.size : (chosen + 1) * self.size]
        return encode(self.model, self.processor, part, template=self.template)


class _Chat:
    """Words through the processor's chat template."""

    def __init__(self, processor: Any) -> None:
        self._processor, self._sees = processor, _sees(processor)

    def prompt(self, prompt: Prompt) -> str:
        turns = [turn for shot in prompt.shots for turn in (self._asks(shot), self._answers(shot))]
        return str(self._apply([*turns, self._asks(prompt.query)], add_generation_prompt=True))

    def shown(self, shots: Sequence[Example]) -> str:
        """Demonstrations alone, with their answers, as they stand before a query."""
        return str(self._apply([turn for shot in shots for turn in (self._asks(shot), self._answers(shot))]))

    def answer(self, prompt: Prompt, text: str) -> str:
        """The answer as the template writes it after the prompt, without what ends the turn."""
        turns = [turn for shot in (*prompt.shots, prompt.query) for turn in (self._asks(shot), self._answers(shot))]
        whole, answer = str(self._apply(turns)), prompt.query.answer
        start = whole.find(answer, len(text))
        # Some templates write a past answer in another way than the one that is being written; then it is itself.
        return whole[len(text) : start + len(answer)] if whole.startswith(text) and start >= 0 else answer

    def add_special_tokens(self, texts: Sequence[str]) -> bool:
        """Whether the tokenizer should: templates mostly write them, and transformers decides in this way."""
        start = tokenizer_of(self._processor).bos_token
        return self._sees and not (start and texts[0].startswith(start))

    def _apply(self, turns: list[dict[str, Any]], **options: bool) -> Any:
        return self._processor.apply_chat_template(turns, tokenize=False, **options)

    def _asks(self, example: Example) -> dict[str, Any]:
        places = [{"type": "image"}] * len(example.images)
        return {"role": "user", "content": self._words(example.question, places)}

    def _answers(self, example: Example) -> dict[str, Any]:
        return {"role": "assistant", "content": self._words(example.answer, [])}

    def _words(self, words: str, places: list[dict[str, str]]) -> Any:
        return [*places, {"type": "text", "text": words}] if self._sees else words


class _Plain:
    """Words through a format string; the query ends where its answer would begin, without the space before it."""

    def __init__(self, processor: Any, template: str) -> None:
        if not 0 <= template.find("{question}") < template.find("{answer}"):
            raise SteerError(f"the template {template!r} needs {{question}} and, after it, {{answer}}")
        self._place = getattr(processor, "image_token", None) or ""
        if "{images}" not in template:
            template = "{images}" + template
        asks, _, self._end = template.partition("{answer}")
        self._asks = asks.rstrip()
        self._gap = asks[len(self._asks) :]

    def prompt(self, prompt: Prompt) -> str:
        return self.shown(prompt.shots) + self._ask(prompt.query)

    def shown(self, shots: Sequence[Example]) -> str:
        """Demonstrations alone, with their answers, as they stand before a query."""
        return "".join(self._ask(shot) + self._gap + shot.answer + self._end for shot in shots)

    def answer(self, prompt: Prompt, text: str) -> str:
        return self._gap + prompt.query.answer

    def add_special_tokens(self, texts: Sequence[str]) -> bool:
        return True

    def _ask(self, example: Example) -> str:
        before, _, after = self._asks.partition("{question}")
        return before.replace("{images}", self._place * len(example.images)) + example.question + after


def _sees(processor: Any) -> bool:
    return getattr(processor, "image_processor", None) is not None


def _encode(model: Any, processor: Any, prompts: Sequence[Prompt], render: _Chat | _Plain) -> Batch:
    texts = [render.prompt(prompt) for prompt in prompts]
    after = [
        render.answer(prompt, text) if prompt.query.answer else "" for prompt, text in zip(prompts, texts, strict=True)
    ]
    answered = prompts[0].answered
    answers = None
    # A decoder of its own takes the answer; any other model reads it where the prompt ends.
    if all(after) and (not answered or model.config.is_encoder_decoder):
        answers = tokens_of_answers(processor, texts, after).to(model.device)
    elif answered:
        texts = [text + words for text, words in zip(texts, after, strict=True)]
    images = [[image for one in (*prompt.shots, prompt.query) for image in one.images] for prompt in prompts]
    return Batch(parts(model, processor, texts, images, render.add_special_tokens(texts)), answers, answered)


def parts(
    model: Any, processor: Any, texts: list[str], images: list[list[Any]], special: bool
) -> dict[str, torch.Tensor]:
    """Inputs of these texts with the pictures in them; `special` adds the tokens that begin a text."""
    sees = _sees(processor)
    encoded = _with_pictures(processor, texts, images, special) if sees else _words(processor, texts, special)
    device, dtype = model.device, model.dtype
    tensors = {key: value for key, value in encoded.items() if isinstance(value, torch.Tensor)}
    _check_something_to_read(tensors)
    return {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in tensors.items()}


def _check_something_to_read(tensors: dict[str, torch.Tensor]) -> None:
    """Raise where a prompt became no token: most models fail on that somewhere inside, some answer from padding."""
    mask = tensors.get("attention_mask", tensors.get("input_ids"))
    if mask is not None and (0 in mask.shape or ("attention_mask" in tensors and not mask.any(-1).all())):
        raise SteerError("a prompt has no words and no pictures, so there is nothing to read; give it words")


def tokens_of_answers(processor: Any, texts: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
    """The tokens of answers after their prompts, (B, A), padded on the right with -100."""
    tokenizer = tokenizer_of(processor)
    return _pad([_tokens_after(tokenizer, *pair) for pair in zip(texts, answers, strict=True)])


def _with_pictures(processor: Any, texts: list[str], images: list[list[Any]], special: bool) -> Any:
    options: dict[str, Any] = {} if special else {"add_special_tokens": False}
    if len(texts) > 1:
        options |= {"padding": True, "padding_side": "left"}
    return processor(text=texts, images=images if any(images) else None, return_tensors="pt", **options)


def _words(tokenizer: Any, texts: list[str], special: bool) -> dict[str, torch.Tensor]:
    """Token ids and mask; padded here, because many tokenizers of text models have no padding token."""
    rows = tokenizer(texts, add_special_tokens=special)["input_ids"]
    longest = max(map(len, rows))
    pad = tokenizer_of(tokenizer).pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _tokens_after(tokenizer: Any, text: str, answer: str) -> list[int]:
    """The tokens of an answer after its prompt; on its own where the two would grow together into one token."""
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    both = tokenizer(text + answer, add_special_tokens=False)["input_ids"]
    if both[: len(before)] == before and len(both) > len(before):
        return list(both[len(before) :])
    return list(tokenizer(answer, add_special_tokens=False)["input_ids"])


def _pad(rows: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [IGNORED] * (longest - len(row)) for row in rows])
