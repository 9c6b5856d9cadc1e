"""Asking a memory: answers in words, and the scores of answers that are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from steer_kernels import jsd

from .._teacher_forcing import inputs_of, keep_logits, one_product, still
from ..examples import Example
from ..prompts import IGNORED, Batch, check_writes, tokenizer_of
from ._asking import padding_matters, placed
from ._helping import masks
from .words import Words

if TYPE_CHECKING:
    from .memory import Memory


def ask(
    memory: Memory,
    model: Any,
    processor: Any,
    queries: Sequence[Example],
    *,
    template: str | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 8,
) -> list[str]:
    """What the model writes for each query after a memory, greedily, without special tokens and outer spaces."""
    check_writes(model)
    words, tokenizer = Words(model, processor, template), tokenizer_of(processor)
    written: dict[int, str] = {}
    bound = memory.is_bound
    if not bound:
        memory.bind(model)
    try:
        for rows in together(memory, words, queries, batch_size):
            batch = words.questions([queries[i] for i in rows], memory.length > 0)
            given = {"past_key_values": memory} if memory.length else {}
            out = model.generate(**batch.inputs, **given, max_new_tokens=max_new_tokens, do_sample=False)
            fresh = out[:, batch.inputs["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(fresh, skip_special_tokens=True)
            written |= {i: text.strip() for i, text in zip(rows, texts, strict=True)}
    finally:
        if not bound:
            memory.unbind()
    return [written[i] for i in range(len(queries))]


def together(memory: Memory, words: Words, queries: Sequence[Example], size: int) -> list[list[int]]:
    """Which queries are asked together: any, or those of one length where padding would be taken for text."""
    groups: dict[int, list[int]] = {}
    apart = padding_matters(memory, None)
    for i, query in enumerate(queries):
        length = words.questions([query]).inputs["input_ids"].shape[1] if apart else 0
        groups.setdefault(length, []).append(i)
    return [rows[i : i + size] for rows in groups.values() for i in range(0, len(rows), size)]


def answer_inputs(model: Any, memory: Memory, batch: Batch) -> tuple[dict[str, Any], torch.Tensor]:
    """The inputs of one forward over questions and their answers after a memory, and which of its last rows predict.

    Returns:
        Inputs without the cache, and bool (B, A), true where one of the last A rows predicts an answer's token.
    """
    assert batch.answers is not None
    inputs, _ = inputs_of(model, batch)
    inputs.pop("position_ids", None)
    inputs = placed(model, memory, inputs, generating=False)
    return {**inputs, **keep_logits(model, batch.answers.shape[1])}, batch.answers != IGNORED


def answer_logits(model: Any, memory: Memory, batch: Batch) -> torch.Tensor:
    """The scores (N, V) from which the model would write the answers' tokens after a memory, all rows together."""
    inner = getattr(model, "model", model)
    before = getattr(inner, "rope_deltas", None)
    with torch.no_grad(), still(model), masks(model), one_product(model):
        inputs, predicts = answer_inputs(model, memory, batch)
        cache = {"past_key_values": memory.cache(len(batch), model)} if memory.length else {}
        logits = model(**inputs, **cache).logits[:, -predicts.shape[1] :]
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = before
    return logits[predicts]


@dataclass(frozen=True)
class Divergence:
    """How far a memory's answers are from those after the whole context, over answers' tokens.

    Attributes:
        mean, max: Jensen-Shannon divergence of the next token's distribution, in nats, 0 to ln 2.
        agreement: share of tokens whose most likely value is the same ("loyalty").
        tokens: how many.
    """

    mean: float
    max: float
    agreement: float
    tokens: int

    def to_dict(self) -> dict[str, float | int]:
        """As plain data."""
        return asdict(self)


def divergence(model: Any, whole: Memory, memory: Memory, batches: Iterable[Batch]) -> Divergence:
    """Compare a memory with the whole context on questions with known answers, in fp32."""
    js, same = [], []
    for batch in batches:
        first, second = answer_logits(model, whole, batch), answer_logits(model, memory, batch)
        js.append(jsd(first, second).cpu())
        same.append((first.argmax(-1) == second.argmax(-1)).cpu())
    all_js, all_same = torch.cat(js), torch.cat(same)
    return Divergence(float(all_js.mean()), float(all_js.max()), float(all_same.float().mean()), all_js.numel())
