"""Record what attention functions receive: real forwards of full-size models on the meta device, into truth.json.

    python -m tests.architectures.record_truth [part of a class name ...]

Knows nothing of steer. A probing function stands in transformers' AttentionInterface; attention written without it is
seen by its softmax between two products. Whole models run with tokens alone; every part that is a model of its own is
then run with whatever inputs its signature asks for, until one guess gets through. What no guess reaches is entered by
hand in `configs.BY_HAND`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import _config as fx_config
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from steer.testing import _configs as configs
from tests.architectures.exceptions import not_over_tokens
from tests.architectures.truth import Received, Sizes, pack
from tests.architectures.truth_inputs import CALLS, guesses

FILE = Path(__file__).with_name("truth.json")
KEY = "recorded_truth"
PRODUCTS = {"matmul", "bmm", "einsum", "__matmul__", "baddbmm"}


class Watch(TorchFunctionMode):
    """Sizes (query heads, KV heads, q and k width, v width) per path of the module that computes attention."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.masks = False
        self.running: list[nn.Module] = []
        self.sizes: dict[str, Sizes] = {}
        self.outs: dict[str, str] = {}
        self.leaving: tuple[str, int] | None = None
        self.calls = 0
        self.products: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.scores: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self.waiting: tuple[str, Sizes] | None = None

    def receive(self, module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """One call of the attention function: q (B, H, T, d), k and v (B, H_kv, S, d)."""
        self.keep(self.paths[id(module)], (q.shape[1], k.shape[1], q.shape[-1], v.shape[-1]))

    def keep(self, path: str, sizes: Sizes) -> None:
        """Note one call; the next linear layer of that width to be given its result is the output projection."""
        self.calls += 1
        self.sizes.setdefault(path, sizes)
        self.leaving = path, sizes[0] * sizes[3]

    def enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)
        if self.waiting is not None and isinstance(module, nn.Linear) and args:
            path, (heads, kv_heads, width, value) = self.waiting
            if heads < 0:  # batch and heads were one axis: the output projection says how many heads there are
                heads = kv_heads = args[0].shape[-1] // value
            self.keep(path, (heads, kv_heads, width, value))
            self.waiting = None
        linear = isinstance(module, nn.Linear) and args and getattr(args[0], "after_call", 0) == self.calls
        if linear and self.leaving is not None and module.in_features == self.leaving[1]:
            self.outs.setdefault(self.leaving[0], self.paths[id(module)])
            self.leaving = None

    def leave(self, module: nn.Module, *_: Any) -> None:
        while self.running and self.running.pop() is not module:
            pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":
            module = self.running[-1]
            assert isinstance(module, nn.MultiheadAttention)
            width = args[0].shape[-1] // args[4]
            self.sizes.setdefault(self.paths[id(module)], (args[4], args[4], width, width))
        if name == "scaled_dot_product_attention":
            path = self.paths[id(self.running[-1])]
            q, k, v = args[:3]
            self.keep(path, (q.shape[1], k.shape[1], q.shape[-1], v.shape[-1]))
        if name == "to":
            return _retype(*args, **kwargs)
        if name == "tensor":
            kwargs.pop("device", None)
        out = self._call(func, args, kwargs)
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if isinstance(out, torch.Tensor):
            joined = [part for value in args if isinstance(value, (list, tuple)) for part in value]  # as in torch.cat
            out.after_call = max((getattr(value, "after_call", 0) for value in (*given, *joined)), default=0)
        if name == "scaled_dot_product_attention":
            out.after_call = self.calls
        if name in PRODUCTS and len(given) >= 2:
            left, right = given[-2:]
            if self.scores is not None and any(value.shape == self.scores[2].shape for value in (left, right)):
                self._weigh(right if left.shape == self.scores[2].shape else left)
                out.after_call = self.calls + (self.waiting is not None)
            else:
                self.products = [*self.products[-7:], (left, right, out)]
        if name == "softmax":
            for left, right, product in reversed(self.products):
                if product.dim() >= 3 and product.shape[-2:] == out.shape[-2:] and product.numel() == out.numel():
                    self.scores = left, right, out
                    break
        return out

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The function; where it minds that some tensors hold values and others shapes only, with shapes only."""
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if "device" not in str(error):
                raise
            return func(*_on_meta(args), **{key: _on_meta(value) for key, value in kwargs.items()})

    def _weigh(self, v: torch.Tensor) -> None:
        assert self.scores is not None
        q = self.scores[0]
        owner = next(module for module in reversed(self.running) if any(True for _ in module.parameters()))
        heads = q.shape[1] if q.dim() == 4 else -1
        self.waiting = self.paths[id(owner)], (heads, v.shape[1] if v.dim() == 4 else -1, q.shape[-1], v.shape[-1])
        self.scores = None


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    return type(value)(map(_on_meta, value)) if type(value) in (tuple, list) else value


def _retype(tensor: torch.Tensor, *args: Any, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    """`Tensor.to` that moves nothing: what has values (lengths, masks, ids) keeps them, what has none stays on meta."""
    types = [arg.dtype if isinstance(arg, torch.Tensor) else arg for arg in (*args, dtype)]
    types = [kind for kind in types if isinstance(kind, torch.dtype)]
    return tensor.type(types[0]) if types else tensor


def watch(model: nn.Module) -> tuple[Watch, list[Any]]:
    """Start to watch a model: its configs name the probe, its experts (loops over data) pass their input on."""
    seen = Watch(model)

    def probe(module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> Any:
        seen.receive(module, q, k, v)
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])
        out.after_call = seen.calls  # type: ignore[attr-defined]
        return out, None

    AttentionInterface.register(KEY, probe)

    def mask(batch_size: int, q_length: int, kv_length: int, *_: Any, **__: Any) -> torch.Tensor | None:
        return torch.empty(batch_size, 1, q_length, kv_length, device="meta") if seen.masks else None

    AttentionMaskInterface.register(KEY, mask)
    for module in model.modules():
        for value in vars(module).values():
            if hasattr(value, "_attn_implementation_internal"):
                value._attn_implementation_internal = KEY
        if type(module).__name__.endswith("Experts"):
            module.forward = lambda hidden_states, *_, **__: torch.empty_like(hidden_states)  # type: ignore[assignment]
    before = nn.modules.module.register_module_forward_pre_hook(seen.enter)
    after = nn.modules.module.register_module_forward_hook(seen.leave, always_call=True)
    return seen, [before, after]


def run(seen: Watch, module: nn.Module, **inputs: Any) -> str:
    """Run one forward; the error's first line, or nothing."""
    seen.running, seen.products, seen.scores, seen.waiting, seen.leaving = [], [], None, None, None
    try:
        with seen, torch.no_grad():
            module(**inputs)
    except Exception as error:  # a guess at inputs may fail in any way
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"
    return ""


def _try(seen: Watch, part: nn.Module) -> str:
    """Run one part with guesses until one gets through; the last error where none reached any attention."""
    before, error = len(seen.sizes), "no guess"
    for seen.masks in (False, True):
        for inputs in guesses(part):
            if not (error := run(seen, part, **inputs)):
                return ""
        if len(seen.sizes) > before:
            break
    return error if len(seen.sizes) == before else ""


def record(cls: type[nn.Module]) -> tuple[dict[str, Received], list[str]]:
    """What every reachable attention module of the class received, and the errors of parts that did not run."""
    model = configs.full_model(cls)
    seen, hooks = watch(model)
    errors = []
    try:
        for path, part in model.named_modules():
            if isinstance(part, PreTrainedModel) and (error := _try(seen, part)):
                errors.append(f"{path or 'model'}: {error}")
        for path, inputs in CALLS.get(cls.__name__, {}).items():
            before = len(seen.sizes)
            error = run(seen, model.get_submodule(path), **inputs())
            if len(seen.sizes) == before:
                errors.append(f"{path}, called with inputs of its own, reached nothing: {error}")
    finally:
        for hook in hooks:
            hook.remove()
        del AttentionInterface._global_mapping[KEY], AttentionMaskInterface._global_mapping[KEY]
    return {path: (sizes, seen.outs.get(path)) for path, sizes in seen.sizes.items()}, errors


def main(wanted: list[str]) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    fx_config.meta_nonzero_assume_all_nonzero = True
    torch.set_num_threads(1)
    truth = json.loads(FILE.read_text()) if FILE.exists() else {}
    for cls in configs.every_class():
        name = cls.__name__
        if (wanted and not any(word.lower() in name.lower() for word in wanted)) or configs.missing(name):
            continue
        start = time.perf_counter()
        received, errors = record(cls)
        received = {path: found for path, found in received.items() if not not_over_tokens(name, path)}
        truth[name] = pack(received)
        print(
            f"{name}: {len(received)} modules, {time.perf_counter() - start:.1f} s", *errors, sep="\n    ! ", flush=True
        )
    FILE.write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
