"""Models to fit on, each with its processor, examples, and its prompts written out by hand, one at a time, unpadded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

import steer
from steer.prompts import Prompt
from tests.engine.families import FAMILIES, IMAGE
from tests.engine.helpers import tiny_llama

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """One model under test.

    Attributes:
        model, processor: the model in eval mode, and what it takes words with.
        examples: 8 answered ones.
        layers: the blocks of the text tower.
        by_hand: the inputs of one prompt, without `steer.prompts`.
    """

    model: Any
    processor: Any
    examples: Sequence[steer.Example]
    layers: Sequence[nn.Module]
    by_hand: Callable[[Prompt], Inputs]


def word_tokenizer(padded: bool = False) -> PreTrainedTokenizerFast:
    """Words w6 to w89 are their numbers; without a padding token, as many text models are."""
    vocab = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "Q:": 4, "A:": 5, **{f"w{i}": i for i in range(6, 90)}}
    tokenizer = Tokenizer(models.WordLevel({**vocab, "<image>": IMAGE}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    more = {"pad_token": "<pad>"} if padded else {}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", **more)
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


class PictureProcessor:
    """As Qwen's: a picture is (16, 96) patches and 4 tokens between two others."""

    image_processor, image_token, chat_template = object(), "<image>", None

    def __init__(self) -> None:
        self.tokenizer = word_tokenizer(padded=True)

    def __call__(self, text, images=None, padding=False, padding_side="right", return_tensors=None) -> Inputs:
        rows = [self._expanded(self.tokenizer(words)["input_ids"]) for words in text]
        longest = max(map(len, rows))
        assert padding or {len(row) for row in rows} == {longest}
        assert padding_side == "left" or len(rows) == 1
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        pictures = [picture for row in images or () for picture in row]
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), **_patches(ids, pictures)}

    def _expanded(self, ids: list[int]) -> list[int]:
        return [new for old in ids for new in ([96, *[IMAGE] * 4, 95] if old == IMAGE else [old])]


def _patches(ids: torch.Tensor, pictures: Sequence[torch.Tensor]) -> Inputs:
    made = {"mm_token_type_ids": (ids == IMAGE).long()}
    if pictures:
        made |= {"pixel_values": torch.cat(list(pictures)), "image_grid_thw": torch.tensor([[1, 4, 4]] * len(pictures))}
    return made


def _words(seed: int, pictured: bool) -> list[steer.Example]:
    """Questions of one to three words, so that prompts differ in length; answers of one."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(6, 90, (count,), generator=generator))

    pictures = [(torch.randn(16, 96, generator=generator),) if pictured else () for _ in range(8)]
    return [steer.Example(some(1 + i % 3), some(1), pictures[i]) for i in range(8)]


def _plain_ids(prompt: Prompt, picture: str) -> list[int]:
    """`Q: question A: answer` word by word, with a picture's tokens in front of each question."""
    words: list[str] = []
    for one in (*prompt.shots, prompt.query):
        answer = [one.answer] if one is not prompt.query or prompt.answered else []
        words += [*picture.split(), "Q:", *one.question.split(), "A:", *answer]
    names = {"Q:": 4, "A:": 5, "<start>": 96, "<patch>": IMAGE, "<end>": 95}
    return [names[word] if word in names else int(word[1:]) for word in words]


@cache
def subject(name: str) -> Subject:
    """`tiny-vlm`, `llama` (text only, grouped queries, head_dim not width / heads) or `qwen2_5_vl` (M-RoPE)."""
    if name == "tiny-vlm":
        model, processor = steer.zoo.load()

        def by_hand(prompt: Prompt) -> Inputs:
            text = "".join(f"<image>{shot.question} {shot.answer}<end>" for shot in prompt.shots)
            text += f"<image>{prompt.query.question}" + (f" {prompt.query.answer}" if prompt.answered else "")
            pictures = [one.images[0] for one in (*prompt.shots, prompt.query)]
            return dict(processor(text=text, images=pictures, return_tensors="pt"))

        examples = steer.zoo.examples("colour", "demo", n=8)
        return Subject(model, processor, examples, model.model.language_model.layers, by_hand)
    if name == "llama":
        model = tiny_llama(pad_token_id=None)

        def by_hand(prompt: Prompt) -> Inputs:
            return {"input_ids": torch.tensor([_plain_ids(prompt, "")])}

        return Subject(model, word_tokenizer(), _words(0, False), model.model.layers, by_hand)
    model = FAMILIES["qwen2_5_vl"].model()

    def by_hand(prompt: Prompt) -> Inputs:
        ids = torch.tensor([_plain_ids(prompt, "<start> <patch> <patch> <patch> <patch> <end>")])
        pictures = [one.images[0] for one in (*prompt.shots, prompt.query)]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **_patches(ids, pictures)}

    return Subject(model, PictureProcessor(), _words(1, True), model.model.language_model.layers, by_hand)


SUBJECTS = ("tiny-vlm", "llama", "qwen2_5_vl")


def passing(module: nn.Module, model: Any, inputs: Inputs, before: bool = False) -> torch.Tensor:
    """What leaves (or enters) a module in one forward, (1, T, ...), by a plain torch hook."""
    kept: list[torch.Tensor] = []

    def first(value: Any) -> torch.Tensor:
        return value[0] if isinstance(value, tuple) else value

    if before:
        handle = module.register_forward_pre_hook(
            lambda m, a, k: kept.append(a[0] if a else k["hidden_states"]), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(lambda m, a, out: kept.append(first(out)))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return kept[0].detach()


def last_logits(model: Any, inputs: Inputs) -> torch.Tensor:
    """(V,) after the last token of one prompt."""
    with torch.no_grad():
        return model(**inputs).logits[0, -1].float()
