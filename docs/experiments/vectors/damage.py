"""What steering does to text that has nothing to do with its task: perplexity on plain prose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

import steer

PLAIN_TEXT = Path(__file__).with_name("plain_text.txt")


def perplexity(model: Any, tokenizer: Any, *items: Any, text: str | None = None) -> float:
    """exp of the mean of -log p(token | those before it) with interventions or methods attached.

    Each paragraph is read alone, behind the tokenizer's beginning-of-sequence token where it has one. Every token
    counts as written by the model: methods that act on what comes after a prompt act on it, and those that act at a
    prompt's last token act at the first of the paragraph.

    Args:
        model: any mapped model that writes text.
        tokenizer: its tokenizer.
        items: as in `steer.attach`.
        text: None for plain_text.txt, written for this and so in nobody's training data.
    """
    paragraphs = (PLAIN_TEXT.read_text(encoding="utf-8") if text is None else text).split("\n\n")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    total, count = 0.0, 0
    for paragraph in paragraphs:
        ids = torch.tensor([start + tokenizer(paragraph.strip(), add_special_tokens=False)["input_ids"]])
        ids = ids.to(model.device)
        with torch.no_grad(), steer.attach(model, *items, measure="none", prompt_length=1):
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        picked = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])
        total, count = total - float(picked.sum()), count + len(picked)
    return math.exp(total / count)
