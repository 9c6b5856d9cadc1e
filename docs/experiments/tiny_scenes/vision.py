"""Stage 1: teach the vision tower to see, with linear heads that are thrown away.

    python docs/experiments/tiny_scenes/vision.py --out runs/vision

The scenes are uniform and half of the words name what is not there: the eyes have no bias. The text tower gets it.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "tiny_vlm"))  # after this folder: only `common` comes from there
from common import cosine, optimiser, prefetch, progress_bar, resume, save
from model import build_model, build_tokenizer

from steer.zoo._scene_words import CELLS, COLOURS, OBJECTS
from steer.zoo._scenes import _TRAIN, Scene, compose

SEED = 1
STEPS = 2500
BATCH = 128  # pictures
RATE = 1.2e-3
EVERY = 500  # steps between checkpoints
WORDS = ("none", "right", "wrong")  # each in a third of the pictures
NAME = {name: i for i, name in enumerate(OBJECTS)}
COLOUR = {name: i for i, name in enumerate(COLOURS)}
NONE = len(NAME)  # the class of an empty cell and of no word


class Seer(nn.Module):
    """The vision tower and linear heads: the object of each cell, the printed word, the colour of the background."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.object = nn.Linear(width, NONE + 1)
        self.word = nn.Linear(width, NONE + 1)
        self.colour = nn.Linear(width, len(COLOURS))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures [n, 3, side, side] in -1..1 to logits [n, cells, objects + 1], [n, words + 1], [n, colours]."""
        tokens = self.tower(x, output_hidden_states=True).hidden_states[-1][:, 1:]
        # the patches of a cell share one head, so that every patch tells what its own cell shows
        cells = rearrange(tokens, "n (y p x q) d -> n (y x) (p q) d", y=2, x=2, p=2, q=2).mean(2)
        whole = self.norm(tokens.mean(1))
        return self.object(self.norm(cells)), self.word(whole), self.colour(whole)


def labels(scene: Scene) -> list[int]:
    """The object of each cell, the word, the colour: six class numbers."""
    there = {thing.cell: NAME[thing.name] for thing in scene.things}
    return [*(there.get(cell, NONE) for cell in CELLS), NAME.get(scene.word, NONE), COLOUR[scene.colour]]


def make_batch(size: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [size, side, side, 3] uint8 and labels [size, 6]."""
    found = [compose(_TRAIN, seed, step * size + i, False, WORDS[i % 3]) for i in range(size)]
    return np.stack([np.asarray(s.image) for s in found]), np.array([labels(s) for s in found])


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, side, side, 3] to float [n, 3, side, side] in -1..1, as the processor does."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def accuracy(seer: Seer, pictures: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Share of right answers: things in their cells, empty cells, words, no word, colours."""
    parts = [seer(to_tensor(part)) for part in np.array_split(pictures, 8)]
    cells, word, colour = (torch.cat(each).argmax(-1).numpy() for each in zip(*parts, strict=True))
    full, printed = y[:, :4] != NONE, y[:, 4] != NONE
    return {
        "things": (cells == y[:, :4])[full].mean(),
        "empty": (cells == y[:, :4])[~full].mean(),
        "words": (word == y[:, 4])[printed].mean(),
        "no word": (word == y[:, 4])[~printed].mean(),
        "colour": (colour == y[:, 5]).mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, batch, every = (4, 16, 2) if args.quick else (args.steps, BATCH, EVERY)

    seer = Seer(build_model(build_tokenizer()).model.vision_tower)
    opt = optimiser(seer, RATE)
    step = resume(args.out / "last.pt", {"seer": seer}, opt)["step"]
    dev = make_batch(64 if args.quick else 2048, SEED + 1, 0)

    with progress_bar() as bar:
        task = bar.add_task("vision", total=steps, completed=step, note="")
        for pictures, numbers in prefetch(partial(make_batch, batch), SEED, step, steps):
            for group in opt.param_groups:
                group["lr"] = cosine(step, steps, RATE)
            # bfloat16 halves the time of a step on processors that know it; weights stay in float32
            with torch.autocast("cpu", torch.bfloat16):
                cells, word, colour = seer(to_tensor(pictures))
            y = torch.from_numpy(numbers)
            loss = 4 * nn.functional.cross_entropy(cells.flatten(0, 1).float(), y[:, :4].flatten())
            loss = loss + nn.functional.cross_entropy(word.float(), y[:, 4])
            loss = loss + 0.5 * nn.functional.cross_entropy(colour.float(), y[:, 5])
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(seer.parameters(), 1.0)
            opt.step()
            step += 1
            bar.update(task, completed=step, note=f"loss {loss.item():.2f}")
            if step % every == 0 or step == steps:
                save(args.out / "last.pt", step, {"seer": seer}, opt)
                seen = accuracy(seer, *dev)
                print(step, f"{loss.item():.3f}", {k: round(float(v), 3) for k, v in seen.items()}, flush=True)


if __name__ == "__main__":
    main()
