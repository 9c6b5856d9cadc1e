"""How likely two answers are at the first answer token, seen from beside `generate`, whatever a method does there."""

from __future__ import annotations

from typing import Any

import torch

from .._generate import Turn, around_generate
from ..errors import SteerError
from ..prompts import tokenizer_of

Tokens = tuple[list[int], list[int]]
First = tuple[float | None, float | None, int | None]


def choice_tokens(processor: Any, choices: tuple[str, str]) -> Tokens:
    """The tokens that two answers can begin with: each as it is, capitalised, in capitals, with and without a space.

    Where a spelling is one token, that one; only if none is, the first token of each. What both begin with says nothing
    and is left out, and so is the token for unknown words.

    Raises:
        SteerError: nothing is left of one of them.
    """
    tokenizer = tokenizer_of(processor)
    if tokenizer is None:
        raise SteerError("the probability of an answer needs the model's processor or tokenizer, got None")
    spelt = [_begins(tokenizer, choice) for choice in choices]
    shared = set(spelt[0]) & set(spelt[1])
    first, second = (sorted(set(tokens) - shared) for tokens in spelt)
    for choice, tokens in zip(choices, (first, second), strict=True):
        if not tokens:
            raise SteerError(f"{type(tokenizer).__name__} has no token that {choice!r} alone of {choices} begins with")
    return first, second


def _begins(tokenizer: Any, choice: str) -> list[int]:
    words = [before + word for before in ("", " ") for word in (choice.lower(), choice.capitalize(), choice.upper())]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    known = [one for one in ids if one and tokenizer.unk_token_id not in one]
    whole = [one[0] for one in known if len(one) == 1]
    return whole or [one[0] for one in known]


class Watch:
    """Stands around `generate` and notes, of each row, the choices' probabilities and the tokens written."""

    def __init__(self, model: Any, tokens: Tokens | None) -> None:
        self._model, self._tokens = model, tokens
        self._seen: list[First] = []

    def __enter__(self) -> Watch:
        self._remove = around_generate(self._model, self._around)
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def first(self, questions: int) -> list[First]:
        """One entry for each question; nothing is known where a method did not write once for each."""
        return self._seen if len(self._seen) == questions else [(None, None, None)] * questions

    def _around(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Turn:
        asked_for_all = kwargs.get("return_dict_in_generate", False)
        more: dict[str, Any] = {"return_dict_in_generate": True}
        if self._tokens is not None:
            more["output_scores"] = True
        ids = kwargs.get("input_ids", args[0] if args else None)
        start = 1 if self._model.config.is_encoder_decoder else 0 if ids is None else ids.shape[1]

        def result(made: Any) -> Any:
            self._note(made, start)
            return made if asked_for_all else made.sequences

        return Turn(args, {**kwargs, **more}, result=result)

    def _note(self, made: Any, start: int) -> None:
        written = made.sequences[:, start:]
        ends = self._model.generation_config.eos_token_id
        stops = torch.isin(written, torch.tensor([] if ends is None else ends, device=written.device))
        lengths = torch.where(stops.any(1), stops.int().argmax(1) + 1, written.shape[1]).tolist()
        if self._tokens is None:
            self._seen += [(None, None, length) for length in lengths]
            return
        # Scores and not logits: what the tokens were chosen by, after whatever contrasts or forbids.
        log_probs = made.scores[0].float().log_softmax(-1)
        one, other = (log_probs[:, tokens].double().cpu().logsumexp(-1) for tokens in self._tokens)
        masses = one.logaddexp(other).exp().tolist()
        # Not as a quotient, which knows nothing of two chances that are both small.
        for chance, mass, length in zip((one - other).sigmoid().tolist(), masses, lengths, strict=True):
            self._seen.append((chance if mass > 0 else None, mass, length))
