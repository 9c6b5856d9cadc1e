"""What the memories are tried on: two models, and for each the demonstrations of a memory and the questions to ask it.

- Pictures: tiny-vlm, each demonstration a picture, the bare query "?" and an answer of one word: 12 tokens. Its
  training ended at 17 pictures, and beyond 32 it is less often right; `load_vlm(folder)` takes the weights that
  tiny_vlm/long.py makes, which were trained with up to 129.
- Words: SmolLM2-135M-Instruct after rounding to 4 bits (vectors/smollm2.py says where it is from), one line
  "question -> answer" for each demonstration: about 6 tokens.
- Passkeys: the same model, a few codes among sentences that say nothing.

The lists were written by eye, one clear answer each and no antonym in two pairs; verbs and countries are from
vectors/words.py. Antonyms and countries were then cut, by eye again, to the common and better known ones, because on
the longer lists (245 and 172) the model was right after 24 demonstrations in 0.48 and 0.40 of cases only. No word was
kept or dropped for the model's answer to it.

Demonstrations and questions of one task and seed have no picture and no word in common.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import steer
from steer import zoo
from steer.errors import unknown_name

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parent / "vectors"

TEMPLATE = "{question} -> {answer}\n"
WORDS = {
    "antonyms": HERE / "words" / "antonyms.tsv",
    "past-tense": VECTORS / "words" / "present-past.tsv",
    "capitals": HERE / "words" / "capitals.tsv",
}
CODE = "The code of {question} is {answer}.\n"
NAMES = ("Alice", "Bruno", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "James", "Karen", "Louis")
FILLER = (
    "The grass is green and the sky is blue.",
    "A train leaves the station every hour.",
    "The shop around the corner sells bread and milk.",
    "It rained in the morning and cleared up later.",
    "Most of the chairs in the hall were empty.",
    "She put the book back on the shelf.",
    "The river is wide and slow at this place.",
    "They talked about the weather for a while.",
)


def load_vlm(folder: str | Path | None = None) -> tuple[Any, Any]:
    """tiny-vlm in eval mode and float32 on the CPU, no weight trainable, and its processor.

    Args:
        folder: None for the weights that tiny_vlm/long.py made (in tiny-vlm-long/, trained with up to 129 pictures);
            zoo.folder("tiny-vlm") for the shipped ones.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = folder or HERE / "tiny-vlm-long"
    model = AutoModelForImageTextToText.from_pretrained(path, dtype="float32", local_files_only=True)
    return model.eval().requires_grad_(False), AutoProcessor.from_pretrained(path, local_files_only=True)


def load_words(cache: str | Path | None = None) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in eval mode and float32 on the CPU, no weight trainable, and its tokenizer.

    Raises:
        SteerError: its packages are missing; the message has the command.
    """
    sys.path.insert(0, str(VECTORS))
    try:
        import smollm2
    finally:
        sys.path.remove(str(VECTORS))
    return smollm2.load(cache=cache)


def pictures(task: str, shots: int, queries: int, seed: int) -> tuple[list[steer.Example], list[steer.Example]]:
    """Demonstrations from the "demo" pictures and queries from the "test" pictures, both drawn by the seed.

    Raises:
        SteerError: the pictures give fewer than were asked for.
    """
    demonstrations = zoo.examples(task, "demo", shots, seed=seed)
    asked = zoo.examples(task, "test", queries, seed=seed)
    return _enough(task, demonstrations, shots), _enough(task, asked, queries)


def words(task: str, shots: int, queries: int, seed: int) -> tuple[list[steer.Example], list[steer.Example]]:
    """Demonstrations and queries of one of WORDS, drawn by the seed.

    Of one seed, more demonstrations begin with the fewer, and the queries do not depend on their number.

    Raises:
        UnknownNameError: there is no such task.
        SteerError: its list is too short.
    """
    if task not in WORDS:
        raise unknown_name("task", task, tuple(WORDS))
    lines = WORDS[task].read_text(encoding="utf-8").splitlines()
    drawn = [steer.Example(*line.split("\t")) for line in lines]
    random.Random(f"{task} {seed}").shuffle(drawn)
    _enough(task, drawn, shots + queries)
    return drawn[:shots], drawn[::-1][:queries]


def passkey(codes: int, filler: int, seed: int) -> tuple[str, list[steer.Example]]:
    """A text with codes of four digits, `filler` sentences before, between and after them, and one query for each code.

    A query is asked after the text, in the words of CODE.

    Raises:
        SteerError: there are not so many names.
    """
    rng = random.Random(f"passkey {seed}")
    asked = [steer.Example(name, str(rng.randrange(1000, 10000))) for name in NAMES]
    asked = _enough("passkey", rng.sample(asked, len(asked))[:codes], codes)
    gap = [" ".join(rng.choices(FILLER, k=filler)) + "\n" if filler else "" for _ in range(codes + 1)]
    facts = [CODE.format(question=one.question, answer=one.answer) for one in asked]
    return gap[0] + "".join(fact + after for fact, after in zip(facts, gap[1:], strict=True)), asked


def _enough(task: str, found: Any, wanted: int) -> Any:
    if len(found) < wanted:
        raise steer.SteerError(f"{task!r} has {len(found)} examples here and not the {wanted} that were asked for")
    return found
