"""`steer check`: the promises of the engine, tried on the user's own model."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from ._output import AsJson, print_json, print_table, progress, quiet_in_a_pipe

EXIT_FAILED = 3


def command(
    model: Annotated[str, typer.Argument(help="Zoo name (tiny-vlm), folder or hub id.")],
    every_head: Annotated[
        bool, typer.Option("--every-head", help="Try the head edit on every head, not on a sample of them.")
    ] = False,
    prompt: Annotated[str, typer.Option(help="What to ask about a made-up picture.")] = "What is in the picture?",
    json: AsJson = False,
) -> None:
    """Check on a model that sessions are exact, restore it, and reach its heads."""
    from .._checks import plan
    from .._inputs import chat_inputs, random_inputs
    from .._inspecting import inspect
    from .._loading import load_model

    quiet_in_a_pipe()
    loaded, processor = load_model(model)
    model_map = inspect(loaded)
    images = [_picture()] if getattr(processor, "image_processor", None) is not None else []
    inputs = chat_inputs(loaded, processor, prompt, images) if processor is not None else random_inputs(loaded)
    checks = [check for job in progress(plan(loaded, model_map, inputs, every_head), "checking") for check in job()]
    failed = [check for check in checks if check.status == "fail"]
    if json:
        print_json({"model": model, "passed": not failed, "checks": [check.to_dict() for check in checks]})
    else:
        rows = [(check.status, check.name, check.where, check.detail) for check in checks]
        print_table(("", "check", "where", "measured"), rows)
        counts = Counter(check.status for check in checks)
        print(f"{model}: {counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _picture() -> object:
    """Noise in colours: no region is like another, so that no head can leave the output as it was."""
    import numpy
    from PIL import Image

    return Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=numpy.uint8))
