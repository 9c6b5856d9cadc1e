"""`steer generate`: one answer, steered or not."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SteerError
from ._output import AsJson, print_json, quiet_in_a_pipe


def command(
    model: Annotated[str, typer.Argument(help="Zoo name (tiny-vlm), folder or hub id.")],
    prompt: Annotated[str, typer.Option(help="The user's words.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture's file; may be given several times.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A saved method's folder or hub id; may be given several times, applied in order."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How much to write at most.")] = 64,
    json: AsJson = False,
) -> None:
    """Answer a prompt about pictures, with saved methods attached."""
    from .._inputs import answer_of, chat_inputs
    from .._loading import load_model
    from ..registry import load
    from ..session import attach

    quiet_in_a_pipe()
    pictures = [_open(path) for path in image or ()]
    loaded, processor = load_model(model)
    if not getattr(loaded, "can_generate", lambda: False)():
        raise SteerError(f"{type(loaded).__name__} does not write text; try `steer inspect {model}`")
    methods = [load(path, loaded) for path in method or ()]
    inputs = chat_inputs(loaded, processor, prompt, pictures)
    with attach(loaded, *methods) if methods else nullcontext() as session:
        generated = loaded.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    answer = answer_of(processor, generated, inputs, not loaded.config.is_encoder_decoder)
    if json:
        report = session.report().to_dict() if session is not None else None
        print_json({"model": model, "prompt": prompt, "methods": method or [], "answer": answer, "report": report})
    else:
        print(answer)


def _open(path: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise SteerError(f"cannot read the picture {path}: {error}") from error
