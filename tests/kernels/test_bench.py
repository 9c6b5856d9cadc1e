"""The benchmark measures what it says: rows are right before they are timed, and errors say where."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch

import steer_kernels
from steer_kernels.bench import Options, run
from steer_kernels.bench.__main__ import main
from steer_kernels.bench.cases import KERNELS, tasks
from steer_kernels.bench.cases.scores import mass_of
from steer_kernels.bench.compare import differs
from steer_kernels.bench.rows import Row
from steer_kernels.bench.table import COLUMNS, cells
from steer_kernels.bench.task import Missing, Rival
from steer_kernels.bench.variants import agreeing

CPU = torch.device("cpu")
ONE = Options(quick=True, kernels=("shift",), only="K1 forward D=256 T=32 fp32", device="cpu")


def quick(**given) -> tuple[dict, list[Row]]:
    return run(Options(quick=True, **given), say=lambda line: None)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_row_gives_what_the_plain_formula_gives(kernel):
    about, rows = quick(kernels=(kernel,))
    assert [row.error for row in rows if row.error] == []
    assert about["left_out"] == []
    for row in rows:
        assert row.ms > 0
        assert row.x_eager > 0
        assert row.peak_ours_mb >= 0
        if row.direction in ("forward", "forward+backward"):
            # What was moved in that time, and the share of the copy's, by the reader's own arithmetic.
            assert row.gb_s == pytest.approx(row.gb / (row.ms / 1e3), rel=2e-3)
            assert row.of_copy > 0


def test_every_operation_has_rows_forward_and_those_that_are_trained_backward():
    for scale in ("quick", "cpu", "cuda"):
        found = tasks(scale)
        assert {task.kernel for task in found} == set(KERNELS)
        assert {task.kernel for task in found if task.learn} == {"shift", "head_shift", "query_shift", "jsd"}
        labels = [task.label + (" decode" if task.decode else "") for task in found]
        assert len(set(labels)) == len(labels)


def test_on_a_cpu_targets_are_timed_in_new_memory_too_and_before_any_is_kept(monkeypatch):
    module = importlib.import_module("steer_kernels.bench.run")
    done = []
    monkeypatch.setattr(module, "_task", lambda task, memory, options: iter([done.append((task.label, memory))][:0]))
    about, _ = quick(device="cpu")
    new = [label for label, memory in done if memory]
    assert [memory for _, memory in done] == ["new memory"] * len(new) + [""] * (len(done) - len(new))
    assert {label.split()[0] for label in new} == {"jsd", "token_scores", "compact"}
    assert set(new) < {label for label, memory in done if not memory}
    assert about["memory_kept"] in (True, False)


def smallest(kernel: str, form: str):
    """The smallest forward row on a CPU that is not quick: there, small tensors are small."""
    found = [t for t in tasks("cpu") if (t.kernel, t.form) == (kernel, form) and not t.learn and not t.decode]
    return min(found, key=lambda task: task.floor)


@pytest.mark.parametrize(
    "kernel, form, large",
    [
        ("shift", "K1", (0,)),
        ("shift", "K2", (0,)),
        ("head_shift", "minus lse", (0, 1, 5)),
        ("query_shift", "gate", (0,)),
        ("key_bias", "K5", (0, 1, 2, 3, 4)),
        ("jsd", "beta=1/2", (0, 1)),
        ("token_scores", "grouped", (0, 1)),
        ("js_select", "count", (0,)),
    ],
)
def test_the_floor_is_every_input_that_grows_with_the_work_and_the_result_once(kernel, form, large):
    task = smallest(kernel, form)
    given = task.make(torch.Generator().manual_seed(0))
    result = task.eager(*given)
    moved = [*(given[i] for i in large), *([result] if isinstance(result, torch.Tensor) else result)]
    # a number a row, such as the divergences, is not counted
    assert task.floor == pytest.approx(sum(t.numel() * t.element_size() for t in moved), rel=1e-3)


def test_the_floor_of_compact_is_what_is_kept():
    task = smallest("compact", "per head")
    given = task.make(torch.Generator().manual_seed(0))
    assert task.floor == 2 * sum(t.numel() * t.element_size() for t in task.eager(*given))


def row_of(task, options=ONE) -> Row:
    row = Row(task.kernel, task.form, task.direction, "", task.short)
    task_given = task.make(torch.Generator().manual_seed(0))
    row.found = agreeing(task, getattr(steer_kernels, task.kernel), task_given, row, options)
    return row


def test_a_kernel_that_is_wrong_has_no_time(monkeypatch):
    monkeypatch.setattr(steer_kernels, "shift", lambda h, v, **kwargs: h.clone())
    _, (row,) = run(ONE, say=lambda line: None)
    assert "shift and the plain formula differ" in row.error
    assert row.ms is None
    assert cells(row)[COLUMNS.index("ms")] == "error"


def test_a_kernel_that_raises_or_is_not_there_spoils_its_own_row_only(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(steer_kernels, "shift", broken)
    monkeypatch.delattr(steer_kernels, "jsd")
    _, rows = quick(kernels=("shift", "jsd", "js_select"), dtypes=("fp32",), device="cpu")
    assert all("no such thing" in row.error for row in rows if row.kernel == "shift")
    assert all("has no jsd" in row.error for row in rows if row.kernel == "jsd")
    assert all(row.ms > 0 and not row.error for row in rows if row.kernel == "js_select")


def test_a_rival_that_is_wrong_is_named_and_not_timed_and_one_that_is_missing_is_noted():
    def missing():
        raise Missing("it is not here")

    def raises():
        def call(*given):
            raise RuntimeError("it cannot")

        return call

    (task,) = ONE.chosen()
    rivals = {
        "good": Rival(lambda: lambda h, v: (h + 0.5 * v) * 2, of_theirs=lambda y: y / 2),
        "wrong": Rival(lambda: lambda h, v: h + 0.49 * v),
        "absent": Rival(missing),
        "raising": Rival(raises),
    }
    row = row_of(replace(task, rivals=rivals))
    assert set(row.found) == {"ours", "eager", "good"}
    assert "wrong gives something else" in row.error
    assert "it is not here" in row.note
    assert "raising: RuntimeError: it cannot" in row.note


def test_what_torch_compile_makes_is_checked_too(monkeypatch):
    (task,) = ONE.chosen()
    task, options = replace(task, compiled=True), replace(ONE, quick=False)
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    assert set(row_of(task, options).found) == {"ours", "eager", "compiled"}
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: lambda h, v: h)
    row = row_of(task, options)
    assert "compiled" not in row.found
    assert "torch.compile" in row.error
    assert "compiled" not in row_of(task, replace(options, compiled=False)).found


RAMP = torch.arange(1.0, 101.0)


@pytest.mark.parametrize(
    "found, tolerance, same",
    [
        (RAMP, 0.0, True),
        (RAMP + 0.05, 1e-3, True),
        (RAMP + 0.05, 0.0, False),
        (RAMP + 0.5, 1e-3, False),
        (torch.where(RAMP == 1, 9.0, RAMP), 2e-2, False),
        (torch.full((100,), math.nan), 1.0, False),
        (RAMP[:99], 1.0, False),
        (RAMP > 1, 0.0, False),
        ((RAMP, RAMP), 1.0, False),
    ],
)
def test_results_are_compared_by_value_shape_and_number(found, tolerance, same):
    assert (differs(found, RAMP, tolerance) is None) == same


def test_masks_may_differ_in_a_share_of_their_elements():
    mask = RAMP > 50
    assert differs(mask, RAMP > 51, 0.01) is None
    assert differs(mask, RAMP > 52, 0.01) is not None


@pytest.mark.parametrize("budget", [1e-4, 0.02, 0.3, 0.6])
def test_the_mass_of_a_budget_is_that_of_the_divergence_by_definition(budget):
    """On 10,000 equal tokens, of which that mass is dropped and the rest renormalised."""
    n = 10_000
    dropped = round(mass_of(budget) * n)
    p = torch.full((n,), 1 / n, dtype=torch.float64)
    q = torch.where(torch.arange(n) < n - dropped, 1 / (n - dropped), 0.0).double()
    m = (p + q) / 2
    js = 0.5 * (torch.xlogy(p, p / m) + torch.xlogy(q, q / m)).sum().item()
    assert js == pytest.approx(budget, abs=2e-4)


def test_a_limit_leaves_rows_out_by_name_and_the_important_ones_come_first():
    about, rows = quick(kernels=("shift",), limit=0.0, device="cpu")
    assert len(rows) <= 1
    assert len(about["left_out"]) == len(Options(quick=True, kernels=("shift",), device="cpu").chosen()) - len(rows)
    for scale in ("cpu", "cuda"):
        wanted = [task.large or task.early or task.decode for task in tasks(scale)]
        assert wanted == sorted(wanted, reverse=True)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"kernels": ("jds",)}, "did you mean jsd"),
        ({"dtypes": ("float8",)}, "bf16, fp16, fp32"),
        ({"only": "nothing is called this"}, "no row is left"),
        ({"json": "/no/such/folder/x.json"}, "no folder"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(given, said, tmp_path):
    from pathlib import Path

    given = {key: Path(value) if key == "json" else value for key, value in given.items()}
    with pytest.raises(ValueError, match=said):
        quick(device="cpu", **given)


def test_the_command_prints_a_table_and_its_code_says_whether_all_was_right(capsys, monkeypatch):
    words = ["--quick", "--kernels", "js_select", "--device", "cpu"]
    assert main(words) == 0
    assert "js_select" in capsys.readouterr().out
    assert main([*words, "--only", "nothing is called this"]) == 2
    assert "no row is left" in capsys.readouterr().err
    monkeypatch.setattr(steer_kernels, "js_select", lambda scores, *args, **kwargs: scores > 2)
    assert main(words) == 3
    assert "ERROR js_select" in capsys.readouterr().out
