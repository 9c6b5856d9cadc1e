"""`steer.profile`: which prompts are profiled, and how."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from .. import fitting, sites
from .._content import prompts_digest, weights_digest
from ..demonstrations import Demonstrations
from ..errors import SteerError, unknown_name
from ..examples import Example
from ..prompts import Prompt
from ..session import map_of
from . import patching
from .checkpoint import resume
from .head_map import HeadMap
from .passes import Passes

Corrupt = Literal["shuffle", "remove"]

MEASURES = ("indirect_effect", "ablation", "attention")
SHOTS = 4


def profile(
    model: torch.nn.Module,
    processor: Any,
    examples: Sequence[Example],
    *,
    measures: str | Sequence[str] = "indirect_effect",
    demonstrations: Demonstrations | None = None,
    corrupt: Corrupt = "shuffle",
    gradient: bool = False,
    scale: patching.Scale | None = None,
    samples: int = 100,
    attention: patching.Which = "self",
    template: str | None = None,
    seed: int = 0,
    batch_size: int = 16,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> HeadMap:
    """Measure what each head of the text tower does, on queries drawn from examples.

    A clean prompt is a query after its demonstrations. m (d_v,) is the mean over clean prompts of what a head hands to
    the output projection at the prompt's last token; there, and only there, results are replaced. The measures:

    - "indirect_effect": on a corrupted prompt, how much likelier the right answer gets when the head's result is
      replaced by m (Todd et al. 2023, https://arxiv.org/abs/2310.15213, who count the answer's first token; here it is
      the whole answer).
    - "ablation": on a clean prompt, how much less likely the right answer gets when the head's result is replaced by m.
    - "attention": on a clean prompt, the shares of attention that the last token gives to image tokens, to text, and
      to the demonstrations (pictures and text), as "attention_image", "attention_text", "attention_demonstrations".

    The first two run every prompt once for each head, `batch_size` heads in one forward; with `gradient` they are
    estimated to first order for all heads at once, by one forward and one backward for each batch of prompts.

    Args:
        model: any mapped model that writes text.
        processor: its processor or tokenizer.
        examples: with answers; the queries are drawn from them.
        measures: one of them or several.
        demonstrations: what queries are shown; None for 4 others of `examples`, drawn for each query. With `shots=0`
            queries are bare, which leaves "ablation" and "attention".
        corrupt: how demonstrations are made to say nothing of the task: "shuffle" deals their answers out at random,
            which hides nothing where the answers' words alone give the task away; "remove" leaves them out.
        gradient: estimate the first two measures to first order.
        scale: what "likely" means: "probability", or "log_probability" in nats. None: the first for "indirect_effect",
            the second for "ablation".
        samples: how many queries, at most.
        attention: whose heads, "self" or "cross".
        template: how an example is written, as in `steer.prompts.encode`.
        seed: of the queries drawn, of the demonstrations where `demonstrations` is None, and of shuffled answers.
        batch_size: rows in one forward.
        folder: where a checkpoint is kept. The same call again goes on where the first was cut off, bit for bit.
        progress: show a bar on standard error.

    Returns:
        A HeadMap with one table for each measure, three for "attention".

    Raises:
        SteerError: no examples, no answers, no processor, a model that does not write text, demonstrations that
            cannot be corrupted so; or the folder holds another profile.
        UnknownNameError: no such measure, way to corrupt, or scale.
        MappingError: there are no heads of the kind asked for, or attention cannot be read.
    """
    wanted = _wanted(measures, corrupt, scale)
    if samples < 1 or batch_size < 1:
        raise SteerError(f"samples and batch_size must be at least 1, got {samples} and {batch_size}")
    fitting.check(model, processor, examples, at_least=1, method="profile")
    model_map = map_of(model)
    model_map.targets(sites.head_out(attention=attention))
    told = demonstrations or Demonstrations(tuple(examples), SHOTS, seed=seed)
    queries = random.Random(seed).sample(list(examples), min(samples, len(examples)))
    clean = told.for_queries(queries, model, processor, template=template, batch_size=batch_size)
    corrupted = _corrupted(clean, corrupt, seed) if "indirect_effect" in wanted else []
    options: dict[str, Any] = {
        "measures": wanted,
        "attention": attention,
        "gradient": gradient,
        "corrupt": corrupt if corrupted else None,
        "scale": scale,
        "samples": len(queries),
        "seed": seed,
        "template": template,
        "demonstrations": {one.name: getattr(told, one.name) for one in fields(told) if one.name != "pool"},
    }
    identity = {
        "model": model_map.fingerprint(),
        "dtype": str(next(model.parameters()).dtype),
        "weights": weights_digest(model),
        "prompts": prompts_digest([*clean, *corrupted]),
        "options": options,
    }
    state = resume(None if folder is None else Path(folder), identity)
    run = Passes(model, processor, model_map, state, clean, corrupted, options, batch_size)
    try:
        run.run(progress)
    finally:
        state.keep(now=True)
    return run.head_map()


def _wanted(measures: str | Sequence[str], corrupt: str, scale: str | None) -> list[str]:
    """The measures asked for, in their order, each once."""
    asked = [measures] if isinstance(measures, str) else list(measures)
    for name in asked:
        if name not in MEASURES:
            raise unknown_name("measure", name, MEASURES)
    if not asked:
        raise SteerError(f"no measure was asked for; there are {', '.join(MEASURES)}")
    if corrupt not in get_args(Corrupt):
        raise unknown_name("way to corrupt demonstrations", corrupt, get_args(Corrupt))
    if scale is not None and scale not in get_args(patching.Scale):
        raise unknown_name("scale", scale, get_args(patching.Scale))
    return [name for name in MEASURES if name in asked]


def _corrupted(clean: list[Prompt], how: Corrupt, seed: int) -> list[Prompt]:
    """The same queries after demonstrations that say nothing of the task."""
    least = 2 if how == "shuffle" else 1
    if any(len(one.shots) < least for one in clean):
        raise SteerError(
            f"indirect_effect with corrupt={how!r} needs prompts with {least} demonstrations or more, and some have "
            f"{min(len(one.shots) for one in clean)}; give a larger pool or more shots"
        )
    if how == "remove":
        return [replace(one, shots=()) for one in clean]
    rng, made = random.Random(seed + 1), []
    for one in clean:
        answers = rng.sample([shot.answer for shot in one.shots], len(one.shots))
        shots = tuple(replace(shot, answer=answer) for shot, answer in zip(one.shots, answers, strict=True))
        made.append(replace(one, shots=shots))
    return made
