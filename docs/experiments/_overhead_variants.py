"""What overhead.py compares: three models, and ways of adding one vector per layer while they write.

A variant is a context manager that takes a Case and yields a function writing `tokens` tokens greedily. Everything that
is prepared once (a peer's wrapper, a plan) is prepared before the clock starts.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import nn

import steer
from steer import ops, positions, sites

# SmolLM2-135M's shape; random weights take as long as trained ones.
LLAMA_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
CUT = {"num_hidden_layers": 3, "vocab_size": 136}
TOY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 136,
}
PROMPT = 32
SCALE = 0.05


@dataclass
class Case:
    """A model with a prompt, one vector per layer (L, D) and per head (L, H, d), and what peers have prepared."""

    name: str
    model: Any
    processor: Any
    inputs: dict[str, torch.Tensor]
    layers: list[nn.Module]
    vectors: torch.Tensor
    heads: torch.Tensor
    path: str
    prepared: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def write(self, tokens: int) -> torch.Tensor:
        return self.model.generate(**self.greedy(tokens))

    def greedy(self, tokens: int) -> dict[str, Any]:
        """What to hand to `generate`."""
        return {**self.inputs, "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, **self.more}


def build(name: str, seed: int) -> Case:
    """One of "llama-135m", the same cut to three layers and few words, "tiny-vlm" and "toy", in float32."""
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    torch.manual_seed(seed)
    tiny, processor = steer.zoo.load("tiny-vlm")
    if name == "tiny-vlm":
        picture = steer.zoo.pictures("test")[0][0]
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is it ?"}]
        inputs = dict(
            processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
        return _case(name, tiny, processor, inputs, tiny.model.language_model.layers, "model.language_model.layers")
    shape = {"llama-135m": LLAMA_135M, "llama-135m-cut": LLAMA_135M | CUT, "toy": TOY}[name]
    config = hf.LlamaConfig(**shape, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    model = hf.LlamaForCausalLM(config).eval()
    ids = torch.randint(2, shape["vocab_size"], (1, PROMPT))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return _case(name, model, processor, inputs, model.model.layers, "model.layers")


def _case(name: str, model: Any, processor: Any, inputs: dict[str, Any], layers: Any, path: str) -> Case:
    model.requires_grad_(False)
    config = model.config.get_text_config()
    width, heads, count = config.hidden_size, config.num_attention_heads, len(layers)
    vectors = torch.randn(count, width) * SCALE
    return Case(
        name, model, processor, inputs, list(layers), vectors, torch.randn(count, heads, width // heads) * SCALE, path
    )


@contextlib.contextmanager
def bare(case: Case) -> Iterator[Callable[[int], torch.Tensor]]:
    yield case.write


@contextlib.contextmanager
def hand_hooks(case: Case) -> Iterator[Callable[[int], torch.Tensor]]:
    """What one writes by hand: the output of a layer may be a tensor or a tuple."""

    def hook(vector: torch.Tensor) -> Callable[..., Any]:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + vector, *output[1:])
            return output + vector

        return add

    handles = [layer.register_forward_hook(hook(v)) for layer, v in zip(case.layers, case.vectors, strict=True)]
    yield case.write
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def hand_head_hooks(case: Case) -> Iterator[Callable[[int], torch.Tensor]]:
    """The same at the heads: the input of the output projection is all heads side by side."""

    def hook(vector: torch.Tensor) -> Callable[..., Any]:
        return lambda module, args: (args[0] + vector, *args[1:])

    flat = case.heads.flatten(1)
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(hook(v)) for layer, v in zip(case.layers, flat, strict=True)
    ]
    yield case.write
    for handle in handles:
        handle.remove()


def session(*made: Callable[[Case], steer.Intervention], **options: Any) -> Callable[..., Any]:
    """A variant that attaches interventions made from the case."""

    @contextlib.contextmanager
    def variant(case: Case) -> Iterator[Callable[[int], torch.Tensor]]:
        with steer.attach(case.model, *[make(case) for make in made], **options):
            yield case.write

    return variant


def residual(case: Case) -> steer.Intervention:
    return steer.Intervention(sites.resid_out(), ops.Add(case.vectors))


def residual_generated(case: Case) -> steer.Intervention:
    return steer.Intervention(sites.resid_out(positions=positions.generated()), ops.Add(case.vectors))


def head(case: Case) -> steer.Intervention:
    return steer.Intervention(sites.head_out(), ops.Add(case.heads))


@contextlib.contextmanager
def nnsight(case: Case) -> Iterator[Callable[[int], torch.Tensor]]:
    """One trace around `generate`, with a loop over its steps: https://nnsight.net/documentation."""
    import nnsight as peer

    if "nnsight" not in case.prepared:
        case.prepared["nnsight"] = peer.TransformersModel(case.model, tokenizer=case.processor.tokenizer)
    model = case.prepared["nnsight"]
    layers = list(operator.attrgetter(case.path)(model))
    vectors = case.vectors

    def write(tokens: int) -> torch.Tensor:
        with model.generate(**case.greedy(tokens)) as tracer:
            for _ in tracer.iter[:tokens]:
                for layer, vector in zip(layers, vectors):  # noqa: B905
                    layer.output += vector
            written = tracer.result.save()
        return written  # noqa: RET504 - the block is nnsight's; nothing may return out of it

    yield write


@contextlib.contextmanager
def repsteer(case: Case) -> Iterator[Callable[[int], torch.Tensor]]:
    """A plan with one Add per layer, and the wrapper's own `generate`."""
    import repsteer as peer

    if "repsteer" not in case.prepared:
        case.prepared["repsteer"] = peer.models.from_model(case.model)
    model = case.prepared["repsteer"]
    plan = peer.SteeringPlan(
        [
            peer.Intervention(
                artifact=peer.DirectionArtifact(peer.ArtifactMetadata(), vector),
                operator=peer.operators.Add(),
                positions=peer.positions.AllTokens(),
                strength=peer.schedules.Constant(1.0),
                site=peer.sites.resid_post(layer=i),
            )
            for i, vector in enumerate(case.vectors)
        ]
    )
    # The default level compares model ids and revisions, which a model built here has not.
    with model.steer(plan, compatibility="dimension"):
        yield lambda tokens: model.generate(**case.greedy(tokens)).token_ids


@contextlib.contextmanager
def steering_vectors(case: Case) -> Iterator[Callable[[int], torch.Tensor]]:
    import steering_vectors as peer

    with peer.SteeringVector(dict(enumerate(case.vectors))).apply(
        case.model, layer_config={"decoder_block": case.path + ".{num}"}
    ):
        yield case.write


VARIANTS: dict[str, Callable[[Case], Any]] = {
    "bare": bare,
    "hand-written hooks": hand_hooks,
    "steer: empty session": session(),
    "steer: residual shift": session(residual),
    "hand-written head hooks": hand_head_hooks,
    "steer: head shift": session(head),
}
# Only where the Python of the engine itself is what is looked at.
MORE = {
    "steer: residual shift, measure none": session(residual, measure="none"),
    "steer: residual shift, measure all": session(residual, measure="all"),
    "steer: residual shift, generated tokens": session(residual_generated),
}
PEERS = {"nnsight": nnsight, "repsteer": repsteer, "steering-vectors": steering_vectors}
SAME_JOB = ("steer: residual shift", "steer: residual shift, measure none", "steer: residual shift, measure all")


def peers() -> dict[str, str]:
    """Installed peers with their versions."""
    found = {}
    for name in PEERS:
        if importlib.util.find_spec(name.replace("-", "_")) is not None:
            found[name] = importlib.metadata.version(name)
    return found


def usable(case: Case, tokens: int, more: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """The variants that do their job on a model, and why others do not.

    Everything that shifts the residual stream must write the very tokens that hand-written hooks write.
    """
    variants = dict(VARIANTS) | (MORE if more else {})
    failed: dict[str, str] = {}
    with hand_hooks(case) as write:
        truth = write(tokens)
    for name in (*SAME_JOB, *peers()):
        make = {**variants, **PEERS}.get(name)
        if make is None:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with make(case) as write:
                    same = torch.equal(write(tokens), truth)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        if not same:
            failed[name] = "writes other tokens than hand-written hooks with the same vectors"
        elif name in PEERS:
            variants[name] = make
    return variants, failed


def largest_difference(case: Case) -> float:
    """Between the logits of steer's residual shift and of hand-written hooks, in one forward over the prompt."""
    logits = []
    with torch.no_grad():
        for make in (hand_hooks, VARIANTS["steer: residual shift"]):
            with make(case):
                logits.append(case.model(**case.inputs).logits)
    return float((logits[0] - logits[1]).abs().max())
