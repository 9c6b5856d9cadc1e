"""How much the answers of demonstrations attend to each token of the part that they are shown after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import avg_pool1d

import steer
from steer import ops, sites
from steer.memory import Memory, Seen
from steer.prompts import IGNORED, Batch
from steer_kernels import token_scores


class Observer:
    """Reads attention in the forward in which questions and answers follow a memory.

    Attributes:
        scores: for each layer, fp32 (H_kv, n): the attention mass from the rows that predict answers to each key that
            the memory holds, over all questions and the query heads of a group.
    """

    def __init__(self, memory: Memory, since: int, rows: torch.Tensor, before: bool) -> None:
        """Args:
        memory: what the questions follow.
        since: the slot where the latest part begins.
        rows: bool (B, T), the rows that observe.
        before: what was kept before the latest part takes its share of the softmax.
        """
        self._memory, self._since, self._rows, self._before = memory, since, rows, before
        self.scores: dict[int, torch.Tensor] = {}

    def interventions(self) -> list[steer.Intervention]:
        """One look at each layer that can be pruned; it keeps everything."""
        return [steer.Intervention(sites.cache(sorted(self._memory.places)), ops.Keep(self._look), name="importance")]

    def _look(self, seen: Seen) -> None:
        mass = token_scores(
            seen.query,
            seen.key,
            seen.scaling,
            rows=self._rows,
            query_slots=seen.query_slots,
            key_slots=seen.slots,
            real=seen.real,
            since=None if self._before else self._since,
        )
        self.scores[seen.layer] = mass[..., : self._memory.kept(seen.layer).width].sum(0)


def pooled(scores: torch.Tensor, kernel: int) -> torch.Tensor:
    """The mean over `kernel` neighbours, zeros outside; (H_kv, n) to (H_kv, n)."""
    return scores if kernel == 1 else avg_pool1d(scores[None], kernel, stride=1, padding=kernel // 2)[0]


def fresh_columns(memory: Memory, layer: int, since: int) -> torch.Tensor:
    """Which of a layer's columns belong to the latest part, bool (n,)."""
    kept = memory.kept(layer)
    return (kept.slots >= since).all(1).all(0)


def always_kept(processor: Any, memory: Memory, since: int, sinks: int, special: bool) -> torch.Tensor:
    """The slots that a part never loses, bool (S,): the sequence's first, and special tokens that are no pictures."""
    chosen = torch.zeros(memory.length, dtype=torch.bool, device=memory.tokens.device)
    if special:
        tokenizer = getattr(processor, "tokenizer", processor)
        ids = torch.tensor(sorted(getattr(tokenizer, "all_special_ids", None) or [-1]), device=chosen.device)
        chosen |= torch.isin(memory.tokens[0], ids) & ~memory.images[0]
        chosen[:since] = False
    chosen[:sinks] = True
    return chosen


def answer_slots(memory: Memory, since: int, asked: Sequence[Batch]) -> torch.Tensor:
    """The slots of a part at which the demonstrations' answers stand, bool (S,): each behind its own question."""
    tokens = memory.tokens[0, since:].tolist()
    chosen = torch.zeros(memory.length, dtype=torch.bool, device=memory.tokens.device)
    for question, answer in _read_alike(asked):
        both, skipped = question + answer, len(question)
        for at in range(len(tokens) - len(both) + 1):
            if tokens[at : at + len(both)] == both:
                chosen[since + at + skipped : since + at + len(both)] = True
    return chosen


def _read_alike(asked: Sequence[Batch]) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of each question and of its answer, without padding."""
    for batch in asked:
        assert batch.answers is not None
        for ids, real, answer in zip(
            batch.inputs["input_ids"], batch.inputs["attention_mask"].bool(), batch.answers, strict=True
        ):
            yield ids[real].tolist(), answer[answer != IGNORED].tolist()
