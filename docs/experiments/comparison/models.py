"""Eight tiny vision-language models with random weights, and what each probe must give, in plain torch.

Nothing here knows a library that is compared: the scripts beside this file run it in environments of their own, under
whatever transformers the library asks for.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

IMAGE, VOCAB, HEAD, LAYER = 98, 99, 1, 1
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
EYE = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
EYE |= {"image_size": 16, "patch_size": 8}


def text(layers: int = 2, **more: Any) -> dict[str, Any]:
    """A text tower with four query heads on two key-value heads."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "vocab_size": VOCAB}
    return {**shape, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, **more}


def llava() -> nn.Module:
    config = hf.LlavaConfig(
        text_config={"model_type": "llama", **text(), **SPECIAL},
        vision_config={"model_type": "clip_vision_model", **EYE, "projection_dim": 24},
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    return hf.LlavaForConditionalGeneration(config)


def qwen2_5_vl() -> nn.Module:
    eye = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
    eye |= {"spatial_merge_size": 2, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
    ids = {"image_token_id": IMAGE, "video_token_id": 97, "vision_start_token_id": 96, "vision_end_token_id": 95}
    words = text(rope_parameters={**ROPE, "mrope_section": [1, 1, 2]}, **SPECIAL)
    return hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(text_config=words, vision_config=eye, **ids))


def smolvlm() -> nn.Module:
    words = {"model_type": "llama", **text(), **SPECIAL}
    config = hf.SmolVLMConfig(text_config=words, vision_config=EYE, image_token_id=IMAGE, scale_factor=1)
    return hf.SmolVLMForConditionalGeneration(config)


def gemma3() -> nn.Module:
    config = hf.Gemma3Config(
        text_config={**text(), **SPECIAL, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        vision_config=EYE,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        boi_token_index=96,
        eoi_token_index=97,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def mllama() -> nn.Module:
    eye = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 1}
    eye |= {"attention_heads": 2, "image_size": 16, "patch_size": 8, "max_num_tiles": 1}
    eye |= {"supported_aspect_ratios": [[1, 1]], "intermediate_layers_indices": [0], "vision_output_dim": 48}
    words = text(4, cross_attention_layers=[2], rope_parameters=ROPE, **SPECIAL)
    config = hf.MllamaConfig(text_config=words, vision_config=eye, image_token_index=IMAGE)
    return hf.MllamaForConditionalGeneration(config)


def florence2() -> nn.Module:
    words = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 48))}
    words |= {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": VOCAB}
    words |= {"init_std": 0.3, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    eye = {"embed_dim": [16, 32], "depths": [1, 1], "num_heads": [2, 4], "num_groups": [2, 4], "patch_size": [3, 3]}
    eye |= {"patch_stride": [4, 2], "patch_padding": [1, 1], "patch_prenorm": [False, True], "window_size": 4}
    eye |= {"projection_dim": 32, "max_temporal_embeddings": 4, "max_position_embeddings": 8}
    words["max_position_embeddings"] = 64
    config = hf.Florence2Config(text_config=words, vision_config=eye, image_token_id=IMAGE)
    return hf.Florence2ForConditionalGeneration(config)


def internvl() -> nn.Module:
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", **text(), **SPECIAL},
        vision_config={**EYE, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return hf.InternVLForConditionalGeneration(config)


def clip() -> nn.Module:
    words = {k: v for k, v in text().items() if k != "num_key_value_heads"} | SPECIAL
    config = hf.CLIPConfig(text_config={**words, "max_position_embeddings": 20}, vision_config=EYE, projection_dim=16)
    return hf.CLIPModel(config)


@dataclass(frozen=True)
class Kind:
    """How to make a model, the path of its text layers, of the output projection in one, and its inputs."""

    build: Callable[[], nn.Module]
    layers: str
    out: str
    inputs: Callable[[torch.Generator], dict[str, torch.Tensor]]


def _pictured(prefix: tuple[int, ...], *shape: int, **fixed: Any) -> Callable[[torch.Generator], dict[str, Any]]:
    """Inputs: a picture's tokens, five words, and pixels of the shape."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        words = torch.randint(3, 90, (5,), generator=generator)
        ids = torch.cat([torch.tensor(prefix, dtype=torch.long), words])[None]
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        given |= {"pixel_values": torch.randn(*shape, generator=generator), **fixed}
        if fixed.get("image_grid_thw") is not None or 97 in prefix:
            given["mm_token_type_ids"] = (ids == IMAGE).long()
        if 97 in prefix:
            given["token_type_ids"] = given.pop("mm_token_type_ids")
        if "aspect_ratio_ids" in fixed:
            given["cross_attention_mask"] = torch.ones(1, ids.shape[1], 1, 1, dtype=torch.long)
        return given

    return make


_ONE = torch.ones(1, 1, dtype=torch.long)
_GRID = torch.tensor([[1, 4, 4]])
_TILES = {"aspect_ratio_ids": _ONE, "aspect_ratio_mask": _ONE[None]}
DECODER, OUT = "model.language_model.layers", "self_attn.o_proj"
KINDS = {
    "LLaVA": Kind(llava, DECODER, OUT, _pictured((5, *[IMAGE] * 4), 1, 3, 16, 16)),
    "Qwen2.5-VL": Kind(qwen2_5_vl, DECODER, OUT, _pictured((5, 96, *[IMAGE] * 4, 95), 16, 96, image_grid_thw=_GRID)),
    "SmolVLM": Kind(smolvlm, "model.text_model.layers", OUT, _pictured((5, *[IMAGE] * 4), 1, 1, 3, 16, 16)),
    "Gemma 3": Kind(gemma3, DECODER, OUT, _pictured((5, 96, *[IMAGE] * 4, 97), 1, 3, 16, 16)),
    "Mllama": Kind(mllama, DECODER, OUT, _pictured((IMAGE, 5), 1, 1, 1, 3, 16, 16, **_TILES)),
    "Florence-2": Kind(
        florence2, "model.language_model.decoder.layers", "self_attn.out_proj", _pictured((IMAGE,) * 17, 1, 3, 32, 32)
    ),
    "InternVL": Kind(internvl, DECODER, OUT, _pictured((5, *[IMAGE] * 4), 1, 3, 16, 16)),
    "CLIP": Kind(clip, "text_model.encoder.layers", "self_attn.out_proj", _pictured((1,), 1, 3, 16, 16)),
}


@dataclass
class Case:
    """A tiny model in fp32 with inputs, and the paths that name one attention head in it."""

    name: str
    model: Any
    inputs: dict[str, torch.Tensor]
    layers_path: str
    out_path: str
    around: Any = None  # what a library put around the model for good, where one does that

    @property
    def layers(self) -> nn.ModuleList:
        return operator.attrgetter(self.layers_path)(self.model)

    @property
    def out(self) -> nn.Linear:
        return operator.attrgetter(self.out_path)(self.layers[LAYER])

    @property
    def width(self) -> int:
        """Of one head, where it enters the output projection."""
        return self.out.in_features // 4

    @property
    def span(self) -> slice:
        """The columns of the head that is edited."""
        return slice(HEAD * self.width, (HEAD + 1) * self.width)

    def logits(self, **more: torch.Tensor) -> torch.Tensor:
        """What the model says, fp32; of two-stream models the scores."""
        with torch.no_grad():
            output = self.model(**{**self.inputs, **more})
        return output.logits if hasattr(output, "logits") else output.logits_per_image

    def write(self, **more: Any) -> torch.Tensor:
        """Eight tokens, greedily unless told otherwise."""
        with torch.no_grad():
            return self.model.generate(**self.inputs, **{**GREEDY, **more})


GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def case(name: str) -> Case:
    """A fresh model under SDPA, from seed 0."""
    hf.logging.set_verbosity_error()
    kind = KINDS[name]
    torch.manual_seed(0)
    model = kind.build().eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if "gate" in key and parameter.numel() == 1:  # Mllama's cross-attention starts switched off
            nn.init.constant_(parameter, 0.7)
    model.config.architectures, model.config.name_or_path = [type(model).__name__], "tiny"
    model.set_attn_implementation("sdpa")
    inputs = kind.inputs(torch.Generator().manual_seed(0))
    if "mm_token_type_ids" not in inspect.signature(model.forward).parameters:
        inputs.pop("mm_token_type_ids", None)  # before transformers 5.3
    if name == "Florence-2":
        inputs["decoder_input_ids"] = torch.tensor([[2, 5, 6, 7, 8]])
    if name == "CLIP":
        inputs["input_ids"] = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 9, 10, 2]])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return Case(name, model, inputs, kind.layers, kind.out)


def vector() -> torch.Tensor:
    """What the probes add to the residual stream behind layer 0, fp32 (32,)."""
    return 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def without_head(one: Case) -> Iterator[None]:
    """The truth about an edited head: its columns of the output projection are zero."""
    kept = one.out.weight.detach().clone()
    with torch.no_grad():
        one.out.weight[:, one.span] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            one.out.weight.copy_(kept)


@contextlib.contextmanager
def hooked(one: Case, rows: Callable[[int, int], slice | None]) -> Iterator[None]:
    """The truth about positions: `vector()` added behind layer 0 at the rows that `rows(seen, now)` names."""
    seen = 0

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal seen
        hidden = output[0] if isinstance(output, tuple) else output
        now = hidden.shape[1]
        chosen = rows(seen, now)
        seen += now
        if chosen is None:
            return output
        hidden = hidden.clone()
        hidden[:, chosen] += vector()
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = one.layers[0].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def hooks_left(model: nn.Module) -> int:
    """Hooks on the model's modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
