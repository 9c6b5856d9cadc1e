"""Which emoji there are, what they are called, and under which name each icon set draws them."""

from __future__ import annotations

import json
from pathlib import Path

# icon set -> style word in captions. fxemoji and emojione lack the newer emoji; a name needs two styles at least.
TRAINED = {"noto": "noto", "twemoji": "twitter", "emojione": "emojione", "fxemoji": "firefox"}
HELD_OUT = {"fluent": "fluent-emoji-flat", "noto-v1": "noto-v1"}  # style of `zoo.labelled` -> icon set
KINDS = {
    "food": "Food & Drink", "animals": "Animals & Nature", "objects": "Objects", "travel": "Travel & Places",
    "activities": "Activities", "smileys": "Smileys & Emotion",
}  # fmt: skip
# Of the large sets only what emojione draws too (so three training styles at least), and no clock faces.
OLDER = {"objects", "travel", "smileys"}
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# fxemoji calls the head by the bare name and the whole animal "...side"
_FXEMOJI = {
    "cat": "catside", "cat-face": "cat", "dog": "dogside", "dog-face": "dog", "mouse": "mouseside",
    "mouse-face": "mouse", "pig": "pigside", "pig-face": "pig", "tiger": "tigerside", "tiger-face": "tiger",
    "rabbit": "bunnyside", "rabbit-face": "bunny", "dragon": "dragonside", "dragon-face": "dragonhead",
    "eggplant": "aubergine", "panda": "pandaface", "pizza": "sliceofpizza", "ear-of-corn": "earofmaize",
}  # fmt: skip


class Icons:
    """One unpacked icon set."""

    def __init__(self, folder: Path, name: str) -> None:
        path = next(p for p in folder.glob(f"*{name}*") if (p / "info.json").exists() and _is(p, name))
        self.data = json.loads((path / "icons.json").read_text())
        self.metadata = json.loads((path / "metadata.json").read_text())
        aliases = {k: v for k, v in self.data.get("aliases", {}).items() if set(v) == {"parent"}}
        self.parent = {k: v["parent"] for k, v in aliases.items()}
        if name == "fxemoji":
            joined = {k.replace("-", ""): k for k in self.data["icons"]}
            noto = [k for names in Icons(folder, "noto").metadata["categories"].values() for k in names]
            self.parent = {k: joined[k.replace("-", "")] for k in noto if k.replace("-", "") in joined} | _FXEMOJI

    def body(self, icon: str) -> tuple[str, int] | None:
        """The SVG body and the side of its view box, or None where the set has no such icon."""
        found = self.data["icons"].get(self.parent.get(icon, icon))
        if found is None:
            return None
        return found["body"], found.get("width", self.data["width"])


def _is(path: Path, name: str) -> bool:
    """Whether a folder holds exactly this set ("noto" is also the start of "noto-v1")."""
    return json.loads((path / "package.json").read_text())["name"] == f"@iconify-json/{name}"


def words(icon: str) -> str:
    """The human name: "red-apple" is "red apple", "keycap-3" is "digit three"."""
    if icon.startswith("keycap-"):
        return "digit " + DIGITS[int(icon[-1])]
    return icon.replace("-", " ")


def choose(folder: Path) -> dict[str, list[str]]:
    """Icon names by set, in the icon sets' order; "digits" is for training alone."""
    noto, fluent = Icons(folder, "noto"), Icons(folder, HELD_OUT["fluent"])
    emojione, twemoji = Icons(folder, "emojione"), Icons(folder, "twemoji")
    chosen: dict[str, list[str]] = {}
    for kind, category in KINDS.items():
        names = noto.metadata["categories"][category]
        names = [n for n in names if noto.body(n) and twemoji.body(n) and fluent.body(n)]
        if kind in OLDER:
            names = [n for n in names if emojione.body(n) and not n.endswith(("-oclock", "-thirty"))]
        chosen[kind] = names
    chosen["digits"] = [f"keycap-{i}" for i in range(10)]
    return chosen
