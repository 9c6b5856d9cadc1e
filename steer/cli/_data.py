"""Data as the commands are given it: a folder, a .jsonl file, or `zoo:TASK` for a task that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import SteerError, unknown_name
from ..examples import Example

ZOO = "zoo:"
# What examples are for, and the split that is taken for it from the zoo.
Role = Literal["train", "dev", "test"]
ZOO_SPLITS: dict[Role, str] = {"train": "demo", "dev": "dev", "test": "test"}

LABELLED = (
    "Labelled pictures: class folders (in {role}, if it is there), a .csv, .tsv or .jsonl file, a Hugging Face data "
    "set, or zoo:SET."
)


def data_option(role: Role = "train", more: str = "") -> Any:
    """The option `--data`, for examples of a role, and what else it takes; to be put into an `Annotated`."""
    help = f"Examples: a folder (its {role}.jsonl, or its only file), a .jsonl file or zoo:TASK. {more}"
    return typer.Option("--data", metavar="DATA", help=help.strip())


def shots_option(what: str, least: int = 0, most: int | None = None) -> Any:
    """The option `--shots`, so many of `what`; to be put into an `Annotated`."""
    return typer.Option("--shots", min=least, max=most, help=f"How many {what}.")


def limit_option(what: str) -> Any:
    """The option `--limit`, so many of `what`; to be put into an `Annotated`."""
    return typer.Option("--limit", min=1, help=f"At most so many {what}.")


Data = Annotated[str, data_option()]
Pool = Annotated[
    str | None, typer.Option("--pool", metavar="DATA", help="Where demonstrations come from, as --data (train.jsonl).")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of everything that is drawn.")]
Limit = Annotated[int | None, limit_option("examples of --data")]


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
