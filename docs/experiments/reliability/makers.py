"""How each row is made from one choice: fitted on scenes of the split "demo", for one aim."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import data
from protocol import Sizes
from ways import Aside, Mitigv, Way

import steer
import steer_attention.pasta as pasta

WORDINGS = {"twice": "{question} {question}", "caption first": "what is in the picture? {question}"}
LOSSES = {"anchored": {"mse": 1.0, "ce": 0.5}, "ce": {"ce": 1.0}}
BATCH = 64


class Makers:
    """Makes ways of answering with one model."""

    def __init__(self, model: Any, processor: Any, sizes: Sizes) -> None:
        self.model, self.processor, self.sizes = model, processor, sizes

    def make(self, row: str, choice: dict[str, Any], aim: str, seed: int) -> Any:
        """The way of a row under one choice."""
        if row.startswith("mitigv"):
            return self._mitigv(row.split()[1], choice, seed)
        if row == "prompt" and choice["way"] in WORDINGS:
            return Way(self.model, self.processor, None, WORDINGS[choice["way"]])
        if row == "pasta, place known":
            return self._pasta_beside(choice, aim, seed)
        return Way(self.model, self.processor, getattr(self, f"_{row}")(choice, aim, seed))

    def _prompt(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        shots, kind = choice["way"].split(" ", 1)
        shown = [one for one in self._examples(aim, seed)[0] if kind == "mixed" or one.answer == "no"]
        method = steer.create("icl", shots=int(shots), choose="balanced" if kind == "mixed" else "random", seed=seed)
        return method.fit(self.model, self.processor, shown)

    def _image_focus(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        return steer.create("image_focus", **choice)

    def _pasta(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        return steer.create(
            "pasta", span="images", alpha=choice["alpha"], heads=self._heads(choice["heads"], aim, seed)
        )

    def _pasta_beside(self, choice: dict[str, Any], aim: str, seed: int) -> Any:
        heads = self._heads(choice["heads"], aim, seed)
        return Aside(self.model, self.processor, pasta.Pasta(heads=heads, alpha=choice["alpha"]))

    def _pai(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        return steer.create("pai", first_layer=1, **choice)

    def _vcd(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        return steer.create("vcd", alpha=choice["a"], step=choice["step"], noise_seed=seed)

    def _head_mask(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        measured = self._map(aim, seed)
        if choice["by"] == "ablation":  # those without which the right answer gets likelier
            worst = measured.top(measured.values["ablation"].numel(), "ablation")[::-1][: choice["k"]]
        else:
            worst = measured.top(choice["k"], choice["by"])
        method = steer.create("head_mask", heads=worst, to="mean")
        return method.fit(self.model, self.processor, self._examples(aim, seed)[0], batch_size=BATCH, progress=False)

    def _head_scale(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        heads = self._map(aim, seed).top(choice["k"], "ablation")
        return steer.create("head_scale", heads=heads, factor=choice["factor"])

    def _iti(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        right, wrong = self._examples(aim, seed)
        method = steer.create("iti", count=choice["k"], alpha=choice["alpha"])
        return method.fit(self.model, self.processor, right, against=wrong, seed=seed, batch_size=BATCH, progress=False)

    def _cast(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        absent = [one for one in self._examples(aim, seed)[0] if one.answer == "no"]
        yes = [replace(one, answer="yes") for one in absent]
        method = steer.create("cast", layers=choice["layers"], strength=choice["strength"], where="answer")
        return method.fit(
            self.model, self.processor, absent, against=yes, when=absent, otherwise=data.others(seed), seed=seed,
            batch_size=BATCH, progress=False,
        )  # fmt: skip

    def _live(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        return self._learned(steer.create("live", alpha=choice["alpha"]), choice["lr"], aim, seed)

    def _hyper_icl(self, choice: dict[str, Any], aim: str, seed: int) -> steer.Method:
        return self._learned(steer.create("hyper_icl", losses=LOSSES[choice["losses"]]), choice["lr"], aim, seed)

    def _learned(self, method: Any, lr: float, aim: str, seed: int) -> steer.Method:
        examples = self._examples(aim, seed)[0]
        return method.fit(
            self.model, self.processor, examples, seed=seed, dev=[], progress=False, lr=lr, batch_size=32,
            max_steps=self.sizes.steps,
            demonstrations=steer.Demonstrations(examples, shots=4, choose="balanced", seed=seed),
        )  # fmt: skip

    def _mitigv(self, algorithm: str, choice: dict[str, Any], seed: int) -> Mitigv:
        options = dict(choice)
        if algorithm == "vcd":
            options["distortion_kwargs"] = {"noise_step": options.pop("step")}
        else:
            options |= {"start_layer": 1, "end_layer": self.model.config.text_config.num_hidden_layers}
        return Mitigv(self.model, self.processor, algorithm, options, seed)

    @lru_cache  # noqa: B019
    def _examples(self, aim: str, seed: int) -> tuple[list[steer.Example], list[steer.Example]]:
        return data.training(seed, aim == "print")

    @lru_cache  # noqa: B019
    def _map(self, aim: str, seed: int) -> Any:
        return steer.profile(
            self.model, self.processor, self._examples(aim, seed)[0], measures=("ablation", "attention"),
            demonstrations=steer.Demonstrations((), shots=0), gradient=False, samples=64, seed=seed, batch_size=BATCH,
            progress=False,
        )  # fmt: skip

    def _heads(self, which: str, aim: str, seed: int) -> Any:
        return "all" if which == "all" else self._map(aim, seed).top(6, "attention_image")
