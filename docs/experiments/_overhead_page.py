"""The page and the picture that overhead.py makes of its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BARE, HOOKS, EMPTY, SHIFT = "bare", "hand-written hooks", "steer: empty session", "steer: residual shift"
HEAD_HOOKS, HEAD = "hand-written head hooks", "steer: head shift"
PEERS = ("nnsight", "repsteer", "steering-vectors")


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def ratio(times: dict[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    return spread([a / b for a, b in zip(times[name], times[base], strict=True)])


def cell(values: tuple[float, float, float], form: str = ".3f") -> str:
    middle, low, high = values
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [list(head), *[list(row) for row in rows]]]
    lines.insert(1, "|" + "---|" * lines[0].count(" | ") + "---|")
    return "\n".join(lines)


def base_of(name: str) -> str:
    return HEAD_HOOKS if name == HEAD else HOOKS


def targets(found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(target, where, measured, met)."""
    rows = []
    for name, model in found["models"].items():
        if name == "toy":
            continue
        step, written = model["step"], model["generation"]
        for what, a, b, limit in (
            ("empty session <= 1.01 x bare", EMPTY, BARE, 1.01),
            ("residual shift <= 1.03 x hand-written hooks", SHIFT, HOOKS, 1.03),
        ):
            for how, times in (("one token", step), (f"{found['tokens']} tokens", written)):
                values = ratio(times, a, b)
                rows.append((what, f"{name}, {how}", cell(values), values[0] <= limit))
        for peer in PEERS:
            if peer in written:
                values = ratio(written, SHIFT, peer)
                rows.append(("no slower than a peer", f"{name}, {peer}", cell(values), values[0] <= 1.0))
    counts = found.get("instructions", {}).get("llama-135m")
    if counts:
        for what, a, b, limit in (
            ("empty session <= 1.01 x bare", EMPTY, BARE, 1.01),
            ("residual shift <= 1.03 x hand-written hooks", SHIFT, HOOKS, 1.03),
        ):
            value = counts[a] / counts[b]
            rows.append((what, "llama-135m's layers, instructions", f"{value:.4f}", value <= limit))
    counts = found.get("instructions", {}).get("toy") or {}
    for peer in PEERS:
        if peer in counts:
            value = counts[SHIFT] / counts[peer]
            rows.append(("no slower than a peer", f"toy, instructions, {peer}", f"{value:.4f}", value <= 1.0))
    if found.get("memory"):
        grown = max(row["kept"][-1] - row["kept"][0] for row in found["memory"].values())
        rows.append(("nothing kept grows with the sequence", "", f"{grown} bytes", grown <= 0))
    if found.get("imports"):
        a, b = (found["imports"][n] for n in ("import transformers, steer", "import transformers"))
        values = spread([x - y for x, y in zip(a, b, strict=True)])
        rows.append(("`import steer` adds at most 0.2 s to transformers", "", cell(values) + " s", values[0] <= 0.2))
    return rows


def timing_table(model: dict[str, Any], tokens: int) -> str:
    written, step = model["generation"], model["step"]
    rows = []
    for name in written:
        per_token = statistics.median(written[name]) / tokens * 1e3
        cells = [name, f"{per_token:.2f}", cell(ratio(written, name, BARE))]
        beside = name in (BARE, EMPTY, HEAD_HOOKS) or name == base_of(name)
        cells.append("" if beside else cell(ratio(written, name, base_of(name))))
        if name in step:
            cells.append("" if name == BARE else cell(ratio(step, name, BARE)))
            cells.append("" if beside else cell(ratio(step, name, base_of(name))))
        else:
            cells += ["", ""]
        rows.append(cells)
    head = ["variant", "ms a token", "to bare", "to hand-written", "one step: to bare", "one step: to hand-written"]
    return table(head, rows)


def toy_table(found: dict[str, Any]) -> str:
    toy = found["models"]["toy"]
    scale = 1e6 / found["tokens"] / toy["layers"]
    counts = found.get("instructions", {}).get("toy") or {}
    rows = []
    for name, seconds in toy["generation"].items():
        extra = [(a - b) * scale for a, b in zip(seconds, toy["generation"][BARE], strict=True)]
        step = ""
        if name in toy["step"]:
            per = [(a - b) * 1e6 / toy["layers"] for a, b in zip(toy["step"][name], toy["step"][BARE], strict=True)]
            step = cell(spread(per), "+.1f")
        row = [name, f"{statistics.median(seconds) * scale:.0f}", cell(spread(extra), "+.1f"), step]
        if counts:
            row += [f"{counts[name] / 1e3:.0f}", f"{(counts[name] - counts[BARE]) / 1e3:+.1f}"]
        rows.append(row)
    head = ["variant", "us", "us over bare", "one step: us over bare"]
    return table([*head, "k instructions", "k over bare"] if counts else head, rows)


def count_table(counts: dict[str, float]) -> str:
    rows = [
        [
            name,
            f"{value / 1e3:.1f}",
            f"{value / counts[BARE]:.4f}",
            "" if name in (BARE, EMPTY, HEAD_HOOKS, base_of(name)) else f"{value / counts[base_of(name)]:.4f}",
        ]
        for name, value in counts.items()
    ]
    return table(["variant", "k instructions", "to bare", "to hand-written"], rows)


def memory_table(found: dict[str, Any], prompts: tuple[int, int]) -> str:
    rows = [
        [name, *[f"{n:,}" for n in row["kept"]], *[f"{n / 2**20:.2f}" for n in row["peak"]]]
        for name, row in found["memory"].items()
    ]
    short, long = prompts
    head = ["session", f"kept, {short} tokens (bytes)", f"kept, {long}"]
    return table([*head, f"peak, {short} tokens (MiB)", f"peak, {long}"], rows)


HOW = """\
## How it is measured

Greedy writing of {tokens} tokens, exactly as many each time. Variants run one after another in random order, again and
again; a ratio is taken between two variants of one round, and the tables give the median of the ratios with the
quartiles. Sessions are open before the clock starts; opening and closing are timed apart. *One step* is a single
decoded token after the prompt with the same cache each time, where variants alternate within a fraction of a second: it
tells apart what slow drifts of the machine hide in whole generations. Garbage collection is off while the clock runs.
steer runs with its default settings: it measures how far each tensor moves in the first forward that touches it, which
here is the one over the prompt; `measure="none"` leaves that out. The clock is {clock}.

Other libraries are used as their documentation says: nnsight with one trace around `generate` and `layer.output +=` in
its loop over steps, repsteer with a plan of one `Add` a layer and its own `generate`, steering-vectors with `apply`.
steering-vectors 0.12.2 asks for transformers < 5; it was installed without its dependencies beside the transformers
named above, where it does its job.

Before anything is timed, every variant that shifts the residual stream must write the very tokens that hand-written
hooks write, and steer's logits must agree with theirs: largest difference {differences}.
"""
CLOCKS = {"wall": "the wall's", "cpu": "the process's processor time"}
TITLES = {
    "llama-135m": "A 135 M Llama (SmolLM2-135M's shape: 30 layers, width 576; random weights)",
    "tiny-vlm": "tiny-vlm, with a picture in the prompt (4 layers, width 192)",
}
TOY = """\
## A toy, where Python is all there is (2 layers, width 32)

Everything per layer and token. Arithmetic costs nearly nothing here, so this is the price of the code around it.
"""
TOY_COUNTS = """\
Instructions are counted by callgrind, the median over tokens of one generation.
"""
COUNTS = """\
## Instructions on the 135 M Llama's layers

Per layer and decoded token, on three of its layers without its 49,152 words, one thread, counted by callgrind (which
offers AVX2 and no AVX-512), the median of a few steps. No drift of the machine is in these.
"""
MEMORY = """\
## Memory

On three layers of the 135 M Llama, an open session and one forward over a prompt. *Kept* is what lives on in the
session after the forward, the same for both prompts; *peak* the most bytes of activations alive at once inside it.
Masks and gates exist during a forward only. Interventions at image tokens also remember which tokens are images, one
byte each.
"""


def write(found: dict[str, Any], prompts: tuple[int, int] = (64, 2048)) -> str:
    """The whole page."""
    models, counts = found["models"], found.get("instructions", {})
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    verdicts = [(*row[:3], "met" if row[3] else "**not met**") for row in targets(found)]
    differences = ", ".join(f"{m['largest_logit_difference']:.1e} ({name})" for name, m in models.items())
    threads = ", ".join(f"{m['threads']} ({name})" for name, m in models.items())
    parts = ["# What a session costs\n"]
    parts.append(
        f"Made by `docs/experiments/overhead.py` on {found['when']}: 2 cores, CPU, float32, batch 1; "
        f"threads: {threads}.\nVersions: {versions}.\n"
    )
    if found["note"]:
        parts.append(found["note"] + "\n")
    if found["quick"]:
        parts.append("A quick run: these figures test the script and are not for reading.\n")
    parts += ["## Targets\n", table(["target", "where", "measured", ""], verdicts) + "\n"]
    parts.append(HOW.format(tokens=found["tokens"], differences=differences, clock=CLOCKS[found["clock"]]))
    for name, title in TITLES.items():
        if name in models:
            parts += [f"## {title}\n", f"{models[name]['rounds']} rounds.\n"]
            parts += [timing_table(models[name], found["tokens"]) + "\n", *_failures(models[name])]
    parts += [TOY, *([TOY_COUNTS] if counts.get("toy") else []), toy_table(found) + "\n", *_failures(models["toy"])]
    if counts.get("llama-135m"):
        parts += [COUNTS, count_table(counts["llama-135m"]) + "\n"]
    parts += ["## Opening and closing a session\n", _open_table(found) + "\n"]
    if found.get("memory"):
        parts += [MEMORY, memory_table(found, prompts) + "\n"]
    if found.get("imports"):
        parts += ["## Import\n", _import_table(found["imports"]) + "\n"]
    parts.append("![overhead](overhead.png)\n")
    return "\n".join(parts)


def _failures(model: dict[str, Any]) -> list[str]:
    if not model["failed"]:
        return []
    return [f"{name} is left out here: `{why}`\n" for name, why in model["failed"].items()]


def _open_table(found: dict[str, Any]) -> str:
    names = [n for n in found["models"]["toy"]["open_and_close"] if n != BARE]
    models = list(found["models"])
    rows = []
    for name in names:
        cells = [name]
        for model in models:
            seconds = found["models"][model]["open_and_close"].get(name)
            cells.append("" if seconds is None else cell(spread([1e3 * s for s in seconds]), ".2f"))
        rows.append(cells)
    return table(["ms", *[f"{m} ({found['models'][m]['layers']} layers)" for m in models]], rows)


def _import_table(seconds: dict[str, list[float]]) -> str:
    rows = [[f"`{name}`" if name.startswith("import") else name, cell(spread(s), ".2f")] for name, s in seconds.items()]
    return table(["a new process", "s"], rows)


def plot(found: dict[str, Any], path: Path) -> None:
    """Ratios to bare, one panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = found["models"]
    figure, axes = plt.subplots(1, len(models), figsize=(4.6 * len(models), 4), squeeze=False, layout="constrained")
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        written = model["generation"]
        names = [n for n in reversed(written) if n != BARE]
        values = [ratio(written, n, BARE) for n in names]
        errors = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
        colours = ["tab:blue" if n.startswith("steer:") else "tab:orange" if n in PEERS else "tab:grey" for n in names]
        for row, (value, colour) in enumerate(zip(values, colours, strict=True)):
            axis.errorbar(value[0], row, xerr=[[errors[0][row]], [errors[1][row]]], fmt="o", color=colour, lw=1.5)
        axis.set_yticks(range(len(names)), names)
        axis.axvline(1, color="black", lw=0.8)
        axis.set_title(name)
        axis.set_xlabel(f"time of {found['tokens']} tokens, bare = 1")
        if axis is not axes[0][0]:
            axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
