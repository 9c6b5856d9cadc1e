"""Print what docs/tiny-clip.md says tiny-clip scores, on the shipped weights.

python docs/experiments/tiny_clip/evaluate.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

from steer import zoo

PER_CLASS = 20  # test pictures
TEMPLATES = [
    "a photo of a {}.",
    "a photo of a {}, a type of {kind}.",
    "a drawing of a {}.",
    "an emoji of a {}.",
    "a {}.",
    "{}",
    "x x x x {}.",
    "a noto drawing of a {}.",
    "a big {} at the bottom right on a purple background.",
]
KINDS = {"travel": "travel", "activities": "activity", "animals": "animal", "objects": "object", "smileys": "smiley"}


@torch.no_grad()
def image_features(model: torch.nn.Module, processor: object, pictures: list) -> torch.Tensor:
    """Unit image features [n, 128]."""
    parts = [
        model.get_image_features(**processor(images=pictures[i : i + 256], return_tensors="pt")).pooler_output
        for i in range(0, len(pictures), 256)
    ]
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def text_features(model: torch.nn.Module, processor: object, texts: list[str]) -> torch.Tensor:
    """Unit text features [n, 128]."""
    inputs = processor.tokenizer(texts, padding=True, return_tensors="pt")
    return torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)


def zero_shot(model: torch.nn.Module, processor: object, name: str, style: str, per_class: int) -> dict[str, float]:
    """Accuracy on the test pictures of a set for each template, and for the mean of the templates' features."""
    labels = zoo.classes(name, style)
    drawn = zoo.labelled(name, "test", per_class, style)
    images = image_features(model, processor, [picture for picture, _ in drawn])
    right = torch.tensor([labels.index(label) for _, label in drawn])
    score = lambda text: (images @ text.T).argmax(1).eq(right).float().mean().item()  # noqa: E731
    texts = {
        t: text_features(model, processor, [t.format(c, kind=KINDS.get(name, name)) for c in labels]) for t in TEMPLATES
    }
    scores = {t: score(v) for t, v in texts.items()}
    scores["mean of the first five"] = score(torch.stack(list(texts.values())[:5]).mean(0))
    # no words at all: the nearest mean of 16 fluent training shots, to see what the picture features can give
    shots = [(picture, c) for picture, c in zoo.labelled(name, "train", 16) if c in labels]
    features = image_features(model, processor, [picture for picture, _ in shots])
    scores["nearest mean of 16 fluent shots"] = score(
        torch.nn.functional.normalize(features.view(len(labels), 16, -1).mean(1), dim=-1)
    )
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=zoo.folder("tiny-clip"), help="another folder than the shipped")
    parser.add_argument("--per-class", type=int, default=PER_CLASS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(args.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    print(f"logit scale {model.logit_scale.exp().item():.1f}; {args.per_class} test pictures a class")
    for style in ("fluent", "noto-v1"):
        sets = zoo.picture_sets()
        scores = {name: zero_shot(model, processor, name, style, args.per_class) for name in sets}
        print(f"\n| {style} | " + " | ".join(f"{n} ({len(zoo.classes(n, style))})" for n in sets) + " |")
        print("|---" * (len(sets) + 1) + "|")
        for template in scores[sets[0]]:
            print(f"| {template} | " + " | ".join(f"{scores[n][template]:.3f}" for n in sets) + " |")


if __name__ == "__main__":
    main()
