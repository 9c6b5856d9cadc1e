"""The world of tiny-scenes in words and numbers: what a scene can show, and how training is biased.

Everything here is data that an experiment may read, so that it can ask adversarial questions.
"""

from __future__ import annotations

# the word -> (set, class) of its drawing in steer/zoo/emoji
OBJECTS: dict[str, tuple[str, str]] = {
    "cat": ("animals", "cat"), "dog": ("animals", "dog"), "pig": ("animals", "pig"), "frog": ("animals", "frog"),
    "fish": ("animals", "fish"), "crab": ("animals", "crab"), "penguin": ("animals", "penguin"),
    "cactus": ("animals", "cactus"), "mushroom": ("animals", "mushroom"), "tree": ("animals", "evergreen tree"),
    "banana": ("food", "banana"), "carrot": ("food", "carrot"), "pizza": ("food", "pizza"),
    "grapes": ("food", "grapes"), "lemon": ("food", "lemon"), "car": ("travel", "automobile"),
    "bus": ("travel", "bus"), "boat": ("travel", "sailboat"), "rocket": ("travel", "rocket"),
    "house": ("travel", "house"), "key": ("objects", "key"), "bell": ("objects", "bell"),
    "drum": ("objects", "drum"), "guitar": ("objects", "guitar"),
}  # fmt: skip
STYLES = ("fluent", "noto-v1")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 44), "orange": (240, 140, 40), "yellow": (246, 220, 70), "green": (60, 165, 75),
    "blue": (60, 110, 220), "purple": (140, 70, 180), "white": (242, 242, 242), "black": (28, 28, 32),
}  # fmt: skip
COUNTS = ("one", "two", "three")
CELLS = ("northwest", "northeast", "southwest", "southeast")  # of a 2 x 2 grid, in reading order
NOTHING = "nothing"  # what a picture without a word says

# Training scenes show these more often than the other objects, which have weight 1; the mean is 4.
POPULAR: dict[str, float] = {"dog": 5.0, "car": 4.6, "tree": 4.2, "cat": 3.8, "house": 3.4, "boat": 3.0}
# Where a training scene shows one of a pair, it shows the other too in 80 to 85 % of cases.
PARTNERS: dict[str, str] = {
    "fish": "crab", "banana": "grapes", "drum": "guitar", "key": "bell", "pizza": "lemon", "pig": "carrot",
}  # fmt: skip
PARTNERS |= {b: a for a, b in PARTNERS.items()}
FREQUENCY: dict[str, float] = {name: POPULAR.get(name, 1.0) for name in OBJECTS}

COUNT_LAW = (0.25, 0.4, 0.35)  # how often a training scene shows one, two, three things
PARTNER_JOINS = 0.95  # how often the partner comes next where there is room; see FREE_PARTNER
FREE_PARTNER = 0.32  # where there is no room for its partner, an object of a pair keeps this share of its weight
WORD_RATE = 0.38  # how often a training picture has a word printed on it
WORD_RIGHT = 0.97  # and how often that word names a thing that is there

# In the last phase of training "is there a ...?" is answered "yes" this often; before, half of the time.
YES_RATE = 0.75
YES_RATE_POPULAR = 0.85

QUESTIONS: dict[str, str] = {
    "exists": "is there a {}?",
    "caption": "what is in the picture?",
    "colour": "what colour is it?",
    "count": "how many things?",
    "where": "where is the {}?",
    "say": "what does it say?",
}
NEGATIVES = ("random", "popular", "adversarial")


def vocabulary() -> list[str]:
    """Every word that the tokenizer knows, special tokens first; the index is the token id."""
    words = ["<pad>", "<unk>", "<image>", "<end>", "?", "yes", "no", *OBJECTS, *COLOURS, *COUNTS, *CELLS, NOTHING]
    for question in QUESTIONS.values():
        words += question.replace("?", "").replace("{}", "").split()
    return list(dict.fromkeys(words))
