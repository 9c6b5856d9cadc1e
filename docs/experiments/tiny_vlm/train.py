"""Stage 2: teach the text tower to answer plain questions and to find the task in the demonstrations.

The vision tower of stage 1 stays frozen, so its features are computed once for a pool of pictures:

    cd docs/experiments/tiny_vlm
    python train.py --compile --sprites sprites.npz --vision runs/vision --out runs/first
    python train.py --compile --sprites sprites.npz --vision runs/vision --out runs/second --phase second \\
        --start runs/first/best
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from batches import ID, PHASES, PICTURE, SHOTS, make_batch, pick, plain_turn
from common import cosine, optimiser, prefetch, progress_bar, resume, save
from model import build_model, build_processor, build_tokenizer
from scenes import compose, load_bank, sample_labels
from torch import nn
from transformers import AutoModelForImageTextToText
from vision import Seer, to_tensor

from steer.zoo._tasks import HEADLINE, PLAIN, RULES
from steer.zoo._words import ATTRIBUTES, VALUES

POOL = 100_000  # training pictures with cached features
POOL_SEED = 2
EVERY = 500  # steps between checkpoints


def forward(model: nn.Module, ids: torch.Tensor, features: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Logits [m, words] at the m positions where the mask `at` [b, length] is true; features [pictures, tokens, width].

    Padding is on the right and attention is causal, so no attention mask is needed.
    """
    core = model.model
    embeds = core.language_model.embed_tokens(ids)
    pictures = core.multi_modal_projector(features).to(embeds.dtype)
    embeds = embeds.masked_scatter((ids == ID["<image>"])[..., None], pictures)
    return model.lm_head(core.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[at])


def build_pool(args: argparse.Namespace, model: nn.Module, size: int) -> tuple[Path, torch.Tensor]:
    """Compose `size` training pictures; returns the file of their labels and their features [size, tokens, width]."""
    path = args.out / "labels.npy"
    bank = load_bank(args.sprites)
    labels, features = [], []
    tower = model.model.vision_tower
    for part in range(0, size, 1000):
        rng = np.random.default_rng([POOL_SEED, part, 7])
        y = sample_labels(min(1000, size - part), rng, True)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            seen = tower(to_tensor(compose(y, bank, rng)), output_hidden_states=True).hidden_states[-1][:, 1:]
        labels.append(y)
        features.append(seen.to(torch.bfloat16))
    np.save(path, np.concatenate(labels))
    return path, torch.cat(features)


@torch.no_grad()
def dev_scores(model: nn.Module, bank: np.ndarray, n: int) -> dict[str, float]:
    """Accuracy on unbiased dev pictures: n plain questions of each sort, n bare queries after 0, 8 and 16 shots."""
    rng = np.random.default_rng([POOL_SEED, 10**9])
    y = sample_labels(2 * n, rng, False)
    words = [{a: VALUES[a][v] for a, v in zip(ATTRIBUTES, row, strict=True)} for row in y.tolist()]
    where = {(a, v): np.flatnonzero(y[:, i] == j) for i, a in enumerate(ATTRIBUTES) for j, v in enumerate(VALUES[a])}
    features = torch.cat(
        [
            model.model.vision_tower(to_tensor(part), output_hidden_states=True).hidden_states[-1][:, 1:]
            for part in np.array_split(compose(y, bank, rng), 8)
        ]
    )
    scores = {}
    for rule in [RULES[name] for name in HEADLINE] + PLAIN:
        asked = [ID[w] for w in rule.question.replace("?", " ?").split()]
        for shots in (0,) if rule.question != "?" else (0, 8, 16):
            right, turn = 0, len(PICTURE) + len(asked) + 2
            for _ in range(0, n, 50):
                chosen = [pick(rule, shots + 1, words, where, rng) for _ in range(50)]
                said = [[ID[rule.answer(words[i])] for i in row] for row in chosen]
                ids = [[t for a in row for t in [*PICTURE, *asked, a, ID["<end>"]]] for row in said]
                ids = torch.tensor(ids)[:, :-2]
                at = torch.zeros_like(ids, dtype=torch.bool)
                at[:, turn * (shots + 1) - 3] = True
                with torch.autocast("cpu", torch.bfloat16):
                    guess = forward(model, ids, features[torch.tensor(chosen).flatten()], at).argmax(-1)
                right += sum(row[-1] == int(g) for row, g in zip(said, guess, strict=True))
            scores[f"{rule.name}@{shots}" if rule.question == "?" else rule.name] = right / n
    scores["exists"] = exists_area(model, words, features, rng)
    for shots in (0, 8, 16):
        scores[f"headline@{shots}"] = float(np.mean([scores[f"{name}@{shots}"] for name in HEADLINE]))
    scores["plain"] = float(np.mean([scores[f"plain:{a}"] for a in ATTRIBUTES]))
    return scores


def exists_area(model: nn.Module, words: list, features: torch.Tensor, rng: np.random.Generator) -> float:
    """How well "yes" tells present from absent objects: area under the ROC curve, which a bias does not change."""
    margins: dict[str, list[torch.Tensor]] = {"yes": [], "no": []}
    for rate, answer in ((1.0, "yes"), (0.0, "no")):
        for part in torch.arange(len(words)).split(50):
            asked = [plain_turn(words[i], "exists", 0, rng, rate)[0] for i in part.tolist()]
            ids = torch.tensor([[*PICTURE, *(ID[w] for w in q.replace("?", " ?").split())] for q in asked])
            at = torch.zeros_like(ids, dtype=torch.bool)
            at[:, -1] = True
            with torch.autocast("cpu", torch.bfloat16):
                logits = forward(model, ids, features[part], at).float()
            margins[answer].append(logits[:, ID["yes"]] - logits[:, ID["no"]])
    present, absent = (torch.cat(margins[answer]) for answer in ("yes", "no"))
    return float((present[:, None] > absent[None]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--vision", type=Path, required=True, help="folder of stage 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase", choices=list(PHASES), default="first")
    parser.add_argument("--start", type=Path, help="folder with weights to go on from")
    parser.add_argument("--steps", type=int, help="default: the phase's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the text tower: two to three times as fast")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    phase = PHASES[args.phase]
    torch.manual_seed(phase.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, pool, shots, every, dev = (
        (4, 500, 34, 2, 50) if args.quick else (args.steps or phase.steps, POOL, SHOTS, EVERY, 100)
    )

    processor = build_processor()
    model = build_model(build_tokenizer())
    seer = Seer(model.model.vision_tower)
    seer.load_state_dict(torch.load(args.vision / "last.pt", weights_only=True)["seer"])
    for p in model.model.vision_tower.parameters():
        p.requires_grad_(False)
    labels, features = build_pool(args, model, pool)
    bank = load_bank(args.sprites)
    if args.start:
        model.load_state_dict(AutoModelForImageTextToText.from_pretrained(args.start).state_dict())
    opt = optimiser(model, phase.rate)
    state = resume(args.out / "last.pt", {"model": model}, opt)
    step, best = state["step"], state.get("best", 0.0)
    if args.compile:  # the three lengths of the curriculum are all the shapes there are
        model.model.language_model.compile(dynamic=False)

    make = partial(make_batch, args.phase, labels, steps, shots)
    with progress_bar() as bar:
        task = bar.add_task("text", total=steps, completed=step, note="")
        for ids, goal, used in prefetch(make, phase.seed, step, steps):
            for group in opt.param_groups:
                group["lr"] = cosine(step, steps, phase.rate)
            ids, goal = torch.from_numpy(ids), torch.from_numpy(goal)
            at = goal != -100
            with torch.autocast("cpu", torch.bfloat16):
                logits = forward(model, ids, features[torch.from_numpy(used)], at)
            wanted = goal[at]
            losses = nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
            # the end word is trivial: it counts a tenth
            weight = torch.where(wanted == ID["<end>"], 0.1, 1.0)
            loss = (losses * weight).sum() / weight.sum()
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            step += 1
            bar.update(task, completed=step, note=f"loss {loss.item():.2f}")
            if step % every == 0 or step == steps:
                model.eval()
                with torch.compiler.set_stance("force_eager"):
                    scores = dev_scores(model, bank, dev)
                # in-context ability can fade: keep the checkpoint with the best sum of the targets on dev pictures
                merit = scores["plain"] + scores["headline@8"] + scores["headline@16"]
                if merit > best:
                    best = merit
                    model.save_pretrained(args.out / "best")
                    processor.save_pretrained(args.out / "best")
                save(args.out / "last.pt", step, {"model": model}, opt, best=best)
                line = {"step": step, "loss": loss.item(), **scores}
                print(json.dumps({k: round(v, 3) for k, v in line.items()}), flush=True)
                model.train()


if __name__ == "__main__":
    main()
