"""One intervention, one answer: a full forward, cached decoding, padding, batches, beams and assistants agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import steer
from steer import gates, ops, positions, sites

from .families import FAMILIES, Family, clip, florence2, whole
from .helpers import randn

WRITTEN = 5
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def changes(model: nn.Module, registry: bool = True) -> dict[str, list[steer.Intervention]]:
    """Interventions of every kind on the text tower, with shapes from its map; some only where the registry is used."""
    tower = steer.inspect(model).tower()
    softmax = [one for one in tower.layers if one.attention is not None and one.attention.kind == "softmax"]
    mixer = softmax[0].attention
    heads, kv, width = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim
    layers = [layer.index for layer in softmax]
    gate = gates.Sigmoid(randn(heads, width, seed=3), minus_lse=registry)
    made = {
        "residual": [steer.Intervention(sites.resid_out(), ops.Add(randn(tower.width), 0.3, keep_norm=True))],
        "gated head": [steer.Intervention(sites.head_out(layers), ops.Add(randn(heads, mixer.value_dim)), gate)],
        "query": [
            steer.Intervention(
                sites.head_q(layers), ops.LowRankQuery(randn(heads, width, 2), randn(heads, width, 2, seed=1))
            )
        ],
        "key": [steer.Intervention(sites.head_k(layers, positions=positions.all()), ops.Scale(1.7))],
        "prompt rows": [
            steer.Intervention(sites.resid_out(0, positions=positions.last_prompt()), ops.Add(randn(tower.width))),
            steer.Intervention(sites.resid_in(1, positions=positions.prompt()), ops.Scale(0.7)),
            steer.Intervention(sites.mlp_out(1, positions=positions.generated()), ops.Scale(1.5)),
            steer.Intervention(sites.attn_out(0, positions=positions.span(0, 3)), ops.Add(randn(tower.width))),
        ],
    }
    if registry:
        made["key bias"] = [steer.Intervention(sites.key_bias(layers), ops.KeyBias(1.3, positions.span(0, 2)))]
        prefix = ops.Prefix(randn(kv, 3, width), randn(kv, 3, mixer.value_dim))
        made["prefix"] = [steer.Intervention(sites.kv_prefix(layers), prefix)]
    return made


KINDS = ("residual", "gated head", "query", "key", "prompt rows", "key bias", "prefix")
CASES = [
    (name, implementation, kind)
    for name, family in FAMILIES.items()
    for implementation in (("sdpa", "eager") if family.registry else ("eager",))
    for kind in KINDS
    if family.registry or kind not in ("key bias", "prefix")
]

SDPA_CASES = [(name, kind) for name, i, kind in CASES if i == "sdpa" or not FAMILIES[name].registry]


def write(model: nn.Module, family: Family, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
    options = {"do_sample": False, "max_new_tokens": WRITTEN, "output_logits": True, **options}
    if family.registry:
        options |= {"eos_token_id": None, "pad_token_id": 0, "forced_eos_token_id": None, "forced_bos_token_id": None}
    return model.generate(**inputs, return_dict_in_generate=True, **options)


def prompt_length(family: Family, inputs: dict[str, torch.Tensor]) -> int:
    """How many rows the decoder is given: one start token in an encoder-decoder, all but the end token in BLIP."""
    if family.build is florence2:
        return 1
    return inputs["input_ids"].shape[1] - (0 if family.registry else 1)


def logits_of(
    model: nn.Module, family: Family, inputs: dict[str, torch.Tensor], sequence: torch.Tensor
) -> torch.Tensor:
    return model(**whole(family, inputs, sequence)).logits


@pytest.mark.parametrize(("name", "implementation", "kind"), CASES)
def test_cached_decoding_equals_one_full_forward(name, implementation, kind) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(implementation), family.prompt()
    use, length = changes(model, family.registry)[kind], prompt_length(family, inputs)
    with steer.attach(model, *use):
        made = write(model, family, inputs)
    steps = torch.stack(made.logits, dim=1)
    with steer.attach(model, *use, prompt_length=length):
        full = logits_of(model, family, inputs, made.sequences)
    bare = logits_of(model, family, inputs, made.sequences)
    written = slice(length - 1, length - 1 + steps.shape[1])
    torch.testing.assert_close(steps, full[:, written], **TOLERANCE)
    assert (full[:, written] - bare[:, written]).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "kind"), SDPA_CASES)
def test_padded_rows_equal_themselves_alone(name, kind) -> None:
    """A batch of two prompts of unequal length against each of them as a batch of one."""
    family = FAMILIES[name]
    model = family.model()
    prompts = [family.prompt(words, seed=words) for words in (3, 6)]
    use = changes(model, family.registry)[kind]
    alone = []
    with steer.attach(model, *use):
        for prompt in prompts:
            alone.append(torch.stack(write(model, family, prompt).logits, dim=1))
        # an encoder with learned absolute positions is padded on the right: on the left its own answer would change
        together = torch.stack(write(model, family, padded(prompts, left=name != "florence2")).logits, dim=1)
    torch.testing.assert_close(together, torch.cat(alone), **TOLERANCE)


def padded(prompts: list[dict[str, torch.Tensor]], left: bool = True) -> dict[str, torch.Tensor]:
    longest = max(p["input_ids"].shape[1] for p in prompts)
    rows = ("input_ids", "attention_mask", "mm_token_type_ids", "cross_attention_mask")
    batch: dict[str, torch.Tensor] = {}
    for key in prompts[0]:
        parts = [p[key] for p in prompts]
        if key in rows:
            short = [(*t.shape[:1], longest - t.shape[1], *t.shape[2:]) for t in parts]
            parts = [
                torch.cat([t.new_zeros(size), t] if left else [t, t.new_zeros(size)], dim=1)
                for t, size in zip(parts, short, strict=True)
            ]
        batch[key] = torch.cat(parts)
    return batch


@pytest.mark.parametrize(("name", "kind"), SDPA_CASES)
def test_beam_scores_are_those_of_the_full_forward(name, kind) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt()
    use, length = changes(model, family.registry)[kind], prompt_length(family, inputs)
    with steer.attach(model, *use):
        made = write(model, family, inputs, num_beams=3, num_return_sequences=2, length_penalty=0.0, output_scores=True)
    with steer.attach(model, *use, prompt_length=length):
        full = logits_of(model, family, inputs, made.sequences)
    picked = full[:, length - 1 : -1].log_softmax(-1).gather(-1, made.sequences[:, length:, None]).sum((1, 2))
    torch.testing.assert_close(made.sequences_scores, picked, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_an_assistant_changes_nothing(kind) -> None:
    """Guesses are checked many at a time behind a prompt that the first forward does not end at."""
    from .helpers import tiny_llama, tokens

    model, assistant, ids = tiny_llama(), tiny_llama(seed=0), tokens(1, 6)
    assistant.lm_head.weight.data += 0.05 * randn(*assistant.lm_head.weight.shape)
    use = changes(model)[kind]
    options = {"do_sample": False, "max_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
    with steer.attach(model, *use):
        plain = model.generate(ids, **options)
        helped = model.generate(ids, assistant_model=assistant, **options)
    assert torch.equal(plain.sequences, helped.sequences)
    torch.testing.assert_close(torch.stack(helped.logits, 1), torch.stack(plain.logits, 1), **TOLERANCE)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "florence2"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_assistant_that_sees_the_picture_changes_nothing(name, kind) -> None:
    """transformers itself refuses assistants for BLIP and hybrids, and fails with one on mllama, steered or not."""
    family = FAMILIES[name]
    model, assistant, inputs = family.model(), family.model(), family.prompt()
    assistant.get_output_embeddings().weight.data += 0.05 * randn(*assistant.get_output_embeddings().weight.shape)
    with steer.attach(model, *changes(model)[kind]):
        plain = write(model, family, inputs)
        helped = write(model, family, inputs, assistant_model=assistant)
    assert torch.equal(plain.sequences, helped.sequences)
    torch.testing.assert_close(torch.stack(helped.logits, 1), torch.stack(plain.logits, 1), **TOLERANCE)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_image_positions_are_the_image_tokens_at_every_step(name) -> None:
    """Boosting image keys equals boosting the same keys by number, through prefill, decoding and beams."""
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt()
    where = (inputs["input_ids"][0] == 98).nonzero().flatten().tolist()
    both = []
    for keys in (positions.image(), positions.index(*where)):
        bias = steer.Intervention(sites.key_bias(), ops.KeyBias(2.0, keys))
        rows = steer.Intervention(sites.resid_out(0, positions=keys), ops.Scale(0.5))
        with steer.attach(model, bias, rows):
            made = write(model, family, inputs, num_beams=2)
            both.append((made.sequences, torch.stack(made.logits, dim=1)))
    assert torch.equal(both[0][0], both[1][0])
    assert torch.equal(both[0][1], both[1][1])


def test_generation_without_a_cache_keeps_its_prompt() -> None:
    """With use_cache=False every step is a longer full forward; only the first one is prompt."""
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    use = changes(model)["prompt rows"]
    with steer.attach(model, *use):
        cached = write(model, family, inputs)
        bare = write(model, family, inputs, use_cache=False)
    torch.testing.assert_close(torch.stack(bare.logits, 1), torch.stack(cached.logits, 1), **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "option", [{"cache_implementation": "static"}, {"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 2}], ids=str
)
def test_other_ways_of_decoding_give_the_same_logits(option, kind) -> None:
    """A static cache, whose unfilled slots are masked; a prompt read in chunks; guesses looked up in the prompt."""
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    with steer.attach(model, *changes(model)[kind]):
        usual = write(model, family, inputs)
        other = write(model, family, inputs, **option)
    torch.testing.assert_close(torch.stack(other.logits, 1), torch.stack(usual.logits, 1), **TOLERANCE)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_two_streams_steer_in_a_batch_as_alone(tower) -> None:
    torch.manual_seed(0)
    model = clip().eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (3, 7), generator=generator)
    ids[:, -1] = 2
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    width = steer.inspect(model).tower(tower).width
    use = [
        steer.Intervention(sites.resid_out(tower=tower), ops.Add(randn(width))),
        steer.Intervention(sites.head_out(tower=tower, heads=1), ops.Scale(0.0)),
        steer.Intervention(sites.resid_in(1, tower=tower, positions=positions.index(2)), ops.Scale(2.0)),
    ]
    base = model(input_ids=ids, pixel_values=pixels).logits_per_image
    with steer.attach(model, *use):
        together = model(input_ids=ids, pixel_values=pixels).logits_per_image
        alone = [[model(input_ids=i[None], pixel_values=p[None]).logits_per_image[0, 0] for i in ids] for p in pixels]
        features = model.get_text_features(input_ids=ids) if tower == "text" else model.get_image_features(pixels)
    torch.testing.assert_close(together, torch.stack([torch.stack(row) for row in alone]), **TOLERANCE)
    assert (together - base).abs().max() > 1e-3
    assert features is not None
