"""Train tiny-clip from scratch: a contrastive loss over batches of distinct names. One core, under an hour.

python docs/experiments/tiny_clip/train.py --bank sprites.npz --out runs/clip
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import torch
from augment import compose
from captions import COLOURS, KIND_WORDS, caption, vocabulary
from model import build_model, build_processor, build_tokenizer
from names import TRAINED
from torch.nn.functional import cross_entropy

SEED = 1
STEPS = 6800
BATCH = 256  # pairs; a name in two pairs would be its own wrong answer, so names are distinct unless captions tell
RATE = 1.5e-3
WARMUP = 300  # steps
LONG_EVERY = 10  # of so many steps one has long captions,
FULL_AT = (3, 6, 9)  # and these have every name twice, with all that tells the two apart
BLEND = 0.3  # of the pictures mix the drawings of two styles, the named style the stronger
EVERY = 200  # steps between checkpoints
MAX_SCALE = math.log(100.0)  # of the logits, as CLIP


class Batches:
    """Batches that depend on the seed and the step alone, so that a resumed run sees what it would have seen."""

    def __init__(self, bank: Path) -> None:
        data = np.load(bank)
        self.glyphs, self.has = data["bank"], data["has"]
        self.names, self.kinds = data["names"].tolist(), data["kinds"].tolist()
        # a drawing whose name says a direction must not be mirrored, nor one with letters
        told = re.compile(
            r"left|right|increasing|decreasing|digit|clock|arrow|note|calendar|score|moon|map|globe|chart"
        )
        self.mirrors = np.array([not told.search(n) for n in self.names])
        self.styles = list(TRAINED.values())
        self.tokenizer = build_tokenizer(vocabulary(self.names, self.styles))

    def make(self, size: int, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [size, longest] and pictures [size, 3, 48, 48]."""
        rng = np.random.default_rng([seed, step])
        kind = "long" if step % LONG_EVERY == 0 else "full" if step % LONG_EVERY in FULL_AT else "short"
        names = rng.choice(len(self.names), size, replace=False)
        colour = rng.integers(len(COLOURS), size=size)
        if kind == "full":  # every name twice, on two colours: only the attributes tell which picture is meant
            names[size // 2 :] = names[: size // 2]
            colour[size // 2 :] = (colour[: size // 2] + rng.integers(1, len(COLOURS), size // 2)) % len(COLOURS)
        # a random style among those that draw the name, and another one to be blended in
        order = (rng.random((size, len(self.styles))) * self.has[:, names].T).argsort(1)
        style, other = order[:, -1], order[:, -2]
        share = np.where(rng.random(size) < BLEND, rng.uniform(0, 0.5, size), 0).astype(np.float32)
        glyphs = blend(self.glyphs[style, names], self.glyphs[other, names], share)
        pictures, seen = compose(glyphs, rng, self.mirrors[names], colour)
        texts = []
        for i, s, words in zip(names, style, seen, strict=True):
            facts = words | {"name": self.names[i], "kind": KIND_WORDS[self.kinds[i]], "style": self.styles[s]}
            texts.append(caption(rng, facts, kind))
        return self.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"], pictures


def blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mix RGBA glyphs [n, side, side, 4], `share` [n] of the second; what is transparent has no say in the colour."""
    weights = [first[..., 3:] * (1 - share)[:, None, None, None], second[..., 3:] * share[:, None, None, None]]
    alpha = weights[0] + weights[1]
    colour = (first[..., :3] * weights[0] + second[..., :3] * weights[1]) / np.maximum(alpha, 1e-3)
    return np.concatenate([colour, alpha], -1)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    return RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP))))


def optimiser(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--until", type=int, default=None, help="stop at this step of the schedule of --steps")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, size, every = (4, 16, 2) if args.quick else (args.steps, BATCH, EVERY)

    batches = Batches(args.bank)
    model = build_model(batches.tokenizer).train()
    # at these lengths the backward pass of fused attention takes more than half of a step on a CPU
    model.set_attn_implementation("eager")
    opt = optimiser(model)
    step, last = 0, args.out / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=True)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        step = state["step"]
    right = torch.arange(size)
    total, began, first = 0.0, time.time(), step
    until = min(steps, args.until or steps)
    while step < until:
        ids, pictures = batches.make(size, SEED, step)
        for group in opt.param_groups:
            group["lr"] = rate(step, steps)
        # bfloat16 saves time on processors that know it; the weights stay in float32
        with torch.autocast("cpu", torch.bfloat16):
            text = model.get_text_features(ids).pooler_output
            image = model.get_image_features(pictures).pooler_output
        text, image = (torch.nn.functional.normalize(v.float(), dim=-1) for v in (text, image))
        logits = model.logit_scale.exp() * text @ image.T
        loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_SCALE)
        step += 1
        total += loss.item()
        if step % every == 0 or step == until:
            part = last.with_suffix(".part")
            torch.save({"step": step, "model": model.state_dict(), "opt": opt.state_dict()}, part)
            part.replace(last)
            row = {"step": step, "loss": round(total / every, 4), "scale": round(model.logit_scale.exp().item(), 2)}
            print(json.dumps(row | {"s/step": round((time.time() - began) / (step - first), 3)}), flush=True)
            total = 0.0
    model.eval().save_pretrained(args.out / "model")
    build_processor(batches.tokenizer).save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
