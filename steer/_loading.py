"""From a name to a model: zoo name, folder, hub id or config.json."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import MappingError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# In this order: a model that is in several belongs to the first, the one with the most of it.
AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForZeroShotImageClassification",
    "AutoModelForSeq2SeqLM",
    "AutoModelForCausalLM",
    "AutoModel",
)

_KINDS = "a model is a zoo name such as tiny-vlm, a folder, a config.json or a hub id such as user/name"


def meta_model(target: PretrainedConfig | str | os.PathLike[str]) -> PreTrainedModel:
    """An empty model on the meta device, of a config, hub id, folder or config.json.

    Raises:
        MappingError: there is no such thing, or transformers has no model for it.
    """
    config = _config_of(target)
    cls = _model_class(config)
    try:
        with torch.device("meta"):
            return cls._from_config(config)
    # Numbers that make no model surface as whatever the modules' constructors raise.
    except Exception as error:
        raise MappingError(
            f"transformers cannot build a {cls.__name__} from this config: {_first_line(error)}"
        ) from error


def load_model(name: str, *, device_map: str | None = None, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """A model with its weights, in eval mode, and its processor, tokenizer, or None where it has neither.

    Args:
        name: a zoo name such as `tiny-vlm`, a folder or a hub id.
        device_map: as `from_pretrained` takes it, such as "auto"; None loads to the CPU.
        dtype: of the weights; None for what they were saved in.

    Raises:
        MappingError: none of the three, or its weights cannot be read or placed.
    """
    from . import zoo

    source = str(zoo.folder(name)) if name in zoo.names() and not Path(name).is_dir() else name
    config = _config_of(source)
    options: dict[str, Any] = {"device_map": device_map, "dtype": dtype}
    given = {key: value for key, value in options.items() if value is not None}
    try:
        model = _model_class(config).from_pretrained(source, **given).eval()
    # ImportError where what spreads a model over devices is not installed.
    except (OSError, ValueError, ImportError) as error:
        raise MappingError(f"cannot load {name!r}: {_first_line(error)}") from error
    return model, _processor_of(source)


def _processor_of(name: str) -> Any:
    from transformers import AutoProcessor, AutoTokenizer

    for auto in (AutoProcessor, AutoTokenizer):
        try:
            processor = auto.from_pretrained(name)
        except (OSError, ValueError, KeyError):
            continue
        # Where a folder has no tokenizer files, transformers makes one that knows its special tokens and no word.
        tokenizer = getattr(processor, "tokenizer", processor)
        if hasattr(tokenizer, "get_vocab") and len(tokenizer) <= len(tokenizer.all_special_ids):
            continue
        return processor
    return None


def _config_of(target: PretrainedConfig | str | os.PathLike[str]) -> PretrainedConfig:
    from transformers import AutoConfig, PretrainedConfig

    from . import zoo

    if isinstance(target, PretrainedConfig):
        return target
    name = os.fspath(target)
    if not os.path.exists(name) and _is_path(name):
        raise MappingError(f"there is no folder or config.json {name[:500]!r}; {_KINDS}")
    try:
        return AutoConfig.from_pretrained(name)
    # OSError for what is missing; for what it cannot read transformers raises whatever its parsers and checks do.
    except Exception as error:
        near = get_close_matches(name, zoo.names(), n=1) if not os.path.exists(name) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MappingError(
            f"{name!r} is no zoo model, hub id, folder or config.json that transformers can read{hint} "
            f"({_first_line(error)})"
        ) from error


def _is_path(name: str) -> bool:
    """Whether a name can only have been meant as a place on this machine: a hub id is a word or two with a slash."""
    return not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".json")


def _model_class(config: PretrainedConfig) -> Any:
    import transformers

    named = config.architectures
    for architecture in named if isinstance(named, list | tuple) else ():
        if isinstance(architecture, str) and hasattr(transformers, architecture):
            return getattr(transformers, architecture)
    for auto in AUTO_CLASSES:
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise MappingError(f"transformers has no model class for a {type(config).__name__}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__
