"""Steps of fitting and predictions: steer beside plain torch (authors_way.py), in turn, on a model of random weights.

The model has ViT-B/32's widths in both towers and a third of its layers, so that all of it fits into ten minutes of one
core. 100 classes of two or three words. Steer runs as it does by default; beside that, the same with pictures encoded
in every step by both, and with pictures' features kept by both, which tells where the gain comes from.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import authors_way
import numpy as np
import peak
import torch
from PIL import Image
from runs import Book, Record
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import steer
from steer import zoo

CLASSES, TOKENS, TURNS = 100, 77, 3
LAYERS = 4  # of 12
LR = 2e-3
SIZES = {"coop": {"context": 16, "pictures": 32}, "cocoop": {"context": 4, "pictures": 2}}
"""Pictures of one step: CoOp's batch, and as many for CoCoOp as memory holds in the authors' way."""
ASKED = {"coop": 64, "cocoop": 4}
PREDICTED = 32  # in one batch
STEPS, MORE = 2, 6  # steps of theirs; and of ours beyond the first, in which things are done once
A_STEP, ASK, ASK_ONE = "a step of fit", "predict", "predict one more"


class Bench:
    """One model, its pictures and texts, and both ways to do each thing."""

    def __init__(self, layers: int = LAYERS, classes: int = CLASSES) -> None:
        torch.manual_seed(0)
        self.tokenizer = zoo.load("tiny-clip")[1].tokenizer
        end, start, pad = (self.tokenizer.convert_tokens_to_ids(one) for one in self._special())
        text = {"num_hidden_layers": layers, "eos_token_id": end, "bos_token_id": start, "pad_token_id": pad}
        vision = {"num_hidden_layers": layers, "patch_size": 32}
        self.model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).eval()
        self.processor = SimpleNamespace(tokenizer=self.tokenizer, image_processor=CLIPImageProcessor())
        names = [name for kind in zoo.picture_sets() for name in zoo.classes(kind) if len(name.split()) in (2, 3)]
        self.names = list(dict.fromkeys(names))[:classes]
        rng = np.random.default_rng(0)
        count = max(ASKED.values())
        self.pictures = [Image.fromarray(one) for one in rng.integers(0, 255, (count, 224, 224, 3), dtype=np.uint8)]
        self.pixels = self.processor.image_processor(self.pictures, return_tensors="pt")["pixel_values"]

    def _special(self) -> tuple[str, str, str]:
        return self.tokenizer.eos_token, self.tokenizer.bos_token, self.tokenizer.pad_token

    def pairs(self, name: str) -> list[tuple[Any, str]]:
        """Labelled pictures of one batch."""
        count = SIZES[name]["pictures"]
        return [(self.pictures[i], self.names[i % len(self.names)]) for i in range(count)]

    def ours(self, name: str, steps: int, **options: Any) -> Any:
        """A fit by steer: one batch an epoch."""
        context = SIZES[name]["context"]
        method = steer.create(name, classes=self.names, context=context, init="")
        given = {"epochs": steps, "batch_size": SIZES[name]["pictures"], "lr": LR, "progress": False, **options}
        return method.fit(self.model, self.processor, self.pairs(name), **given)

    def ours_unfitted(self, name: str) -> Any:
        """Bound, with random tensors, so that nothing but a prediction is seen."""
        method = steer.create(name, classes=self.names, context=SIZES[name]["context"], init="")
        method.tensors = {"context": 0.02 * torch.randn(SIZES[name]["context"], 512)}
        if name == "cocoop":
            net = authors_way.meta_net(self.model).state_dict()
            method.tensors |= {f"meta.{key.replace('2.', '1.')}": value for key, value in net.items()}
        return method.bind(self.model, self.processor)

    def theirs(self, name: str, steps: int, kept: bool = False) -> Any:
        """The same in plain torch: the context, and CoCoOp's network."""
        count = SIZES[name]["pictures"]
        ids, context = self.ids(name), 0.02 * torch.randn(SIZES[name]["context"], 512)
        labels = torch.arange(count) % len(self.names)
        with self.features(count) if kept else _given(self.pixels[:count]) as pixels:
            if name == "coop":
                return authors_way.fit_coop(self.model, ids, pixels, labels, context, steps, LR, count)[0], None
            meta = authors_way.meta_net(self.model)
            return authors_way.fit_cocoop(self.model, ids, pixels, labels, context, meta, steps, LR, count)[0], meta

    def asked(self, name: str, learned: Any, count: int) -> torch.Tensor:
        """Scores in plain torch."""
        ids, (context, meta) = self.ids(name), learned
        pixels = self.pixels[:count]
        if name == "coop":
            return authors_way.predict_coop(self.model, ids, pixels, context, PREDICTED)
        return authors_way.predict_cocoop(self.model, ids, pixels, context, meta, PREDICTED)

    def ids(self, name: str) -> torch.Tensor:
        """Every text with all of its tokens, (K, 77)."""
        method = steer.create(name, classes=self.names, context=SIZES[name]["context"], init="")
        given = method.bind(self.model, self.processor).prompts_of_classes().inputs["input_ids"]
        whole = torch.full((len(given), TOKENS), self.tokenizer.pad_token_id)
        whole[:, : given.shape[1]] = given
        return whole

    @contextmanager
    def features(self, count: int) -> Iterator[torch.Tensor]:
        """Inside, the model looks features of pictures up: what stands for pixels is their numbers."""
        with torch.no_grad():
            known = self.model.get_image_features(self.pixels[:count]).pooler_output
        self.model.get_image_features = lambda numbers: SimpleNamespace(pooler_output=known[numbers])
        try:
            yield torch.arange(count)
        finally:
            del self.model.get_image_features

    def learned(self, method: Any) -> Any:
        """What a method of steer learned, as the authors' way takes it."""
        tensors = method.tensors
        if "meta.0.weight" not in tensors:
            return tensors["context"], None
        meta = authors_way.meta_net(self.model)
        named = {"0": "meta.0", "2": "meta.1"}
        meta.load_state_dict(
            {f"{i}.{kind}": tensors[f"{n}.{kind}"] for i, n in named.items() for kind in ("weight", "bias")}
        )
        return tensors["context"], meta


def measure(book: Book) -> None:
    """Write down times, then memory."""
    if "speed" not in book.records:
        book.add("speed", times(Bench()))
    if "memory" not in book.records:
        book.add("memory", peak.measure())


def times(bench: Bench, turns: int = TURNS) -> Record:
    """By situation and task: the medians of both over the turns, and the median of the ratios within a turn."""
    texts = {name: bench.ids(name) for name in SIZES}
    lengths = {name: int((ids != bench.tokenizer.pad_token_id).sum(1).max()) for name, ids in texts.items()}
    apart, ways = {}, {"as they run": {}, "pictures encoded in every step": {}, "pictures' features kept": {}}
    for name in SIZES:
        method = bench.ours(name, 1)
        learned, shown = bench.learned(method), bench.pictures[: SIZES["cocoop"]["pictures"]]
        ours, theirs = method.scores(shown), bench.asked(name, learned, len(shown))
        apart[name] = float((ours - theirs).abs().max() / theirs.abs().max())
        theirs_step = _steps(lambda steps, name=name: bench.theirs(name, steps))
        kept_step = _steps(lambda steps, name=name: bench.theirs(name, steps, kept=True))
        ours_step = _step(lambda steps, name=name: bench.ours(name, steps))
        anew_step = _step(lambda steps, name=name: bench.ours(name, steps, augment="crop"))
        ways["as they run"] |= {
            f"{name}: {A_STEP}": (ours_step, theirs_step),
            f"{name}: {ASK}": (_asks(bench, method, ASKED[name]), _asked(bench, name, learned, ASKED[name])),
            f"{name}: {ASK_ONE}": (
                lambda method=method: _clock(lambda: method.predict(bench.pictures[:1])),
                _asked(bench, name, learned, 1),
            ),
        }
        ways["pictures encoded in every step"][f"{name}: {A_STEP}"] = anew_step, theirs_step
        ways["pictures' features kept"][f"{name}: {A_STEP}"] = ours_step, kept_step
    timed = {
        situation: {task: _in_turn(*pair, turns) for task, pair in tasks.items()} for situation, tasks in ways.items()
    }
    return {
        "layers": len(bench.model.text_model.encoder.layers), "classes": len(bench.names), "turns": turns,
        "longest": lengths, "sizes": SIZES, "asked": ASKED, "apart": apart, "threads": torch.get_num_threads(),
        **timed,
    }  # fmt: skip


def _in_turn(ours: Callable[[], float], theirs: Callable[[], float], turns: int) -> Record:
    taken = [(ours(), theirs()) for _ in range(turns)]
    ratios = [b / a for a, b in taken]
    return {
        "ours": round(statistics.median(a for a, _ in taken), 4),
        "theirs": round(statistics.median(b for _, b in taken), 4),
        "faster": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def _steps(fit: Callable[[int], Any]) -> Callable[[], float]:
    """Seconds of one step where nothing is done once."""
    return lambda: _clock(lambda: fit(STEPS)) / STEPS


def _step(fit: Callable[[int], Any]) -> Callable[[], float]:
    """Seconds of one step: of a fit of several less one of a single step, so that what is done once does not count."""
    return lambda: (_clock(lambda: fit(1 + MORE)) - _clock(lambda: fit(1))) / MORE


def _asks(bench: Bench, method: Any, count: int) -> Callable[[], float]:
    def ask() -> Any:
        method.set_classes(method.classes)  # forget the texts' features
        return method.predict(bench.pictures[:count], batch_size=PREDICTED)

    return lambda: _clock(ask)


def _asked(bench: Bench, name: str, learned: Any, count: int) -> Callable[[], float]:
    return lambda: _clock(lambda: bench.asked(name, learned, count))


@contextmanager
def _given(value: torch.Tensor) -> Iterator[torch.Tensor]:
    yield value


def _clock(run: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
