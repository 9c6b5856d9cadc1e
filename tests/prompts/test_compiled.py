"""A model steered by a prompt learner is one graph under torch.compile, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steer

from .cases import made
from .models import CLASSES

PRESETS: dict[str, dict[str, Any]] = {
    "coop": {"context": 2, "class_position": "middle"},
    "cocoop": {},
    "maple": {"text_depth": 2, "vision_depth": 2},
    "tip_adapter": {},
}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_steered_call_is_one_graph(preset: str) -> None:
    """fullgraph=True raises at any graph break."""
    case = made("clip")
    method = steer.create(preset, classes=CLASSES, **PRESETS[preset])
    method.fit(case.model, case.processor, case.examples, progress=False, epochs=1)
    inputs = method.inputs(case.images)

    def scores(**inputs: Any) -> torch.Tensor:
        return case.model(**inputs).logits_per_image

    torch._dynamo.reset()
    with torch.no_grad(), steer.attach(case.model, method):
        plain = scores(**inputs)
        compiled = torch.compile(scores, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs), plain, rtol=0, atol=1e-5)
