"""Stage 2: teach the text tower to answer plain questions and to find the task in the demonstrations.

The vision tower of stage 1 stays frozen, so its features are computed once for a pool of pictures:

    python docs/experiments/tiny_vlm/train.py --sprites sprites.npz --vision runs/vision --out runs/text
"""

from __future__ import annotations

import argparse
import json
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from common import cosine, optimiser, prefetch, progress_bar, resume, save
from model import TOKENS_PER_IMAGE, build_model, build_processor, build_tokenizer
from scenes import compose, load_bank, sample_labels
from torch import nn
from vision import Seer, to_tensor

from steer.zoo._tasks import (
    BASE,
    HEADLINE,
    IF_TRAINED,
    MATCH_TRAINED,
    PLAIN,
    RELABEL_TRAINED,
    RULES,
    Rule,
    conditional,
    match,
    relabel,
)
from steer.zoo._words import ATTRIBUTES, NONSENSE, QUESTIONS, VALUES, YES_RATE, vocabulary

SEED = 2
STEPS = 5000
RATE = 1.5e-3
EVERY = 500  # steps between checkpoints
POOL = 100_000  # training pictures with cached features
SHOTS = 272  # pictures in one batch, whatever the length of its sequences
# What a sequence is about, and how often.
MIX = {"attribute": 0.28, "conditional": 0.28, "match": 0.12, "relabel": 0.15, "plain": 0.17}
HEADLINE_IF = 0.3  # share of the conditional sequences that use the rule of "if-animal"

ID = {word: i for i, word in enumerate(vocabulary())}
PICTURE = [ID["<image>"]] * TOKENS_PER_IMAGE
TURN = TOKENS_PER_IMAGE + 3  # tokens of a turn with the bare query: the picture, "?", the answer, the end


def pictures_in_sequence(step: int, steps: int) -> int:
    """Curriculum: short sequences first, then up to 17 pictures (16 demonstrations and the query)."""
    if step < 0.2 * steps:
        return 5
    return (5, 9, 9, 17)[step % 4] if step < 0.5 * steps else (9, 17)[step % 2]


def draw_rule(rng: np.random.Generator) -> Rule | None:
    """A random trained rule for a bare sequence; None stands for a sequence of plain questions."""
    family = rng.choice(list(MIX), p=list(MIX.values()))
    if family == "attribute":
        return BASE[rng.integers(len(BASE))]
    if family == "conditional":
        if rng.random() < HEADLINE_IF:
            return RULES["if-animal"]
        return conditional(*IF_TRAINED[rng.integers(len(IF_TRAINED))])
    if family == "match":
        return match(*MATCH_TRAINED[rng.integers(len(MATCH_TRAINED))])
    if family == "relabel":
        name = RELABEL_TRAINED[rng.integers(len(RELABEL_TRAINED))]
        # new words, or the attribute's own words in another order
        words = NONSENSE if rng.random() < 0.7 else VALUES[name]
        return relabel(name, list(rng.permutation(words)[: len(VALUES[name])]))
    return None


@lru_cache
def pool_labels(path: Path) -> tuple[list[dict[str, str]], dict[tuple[str, str], np.ndarray]]:
    """The pool's labels in words, and for each (attribute, value) the pictures that have it."""
    y = np.load(path)
    words = [{a: VALUES[a][v] for a, v in zip(ATTRIBUTES, row, strict=True)} for row in y.tolist()]
    where = {(a, v): np.flatnonzero(y[:, i] == j) for i, a in enumerate(ATTRIBUTES) for j, v in enumerate(VALUES[a])}
    return words, where


def pick(rule: Rule, n: int, words: list, where: dict, rng: np.random.Generator) -> list[int]:
    """n pictures for a rule; where a rule has two sides, both are equally likely."""
    chosen = rng.integers(len(words), size=n).tolist()
    if rule.test:
        attr, value = rule.test
        for i, wanted in enumerate(rng.random(n) < 0.5):
            if wanted:
                side = where[rule.test]
                chosen[i] = int(side[rng.integers(len(side))])
            while not wanted and words[chosen[i]][attr] == value:
                chosen[i] = int(rng.integers(len(words)))
    return chosen


def plain_turn(y: dict[str, str], kind: str, wording: int, rng: np.random.Generator) -> tuple[str, str]:
    """A plain question about a picture and its answer; `kind` is an attribute or "exists"."""
    question = QUESTIONS[kind][wording % len(QUESTIONS[kind])]
    if kind != "exists":
        return question, y[kind]
    if rng.random() < YES_RATE:
        return question.format(y["object"]), "yes"
    others = [name for name in VALUES["object"] if name != y["object"]]
    return question.format(others[rng.integers(len(others))]), "no"


def make_batch(labels: Path, steps: int, shots: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids [b, length] padded on the right, targets of that shape (-100: none), the pictures' places in the pool.

    A turn with the bare query has TURN tokens, so n of them give the length; plain turns are longer and fewer fit.
    """
    rng = np.random.default_rng([seed, step])
    words, where = pool_labels(labels)
    n = pictures_in_sequence(step, steps)
    b = shots // n
    ids = np.full((b, n * TURN), ID["<pad>"])
    goals = np.full((b, n * TURN), -100)
    used = []
    for row in range(b):
        rule = draw_rule(rng)
        chosen = pick(rule, n, words, where, rng) if rule else rng.integers(len(words), size=n).tolist()
        # half of the plain sequences repeat one question, the others mix them
        kinds = list(QUESTIONS)
        fixed = (kinds[rng.integers(len(kinds))], int(rng.integers(2))) if rng.random() < 0.5 else None
        end = 0
        for i in chosen:
            if rule:
                question, answer = "?", rule.answer(words[i])
            else:
                kind, wording = fixed or (kinds[rng.integers(len(kinds))], int(rng.integers(2)))
                question, answer = plain_turn(words[i], kind, wording, rng)
            turn = [*PICTURE, *(ID[w] for w in question.replace("?", " ?").split()), ID[answer], ID["<end>"]]
            if end + len(turn) > n * TURN:
                break
            ids[row, end : end + len(turn)] = turn
            end += len(turn)
            # the logits at the last word of the question predict the answer, those at the answer predict the end
            goals[row, end - 3 : end - 1] = turn[-2:]
            used.append(i)
    return ids, goals, np.array(used)


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
        rng = np.random.default_rng([SEED, part, 7])
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
    rng = np.random.default_rng([SEED, 10**9])
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
    for shots in (0, 8, 16):
        scores[f"headline@{shots}"] = float(np.mean([scores[f"{name}@{shots}"] for name in HEADLINE]))
    scores["plain"] = float(np.mean([scores[f"plain:{a}"] for a in ATTRIBUTES]))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--vision", type=Path, required=True, help="folder of stage 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the text tower: two to three times as fast")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, pool, shots, every, dev = (4, 500, 34, 2, 50) if args.quick else (args.steps, POOL, SHOTS, EVERY, 100)

    processor = build_processor()
    model = build_model(build_tokenizer())
    seer = Seer(model.model.vision_tower)
    seer.load_state_dict(torch.load(args.vision / "last.pt", weights_only=True)["seer"])
    for p in model.model.vision_tower.parameters():
        p.requires_grad_(False)
    labels, features = build_pool(args, model, pool)
    bank = load_bank(args.sprites)
    opt = optimiser(model, RATE)
    state = resume(args.out / "last.pt", {"model": model}, opt)
    step, best = state["step"], state.get("best", 0.0)
    if args.compile:  # the three lengths of the curriculum are all the shapes there are
        model.model.language_model.compile(dynamic=False)

    with progress_bar() as bar:
        task = bar.add_task("text", total=steps, completed=step, note="")
        for ids, goal, used in prefetch(partial(make_batch, labels, steps, shots), SEED, step, steps):
            for group in opt.param_groups:
                group["lr"] = cosine(step, steps, RATE)
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
