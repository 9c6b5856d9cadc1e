"""Stage 2: teach the text tower to answer questions about scenes, under the biased law of training.

The vision tower of stage 1 stays frozen, so its features are computed once for a pool of scenes:

    cd docs/experiments/tiny_scenes
    python train.py --vision runs/vision --out runs/first
    python train.py --vision runs/vision --out runs/second --phase second --start runs/first/last
    python train.py --vision runs/vision --out runs/last --phase last --start runs/second/last
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import nn
from transformers import AutoModelForImageTextToText

sys.path.append(str(Path(__file__).parents[1] / "tiny_vlm"))  # after this folder: only `common` comes from there
from batches import ID, NAMES, PHASES, Batch, Row, lay_out, make_batch
from common import cosine, optimiser, prefetch, progress_bar, resume, save
from model import build_model, build_processor, build_tokenizer
from vision import Seer, labels, to_tensor

from steer import zoo
from steer.zoo._scene_words import NEGATIVES, NOTHING
from steer.zoo._scenes import _TRAIN, compose

POOL = 100_000  # training scenes with cached features
EVERY = 200  # steps between checkpoints
SHOWN = torch.tensor([*(ID[name] for name in NAMES), ID[NOTHING]])  # what a cell can show, as tokens


def see(tower: nn.Module, images: list) -> torch.Tensor:
    """Features [pictures, tokens, width] of RGB pictures."""
    x = to_tensor(np.stack([np.asarray(image) for image in images]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return tower(x, output_hidden_states=True).hidden_states[-1][:, 1:].to(torch.bfloat16)


def build_pool(path: Path, tower: nn.Module, seed: int, size: int) -> torch.Tensor:
    """Compose `size` scenes by the law of training; writes their labels, returns their features."""
    found, features = [], []
    for start in range(0, size, 500):
        part = [compose(_TRAIN, seed, i, True, "law") for i in range(start, min(start + 500, size))]
        found += [labels(scene) for scene in part]
        features.append(see(tower, [scene.image for scene in part]))
    np.save(path, np.array(found))
    return torch.cat(features)


def forward(
    model: nn.Module, ids: torch.Tensor, turn: torch.Tensor, place: torch.Tensor, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states [rows, length, width], and what the projector made of the pictures' tokens."""
    core = model.model
    embeds = core.language_model.embed_tokens(ids)
    pictures = core.multi_modal_projector(features).to(embeds.dtype)
    embeds = embeds.masked_scatter((ids == ID["<image>"])[..., None], pictures)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    seen = causal & ((turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None]))
    out = core.language_model(inputs_embeds=embeds, attention_mask=seen[:, None], position_ids=place, use_cache=False)
    return out.last_hidden_state, pictures


def alignment(model: nn.Module, pictures: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """How badly each picture token resembles the word for what its cell [pictures, 4] shows.

    Words and picture tokens then share a space, in which attention can tell if a word in a question is in the picture.
    """
    words = model.get_input_embeddings().weight[SHOWN]
    logits = nn.functional.rms_norm(pictures.float(), pictures.shape[-1:]) @ words.T
    logits = rearrange(logits, "n (y p x q) c -> n (y x) (p q) c", y=2, x=2, p=2, q=2).mean(2)
    return nn.functional.cross_entropy(logits.flatten(0, 1), cells.flatten())


@torch.no_grad()
def dev_scores(model: nn.Module, scenes: list[zoo.Scene]) -> dict[str, float]:
    """On unbiased scenes: the share of right answers, how often "yes", and the area under the ROC curve."""
    features = see(model.model.vision_tower, [scene.image for scene in scenes])
    scores = {}

    def logits(kind: str, negatives: str = "random") -> tuple[torch.Tensor, torch.Tensor]:
        asked = [zoo.scene_questions(scene, kind, negatives) for scene in scenes]
        rows: list[Row] = [[(True, None), *((False, (q.question, q.answer)) for q in each)] for each in asked]
        ids, turn, place, goal, _ = (torch.from_numpy(a) for a in lay_out(rows, 64))
        with torch.autocast("cpu", torch.bfloat16):
            hidden, _ = forward(model, ids, turn, place, features)
        return model.lm_head(hidden[goal != -100].float()), goal[goal != -100]

    for negatives in NEGATIVES:
        found, goal = logits("exists", negatives)
        found, goal = found[goal != ID["<end>"]], goal[goal != ID["<end>"]]
        margin, true = found[:, ID["yes"]] - found[:, ID["no"]], goal == ID["yes"]
        scores[f"{negatives} area"] = (margin[true][:, None] > margin[~true][None]).float().mean().item()
        scores[f"{negatives} right"] = ((margin > 0) == true).float().mean().item()
    scores["yes"] = (margin > 0).float().mean().item()
    for kind in ("caption", "where", "colour", "count", "say"):
        found, goal = logits(kind)
        scores[kind] = (found.argmax(-1) == goal)[goal != ID["<end>"]].float().mean().item()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vision", type=Path, required=True, help="folder of stage 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase", choices=list(PHASES), default="first")
    parser.add_argument("--start", type=Path, help="folder with weights to go on from")
    parser.add_argument("--steps", type=int, help="default: the phase's own")
    parser.add_argument("--pool", type=int, default=POOL)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    phase = PHASES[args.phase]
    torch.manual_seed(phase.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, pool, every = (4, 500, 2) if args.quick else (args.steps or phase.steps, args.pool, EVERY)

    processor = build_processor()
    model = build_model(build_tokenizer())
    seer = Seer(model.model.vision_tower)
    seer.load_state_dict(torch.load(args.vision / "last.pt", weights_only=True)["seer"])
    for p in model.model.vision_tower.parameters():
        p.requires_grad_(False)
    path = args.out / "labels.npy"
    features = build_pool(path, model.model.vision_tower, phase.pool, pool)
    cells = torch.from_numpy(np.load(path))[:, :4]
    dev = zoo.scenes("dev", 300, word="law")
    if args.start:
        model.load_state_dict(AutoModelForImageTextToText.from_pretrained(args.start).state_dict())
    opt = optimiser(model, phase.rate)
    step = resume(args.out / "last.pt", {"model": model}, opt)["step"]

    make = partial(make_batch, args.phase, path, steps, args.quick)
    with progress_bar() as bar:
        task = bar.add_task("text", total=steps, completed=step, note="")
        for batch in prefetch(make, phase.seed, step, steps):
            for group in opt.param_groups:
                group["lr"] = cosine(step, steps, phase.rate)
            loss, note = train_step(model, opt, batch, features, cells, phase.align)
            step += 1
            bar.update(task, completed=step, note=note)
            if step % every == 0 or step == steps:
                model.eval()
                scores = dev_scores(model, dev[: 20 if args.quick else None])
                model.save_pretrained(args.out / "last")
                processor.save_pretrained(args.out / "last")
                save(args.out / "last.pt", step, {"model": model}, opt)
                line = {"step": step, "loss": loss, **scores}
                print(json.dumps({k: round(v, 3) for k, v in line.items()}), flush=True)
                model.train()


def train_step(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    batch: Batch,
    features: torch.Tensor,
    cells: torch.Tensor,
    align: float,
) -> tuple[float, str]:
    """One step; returns the loss of the answers, and it in words with the alignment's."""
    ids, turn, place, goal, weight, used = (
        torch.from_numpy(a) for a in (batch.ids, batch.turn, batch.place, batch.goal, batch.weight, batch.used)
    )
    at = goal != -100
    with torch.autocast("cpu", torch.bfloat16):
        hidden, pictures = forward(model, ids, turn, place, features[used])
        logits = model.lm_head(hidden[at])
    losses = nn.functional.cross_entropy(logits.float(), goal[at], reduction="none")
    loss = (losses * weight[at]).sum() / weight[at].sum()
    apart = alignment(model, pictures, cells[used])
    opt.zero_grad()
    (loss + align * apart).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    return loss.item(), f"answers {loss.item():.2f}, alignment {apart.item():.2f}"


if __name__ == "__main__":
    main()
