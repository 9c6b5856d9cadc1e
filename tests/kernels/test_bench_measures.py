"""What is measured: turns are fair, memory is what is alive, and files hold what was found."""

from __future__ import annotations

import csv
import ctypes
import json
import resource
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from steer_kernels.bench import Options, run, timing
from steer_kernels.bench.__main__ import main
from steer_kernels.bench.heap import kept
from steer_kernels.bench.machine import machine, slug
from steer_kernels.bench.peak import peak
from steer_kernels.bench.rows import Row, from_json, write_json
from steer_kernels.bench.table import plain
from steer_kernels.bench.timing import Spread, host, times
from steer_kernels.bench.variants import bandwidth, sets

CPU = torch.device("cpu")
ONE = Options(quick=True, kernels=("shift",), only="K1 forward D=256 T=32 fp32", device="cpu")


def quick(**given) -> tuple[dict, list[Row]]:
    return run(Options(quick=True, **given), say=lambda line: None)


def test_every_variant_has_a_turn_in_every_round_in_another_order(monkeypatch):
    turns, now = [], [0.0]

    def takes(name, seconds):
        def call(x):
            turns.append(name)
            now[0] += seconds

        return call

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    variants = {"a": takes("a", 0.002), "b": takes("b", 0.006), "c": takes("c", 0.02)}
    found = times(variants, [(torch.zeros(1),)], rounds=6, batch=0.006, seed=0)
    for name, seconds in (("a", 0.002), ("b", 0.006), ("c", 0.02)):
        assert found[name] == pytest.approx([seconds] * 6)
    # three calls of a fill a batch, one of the others does
    rounds = "".join(turns)[-30:].replace("aaa", "a")
    assert len(rounds) == 18
    rounds = [rounds[i : i + 3] for i in range(0, 18, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1


class Queue:
    """A host and a device that works off what the host queues, on clocks that stand still in between."""

    def __init__(self):
        self.host = self.device = 0.0

    def queue(self, work: float) -> None:
        self.device = max(self.device, self.host) + work

    def wait(self) -> None:
        self.host = max(self.host, self.device)

    def install(self, monkeypatch) -> None:
        queue = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                queue.queue(0.0)
                self.at = queue.device

            def synchronize(self):
                queue.wait()

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.queue(cycles / 2e9))
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.host))


def test_on_a_gpu_the_time_is_the_devices_whatever_the_host_takes_to_launch(monkeypatch):
    queue = Queue()
    queue.install(monkeypatch)

    def takes(host, device):
        def call(x):
            queue.host += host
            queue.queue(device)

        return call

    variants = {"launch bound": takes(5e-5, 1e-5), "device bound": takes(5e-6, 4e-4), "long": takes(1e-5, 0.02)}
    found = times(variants, [(SimpleNamespace(is_cuda=True),)], rounds=3, batch=0.003, seed=0)
    for name, device in (("launch bound", 1e-5), ("device bound", 4e-4), ("long", 0.02)):
        assert found[name] == pytest.approx([device] * 3)


def test_the_host_is_timed_while_the_device_lags_behind(monkeypatch):
    queue = Queue()
    queue.install(monkeypatch)

    def call(x):
        queue.host += 5e-6
        queue.queue(1e-5)

    found = host({"a": call}, (SimpleNamespace(is_cuda=True),), rounds=3, calls=10)
    assert found["a"] == pytest.approx([5e-6] * 3)


def test_what_is_slow_has_fewer_rounds_but_three(monkeypatch):
    now = [0.0]

    def call(x):
        now[0] += 1.0

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    given = {"variants": {"a": call, "b": call}, "inputs": [(torch.zeros(1),)], "rounds": 9, "batch": 0.01}
    assert [len(times(**given, most=most)["b"]) for most in (1e-3, 9.0, 1e9)] == [3, 4, 9]


def test_freed_memory_is_kept_inside_and_given_back_after():
    """By what the process holds: a large block that was freed is still there, and gone afterwards."""

    def held() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    with kept() as can:
        if not can:
            pytest.skip("not glibc")
        before = held()
        torch.ones(50_000_000)
        assert held() - before > 150
    torch.ones(50_000_000)
    blocks = [torch.ones(100) for _ in range(3)]
    ctypes.CDLL(None).malloc_trim(0)
    assert held() - before < 50
    del blocks


def test_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == (7.0, 7.0, 7.0)


def test_calls_take_turns_among_sets_that_are_equal_and_apart(monkeypatch):
    from steer_kernels.bench import variants

    given = (torch.ones(1000), None, torch.arange(5))
    monkeypatch.setattr(variants, "cache", lambda device: 10_000)
    options = Options(device="cpu")
    found = sets(given, 4000, options)
    assert len(found) == 10
    assert len({one[0].data_ptr() for one in found}) == 10
    assert all(torch.equal(one[0], given[0]) and one[1] is None for one in found)
    assert len(sets(given, 10**9, options)) == 1
    assert len(sets(given, 1, options)) == 32
    seen = []
    times({"a": lambda x: seen.append(x.data_ptr())}, [(one[0],) for one in found], 1, batch=1.0)
    assert set(seen) == {one[0].data_ptr() for one in found}


def test_the_copy_moves_the_floor_half_of_it_read():
    (task,) = ONE.chosen()
    calls = bandwidth(replace(task, reads=True), 2, CPU)
    first, second, third = (calls["copy"]() for _ in range(3))
    assert 2 * first.numel() * first.element_size() == task.floor
    assert calls["read"]().item() == task.floor // 4
    assert first.data_ptr() != second.data_ptr() != third.data_ptr()


def test_the_peak_is_what_is_alive_at_once():
    x = torch.ones(250_000)
    assert peak(lambda x: (x + 1) * 2, (x,)) == pytest.approx(2e6, rel=0.01)
    assert peak(lambda x: ((x + 1) * 2).sum(), (x,)) == pytest.approx(2e6, rel=0.01)
    assert peak(lambda x: [x + 1, x + 1, x + 1], (x,)) == pytest.approx(3e6, rel=0.01)
    assert peak(lambda x: x.mul_(1), (x,)) < 1e3


def test_files_have_one_schema_and_come_out_as_they_went_in(tmp_path):
    json_file, csv_file = tmp_path / "a.json", tmp_path / "a.csv"
    about, rows = quick(kernels=("js_select", "shift"), only="forward", device="cpu", json=json_file, csv=csv_file)
    written = json.loads(json_file.read_text())
    assert written["about"]["device"] == about["device"]
    assert [from_json(record) for record in written["rows"]] == rows
    with csv_file.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [field.name for field in fields(Row)]
    assert [float(line["ms"]) for line in table] == [row.ms for row in rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]
    assert max(map(len, plain(rows).splitlines())) <= 160


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "p.png"
    assert main(["--quick", "--kernels", "js_select", "--device", "cpu", "--png", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_machine_has_a_name_that_a_file_can_have():
    assert slug(machine(CPU)) == "cpu"
    assert slug({"type": "cuda", "device": "NVIDIA H100 80GB HBM3"}) == "h100-80gb-hbm3"
    assert torch.__version__.startswith(machine(CPU)["versions"]["torch"])


def test_an_unknown_field_of_a_newer_record_is_left_out(tmp_path):
    row = Row("jsd", "beta=1/2", "forward", "N=4 V=8", "fp32", ms=1.0)
    write_json(tmp_path / "x.json", {}, [row])
    (record,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert from_json({**record, "something": 1}) == row
