"""VCD: what a model says of a picture, less what it says of one that shows little (Leng et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import fitting, ops, prompts, sites
from steer.contrast import with_pictures
from steer.errors import InterventionError
from steer.fitting import fitted

from ._distorted import STEPS, Distortion, blanked, blurred, noised
from ._grid import within
from ._plausible import check_number, check_plausibility, contrasted

ALPHAS, TIMES = (0.0, 0.5, 1.0, 2.0), (300, 500, 700, 900)
DISTORTIONS = ("noise", "blank", "blur")


@dataclass
class VCD(steer.Method):
    """Contrast with the same prompt under distorted pictures: what comes of the words alone is in both and goes.

    Use, for l the logits and l' those after distorted pictures: (1 + alpha) l - alpha l', over tokens v with
    p(v) >= plausibility max p, p = softmax(l); the others' logits are -inf. alpha 0 changes no bit. Everything is read
    twice. Greedy decoding, beams and sampling all see the mix.

    Distorted, for x the pixels as the processor normalised them: sqrt(A) x + sqrt(1 - A) z with z normal and A the
    share that a diffusion of 1000 steps leaves after `step` (0.745 at 500); or blank, the processor's mean colour; or
    blurred. z is drawn from `noise_seed`: each picture has the same alone and in a batch, on every device. Where all
    patches of a batch come in one row (N, d), without an axis of pictures, only the first picture has.

    Source: https://arxiv.org/abs/2311.16922 and the authors' repository. Theirs replaces the sampling loop, so that
    nothing but sampling works; draws new noise for each question; and from the second token on its second stream
    goes on with the first one's cache, that is with the picture undistorted. Here each stream has its own cache.

    Attributes:
        alpha: how much of the difference is added; None tries 0, 0.5, 1 and 2 when fitting.
        plausibility: which share of the likeliest token's probability a token needs.
        distortion: "noise", "blank" or "blur".
        step: how far the diffusion goes, 0 to 999; with "noise" only. None tries 300, 500, 700 and 900 when fitting.
        blur: how wide the square is over which "blur" takes the mean, as a share of the picture's shorter side.
        noise_seed: which noise.
        template: how an example is written when fitting, as in `steer.prompts.encode`; None for the chat template.

    Raises:
        InterventionError: a number out of its range; step None where there is no noise.
        UnknownNameError: an unknown `distortion`.
    """

    name: ClassVar[str] = "vcd"
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.16922"
    summary: ClassVar[str] = "Contrasts the logits with those under noised, blank or blurred pictures."

    alpha: float | None = 1.0
    plausibility: float = 0.1
    distortion: Literal["noise", "blank", "blur"] = "noise"
    step: int | None = 500
    blur: float = 0.25
    noise_seed: int = 0
    template: str | None = None

    def __post_init__(self) -> None:
        check_number(self.alpha, 0, "alpha", self.name)
        check_plausibility(self.plausibility, self.name)
        if self.distortion not in DISTORTIONS:
            raise steer.errors.unknown_name(f"distortion of method {self.name!r}", self.distortion, DISTORTIONS)
        if self.step is not None and not (isinstance(self.step, int) and 0 <= self.step < STEPS):
            raise InterventionError(f"{self.name}: step is a whole number from 0 to {STEPS - 1}, got {self.step!r}")
        if self.step is None and self.distortion != "noise":
            raise InterventionError(f'{self.name}: only "noise" has a step to be fitted, not {self.distortion!r}')
        if isinstance(self.blur, bool) or not isinstance(self.blur, int | float) or not 0 < self.blur <= 1:
            raise InterventionError(
                f"{self.name}: blur is a share of the picture's side, 0 < blur <= 1; got {self.blur!r}"
            )

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        seed: int = 0,
        dev: Sequence[steer.Example] | None = None,
        budget: int | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Choose alpha, step or both, whichever is None: two forwards over `dev` for each setting tried.

        Args:
            model: any mapped model that writes text about pictures.
            processor: its processor.
            examples: with answers, at least 1; they are what is chosen by where `dev` is None, since nothing else is
                learned from them.
            seed: which settings are tried, if not all are; nothing else here is random.
            dev: examples to choose by instead.
            budget: how many settings are tried, the first of the grid always; None for all (13 where both are open).
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "alpha" or "step" or both (numbers), "tried" (N, 2), each setting's alpha and step,
            and "accuracy" (N,), the share answered right with it. Of equals the one that gives right answers more
            probability is taken.

        Raises:
            SteerError: neither is None; no examples, no answers, no processor, or a model that does not write text.
        """
        if self.alpha is not None and self.step is not None:
            return super().fit(model, processor, examples, seed=seed)
        asked = examples if dev is None else dev
        fitting.check(model, processor, asked, at_least=1, method=self.name)
        tried = within(self._grid(), budget, seed, self.name)
        shown = [prompts.Prompt(one) for one in asked]
        (alpha, step), accuracy = fitting.best(
            model,
            prompts.batches(model, processor, shown, template=self.template, batch_size=batch_size),
            tried,
            lambda pair: self._contrast(*pair),
            description=f"{self.name}: trying strengths",
            progress=progress,
        )
        self.tensors = {"tried": torch.tensor(tried, dtype=torch.float32), "accuracy": accuracy}
        if self.alpha is None:
            self.tensors["alpha"] = torch.tensor(alpha)
        if self.step is None:
            self.tensors["step"] = torch.tensor(float(step))
        self.record_provenance(steer.inspect(model), seed, asked)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One around the model; none where alpha is 0."""
        alpha = float(fitted(self, "alpha")) if self.alpha is None else self.alpha
        step = int(fitted(self, "step")) if self.step is None else self.step
        return self._contrast(alpha, step)

    def _grid(self) -> list[tuple[float, int]]:
        """Every setting once: where nothing is contrasted, no step makes a difference."""
        steps = TIMES if self.step is None else (self.step,)
        if self.alpha is not None:
            return [(self.alpha, step) for step in steps]
        return [(ALPHAS[0], steps[0]), *product(ALPHAS[1:], steps)]

    def _contrast(self, alpha: float, step: int) -> list[steer.Intervention]:
        if alpha == 0:
            return []
        other = with_pictures(self._distortion(step))
        return [steer.Intervention(sites.call(), ops.Contrast(other, contrasted(alpha, self.plausibility)))]

    def _distortion(self, step: int) -> Distortion:
        if self.distortion == "noise":
            return noised(step, self.noise_seed)
        return blanked() if self.distortion == "blank" else blurred(self.blur)
