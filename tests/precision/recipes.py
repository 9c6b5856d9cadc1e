"""How every method of the package is made on a model in a moment: one recipe each, and a new method has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import steer
import steer_vectors.gate as gates
from tests.prompts.quick import DEEP

Recipe = Callable[[Any, Any, Sequence[Any]], steer.Method]
"""A model, its processor and answered examples -> the method, made on them."""

STEPS = {"max_steps": 2, "batch_size": 4, "lr": 0.05}
BIG = {**STEPS, "lr": 0.5}
EPOCH = {"epochs": 1, "batch_size": 4, "warmup_lr": 0.1, "lr": 0.1}
HEADS = ((0, 1), (1, 2), (3, 0))


def made(name: str, **fields: Any) -> Recipe:
    """A method that needs no fitting."""
    return lambda model, processor, examples: steer.create(name, **fields)


def fitted(name: str, options: dict[str, Any] | None = None, **fields: Any) -> Recipe:
    """A method that is fitted on the examples."""

    def recipe(model: Any, processor: Any, examples: Sequence[Any]) -> steer.Method:
        # in-context learning keeps its examples and has nothing to show a bar for
        more = {} if name == "icl" else {"progress": False}
        return steer.create(name, **fields).fit(model, processor, examples, **more, **(options or {}))

    return recipe


def around(kind: str, *inner: Recipe, **fields: Any) -> Recipe:
    """A gate around methods that are made first; half of the examples are those that it should act on."""

    def recipe(model: Any, processor: Any, examples: Sequence[Any]) -> steer.Method:
        method = gates.over(kind, *(one(model, processor, examples) for one in inner), **fields)
        half, rest = examples[::2], examples[1::2]
        match kind:
            case "threshold":
                return method.fit(model, processor, half, otherwise=rest, progress=False)
            case "retrieval":
                return method.fit(model, processor, [*half, *rest], labels=[0] * 4 + [1] * 4, progress=False)
            case _:
                return method.fit(model, processor, examples, progress=False, **{**STEPS, "lr": 0.005})

    return recipe


def conditional(model: Any, processor: Any, examples: Sequence[Any]) -> steer.Method:
    """CAST needs prompts that meet its condition, and others."""
    method = steer.create("cast", strength=6.0, layers=(2,), layer=1)
    return method.fit(model, processor, examples, when=examples[::2], otherwise=examples[1::2], progress=False)


def named(model: Any, processor: Any, examples: Sequence[Any]) -> steer.Method:
    """Hand-written prompts for the classes of the examples."""
    return steer.create("zero_shot", classes=sorted({name for _, name in examples}))


TASK = fitted("task_vector", shots=2, contexts=4, layer=2)

WRITING: dict[str, Recipe] = {
    "cast": conditional,
    "function_vector": fitted("function_vector", shots=2, contexts=2, trials=1, heads=3, layer=1),
    "gate": around("sigmoid", TASK),
    "gate_retrieval": around("retrieval", TASK, fitted("task_vector", shots=2, contexts=2, layer=3)),
    "gate_threshold": around("threshold", TASK),
    "head_mask": fitted("head_mask", heads=HEADS, to="mean"),
    "head_scale": made("head_scale", heads=HEADS, factor=0.3),
    "head_shift": fitted("head_shift", BIG, shots=2),
    "hificl": fitted("hificl", STEPS, virtual=2, rank=2),
    "hyper_icl": fitted("hyper_icl", STEPS, rank=2, shots=2),
    "icl": fitted("icl", shots=2),
    "icv": fitted("icv", strength=0.3),
    "image_focus": made("image_focus", beta=3.0),
    "iti": fitted("iti", alpha=15.0, count=4),
    "joint": fitted("joint", STEPS, virtual=2, rank=2, shots=2),
    "live": fitted("live", BIG, shots=2),
    "mimic": fitted("mimic", BIG, shots=2),
    "mtv": fitted("mtv", shots=2, contexts=2, steps=2, samples=4, draws=1),
    "pai": made("pai", alpha=0.4, gamma=1.1),
    "pasta": made("pasta", heads="all", alpha=0.01, span="images"),
    "savs": fitted("savs", heads=4),
    "task_vector": TASK,
    "vcd": made("vcd", alpha=1.0, step=500),
}
"""Methods for models that write, made on answered questions about pictures."""

CUT = {"keep": 0.2, "sinks": 0}
CHOOSING: dict[str, Recipe] = {
    "ada_kv": made("ada_kv", scorer="observed_attention", **CUT),
    "expected_attention": made("expected_attention", **CUT),
    "fastv": made("fastv", start=0, keep=0.01),
    "keydiff": made("keydiff", **CUT),
    "knorm": made("knorm", **CUT),
    "observed_attention": made("observed_attention", recent=2, **CUT),
    "pyramidkv": made("pyramidkv", window=1, kernel_size=1, beta=2, **CUT),
    "random": made("random", **CUT),
    "snapkv": made("snapkv", window=1, kernel_size=3, **CUT),
    "streaming_llm": made("streaming_llm", **CUT),
    "tova": made("tova", **CUT),
}
"""Methods that choose what a cache keeps."""

BUILDING: dict[str, Recipe] = {"emloc": made("emloc", budget=0.5, unit="share")}
"""Methods that are not attached: they build a memory."""

SCORING: dict[str, Recipe] = {
    "clip_adapter": fitted("clip_adapter", EPOCH, image_adapter=0.8),
    "cocoop": fitted("cocoop", EPOCH, bottleneck=4),
    "coop": fitted("coop", EPOCH, context=3),
    "coprompt": fitted("coprompt", EPOCH, **DEEP),
    "ivlp": fitted("ivlp", EPOCH, **DEEP),
    "kgcoop": fitted("kgcoop", {**EPOCH, "warmup_lr": 20.0}),
    "maple": fitted("maple", EPOCH, **DEEP),
    "prograd": fitted("prograd", EPOCH, context=4),
    "promptsrc": fitted("promptsrc", EPOCH, **DEEP),
    "tip_adapter": fitted("tip_adapter", cache=5.0),
    "vpt": fitted("vpt", EPOCH, vision_context=3, vision_depth=3),
    "zero_shot": named,
}
"""Methods for models that score pictures against texts, made on labelled pictures."""

RECIPES = {**WRITING, **CHOOSING, **BUILDING, **SCORING}
