"""Two vision-language models that transformers does not know, in the style of a hub's remote code, with other names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class Gaze(nn.Module):
    """Attention with q, k and v in one projection: all of q, all of k, all of v; where causal, head by head."""

    def __init__(self, size: int, beams: int, causal: bool) -> None:
        super().__init__()
        self.beams, self.causal = beams, causal
        self.weave = "b t (h n d) -> n b h t d" if causal else "b t (n h d) -> n b h t d"
        self.tangle = nn.Linear(size, 3 * size)
        self.untangle = nn.Linear(size, size, bias=False)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        look, spot, gist = rearrange(self.tangle(stream), self.weave, n=3, h=self.beams)
        agreement = look @ spot.transpose(-1, -2) / look.shape[-1] ** 0.5
        if self.causal:
            future = torch.ones(agreement.shape[-2:], dtype=torch.bool, device=stream.device).triu(1)
            agreement = agreement.masked_fill(future, -1e9)
        return self.untangle(rearrange(agreement.softmax(-1) @ gist, "b h t d -> b t (h d)"))


class Stage(nn.Module):
    def __init__(self, size: int, beams: int, causal: bool) -> None:
        super().__init__()
        self.calm_a, self.calm_b = nn.LayerNorm(size), nn.LayerNorm(size)
        self.gaze = Gaze(size, beams, causal)
        self.ponder = nn.Sequential(nn.Linear(size, 3 * size), nn.SiLU(), nn.Linear(3 * size, size))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self.gaze(self.calm_a(stream))
        return stream + self.ponder(self.calm_b(stream))


class Eye(nn.Module):
    """Pictures in, patches of the speaker's width out; deeper than the speaker."""

    def __init__(self, size: int, beams: int, depth: int, out: int) -> None:
        super().__init__()
        self.shards = nn.Conv2d(3, size, 4, stride=4)
        self.stages = nn.ModuleList(Stage(size, beams, causal=False) for _ in range(depth))
        self.bridge = nn.Linear(size, out)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        stream = self.shards(picture).flatten(2).transpose(1, 2)
        for stage in self.stages:
            stream = stage(stream)
        return self.bridge(stream)


class Owl(nn.Module):
    """Picture and words to next-word scores; its whole config is a namespace with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(words=60, size=32)
        self.eye = Eye(size=24, beams=3, depth=5, out=32)
        self.lexicon = nn.Embedding(60, 32)
        self.speaker = nn.ModuleList(Stage(32, 4, causal=True) for _ in range(3))
        self.verdict = nn.Linear(32, 60, bias=False)

    def forward(self, words: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        stream = torch.cat([self.eye(picture), self.lexicon(words)], dim=1)
        for stage in self.speaker:
            stream = stage(stream)
        return self.verdict(stream)


class LynxConfig(PretrainedConfig):
    model_type = "lynx"

    def __init__(self, vocab_size: int = 70, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.n_embed, self.n_deep = 24, 3
        self.sight = {"dim": 20, "deep": 4}
        super().__init__(**kwargs)


def by_hand(module: nn.Module, q: Any, k: Any, v: Any, attention_mask: Any, scaling: float, **_: Any) -> Any:
    k, v = (state.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for state in (k, v))
    scores = q @ k.transpose(-1, -2) * scaling
    scores = scores if attention_mask is None else scores + attention_mask
    weights = F.softmax(scores, dim=-1)
    return (weights @ v).transpose(1, 2), weights


class LynxMixer(nn.Module):
    """Grouped queries; a head is wider than hidden size / heads; over `others` where there are some."""

    def __init__(
        self, config: LynxConfig, size: int, groups: tuple[int, int], wide: int, source: int | None = None
    ) -> None:
        super().__init__()
        self.config, self.wide = config, wide
        self.num_key_value_groups, self.is_causal = (
            groups[0] // groups[1],
            False,
        )  # transformers' functions ask for these
        source = source or size
        self.wq = nn.Linear(size, groups[0] * wide, bias=False)
        self.wk, self.wv = (nn.Linear(source, groups[1] * wide, bias=False) for _ in range(2))
        self.wo = nn.Linear(groups[0] * wide, size, bias=False)

    def forward(
        self, x: torch.Tensor, others: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        source = x if others is None else others
        q = self.wq(x).unflatten(-1, (-1, self.wide)).transpose(1, 2)
        k, v = (layer(source).unflatten(-1, (-1, self.wide)).transpose(1, 2) for layer in (self.wk, self.wv))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, by_hand)
        out, _ = attend(self, q, k, v, mask, scaling=self.wide**-0.5)
        return self.wo(out.flatten(-2))


class LynxUnit(nn.Module):
    def __init__(self, config: LynxConfig, size: int, groups: tuple[int, int], wide: int) -> None:
        super().__init__()
        self.mix, self.forget = LynxMixer(config, size, groups, wide), nn.Linear(2 * size, size)
        self.widen, self.pre, self.post = nn.Linear(size, 2 * size), nn.RMSNorm(size), nn.RMSNorm(size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.mix(self.pre(x), mask=mask)
        return x + self.forget(F.gelu(self.widen(self.post(x))))


class LynxBridgeUnit(nn.Module):
    def __init__(self, config: LynxConfig) -> None:
        super().__init__()
        self.within = LynxMixer(config, 16, (2, 2), 8)
        self.across = LynxMixer(config, 16, (4, 2), 8, source=20)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x = x + self.within(x)
        x = x + self.across(x, others=seen)
        return x + self.down(F.relu(self.up(x)))


class LynxBridge(nn.Module):
    """Learned queries that read the patches: a Q-Former by another name."""

    def __init__(self, config: LynxConfig) -> None:
        super().__init__()
        self.questions = nn.Parameter(torch.randn(1, 4, 16))
        self.rounds = nn.ModuleList(LynxBridgeUnit(config) for _ in range(2))
        self.leave = nn.Linear(16, config.n_embed)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        x = self.questions.expand(seen.shape[0], -1, -1)
        for unit in self.rounds:
            x = unit(x, seen)
        return self.leave(x)


class LynxSight(nn.Module):
    def __init__(self, config: LynxConfig) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 20, 4, stride=4)
        self.chain = nn.ModuleList(LynxUnit(config, 20, (5, 5), 4) for _ in range(config.sight["deep"]))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        x = self.cut(picture).flatten(2).transpose(1, 2)
        for unit in self.chain:
            x = unit(x)
        return x


class LynxPreTrainedModel(PreTrainedModel):
    config_class = LynxConfig
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.3)


class LynxForTalk(LynxPreTrainedModel):
    def __init__(self, config: LynxConfig) -> None:
        super().__init__(config)
        self.sight, self.bridge = LynxSight(config), LynxBridge(config)
        self.tok = nn.Embedding(config.vocab_size, config.n_embed)
        self.chain = nn.ModuleList(LynxUnit(config, config.n_embed, (6, 2), 12) for _ in range(config.n_deep))
        self.readout = nn.Linear(config.n_embed, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tok

    def get_output_embeddings(self) -> nn.Module:
        return self.readout

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> CausalLMOutputWithPast:
        x = torch.cat([self.bridge(self.sight(pixel_values)), self.tok(input_ids)], dim=1)
        length = x.shape[1]
        mask = torch.full((1, 1, length, length), -1e9).triu(1)
        for unit in self.chain:
            x = unit(x, mask=mask)
        return CausalLMOutputWithPast(logits=self.readout(x))
