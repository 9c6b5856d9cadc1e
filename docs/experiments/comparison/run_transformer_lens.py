"""TransformerLens: a model's modules are wrapped for good, their attention written anew, and edited at hook points."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ["PIP_NO_INDEX"] = "1"  # where a processor does not load, it calls pip to install torchvision

import torch
from models import GREEDY, HEAD, LAYER, Case, vector
from probes import BIAS, ROWS, SPAN, Boom, Library
from reporting import report
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

Hook = Callable[[torch.Tensor, Any], torch.Tensor]


def convert(one: Case) -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "</s>": 2}, unk_token="<pad>")))
    words.pad_token, words.eos_token = "<pad>", "</s>"
    one.around = TransformerBridge.boot_transformers("tiny", hf_model=one.model, tokenizer=words, device="cpu")


def bridge(one: Case) -> TransformerBridge:
    if one.around is None:
        convert(one)
    return one.around


def block(one: Case, layer: int) -> str:
    """The name of a text layer in the list of hook points."""
    names = bridge(one).hook_dict
    return next(stem for stem in (f"decoder_blocks.{layer}", f"blocks.{layer}") if f"{stem}.hook_resid_post" in names)


def run(one: Case, hooks: list[tuple[str, Hook]], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    given = dict(inputs)
    with torch.no_grad(), bridge(one).hooks(fwd_hooks=hooks):
        return bridge(one)(given.pop("input_ids"), return_type="logits", **given)


def zero_head(one: Case) -> torch.Tensor:
    attention = "self_attn" if block(one, LAYER).startswith("decoder") else "attn"

    def change(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z.view(*z.shape[:2], 4, -1)[:, :, HEAD] = 0
        return z

    return run(one, [(f"{block(one, LAYER)}.{attention}.hook_z", change)], one.inputs)


def shift(rows: Callable[[int], slice | None]) -> Hook:
    """`vector()` at the rows that `rows` names for a forward of so many; a prompt is longer than one."""

    def change(hidden: torch.Tensor, hook: Any) -> torch.Tensor:
        chosen = rows(hidden.shape[1])
        if chosen is None:
            return hidden
        hidden = hidden.clone()
        hidden[:, chosen] += vector()
        return hidden

    return change


def written(one: Case, rows: Callable[[int], slice | None], **more: Any) -> torch.Tensor:
    given = {**one.inputs, **GREEDY, **more}
    with torch.no_grad(), bridge(one).hooks(fwd_hooks=[(f"{block(one, 0)}.hook_resid_post", shift(rows))]):
        return bridge(one).hf_generate(given.pop("input_ids"), **given)


def add_beams(one: Case) -> torch.Tensor:
    return written(one, lambda now: slice(None), num_beams=3)


def add_generated(one: Case) -> torch.Tensor:
    return written(one, lambda now: slice(None) if now == 1 else None)


def add_rows(one: Case) -> torch.Tensor:
    return written(one, lambda now: ROWS if now > 1 else None)


def add_padded(one: Case, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The user counts the padding of each row."""
    starts = batch["attention_mask"].argmax(1).tolist()

    def change(hidden: torch.Tensor, hook: Any) -> torch.Tensor:
        hidden = hidden.clone()
        for row, start in enumerate(starts):
            hidden[row, start + ROWS.start : start + ROWS.stop] += vector()
        return hidden

    return run(one, [(f"{block(one, 0)}.hook_resid_post", change)], batch)


def bias_scores(one: Case) -> torch.Tensor:
    def change(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        scores = scores.clone()
        scores[:, 1, :, SPAN] += BIAS
        return scores

    return run(one, [(f"{block(one, LAYER)}.attn.hook_attn_scores", change)], one.inputs)


def fail_inside(one: Case) -> None:
    def change(hidden: torch.Tensor, hook: Any) -> torch.Tensor:
        raise Boom

    run(one, [(f"{block(one, 0)}.hook_resid_post", change)], one.inputs)


if __name__ == "__main__":
    report(
        Library(
            "transformer-lens",
            zero_head=zero_head,
            add_beams=add_beams,
            add_generated=add_generated,
            add_rows=add_rows,
            add_padded=add_padded,
            bias_scores=bias_scores,
            fail_inside=fail_inside,
            convert=convert,
        )
    )
