"""`steer check`: the promises of the engine, tried on the user's own model."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from ._asking import Prompt
from ._data import Seed
from ._errors import EXIT_FAILED
from ._model import Device, Dtype, ModelArgument, load
from ._output import AsJson, print_json, print_table, progress, quiet_in_a_pipe


def command(
    model: ModelArgument,
    every_head: Annotated[
        bool, typer.Option("--every-head", help="Try the head edit on every head, not on a sample of them.")
    ] = False,
    prompt: Prompt = "What is in the picture?",
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    json: AsJson = False,
) -> None:
    """Try the promises of this library on your own model.

    Sessions are exact, restore the model and reach its heads. The prompt is asked about a made-up picture.
    """
    from .._checks import plan
    from .._inputs import chat_inputs, random_inputs
    from .._inspecting import inspect

    quiet_in_a_pipe()
    loaded, processor = load(model, device, dtype)
    model_map = inspect(loaded)
    images = [_picture(seed)] if getattr(processor, "image_processor", None) is not None else []
    chat = processor is not None
    inputs = chat_inputs(loaded, processor, prompt, images) if chat else random_inputs(loaded, seed=seed)
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


def _picture(seed: int) -> object:
    """Noise in colours: no region is like another, so that no head can leave the output as it was."""
    import numpy
    from PIL import Image

    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (224, 224, 3), dtype=numpy.uint8))
