"""The terms of the losses, the projected gradient and the step, against numbers worked out by hand and torch's SGD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from tests.prompts.reference import clip_adapter, coprompt, kgcoop, prograd, promptsrc, step, tip_adapter, zero_shot


def test_penalties_by_hand():
    x, y, axes = tensor([[3.0, 0.0], [0.0, 2.0]]), tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    assert kgcoop.penalty(x, x) == pytest.approx(0)
    assert kgcoop.penalty(x, y) == pytest.approx(0.5)  # cosines 1 and 0
    assert coprompt.consistency(x, x, -x, y) == pytest.approx(2 + 0.5)
    # |g - g0| is 0, 0, 1, 1 and its mean 0.5; p = (3/4, 1/4), q = (1/2, 1/2) in one of two rows, 4 logits in all
    teacher = torch.stack([tensor([0.75, 0.25]).log(), torch.zeros(2)])
    kl = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 4
    held = promptsrc.regulariser(axes, x, axes, y, torch.zeros(2, 2), teacher)
    assert held == pytest.approx(25 * 0.5 + kl, rel=1e-6)
    assert promptsrc.regulariser(x, axes, y, axes, teacher, teacher) == pytest.approx(10 * 0.5, rel=1e-6)


def test_epochs_of_promptsrc_are_weighted_by_a_gaussian():
    weights = promptsrc.epoch_weights(20, 15, 1)
    assert weights.sum() == pytest.approx(1)
    assert weights.argmax() == 14
    assert weights[13] / weights[14] == pytest.approx(math.exp(-0.5))
    assert weights[16] / weights[14] == pytest.approx(math.exp(-2))


def test_prograd_takes_away_what_goes_against_the_general_gradient():
    general = tensor([0.0, -4.0])
    assert prograd.projected(tensor([3.0, 2.0]), general).tolist() == [3, 0]
    assert prograd.projected(tensor([3.0, 2.0]), general, 0.5).tolist() == [3, 1]
    assert prograd.projected(tensor([3.0, -2.0]), general).tolist() == [3, -2]


def test_prograd_distance_has_the_gradient_of_t_squared_kl():
    student = tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    teacher = tensor([[0.0, 1.0, 2.0], [1.0, -1.0, 0.0]], dtype=torch.float64)
    (ours,) = torch.autograd.grad(prograd.distance(student, teacher, 2.0), student)
    # d/dz of T^2 KL(p || softmax(z / T)), the mean of two rows: T (softmax(z / T) - p) / 2
    torch.testing.assert_close(ours, (student / 2).softmax(-1) - (teacher / 2).softmax(-1))
    even = torch.zeros(1, 2)
    assert prograd.distance(even, even, 3.0) == pytest.approx(9 * math.log(2))


def test_features_by_hand():
    eye = {"fc.0.weight": torch.eye(2)[:1], "fc.2.weight": tensor([[2.0], [-1.0]])}
    f = tensor([[1.0, 5.0], [-1.0, 5.0]])
    torch.testing.assert_close(clip_adapter.adapted(f, eye, 0.2), tensor([[1.2, 4.0], [-0.8, 4.0]]))
    # keys at cosine 1 and 0 of the picture: alpha for the first one's class, alpha / e^beta for the other's
    mixed = tip_adapter.mix(
        tensor([[2.0, 0.0]]), torch.eye(2) * 7, torch.eye(2), tensor([[0.0, 1.0], [1.0, 0.0]]), 3, 2
    )
    torch.testing.assert_close(mixed, tensor([[100 + 3 * math.exp(-2), 3.0]]))
    # templates are normalised before their mean in zero-shot, not in PromptSRC
    two = [tensor([[3.0, 0.0]]), tensor([[0.0, 4.0]])]
    torch.testing.assert_close(zero_shot.ensemble(two), tensor([[0.5**0.5, 0.5**0.5]]))
    torch.testing.assert_close(promptsrc.teacher_texts(two), tensor([[0.6, 0.8]]))


def test_sgd_is_torchs():
    torch.manual_seed(0)
    start = {"a": torch.randn(3, 2, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    theirs = {name: t.clone().requires_grad_() for name, t in start.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    ours, momenta = start, None
    for _ in range(4):
        _, gradient = step.gradients(lambda x: sum(t.pow(4).sum() for t in x.values()), ours)
        ours, momenta = step.sgd(ours, gradient, momenta, lr=0.1)
        optimizer.zero_grad()
        sum(t.pow(4).sum() for t in theirs.values()).backward()
        optimizer.step()
    for name, t in ours.items():
        torch.testing.assert_close(t, theirs[name].detach())
