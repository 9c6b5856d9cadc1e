"""Positions against brute force: the same absolute rows however the sequence is cut, padded or batched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steer
from steer import ops, positions, sites
from steer._frame import Frame
from steer.errors import InterventionError, MappingError
from steer.positions import as_mask

from .families import FAMILIES, IMAGE

CHOICES = {
    "all": (positions.all(), lambda i, p, n: True),
    "prompt": (positions.prompt(), lambda i, p, n: p),
    "generated": (positions.generated(), lambda i, p, n: not p),
    "last_prompt": (positions.last_prompt(), lambda i, p, n: p and i == n - 1),
    "answer": (positions.answer(), lambda i, p, n: not p or i == n - 1),
    "index": (positions.index(0, 3), lambda i, p, n: i in (0, 3)),
    "span": (positions.span(1, 4), lambda i, p, n: 1 <= i < 4),
    "open span": (positions.span(2), lambda i, p, n: i >= 2),
}


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(CHOICES)),
    prompt=st.integers(1, 6),
    written=st.integers(0, 4),
    pads=st.lists(st.integers(0, 5), min_size=2, max_size=2),
    side=st.sampled_from(["left", "right", "none"]),
    data=st.data(),
)
def test_rows_do_not_depend_on_how_the_sequence_is_cut(name, prompt, written, pads, side, data) -> None:
    """Cut a padded batch into forwards at random; together they choose what a loop over every token chooses."""
    total = prompt + written
    mask = torch.ones(2, total, dtype=torch.long)
    for row, pad in enumerate(min(p, prompt - 1) for p in pads):
        if side == "left":
            mask[row, :pad] = 0
        elif side == "right":
            mask[row, prompt - pad : prompt] = 0
    choice, wanted = CHOICES[name]
    truth = torch.zeros(2, total, dtype=torch.bool)
    for row in range(2):
        count = 0
        real_prompt = int(mask[row, :prompt].sum())
        for slot in range(total):
            real = bool(mask[row, slot])
            if name in ("all", "prompt", "generated"):
                truth[row, slot] = wanted(slot, slot < prompt, real_prompt)
            elif real:
                truth[row, slot] = wanted(count, slot < prompt, real_prompt)
            count += real
    cuts = sorted({0, total, *data.draw(st.lists(st.integers(0, total), max_size=3))})
    cuts = [c for c in cuts if c == 0 or c >= prompt or name not in ("last_prompt", "answer")]
    got = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        padding = None if side == "none" else mask[:, :stop]
        frame = Frame(2, stop - start, torch.device("cpu"), start, prompt, padding)
        got.append(as_mask(choice.resolve(frame), frame) & torch.ones(2, stop - start, dtype=torch.bool))
        if isinstance(choice.resolve(frame), str):
            got[-1] = torch.zeros(2, stop - start, dtype=torch.bool)
    assert torch.equal(torch.cat(got, 1), truth)


def test_mask_follows_beams_and_ends_where_it_ends() -> None:
    frame = Frame(4, 3, torch.device("cpu"), 1, 2)
    choice = positions.mask(torch.tensor([[False, True, False], [True, False, True]]))
    expected = torch.tensor([[True, False, False]] * 2 + [[False, True, False]] * 2)
    assert torch.equal(as_mask(choice.resolve(frame), frame), expected)


def test_a_mask_of_another_batch_is_refused() -> None:
    with pytest.raises(InterventionError, match="2 rows, the batch has 3"):
        positions.mask(torch.ones(2, 4, dtype=torch.bool)).resolve(Frame(3, 4, torch.device("cpu"), 0, 4))


def test_positions_equal_no_other_thing() -> None:
    assert positions.index(1) == positions.index(1)
    assert positions.index(1) != 1


def test_image_and_text_are_complements() -> None:
    image = torch.tensor([[False, True, True, False]])
    frame = Frame(1, 2, torch.device("cpu"), 1, 4, image=image)
    assert positions.image().resolve(frame).tolist() == [[True, True]]
    assert positions.text().resolve(frame).tolist() == [[False, False]]


def test_image_rows_unknown_is_an_error_that_says_how_to_go_on() -> None:
    with pytest.raises(MappingError, match="positions.mask"):
        positions.image().resolve(Frame(1, 2, torch.device("cpu")))


@pytest.mark.parametrize(
    "make",
    [
        lambda: positions.index(),
        lambda: positions.index(-1),
        lambda: positions.span(3, 1),
        lambda: positions.span(-1),
        lambda: positions.mask(torch.ones(2, 2)),
        lambda: positions.mask(torch.ones(1, 2, 2, dtype=torch.bool)),
    ],
)
def test_malformed_positions_are_refused(make) -> None:
    with pytest.raises(InterventionError):
        make()


@pytest.mark.parametrize(("name", "tower"), [("florence2", "text"), ("llava", "vision")])
def test_where_a_tower_has_no_words_of_the_prompt_no_row_is_a_pictures(name, tower) -> None:
    """The decoder of an encoder-decoder reads what it writes, and a picture's own tower no tokens."""
    family = FAMILIES[name]
    site = sites.resid_out(tower=tower, positions=positions.image())
    with pytest.raises(MappingError, match="image positions are not known"):
        with steer.attach(family.model(), steer.Intervention(site, ops.Scale(0.5))) as session:
            session.model(**family.prompt())


def test_pictures_are_remembered_when_embeddings_follow_token_ids() -> None:
    family = FAMILIES["llava"]
    model, more = family.model(), torch.tensor([[5, 6]])
    change = steer.Intervention(sites.attn_out(positions=positions.image()), ops.Scale(0.0))
    found = []
    for words in ({"input_ids": more}, {"inputs_embeds": model.get_input_embeddings()(more)}):
        with steer.attach(model, change) as session:
            cache = model(**family.prompt(), use_cache=True).past_key_values
            found.append(model(**words, past_key_values=cache).logits)
        (rows,) = {line.rows for line in session.report().lines}
        found.append(rows)
    assert torch.equal(found[0], found[2])
    assert found[1] == found[3] > 0


def test_pictures_of_an_encoder_are_where_its_token_ids_say() -> None:
    family = FAMILIES["florence2"]
    model, given = family.model(), family.prompt()
    found = []
    for rows in (positions.image(), positions.mask(given["input_ids"] == IMAGE)):
        site = sites.resid_out(layers=0, tower="text_encoder", positions=rows)
        with steer.attach(model, steer.Intervention(site, ops.Scale(0.5))):
            found.append(model(**given).logits)
    assert torch.equal(*found)
    assert not torch.equal(found[0], model(**given).logits)
