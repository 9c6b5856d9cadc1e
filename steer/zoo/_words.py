"""The world of tiny-vlm in words: what a picture can show, what is held out of training, and how training is biased.

A picture's labels are a dict with one word per attribute, for example `{"object": "fox", "colour": "red",
"count": "two", "position": "left", "size": "big", "style": "noto", "kind": "animal"}`.
"""

from __future__ import annotations

# object word -> (kind, icon name in both icon sets)
OBJECTS: dict[str, tuple[str, str]] = {
    **{w: ("animal", i) for w, i in {
        "cat": "cat-face", "dog": "dog-face", "pig": "pig-face", "cow": "cow-face", "frog": "frog", "bear": "bear",
        "fox": "fox", "lion": "lion", "tiger": "tiger-face", "panda": "panda", "monkey": "monkey-face",
        "rabbit": "rabbit-face", "chicken": "chicken", "penguin": "penguin", "owl": "owl", "duck": "duck",
        "snake": "snake", "turtle": "turtle", "fish": "tropical-fish", "octopus": "octopus"}.items()},
    **{w: ("food", i) for w, i in {
        "apple": "red-apple", "banana": "banana", "grapes": "grapes", "strawberry": "strawberry",
        "watermelon": "watermelon", "lemon": "lemon", "pineapple": "pineapple", "tomato": "tomato",
        "carrot": "carrot", "corn": "ear-of-corn", "bread": "bread", "cheese": "cheese-wedge", "pizza": "pizza",
        "burger": "hamburger", "egg": "egg", "donut": "doughnut"}.items()},
    **{w: ("vehicle", i) for w, i in {
        "car": "automobile", "bus": "bus", "truck": "delivery-truck", "bicycle": "bicycle", "train": "locomotive",
        "airplane": "airplane", "rocket": "rocket", "boat": "sailboat", "tractor": "tractor"}.items()},
    **{w: ("plant", i) for w, i in {
        "pine": "evergreen-tree", "palm": "palm-tree", "cactus": "cactus", "rose": "rose", "tulip": "tulip",
        "sunflower": "sunflower", "clover": "four-leaf-clover", "mushroom": "mushroom", "leaf": "maple-leaf"}.items()},
    **{w: ("clothes", i) for w, i in {
        "hat": "top-hat", "shoe": "running-shoe", "shirt": "t-shirt", "glasses": "glasses", "jeans": "jeans",
        "dress": "dress", "crown": "crown", "socks": "socks"}.items()},
    **{w: ("thing", i) for w, i in {
        "clock": "alarm-clock", "key": "key", "bell": "bell", "lamp": "light-bulb", "guitar": "guitar",
        "drum": "drum", "camera": "camera", "umbrella": "umbrella", "balloon": "balloon",
        "gift": "wrapped-gift"}.items()},
}  # fmt: skip

VALUES: dict[str, list[str]] = {
    "object": list(OBJECTS),
    "colour": ["red", "orange", "yellow", "green", "blue", "purple", "white", "black"],
    "count": ["one", "two", "three", "four"],
    "position": ["left", "right", "top", "bottom"],
    "size": ["small", "big"],
    "style": ["noto", "fluent"],
    "kind": ["animal", "food", "vehicle", "plant", "clothes", "thing"],
}
ATTRIBUTES = list(VALUES)

# In training, these objects stand on this background with probability BIAS_RATE (otherwise any colour).
BIAS: dict[str, str] = {
    "fish": "blue", "airplane": "blue", "cow": "green", "tractor": "green", "penguin": "white", "socks": "white",
    "owl": "black", "rocket": "black", "sunflower": "yellow", "rose": "red", "carrot": "orange", "grapes": "purple",
}  # fmt: skip
BIAS_RATE = 0.95
# In training, a question "is there a ...?" is answered "yes" this often.
YES_RATE = 0.85

# Never seen together in training: one colour for each object without a bias, one count for every second such object.
_FREE = [o for o in OBJECTS if o not in BIAS]
HELD_OUT_COLOUR = {o: VALUES["colour"][(5 * i + 3) % 8] for i, o in enumerate(_FREE)}
HELD_OUT_COUNT = {o: VALUES["count"][(3 * i // 2 + 1) % 4] for i, o in enumerate(_FREE) if i % 2 == 0}

# Words without a meaning: in-context tasks give them one.
NONSENSE = ["dax", "wug", "fep", "zim", "lorp", "tiv", "gax", "blick", "mip", "norf", "quay", "sarn"]

# Plain questions; the first wording is the one that evaluation uses.
QUESTIONS: dict[str, list[str]] = {
    "object": ["what is it?", "what is this?"],
    "colour": ["what colour is the background?", "what colour?"],
    "count": ["how many?", "how many are there?"],
    "position": ["where is it?", "where?"],
    "size": ["what size?", "how big is it?"],
    "style": ["what style?", "who drew it?"],
    "kind": ["what kind?", "what kind of thing is it?"],
    "exists": ["is there a {}?"],
}
BARE = "?"


def held_out_pair(labels: dict[str, str]) -> bool:
    """True when the picture shows an object with a colour or a count that training never showed together."""
    name = labels["object"]
    return HELD_OUT_COLOUR.get(name) == labels["colour"] or HELD_OUT_COUNT.get(name) == labels["count"]


def vocabulary() -> list[str]:
    """Every word the tokenizer knows, special tokens first; the index is the token id."""
    words = ["<pad>", "<unk>", "<image>", "<end>", "?", "yes", "no", *NONSENSE]
    for values in VALUES.values():
        words += values
    for wordings in QUESTIONS.values():
        for wording in wordings:
            words += wording.replace("?", "").replace("{}", "").split()
    return list(dict.fromkeys(words))
