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
    return Prompts(stream.tokens([filled(template, name) for name in names]), torch.zeros(0, dtype=torch.long))


def filled(template: str, name: str) -> str:
    """A template with a name at its `{}`.

    Raises:
        SteerError: the template has no place for a name, or several.
    """
    if not isinstance(template, str) or template.count("{}") != 1:
        raise SteerError(f"a template needs one {{}} for the name of the class, got {template!r}")
    # not str.format, for which any other brace would be a field
    return template.replace("{}", words_of(name))


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
    rest = words_in(stream, init)[count:] if init and position == "end" else []
    hold = placeholder(stream)
    first = {"end": count, "middle": count // 2, "front": 0}[position]
    bodies = _bodies(stream, [f"{words_of(name)}." for name in names])
    bare = bodies if position == "end" else _bodies(stream, [words_of(name) for name in names])
    texts, slots = [], []
    for name, body, alone in zip(names, bodies, bare, strict=True):
        # Where the name ends: the full stop is what the tokens of both do not share.
        cut = body.start + (0 if position == "end" else _shared(body.words, alone.words))
        begin, end = body.start + first, cut + count
        made = [*body.ids[: body.start], *[hold] * first, *rest, *body.ids[body.start : cut]]
        made += [*[hold] * (count - first), *body.ids[cut:]]
        if len(made) > stream.slots:
            raise SteerError(
                f"the class {name!r:.80} has {len(body.ids)} tokens and the context {count + len(rest)}; "
                f"together they are {len(made)}, and {stream.map.model_class} reads at most {stream.slots}"
            )
        texts.append(made)
        slots.append([*range(body.start, begin), *range(cut + first, end)])
    return Prompts(_padded(stream, texts), torch.tensor(slots, dtype=torch.long).reshape(len(names), count))


def words_in(stream: TwoStream, text: str) -> list[int]:
    """The token ids of some words, without special tokens."""
    return _bodies(stream, [text])[0].words


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

    @property
    def words(self) -> list[int]:
        """Without special tokens."""
        return self.ids[self.start : self.stop]


def _bodies(stream: TwoStream, texts: Sequence[str]) -> list[_Body]:
    """Texts with their special tokens; one call of the tokenizer for all."""
    made = stream.tokenizer(list(texts), return_special_tokens_mask=True)
    bodies = []
    for ids, special in zip(made["input_ids"], made["special_tokens_mask"], strict=True):
        words = [index for index, one in enumerate(special) if not one]
        # Nothing but special tokens: what is added stands behind the first of several, as a word would.
        start = words[0] if words else max(0, min(1, len(ids) - 1))
        bodies.append(_Body(list(ids), start, words[-1] + 1 if words else start))
    return bodies


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


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
