"""CLIP's two towers and its logits. B images, K classes, T tokens, D the width of a tower, P the width they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the activation of the weights that OpenAI released."""
    return x * torch.sigmoid(1.702 * x)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), with the exact normal distribution function."""
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


@dataclass(frozen=True)
class Clip:
    """A CLIP by its tensors.

    Attributes:
        weights: the state dict of a transformers `CLIPModel`, of one dtype.
        text_heads, vision_heads: heads of a layer, which no shape tells.
        act: between the two layers of an MLP.
        eps: of every LayerNorm.
    """

    weights: Mapping[str, Tensor]
    text_heads: int
    vision_heads: int
    act: Activation = quick_gelu
    eps: float = 1e-5


def linear(clip: Clip, name: str, x: Tensor) -> Tensor:
    """x W^T + b, the bias if there is one."""
    out = x @ clip.weights[f"{name}.weight"].T
    return out + clip.weights[f"{name}.bias"] if f"{name}.bias" in clip.weights else out


def norm(clip: Clip, name: str, x: Tensor) -> Tensor:
    """LayerNorm over the last axis: the variance is the biased one."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + clip.eps).sqrt()
    return scaled * clip.weights[f"{name}.weight"] + clip.weights[f"{name}.bias"]


def attention(clip: Clip, name: str, x: Tensor, heads: int, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of x (N, T, D), heads side by side; causal: no token sees a later one."""
    n, t, width = x.shape
    q, k, v = (linear(clip, f"{name}.{which}_proj", x).view(n, t, heads, -1).transpose(1, 2) for which in "qkv")
    scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
    return linear(clip, f"{name}.out_proj", (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width))


def block(clip: Clip, name: str, x: Tensor, heads: int, causal: bool) -> Tensor:
    """x + attention(norm x), then that + MLP(norm of it)."""
    x = x + attention(clip, f"{name}.self_attn", norm(clip, f"{name}.layer_norm1", x), heads, causal)
    inner = clip.act(linear(clip, f"{name}.mlp.fc1", norm(clip, f"{name}.layer_norm2", x)))
    return x + linear(clip, f"{name}.mlp.fc2", inner)


def depth(clip: Clip, tower: str) -> int:
    """How many blocks a tower has."""
    start = f"{tower}.encoder.layers."
    return 1 + max(int(name[len(start) :].split(".")[0]) for name in clip.weights if name.startswith(start))


def rows(tensor: Tensor, n: int) -> Tensor:
    """(m, D) or (n, m, D) as (n, m, D)."""
    return tensor.expand(n, -1, -1)


def embed(clip: Clip, ids: Tensor) -> Tensor:
    """(K, T) token ids as (K, T, D), positions not yet added."""
    return clip.weights["text_model.embeddings.token_embedding.weight"][ids]


def splice(embedded: Tensor, learned: Tensor, start: int = 1) -> Tensor:
    """`learned` (m, D) or (K, m, D) in place of rows start .. start + m - 1 of `embedded` (K, T, D)."""
    learned = rows(learned, len(embedded))
    return torch.cat([embedded[:, :start], learned, embedded[:, start + learned.shape[1] :]], 1)


def encode_text(
    clip: Clip, ids: Tensor, embedded: Tensor | None = None, deep: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Features (K, P) of texts, not normalised, read at the end-of-text token: the largest id, the first of its kind.

    Args:
        clip: the model.
        ids: (K, T).
        embedded: (K, T, D) to read in place of the ids' embeddings.
        deep: before layer i, `deep[i]` (m, D) takes the place of rows 1 .. m, whatever the layer before made of them.
    """
    x = embed(clip, ids) if embedded is None else embedded
    x = x + clip.weights["text_model.embeddings.position_embedding.weight"][: ids.shape[1]]
    for layer in range(depth(clip, "text_model")):
        if deep and layer in deep:
            x = splice(x, deep[layer])
        x = block(clip, f"text_model.encoder.layers.{layer}", x, clip.text_heads, causal=True)
    x = norm(clip, "text_model.final_layer_norm", x)
    return linear(clip, "text_projection", x[torch.arange(len(ids)), ids.argmax(-1)])


def encode_image(
    clip: Clip, images: Tensor, appended: Tensor | None = None, deep: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Features (B, P) of pictures, not normalised, read at the class token.

    Args:
        clip: the model.
        images: (B, 3, H, W).
        appended: (m, D) behind the patches, without a position, before the first norm.
        deep: before layer i, `deep[i]` (m, D) takes the place of the last m rows.
    """
    kernel = clip.weights["vision_model.embeddings.patch_embedding.weight"]
    patches = F.conv2d(images, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([rows(clip.weights["vision_model.embeddings.class_embedding"][None], len(images)), patches], 1)
    x = x + clip.weights["vision_model.embeddings.position_embedding.weight"]
    if appended is not None:
        x = torch.cat([x, rows(appended, len(x))], 1)
    x = norm(clip, "vision_model.pre_layrnorm", x)
    for layer in range(depth(clip, "vision_model")):
        if deep and layer in deep:
            x = splice(x, deep[layer], x.shape[1] - deep[layer].shape[-2])
        x = block(clip, f"vision_model.encoder.layers.{layer}", x, clip.vision_heads, causal=False)
    return linear(clip, "visual_projection", norm(clip, "vision_model.post_layernorm", x[:, 0]))


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis."""
    return x / x.norm(dim=-1, keepdim=True)


def similarity(clip: Clip, images: Tensor, texts: Tensor) -> Tensor:
    """Logits (B, K): exp(logit scale) times the cosine of features (B, P) and (K, P)."""
    return clip.weights["logit_scale"].exp() * unit(images) @ unit(texts).T
