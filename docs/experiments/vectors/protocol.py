"""What is compared, fixed before anything is run: sizes, grids, rows, claims.

Every fitted method gets the same eight tries on dev: four learning rates times the two values of one other choice of
its own. Every heuristic gets four. A try is judged by accuracy on dev, then by the answers' log-probability there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

LEARNING_RATES = (1e-3, 5e-3, 2e-2, 5e-2)
SEEDS = (0, 1, 2)
SHOTS = (1, 4, 8, 16)
ORDERS = 5


@dataclass(frozen=True)
class Row:
    """One method of the comparison.

    Attributes:
        name: in the tables.
        method: the registered name; "static" is a control of controls.py.
        kind: "heuristic", "layer", "head", "gated" (the strength depends on the token), "keys" or "own".
        base: configuration that is always given.
        choices: for each option of configuration the values to try.
        fitted: by gradient, so that the learning rate is tried too.
        reads: another row whose fitted method it wraps.
    """

    name: str
    method: str
    kind: str
    base: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    fitted: bool = True
    reads: str | None = None

    def tries(self) -> list[dict[str, Any]]:
        """Every combination of the choices, learning rates included."""
        options = dict(self.choices) | ({"lr": LEARNING_RATES} if self.fitted else {})
        return [dict(zip(options, values, strict=True)) for values in product(*options.values())]

    def only(self, **base: Any) -> Row:
        """The same with some of its choices made already."""
        left = {name: values for name, values in self.choices.items() if name not in base}
        return replace(self, base={**self.base, **base}, choices=left)


CE = {"ce": 1.0}
TOLD = {"kl_answer": 1.0, "ce": 0.5}
ANCHORED = {"mse": 1.0, "ce": 0.5}


def word_rows() -> list[Row]:
    """The methods on words, where a fit takes a minute: four tries each, all with cross-entropy alone.

    LIVE starts at alpha = 1, the virtual rows are 16. A function vector needs one forward for each of 270 heads and
    trial and gets one try; there are no classes for SAVs to tell apart.
    """
    known = {row.name: row for row in rows(heads=270)}
    return [
        replace(known["icv"], choices={"strength": (0.05, 0.1, 0.2, 0.3)}),
        replace(known["task_vector"], base={"contexts": 16}, choices={"shots": (4, 8)}),
        replace(known["mtv"], base={"contexts": 24, "samples": 16, "steps": 20}, choices={"shots": (4, 8)}),
        known["live"].only(alpha=1.0, losses=CE),
        *(known[name].only(losses=CE) for name in ("head_shift", "mimic", "hyper_icl")),
        known["hificl"].only(virtual=16),
        known["joint"].only(losses=CE),
        replace(
            known["function_vector"], base={"contexts": 16, "trials": 8, "shots": 4, "corrupt": "remove"}, choices={}
        ),
    ]


def rows(heads: int) -> list[Row]:
    """The methods on pictures, for a model with so many attention heads in all."""
    some = tuple(sorted({max(1, round(heads * share)) for share in (0.04, 0.08, 0.2, 0.5)}))
    fewer, more = some[1], some[2]
    return [
        Row("icv", "icv", "heuristic", {}, {"strength": (0.1, 0.2, 0.3, 0.5)}, fitted=False),
        Row("task_vector", "task_vector", "heuristic", {"contexts": 48}, {"shots": (4, 8, 12, 16)}, fitted=False),
        Row(
            "function_vector",
            "function_vector",
            "heuristic",
            {"contexts": 48, "trials": 12, "corrupt": "remove"},
            {"heads": (fewer, more), "strength": (1.0, 2.0)},
            fitted=False,
        ),
        Row(
            "mtv",
            "mtv",
            "heuristic",
            {"contexts": 48, "samples": 16},
            {"shots": (4, 8), "steps": (20, 60)},
            fitted=False,
        ),
        Row("savs", "savs", "heuristic", {}, {"heads": some}, fitted=False),
        Row("live", "live", "layer", {}, {"alpha": (0.1, 1.0)}),
        Row("head_shift", "head_shift", "head", {}, {"losses": (TOLD, CE)}),
        Row("static", "static", "head", {}, {"losses": (TOLD, CE)}),
        Row("mimic", "mimic", "gated", {}, {"losses": (ANCHORED, CE)}),
        Row("hyper_icl", "hyper_icl", "gated", {}, {"losses": (ANCHORED, CE)}),
        Row("gate", "gate", "gated", {"losses": CE}, {"train_inner": (False, True)}, reads="head_shift"),
        Row("hificl", "hificl", "keys", {}, {"virtual": (8, 16)}),
        Row("joint", "joint", "own", {}, {"losses": (TOLD, CE)}),
    ]


@dataclass(frozen=True)
class Claim:
    """Something stated before it was measured.

    Attributes:
        key: which test of claims.py decides it.
        text: what is claimed.
    """

    key: str
    text: str


CLAIMS = (
    Claim("icl", "8 demonstrations in the prompt beat none (zero-shot)."),
    Claim("fitted", "The best fitted method beats the best heuristic vector."),
    Claim(
        "icl_cost",
        "The best fitted method is at least as right as 8 demonstrations, at 1.15 times zero-shot's time or less.",
    ),
    Claim("head", "A shift for each head beats one for each layer (head_shift against live)."),
    Claim(
        "adaptive",
        "Query-adaptive strength beats a static shift on the conditional and mixed tasks (the best gated method, "
        "against head_shift, its own gate held at its mean, and its gates dealt to other queries)...",
    ),
    Claim("adaptive_single", "...and not on the single ones."),
    Claim("order", "The order of the demonstrations moves in-context learning, and not the vectors."),
    Claim("own", "Our joint method beats every published one on the conditional and mixed tasks."),
)
