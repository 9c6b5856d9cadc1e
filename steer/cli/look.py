"""`steer look`: what a model attends to in a picture and is about to say, before and after a method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ..errors import SteerError
from ._asking import Config, MaxNewTokens, Methods, Prompt, SomeImages, Template, attention_option, measure_option
from ._model import Device, Dtype, ModelName, load
from ._output import (
    AsJson,
    Html,
    Png,
    check_drawing,
    check_file,
    print_json,
    print_table,
    quiet_in_a_pipe,
    top_option,
)  # fmt: skip

if TYPE_CHECKING:
    from ..look import Look, Token


def command(
    model: ModelName,
    prompt: Prompt,
    image: SomeImages,
    method: Methods = None,
    config: Config = None,
    heads: Annotated[
        str | None, typer.Option(help="Which, as layer.head with commas between: 3.1,3.4; all by default.")
    ] = None,
    head_map: Annotated[
        Path | None, typer.Option(help="The top heads of a profile saved by steer profile, instead of --heads.")
    ] = None,
    measure: Annotated[str | None, measure_option("with --head-map, one that it has")] = None,
    top: Annotated[int, top_option("first heads of --head-map")] = 10,
    query: Annotated[
        str, typer.Option(help="Whose attention: last, the prompt's last token; or a piece of the prompt.")
    ] = "last",
    attention: Annotated[str | None, attention_option("by default cross in encoder-decoders")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to list with their probabilities.")] = 10,
    template: Template = None,
    max_new_tokens: MaxNewTokens = 16,
    device: Device = None,
    dtype: Dtype = None,
    png: Png = None,
    html: Html = None,
    json: AsJson = False,
) -> None:
    """Draw where a model looks, before and after a method.

    Attention over the pictures and the probabilities of the answer's first token, of the model alone and with methods.
    """
    from ..data import opened
    from ..look import look
    from ..profiling import HeadMap
    from ._named import methods_of

    quiet_in_a_pipe()
    for path in (png, html):
        check_file(path)
    if png is not None:
        check_drawing()
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
    written = {name: str(path.absolute()) for name, path in {"png": png, "html": html}.items() if path is not None}
    if json:
        print_json({"model": model, **found.as_dict(), **written})
        return
    _report(found)
    for place in written.values():
        print(f"saved: {place}")


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
