"""What is known of single classes, and only the tests of the maps need to know."""

from __future__ import annotations

# Classes in which no vision tower has attention heads, and why.
NO_VISION_HEADS = {
    "AlignModel": "its vision tower is an EfficientNet, convolutions only",
    "ChameleonForConditionalGeneration": "pictures are codes of a quantiser",
    "EvollaForProteinText2Text": "it reads proteins, not pictures",
    "FuyuForCausalLM": "patches go straight into the text tower",
    "Gemma4UnifiedForConditionalGeneration": "patches go straight into the text tower",
    "InklingForConditionalGeneration": "its vision tower is a pyramid of linear layers",
    "Mistral4ForCausalLM": "it reads text only",
    "UdopForConditionalGeneration": "patches go straight into the encoder",
}

# Softmax that is no attention over tokens: Inkling2 weighs the outputs of its earlier blocks with one.
_OVER_LAYERS = {"Inkling2ForConditionalGeneration": ("attention_input", "mlp_input", "final_input")}


def not_over_tokens(name: str, path: str) -> bool:
    """Whether what looks like attention at this path weighs other things than tokens."""
    return path.rpartition(".")[2] in _OVER_LAYERS.get(name, ())
