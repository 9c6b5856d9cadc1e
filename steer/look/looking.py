"""One prompt through the model twice: alone, and with a method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch

from .. import positions, sites
from ..errors import InterventionError, MappingError, unknown_name
from ..examples import Example
from ..intervention import Intervention
from ..method import Method
from ..prompts import Prompt, check_writes, encode, tokenizer_of
from ..recording import Recording, record
from ..regions import footprints, text_span
from ..regions.spans import image_token_id
from ..session import attach
from . import asked
from .asked import Pair
from .found import Look, Picture, Seen, Token


def look(
    model: Any,
    processor: Any,
    images: Any,
    prompt: str,
    method: Method | Intervention | Sequence[Method | Intervention] | None = None,
    *,
    heads: Literal["all"] | Sequence[Pair] = "all",
    query: str = "last",
    attention: Literal["self", "cross"] | None = None,
    tokens: int = 10,
    template: str | None = None,
    max_new_tokens: int = 16,
) -> Look:
    """What a model attends to in one prompt's pictures, and what it is about to say, before and after a method.

    Weights are read where attention is computed, with everything that the method adds to the scores or puts in front of
    the keys. They say where heads look, which is not why the model answers as it does.

    Args:
        model: any mapped model that writes text.
        processor: its processor.
        images: a PIL image, or several, that the prompt is about.
        prompt: the user's words.
        method: what to attach: a method, an intervention, or several; None to look at the model alone. A method that
            works through the prompt is shown its own prompt, and the map is of the query's pictures in it.
        heads: "all", or (layer, head) pairs, such as `head_map.top(8)` gives.
        query: whose attention: "last" for the prompt's last token, from which the answer begins; or a piece of the
            prompt, whose tokens are averaged.
        attention: "self", or "cross" for layers that attend to what an encoder read; None for "cross" in
            encoder-decoders and "self" in others.
        tokens: how many tokens to list with their probabilities.
        template: how the prompt is written, as in `steer.prompts.encode`; None for the method's own `template`, or the
            chat template.
        max_new_tokens: how much of an answer is written at most.

    Returns:
        A Look.

    Raises:
        SteerError: no picture, a model that writes no text, or methods whose prompts cannot be had at once.
        InterventionError: heads are no pairs, or none; the piece of text is not in the prompt.
        UnknownNameError: there is no such head.
        MappingError: the processor cannot tell where image tokens look, or attention is not over the prompt's tokens.
    """
    check_writes(model)
    shown = asked.pictures(images)
    items = asked.several(method)
    kind: Literal["self", "cross"] = attention or ("cross" if model.config.is_encoder_decoder else "self")
    if kind not in ("self", "cross"):
        raise unknown_name("attention", kind, ("self", "cross"))
    if query != "last" and model.config.is_encoder_decoder:
        raise InterventionError(
            f"query={query!r} is a piece of the prompt, which the encoder of {type(model).__name__} reads; "
            'its decoder begins with query="last"'
        )
    pairs = asked.pairs(model, heads, kind)
    example = Example(prompt, images=tuple(shown))
    template = template if template is not None else asked.template(items)
    asks = _Asks(model, processor, pairs, kind, query, template, max_new_tokens, len(shown))
    before, boxes = asks(Prompt(example), ())
    after = asks(asked.prompt(items, example, model, processor), items)[0] if items else None
    names = tuple(one.name if isinstance(one, Method) else one.label for one in items)
    pictures = tuple(Picture(image, box) for image, box in zip(shown, boxes, strict=True))
    likely = _likely(tokenizer_of(processor), before, after, tokens)
    return Look(type(model).__name__, prompt, names, query, kind, pairs, pictures, before, after, likely)


class _Asks:
    """The same heads and the same query, whatever is attached."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        pairs: Sequence[Pair],
        attention: Literal["self", "cross"],
        query: str,
        template: str | None,
        max_new_tokens: int,
        pictures: int,
    ) -> None:
        self._model, self._processor, self._pairs, self._attention = model, processor, pairs, attention
        self._query, self._template, self._max, self._pictures = query, template, max_new_tokens, pictures

    def __call__(self, prompt: Prompt, items: Sequence[Any]) -> tuple[Seen, list[torch.Tensor]]:
        """What the model does with a prompt, and the boxes of the query's image tokens."""
        inputs = encode(self._model, self._processor, [prompt], template=self._template).inputs
        slots, boxes = self._places(prompt, inputs)
        last = self._query == "last"
        rows = positions.last_prompt() if last else text_span(self._processor, inputs, self._query)
        kind, layers = self._attention, sorted({layer for layer, _ in self._pairs})
        wanted = [sites.attention(layer, self._heads_of(layer), attention=kind, positions=rows) for layer in layers]
        counted = sites.head_q(layers[0], 0, attention=kind)
        with (
            attach(self._model, *items, measure="none") if items else nullcontext(),
            record(self._model, *wanted, counted, device="cpu", dtype=torch.float32) as acts,
            torch.no_grad(),
        ):
            made = self._model.generate(
                **inputs,
                max_new_tokens=self._max,
                do_sample=False,
                num_beams=1,
                output_logits=True,
                return_dict_in_generate=True,
            )
        own = self._weights(acts, inputs, layers)
        token = image_token_id(self._processor)
        assert token is not None  # footprints has said so otherwise
        image = torch.eq(inputs["input_ids"][0].cpu(), token)
        pictured, text = own[:, image].sum(-1), own[:, ~image].sum(-1)
        shares = torch.stack([pictured, text, (1 - pictured - text).clamp_min(0)], dim=-1)
        start = 0 if self._model.config.is_encoder_decoder else image.shape[0]
        answer = tokenizer_of(self._processor).decode(made.sequences[0, start:], skip_special_tokens=True).strip()
        chances = made.logits[0][0].float().softmax(-1).cpu()
        return Seen(tuple(own[:, here] for here in slots), shares, chances, str(answer)), boxes

    def _heads_of(self, layer: int) -> list[int]:
        return [head for one, head in self._pairs if one == layer]

    def _places(self, prompt: Prompt, inputs: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Slots and boxes of each of the query's pictures, which come after those of demonstrations."""
        every = [image for one in (*prompt.shots, prompt.query) for image in one.images]
        found = [
            footprints(self._processor, inputs, every, image=i) for i in range(len(every) - self._pictures, len(every))
        ]
        return [slots for slots, _ in found], [boxes for _, boxes in found]

    def _weights(self, acts: Recording, inputs: Any, layers: Sequence[int]) -> torch.Tensor:
        """(P, S), each head's weights on the prompt's tokens, in the order of the pairs, mean over the query's rows."""
        length = inputs["input_ids"].shape[1]
        kind = self._attention
        rows = acts.steps("head_q", layers[0], attention=kind)[0].shape[2]
        if kind == "self" and rows != length:
            raise MappingError(
                f"the prompt has {length} tokens and the model {rows} rows, so which are the picture's cannot be told"
            )
        by_pair: dict[Pair, torch.Tensor] = {}
        for layer in layers:
            weights = acts.steps("attention", layer, attention=kind)[0]
            keys = weights.shape[-1]
            if keys < length or (kind == "cross" and keys != length):
                raise MappingError(
                    f"{kind}-attention of layer {layer} looks at {keys} keys where the prompt has {length} tokens, so "
                    "which keys are the picture's cannot be told"
                )
            # (1, H, R, S) where rows are a slice, (R, H, S) where they were chosen by a mask
            mean = weights[0].mean(1) if weights.ndim == 4 else weights.mean(0)
            # What a method puts in front of the keys comes first, the prompt last.
            own = mean[:, keys - length :]
            by_pair |= {(layer, head): row for head, row in zip(self._heads_of(layer), own, strict=True)}
        return torch.stack([by_pair[pair] for pair in self._pairs])


def _likely(tokenizer: Any, before: Seen, after: Seen | None, count: int) -> tuple[Token, ...]:
    """The tokens that are likely on either side."""
    best = before.probabilities if after is None else torch.maximum(before.probabilities, after.probabilities)
    chosen = best.topk(max(1, min(count, best.numel()))).indices.tolist()
    return tuple(
        Token(
            one,
            str(tokenizer.decode([one])),
            float(before.probabilities[one]),
            None if after is None else float(after.probabilities[one]),
        )
        for one in chosen
    )
