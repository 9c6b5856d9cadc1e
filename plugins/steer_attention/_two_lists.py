"""Two lists of examples that differ in what should be learned: one as it should be, one as it should not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from steer import Example, fitting, prompts
from steer._content import question_digest
from steer.errors import SteerError


def check(
    model: Any, processor: Any, examples: Sequence[Example], *, at_least: int, answered: bool, method: str
) -> None:
    """As `fitting.check`; where the answers are not read, none are needed.

    Raises:
        SteerError: as there.
    """
    given = examples if answered else [_filled(one) for one in examples]
    fitting.check(model, processor, given, at_least=at_least, method=method)


def _filled(one: Any) -> Any:
    return replace(one, answer="?") if isinstance(one, Example) and not one.answer else one


def shown(examples: Sequence[Example], answered: bool) -> list[prompts.Prompt]:
    """The examples as prompts that end with their answers, or where the answers would begin."""
    return [prompts.Prompt(one if answered else replace(one, answer=""), answered=answered) for one in examples]


def right_and_wrong(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    against: Sequence[Example] | None,
    dev: Sequence[Example] | None,
    *,
    chooses: bool,
    answered: bool,
    seed: int,
    method: str,
) -> tuple[list[Example], list[Example], list[Example]]:
    """What `fit` of a method with two lists works on.

    Args:
        model: any mapped model that writes text.
        processor: its processor or tokenizer.
        examples: as the model should answer.
        against: as it should not; None deals the other examples' answers out.
        dev: what something is chosen by; None holds a quarter of `examples` out.
        chooses: whether anything is chosen; if not, nothing is held out.
        answered: the answers are read; if not, none are needed, and none can be dealt out.
        seed: of what is held out and dealt out.
        method: name of the method, for errors.

    Returns:
        The right ones, the wrong ones without any question that is held out, and those to choose by.

    Raises:
        SteerError: too few examples, no answers, all answers alike, no processor, or a model that does not write text.
    """
    right, held = list(examples), list[Example]()
    if chooses:
        right, held = fitting.split(model, processor, examples, dev, seed, method)
    check(model, processor, right, at_least=2, answered=answered, method=method)
    if against is None:
        if not answered:
            raise SteerError(f"method {method!r} reads prompts here and needs other ones too: fit(..., against=...)")
        return right, _dealt(right, seed, method), held
    known = {question_digest(one) for one in held}
    check(model, processor, against, at_least=2, answered=answered, method=f"{method} (against)")
    wrong = [one for one in against if question_digest(one) not in known]
    check(model, processor, wrong, at_least=2, answered=answered, method=f"{method} (against, less what is held out)")
    return right, wrong, held


def _dealt(examples: Sequence[Example], seed: int, method: str) -> list[Example]:
    """Every example with an answer that is another one's and not its own.

    Raises:
        SteerError: all have the same answer.
    """
    answers = sorted({one.answer for one in examples})
    if len(answers) < 2:
        raise SteerError(
            f"method {method!r} needs wrong answers: every example's answer is {answers[0]!r}, so that none can be "
            "dealt out; give examples that are answered wrongly: fit(..., against=...)"
        )
    rng = random.Random(seed)
    return [replace(one, answer=rng.choice([a for a in answers if a != one.answer])) for one in examples]
