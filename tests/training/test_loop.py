"""The loop on a loss with a closed form, beside torch's own optimiser; what stops it, and what goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer.errors import FileFormatError, InterventionError, SteerError, UnknownNameError
from steer.training import NotFiniteError, Options
from steer.training import _checkpoint as checkpoint
from steer.training.loop import Job, batch_of, run

TARGETS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


def job(bad: int | None = None, dev: Any = None, **given: Any) -> Job:
    """Fit x to seven targets: |x - target|^2 each; `rates` gives its second part a rate of its own."""
    rest = {"lr": 0.1, "batch_size": 3, "epochs": 4, "patience": None, **given.pop("options", {})}
    x, scale = torch.zeros(3, requires_grad=True), torch.ones((), requires_grad=True)

    @contextmanager
    def open_batch(indices: Sequence[int]):
        loss = (x * scale - TARGETS[list(indices)]).square().sum(-1)
        if bad is not None and bad in indices:
            loss = torch.where(torch.tensor([i == bad for i in indices]), torch.nan, loss)
        yield {"square": loss}

    learned = {"x": x, "scale": scale}
    return Job("test", learned, 7, open_batch, {"square": 1.0}, dev, Options(**rest), progress=False, **given)


def by_torch(options: dict[str, Any], rate: float = 1.0) -> torch.Tensor:
    """The same with torch's AdamW, its clipping, and the schedule as its documentation states it."""
    given = {"lr": 0.1, "batch_size": 3, "epochs": 4, "warmup_ratio": 0.1, "max_grad_norm": 1.0, **options}
    x, scale = torch.zeros(3, requires_grad=True), torch.ones((), requires_grad=True)
    groups = [{"params": [x]}, {"params": [scale], "lr": given["lr"] * rate}]
    optimiser = torch.optim.AdamW(groups, lr=given["lr"], weight_decay=given.get("weight_decay", 0.0))
    steps = given["epochs"] * math.ceil(7 / given["batch_size"])
    rising = math.ceil(given["warmup_ratio"] * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    for step in range(steps):
        optimiser.zero_grad()
        batch = batch_of(step, 7, given["batch_size"], 0)
        (x * scale - TARGETS[batch]).square().sum(-1).mean().backward()
        if given["max_grad_norm"]:
            torch.nn.utils.clip_grad_norm_([x, scale], given["max_grad_norm"])
        optimiser.step()
        schedule.step()
    return x.detach()


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.3}, {"max_grad_norm": 0.0}, {"warmup_ratio": 0.5, "batch_size": 7}]
)
def test_it_is_torch_s_adamw_under_the_stated_schedule(options):
    best, went = run(job(options=options, rates={"scale": 3.0}))
    torch.testing.assert_close(best["x"], by_torch(options, 3.0), rtol=1e-4, atol=1e-5)
    assert went.step == 4 * math.ceil(7 / options.get("batch_size", 3))


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_small_forwards_add_up_to_the_same(micro):
    whole, _ = run(job())
    parts, _ = run(job(options={"micro_batch_size": micro}))
    torch.testing.assert_close(parts["x"], whole["x"], rtol=1e-5, atol=1e-6)


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 3))
def test_every_epoch_has_each_example_once(size, batch_size, seed):
    steps = math.ceil(size / batch_size)
    epochs = [[i for s in range(steps) for i in batch_of(e * steps + s, size, batch_size, seed)] for e in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 8:
        assert epochs[0] != epochs[1]


def test_losses_noted_are_means_over_what_was_seen():
    frozen = job(options={"lr": 1e-30, "batch_size": 7, "epochs": 2})
    _, went = run(frozen)
    truth = float(TARGETS.square().sum(-1).mean())
    assert [entry["square"] for entry in went.history] == pytest.approx([truth, truth])
    assert [entry["step"] for entry in went.history] == [1, 2]


def looks(*values: float):
    given = iter(values)
    return lambda: (2 * next(given), 2)


def test_patience_stops_and_the_best_is_kept():
    seen = []
    one = job(options={"patience": 2, "epochs": 10, "eval_every": 2})
    values = looks(5.0, 4.0, 4.5, 4.0, 1.0)

    def dev() -> tuple[float, int]:
        seen.append(one.learned["x"].detach().clone())
        return values()

    one.dev_loss = dev
    best, went = run(one)
    assert (went.step, went.best, went.worse, went.stopped) == (8, 4.0, 2, True)
    assert torch.equal(best["x"], seen[1])
    assert not torch.equal(best["x"], one.learned["x"])


@pytest.mark.parametrize("stop", [1, 3, 8])
def test_a_fit_that_was_cut_off_goes_on_bit_for_bit(tmp_path, stop):
    whole, went = run(job(dev=looks(5, 3, 4, 2)))

    class Cut(Exception):
        pass

    cut = job(dev=looks(5, 3, 4, 2), folder=tmp_path, options={"checkpoint_every": 1})
    steps = []
    inner = cut.open_batch

    def open_batch(indices):
        steps.append(1)
        if len(steps) > stop:
            raise Cut
        return inner(indices)

    cut.open_batch = open_batch
    with pytest.raises(Cut):
        run(cut)
    rest = job(dev=looks(*(5, 3, 4, 2)[stop // 3 :]), folder=tmp_path, options={"checkpoint_every": 1})
    best, resumed = run(rest)
    for name, value in whole.items():
        assert torch.equal(best[name], value)
    assert resumed.history == went.history
    again, _ = run(job(dev=looks(), folder=tmp_path))
    assert torch.equal(again["x"], whole["x"])


def test_another_fit_s_folder_is_refused_and_what_differs_is_named(tmp_path):
    run(job(folder=tmp_path, identity={"seed": 1, "dev": "a", "method": "x"}))
    with pytest.raises(SteerError, match="another fit") as caught:
        run(job(folder=tmp_path, identity={"seed": 2, "dev": "a", "method": "y"}))
    assert "method, seed differ" in str(caught.value)
    assert "dev" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "words", "entry", "shape", "moments", "facts"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, damage):
    from safetensors.torch import load_file, save_file

    run(job(folder=tmp_path))
    file = tmp_path / checkpoint.NAME
    tensors, facts = load_file(file), {"identity": "{}", "progress": json.dumps({"step": 3})}
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    elif damage == "words":
        file.write_bytes(b"not a checkpoint")
    elif damage == "facts":
        save_file(tensors, file, {"identity": "[]", "progress": json.dumps({"pace": 3})})
    else:
        key = "exp_avg_sq.x" if damage == "moments" else "now.x"
        shortened = {key: tensors[key][:2]} if damage == "shape" else {}
        save_file({**{k: v for k, v in tensors.items() if k != key}, **shortened}, file, facts)
    with pytest.raises(FileFormatError, match="damaged") as caught:
        run(job(folder=tmp_path))
    assert str(file) in str(caught.value)


def test_nan_names_step_example_batch_and_checkpoint(tmp_path):
    order = [batch_of(step, 7, 3, 0) for step in range(3)]
    bad = order[2][0]
    broken = job(bad=bad, folder=tmp_path, options={"checkpoint_every": 1})
    with pytest.raises(NotFiniteError) as caught:
        run(broken)
    said = str(caught.value)
    assert f"examples [{bad}]" in said
    assert f"step 2, in the batch of examples {sorted(order[2])}" in said
    assert f"{tmp_path / checkpoint.NAME} (step 2)" in said
    assert broken.learned["x"].isfinite().all()
    healthy, _ = run(job(folder=tmp_path, options={"checkpoint_every": 1}))
    assert torch.equal(healthy["x"], run(job())[0]["x"])


def test_nan_without_a_folder_says_that_nothing_was_written():
    with pytest.raises(NotFiniteError, match="none was written"):
        run(job(bad=1))


def test_a_dev_loss_that_is_nan_is_not_the_best_one():
    with pytest.raises(NotFiniteError, match="dev"):
        run(job(dev=looks(math.nan, 1.0)))


def test_it_fits_within_no_grad():
    with torch.no_grad():
        inside, _ = run(job())
    assert torch.equal(inside["x"], run(job())[0]["x"])


def test_nothing_to_fit():
    one = job()
    one.learned = {}
    with pytest.raises(SteerError, match="nothing to fit"):
        run(one)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("lr", math.nan), ("epochs", 0), ("batch_size", 1.5), ("warmup_ratio", 2.0), ("patience", True)],
)
def test_options_that_make_no_sense(name, value):
    with pytest.raises(InterventionError, match=name):
        Options.of({name: value})


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'batch_size'"):
        Options.of({"batchsize": 3})
