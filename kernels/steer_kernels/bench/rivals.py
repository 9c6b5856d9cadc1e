"""Other people's kernels for the same jobs, where they are installed.

flash-linear-attention (0.6) has none that does one of these jobs: its fused Kullback-Leibler divergence takes hidden
states and an output matrix, not logits; its norms and gates act on whole rows and add no vector; its rotary kernel
has nothing behind it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from .task import Call, Missing, Rival

NAMES = ("liger", "kvpress")


def liger_jsd(backward: bool, cuda: bool) -> Rival:
    """Liger-Kernel's JSD. It takes log-probabilities, so the two log-softmaxes are timed with it.

    It gives the mean over rows in the dtype of its input, and its forward makes the gradient too. Its backward is
    called without a factor, where it has nothing left to do.
    """

    def make() -> Call:
        if not cuda:
            raise Missing("Liger-Kernel runs on a GPU only")
        loss = _module("liger_kernel.transformers.jsd").LigerJSD(beta=0.5)

        def forward(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = loss(first.log_softmax(-1), second.log_softmax(-1))
            return result

        def both(first: torch.Tensor, second: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
            leaf = first.detach().requires_grad_()
            return torch.autograd.grad(forward(leaf, second), [leaf])

        return both if backward else forward

    if backward:
        return Rival(make, tolerance=5e-2)
    return Rival(make, of_ours=lambda rows: rows.mean(), of_theirs=lambda one: one.float(), tolerance=5e-2)


def kvpress_scores(window: int) -> Rival:
    """SnapKVPress.score of kvpress: the mean attention of the last `window` queries to all keys before them.

    It wants an attention module and its input; it gets one whose projection is the identity and whose rotation turns
    by nothing, on queries laid out as that module would get them. Its pooling is over one token, which is none.
    """

    def make() -> Call:
        press = _bare("kvpress", "presses.snapkv_press").SnapKVPress(window_size=window, kernel_size=1)

        def score(
            query: torch.Tensor, key: torch.Tensor, query_slots: torch.Tensor, key_slots: torch.Tensor
        ) -> torch.Tensor:
            module = torch.nn.Module()
            config = types.SimpleNamespace(num_attention_heads=query.shape[1], num_key_value_heads=key.shape[1])
            module.config, module.head_dim, module.q_proj = config, query.shape[3], torch.nn.Identity()  # type: ignore
            hidden = query.transpose(1, 2).flatten(2)
            # A row in front that nothing reads: the press refuses an input that is no longer than its window.
            hidden = torch.cat([hidden[:, :1], hidden], 1)
            one = query.new_ones(1, 1, 1)
            angles = {"position_embeddings": (one, torch.zeros_like(one))}
            result: torch.Tensor = press.score(module, hidden, key, key, None, angles)
            return result

        return score

    return Rival(make, of_ours=lambda s: s[..., :-window], of_theirs=lambda s: s[..., :-window].float())


def _module(name: str) -> ModuleType:
    return _found(name.partition(".")[0], lambda: importlib.import_module(name))


def _bare(package: str, name: str) -> ModuleType:
    """A module of a package without what the package's own `__init__` does: kvpress patches attention there."""

    def load() -> ModuleType:
        if package not in sys.modules:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.submodule_search_locations is None:
                raise ModuleNotFoundError(f"No module named {package!r}")
            bare = types.ModuleType(package)
            bare.__path__ = list(spec.submodule_search_locations)
            sys.modules[package] = bare
        return importlib.import_module(f"{package}.{name}")

    return _found(package, load)


def _found(package: str, load: Callable[[], Any]) -> ModuleType:
    try:
        module: ModuleType = load()
    except ImportError as error:
        raise Missing(f"{package} cannot be imported ({error})") from error
    return module
