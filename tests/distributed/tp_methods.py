"""Methods through the public API, by name: the same calls in one process and in each of two that share the model.

Each gives tensors: what was fitted or read, and what the model answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

import steer
from steer import positions, sites
from steer.look import look
from steer.memory import Memory
from steer.training import Learned
from tests.distributed.tp_cases import outcome, randn

Found = dict[str, torch.Tensor]
Run = Callable[[Any, Any], Found]

TASK = "plain:colour"


def shots(count: int = 6, split: str = "demo") -> list[steer.Example]:
    from steer import zoo

    return zoo.examples(TASK if TASK in zoo.tasks() else sorted(zoo.tasks())[0], split, n=count)


def questions(processor: Any, count: int = 2) -> dict[str, torch.Tensor]:
    """Questions about pictures of other splits, padded on the left."""
    asked = shots(count, "test")
    rows = [f"<image>{one.question}" + (" please" if i else "") for i, one in enumerate(asked)]
    return dict(processor(text=rows, images=[list(one.images) for one in asked], padding=True, padding_side="left",
                          return_tensors="pt"))  # fmt: skip


def at_random(name: str, model: Any, **fields: Any) -> Learned:
    """A method that is fitted by gradient, with noise for tensors."""
    method = steer.create(name, **fields)
    assert isinstance(method, Learned)
    start = method.initial(steer.inspect(model), torch.Generator().manual_seed(0))
    method.tensors = {key: randn(*value.shape, seed=i) for i, (key, value) in enumerate(sorted(start.items()))}
    return method


def _answers(model: Any, processor: Any, *methods: Any) -> Found:
    inputs = questions(processor)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return outcome(model, inputs, methods)[0]


def learned(name: str, **fields: Any) -> Run:
    return lambda model, processor: _answers(model, processor, at_random(name, model, **fields))


def plain(name: str, **fields: Any) -> Run:
    return lambda model, processor: _answers(model, processor, steer.create(name, **fields))


def fitted(name: str, count: int = 8, options: dict[str, Any] | None = None, **fields: Any) -> Run:
    def run(model: Any, processor: Any) -> Found:
        method = steer.create(name, **fields).fit(model, processor, shots(count), progress=False, **(options or {}))
        tensors = {f"fitted {key}": value.double() for key, value in method.tensors.items()}
        return tensors | _answers(model, processor, method)

    return run


def pasta(model: Any, processor: Any) -> Found:
    inside = torch.zeros(2, questions(processor)["input_ids"].shape[1], dtype=torch.bool)
    inside[:, 8:11] = True
    method = steer.create("pasta", heads={1: [0, 5], 2: [4]}, alpha=0.05).on(positions.mask(inside))
    return _answers(model, processor, method)


def memory(name: str, **fields: Any) -> Run:
    """Demonstrations read into a memory, and questions asked after it."""

    def run(model: Any, processor: Any) -> Found:
        made = steer.create(name, **fields).build(model, processor, shots(6), chunk=3, progress=False)
        inputs = questions(processor, 1)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.no_grad():
            written = model.generate(
                **inputs, past_key_values=made, max_new_tokens=3, min_new_tokens=3, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        told = made.info["certificate"]["calibration"]["mean"]
        return {"steps": torch.stack(written.logits), "divergence": torch.tensor(told, dtype=torch.float64)}

    return run


def saved_memory(model: Any, processor: Any) -> Found:
    """A memory that was saved, and loaded again: its file is the model's, whoever wrote it."""
    made = steer.create("ada_kv", keep=0.4).build(model, processor, shots(4), certify=False, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        made.save(folder, processor)
        back = Memory.load(folder, model, processor=processor)
        found = {f"keys {layer}": back.kept(layer).keys.clone() for layer in back.places}
    query = dict(processor(text=[shots(1, "test")[0].question.replace("<image>", "")], return_tensors="pt"))
    with torch.no_grad():
        return found | {"logits": model(**query, past_key_values=back).logits}


def recordings(model: Any, processor: Any) -> Found:
    inputs = questions(processor)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    asked = (
        sites.head_out(), sites.head_out(tower="vision"), sites.head_q(positions=positions.last_prompt()),
        sites.head_k(heads=[1]), sites.head_v(), sites.attention(1, heads=[5, 0], positions=positions.last_prompt()),
        sites.resid_out(), sites.cache(2),
    )  # fmt: skip
    with torch.no_grad(), steer.record(model, *asked) as acts:
        model(**inputs)
    found = {}
    for key, value in acts.items():
        for i, tensor in enumerate(value if isinstance(value, tuple) else (value,)):
            found[f"{key.site} {key.tower} {key.layer} {i}"] = tensor.contiguous()
    return found


def looked(model: Any, processor: Any) -> Found:
    one = shots(1, "test")[0]
    seen = look(model, processor, one.images[0], one.question, steer.create("image_focus", beta=1.0))
    assert seen.after is not None
    found = {f"{name} {i}": shown for name, side in seen.sides.items() for i, shown in enumerate(side.maps)}
    return found | {"probabilities": seen.after.probabilities}


def profile(model: Any, processor: Any) -> Found:
    made = steer.profile(
        model, processor, shots(8), measures=["indirect_effect", "ablation"], samples=2, progress=False
    )
    return {name: torch.as_tensor(table).double().contiguous() for name, table in made.values.items()}


METHODS: dict[str, Run] = {
    "live": learned("live"),
    "head_shift": learned("head_shift"),
    "mimic": learned("mimic"),
    "hyper_icl": learned("hyper_icl"),
    "hificl": learned("hificl"),
    "joint": learned("joint"),
    "icv": fitted("icv"),
    "task_vector": fitted("task_vector", shots=2, layer=1),
    "function_vector": fitted("function_vector", shots=2, contexts=4, trials=2, heads=3, layer=1),
    "mtv": fitted("mtv", shots=2, contexts=4, steps=4, samples=4, draws=2),
    "savs": fitted("savs", 12, heads=4),
    "iti": fitted("iti"),
    "image_focus": plain("image_focus", beta=1.0),
    "pasta": pasta,
    "head_mask": plain("head_mask", heads=[(1, 5), (2, 0)]),
    "head_scale": plain("head_scale", heads=[(1, 5), (2, 0)], factor=0.3),
    "pai": plain("pai", alpha=0.5, gamma=1.1),
    "vcd": plain("vcd"),
    "snapkv": plain("snapkv", keep=0.4, window=4),
    "snapkv one choice": plain("snapkv", keep=0.4, window=4, per_head=False),
    "snapkv again": plain("snapkv", keep=0.4, window=4, per_head=True),
    "ada_kv": plain("ada_kv", keep=0.4),
    "tova": plain("tova", keep=0.4),
    "knorm": plain("knorm", keep=0.4, every=1),
    "fastv": plain("fastv"),
    "observed_attention": plain("observed_attention", keep=0.4),
    "expected_attention": plain("expected_attention", keep=0.4),
    "emloc": memory("emloc", budget=0.4),
    "emloc by divergence": memory("emloc", max_divergence=0.02),
    "memory of snapkv": memory("snapkv", keep=0.4, window=4),
    "saved memory": saved_memory,
    "recordings": recordings,
    "look": looked,
    "profile": profile,
}
