"""What holds for every method of the package: written as checks that a test calls with a fitted method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import steer
from steer.prompts import Prompt, encode
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama
from tests.vectors.gating import inputs_of, written
from tests.vectors.subjects import Subject

ROWS, COUNT = (0, 4, 2), 4
"""Examples of different lengths, so that a batch of them is padded; how many tokens are written."""
NO_PICTURES = {"suppress_tokens": [95, 96, 97, 98]}


def batch_of(one: Subject, rows: tuple[int, ...] = ROWS) -> steer.prompts.Batch:
    """These examples as one padded batch."""
    return encode(one.model, one.processor, [Prompt(one.examples[i]) for i in rows])


def check_decoding(one: Subject, method: steer.Method) -> None:
    """A row writes the same in a batch and alone, with a cache and without, in beams too; not what it did before."""
    # A picture's tokens that a model writes itself have no picture: without a cache it would look for one.
    plain, options = written(one, batch_of(one), COUNT, **NO_PICTURES), NO_PICTURES
    beams = {"num_beams": 3, "num_return_sequences": 2, **options}
    with steer.attach(one.model, method):
        together = written(one, batch_of(one), COUNT, **options)
        assert together == [written(one, batch_of(one, (i,)), COUNT, **options)[0] for i in ROWS]
        assert together == written(one, batch_of(one), COUNT, use_cache=False, **options)
        many = written(one, batch_of(one), COUNT, **beams)
        assert many == [row for i in ROWS for row in written(one, batch_of(one, (i,)), COUNT, **beams)]
        assert many == written(one, batch_of(one), COUNT, use_cache=False, **beams)
    assert together != plain
    assert written(one, batch_of(one), COUNT, **options) == plain


def check_half(method: steer.Method, one: Subject) -> None:
    """On the tiny Llama in bfloat16 the steered logits are those of fp32, to what bfloat16 can hold."""
    whole, half = (tiny_llama(pad_token_id=None).to(dtype) for dtype in (torch.float32, torch.bfloat16))
    inputs = batch_of(one).inputs
    with torch.no_grad():
        plain = whole(**inputs).logits[:, -1]
        with steer.attach(whole, method):
            truth = whole(**inputs).logits[:, -1]
        with steer.attach(half, method):
            got = half(**inputs).logits[:, -1].float()
    assert got.isfinite().all()
    assert (got - truth).norm() < 0.1 * truth.norm()
    assert (got - truth).norm() < 0.5 * (plain - truth).norm()


def check_neutral(one: Subject, method: steer.Method) -> None:
    """It changes no bit."""
    batch = batch_of(one)
    with torch.no_grad():
        plain = one.model(**batch.inputs).logits
        with steer.attach(one.model, method):
            assert torch.equal(one.model(**batch.inputs).logits, plain)


def check_saved(one: Subject, method: steer.Method, folder: Path) -> None:
    """Loaded again it is equal, does the same to the bit, and refuses another model if it was fitted."""
    method.save_pretrained(folder)
    loaded = steer.load(folder, one.model)
    assert loaded == method
    assert loaded.tensors.keys() == method.tensors.keys()
    inputs = batch_of(one).inputs
    with torch.no_grad():
        with steer.attach(one.model, method):
            truth = one.model(**inputs).logits
        with steer.attach(one.model, loaded):
            assert torch.equal(one.model(**inputs).logits, truth)
    if method.provenance:
        try:
            steer.load(folder, FAMILIES["mllama"].model())
        except steer.errors.FingerprintError:
            return
        raise AssertionError("a method fitted on one model was loaded for another")


def hooked(one: Subject, inputs: dict[str, torch.Tensor], changes: dict[int, Callable[[torch.Tensor], Any]]) -> Any:
    """Logits (T, V) of one unpadded prompt under plain hooks in front of output projections.

    Args:
        one: the subject.
        inputs: of one prompt.
        changes: by layer a function that changes o (T, H d_v) in place.
    """

    def before(change: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            o = args[0].clone()
            change(o[0])
            return (o, *args[1:])

        return hook

    places = [one.layers[layer].self_attn.o_proj for layer in changes]
    handles = [m.register_forward_pre_hook(before(f)) for m, f in zip(places, changes.values(), strict=True)]
    try:
        with torch.no_grad():
            return one.model(**inputs).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def steered_alone(one: Subject, method: steer.Method, index: int) -> torch.Tensor:
    """Logits (T, V) of one example alone with a method attached."""
    with torch.no_grad(), steer.attach(one.model, method):
        return one.model(**inputs_of(one, index)).logits[0]


def width_of(one: Subject) -> int:
    """d_v: how wide one head is where it enters the output projection."""
    text = one.model.config.get_text_config()
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
