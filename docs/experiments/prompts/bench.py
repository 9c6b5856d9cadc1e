"""The model, pictures and texts that speed and memory are measured on, and both ways to use them.

The model has random weights and ViT-B/32's widths in both towers, with a quarter of its layers, so that all of it fits
into ten minutes of one core. 100 classes of two or three words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import authors_way
import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import steer
from steer import zoo

CLASSES, TOKENS = 100, 77
LAYERS = 3  # of 12
LR = 2e-3
SIZES = {"coop": {"context": 16, "pictures": 32}, "cocoop": {"context": 4, "pictures": 2}}
"""Pictures of one step: CoOp's batch, and as many for CoCoOp as memory holds in the authors' way."""
ASKED = {"coop": 64, "cocoop": 4}
PREDICTED = 32  # in one batch
A_STEP, ASK, ASK_ONE = "a step of fit", "predict", "predict one more"


class Bench:
    """One model, its pictures and texts, and both ways to do each thing."""

    def __init__(self, layers: int = LAYERS, classes: int = CLASSES) -> None:
        torch.manual_seed(0)
        self.tokenizer = zoo.load("tiny-clip")[1].tokenizer
        end, start, pad = (self.tokenizer.convert_tokens_to_ids(one) for one in self._special())
        text = {"num_hidden_layers": layers, "eos_token_id": end, "bos_token_id": start, "pad_token_id": pad}
        vision = {"num_hidden_layers": layers, "patch_size": 32}
        self.model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).eval()
        self.processor = SimpleNamespace(tokenizer=self.tokenizer, image_processor=CLIPImageProcessor())
        names = [name for kind in zoo.picture_sets() for name in zoo.classes(kind) if len(name.split()) in (2, 3)]
        self.names = list(dict.fromkeys(names))[:classes]
        rng = np.random.default_rng(0)
        count = max(ASKED.values())
        self.pictures = [Image.fromarray(one) for one in rng.integers(0, 255, (count, 224, 224, 3), dtype=np.uint8)]
        self.pixels = self.processor.image_processor(self.pictures, return_tensors="pt")["pixel_values"]

    def _special(self) -> tuple[str, str, str]:
        return self.tokenizer.eos_token, self.tokenizer.bos_token, self.tokenizer.pad_token

    def pairs(self, name: str) -> list[tuple[Any, str]]:
        """Labelled pictures of one batch."""
        count = SIZES[name]["pictures"]
        return [(self.pictures[i], self.names[i % len(self.names)]) for i in range(count)]

    def ours(self, name: str, steps: int, **options: Any) -> Any:
        """A fit by steer: one batch an epoch."""
        context = SIZES[name]["context"]
        method = steer.create(name, classes=self.names, context=context, init="")
        given = {"epochs": steps, "batch_size": SIZES[name]["pictures"], "lr": LR, "progress": False, **options}
        return method.fit(self.model, self.processor, self.pairs(name), **given)

    def ours_unfitted(self, name: str) -> Any:
        """Bound, with random tensors, so that nothing but a prediction is seen."""
        method = steer.create(name, classes=self.names, context=SIZES[name]["context"], init="")
        method.tensors = {"context": 0.02 * torch.randn(SIZES[name]["context"], 512)}
        if name == "cocoop":
            net = authors_way.meta_net(self.model).state_dict()
            method.tensors |= {f"meta.{key.replace('2.', '1.')}": value for key, value in net.items()}
        return method.bind(self.model, self.processor)

    def theirs(self, name: str, steps: int, kept: bool = False) -> Any:
        """The same in plain torch: the context, and CoCoOp's network."""
        count = SIZES[name]["pictures"]
        ids, context = self.ids(name), 0.02 * torch.randn(SIZES[name]["context"], 512)
        labels = torch.arange(count) % len(self.names)
        with self.features(count) if kept else _given(self.pixels[:count]) as pixels:
            if name == "coop":
                return authors_way.fit_coop(self.model, ids, pixels, labels, context, steps, LR, count)[0], None
            meta = authors_way.meta_net(self.model)
            return authors_way.fit_cocoop(self.model, ids, pixels, labels, context, meta, steps, LR, count)[0], meta

    def asked(self, name: str, learned: Any, count: int) -> torch.Tensor:
        """Scores in plain torch."""
        ids, (context, meta) = self.ids(name), learned
        pixels = self.pixels[:count]
        if name == "coop":
            return authors_way.predict_coop(self.model, ids, pixels, context, PREDICTED)
        return authors_way.predict_cocoop(self.model, ids, pixels, context, meta, PREDICTED)

    def ids(self, name: str) -> torch.Tensor:
        """Every text with all of its tokens, (K, 77)."""
        method = steer.create(name, classes=self.names, context=SIZES[name]["context"], init="")
        given = method.bind(self.model, self.processor).prompts_of_classes().inputs["input_ids"]
        whole = torch.full((len(given), TOKENS), self.tokenizer.pad_token_id)
        whole[:, : given.shape[1]] = given
        return whole

    @contextmanager
    def features(self, count: int) -> Iterator[torch.Tensor]:
        """Inside, the model looks features of pictures up: what stands for pixels is their numbers."""
        known = self.known[:count]
        self.model.get_image_features = lambda numbers: SimpleNamespace(pooler_output=known[numbers])
        try:
            yield torch.arange(count)
        finally:
            del self.model.get_image_features

    @cached_property
    @torch.no_grad()
    def known(self) -> torch.Tensor:
        """Features of the pictures of a step, (B, 512)."""
        return self.model.get_image_features(self.pixels[: SIZES["coop"]["pictures"]]).pooler_output

    def learned(self, method: Any) -> Any:
        """What a method of steer learned, as the authors' way takes it."""
        tensors = method.tensors
        if "meta.0.weight" not in tensors:
            return tensors["context"], None
        meta = authors_way.meta_net(self.model)
        named = {"0": "meta.0", "2": "meta.1"}
        meta.load_state_dict(
            {f"{i}.{kind}": tensors[f"{n}.{kind}"] for i, n in named.items() for kind in ("weight", "bias")}
        )
        return tensors["context"], meta


@contextmanager
def _given(value: torch.Tensor) -> Iterator[torch.Tensor]:
    yield value
