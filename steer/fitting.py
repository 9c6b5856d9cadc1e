"""What `fit` of a method needs: checks, a progress bar, hidden states where prompts end, the answers' probabilities.

Everything here runs the model without gradients, in eval mode, and leaves it as it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ._teacher_forcing import inputs_of, keep_logits, one_product, still
from .errors import SteerError
from .examples import Example
from .intervention import Intervention
from .positions import last_prompt
from .prompts import IGNORED, Batch, check_writes
from .recording import Key, record
from .session import attach
from .sites import Site

if TYPE_CHECKING:
    from rich.progress import Progress

    from .method import Method

__all__ = ["Scores", "best", "check", "fitted", "hold_out", "score", "split", "states", "track"]

Item = TypeVar("Item")


def check(model: Any, processor: Any, examples: Sequence[Example], *, at_least: int, method: str) -> None:
    """Check what `fit` was given.

    Raises:
        SteerError: the model does not write text, the processor is missing, or there are too few examples with answers.
    """
    check_writes(model)
    if processor is None:
        raise SteerError(f"method {method!r} needs the model's processor or tokenizer to fit, got None")
    for index, example in enumerate(examples):
        if not isinstance(example, Example):
            raise SteerError(f"examples[{index}] is a {type(example).__name__}; fit takes a list of steer.Example")
        if not example.answer:
            raise SteerError(f"examples[{index}] has no answer; method {method!r} is fitted on answered examples")
    if len(examples) < at_least:
        raise SteerError(f"method {method!r} needs at least {at_least} examples to fit, got {len(examples)}")


def hold_out(examples: Sequence[Example], share: float = 0.25, *, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split examples at random into those to fit on and, at least one, those to choose by."""
    mixed = random.Random(seed).sample(list(examples), len(examples))
    held = max(1, round(share * len(mixed)))
    return mixed[held:], mixed[:held]


def split(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    dev: Sequence[Example] | None,
    seed: int,
    method: str,
) -> tuple[list[Example], list[Example]]:
    """The examples to fit on and those to choose by, checked: `dev` if it is given, else a quarter of the examples.

    Raises:
        SteerError: as `check`, for at least 4 examples, or 1 of `dev`.
    """
    check(model, processor, examples, at_least=4, method=method)
    if dev is None:
        return hold_out(examples, seed=seed)
    check(model, processor, dev, at_least=1, method=method)
    return list(examples), list(dev)


def fitted(method: Method, name: str) -> torch.Tensor:
    """A tensor that a method's `fit` makes.

    Raises:
        SteerError: the method was not fitted.
    """
    if name not in method.tensors:
        raise SteerError(
            f"method {method.name!r} must be fitted first: "
            f"steer.create({method.name!r}).fit(model, processor, examples)"
        )
    return method.tensors[name]


def track(items: Sequence[Item], description: str, *, progress: bool = True) -> Iterator[Item]:
    """The items, with a progress bar on standard error that is gone afterwards and never there in a pipe."""
    with progress_bar(progress) as bar:
        yield from bar.track(items, description=description)


def progress_bar(shown: bool = True) -> Progress:
    """A rich progress bar on standard error that is gone afterwards and never there in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


def states(model: Any, batches: Iterable[Batch], *sites: Site) -> dict[Key, torch.Tensor]:
    """What passes some sites at the last token of every prompt.

    Args:
        model: any mapped model.
        batches: from `steer.prompts`.
        sites: from `steer.sites`; their positions are set to `last_prompt()`.

    Returns:
        By (site, layer, tower, attention), in the order in which the model passes them, the rows of all batches in fp32
        on the CPU: (N, D), or (N, H, d) at head sites.
    """
    ends = [replace(site, positions=last_prompt()) for site in sites]
    kept: dict[Key, list[torch.Tensor]] = {}
    with still(model), torch.no_grad():
        for batch in batches:
            inputs, length = inputs_of(model, batch)
            with record(model, *ends, device="cpu", dtype=torch.float32, stop=True, prompt_length=length) as acts:
                model(**inputs)
            for key, rows in acts.items():
                width = rows.shape[-2:] if key.site.startswith("head_") else rows.shape[-1:]
                kept.setdefault(key, []).append(rows.reshape(len(batch), *width))
    return {key: torch.cat(rows) for key, rows in kept.items()}


@dataclass(frozen=True)
class Scores:
    """How well a model answers, for each of N prompts.

    Attributes:
        log_prob: of the whole right answer, fp32 (N,).
        first_log_prob: of its first token, fp32 (N,).
        right: whether greedy decoding writes it, bool (N,).
    """

    log_prob: torch.Tensor
    first_log_prob: torch.Tensor
    right: torch.Tensor

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.right.float().mean())


def score(model: Any, batches: Iterable[Batch], *items: Intervention | Method | Iterable[Intervention]) -> Scores:
    """How well a model answers, with interventions or methods attached.

    Args:
        model: any mapped model that writes text.
        batches: from `steer.prompts`, of prompts whose queries have answers.
        items: as in `steer.attach`.

    Returns:
        One number for each prompt, on the CPU.

    Raises:
        SteerError: some query has no answer, or shows it.
    """
    parts: list[tuple[torch.Tensor, ...]] = []
    with still(model), torch.no_grad():
        for batch in batches:
            if batch.answers is None or batch.answered:
                raise SteerError("score needs prompts whose queries have answers that are not part of the prompts")
            inputs, prompt_length = inputs_of(model, batch)
            with one_product(model), attach(model, *items, measure="none", prompt_length=prompt_length):
                logits = model(**inputs, **keep_logits(model, batch.answers.shape[1])).logits
            parts.append(_score(logits[:, -batch.answers.shape[1] :].float(), batch.answers.to(logits.device)))
    return Scores(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def _score(logits: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(B, A, V), (B, A) -> log-probabilities (B,) of answer and first token, whether every token is the likeliest."""
    real = answers != IGNORED
    wanted = answers.clamp_min(0)
    log_probs = logits.log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
    right = (logits.argmax(-1) == wanted) | ~real
    return log_probs.masked_fill(~real, 0.0).sum(-1), log_probs[:, 0], right.all(-1)


def best(
    model: Any,
    queries: Sequence[Batch],
    choices: Sequence[Item],
    change: Callable[[Item], Intervention | Method | Sequence[Intervention]],
    *,
    description: str,
    progress: bool = True,
) -> tuple[Item, torch.Tensor]:
    """Try every choice of a layer, a strength or whatever else and keep the one with which the model answers best.

    Args:
        model: any mapped model that writes text.
        queries: from `steer.prompts`, with answers that nothing was fitted on.
        choices: what to try, at least one.
        change: what is attached with a choice, as in `steer.attach`.
        description: beside the progress bar.
        progress: show the bar.

    Returns:
        The choice with the highest accuracy, of equals the one that gives the right answers more probability, of equals
        the first; and the accuracy with each, fp32 (len(choices),).
    """
    tried = track(choices, description, progress=progress)
    found = [score(model, queries, change(choice)) for choice in tried]
    ranks = [(one.accuracy, float(one.log_prob.mean()), -i) for i, one in enumerate(found)]
    return choices[ranks.index(max(ranks))], torch.tensor([one.accuracy for one in found])
