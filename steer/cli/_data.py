"""Data as the commands are given it: a folder, a .jsonl file, or `zoo:TASK` for a task that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import SteerError, unknown_name
from ..examples import Example

ZOO = "zoo:"
# What examples are for, and the split that is taken for it from the zoo.
Role = Literal["train", "dev", "test"]
ZOO_SPLITS: dict[Role, str] = {"train": "demo", "dev": "dev", "test": "test"}


def examples(source: str, role: Role, limit: int | None, seed: int) -> list[Example]:
    """The examples of a source that are for `role`: a folder's file of that name, or its only one.

    Raises:
        SteerError: there are none, or no telling which.
    """
    from .. import data, zoo
    from ..data._files import SUFFIX, splits

    if source.startswith(ZOO):
        task = source.removeprefix(ZOO)
        if task not in zoo.tasks():
            raise unknown_name("task of the zoo", task, zoo.tasks(), f"as in {ZOO}colour")
        return zoo.examples(task, ZOO_SPLITS[role], limit, seed=seed)
    if not Path(source).is_dir():
        return data.read(source, limit=limit)
    names = splits(source)
    if len(names) > 1 and role not in names:
        raise SteerError(
            f"{source} has {', '.join(names)} and no {role}{SUFFIX}; give the file itself: "
            f"{Path(source) / (names[0] + SUFFIX)}"
        )
    return data.read(source, split=role if role in names else None, limit=limit)
