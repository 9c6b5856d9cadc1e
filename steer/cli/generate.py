"""`steer generate`: one answer, steered or not."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import typer

from ..errors import SteerError
from ._asking import Config, Images, MaxNewTokens, Methods, Prompt
from ._data import Seed
from ._model import Device, Dtype, ModelName, load
from ._output import AsJson, print_json, quiet_in_a_pipe


def command(
    model: ModelName,
    prompt: Prompt,
    image: Images = None,
    method: Methods = None,
    config: Config = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Draw tokens; above 1 more evenly than the model says, below 1 less.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Draw tokens; only the likeliest, which have this probability together."),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    json: AsJson = False,
) -> None:
    """Answer a prompt about pictures, with methods attached.

    The likeliest token is written each time, unless --temperature or --top-p is given.
    """
    import torch

    from .._inputs import answer_of, chat_inputs
    from ..data import opened
    from ..session import attach
    from ._named import methods_of

    quiet_in_a_pipe()
    sampling = _sampling(temperature, top_p)
    pictures = [opened(path) for path in image or ()]
    loaded, processor = load(model, device, dtype)
    if not getattr(loaded, "can_generate", lambda: False)():
        raise SteerError(f"{type(loaded).__name__} does not write text; try `steer inspect {model}`")
    methods = list(methods_of(loaded, method or [], config or []).values())
    inputs = chat_inputs(loaded, processor, prompt, pictures)
    torch.manual_seed(seed)
    with attach(loaded, *methods) if methods else nullcontext() as session:
        generated = loaded.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
    answer = answer_of(processor, generated, inputs, not loaded.config.is_encoder_decoder)
    if json:
        report = session.report().to_dict() if session is not None else None
        print_json({"model": model, "prompt": prompt, "methods": method or [], "answer": answer, "report": report})
    else:
        print(answer)


def _sampling(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """How tokens are chosen, as `generate` takes it."""
    given = {"temperature": temperature, "top_p": top_p}
    drawn = {name: value for name, value in given.items() if value is not None}
    if temperature == 0:
        raise SteerError("--temperature 0 draws nothing: leave it out, the likeliest token is written anyway")
    return {"do_sample": bool(drawn), **drawn}
