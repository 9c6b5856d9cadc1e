"""CoOp's way of training in the loop: SGD by hand, a schedule and a mean by epochs, and what users hook in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer.errors import InterventionError, SteerError, UnknownNameError
from steer.training import Job, Options, run
from steer.training.loop import batch_of

TARGETS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
START = torch.tensor([1.0, -2.0, 0.5])


def job(**more: Any) -> Job:
    """Fit x and a scale to seven targets: |scale x - target|^2 each, three epochs of three steps."""
    given = {"lr": 0.05, "batch_size": 3, "epochs": 3, "optimizer": "sgd", "schedule": "epochs", "max_grad_norm": 0.0}
    options = Options.of({**given, "patience": None, **more.pop("options", {})})
    x, scale = START.clone().requires_grad_(), torch.ones((), requires_grad=True)

    @contextmanager
    def open_batch(indices: Sequence[int]):
        yield {"square": (x * scale - TARGETS[list(indices)]).square().sum(-1)}

    learned = {"x": x, "scale": scale}
    return Job("test", learned, 7, open_batch, {"square": 1.0}, more.pop("dev", None), options, progress=False, **more)


def by_hand(options: dict[str, Any], rate: float = 1.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """v <- m v + (g + w p), p <- p - lr v in fp64, from gradients worked out; (x, scale) after each step."""
    one = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "warmup_lr": 1e-5, "epochs": 3, **options}
    x, s, v, u = START.double(), torch.ones((), dtype=torch.float64), 0.0, 0.0
    seen = []
    for step in range(one["epochs"] * 3):
        epoch = step // 3
        lr = one["lr"] * (1 + math.cos(math.pi * (epoch - 1) / one["epochs"])) / 2 if epoch else one["warmup_lr"]
        batch = batch_of(step, 7, 3, 0)
        apart = x * s - TARGETS.double()[batch]
        first, second = (2 * s * apart).mean(0), (2 * x * apart).sum(-1).mean()
        v = one["momentum"] * v + first + one["weight_decay"] * x
        u = one["momentum"] * u + second + one["weight_decay"] * s
        x, s = x - lr * v, s - lr * rate * u
        seen.append((x, s))
    return seen


WAYS = [{}, {"momentum": 0.0}, {"weight_decay": 0.3}, {"warmup_lr": 0.02}, {"warmup_lr": 0.0}, {"epochs": 1}]


@pytest.mark.parametrize("options", WAYS)
def test_it_is_sgd_by_hand(options):
    made, went = run(job(options=options, rates={"scale": 0.5}))
    x, scale = by_hand(options, 0.5)[-1]
    assert went.step == 3 * options.get("epochs", 3)
    torch.testing.assert_close(made["x"], x.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made["scale"], scale.float(), rtol=1e-5, atol=1e-6)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12), st.floats(1e-4, 1.0), st.floats(0, 1.0))
def test_the_rate_changes_between_epochs_only(epochs, size, batch_size, lr, warmup_lr):
    options = Options(
        lr=lr, warmup_lr=warmup_lr, epochs=epochs, batch_size=batch_size, schedule="epochs", optimizer="sgd"
    )
    an_epoch, steps = math.ceil(size / batch_size), options.steps(size)
    assert steps == epochs * an_epoch
    for step in range(steps):
        epoch = step // an_epoch
        rate = warmup_lr if epoch == 0 else lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        assert options.lr * options.lr_factor(step, steps) == pytest.approx(rate, rel=1e-12)


def test_the_mean_over_epochs():
    weights = [0.2, 0.5, 0.3]
    made, _ = run(job(average=weights))
    after = by_hand({})[2::3]
    for name, index in (("x", 0), ("scale", 1)):
        truth = sum(weight * one[index] for weight, one in zip(weights, after, strict=True))
        torch.testing.assert_close(made[name], truth.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("average", "options"),
    [
        ([0.5, 0.5], {}),
        ([0.2, 0.2, 0.2, 0.4], {}),
        ([0.3, 0.7], {"schedule": "linear", "max_steps": 4}),
        ([0.2, 0.5, 0.3], {"schedule": "linear", "max_steps": 20}),
    ],
)
def test_a_mean_over_other_epochs_than_there_are_is_an_error(average, options):
    with pytest.raises(SteerError, match="whole epochs"):
        run(job(average=average, options=options))


def test_a_mean_and_the_best_on_dev_are_not_both_to_be_had():
    with pytest.raises(SteerError, match="cannot both"):
        run(job(average=[0.2, 0.5, 0.3], dev=lambda: (1.0, 1)))


def test_backward_is_given_each_part_of_a_batch_and_replaces_the_sum():
    """Half the gradient, from weighted losses in parts of two: as if the learning rate were half."""
    seen = []
    one = job(options={"micro_batch_size": 2, "momentum": 0.0, "warmup_lr": 0.05})

    def backward(losses: Any, count: int) -> None:
        seen.append((len(losses["square"]), count))
        (losses["square"].sum() / count / 2).backward()

    one.backward = backward
    made, _ = run(one)
    assert seen == [(2, 3), (1, 3), (2, 3), (1, 3), (1, 1)] * 3
    half, _ = run(job(options={"momentum": 0.0, "lr": 0.025, "warmup_lr": 0.025}))
    torch.testing.assert_close(made["x"], half["x"], rtol=1e-5, atol=1e-6)


def test_before_step_is_told_each_step_before_its_batch():
    told = []
    one = job()
    inner = one.open_batch

    def open_batch(indices: Sequence[int]):
        told.append(("batch", tuple(indices)))
        return inner(indices)

    one.open_batch, one.before_step = open_batch, lambda step: told.append(("step", step))
    run(one)
    assert told == [pair for i in range(9) for pair in (("step", i), ("batch", tuple(batch_of(i, 7, 3, 0))))]


class Cut(Exception):
    """The process ends here."""


@pytest.mark.parametrize("average", [None, [0.2, 0.5, 0.3]])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_a_fit_that_was_cut_off_goes_on_bit_for_bit(tmp_path, stop, momentum, average):
    options = {"momentum": momentum, "weight_decay": 0.1, "checkpoint_every": 1}
    whole, went = run(job(options=options, average=average))
    cut, steps = job(options=options, average=average, folder=tmp_path), []

    def before_step(step: int) -> None:
        if step == stop:
            raise Cut
        steps.append(step)

    cut.before_step = before_step
    with pytest.raises(Cut):
        run(cut)
    rest = job(options=options, average=average, folder=tmp_path, before_step=steps.append)
    made, resumed = run(rest)
    assert steps == list(range(9))
    assert all(torch.equal(made[name], value) for name, value in whole.items())
    assert resumed.history == went.history


def test_without_its_momentum_a_fit_would_go_on_otherwise(tmp_path):
    """What the test above could not fail for, if the buffers were zero."""
    from safetensors import safe_open

    run(job(folder=tmp_path))
    with safe_open(tmp_path / "fit.safetensors", "pt") as file:
        assert file.get_tensor("momentum_buffer.x").abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_steps": 4}, "epochs"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": math.nan}, "momentum"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"warmup_lr": -1.0}, "warmup_lr"),
        ({"warmup_lr": math.inf}, "warmup_lr"),
        ({"lr": "0.1"}, "lr"),
        ({"lr": 0}, "lr"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(InterventionError, match=said):
        job(options=options)


@pytest.mark.parametrize(("options", "nearest"), [({"optimizer": "sdg"}, "sgd"), ({"schedule": "epoch"}, "epochs")])
def test_unknown_names_have_the_nearest(options, nearest):
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'"):
        job(options=options)
