"""token_scores in Triton, and its torch reference, against the attention matrix in fp64."""

from __future__ import annotations

import importlib
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import steer_kernels
from steer_kernels.dispatch import prefer
from tests.kernels.settings import DEVICE, EXAMPLES, check, poison

fused = importlib.import_module("steer_kernels.fused.token_scores")
REFERENCE = steer_kernels.token_scores.reference
BOTH = pytest.mark.parametrize("run", [REFERENCE, fused.token_scores, fused.operator], ids=["torch", "triton", "op"])

# Masks that hide with the lowest number of a dtype. One that was made in bf16 and widened holds a little more than the
# lowest number of its own.
LOWEST = {"lowest": torch.float32, "half": torch.float16, "widened": torch.bfloat16}


def visible(query, key, mask=None, rows=None, query_slots=None, key_slots=None, real=None, since=None):
    """Who sees what, bool (B, H, W, S), said in the plainest way; a row that does not count sees nothing."""
    batch, heads, window = query.shape[:3]
    groups = heads // key.shape[1]
    seen = torch.ones(batch, heads, window, key.shape[2], dtype=torch.bool, device=key.device)
    per_head = (batch, key.shape[1], key.shape[2])
    if key_slots is not None:
        slots = key_slots.expand(per_head).repeat_interleave(groups, 1)[:, :, None]
        seen &= slots <= query_slots.expand(batch, window)[:, None, :, None]
        seen &= slots >= (-math.inf if since is None else since)
    if real is not None:
        seen &= real.expand(per_head).repeat_interleave(groups, 1)[:, :, None]
    if mask is not None:
        seen &= mask if mask.dtype == torch.bool else mask > -1e4
    if rows is not None:
        seen &= rows[:, None, :, None]
    return seen


def truth(query, key, scaling, mask=None, *, reduce="sum", **said):
    """The whole attention matrix in fp64, with each KV head repeated for its query heads."""
    groups = query.shape[1] // key.shape[1]
    seen = visible(query, key, mask, **said)
    scores = scaling * torch.einsum("bhwd,bhsd->bhws", query.double(), key.double().repeat_interleave(groups, 1))
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.double()
    scores = scores.masked_fill(~seen, -math.inf)
    counts = seen.any(-1)
    weights = torch.softmax(scores, -1).masked_fill(~(seen & counts[..., None]), 0.0)
    weights = weights.unflatten(1, (-1, groups))
    pairs = counts.unflatten(1, (-1, groups)).sum((2, 3))[..., None]
    if reduce == "max":
        return weights.amax((2, 3)) if weights.shape[3] else weights.sum((2, 3))
    total = weights.sum((2, 3))
    return total / pairs.clamp_min(1) if reduce == "mean" else total


def call(run, query, key, scaling, mask=None, *, reduce="sum", **said):
    """The same call as a function or as torch's operator, which takes everything by position."""
    if run is not fused.operator:
        return run(query, key, scaling, mask, reduce=reduce, **said)
    names = ("query_slots", "key_slots", "real", "since")
    return run(query, key, scaling, mask, said.get("rows"), reduce, *(said.get(name) for name in names))


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 keys, a share every second tile and chunks of a few rows, so that small tensors need several."""
    settings = fused._settings
    monkeypatch.setattr(
        fused, "_settings", lambda *a: {**settings(*a), "BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 1, "num_stages": 2}
    )
    monkeypatch.setattr(fused, "_shares", lambda device, others, keys, tile: max(1, keys // (2 * tile)))
    module = sys.modules["steer_kernels.token_scores"]
    monkeypatch.setattr(module, "CHUNK", 256)
    monkeypatch.setattr(module, "LEAST", 4)


def tensors(batch, kv_heads, groups, window, keys, width, dtype=torch.float32, layout="plain", seed=0):
    """Query and key in the layouts that attention hands over."""
    generator = torch.Generator().manual_seed(seed)

    def made(heads, length):
        shape = {"turned": (batch, length, heads, width), "sliced": (batch, heads, length + 2, width + 3)}
        x = torch.randn(shape.get(layout, (batch, heads, length, width)), generator=generator).to(DEVICE, dtype)
        if layout == "turned":
            return x.transpose(1, 2)
        if layout == "sliced":
            return x[:, :, 1 : length + 1, 2 : width + 2]
        return x[:1].expand(batch, -1, -1, -1) if layout == "expanded" else x

    return made(kv_heads * groups, window), made(kv_heads, keys)


@st.composite
def cases(draw):
    """A call with everything that may be said about who sees what."""
    batch, kv_heads = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    groups, window = draw(st.sampled_from([1, 2, 3, 7, 8])), draw(st.integers(0, 9))
    keys, width = draw(st.integers(0, 70)), draw(st.sampled_from([8, 16, 24, 40]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    layout = draw(st.sampled_from(["plain", "turned", "sliced", "expanded"]))
    seed = draw(st.integers(0, 2**20))
    query, key = tensors(batch, kv_heads, groups, window, keys, width, dtype, layout, seed)
    generator = torch.Generator().manual_seed(seed)

    def some(*shape):
        return (torch.rand(shape, generator=generator) < 0.7).to(DEVICE)

    def slots(*shape):
        return torch.randint(0, keys + 1, shape, generator=generator).to(DEVICE)

    said = {}
    if draw(st.booleans()):
        heads = draw(st.sampled_from([(), (1, 1), (batch, 1), (1, kv_heads), (batch, kv_heads)]))
        said["key_slots"] = slots(*heads, keys)
        said["query_slots"] = slots(*draw(st.sampled_from([(), (batch,)])), window)
        if draw(st.booleans()):
            said["since"] = draw(st.integers(0, keys))
    if draw(st.booleans()):
        said["real"] = some(draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, kv_heads])), keys)
    if draw(st.booleans()):
        said["rows"] = some(batch, window)
    kind = draw(st.sampled_from(["none", "none", "bool", "-inf", *LOWEST]))
    mask = None
    if kind != "none":
        shape = (batch, draw(st.sampled_from([1, kv_heads * groups])), draw(st.sampled_from([1, window])), keys)
        mask = some(*shape)
        if kind != "bool":
            low = -math.inf if kind == "-inf" else torch.finfo(LOWEST[kind]).min
            mask = torch.randn(shape, generator=generator).to(DEVICE).masked_fill(~mask, low)
            mask = mask.half() if kind == "half" else mask
    reduce = draw(st.sampled_from(["sum", "mean", "max"]))
    return (query, key, draw(st.sampled_from([0.3, 1.0, -0.5])), mask), {"reduce": reduce, **said}


@pytest.mark.parametrize("few", [1024, 0], ids=["ahead", "skipping"])
def test_everything_that_may_be_said(monkeypatch, small, few):
    poison(monkeypatch)
    monkeypatch.setattr(fused, "FEW", few)

    @settings(max_examples=EXAMPLES)
    @given(cases())
    def law(case):
        args, kwargs = case
        want = truth(*args, **kwargs)
        for run in (REFERENCE, fused.token_scores):
            got = run(*args, **kwargs)
            assert got.dtype == torch.float32
            assert got.stride() == torch.empty(want.shape, device="meta").stride()
            check(got, want, size=1e-2)

    law()


@pytest.mark.parametrize("run", [REFERENCE, fused.token_scores], ids=["torch", "triton"])
@pytest.mark.parametrize(
    "dtype, width", [(torch.float32, 96), (torch.float32, 256), (torch.bfloat16, 80), (torch.bfloat16, 192)]
)
def test_real_heads(run, dtype, width):
    """The tiles as they are, over more keys than one tile holds, at the end of a left-padded prompt."""
    window, keys = 5, 201
    query, key = tensors(2, 2, 3, window, keys, width, dtype)
    said = {
        "query_slots": torch.arange(keys - window, keys, device=DEVICE),
        "key_slots": torch.arange(keys, device=DEVICE)[None, None],
        "real": (torch.arange(keys, device=DEVICE) >= torch.tensor([[0], [77]], device=DEVICE))[:, None],
    }
    for reduce in ("sum", "mean", "max"):
        got = call(run, query, key, width**-0.5, reduce=reduce, **said)
        check(got, truth(query, key, width**-0.5, reduce=reduce, **said))
        assert (got[1, :, :77] == 0).all()


@BOTH
def test_slots_say_what_a_mask_says(run):
    query, key = tensors(2, 2, 2, 6, 50, 16)
    slots, places = torch.arange(44, 50, device=DEVICE), torch.arange(50, device=DEVICE)
    mask = (places <= slots[:, None]) & (places >= 7)
    by_mask = call(run, query, key, 0.25, mask[None, None])
    by_slots = call(run, query, key, 0.25, query_slots=slots, key_slots=places, since=7)
    torch.testing.assert_close(by_slots, by_mask, rtol=1e-6, atol=1e-7)


@BOTH
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("where", ["query", "key"])
@pytest.mark.parametrize("what", [math.nan, math.inf])
def test_nan_and_infinity_stay_with_the_keys_that_the_query_sees(run, small, reduce, where, what):
    query, key = tensors(1, 2, 2, 4, 40, 16)
    slots, places = torch.tensor([9, 20, 30, 39], device=DEVICE), torch.arange(40, device=DEVICE)
    clean = call(run, query, key, 0.25, reduce=reduce, query_slots=slots, key_slots=places)
    (query if where == "query" else key)[0, 0, 1 if where == "query" else 15] = what
    got = call(run, query, key, 0.25, reduce=reduce, query_slots=slots, key_slots=places)
    # The second query sees keys 0 to 20; the key at 15 is seen by the last query too, which sees all.
    assert got[0, 0, : 21 if where == "query" else 40].isnan().all()
    assert not got[0, 0, 21 if where == "query" else 40 :].isnan().any()
    assert torch.equal(got[0, 1], clean[0, 1])


@BOTH
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_what_is_not_seen_may_hold_anything(run, small, reduce):
    query, key = tensors(2, 2, 2, 5, 40, 16)
    rows = torch.tensor([[True, True, False, True, True], [False] * 5], device=DEVICE)
    said = {
        "query_slots": torch.arange(30, 35, device=DEVICE),
        "key_slots": torch.arange(40, device=DEVICE),
        "real": (torch.arange(40, device=DEVICE) % 7 > 0)[None, None],
        "rows": rows,
        "since": 3,
    }
    clean = call(run, query, key, 0.25, reduce=reduce, **said)
    query[:, :, 2] = math.nan
    key[:, :, 35:], key[:, :, :3], key[:, :, 7] = math.nan, math.inf, math.nan
    assert torch.equal(call(run, query, key, 0.25, reduce=reduce, **said), clean)
    assert (clean[1] == 0).all()
    assert (clean[0, :, :3] == 0).all()


@BOTH
@pytest.mark.parametrize("mask", [False, -math.inf, *LOWEST])
def test_no_row_sees_anything(run, mask):
    query, key = tensors(1, 2, 2, 3, 20, 16)
    shape = (1, 1, 3, 20)
    if mask is False:
        given = torch.zeros(shape, dtype=torch.bool, device=DEVICE)
    else:
        given = torch.full(shape, torch.finfo(LOWEST[mask]).min if mask in LOWEST else mask, device=DEVICE)
        given = given.half() if mask == "half" else given
    for reduce in ("sum", "mean", "max"):
        assert (call(run, query, key, 1.0, given, reduce=reduce) == 0).all()
        nothing = torch.zeros(1, 1, 20, dtype=torch.bool, device=DEVICE)
        assert (call(run, query, key, 0.3, real=nothing, reduce=reduce) == 0).all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharp_attention_hands_out_all_of_it(run, small, dtype):
    """Scores of a million: their own rounding is larger than the exponent, but each row still sums to one."""
    query, key = tensors(2, 2, 3, 5, 70, 16, dtype)
    got = call(run, query * 300, key * 300, 1.0)
    torch.testing.assert_close(got.sum(-1), torch.full((2, 2), 15.0, device=DEVICE), rtol=0, atol=1e-4)


@BOTH
def test_layouts_and_repeats_agree_to_the_bit(run, small):
    query, key = tensors(2, 2, 3, 5, 50, 24, torch.bfloat16, "turned")
    first = call(run, query, key, 0.3)
    assert torch.equal(first, call(run, query, key, 0.3))
    assert torch.equal(first, call(run, query.contiguous(), key.contiguous(), 0.3))


@BOTH
@pytest.mark.parametrize("window, keys", [(0, 5), (3, 0), (0, 0)])
def test_empty(run, window, keys):
    query, key = tensors(1, 2, 2, window, keys, 16)
    got = call(run, query, key, 0.3, reduce="mean")
    assert torch.equal(got, torch.zeros(1, 2, keys, device=DEVICE))


@BOTH
def test_fp64_and_mixed_dtypes(run):
    query, key = tensors(1, 2, 2, 3, 20, 16, torch.float64)
    got = call(run, query, key, 0.3)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, truth(query, key, 0.3), rtol=1e-12, atol=1e-12)
    mixed = call(run, query.float(), key.bfloat16(), 0.3)
    check(mixed, truth(query.float(), key.bfloat16(), 0.3))


@BOTH
def test_scaling_of_zero_looks_everywhere_alike(run):
    query, key = tensors(1, 1, 2, 3, 20, 16)
    torch.testing.assert_close(call(run, query, key, 0.0), torch.full((1, 1, 20), 6 / 20, device=DEVICE))


@BOTH
def test_forward_only(run):
    query, key = tensors(1, 2, 2, 3, 20, 16)
    with torch.no_grad() if run is fused.operator else torch.enable_grad():
        assert not call(run, query.requires_grad_(), key, 0.3).requires_grad


@pytest.mark.parametrize(
    "change, says",
    [
        ({"query_slots": torch.arange(3)}, "only query_slots"),
        ({"key_slots": torch.arange(11)}, "only key_slots"),
        ({"since": 3}, "since=3"),
        ({"query_slots": torch.arange(4), "key_slots": torch.arange(11)}, "(4,)"),
        ({"query_slots": torch.arange(3).float(), "key_slots": torch.arange(11)}, "float32"),
        ({"query_slots": torch.arange(3), "key_slots": torch.arange(12)}, "(12,)"),
        ({"query_slots": torch.arange(3), "key_slots": torch.zeros(2, 6, 11).long()}, "(2, 6, 11)"),
        ({"query_slots": torch.arange(3), "key_slots": torch.zeros(11).int()}, "int32"),
        ({"real": torch.ones(2, 11, dtype=torch.bool)}, "(2, 11)"),
        ({"real": torch.ones(2, 2, 1, dtype=torch.bool)}, "(2, 2, 1)"),
        ({"real": torch.ones(2, 2, 11)}, "float32"),
    ],
)
@pytest.mark.parametrize("run", [REFERENCE, fused.token_scores], ids=["torch", "triton"])
def test_wrong_slots_say_what_was_given(run, change, says):
    query, key = tensors(2, 2, 3, 3, 11, 8)
    with pytest.raises(ValueError) as caught:
        run(query, key, 0.3, **{name: x.to(DEVICE) if torch.is_tensor(x) else x for name, x in change.items()})
    assert says in str(caught.value)


class Largest(TorchDispatchMode):
    """How many elements the largest tensor has that any torch operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and 0 not in x.stride():
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("run", [REFERENCE, fused.launch], ids=["torch", "triton"])
def test_memory_is_linear_in_the_keys(monkeypatch, run):
    """With 256 queries of 2 heads nothing is larger than a quarter of their matrix, whatever its size."""
    monkeypatch.setattr(sys.modules["steer_kernels.token_scores"], "CHUNK", 1)
    window, keys = 256, 512
    query, key = tensors(1, 1, 2, window, keys, 16)
    said = (torch.arange(keys - window, keys, device=DEVICE), torch.arange(keys, device=DEVICE), None, None)
    with Largest() as seen:
        if run is REFERENCE:
            REFERENCE(query, key, 0.25, query_slots=said[0], key_slots=said[1])
        else:
            fused.launch(query, key, 0.25, None, None, "sum", *said)
    assert seen.numel <= 2 * 64 * keys  # two copies of the fewest rows that a chunk has, of 512


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_opcheck(reduce):
    query, key = tensors(2, 2, 2, 3, 20, 16)
    slots, places = torch.arange(17, 20, device=DEVICE), torch.arange(20, device=DEVICE)
    torch.library.opcheck(fused.operator, (query, key, 0.3, None, None, reduce, slots, places, None, 2))
    mask = torch.ones(2, 1, 3, 20, dtype=torch.bool, device=DEVICE)
    rows = torch.ones(2, 3, dtype=torch.bool, device=DEVICE)
    torch.library.opcheck(fused.operator, (query, key, 0.3, mask, rows, reduce, None, None, None, None))


def test_compile_does_not_break_on_it():
    query, key = tensors(2, 2, 2, 3, 20, 16)

    def program(query, key):
        return 2 * fused.token_scores(query + 1, key, 0.3, reduce="mean")

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key), program(query, key))


def test_triton_is_chosen():
    with prefer("triton"):
        assert steer_kernels.best("token_scores", "cpu") is fused.token_scores
    assert steer_kernels.best("token_scores", "cuda") is fused.token_scores
