"""The plugin against the authors' logits: their tensors in its method, their texts by its layout, two ways to score."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F

import steer
from tests.prompts import parity
from tests.prompts.reference import golden

CLASSES = ["airplane", "fire_extinguisher", "cat", "Yorkshire Terrier"]
SLOTS, START, END = 77, 49406, 49407
# The words of the golden files with the ids that CLIP's tokenizer gave them.
WORDS = {
    "!": 0, "x": 343, "a": 320, "photo": 1125, "of": 539, ".": 269, "airplane": 16451, "fire": 1769, "extin": 38567,
    "##guisher": 4510, "cat": 2368, "yorkshire": 8633, "terrier": 14455, "b": 65, "<s>": START, "</s>": END,
}  # fmt: skip
SHARED, OWN = {"context": 4}, {"context": 4, "class_specific": True}
COUPLED = {"context": 2, "text_depth": 3, "vision_depth": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: SHARED if name.endswith("shared") else OWN for name in golden.COOP},
    "cocoop": {},
    "maple": COUPLED,
    "coprompt": COUPLED,
    "promptsrc": {"text_depth": 3, "vision_depth": 3},
}
# The gold is up to 1.4e-5 off in itself, and a right run in fp32 may be as far on the other side.
BARS = {torch.float64: 2e-5, torch.float32: 5e-5}


def processor() -> Any:
    """A tokenizer of the few words above, padding with 0, and pictures that are numbers of golden images."""
    inner = Tokenizer(models.WordPiece(WORDS, unk_token="!"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="!", model_max_length=SLOTS
    )
    theirs = golden.read("cocoop")["images"]

    def pixels(images: list[Any], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        return {"pixel_values": theirs[[one.getpixel((0, 0))[0] for one in images]]}

    return SimpleNamespace(tokenizer=tokenizer, image_processor=pixels)


PICTURES = [Image.new("RGB", (1, 1), (number, 0, 0)) for number in range(3)]


@pytest.fixture(scope="module")
def clips() -> dict[torch.dtype, Any]:
    """The golden model, and the same in fp64."""
    return {torch.float32: golden.model(), torch.float64: copy.deepcopy(golden.model()).double()}


def method(name: str, model: Any) -> Any:
    """The golden file's method, bound, with its tensors."""
    preset, _, kind = name.partition("_")
    position = {"class_position": kind.partition("_")[0]} if kind else {}
    made = steer.create(preset, classes=CLASSES, **OPTIONS[name], **position)
    theirs = golden.learned(golden.read(name))
    made.tensors = {key: theirs.pop(parity.renamed(made, key)).to(model.dtype) for key in names(made)}
    assert not theirs, "every tensor of the file has its place"
    made.fitted_classes = list(CLASSES)
    return made.bind(model, processor())


def names(made: Any) -> list[str]:
    """The plugin's names of what it learns, by its documentation."""
    kept = ["context", *(f"text.{layer}" for layer in range(1, made.text_depth))]
    if made.coupled:
        kept += [f"couple.{layer}.{part}" for layer in range(made.vision_depth) for part in ("weight", "bias")]
    elif made.vision_context:
        kept += [f"vision.{layer}" for layer in range(made.vision_depth)]
    if made.conditional:
        kept += [f"meta.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")]
    if made.image_adapter:
        kept += [f"{side}_adapter.{layer}.weight" for side in ("image", "text") for layer in (0, 1)]
    return kept


def called(model: Any, made: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The scores of the model's own call inside a session."""
    with torch.no_grad(), steer.attach(model, made):
        return model(**inputs).logits_per_image


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("name", golden.NAMES)
def test_logits_are_the_authors(name, dtype, clips):
    made, wanted = method(name, clips[dtype]), golden.read(name)["logits"]
    for ours in (made.scores(PICTURES), called(clips[dtype], made, made.inputs(PICTURES))):
        assert (ours - wanted).abs().max() < BARS[dtype]


@pytest.mark.parametrize("name", golden.NAMES)
def test_what_is_behind_a_text_changes_nothing(name, clips):
    """Texts are as long as the longest; with the authors' 77 tokens, or their very ids, the logits are the same."""
    model = clips[torch.float64]
    made = method(name, model)
    given = made.inputs(PICTURES)
    assert given["input_ids"].shape == (4, 10)
    short = called(model, made, given)
    padded = {key: F.pad(given[key], (0, SLOTS - 10)) for key in ("input_ids", "attention_mask")}
    assert (called(model, made, {**given, **padded}) - short).abs().max() < 1e-10
    if made.class_position == "end":
        theirs = {"input_ids": golden.read(name)["ids"], "pixel_values": given["pixel_values"]}
        assert (called(model, made, theirs) - short).abs().max() < 1e-10


@pytest.mark.parametrize("name", golden.NAMES)
def test_another_activation_gives_other_logits(name, clips, monkeypatch):
    model = clips[torch.float32]
    for module in model.modules():
        if hasattr(module, "activation_fn"):
            monkeypatch.setitem(module._modules, "activation_fn", torch.nn.GELU())
    made, wanted = method(name, model), golden.read(name)["logits"]
    assert (made.scores(PICTURES) - wanted).abs().max() > 1e-2
    assert (called(model, made, made.inputs(PICTURES)) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("name", golden.NAMES)
def test_texts_are_laid_out_as_by_the_authors(name, clips):
    """Their ids have the vectors first, always: where the name goes among them, they say when they join embeddings."""
    made, theirs = method(name, clips[torch.float32]), golden.read(name)["ids"]
    given, count = made.prompts_of_classes(), made.context
    for ids, slots, row in zip(given.inputs["input_ids"], given.slots.tolist(), theirs, strict=True):
        rest = [token for place, token in enumerate(ids.tolist()) if place not in slots]
        whole = rest + [0] * (SLOTS - count - len(rest))
        assert whole == [START, *row[1 + count :].tolist()]
        end = int(row.argmax())
        assert ids[end] == END
        assert ids.argmax() == end
        before = {"end": count, "middle": count // 2, "front": 0}[made.class_position]
        # SOS, `before` vectors, the name, the others, full stop and end
        others = range(end - 1 - (count - before), end - 1) if before < count else ()
        assert slots == [*range(1, 1 + before), *others]
