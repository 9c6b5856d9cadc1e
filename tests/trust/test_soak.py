"""A thousand sessions on one model, opened, failed inside and closed: nothing piles up, and nothing has changed."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import steer
from steer import _installed, ops, session, sites
from steer._plugins import manager
from steer.errors import NeverFiredError, SessionError, SteerError
from tests.engine.helpers import WIDTH, tiny_llama, tokens
from tests.engine.test_restore import CHANGES, traces
from tests.vectors.subjects import subject

from .guard import resident

SESSIONS = int(os.environ.get("STEER_SOAK", "1000"))
WARM, EVERY = 0.3, 20
# What allocators keep from one thousand to the next comes to less; one (T, V) tensor left behind a session is 8 kB.
KB_A_SESSION = 4.0


class Inside(Exception):
    """An error of the user's own."""


def raising(error: type[BaseException]) -> steer.Intervention:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise error("inside")

    return steer.Intervention(sites.head_out(layers=1), ops.Apply(fail))


def plain(model: Any, ids: torch.Tensor, name: str) -> None:
    with steer.attach(model, CHANGES[name](), strict=False):
        model(ids)


def nested(model: Any, ids: torch.Tensor, name: str) -> None:
    with steer.attach(model, CHANGES[name](), strict=False):
        with steer.record(model, sites.resid_out(layers=0), stop=True) as kept, steer.attach(model, CHANGES["query"]()):
            model(ids)
        assert kept["resid_out", 0].shape == (*ids.shape, WIDTH)


def out_of_order(model: Any, ids: torch.Tensor, name: str) -> None:
    first = steer.attach(model, CHANGES[name](), strict=False).__enter__()
    second = steer.attach(model, CHANGES["bias"](), strict=False).__enter__()
    first.__exit__(None, None, None)
    model(ids)
    second.__exit__(None, None, None)


def failed_inside(model: Any, ids: torch.Tensor, name: str) -> None:
    for error in (Inside, KeyboardInterrupt, MemoryError):
        with pytest.raises(error), steer.attach(model, CHANGES[name](), raising(error), strict=False):
            model(ids)


def failed_beside(model: Any, ids: torch.Tensor, name: str) -> None:
    with pytest.raises(Inside), steer.attach(model, CHANGES[name](), strict=False):
        raise Inside


def refused(model: Any, ids: torch.Tensor, name: str) -> None:
    bad = steer.Intervention(sites.resid_out(layers=99), ops.Scale(1.0))
    with pytest.raises(SteerError), steer.attach(model, CHANGES[name](), bad):
        pass


def never_fired(model: Any, ids: torch.Tensor, name: str) -> None:
    with pytest.raises(NeverFiredError), steer.attach(model, CHANGES[name]()):
        pass


def written(model: Any, ids: torch.Tensor, name: str) -> None:
    with steer.attach(model, CHANGES[name](), strict=False) as live:
        model.generate(ids, max_new_tokens=2, do_sample=False)
    assert live.report() is not None


def another_thread(model: Any, ids: torch.Tensor, name: str) -> None:
    met: list[BaseException] = []

    def try_it() -> None:
        try:
            with steer.attach(model, CHANGES["query"]()):
                pass
        except SessionError as error:
            met.append(error)

    with steer.attach(model, CHANGES[name](), strict=False):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(met) == 1


def a_method(model: Any, ids: torch.Tensor, name: str) -> None:
    with steer.attach(model, fitted(), strict=False), steer.record(model, sites.head_q(layers=[0, 2])):
        model(ids)


def fitted() -> steer.Method:
    if not _fitted:
        one = subject("llama")
        _fitted.append(steer.create("icv").fit(one.model, one.processor, one.examples))
    return _fitted[0]


_fitted: list[steer.Method] = []
KINDS: tuple[Callable[[Any, torch.Tensor, str], None], ...] = (
    plain, nested, out_of_order, failed_inside, failed_beside, refused, never_fired, written, another_thread, a_method,
)  # fmt: skip


def counts(model: Any) -> dict[str, Any]:
    """How much there is of everything that could pile up."""
    gc.collect()
    kinds = [type(thing).__qualname__ for thing in gc.get_objects() if _ours(type(thing))]
    return {
        "ours": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "sessions": len(session.open_sessions(model)),
        "installed": len(_installed._models),
        "maps": len(session._maps),
        "opened": len(session._open),
        "plugins": len(manager().get_plugins()),
        "threads": threading.active_count(),
    }


def _ours(cls: type) -> bool:
    """Whether a class is one of steer's that sessions are made of."""
    home = getattr(cls, "__module__", None)
    return isinstance(home, str) and home.startswith("steer.") and not home.startswith("steer.model_map")


def slope(model: Any, sessions: int, leak: Callable[[], None] = lambda: None) -> float:
    """kB a session by which this process grows, the first part left out as warm-up."""
    ids = tokens(2, 5)
    sizes, numbers = [], []
    for number, (kind, name) in zip(range(sessions), itertools.cycle(itertools.product(KINDS, CHANGES)), strict=False):
        kind(model, ids, name)
        leak()
        if number % EVERY == EVERY - 1:
            gc.collect()
            numbers.append(number)
            sizes.append(resident() / 1024)
    late = slice(int(WARM * len(sizes)), None)
    return float(np.polyfit(numbers[late], sizes[late], 1)[0])


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.mark.parametrize("sessions", [SESSIONS, pytest.param(20 * SESSIONS, marks=pytest.mark.slow)])
def test_nothing_piles_up_and_nothing_changes(model, sessions):
    ids = tokens(2, 5)
    for kind in KINDS:  # what is made once
        kind(model, ids, "query")
    before, logits, there = traces(model), model(ids).logits, counts(model)
    found = slope(model, sessions)
    assert counts(model) == there
    assert traces(model) == before
    assert torch.equal(model(ids).logits, logits)
    assert found < KB_A_SESSION, f"{found:.2f} kB a session"


@pytest.mark.skipif(not resident(), reason="the kernel does not say how much memory a process has")
def test_the_slope_is_seen_where_something_is_left_behind(model):
    """The bound can be broken: 64 kB kept by each of 160 sessions is found."""
    kept: list[mmap.mmap] = []

    def leave() -> None:
        pages = mmap.mmap(-1, 2**16)  # the allocator might have room left over from other tests
        pages.write(b"x" * 2**16)
        kept.append(pages)

    found = slope(model, 160, leave)
    assert found > 4 * KB_A_SESSION
