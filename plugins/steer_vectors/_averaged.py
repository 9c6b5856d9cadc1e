"""One answer from several prompts: all of them write the token that they find likeliest together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from steer import prompts


class MeanOver:
    """A logits processor of transformers: every row's scores become the mean log-probabilities of its group.

    Attributes:
        groups: for each row (B,) the number of its group, from 0.
    """

    def __init__(self, groups: Sequence[int]) -> None:
        self.groups = torch.tensor(groups)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, V) -> (B, V) in fp32. Equal rows for a group, so that its rows choose one token and end together."""
        groups = self.groups.to(scores.device)
        log_probs = scores.float().log_softmax(-1)
        sums = log_probs.new_zeros(int(self.groups.max()) + 1, scores.shape[-1]).index_add_(0, groups, log_probs)
        return (sums / groups.bincount().unsqueeze(-1))[groups]


def write_averaged(
    model: Any,
    processor: Any,
    groups: Sequence[Sequence[prompts.Prompt]],
    *,
    template: str | None,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """One greedy answer for each group of prompts; a group is never cut, whatever `batch_size` is.

    Raises:
        SteerError: as `steer.prompts.write`.
    """
    # Here, so that a list of methods does not wait for transformers.
    from transformers import LogitsProcessorList

    prompts.check_writes(model)
    tokenizer = prompts.tokenizer_of(processor)
    written: list[str] = []
    for part in _parts(groups, batch_size):
        batch = prompts.encode(model, processor, [one for group in part for one in group], template=template)
        rows = [number for number, group in enumerate(part) for _ in group]
        out = model.generate(
            **batch.inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([MeanOver(rows)]),
        )
        start = 0 if model.config.is_encoder_decoder else batch.inputs["input_ids"].shape[1]
        firsts = [rows.index(number) for number in range(len(part))]
        written += [text.strip() for text in tokenizer.batch_decode(out[firsts, start:], skip_special_tokens=True)]
    return written


def _parts(groups: Sequence[Sequence[prompts.Prompt]], batch_size: int) -> Iterator[list[Sequence[prompts.Prompt]]]:
    """Groups one after the other, as many as have no more than `batch_size` prompts together, at least one."""
    part: list[Sequence[prompts.Prompt]] = []
    for group in groups:
        if part and sum(map(len, part)) + len(group) > batch_size:
            yield part
            part = []
        part.append(group)
    if part:
        yield part
