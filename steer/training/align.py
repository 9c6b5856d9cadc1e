"""Which of the student's tokens are the teacher's: the two read the same query, the teacher after demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def common_suffix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common suffix of two token sequences.

    Taken on tokens, not on words: after demonstrations a tokenizer may split the query's first word in another way.
    """
    count = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        count += 1
    return count


def written_tokens(inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (B, T) of the tower that writes, of a forward's inputs."""
    prefix = "decoder_" if "decoder_input_ids" in inputs else ""
    ids = inputs[prefix + "input_ids"]
    mask = inputs.get(prefix + "attention_mask")
    return ids, (torch.ones_like(ids) if mask is None else mask).bool()


def real_tokens(inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """The tokens of each row of a forward's inputs, without padding."""
    return [row[keep].tolist() for row, keep in zip(*written_tokens(inputs), strict=True)]


def last_real(mask: torch.Tensor, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of the last `counts[b]` real tokens of every row of a mask (B, T), each (sum of counts,)."""
    after = mask.flip(1).cumsum(1).flip(1)  # real tokens from here to the end
    wanted = torch.tensor(counts, device=mask.device).unsqueeze(1)
    rows, columns = torch.nonzero(mask & (after <= wanted), as_tuple=True)
    return rows, columns
