"""From a label as it stands in the data to the name of a class."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import SteerError, unknown_name

# What labels stand for: a list that they number, a mapping, or a function; None where they are names already.
Names: TypeAlias = Sequence[str] | Mapping[Any, str] | Callable[[Any], str] | None


def class_name(label: Any, names: Names, where: str) -> str:
    """The name of a label's class, without blanks around it.

    Raises:
        SteerError: there is no label, it is a number that nothing says the meaning of, or `names` does not have it.
    """
    if label is None or (isinstance(label, str) and not label.strip()):
        raise SteerError(f"{where} has no label")
    name = label.strip() if isinstance(label, str) else label
    if names is None:
        if not isinstance(name, str):
            raise SteerError(f"{where}: the label is {label!r:.80} and no name; say what it stands for: names=[...]")
    elif isinstance(names, str):
        raise SteerError(f"names is the string {names!r}; give a list, a mapping or a function")
    elif isinstance(names, Mapping):
        if name not in names:
            raise unknown_name("label in `names`", name, names, f"{where} has it")
        name = names[name]
    elif isinstance(names, Sequence):
        name = _numbered(name, names, where)
    else:
        name = names(name)
    if not isinstance(name, str) or not name.strip():
        raise SteerError(f"{where}: the name of label {label!r:.80} is {name!r:.80}, which is no string of words")
    return name.strip()


def _numbered(label: Any, names: Sequence[str], where: str) -> str:
    try:
        # A file without types has its numbers as text.
        number = int(label) if isinstance(label, str) else operator.index(label)
    except (TypeError, ValueError):
        raise SteerError(
            f"{where}: the label is {label!r:.80}, and only whole numbers can be looked up in a list of names; "
            "give a mapping or a function"
        ) from None
    if not 0 <= number < len(names):
        # Hugging Face datasets write -1 where a test set's labels are withheld.
        raise SteerError(f"{where}: the label is {number}, and there are names for 0 to {len(names) - 1}")
    return names[number]
