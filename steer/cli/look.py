"""`steer look`: what a model attends to in a picture and is about to say, before and after a method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ..errors import SteerError
from ._model import Device, Dtype, load
from ._output import AsJson, print_json, print_table, quiet_in_a_pipe

if TYPE_CHECKING:
    from ..look import Look, Token


def command(
    model: Annotated[str, typer.Argument(help="Zoo name (tiny-vlm), folder or hub id of a model that writes text.")],
    prompt: Annotated[str, typer.Option(help="The user's words.")],
    image: Annotated[list[Path], typer.Option(help="A picture's file; may be given several times.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A saved method's folder or hub id, or the name of one that needs no fitting; may be given several "
            "times, applied in order."
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(help="key=value: a field of the --method given by name; name.key=value of one of several."),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Which, as layer.head with commas between: 3.1,3.4; all by default.")
    ] = None,
    head_map: Annotated[
        Path | None, typer.Option(help="The top heads of a profile saved by steer profile, instead of --heads.")
    ] = None,
    measure: Annotated[str | None, typer.Option(help="With --head-map: by which of its measures.")] = None,
    top: Annotated[int, typer.Option(min=1, help="With --head-map: how many heads.")] = 10,
    query: Annotated[
        str, typer.Option(help="Whose attention: last, the prompt's last token; or a piece of the prompt.")
    ] = "last",
    attention: Annotated[
        str | None, typer.Option(help="self or cross; by default cross in encoder-decoders, else self.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to list with their probabilities.")] = 10,
    template: Annotated[
        str | None, typer.Option(help="How the prompt is written, if not by the method or the processor's template.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How much to write at most.")] = 16,
    device: Device = None,
    dtype: Dtype = None,
    png: Annotated[Path | None, typer.Option(help="A picture to write; needs matplotlib.")] = None,
    html: Annotated[Path | None, typer.Option(help="A page to write, to choose heads and point at tokens.")] = None,
    json: AsJson = False,
) -> None:
    """Show attention over a picture and the answer's first token, of the model alone and with methods attached."""
    from ..data import opened
    from ..look import look
    from ..look.found import in_a_folder
    from ..profiling import HeadMap
    from ._named import methods_of

    quiet_in_a_pipe()
    written = {name: in_a_folder(path) for name, path in {"png": png, "html": html}.items() if path is not None}
    if heads is not None and head_map is not None:
        raise SteerError("--heads and --head-map both say which heads; give one of them")
    if measure is not None and head_map is None:
        raise SteerError("--measure says which heads of a --head-map; there is none")
    chosen: Any = "all" if heads is None else _pairs(heads)
    profiled = None if head_map is None else HeadMap.load(head_map)
    pictures = [opened(path) for path in image]
    loaded, processor = load(model, device, dtype)
    if profiled is not None:
        profiled.check_fits(loaded)
        chosen = profiled.top(top, measure)
        attention = attention or profiled.attention
    found = look(
        loaded,
        processor,
        pictures,
        prompt,
        list(methods_of(loaded, method or [], config or []).values()),
        heads=chosen,
        query=query,
        attention=cast("Literal['self', 'cross'] | None", attention),
        tokens=tokens,
        template=template,
        max_new_tokens=max_new_tokens,
    )
    if png is not None:
        found.png(png)
    if html is not None:
        found.html(html)
    if json:
        print_json({"model": model, **found.as_dict(), **{name: str(path) for name, path in written.items()}})
        return
    _report(found)
    for path in written.values():
        print(f"saved: {path}")


def _pairs(text: str) -> list[tuple[int, int]]:
    """`3.1,3.4` as pairs; a string, since 3.10 is no number.

    Raises:
        SteerError: it is written otherwise.
    """
    try:
        pairs = [one.strip().split(".") for one in text.split(",") if one.strip()]
        return [(int(layer), int(head)) for layer, head in pairs]
    except ValueError as error:
        raise SteerError(f"--heads takes layer.head with commas between, such as 3.1,3.4; got {text!r}") from error


def _report(found: Look) -> None:
    from ..look.found import SHARES
    from ..look.words import head_words, share_words

    sides = found.sides
    rows = [
        (name, side.answer, *(share_words(share) for share in side.shares.mean(0).tolist()))
        for name, side in sides.items()
    ]
    print_table(("", "answer", *(f"attention to {name}" for name in SHARES)), rows)
    both = found.after is not None
    columns = ("first token", "before", "after", "change") if both else ("first token", "probability")
    print_table(columns, [_cells(one) for one in found.tokens])
    print(head_words(found))


def _cells(token: Token) -> tuple[str, ...]:
    from ..look.words import share_words, token_words

    said = token_words(token), share_words(token.before)
    if token.after is None:
        return said
    return *said, share_words(token.after), f"{100 * (token.after - token.before):+.1f}"
