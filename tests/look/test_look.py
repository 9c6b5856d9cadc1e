"""`steer.look` against transformers' eager attention, closed forms and answers by hand, on the shipped model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pytest
import torch

import steer
import steer.look
from steer import ops, positions, sites, zoo
from steer.errors import InterventionError, SteerError, UnknownNameError
from steer.look import look
from steer.prompts import Prompt, encode

PAIRS = [(1, 4), (0, 2), (3, 0)]
EXAMPLES = zoo.examples("plain:colour", n=3)
QUERY = EXAMPLES[0]
PICTURE = QUERY.images[0]


@cache
def shipped() -> tuple[Any, Any]:
    return zoo.load()


def eager(prompt: Prompt) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model's own forward with its eager weights, and its inputs."""
    model, processor = shipped()
    inputs = encode(model, processor, [prompt]).inputs
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(**inputs, output_attentions=True), inputs
    finally:
        model.set_attn_implementation(before)


def image_slots(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return (inputs["input_ids"][0] == shipped()[1].image_token_id).nonzero()[:, 0]


def test_before_is_what_eager_attention_shows_at_the_last_token() -> None:
    found = look(*shipped(), PICTURE, QUERY.question, heads=PAIRS)
    output, inputs = eager(Prompt(QUERY))
    slots = image_slots(inputs)
    assert found.after is None
    assert found.heads == tuple(PAIRS)
    assert len(slots) == 9 == len(found.pictures[0].boxes)
    for row, (layer, head) in enumerate(PAIRS):
        weights = output.attentions[layer][0, head, -1]
        torch.testing.assert_close(found.before.maps[0][row], weights[slots], atol=1e-6, rtol=1e-4)
        pictured = float(weights[slots].sum())
        expected = torch.tensor([pictured, 1 - pictured, 0.0])
        torch.testing.assert_close(found.before.shares[row], expected, atol=1e-5, rtol=0)
    chances = output.logits[0, -1].softmax(-1)
    torch.testing.assert_close(found.before.probabilities, chances, atol=1e-5, rtol=1e-4)
    best = chances.topk(10)
    assert [one.id for one in found.tokens] == best.indices.tolist()
    assert [one.before for one in found.tokens] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert {one.after for one in found.tokens} == {None}


def test_all_heads_are_those_of_every_layer_and_the_mean_is_theirs() -> None:
    found = look(*shipped(), PICTURE, QUERY.question)
    output, inputs = eager(Prompt(QUERY))
    whole = torch.cat([layer[0, :, -1] for layer in output.attentions])[:, image_slots(inputs)]
    assert found.heads == tuple((layer, head) for layer in range(4) for head in range(6))
    torch.testing.assert_close(found.before.mean(), whole.mean(0), atol=1e-6, rtol=1e-4)


def test_after_shows_what_a_method_adds_to_the_scores() -> None:
    """In the one layer that is changed: odds times exp(beta) for the picture, in the chosen heads alone."""
    beta, heads = 1.7, [0, 3]
    change = steer.Intervention(
        sites.key_bias(layers=2, heads=heads, positions=positions.answer()), ops.KeyBias(beta, positions.image())
    )
    pairs = [(2, 0), (2, 1), (2, 3)]
    found = look(*shipped(), PICTURE, QUERY.question, change, heads=pairs)
    assert found.after is not None
    share = found.before.shares[:, 0]
    raised = share * torch.e**beta / (1 - share + share * torch.e**beta)
    wanted = torch.where(torch.tensor([True, False, True]), raised, share)
    torch.testing.assert_close(found.after.shares[:, 0], wanted, atol=1e-5, rtol=1e-4)
    scaled = found.before.maps[0] * (wanted / share)[:, None]
    torch.testing.assert_close(found.after.maps[0], scaled, atol=1e-5, rtol=1e-4)
    assert (found.after.shares - found.before.shares).abs().max() > 0.02


def test_keys_put_in_front_are_the_rest_and_shift_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (4 * torch.randn(2, 5, 32, generator=generator) for _ in range(2))
    change = steer.Intervention(sites.kv_prefix(layers=1), ops.Prefix(keys, values))
    found = look(*shipped(), PICTURE, QUERY.question, change, heads=[(1, 0), (1, 5), (0, 0)])
    assert found.after is not None
    rest = found.after.shares[:, 2]
    assert (rest[:2] > 1e-3).all()
    assert rest[2] < 1e-5
    wanted = found.before.maps[0] * (1 - rest)[:, None]
    torch.testing.assert_close(found.after.maps[0], wanted, atol=1e-6, rtol=1e-3)


def test_answer_and_probabilities_after_are_those_of_a_session_by_hand() -> None:
    model, processor = shipped()
    method = steer.create("head_scale", factor=-0.5)
    found = look(model, processor, PICTURE, QUERY.question, method, tokens=5, max_new_tokens=3)
    inputs = encode(model, processor, [Prompt(QUERY)]).inputs
    with steer.attach(model, method):
        logits = model(**inputs).logits[0, -1]
        made = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert found.after is not None
    torch.testing.assert_close(found.after.probabilities, logits.softmax(-1), atol=1e-5, rtol=1e-4)
    assert (
        found.after.answer
        == processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )
    assert found.methods == ("head_scale",)
    likelier = torch.maximum(found.before.probabilities, found.after.probabilities)
    assert [one.id for one in found.tokens] == likelier.topk(5).indices.tolist()
    changed = max(abs((one.after or 0) - one.before) for one in found.tokens)
    assert changed > 0.05
    assert not steer.session.open_sessions(model)


def test_each_picture_has_the_map_of_its_own_tokens() -> None:
    images = tuple(one.images[0] for one in EXAMPLES[:2])
    found = look(*shipped(), list(images), QUERY.question, heads=PAIRS)
    output, inputs = eager(Prompt(steer.Example(QUERY.question, images=images)))
    for i, slots in enumerate(image_slots(inputs).split(9)):
        wanted = torch.stack([output.attentions[layer][0, head, -1, slots] for layer, head in PAIRS])
        torch.testing.assert_close(found.before.maps[i], wanted, atol=1e-6, rtol=1e-4)
        assert found.pictures[i].image.tobytes() == images[i].tobytes()


def test_a_piece_of_the_prompt_asks_instead_of_its_last_token() -> None:
    _, processor = shipped()
    found = look(*shipped(), PICTURE, QUERY.question, heads=PAIRS, query="colour is")
    output, inputs = eager(Prompt(QUERY))
    words = [processor.decode([one]).strip() for one in inputs["input_ids"][0]]
    rows = [words.index("colour"), words.index("colour") + 1]
    assert words[rows[1]] == "is"
    slots = image_slots(inputs)
    for row, (layer, head) in enumerate(PAIRS):
        wanted = output.attentions[layer][0, head, rows].mean(0)[slots]
        torch.testing.assert_close(found.before.maps[0][row], wanted, atol=1e-6, rtol=1e-4)


@dataclass
class Showing(steer.Method):
    """Shows one demonstration and changes nothing inside."""

    name: ClassVar[str] = "showing"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "-"

    def interventions(self, model_map: Any) -> list[steer.Intervention]:
        return []

    def prompts(self, queries: Any, model: Any = None, processor: Any = None) -> list[Prompt]:
        return [Prompt(query, (EXAMPLES[1],)) for query in queries]


def test_a_method_that_shows_demonstrations_is_mapped_over_the_querys_picture() -> None:
    found = look(*shipped(), PICTURE, QUERY.question, Showing(), heads=PAIRS)
    output, inputs = eager(Prompt(QUERY, (EXAMPLES[1],)))
    slots = image_slots(inputs)[9:]
    assert found.after is not None
    wanted = torch.stack([output.attentions[layer][0, head, -1, slots] for layer, head in PAIRS])
    torch.testing.assert_close(found.after.maps[0], wanted, atol=1e-6, rtol=1e-4)
    with pytest.raises(SteerError, match="prompt of their own"):
        look(*shipped(), PICTURE, QUERY.question, [Showing(), _Other()])


@dataclass
class _Other(Showing):
    name: ClassVar[str] = "other"


def test_plain_data_is_json_and_says_the_same() -> None:
    found = look(*shipped(), PICTURE, QUERY.question, steer.create("image_focus"), heads=PAIRS, tokens=4)
    data = json.loads(json.dumps(found.as_dict()))
    assert data["heads"] == [list(pair) for pair in PAIRS]
    assert data["before"]["maps"][0] == pytest.approx(found.before.mean().tolist())
    assert sum(data["after"]["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert data["pictures"][0]["boxes"] == found.pictures[0].boxes.tolist()
    assert [one["id"] for one in data["tokens"]] == [one.id for one in found.tokens]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"images": []}, SteerError, "no picture"),
        ({"images": [(48, 48)]}, SteerError, "PIL"),
        ({"heads": [(9, 0)]}, UnknownNameError, "layer"),
        ({"heads": [(1, 6)]}, UnknownNameError, "head"),
        ({"heads": []}, InterventionError, "none"),
        ({"heads": [(1, 1), (1, 1)]}, InterventionError, "twice"),
        ({"heads": 3}, InterventionError, "pairs"),
        ({"query": "zebra crossing"}, InterventionError, "zebra"),
        ({"attention": "sideways"}, UnknownNameError, "cross"),
        ({"attention": "cross"}, SteerError, "cross"),
        ({"method": "image_focus"}, InterventionError, "steer.Method"),
        ({"method": steer.methods()["zero_shot"].cls()}, SteerError, "'zero_shot' names the classes"),
    ],
)
def test_what_cannot_be_looked_at_is_said(changes: dict[str, Any], error: type, said: str) -> None:
    given = {"images": PICTURE, "prompt": QUERY.question} | changes
    with pytest.raises(error, match=said):
        look(*shipped(), **given)


def test_methods_that_write_prompts_in_different_ways_need_a_template() -> None:
    methods = [Showing(), _Other()]
    for one, template in zip(methods, ("{question} {answer}", "Q: {question} A: {answer}"), strict=True):
        one.template = template
    with pytest.raises(SteerError, match="give template="):
        look(*shipped(), PICTURE, QUERY.question, methods)
