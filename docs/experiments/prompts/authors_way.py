"""CoOp and CoCoOp as their authors train and ask them, in plain torch on a transformers `CLIPModel`: the speed to beat.

Nothing is kept and nothing is cut. Every text has all of its 77 tokens; all classes are in one graph; a picture is
encoded anew each time it is seen, the classes at every predicted batch; CoCoOp encodes all classes picture
after picture. Texts, ids (K, 77), are `[SOS]`, as many placeholders as context vectors, the name, a full stop, `[EOT]`,
padding. All runs where the model is, in its dtype. Training is SGD, momentum 0.9, weight decay 5e-4, at one rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel


@contextmanager
def _frozen(model: CLIPModel) -> Iterator[None]:
    """No weight asks for a gradient meanwhile; what asked before does so again."""
    asked = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)


def _images(model: CLIPModel, pixel_values: Tensor) -> Tensor:
    """Normalised features (B, P)."""
    return F.normalize(model.get_image_features(pixel_values).pooler_output, dim=-1)


def _texts(model: CLIPModel, ids: Tensor, context: Tensor) -> Tensor:
    """Normalised features (K, P) of ids (K, 77) with `context` (n, D) for the embeddings of tokens 1 .. n."""
    n = len(context)

    def splice(module: nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        return torch.cat([embedded[:, :1], context.expand(len(embedded), -1, -1), embedded[:, 1 + n :]], 1)

    hook = model.text_model.embeddings.token_embedding.register_forward_hook(splice)
    try:
        return F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
    finally:
        hook.remove()


def _coop(model: CLIPModel, ids: Tensor, pixel_values: Tensor, context: Tensor) -> Tensor:
    """Logits (B, K)."""
    return model.logit_scale.exp() * _images(model, pixel_values) @ _texts(model, ids, context).T


def _cocoop(model: CLIPModel, ids: Tensor, pixel_values: Tensor, context: Tensor, meta: nn.Module) -> Tensor:
    """Logits (B, K), a picture at a time."""
    features = _images(model, pixel_values)
    rows = [
        model.logit_scale.exp() * feature @ _texts(model, ids, context + shift).T
        for feature, shift in zip(features, meta(features), strict=True)
    ]
    return torch.stack(rows)


def _fit(
    logits: Callable[[Tensor], Tensor],
    learned: Sequence[Tensor],
    pixel_values: Tensor,
    labels: Tensor,
    steps: int,
    lr: float,
    batch: int | None,
) -> list[float]:
    """Train in place; the loss of each step. A step takes the next `batch` examples, the first again after the last."""
    optimizer = torch.optim.SGD(learned, lr=lr, momentum=0.9, weight_decay=5e-4)
    size = batch or len(labels)
    losses = []
    for step in range(steps):
        rows = torch.arange(step * size, (step + 1) * size, device=labels.device) % len(labels)
        loss = F.cross_entropy(logits(pixel_values[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fit_coop(
    model: CLIPModel,
    ids: Tensor,
    pixel_values: Tensor,
    labels: Tensor,
    context: Tensor,
    steps: int,
    lr: float,
    batch: int | None = None,
) -> tuple[Tensor, list[float]]:
    """The context (n, D) after `steps`, from the one given, and the losses; `batch` None: all pictures in each step."""
    learned = context.clone().requires_grad_()
    with _frozen(model):
        losses = _fit(
            lambda pixels: _coop(model, ids, pixels, learned), [learned], pixel_values, labels, steps, lr, batch
        )
    return learned.detach(), losses


@torch.no_grad()
def predict_coop(model: CLIPModel, ids: Tensor, pixel_values: Tensor, context: Tensor, batch: int = 32) -> Tensor:
    """Logits (B, K), `batch` pictures at a time."""
    return torch.cat([_coop(model, ids, pixels, context) for pixels in pixel_values.split(batch)])


def meta_net(model: CLIPModel) -> nn.Sequential:
    """CoCoOp's network from a picture's features to a shift of the context, as torch initialises it."""
    width, context = model.config.projection_dim, model.config.text_config.hidden_size
    net = nn.Sequential(nn.Linear(width, width // 16), nn.ReLU(), nn.Linear(width // 16, context))
    return net.to(model.logit_scale)


def fit_cocoop(
    model: CLIPModel,
    ids: Tensor,
    pixel_values: Tensor,
    labels: Tensor,
    context: Tensor,
    meta: nn.Module,
    steps: int,
    lr: float,
    batch: int | None = 1,
) -> tuple[Tensor, list[float]]:
    """The context after `steps`, and the losses; `meta` is trained in place. The authors' batch is one picture."""
    learned = context.clone().requires_grad_()
    trained = [learned, *meta.parameters()]
    with _frozen(model):
        losses = _fit(
            lambda pixels: _cocoop(model, ids, pixels, learned, meta), trained, pixel_values, labels, steps, lr, batch
        )
    return learned.detach(), losses


@torch.no_grad()
def predict_cocoop(
    model: CLIPModel, ids: Tensor, pixel_values: Tensor, context: Tensor, meta: nn.Module, batch: int = 32
) -> Tensor:
    """Logits (B, K), `batch` pictures at a time."""
    return torch.cat([_cocoop(model, ids, pixels, context, meta) for pixels in pixel_values.split(batch)])
