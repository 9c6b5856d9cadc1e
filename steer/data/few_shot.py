"""Few-shot classification: some pictures of each class, halves of the classes, and stratified splits."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

from ..errors import SteerError
from ..examples import Example

# Class names that an error lists.
_NAMED = 20


def classes_of(examples: Iterable[Example]) -> list[str]:
    """The names of the classes, sorted; a class is what examples have for an answer.

    Raises:
        SteerError: there are no examples, or one without an answer.
    """
    return list(_by_class(examples))


def few_shot(examples: Iterable[Example], shots: int, seed: int = 0, *, allow_fewer: bool = False) -> list[Example]:
    """Draw some examples of each class, without replacement.

    A class's draw depends on the seed, its name and its examples in their order, and on no other class: half of the
    classes get the shots that they have among all. Draws of one seed are nested: 4 shots are the first 4 of 16.

    Args:
        examples: labelled, as from `read_labelled`.
        shots: how many of each class.
        seed: of the draw.
        allow_fewer: take what there is of classes with fewer examples, instead of refusing.

    Returns:
        The examples, classes in sorted order, each class's in the order drawn.

    Raises:
        SteerError: fewer than one shot, or classes with fewer examples; the message names them with their counts.
    """
    if shots < 1:
        raise SteerError(f"shots is {shots}; it must be 1 or more")
    groups = _by_class(examples)
    short = [f"{name} ({len(group)})" for name, group in groups.items() if len(group) < shots]
    if short and not allow_fewer:
        raise SteerError(
            f"{len(short)} of {len(groups)} classes have fewer than {shots} examples: {_listed(short)}; "
            "allow_fewer=True takes what there is"
        )
    return [one for name, group in groups.items() for one in _mixed(group, name, seed)[:shots]]


def split_classes(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Halve the classes into base and new ones: sorted, the first half is base, and the larger one if they are odd.

    This is the rule of CoOp's and CoCoOp's base-to-new experiments, which sort classes by number. Where the numbers of
    a data set are not in the order of the names, theirs are other halves.

    Args:
        names: the classes; repeated ones count once.

    Returns:
        The ceil(n/2) base classes and the new ones, both sorted.

    Raises:
        SteerError: there are fewer than two classes.
    """
    found = sorted(set(names))
    if len(found) < 2:
        raise SteerError(f"{len(found)} classes cannot be halved into base and new ones; at least 2 are needed")
    half = math.ceil(len(found) / 2)
    return found[:half], found[half:]


def split(examples: Iterable[Example], fractions: Sequence[float], seed: int = 0) -> tuple[list[Example], ...]:
    """Split at random so that every part has the same share of every class, as nearly as whole numbers allow.

    Args:
        examples: labelled, as from `read_labelled`.
        fractions: each part's share; together 1. Every part gets at least one example of every class.
        seed: of the split; a class's split depends on no other class.

    Returns:
        As many lists as fractions, together all examples; in each, classes in sorted order.

    Raises:
        SteerError: fractions that are not positive or not 1 together, or classes with fewer examples than parts; the
            message names them with their counts.
    """
    if not fractions or not all(share > 0 for share in fractions) or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise SteerError(f"the fractions are {tuple(fractions)}; they must be positive and add up to 1")
    groups = _by_class(examples)
    short = [f"{name} ({len(group)})" for name, group in groups.items() if len(group) < len(fractions)]
    if short:
        raise SteerError(f"classes with fewer examples than the {len(fractions)} parts: {_listed(short)}")
    parts: tuple[list[Example], ...] = tuple([] for _ in fractions)
    for name, group in groups.items():
        mixed = iter(_mixed(group, name, seed))
        for part, size in zip(parts, _sizes(len(group), fractions), strict=True):
            part.extend(next(mixed) for _ in range(size))
    return parts


def _by_class(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """The examples of each class in their order, by name, names sorted."""
    groups: dict[str, list[Example]] = {}
    for index, example in enumerate(examples):
        if not example.answer:
            raise SteerError(f"example {index} has no answer, and a labelled example has its class's name there")
        groups.setdefault(example.answer, []).append(example)
    if not groups:
        raise SteerError("there are no examples")
    return dict(sorted(groups.items()))


def _mixed(group: list[Example], name: str, seed: int) -> list[Example]:
    # A text as a seed is hashed with SHA-512, the same on every machine and in every run.
    return random.Random(f"{seed}/{name}").sample(group, len(group))


def _sizes(n: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers near n times each fraction, none 0, together n; the rest goes to the largest remainders."""
    exact = [n * share for share in fractions]
    sizes = [math.floor(one) for one in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: sizes[part] - exact[part])
    for part in by_remainder[: n - sum(sizes)]:
        sizes[part] += 1
    while 0 in sizes:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(0)] += 1
    return sizes


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
