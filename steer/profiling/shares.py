"""What share of its attention each head gives, at the prompt's last token, to pictures, text and demonstrations.

No score is computed here, and no (T, S) tensor is made: attention is linear in its values. Every prompt is run in
several copies. In each copy but the first the values of some tokens are ones and those of the others zeros, so that
what a head gives is the share of these tokens, whatever mask, window, cap or kernel the model uses. Behind attention
every copy gets what the first one has, so that all stay alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import ops, positions, sites
from .._teacher_forcing import inputs_of, still
from ..errors import MappingError
from ..intervention import Intervention
from ..memory._state import image_tokens
from ..prompts import Batch
from ..recording import record
from ..session import attach
from ..training.align import common_suffix
from .patching import Which, repeated

NAMES = ("image", "text", "demonstrations")
COPIES = 6
"""The prompt itself, all tokens, and four parts: of the query or the demonstrations, text or pictures."""
TOLERANCE = 0.05


def shares(
    model: Any, batch: Batch, shown: torch.Tensor, image: torch.Tensor, layers: Sequence[int], attention: Which = "self"
) -> dict[int, torch.Tensor]:
    """Shares of attention at each prompt's last token.

    Args:
        model: any mapped model that writes text.
        batch: B prompts; answers are not read.
        shown: bool (B, S), true at the demonstrations' tokens.
        image: bool (B, S), true at image tokens.
        layers: which layers to look at, all with softmax attention.
        attention: whose heads; with "cross", over the tokens that an encoder read.

    Returns:
        By layer fp32 (B, 3, H), in the order of `NAMES`. Image and text make 1, demonstrations may be either. Where a
        model has attention sinks that are no tokens, these are left out.

    Raises:
        MappingError: a layer's keys are not the prompt's tokens, or a head's result is not a weighted mean of values.
    """
    if attention == "cross" and not model.config.is_encoder_decoder:
        raise MappingError(
            f"cross-attention in {type(model).__name__} looks at features of pictures and not at the prompt's tokens: "
            "there are no shares to tell apart; leave the measure 'attention' out"
        )
    size = len(batch)
    parts = torch.stack([~shown & ~image, ~shown & image, shown & ~image, shown & image])
    inputs, length = inputs_of(model, repeated(Batch(batch.inputs), COPIES))
    values = sites.head_v(list(layers), attention=attention)
    results = sites.head_out(list(layers), attention=attention)
    told = Intervention(values, ops.Apply(_indicators(parts, size, f"{attention}-attention")))
    alike = Intervention(results, ops.Apply(lambda x: torch.cat([x[:size]] * COPIES)))
    last = sites.head_out(list(layers), positions=positions.last_prompt(), attention=attention)
    with (
        still(model),
        torch.no_grad(),
        record(model, last, device="cpu", dtype=torch.float32, stop=True, prompt_length=length) as acts,
        attach(model, told, alike, strict=False, measure="none", prompt_length=length),
    ):
        model(**inputs)
    return {key.layer: _shares(rows, size, key.layer) for key, rows in acts.items()}


def _indicators(parts: torch.Tensor, size: int, where: str) -> Callable[[torch.Tensor], torch.Tensor]:
    def tell(x: torch.Tensor) -> torch.Tensor:
        """(6 B, H_kv, S, d_v), the copies one after the other."""
        if x.shape[2] != parts.shape[-1]:
            raise MappingError(
                f"{where} looks at {x.shape[2]} keys where the prompt has {parts.shape[-1]} tokens, so which keys are "
                "pictures or demonstrations cannot be told; leave the measure 'attention' out"
            )
        ones = parts.to(x).flatten(0, 1)[:, None, :, None].expand(-1, *x.shape[1:2], -1, x.shape[3])
        return torch.cat([x[:size], torch.ones_like(x[:size]), ones])

    return tell


def _shares(rows: torch.Tensor, size: int, layer: int) -> torch.Tensor:
    """(6 B, ..., H, d_v) -> (B, 3, H)."""
    rows = rows.reshape(COPIES, size, *rows.shape[-2:])
    whole = rows[1]
    # Some models scale a head's result channel by channel: the share is what `whole` is multiplied by.
    part = (rows[2:] * whole).sum(-1) / whole.square().sum(-1)
    if not bool(((part.sum(0) - 1).abs() < TOLERANCE).all()):
        raise MappingError(
            f"what enters the output projection of layer {layer} is not a weighted mean of the values there, so "
            "attention cannot be read from it; leave the measure 'attention' out"
        )
    text, image, shown_text, shown_image = part
    return torch.stack([image + shown_image, text + shown_text, shown_text + shown_image], dim=1)


def places(model: Any, batch: Batch, bare: Batch, attention: Which) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of a batch's tokens are demonstrations', and which are image tokens; both bool (B, S) as attention sees.

    Args:
        model: the model.
        batch: prompts with demonstrations.
        bare: the same queries without: what the two share at both ends is no demonstration.
        attention: whose keys are meant.
    """
    if model.config.is_encoder_decoder and attention == "self":
        # A decoder of its own has read nothing yet but the token that it begins with.
        none = torch.zeros(len(batch), 1, dtype=torch.bool)
        return none, none
    image = image_tokens(model, batch.inputs).cpu()
    shown = torch.zeros_like(image)
    for row, (here, query) in enumerate(zip(_real(batch), _real(bare), strict=True)):
        slots, whole = here
        _, alone = query
        after = common_suffix(whole, alone)
        before = common_suffix(whole[: len(whole) - after][::-1], alone[: len(alone) - after][::-1])
        shown[row, slots[before : len(whole) - after]] = True
    return shown, image


def _real(batch: Batch) -> list[tuple[torch.Tensor, list[int]]]:
    """For each row the slots of its tokens, and the tokens."""
    ids = batch.inputs["input_ids"].cpu()
    mask = batch.inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.cpu()
    slots = [row.nonzero()[:, 0] for row in mask]
    return [(here, row[here].tolist()) for here, row in zip(slots, ids, strict=True)]
