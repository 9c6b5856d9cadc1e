"""What every library is asked to do, and whether it did: the same as plain torch, to 1e-5, or the very same tokens.

A library's script fills in a `Library`; what it has no way for stays None.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from models import GREEDY, KINDS, LAYER, Case, case, hooked, hooks_left, without_head

TOLERANCE, MOVED = 1e-5, 1e-3
SPAN, BIAS = slice(1, 5), 2.0  # keys, and what is added to head 1's scores there
ROWS = slice(2, 5)  # absolute positions
Found = tuple[bool, str]


class Boom(Exception):
    """What a probe raises inside a library's session."""


@dataclass
class Library:
    """A name on PyPI, the model for all but the heads, and its own way of doing each thing to a `Case`."""

    name: str
    on: str = "LLaVA"
    zero_head: Callable[[Case], torch.Tensor] | None = None
    add_beams: Callable[[Case], torch.Tensor] | None = None
    add_generated: Callable[[Case], torch.Tensor] | None = None
    add_rows: Callable[[Case], torch.Tensor] | None = None
    add_padded: Callable[[Case, dict[str, torch.Tensor]], torch.Tensor] | None = None
    bias_scores: Callable[[Case], torch.Tensor] | None = None
    fail_inside: Callable[[Case], None] | None = None
    save: Callable[[Case, Path], None] | None = None
    convert: Callable[[Case], None] | None = None  # changes the model for good, before anything else is done to it


def heads(library: Library) -> dict[str, Any]:
    """One head times zero in eight models, beside the same model with that head's columns zero."""
    found = {}
    for name in KINDS:
        one = case(name)
        with without_head(one):
            truth = one.logits()
        try:
            changed = converted(library, one)
            before = one.logits()
            edited = library.zero_head(one)
        except Exception as error:
            found[name] = {"passed": False, "detail": said(error)}
            continue
        apart, moved = float((edited - truth).abs().max()), float((edited - before).abs().max())
        same = torch.equal(one.logits(), before)
        after = "bit for bit as before" if same else "not as before"
        passed = apart <= TOLERANCE < MOVED <= moved and same
        kept = one.model.config._attn_implementation
        detail = f"{apart:.1e} from the truth, moved by {moved:.2g}; afterwards {after}; attention {kept}"
        found[name] = {"passed": passed, "detail": detail + changed}
    return found


def converted(library: Library, one: Case) -> str:
    """The model as the library leaves it for good, and in words how far its logits are from those that it had."""
    if library.convert is None:
        return ""
    before = one.logits()
    library.convert(one)
    return f"; the model itself stays changed, by {float((one.logits() - before).abs().max()):.1e}"


def add_beams(library: Library) -> Found:
    one = case(library.on)
    with hooked(one, lambda seen, now: slice(None)):
        truth = one.write(num_beams=3)
    return tokens(library.add_beams(one), truth, one.write(num_beams=3))


def add_generated(library: Library) -> Found:
    one = case(library.on)
    with hooked(one, lambda seen, now: slice(None) if seen else None):
        truth = one.write()
    return tokens(library.add_generated(one), truth, one.write())


def add_rows(library: Library) -> Found:
    one = case(library.on)
    with hooked(one, lambda seen, now: None if seen else ROWS):
        truth = one.write()
    return tokens(library.add_rows(one), truth, one.write())


def add_padded(library: Library) -> Found:
    """Rows 2 to 4 of a prompt that stands behind three tokens of padding, beside the same prompt alone."""
    one = case(library.on)
    with hooked(one, lambda seen, now: ROWS):
        truth = one.logits()
    ids, pixels = one.inputs["input_ids"], one.inputs["pixel_values"]
    longer = torch.cat([torch.tensor([[3, 4, 6]]), ids], 1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    batch = {"input_ids": torch.cat([padded, longer]), "pixel_values": torch.cat([pixels, pixels])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, :3] = 0
    found = library.add_padded(one, batch)[:1, 3:]
    apart, moved = float((found - truth).abs().max()), float((found - one.logits()).abs().max())
    return apart <= 1e-4 and moved > MOVED, f"{apart:.1e} from the row alone, moved by {moved:.2g}"


def bias_scores(library: Library) -> Found:
    """2 more on every score of one head at four keys, before the softmax, under SDPA; the truth is an own attention."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    one = case(library.on)
    before, target = one.logits(), one.layers[LAYER].self_attn

    def biased(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        if module is target:
            rows, columns = query.shape[2], key.shape[2]
            mask = torch.full((rows, columns), float("-inf")).triu(1).expand(1, 4, rows, columns).clone()
            mask[:, 1, :, SPAN] += BIAS
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    AttentionInterface.register("biased", biased)
    one.model.model.language_model.set_attn_implementation("biased")
    truth = one.logits()
    one.model.model.language_model.set_attn_implementation("sdpa")
    AttentionInterface._global_mapping.pop("biased", None)
    found = library.bias_scores(one)
    apart, moved = float((found - truth).abs().max()), float((found - before).abs().max())
    return apart <= TOLERANCE and moved > MOVED, f"{apart:.1e} from the truth, moved by {moved:.2g}"


def fail_inside(library: Library) -> Found:
    """An error inside: afterwards the model's logits and hooks are what they were."""
    one = case(library.on)
    changed = converted(library, one)
    before, hooks = one.logits(), hooks_left(one.model)
    try:
        library.fail_inside(one)
    except BaseException as error:
        raised = type(error).__name__
    else:
        return False, "the error was swallowed"
    same, more = torch.equal(one.logits(), before), hooks_left(one.model) - hooks
    found = (
        f"{raised} came through; logits {'bit for bit as before' if same else 'changed'}; {more} hooks left{changed}"
    )
    return same and more <= 0, found


def save(library: Library) -> Found:
    """Which files are written, and which of them are pickles."""
    with tempfile.TemporaryDirectory() as folder:
        library.save(case(library.on), Path(folder))
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        pickles = [path.name for path in files if pickled(path)]
        return not pickles, f"{', '.join(path.name for path in files)}; pickles: {', '.join(pickles) or 'none'}"


def pickled(path: Path) -> bool:
    """Whether a file is a pickle or one of torch's archives around one."""
    if zipfile.is_zipfile(path):
        return any(name.endswith(".pkl") for name in zipfile.ZipFile(path).namelist())
    return path.read_bytes()[:1] == b"\x80"


def tokens(found: torch.Tensor, truth: torch.Tensor, bare: torch.Tensor) -> Found:
    if torch.equal(truth, bare):
        return False, "the probe shows nothing: the truth is what the bare model writes"
    same = found.shape == truth.shape and torch.equal(found, truth)
    return same, "the very tokens" if same else f"wrote {found.tolist()}, the truth is {truth.tolist()}"


def said(error: BaseException) -> str:
    """The first line of an error that says something, without paths of this machine."""
    lines = [line for line in str(error).splitlines() if line.strip() and "Traceback" not in line]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"[:200]


def pruned(press: Callable[[Case, Callable[[], None]], None]) -> Found:
    """Half of the prompt's cache dropped inside `generate`: in how many models, and how many bytes are really freed."""
    done, failed = [], []
    for name in KINDS:
        if name in ("CLIP", "Florence-2"):  # no cache; a decoder whose prompt is one token
            continue
        one = case(name)
        given = {**GREEDY, "return_dict_in_generate": True, "use_cache": True}
        try:
            whole = _kept(one.model.generate(**one.inputs, **given).past_key_values)
            made = []
            press(one, lambda one=one, made=made, given=given: made.append(one.model.generate(**one.inputs, **given)))
            share = _kept(made[0].past_key_values) / whole
        except Exception as error:
            failed.append(f"{name} ({said(error)[:90]})")
            continue
        (done if share < 0.99 else failed).append(f"{name} {share:.2f}")
    return not failed, f"bytes kept: {', '.join(done) or 'in none fewer'}" + (
        f"; not {'; '.join(failed)}" if failed else ""
    )


def _kept(cache: Any) -> int:
    """Bytes of a cache's keys and values."""
    cache = getattr(cache, "self_attention_cache", cache)
    held = [t for layer in cache.layers for t in vars(layer).values() if isinstance(t, torch.Tensor) and t.ndim >= 3]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


PROBES = (add_beams, add_generated, add_rows, add_padded, bias_scores, fail_inside, save)
