"""Functions around a model's own call, and what stream sites say where there is nothing to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import steer
from steer import ops, sites
from steer.errors import MappingError, NeverFiredError
from tests.prompts.models import build, pictures

from .families import FAMILIES
from .helpers import randn, tiny_llama, tokens
from .test_restore import traces
from .test_rows import IDS, TEXT


@pytest.fixture(scope="module")
def clip() -> Any:
    return build("clip")[0]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return build("clip")[1].image_processor(pictures(3))["pixel_values"]


class Halve:
    """Functions around a call, and what they saw."""

    def __init__(self, fail: bool = False) -> None:
        self.fail, self.seen = fail, []

    def before(self, model: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(sorted(given))
        if self.fail:
            raise ZeroDivisionError
        return {**given, "pixel_values": given["pixel_values"] / 2}

    def after(self, model: nn.Module, output: Any) -> Any:
        output["logits_per_image"] = output["logits_per_image"] + 1
        return output


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by position"])
def test_around_changes_arguments_and_output(clip: Any, pixels: torch.Tensor, named: bool) -> None:
    with torch.no_grad():
        wanted = clip(input_ids=IDS, pixel_values=pixels / 2).logits_per_image + 1
        halve = Halve()
        item = steer.Intervention(sites.call(), ops.Around(halve.before, halve.after))
        with steer.attach(clip, item) as session:
            out = clip(input_ids=IDS, pixel_values=pixels) if named else clip(IDS, pixels)
    assert torch.equal(out.logits_per_image, wanted)
    assert halve.seen == [["input_ids", "pixel_values"]]
    assert [(line.site, line.calls) for line in session.report().lines] == [("call", 1)]


def test_two_arounds_go_in_the_order_attached(clip: Any, pixels: torch.Tensor) -> None:
    order: list[str] = []

    def noting(name: str) -> steer.Intervention:
        def before(model: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
            order.append(f"{name} before")
            return given

        def after(model: nn.Module, output: Any) -> Any:
            order.append(f"{name} after")
            return output

        return steer.Intervention(sites.call(), ops.Around(before, after))

    with torch.no_grad(), steer.attach(clip, noting("first"), noting("second")):
        clip(IDS, pixels)
    assert order == ["first before", "second before", "first after", "second after"]


def test_what_is_raised_inside_leaves_the_model_as_it_was(clip: Any, pixels: torch.Tensor) -> None:
    before, plain = traces(clip), clip(IDS, pixels).logits_per_image
    for item in (
        steer.Intervention(sites.call(), ops.Around(Halve(fail=True).before)),
        steer.Intervention(sites.token_embeddings(), ops.Write(lambda: 1 / 0, torch.tensor([1]))),  # type: ignore[arg-type, return-value]
        steer.Intervention(sites.embeddings("vision"), ops.Append(lambda: 1 / 0)),  # type: ignore[arg-type, return-value]
    ):
        with pytest.raises(ZeroDivisionError), steer.attach(clip, item):
            clip(IDS, pixels)
    assert traces(clip) == before
    assert torch.equal(clip(IDS, pixels).logits_per_image, plain)


def test_what_never_fired_is_an_error(clip: Any, pixels: torch.Tensor) -> None:
    items = {
        "token_embeddings": steer.Intervention(sites.token_embeddings(), ops.Write(randn(1, TEXT), torch.tensor([1]))),
        "features": steer.Intervention(sites.features(), ops.Scale(2.0)),
        "call": steer.Intervention(sites.call(), ops.Around()),
    }
    for name, item in items.items():
        with pytest.raises(NeverFiredError, match=name), steer.attach(clip, item):
            clip.get_image_features(pixel_values=pixels)


def test_around_needs_no_streams_and_the_stream_sites_do() -> None:
    llama, ids = tiny_llama(), tokens()
    with steer.attach(llama, steer.Intervention(sites.call(), ops.Around())):
        assert torch.equal(llama(ids).logits, tiny_llama()(ids).logits)
    for item in (
        steer.Intervention(sites.token_embeddings(), ops.Write(randn(1, 64), torch.tensor([1]))),
        steer.Intervention(sites.features(), ops.Scale(2.0)),
    ):
        with pytest.raises(MappingError, match="LlamaForCausalLM is not mapped"):
            steer.attach(llama, item).__enter__()
    with pytest.raises(MappingError, match="LlamaForCausalLM is not mapped"):
        steer.record(llama, sites.features()).__enter__()
    llava = FAMILIES["llava"].model()
    assert steer.inspect(llava).streams is None
