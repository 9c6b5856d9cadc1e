"""Stage 1: teach the vision tower to see, with one linear head for each attribute (the heads are thrown away).

python docs/experiments/tiny_vlm/vision.py --sprites sprites.npz --out runs/vision
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import cosine, optimiser, prefetch, progress_bar, resume, save
from model import build_model, build_tokenizer
from scenes import compose, load_bank, sample_labels
from torch import nn

from steer.zoo._words import ATTRIBUTES, VALUES

SEED = 1
STEPS = 4000
BATCH = 256  # pictures
RATE = 1.5e-3
EVERY = 250  # steps between checkpoints


class Seer(nn.Module):
    """The vision tower of a LLaVA model and one linear head for each attribute on the mean of its picture tokens."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, len(VALUES[a])) for a in ATTRIBUTES)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Pictures [n, 3, side, side] in -1..1 to one [n, values] logit tensor for each attribute."""
        tokens = self.tower(x, output_hidden_states=True).hidden_states[-1][:, 1:]
        return [head(self.norm(tokens.mean(1))) for head in self.heads]


_bank: dict[Path, np.ndarray] = {}


def make_batch(sprites: Path, size: int, train: bool, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [size, side, side, 3] uint8 and labels [size, 7]."""
    if sprites not in _bank:
        _bank[sprites] = load_bank(sprites)
    rng = np.random.default_rng([seed, step])
    y = sample_labels(size, rng, train)
    return compose(y, _bank[sprites], rng), y


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, side, side, 3] to float [n, 3, side, side] in -1..1, as the processor does."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def accuracy(seer: Seer, pictures: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of right answers for each attribute."""
    logits = [seer(to_tensor(part)) for part in np.array_split(pictures, 8)]
    return {
        a: float((torch.cat([part[i] for part in logits]).argmax(-1).numpy() == labels[:, i]).mean())
        for i, a in enumerate(ATTRIBUTES)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, batch, every = (4, 16, 2) if args.quick else (args.steps, BATCH, EVERY)

    model = build_model(build_tokenizer())
    seer = Seer(model.model.vision_tower)
    opt = optimiser(seer, RATE)
    step = resume(args.out / "last.pt", {"seer": seer}, opt)["step"]
    dev = make_batch(args.sprites, 2048 if not args.quick else 64, False, SEED, 10**9)

    with progress_bar() as bar:
        task = bar.add_task("vision", total=steps, completed=step, note="")
        for pictures, labels in prefetch(partial(make_batch, args.sprites, batch, True), SEED, step, steps):
            for group in opt.param_groups:
                group["lr"] = cosine(step, steps, RATE)
            # bfloat16 halves the time of a step on processors that know it; weights stay in float32
            with torch.autocast("cpu", torch.bfloat16):
                logits = seer(to_tensor(pictures))
            y = torch.from_numpy(labels)
            losses = [nn.functional.cross_entropy(z.float(), y[:, i]) for i, z in enumerate(logits)]
            # the object is the hard one
            loss = sum(losses) + losses[0]
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(seer.parameters(), 1.0)
            opt.step()
            step += 1
            bar.update(task, completed=step, note=f"loss {loss.item():.2f}")
            if step % every == 0 or step == steps:
                save(args.out / "last.pt", step, {"seer": seer}, opt)
                seen = accuracy(seer, *dev)
                print(step, f"{loss.item():.3f}", {a: round(v, 3) for a, v in seen.items()}, flush=True)


if __name__ == "__main__":
    main()
