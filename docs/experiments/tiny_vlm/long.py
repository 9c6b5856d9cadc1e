"""Teach tiny-vlm long contexts: from the shipped weights, a short further training with up to 128 demonstrations.

    python long.py --compile --sprites sprites.npz --out runs/long

The shipped model was trained with up to 17 pictures in a prompt and is less often right after more than 32. This goes
on with the same tasks, and half of the same training pictures, at five lengths, the longest 129 pictures = 1,548
tokens. The last weights are what is written, to OUT/model; nothing is chosen by a score. About a quarter of an hour on
one core.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import batches
import numpy as np
import torch
from batches import ID, SHOTS, make_batch
from common import cosine, optimiser, prefetch, progress_bar, resume, save
from export import write_half
from model import build_processor
from torch import nn
from train import build_pool, forward
from transformers import AutoModelForImageTextToText

from steer import zoo

POOL, QUICK_POOL = 50_000, 500  # training pictures with cached features
LONGEST = 2048  # tokens, what the config and the tokenizer say from now on
EVERY = 100  # steps between checkpoints
LONG = batches.Phase(
    seed=4,
    steps=1000,
    rate=6e-4,
    mix={"attribute": 0.40, "conditional": 0.25, "match": 0.05, "relabel": 0.10, "plain": 0.20},
    lengths=((0.0, (9, 129, 17, 65, 33)),),
    nonsense=0.5,
    exists=1,
)
batches.PHASES["long"] = LONG


def loss_of(model: nn.Module, ids: np.ndarray, goal: np.ndarray, features: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the answers of one batch, as in train.py: the end word counts a tenth."""
    goals = torch.from_numpy(goal)
    at = goals != -100
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward(model, torch.from_numpy(ids), features, at)
    losses = nn.functional.cross_entropy(logits.float(), goals[at], reduction="none")
    weight = torch.where(goals[at] == ID["<end>"], 0.1, 1.0)
    return (losses * weight).sum() / weight.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--start", type=Path, default=zoo.folder(), help="folder with weights to go on from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the text tower: two to three times as fast")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(LONG.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, pool, shots = (5, QUICK_POOL, 129) if args.quick else (LONG.steps, POOL, SHOTS)

    model = AutoModelForImageTextToText.from_pretrained(args.start, dtype=torch.float32)
    model.config.text_config.max_position_embeddings = LONGEST
    model.model.vision_tower.requires_grad_(False)
    labels, features = build_pool(args, model, pool)
    opt = optimiser(model, LONG.rate)
    step = resume(args.out / "last.pt", {"model": model}, opt)["step"]
    model.train()
    if args.compile:
        model.model.language_model.compile(dynamic=False)

    make = partial(make_batch, "long", labels, steps, shots)
    with progress_bar() as bar:
        task = bar.add_task("long", total=steps, completed=step, note="")
        for ids, goal, used in prefetch(make, LONG.seed, step, steps):
            for group in opt.param_groups:
                group["lr"] = cosine(step, steps, LONG.rate, warmup=50)
            loss = loss_of(model, ids, goal, features[torch.from_numpy(used)])
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            step += 1
            bar.update(task, completed=step, note=f"loss {loss.item():.2f}")
            if step % EVERY == 0 or step == steps:
                save(args.out / "last.pt", step, {"model": model}, opt)
                print(json.dumps({"step": step, "loss": round(loss.item(), 3)}), flush=True)

    processor = build_processor()
    processor.tokenizer.model_max_length = LONGEST
    write_half(model, processor, args.out / "model")


if __name__ == "__main__":
    main()
