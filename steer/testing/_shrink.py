"""Shrink any config: few layers, small widths, every kind of layer kept, equal fields still equal.

The rules go by a field's name and value and know no architecture.
"""

from __future__ import annotations

import re
from typing import Any

WIDTH, HEADS, HEAD_DIM, FEED, VOCAB, LAYERS = 64, 4, 16, 256, 128, 3
IDS_FROM = 100  # token ids that are not small already go from here up, text is below

_LAYERS = re.compile(
    r"^(num_(hidden_|decoder_|encoder_|spatial_|temporal_|auxiliary_|global_)?layers|depth|n_layers?|layers|"
    r"(en|de)coder_layers|resampler_depth|aligner_num_add_layers|conf_num_hidden_layers)$"
)
_WIDTHS = re.compile(
    r"^(\w*hidden_(size|dim)|(\w*_)?embed_dim|d_model|n_embd|embedding_size|\w*project(ion|or)?_(dim|size)|"
    r"word_embed_proj_dim|\w*output_dim|\w*input_dim|adapter_(in|out)_dim|adapter_input_size|\w*_output_size)$"
)
_HEADS = re.compile(r"^((\w*_)?num_(\w+_)?heads|n_heads?|(\w*_)?attention_heads|\w*_n_heads|\w*_heads)$")
_KV_HEADS = re.compile(r"^(\w*_)?num_(\w+_)?(key_value|kv)_heads$|^n_kv_heads$")
_FEEDS = re.compile(r"^(\w*intermediate_size(_mlp)?|(\w+_)?ffn_dim|d_ff|mlp_dim|\w*expert_dim)$")
_EXPERTS = re.compile(r"^(n|num|moe_num)_(routed_|local_)?experts$")
_PER_TOKEN = re.compile(r"^(num_experts_per_tok(en)?|moe_k|moe_topk|top_k_experts)$")
_HEAD_DIM = re.compile(r"^(\w*head_dim|d_kv|kv_channels|resampler_dim_head)$")
_TOKEN = re.compile(r"(_token(_id)?|_token_index|_id)$")
_INDICES = re.compile(r"ind(ex|ices|exes|xs)|idxs|_layers$|^moe_layers$")
_RANKS = {"q_lora_rank": 24, "kv_lora_rank": 20}
_ROTARY = 8  # of a latent query's head of 16


def shrink(data: dict[str, Any]) -> dict[str, Any]:
    """A small version of a config's dictionary, nested configs included.

    Widths become 64, query heads 4 with the model's ratio of KV heads, at least three layers stay and one of each kind
    among them, token ids move into a vocabulary of 128.
    """
    small = _small(data, {})
    for key, value in small.items():
        if value is None and key in ("image_token_id", "image_token_index", "video_token_id", "video_token_index"):
            small[key] = IDS_FROM - 1
    if small.get("image_grid_pinpoints"):
        side = small["vision_config"]["image_size"]
        small["image_grid_pinpoints"] = [[side, 2 * side]]
    return small


def _small(data: dict[str, Any], ids: dict[int, int]) -> dict[str, Any]:
    count = _layer_count(data)
    keep = _kept_layers(data, count) if count else []
    small: dict[str, Any] = {}
    for key, value in data.items():
        if key in ("id2label", "label2id", "stage_names", "out_features"):
            continue  # made anew from the other fields
        if not isinstance(key, str):
            small[key] = value
        elif key == "per_layer_config" and isinstance(value, dict):
            small[key] = _per_layer(value, keep, ids)
        elif isinstance(value, dict) and not key.startswith("rope"):
            small[key] = _small(value, ids)
        elif isinstance(value, list | tuple):
            small[key] = _sequence(key, list(value), count, keep)
        elif isinstance(value, bool) or not isinstance(value, int):
            small[key] = value
        else:
            small[key] = _number(key, value, data, keep, ids)
    _fit_rotary(small)
    return small


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _layer_count(data: dict[str, Any]) -> int:
    for name in ("num_hidden_layers", "depth", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "layers"):
        if _is_count(data.get(name)):
            return data[name]
    return 0


def _indices(key: str, value: Any, count: int) -> bool:
    """Whether a list names layers by number."""
    numbers = isinstance(value, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    return bool(numbers and value and _INDICES.search(key) and min(value) >= 0 and max(value) < count)


def _kept_layers(data: dict[str, Any], count: int) -> list[int]:
    """Indices of the layers that stay: the first of each kind and at least three, in order."""
    lists = [
        v for k, v in data.items() if isinstance(v, list | tuple) and len(v) == count and not _indices(k, v, count)
    ]
    named = [value for key, value in data.items() if _indices(key, value, count)]
    apart = data.get("per_layer_config") or {}
    kinds = [
        str([[items[i] for items in lists], [i in items for items in named], apart.get(f"{i:02d}", apart.get(str(i)))])
        for i in range(count)
    ]
    kept = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())[:5]
    rest = [index for index in range(count) if index not in kept]
    return sorted(kept + rest[: max(0, LAYERS - len(kept))])


def _per_layer(value: dict[Any, Any], keep: list[int], ids: dict[int, int]) -> dict[Any, Any]:
    """Fields that single layers have of their own."""
    digits = max((len(str(key)) for key in value), default=1)
    small = {}
    for place, index in enumerate(keep):
        own = next((v for k, v in value.items() if int(k) == index), None)
        if own is not None:
            small[str(place).zfill(digits)] = _small(own, ids) if isinstance(own, dict) else own
    return small


def _number(key: str, value: int, data: dict[str, Any], keep: list[int], ids: dict[int, int]) -> int:
    """The small value of one integer field."""
    if value < 0:
        return max(value, -LAYERS) if "layer" in key else value
    if _TOKEN.search(key) and "layer" not in key:
        return value if value < 8 else ids.setdefault(value, IDS_FROM + len(ids))
    if key in _RANKS:
        return min(value, _RANKS[key])
    if key in ("qk_nope_head_dim", "qk_rope_head_dim"):
        rotary = min(_ROTARY, data.get("qk_rope_head_dim", _ROTARY))
        return rotary if key == "qk_rope_head_dim" else HEAD_DIM - rotary
    if key == "v_head_dim":
        return min(value, HEAD_DIM - 4)
    if _KV_HEADS.match(key):
        own = next((data[name] for name in _query_heads(key) if _is_count(data.get(name))), value)
        return max(1, HEADS * value // own)
    if _LAYERS.match(key):
        return min(value, len(keep) or LAYERS)
    if _HEADS.match(key):
        return min(value, HEADS)
    if key == "head_dim" and value == data.get("qk_rope_head_dim"):
        return min(value, _ROTARY)
    if _HEAD_DIM.match(key):
        return min(value, HEAD_DIM)
    if _WIDTHS.match(key) and key != "patch_embed_hidden_size":  # a patch's pixels
        return WIDTH
    if _FEEDS.match(key):
        return FEED // 8 if "moe" in key or "expert" in key else FEED
    if _EXPERTS.match(key):
        return min(value, 4)
    if _PER_TOKEN.match(key):
        return min(value, 2)
    return _other(key, value, data)


def _query_heads(key: str) -> list[str]:
    """Where the number of query heads that belongs to this number of KV heads may stand."""
    return [
        key.replace("key_value", "attention").replace("kv", "attention"),
        key.replace("_key_value", "").replace("_kv", ""),
        "num_attention_heads",
        "num_heads",
    ]


def _other(key: str, value: int, data: dict[str, Any]) -> int:
    if ("vocab_size" in key and "type" not in key) or key in ("num_embeddings", "codebook_size"):
        return VOCAB
    if re.search(r"max_position|max_seq|model_max_length|seq_length|_seq_len$|original_max", key):
        return min(value, 256)
    if key == "image_size":
        patch = data.get("patch_size")
        return 4 * (patch if isinstance(patch, int) and _is_count(patch) else 16)
    if "sliding_window" in key or "chunk_size" in key:
        return min(value, 16)
    if key == "mm_tokens_per_image" or re.search(r"(query_num|query_tokens|_latents)$", key):
        return min(value, 4)
    if key in ("num_frames", "n_groups"):
        return min(value, 2)
    if key in ("n_group", "topk_group", "first_k_dense_replace"):
        return min(value, 1)
    if key.endswith("channels") and value > WIDTH:
        return WIDTH if key != "base_channels" else WIDTH // 2
    return value


def _sequence(key: str, value: list[Any], count: int, keep: list[int]) -> list[Any]:
    """Lists with an item per layer keep those of the layers that stay; lists of layers name their new places."""
    if count and len(value) == count and value == list(range(count)):
        return list(range(len(keep)))
    if count and len(value) == count:
        value = [value[index] for index in keep]
        if "source" in key:
            return [keep.index(item) if item in keep else place for place, item in enumerate(value)]
    elif count and _indices(key, value, count):
        return [keep.index(index) for index in value if index in keep]
    if not value or not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return value
    return _scaled(key, value)


def _scaled(key: str, value: list[int]) -> list[int]:
    """Widths and heads of stages keep their ratios; the largest is that of any other tower."""
    largest = max(value)
    if _WIDTHS.match(key.removesuffix("s")) or key == "downsample_channels":
        return [max(8, item * WIDTH // largest) for item in value] if largest > WIDTH else value
    if _FEEDS.match(key):
        return [max(8, item * FEED // largest) for item in value]
    if _HEADS.match(key) or key == "num_groups":
        return [max(1, item * HEADS // largest) for item in value] if largest > HEADS else value
    if key == "depths":
        return [min(item, 2) for item in value]
    if key == "out_indices":
        return [min(item, LAYERS) for item in value]
    if "feature_layer" in key:
        return [max(-LAYERS, min(item, LAYERS - 1)) for item in value]
    return value


def _fit_rotary(small: dict[str, Any]) -> None:
    """Sections of rotary frequencies add up to half a head again."""
    parameters = small.get("rope_parameters") or small.get("rope_scaling")
    if not isinstance(parameters, dict):
        return
    head = small.get("head_dim") or HEAD_DIM
    for mapping in [parameters, *(item for item in parameters.values() if isinstance(item, dict))]:
        half = int(head * (mapping.get("partial_rotary_factor") or small.get("partial_rotary_factor") or 1.0)) // 2
        # Some models have sections that their configs do not name; those that have none do not look.
        sections = mapping.get("mrope_section") or ([3, 3, 2] if "rope_theta" in mapping else [])
        if sections:
            scaled = [max(1, section * half // sum(sections)) for section in sections]
            scaled[-1] += half - sum(scaled)
            mapping["mrope_section"] = scaled
        for name in ("long_factor", "short_factor"):
            if mapping.get(name):
                mapping[name] = mapping[name][:half]
