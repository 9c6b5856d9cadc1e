"""What each head does: its effect on the answer, and what it attends to, for every head of a model at once."""

from .head_map import HeadMap
from .passes import ATTENTION_MEASURES
from .patching import Means, by_layer, effects, patches, scores
from .running import MEASURES, profile

__all__ = [
    "ATTENTION_MEASURES",
    "MEASURES",
    "HeadMap",
    "Means",
    "by_layer",
    "effects",
    "patches",
    "profile",
    "scores",
]
