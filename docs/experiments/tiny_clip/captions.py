"""What is said of a picture: templates with the name, the kind, and the attributes that were drawn."""

from __future__ import annotations

import re

import numpy as np

# name of a set -> the word that follows "a type of"
KIND_WORDS = {
    "food": "food", "animals": "animal", "objects": "object", "travel": "travel", "activities": "activity",
    "smileys": "smiley", "digits": "number",
}  # fmt: skip
COLOURS = {
    "red": (212, 50, 46), "orange": (240, 140, 44), "yellow": (246, 220, 76), "green": (66, 164, 78),
    "cyan": (70, 200, 210), "blue": (62, 110, 218), "purple": (140, 74, 182), "pink": (244, 150, 190),
    "brown": (130, 86, 54), "white": (244, 244, 244), "grey": (140, 140, 144), "black": (28, 28, 32),
}  # fmt: skip
MIXED = "colourful"  # where the background has no one colour
SIZES = ("small", "medium", "big")
POSITIONS = (
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip

PLAIN = [
    "a photo of a {name}",
    "a photo of the {name}",
    "a photo of one {name}",
    "a picture of a {name}",
    "a picture of the {name}",
    "an image of a {name}",
    "an image of the {name}",
    "a drawing of a {name}",
    "a drawing of the {name}",
    "an emoji of a {name}",
    "an icon of a {name}",
    "a cartoon {name}",
    "this is a {name}",
    "this is a photo of a {name}",
    "here is the {name}",
    "there is a {name} in the picture",
    "a {name}",
    "the {name}",
    "{name}",
    "one {name}",
    "a good photo of a {name}",
    "a texture of {name}",
    "{name} texture",
    "a photo of a {name}, a type of {kind}",
    "a picture of a {name}, a type of {kind}",
    "a {name}, a kind of {kind}",
    "{kind}: {name}",
    "a {kind} called {name}",
]
SEEN = [
    "a {name} on a {colour} background",
    "a photo of a {name} on {colour}",
    "a {size} {name} on a {colour} background",
    "a photo of a {size} {name}",
    "a {size} {name}",
    "a {name} at the {position}",
    "a {size} {name} at the {position}",
    "a {style} emoji of a {name}",
    "a {style} drawing of a {name}",
    "a {name}, {style} style",
    "a {style} {name} on {colour}",
    "a {size} {style} {name}, {colour} background",
]
FULL = [  # these tell two pictures of one name apart
    "a {style} drawing of a {name} on a {colour} background",
    "a {size} {style} {name} at the {position} on {colour}",
    "a {colour} background with a {name} at the {position}, {style} style",
    "a photo of a {size} {name} on {colour}, {style} style",
]
LONG = [  # these train the positions beyond the short captions
    "a photo of a {size} {name} at the {position} of a plain {colour} background, drawn in the {style} style",
    "this is a picture of a {name}, a type of {kind}, it is {size} and at the {position}, "
    "and all around it is {colour}",
    "in this picture there is one {size} {name} at the {position}, it is a kind of {kind} "
    "in the {style} style on {colour}",
    "a {colour} background, at the {position} a {size} {kind} in the {style} style, "
    "and the {kind} here is called {name}",
]
# words that prompts of the papers use, known though no caption here has them
EXTRA = (
    "x itap bad blurry bright clean close cropped dark painting sketch rendering toy with many few and or not is are"
)


def caption(rng: np.random.Generator, seen: dict[str, str], kind: str) -> str:
    """One caption: "long", "full", or else plain or with some attributes; with a full stop in half the cases."""
    some = PLAIN if rng.random() < 0.6 else SEEN
    pool = {"long": LONG, "full": FULL}.get(kind, some)
    return pool[rng.integers(len(pool))].format(**seen) + (" ." if rng.random() < 0.5 else "")


def vocabulary(names: list[str], styles: list[str]) -> list[str]:
    """Every word and sign of every caption, sorted."""
    text = [*names, *styles, *KIND_WORDS.values(), *COLOURS, MIXED, *SIZES, *POSITIONS, EXTRA, ". , : ? !"]
    text += [re.sub(r"\{\w+\}", " ", t) for t in PLAIN + SEEN + FULL + LONG]
    return sorted({w for t in text for w in re.findall(r"\w+|[^\w\s]+", t)})
