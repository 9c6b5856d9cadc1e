"""The texts of classes, with places in them for learned vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steer import SteerError, TwoStream

PLACEHOLDERS = ("X", "a", "the")


@dataclass(frozen=True)
class Prompts:
    """One text for each class.

    Attributes:
        inputs: what the text half takes, each (K, T).
        slots: where the learned vectors stand, int64 (K, M).
    """

    inputs: dict[str, torch.Tensor]
    slots: torch.Tensor


def words_of(name: str) -> str:
    """A class name as it is written in a prompt: underscores are spaces, as in the papers' data sets."""
    return name.replace("_", " ").strip()


def from_template(stream: TwoStream, names: Sequence[str], template: str) -> Prompts:
    """Hand-written prompts: the template with each name at its `{}`.

    Raises:
        SteerError: the template has no place for a name, or a text is too long for the model.
    """
    if template.count("{}") != 1:
        raise SteerError(f"a template needs one {{}} for the name of the class, got {template!r}")
    return Prompts(stream.tokens([template.format(words_of(name)) for name in names]), torch.zeros(0, dtype=torch.long))


def with_context(stream: TwoStream, names: Sequence[str], count: int, init: str, position: str) -> Prompts:
    """Prompts of learned vectors, the words of `init` that are left over, the name and a full stop.

    Args:
        stream: the model.
        names: of the classes.
        count: M, how many vectors.
        init: words that the first vectors start from; what it has beyond M tokens stays in the text as words.
        position: where the name stands: at the "end", in the "middle" of the vectors, or in "front" of them.

    Raises:
        SteerError: the vectors and a name are longer than the model can read; the message says how many there are.
    """
    rest = words_in(stream, init)[count:] if init else []
    hold = placeholder(stream)
    texts, slots = [], []
    for name in names:
        body = _body(stream, f"{words_of(name)}.")
        middle = len(words_in(stream, words_of(name)))
        lead = {"end": 0, "front": middle, "middle": 0}[position]
        before = {"end": count, "front": count, "middle": count // 2}[position]
        first, after = body.start + lead, count - before
        ids = [body.ids[:first], [hold] * before, rest if position == "end" else [], body.ids[first:]]
        places = list(range(first, first + before))
        if after:
            cut = body.start + middle
            ids = [body.ids[: body.start], [hold] * before, body.ids[body.start : cut], [hold] * after, body.ids[cut:]]
            places += range(cut + before, cut + before + after)
        made = [one for part in ids for one in part]
        if len(made) > stream.slots:
            raise SteerError(
                f"the class {name!r:.80} has {len(body.ids)} tokens and the context {count + len(rest)}; "
                f"together they are {len(made)}, and {stream.map.model_class} reads at most {stream.slots}"
            )
        texts.append(made)
        slots.append(places)
    return Prompts(_padded(stream, texts), torch.tensor(slots, dtype=torch.long).reshape(len(names), count))


def words_in(stream: TwoStream, text: str) -> list[int]:
    """The token ids of some words, without special tokens."""
    body = _body(stream, text)
    return body.ids[body.start : body.stop]


def placeholder(stream: TwoStream) -> int:
    """The id of a common word, to stand where a vector will: models find a text's end by its ids."""
    special = set(stream.tokenizer.all_special_ids)
    found = [one for word in PLACEHOLDERS for one in words_in(stream, word)[:1] if one not in special]
    if not found:
        raise SteerError(f"the tokenizer knows none of {', '.join(PLACEHOLDERS)}; a context cannot be laid out")
    return found[0]


@dataclass(frozen=True)
class _Body:
    """Token ids of a text, and which of them are its words."""

    ids: list[int]
    start: int
    stop: int


def _body(stream: TwoStream, text: str) -> _Body:
    made = stream.tokenizer(text, return_special_tokens_mask=True)
    special = list(made["special_tokens_mask"])
    start = next((index for index, one in enumerate(special) if not one), len(special))
    stop = len(special) - next((index for index, one in enumerate(reversed(special)) if not one), len(special))
    return _Body(list(made["input_ids"]), start, max(start, stop))


def _padded(stream: TwoStream, texts: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    """Ids padded on the right, with the other inputs that the tokenizer gives."""
    length = stream.slots if stream.pads_matter else max(map(len, texts), default=0)
    fill = stream.tokenizer.pad_token_id or 0
    ids = torch.full((len(texts), length), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    made: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: made[name].to(stream.device) for name in stream.tokenizer("a") if name in made}
