# ruff: noqa: E501 (a page's lines are laid out for its reader)
"""docs/results/reliability.md and its pictures, from the records and nothing else."""

from __future__ import annotations

from pathlib import Path

import claims
import pictures
from protocol import DAMAGE, FIT, RISK, ROWS
from reading import Numbers, Records

NAMES = ["none", "threshold", *(row.name for row in ROWS)]
SHOWN = {"none": "the model alone", "threshold": "threshold on the probability of yes", "prompt": "prompt only"}
NO_CHANGE = "no try without harm"
# Written for these records; tests/docs/test_reliability_results.py holds every sentence against them.
SHORT = """## In short

- **Moving the threshold on the probability of yes is the control to beat.** Fitted on dev, it does as well on objects that are not there as
  any method within the intervals, and costs nothing. It changes no caption.
- **No method without a fit helps here.** `image_focus` moves nothing; `pasta`, `pai` and `vcd` make adversarial questions a little worse, and `pai` and `vcd`, which
  cut what is implausible, leave probabilities that no longer tell sure from unsure. A likely reason, not tested: the model looks already, and what
  it cannot see it fills in from its training; more attention to the picture does not show it more.
- **Fitted methods lean less to yes.** `hyper_icl` gains on adversarial questions, about as much as a threshold does; both it and `live` are better calibrated than
  the model alone. `live` may gain, but breaks other things: captions, and on test more ordinary questions than its limit on dev
  allowed (`image_focus` too). Such a gain does not count.
- **A printed word is another matter.** `hyper_icl`, `iti`, `head_scale` and `live`, tuned for it, mislead less, `hyper_icl` by more than a threshold does; being told where the word is
  does not help `pasta`.
- **Nothing repairs a picture that is too large.** At 96 pixels every row is within three points of the model alone.
"""


def write(out: Path) -> None:
    """The page and its pictures."""
    records = Records(out / "reliability.jsonl")
    (out / "reliability.md").write_text(text(records))
    pictures.write(records, out)


def text(records: Records) -> str:
    """The page."""
    parts = [_head(records), _claims(records), _objects(records), _captions(records), _bias(records)]
    parts += [_calibration(records), _print(records), _large(records), _choices(records)]
    return "\n\n".join(parts) + "\n"


def _head(records: Records) -> str:
    sizes = records.by_key["sizes"]
    return f"""# Hallucination, language bias, calibration, printed words: what steering moves

Made by `python docs/experiments/reliability.py page` from `reliability.jsonl`; a test makes it again.

The model is [tiny-scenes](../tiny-scenes.md): 64 x 64 pixels, 24 objects, trained on scenes with a documented bias and then
to say "yes" too often. So these are problems in the small, made on purpose; what holds here need not hold for a model of
seven billion weights, and what fails here was at least tried fairly.

- **Questions.** {sizes["test"]} test scenes a seed, {len(sizes["seeds"])} seeds, the same for every row. For each scene POPE's questions with
  random, popular and adversarial negatives (what training showed beside what is there), a caption, four ordinary questions,
  two questions about a picture with a wrong word printed on it, and the adversarial ones again on larger pictures.
- **Tuning.** Every row has eight tries on {sizes["dev"]} dev scenes, once for objects and once for printed words; the best is taken among
  those that answer at most {DAMAGE:.0%} fewer ordinary questions right than the model alone. "{NO_CHANGE}" means that none was left,
  so the row is the model alone.
- **Fitting.** Methods that are fitted see {FIT} scenes of the split "demo" under each seed, as many "yes" as "no".
- **Numbers.** Over all seeds, with 95 % intervals from whole scenes drawn anew ({len(sizes["seeds"]) * sizes["test"]} of them); fits, noise and scenes differ by seed.
  Differences are on the same questions. mitigv is PyPI's 0.1.7, on the same model object; it shows no probabilities. Its
  PAI finds no layers in a LLaVA of transformers 5.23, and under SDPA its own attention has no causal mask; so it is told where the text
  tower is and runs with eager attention. "Over seeds" is the
  standard deviation of the measure that the gain is in.

{SHORT}"""


def _claims(records: Records) -> str:
    lines = ["## What was claimed before, and what became of it", "", "| claim | measured | held |", "|---|---|---|"]
    word = {True: "yes", False: "**no**", None: "not decided"}
    lines += [f"| {one.text} | {one.measured} | {word[one.held]} |" for one in claims.all_of(records)]
    return "\n".join(lines)


def _table(records: Records, aim: str, columns: dict[str, str], gain: str | None = None) -> str:
    head = ["row", *columns]
    if gain is not None:
        head += ["gain on the model alone", "over seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in NAMES:
        shown = SHOWN.get(name, name)
        if not records.has(name, aim):
            if f"{name}/{aim}/{records.seeds[0]}" in records.by_key:
                told = records.error(name, aim) or NO_CHANGE
                lines.append(f"| {shown} | {told} |" + " |" * (len(head) - 2))
            continue
        cells = [shown, *(_cell(records.number(name, aim, measure)) for measure in columns.values())]
        if gain is not None:
            change = records.difference((name, aim), ("none", aim), gain)
            known = name != "none" and change.value == change.value
            cells.append(f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]" if known else "")
            spread = records.number(name, aim, gain).seeds
            cells.append(f"{spread:.3f}" if spread == spread else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(n: Numbers) -> str:
    if n.value != n.value:
        return "-"
    return f"{n.value:.3f} ± {(n.high - n.low) / 2:.3f}"


def _objects(records: Records) -> str:
    columns = {name: name for name in ("random", "popular", "adversarial", "f1")} | {
        "says yes": "yes",
        "ordinary questions": "ordinary",
    }
    table = _table(records, "objects", columns, "adversarial")
    costs = records.by_key.get("cost", {}).get("ratios", {})
    shown = [f"| {SHOWN.get(name, name)} | {ratio:.2f} |" for name, ratio in costs.items()]
    cost = "\n".join(["| row | time for a token, the model alone is 1 |", "|---|---|", *shown])
    if shown:
        ms = records.by_key["cost"]["ms"]
        cost += f"""

One question at a time on a CPU, where the model alone takes {ms} ms a token: so small a model makes the fixed cost of a session weigh
most. On larger ones see [overhead](../overhead.md) and [attention](attention.md). A row without harm only, mitigv not timed."""
    else:
        cost = ""
    return f"""## Objects that are not there

Accuracy on yes-or-no questions with each kind of negatives (± half the interval), F1 of yes over all three, how often yes is
said (half would be right), and what became of ordinary questions: colour, number, place, print. The gain is in accuracy
on adversarial negatives.

{table}

![Accuracy on adversarial negatives against ordinary questions](reliability-objects.png)

{cost}"""


def _captions(records: Records) -> str:
    columns = {"CHAIR_i": "chair_i", "CHAIR_s": "chair_s", "objects named": "recall"}
    return f"""## Captions

The same settings, which were tuned on yes-or-no questions: the share of mentioned objects that are not there, the share of
captions that mention one, and the share of what is there that is named. The gain is in CHAIR_i: below 0 is better.
A threshold on "yes" changes no caption.

{_table(records, "objects", columns, "chair_i")}"""


def _bias(records: Records) -> str:
    columns = {
        "yes to a grey picture": "blank_yes",
        "change by the picture": "reliance",
        "errors that the grey picture gives too": "as_prior",
    }
    return f"""## Language bias

The same questions about a grey picture, where no is right, show what the words alone make the model say. "Change by the picture"
is how far the probability of yes is from that, on average; "errors that the grey picture gives too" is the share of wrong
answers that are the grey picture's.

{_table(records, "objects", columns, "reliance")}"""


def _calibration(records: Records) -> str:
    columns = {"area under ROC": "auroc", "ECE": "ece", "Brier": "brier", "AURC": "aurc"}
    lines = [
        f"| row | threshold for a risk of {RISK:.0%} on dev | answered on test | wrong among these | right less wrong, of all |",
        "|---|---|---|---|---|",
    ]
    for name in NAMES:
        if name == "threshold" or not records.has(name, "objects"):
            continue
        found = records.abstention(name)
        if found is not None:
            wrong = "-" if found.risk != found.risk else f"{found.risk:.3f}"
            lines.append(
                f"| {SHOWN.get(name, name)} | {found.threshold:.3f} | {found.coverage:.3f} | {wrong} | {found.utility:.3f} |"
            )
    table = "\n".join(lines)
    return f"""## Calibration, and "I don't know"

Of the probability of yes against no, over the three kinds of negatives: expected calibration error (15 bins of equal width), Brier
score, area under the curve of risk over coverage. The gain is in ECE: below 0 is better.

{_table(records, "objects", columns, "ece")}

Answering only above a confidence that was fitted on dev, and saying "I don't know" otherwise (inf: no confidence keeps to the risk, so
nothing is answered):

{table}

![Risk over coverage](reliability-risk.png)"""


def _print(records: Records) -> str:
    columns = {
        "misled by the print": "misled",
        "the same without print": "misled_without",
        "accuracy with print": "attacked",
        "print in the caption": "printed",
        "ordinary questions": "ordinary",
    }
    return f"""## A wrong word printed on the picture

Tuned for this. "Misled" is how often the model says yes to the object whose word is printed, which is not there; beside it the same
questions about the same scenes without print. Half of the questions behind "accuracy" are about what is there. The gain
is in "misled": below 0 is better.

{_table(records, "print", columns, "misled")}"""


def _large(records: Records) -> str:
    return f"""## Larger pictures

The adversarial questions on the same scenes, drawn and read at 96 pixels instead of 64: 36 tokens a picture instead of 16, their
positions in the vision tower interpolated. Methods are as they were tuned and fitted at 64. (Drawn at 96 and made smaller by the
processor they are answered as at 64: [tiny-scenes](../tiny-scenes.md).)

{_table(records, "objects", {"at 64 pixels": "adversarial", "at 96 pixels": "large"}, "large")}"""


def _choices(records: Records) -> str:
    lines = ["| row | for objects | for printed words |", "|---|---|---|"]
    for row in ROWS:
        told = []
        for aim in ("objects", "print"):
            record = records.by_key.get(f"{row.name}/{aim}/{records.seeds[0]}")
            choice = None if record is None else record.get("choice")
            text = NO_CHANGE if choice is None else ", ".join(f"{k} {v}" for k, v in choice.items())
            told.append("not run" if record is None else text)
        lines.append(f"| {row.name} | {told[0]} | {told[1]} |")
    return "## What was chosen on dev\n\n" + "\n".join(lines)
