"""The options of the commands that ask a model something: words, pictures, methods, and how much it may write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._complete import methods, offer

Prompt = Annotated[str, typer.Option("--prompt", help="The user's words.")]
_IMAGE = typer.Option("--image", metavar="FILE", help="A picture; repeatable, in the order of the prompt.")
Images = Annotated[list[Path] | None, _IMAGE]
SomeImages = Annotated[list[Path], _IMAGE]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="How much to write at most.")]
Template = Annotated[
    str | None,
    typer.Option(
        "--template", help="How an example is written; else as the method does, or by the processor's chat template."
    ),
]


def method_option(how: str) -> Any:
    """The option `--method`; `how` says which and how many. To be put into an `Annotated`."""
    return typer.Option("--method", metavar="METHOD", help=f"A method: {how}.", autocompletion=offer(methods))


def config_option(which: str) -> Any:
    """The option `--config`, fields of `which` methods; to be put into an `Annotated`."""
    return typer.Option("--config", metavar="KEY=VALUE", help=f"A field of {which}; repeatable.")


def attention_option(default: str) -> Any:
    """The option `--attention`; to be put into an `Annotated`."""
    return typer.Option(
        "--attention", help=f"Whose: self or cross; {default}.", autocompletion=offer(lambda: ("self", "cross"))
    )


def measure_option(which: str) -> Any:
    """The option `--measure`; `which` of those that a profile can have. To be put into an `Annotated`."""
    return typer.Option("--measure", help=f"What of heads: {which}.", autocompletion=offer(lambda: MEASURES))


MEASURES = ("indirect_effect", "ablation", "attention")
SAVED = "a saved one's folder or hub id"
Methods = Annotated[
    list[str] | None,
    method_option(f"{SAVED}, or the name of one that needs no fitting; repeatable, applied in order"),
]
Config = Annotated[list[str] | None, config_option("a method given by name; name.key=value where there are several")]
