"""Processors of three kinds, built without a hub: centre crop, dynamic resolution in merged patches, and tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

WORDS = [
    "a",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "and",
    "dog",
    "what",
    "colour",
    "is",
    "it",
    "?",
    "user",
    ":",
    "category",
]
SPECIAL = ["<pad>", "<unk>", "<s>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
SPECIAL += [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]


def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One id for each lower-case word; text comes back with spaces between all words."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return _fast(core)


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = ()) -> hf.PreTrainedTokenizerFast:
    """Bytes as GPT-2 writes them, with a few merges; a letter outside ASCII is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab, list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return _fast(core)


def _fast(core: Tokenizer) -> hf.PreTrainedTokenizerFast:
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
        padding_side="left",
    )


def cropping(side: int = 16, patch: int = 4, crop: bool = True) -> Any:
    """Shortest edge to `side`, centre crop to a square, one token a patch, raster order."""
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": side} if crop else {"height": side, "width": side},
        crop_size={"height": side, "width": side},
        do_center_crop=crop,
    )
    return hf.LlavaProcessor(
        image_processor=pictures,
        tokenizer=word_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def joining(side: int = 16, patch: int = 4) -> Any:
    """The whole picture, then tiles of it joined into one grid with a token behind each line; padding is cut off."""
    grids = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=grids
    )
    return hf.LlavaNextProcessor(
        pictures,
        word_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def tiling(side: int = 32, longest: int = 64, tokens: int = 4, tokenizer: Any = None) -> Any:
    """Tiles of `side` pixels and the whole picture once more, `tokens` each, with words between."""
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": longest}, max_image_size={"longest_edge": side})
    return hf.Idefics3Processor(pictures, tokenizer or word_tokenizer(), image_seq_len=tokens)


class Merging(hf.Qwen2_5_VLProcessor):
    """Qwen2.5-VL's own processor without its part for videos, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = -1
        hf.ProcessorMixin.__init__(self, image_processor, tokenizer)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def merging(patch: int = 4, merge: int = 2, pixels: tuple[int, int] = (64, 4096)) -> Any:
    """Any size that fits the limits, patches as rows, `merge` x `merge` of them a token."""
    size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    return Merging(Qwen2VLImageProcessorPil(patch_size=patch, merge_size=merge, size=size), word_tokenizer())


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
