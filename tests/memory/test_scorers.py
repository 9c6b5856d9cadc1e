"""Scorers around `generate`: what is written equals dense attention without the dropped keys, whatever was chosen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import steer
from steer import memory, zoo
from steer.errors import NeverFiredError
from steer.memory import Chooser, KeptLayer, Memory, Scorer, Seen
from tests.engine.families import FAMILIES, IMAGE
from tests.engine.helpers import HEADS, tiny_llama, tokens

from .dense import hidden

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": 5,
    "eos_token_id": None,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
CONFIGS: dict[str, dict[str, Any]] = {
    "snapkv": {"window": 3, "kernel_size": 3},
    "pyramidkv": {"window": 2, "kernel_size": 3, "beta": 4},
    "tova": {},
    "observed_attention": {"recent": 2},
    "expected_attention": {},
    "knorm": {},
    "keydiff": {},
    "streaming_llm": {},
    "random": {},
    "ada_kv": {"scorer": "observed_attention"},
    "fastv": {"start": 1},
}
SCORERS = [name for name in CONFIGS if name != "fastv"]


def method(name: str, **more: Any) -> Chooser:
    own = {} if name == "fastv" else {"keep": 0.4, "sinks": 1}
    return steer.create(name, **{**own, **CONFIGS[name], **more})


def watched(one: Chooser) -> list[tuple[Seen, torch.Tensor | None]]:
    """What the method is shown and says, choice after choice."""
    kept: list[tuple[Seen, torch.Tensor | None]] = []
    choose = one.choose

    def look(seen: Seen) -> torch.Tensor | None:
        kept.append((seen, choose(seen)))
        return kept[-1][1]

    one.choose = look  # type: ignore[method-assign]
    return kept


def own_layers(cache: Any) -> list[Any]:
    return getattr(cache, "self_attention_cache", cache).layers


def test_every_scorer_is_tried():
    found = {name for name, info in steer.methods().items() if issubclass(info.cls, Chooser)}
    assert found == set(CONFIGS)


@pytest.mark.parametrize(
    ("family", "name"),
    [("llava", name) for name in CONFIGS]
    + [(f, n) for f in ("qwen2_5_vl", "mllama", "qwen3_5") for n in ("snapkv", "pyramidkv", "ada_kv", "fastv")],
)
def test_what_is_written_equals_a_mask_over_what_was_dropped(family, name):
    kind = FAMILIES[family]
    model, prompt = kind.model(), kind.prompt(12)
    one = method(name)
    choices = watched(one)
    with steer.attach(model, one):
        found = model.generate(**prompt, **GREEDY)
    dropped = {seen.layer: ~keep for seen, keep in choices if keep is not None}
    assert len(dropped) == len([layer for layer in own_layers(found.past_key_values) if isinstance(layer, KeptLayer)])
    if (family, name) != ("mllama", "fastv"):
        assert dropped

    total = prompt["input_ids"].shape[1]
    first = model(**prompt, use_cache=True)
    logits, cache = [first.logits[:, -1]], first.past_key_values
    layer = next(layer.attention for layer in steer.inspect(model).tower().layers if layer.attention)
    heads = layer.num_heads or 4
    with hidden(model, dropped, heads):
        for step in range(4):
            token = found.sequences[:, total + step : total + step + 1]
            logits.append(model(input_ids=token, past_key_values=cache).logits[:, -1])
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(logits), **CLOSE)


@pytest.mark.parametrize("name", CONFIGS)
def test_keeping_everything_changes_no_bit(name):
    kind = FAMILIES["llava"]
    model, prompt = kind.model(), kind.prompt(9)
    plain = model.generate(**prompt, **GREEDY)
    with steer.attach(model, method(name, keep=1.0)):
        found = model.generate(**prompt, **GREEDY)
    assert torch.equal(found.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, plain.logits, strict=True))


def padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("name", SCORERS)
def test_a_row_in_a_padded_batch_is_the_row_alone(name, per_head):
    """Grouped queries, three lengths: each row keeps its own share, and no padding."""
    model = tiny_llama()
    rows = [tokens(1, length, seed=length)[0] for length in (20, 13, 7)]
    more = {} if name == "ada_kv" else {"per_head": per_head}
    with steer.attach(model, method(name, **more)):
        found = model.generate(**padded(rows), **GREEDY)
        counts = [layer.kept.counts() for layer in own_layers(found.past_key_values)]
        for index, row in enumerate(rows):
            alone = model.generate(**padded([row]), **GREEDY)
            together = torch.stack(found.logits)[:, index]
            torch.testing.assert_close(together, torch.stack(alone.logits)[:, 0], **CLOSE)
            for layer, count in zip(own_layers(alone.past_key_values), counts, strict=True):
                assert torch.equal(layer.kept.counts()[0], count[index])
                assert layer.kept.width == int(count[index].max())
                kept = layer.kept.slots_of(None)[0]
                assert bool((kept < len(row)).all())


def test_beams_follow_their_own_caches():
    """The sum of log-probabilities that beam search found is that of its text under dense attention."""
    model, ids = tiny_llama(), tokens(2, 14)
    one = method("snapkv")
    choices = watched(one)
    options = {**GREEDY, "num_beams": 3, "length_penalty": 0.0, "output_scores": True}
    with steer.attach(model, one):
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    dropped = {seen.layer: ~keep[::3] for seen, keep in choices if keep is not None}
    first = model(input_ids=ids, use_cache=True)
    logits, cache = [first.logits[:, -1]], first.past_key_values
    with hidden(model, dropped, HEADS):
        for step in range(4):
            token = found.sequences[:, 14 + step : 15 + step]
            logits.append(model(input_ids=token, past_key_values=cache).logits[:, -1])
    written = torch.stack(logits, 1).log_softmax(-1).gather(2, found.sequences[:, 14:, None]).sum((1, 2))
    torch.testing.assert_close(found.sequences_scores, written, **CLOSE)


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("limit", [{"budget": 8}, {"keep": 0.4}], ids=["budget", "share"])
def test_compression_while_writing_is_the_loop_written_by_hand(limit, per_head):
    """Every 3 tokens the keys of the smallest norm stay, of what is there, and the cache never grows past that."""
    model, ids, new = tiny_llama(), tokens(2, 15), 12
    one = steer.create("knorm", every=3, sinks=2, per_head=per_head, **limit)
    with steer.attach(model, one):
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **{**GREEDY, "max_new_tokens": new})

    def count(read: int) -> int:
        return limit.get("budget") or int(read * limit["keep"] + 1e-6)

    def smallest(layer: Any, read: int) -> torch.Tensor:
        keys = layer.whole()[0] if isinstance(layer, KeptLayer) else layer.keys
        norm = keys.norm(dim=-1)
        norm = norm if per_head else norm.mean(1, keepdim=True).expand_as(norm)
        norm = norm.clone()
        norm[..., :2] = 0
        order = norm.argsort(dim=-1, stable=True)[..., : count(read)]
        return torch.zeros_like(norm, dtype=torch.bool).scatter(-1, order, True)

    with memory.masks(model):
        out = model(input_ids=ids, use_cache=True)
        logits, cache, chosen_at = [out.logits[:, -1]], out.past_key_values, 15
        cache = memory.prune(model, cache, {i: smallest(layer, 15) for i, layer in enumerate(cache.layers)})
        for step in range(new - 1):
            token = found.sequences[:, 15 + step : 16 + step]
            logits.append(model(input_ids=token, past_key_values=cache).logits[:, -1])
            if 16 + step - chosen_at >= 3:
                chosen_at = 16 + step
                keep = {i: smallest(layer, chosen_at) for i, layer in enumerate(cache.layers)}
                cache = memory.prune(model, cache, keep)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(logits), **CLOSE)
    for layer in found.past_key_values.layers:
        assert layer.get_seq_length() == 15 + new - 1
        assert layer.kept.width + layer.appended <= count(15 + new - 1) + 3


@pytest.mark.parametrize("name", SCORERS)
def test_a_budget_bounds_the_cache_for_every_scorer(name):
    model, ids = tiny_llama(), tokens(1, 15)
    longest = []
    handle = model.register_forward_hook(
        lambda m, a, out: longest.append(
            max(layer.keys.shape[2] + _kept(layer) for layer in out.past_key_values.layers)
        )
    )
    more = {"scorer": "tova"} if name == "ada_kv" else {}
    with steer.attach(model, method(name, budget=6, every=2, **more)):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **{**GREEDY, "max_new_tokens": 15})
    handle.remove()
    # a pyramid's first layer may keep twice the mean, and heads that share a budget most of it
    most = 12 if name in ("pyramidkv", "ada_kv") else 6
    assert len(longest) == 15
    assert max(longest[1:]) <= most + 2


def _kept(layer: Any) -> int:
    return layer.kept.width if isinstance(layer, KeptLayer) else 0


def test_fastv_drops_image_tokens_only_and_by_one_ranking():
    model, prompt = FAMILIES["llava"].model(), FAMILIES["llava"].prompt(9)
    for start in (0, 1):
        one = steer.create("fastv", keep=0.5, start=start)
        choices = watched(one)
        weights = {}
        eager = FAMILIES["llava"].model("eager")
        with torch.no_grad():
            weights = eager(**prompt, output_attentions=True).attentions
        with steer.attach(model, one):
            model.generate(**prompt, **GREEDY)
        image = prompt["input_ids"][0] == IMAGE
        mean = weights[0][0, :, -1].mean(0).masked_fill(~image, -1)
        best = torch.zeros_like(image)
        best[mean.topk(2).indices] = True
        for seen, keep in choices:
            if seen.layer < start:
                assert keep is None
                continue
            assert torch.equal(keep, (~image | best).expand_as(keep))


def test_fastv_ranks_each_row_and_each_prompt_anew():
    model, kind = FAMILIES["llava"].model(), FAMILIES["llava"]
    prompts = [kind.prompt(9, seed=seed) for seed in (0, 1)]
    both = {name: torch.cat([p[name] for p in prompts]) for name in prompts[0]}
    one = steer.create("fastv", start=1)
    choices = watched(one)
    with steer.attach(model, one):
        for prompt in (both, *prompts):
            model.generate(**prompt, **GREEDY)
    found = [keep for _, keep in choices if keep is not None]
    assert torch.equal(found[0], torch.cat(found[1:]))


def test_a_second_prompt_and_a_second_session_start_afresh():
    model, ids = tiny_llama(), tokens(1, 14)
    one = method("observed_attention", every=2)
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    made = []
    with steer.attach(model, one):
        made += [model.generate(**prompt, **GREEDY), model.generate(**prompt, **GREEDY)]
    plain = model.generate(**prompt, **GREEDY)
    with steer.attach(model, one):
        made.append(model.generate(**prompt, **GREEDY))
    for other in made[1:]:
        assert torch.equal(torch.stack(other.logits), torch.stack(made[0].logits))
    assert not torch.equal(torch.stack(plain.logits), torch.stack(made[0].logits))
    assert all(not isinstance(layer, KeptLayer) for layer in plain.past_key_values.layers)


def test_two_rules_at_once_are_one_after_the_other():
    """The second chooses among what the first has kept."""
    model, ids = tiny_llama(), tokens(1, 20)
    with steer.attach(model, method("knorm", keep=0.5)), steer.attach(model, method("streaming_llm", keep=0.5)):
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert [layer.kept.width for layer in out.past_key_values.layers] == [10, 10, 10]


def test_a_session_in_which_nothing_was_read_is_reported():
    with pytest.raises(NeverFiredError, match="knorm"):
        with steer.attach(tiny_llama(), method("knorm")):
            pass


def test_the_report_counts_layers_and_tokens():
    model, ids = tiny_llama(), tokens(2, 14)
    with steer.attach(model, method("knorm", layers=(0, 2))) as session:
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    lines = session.report().lines
    assert [(line.layer, line.calls, line.rows) for line in lines] == [(0, 1, 28), (2, 1, 28)]
    assert [isinstance(layer, KeptLayer) for layer in out.past_key_values.layers] == [True, False, True]


def test_bf16():
    """The choice is made from scores in fp32; what is written is as near to fp32 as the cache's dtype is."""
    model, ids = tiny_llama().to(torch.bfloat16), tokens(2, 14)
    one = method("snapkv")
    choices = watched(one)
    with steer.attach(model, one):
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert all(layer.kept.keys.dtype == torch.bfloat16 for layer in out.past_key_values.layers)
    for seen, _ in choices:
        assert one.score(seen).dtype == torch.float32


@pytest.fixture(scope="module")
def vlm():
    return zoo.load()


@pytest.mark.parametrize("name", ["snapkv", "ada_kv", "fastv"])
def test_a_memory_is_built_part_by_part(vlm, name):
    """Each part is pruned when it is read, and stays as it was then; the memory answers."""
    model, processor = vlm
    shots = zoo.examples("colour", "demo", 6)
    one = method(name)
    short = one.build(model, processor, shots[:3], chunk=3, progress=False)
    made = one.build(model, processor, shots, chunk=3, progress=False)
    for layer in made.places:
        first, both = short.kept(layer), made.kept(layer)
        counts = first.counts().flatten().tolist()
        for head, count in enumerate(counts):
            slots = [k.slots.expand(1, len(counts), -1)[0, head, :count] for k in (first, both)]
            assert torch.equal(*slots)
            keys = [k.dense(None)[0][0, head, :count] for k in (first, both)]
            assert torch.equal(*keys)
    shares = made.share().values()
    if isinstance(one, Scorer):
        assert max(shares) <= 0.41
    else:
        assert min(shares) < 0.7
        images = made.images[0]
        for layer in made.places:
            kept = torch.zeros(made.length, dtype=torch.bool)
            kept[made.kept(layer).slots.flatten()] = True
            assert bool(kept[~images].all())
    assert made.nbytes < made.info["certificate"]["nbytes_whole"]
    answers = made.ask(model, processor, zoo.examples("colour", "test", 3))
    assert len(answers) == 3


def test_a_memory_under_a_scorer_stays_while_its_question_is_compressed():
    model = tiny_llama()
    context, question = tokens(1, 12, seed=1), tokens(1, 10, seed=2)
    kept = Memory.empty(model).read(model, {"input_ids": context})
    drop = torch.rand(1, 2, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    drop[..., :2] = True
    kept = kept.keep(dict.fromkeys(kept.places, drop)).bind(model)
    one = method("knorm", every=2, keep=0.5)
    choices = watched(one)
    with steer.attach(model, one):
        model.generate(input_ids=question, past_key_values=kept, **{**GREEDY, "max_new_tokens": 9})
    assert len(choices) > 3
    for seen, keep in choices:
        old = seen.real & (seen.slots < 12)
        assert torch.equal(old.sum(-1), drop.sum(-1))
        assert keep is None or bool(keep[old].all())


def test_the_method_is_not_changed_by_use():
    """It can be copied, compared and saved after a session."""
    model, ids = tiny_llama(), tokens(1, 14)
    one = method("ada_kv")
    before = copy.deepcopy(one)
    with steer.attach(model, one):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert one == before
