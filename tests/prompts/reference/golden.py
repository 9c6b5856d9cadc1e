"""The golden files: what the authors' own code returned, and the model that it was asked with (more in its README)."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

FOLDER = Path(__file__).parents[2] / "golden" / "clip_prompts"
COOP = [f"coop_{where}_{shared}" for where in ("end", "middle", "front") for shared in ("shared", "csc")]
NAMES = [*COOP, "cocoop", "maple", "coprompt", "promptsrc"]
HEADS = {"text_heads": 8, "vision_heads": 12}

# The weights left out of a file, in the order in which the authors' constructors drew them; an int is so many numbers
# drawn for what the file still has (a bias, the deep prompts).
_LEARNER = "prompt_learner."
_DRAWN: dict[str, list[tuple[tuple[str, ...], tuple[int, int]] | int]] = {
    "maple": [
        ((f"{_LEARNER}proj.weight",), (768, 512)),
        768 + 2 * 2 * 512,
        (tuple(f"{_LEARNER}compound_prompt_projections.{layer}.weight" for layer in (0, 1)), (768, 512)),
    ]
}
_DRAWN["coprompt"] = [
    *_DRAWN["maple"],
    768,
    *(
        ((f"adapter_{tower}.fc.{part}.weight",), shape)
        for tower in ("image", "text")
        for part, shape in ((0, (128, 512)), (2, (512, 128)))
    ),
]


@cache
def model() -> CLIPModel:
    """The CLIP of the golden logits: fp32, on the CPU, width 512 and 768, 4 + 4 layers. Shared: do not write to it."""
    text = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS["text_heads"],
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "projection_dim": 512,
    }
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS["vision_heads"],
        "patch_size": 16,
        "image_size": 64,
        "projection_dim": 512,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).eval()
    # As it stood after the constructor of transformers 5.23.0 with seed 1: how a release initialises does not matter.
    generator = torch.Generator()
    generator.set_state(load_file(FOLDER / "generators.safetensors")["weights"])
    with torch.no_grad():
        for name, weight in clip.named_parameters():
            if any(part in name for part in ("embed", "proj", "fc")):
                weight.copy_(torch.randn(weight.shape, generator=generator) * (0.05 if weight.dim() > 1 else 0.02))
        clip.logit_scale.fill_(4.6052)
        total = sum(float(weight.double().abs().sum()) for weight in clip.parameters())
    if abs(total - 2705021.669) > 0.01:
        raise RuntimeError(f"this torch draws other weights than the golden logits are of: sum of |w| is {total:.3f}")
    return clip


def _drawn(name: str) -> dict[str, Tensor]:
    """The weights that are uniform numbers from a known state of the generator, to the last bit."""
    *key, position = load_file(FOLDER / "generators.safetensors")[name].tolist()
    generator = np.random.MT19937()
    generator.state = {"bit_generator": "MT19937", "state": {"key": np.array(key, np.uint32), "pos": position}}
    weights: dict[str, Tensor] = {}
    for draw in _DRAWN[name]:
        if isinstance(draw, int):
            generator.random_raw(draw)
            continue
        names, shape = draw
        bound = np.float32(1 / np.sqrt(shape[1]))
        # torch: 24 bits a number, scaled to [-bound, bound) by one fused multiplication and addition.
        bits = generator.random_raw(shape[0] * shape[1]) & 0xFFFFFF
        numbers = bits * 2.0**-24 * float(2 * bound) - float(bound)
        for repeated in names:
            weights[repeated] = torch.from_numpy(numbers.astype(np.float32).reshape(shape))
    return weights


def read(name: str) -> dict[str, Tensor]:
    """All tensors of one golden file, as the authors' code had them: `ids`, `images`, `logits` and what is learned.

    Raises:
        RuntimeError: a weight that was made again is not bit for bit what it was.
    """
    path = FOLDER / f"{name}.safetensors"
    tensors = {**load_file(path), **load_file(FOLDER / "images.safetensors")}
    if name in _DRAWN:
        with safe_open(path, "pt") as file:
            digests = file.metadata()
        drawn = _drawn(name)
        for key, digest in digests.items():
            if hashlib.sha256(drawn[key].numpy().tobytes()).hexdigest() != digest:
                raise RuntimeError(f"{key} of {name} is not what the authors' code had")
        tensors |= drawn
    return tensors


def learned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a golden file has besides inputs and logits."""
    return {name: tensor for name, tensor in tensors.items() if name not in ("ids", "images", "logits")}
