"""Scenes are what they say, in disjoint streams, biased as documented or not at all; questions have their answers."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from steer import zoo
from steer.zoo import _scenes
from steer.zoo._scene_words import CELLS, COLOURS, FREQUENCY, NEGATIVES, OBJECTS, PARTNERS, POPULAR, QUESTIONS


def pixels(scene: zoo.Scene) -> np.ndarray:
    return np.asarray(scene.image).astype(int)


def shown(scene: zoo.Scene) -> tuple:
    return scene.things, scene.colour, scene.word, scene.image.tobytes()


def outside(scene: zoo.Scene) -> np.ndarray:
    """A mask [side, side] of what no box covers."""
    free = np.ones((scene.image.height, scene.image.width), bool)
    for left, top, right, bottom in [*(thing.box for thing in scene.things), scene.word_box or (0, 0, 0, 0)]:
        free[top:bottom, left:right] = False
    return free


def test_scenes_import_neither_torch_nor_transformers_themselves():
    code = "import sys, steer; before = set(sys.modules); from steer import zoo; zoo.scenes(n=2, word='law', side=96)\n"
    code += "new = set(sys.modules) - before; assert not {'torch', 'transformers'} & new, new"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_call_gives_the_same_scenes_and_fewer_are_the_first_of_more():
    for law in ({}, {"biased": True, "word": "law"}):
        many = [shown(s) for s in zoo.scenes("dev", 12, seed=3, **law)]
        assert [shown(s) for s in zoo.scenes("dev", 5, seed=3, **law)] == many[:5]
        assert many != [shown(s) for s in zoo.scenes("dev", 12, seed=4, **law)]


def test_splits_share_no_picture_with_each_other_or_with_training():
    streams = [[s.image.tobytes() for s in zoo.scenes(split, 150)] for split in ("demo", "dev", "test")]
    # the seeds that docs/experiments/tiny_scenes trained with
    streams += [
        [_scenes.compose(_scenes._TRAIN, seed, i, law, "none").image.tobytes() for i in range(150)]
        for seed, law in ((1, False), (100, True))
    ]
    assert len({image for stream in streams for image in stream}) == sum(map(len, streams))


def test_a_scene_is_what_it_says():
    cells_seen, sizes = set(), set()
    for scene in zoo.scenes("test", 200):
        assert scene.image.size == (64, 64)
        assert scene.image.mode == "RGB"
        assert scene.word is None
        assert scene.word_box is None
        assert 1 <= len(scene.things) <= 3
        assert len(set(scene.names)) == len(scene.things)
        order = [CELLS.index(thing.cell) for thing in scene.things]
        assert order == sorted(set(order))
        # the ground is its colour, up to the tint, and the grain's mean is near nothing
        ground = pixels(scene)[outside(scene)]
        allowed = _scenes.TINT + 4 * _scenes.NOISE / math.sqrt(len(ground)) + 6  # white and black are clipped
        assert np.abs(ground.mean(0) - COLOURS[scene.colour]).max() < allowed
        for thing in scene.things:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            east, south = thing.cell.endswith("east"), thing.cell.startswith("south")
            assert (left >= 32) == east
            assert (right > 32) == east
            # the strip's place moves the middle line by up to its height
            assert (top + bottom) / 2 > 32 - _scenes.STRIP / 2 if south else (top + bottom) / 2 < 32 + _scenes.STRIP / 2
            sizes.add(max(right - left, bottom - top))
            cells_seen.add(thing.cell)
    assert cells_seen == set(CELLS)
    assert sizes == set(_scenes.SIZES)


def test_boxes_are_tight_around_what_is_drawn(monkeypatch):
    monkeypatch.setattr(_scenes, "NOISE", 0.0)
    monkeypatch.setattr(_scenes, "FAINT", 1.0)
    for side in (64, 96, 128):
        for scene in zoo.scenes("test", 40, side=side):
            image = pixels(scene)
            ground = image[outside(scene)][0]
            assert (image[outside(scene)] == ground).all()
            for left, top, right, bottom in (thing.box for thing in scene.things):
                drawn = (image[top:bottom, left:right] != ground).any(-1)
                # ink reaches all four sides; a soft edge may round to the ground
                assert drawn[:2].any()
                assert drawn[-2:].any()
                assert drawn[:, :2].any()
                assert drawn[:, -2:].any()


def test_a_word_changes_the_strip_and_nothing_else():
    plain, right, wrong = (zoo.scenes("test", 80, word=kind) for kind in ("none", "right", "wrong"))
    for a, b, c in zip(plain, right, wrong, strict=True):
        assert a.things == b.things == c.things
        assert a.colour == b.colour == c.colour
        assert b.word in b.names
        assert c.word in OBJECTS
        assert c.word not in c.names
        for scene in (b, c):
            left, top, width, bottom = scene.word_box
            assert (left, width, bottom - top) == (0, 64, 9)
            kept = np.ones((64, 64), bool)
            kept[top:bottom] = False
            assert (pixels(scene)[kept] == pixels(a)[kept]).all()
            assert all(box[3] <= top or box[1] >= bottom for box in (thing.box for thing in scene.things))


def test_a_printed_word_can_be_read_back(monkeypatch):
    from steer.zoo import _scene_font

    monkeypatch.setattr(_scenes, "NOISE", 0.0)
    for scene in zoo.scenes("test", 60, word="wrong"):
        _, top, _, bottom = scene.word_box
        ink = pixels(scene)[top:bottom].max(-1) < 128
        columns = np.flatnonzero(ink.any(0))
        found = ink[2:7, columns[0] : columns[-1] + 1]
        fits = [name for name in OBJECTS if np.array_equal(_trim(_scene_font.dots(name)), found)]
        assert fits == [scene.word]


def _trim(dots: np.ndarray) -> np.ndarray:
    columns = np.flatnonzero(dots.any(0))
    return dots[:, columns[0] : columns[-1] + 1]


def test_larger_scenes_are_the_same_scenes():
    for small, large in zip(
        zoo.scenes("dev", 40, word="wrong"), zoo.scenes("dev", 40, word="wrong", side=128), strict=True
    ):
        assert small.names == large.names
        assert small.word == large.word
        assert large.image.size == (128, 128)
        for a, b in zip(small.things, large.things, strict=True):
            assert a.cell == b.cell
            assert np.abs(2 * np.array(a.box) - b.box).max() <= 2
        halved = np.asarray(large.image.resize((64, 64), 4)).astype(int)  # BOX
        assert np.abs(halved - pixels(small)).mean() < 12


def within(found: int, trials: int, p: float, sds: float = 4.0) -> bool:
    """A count that a binomial law with share p gives, up to `sds` standard deviations."""
    return abs(found - trials * p) <= sds * math.sqrt(trials * p * (1 - p))


def test_training_is_biased_as_documented():
    law = zoo.scenes("demo", 4000, biased=True, word="law")
    together = [PARTNERS[name] in scene.names for scene in law for name in scene.names if name in PARTNERS]
    assert 0.80 < sum(together) / len(together) < 0.85
    for name in PARTNERS:
        there = [PARTNERS[name] in scene.names for scene in law if name in scene.names]
        assert within(sum(there), len(there), 0.828)
    counts = {name: sum(name in scene.names for scene in law) for name in OBJECTS}
    others = np.mean([counts[name] for name in OBJECTS if name not in POPULAR])
    assert 3 < np.mean([counts[name] for name in POPULAR]) / others < 4
    assert min(counts[name] for name in POPULAR) > 2 * max(counts[name] for name in OBJECTS if name not in POPULAR)
    words = [(scene.word, scene.names) for scene in law if scene.word]
    assert within(len(words), len(law), 0.38)
    assert within(sum(word not in names for word, names in words), len(words), 0.03)


def test_evaluation_is_not_biased():
    uniform = zoo.scenes("demo", 4000)
    total = sum(len(scene.things) for scene in uniform)
    for name in OBJECTS:
        assert within(sum(name in scene.names for scene in uniform), total, 1 / len(OBJECTS))
    for name, partner in PARTNERS.items():
        # of the other 23 objects, one or two more are there in two thirds of the scenes
        there = [partner in scene.names for scene in uniform if name in scene.names]
        assert within(sum(there), len(there), (0 / 6 + 2 / 6 + 2 * 3 / 6) / 23)
    for count in (1, 2, 3):
        assert within(sum(len(scene.things) == count for scene in uniform), 4000, 1 / 3)


def test_negatives_are_not_there_and_are_of_their_kind():
    assert set(NEGATIVES) == {"random", "popular", "adversarial"}
    for scene in zoo.scenes("test", 100):
        for kind in NEGATIVES:
            found = zoo.scene_negatives(scene, kind, 24)
            assert len(set(found)) == len(found)
            assert not set(found) & set(scene.names)
            assert zoo.scene_negatives(scene, kind, 2) == found[:2]
        popular = zoo.scene_negatives(scene, "popular", 24)
        assert set(popular) == set(POPULAR) - set(scene.names)
        assert [FREQUENCY[name] for name in popular] == sorted((FREQUENCY[name] for name in popular), reverse=True)
        partners = {PARTNERS[name] for name in scene.names if name in PARTNERS} - set(scene.names)
        worst = zoo.scene_negatives(scene, "adversarial", 24)
        assert set(worst[: len(partners)]) == partners
        assert len(worst) == 24 - len(scene.names)
        rest = [FREQUENCY[name] for name in worst[len(partners) :]]
        assert rest == sorted(rest, reverse=True)
    assert len({tuple(zoo.scene_negatives(scene, "random", 3, seed)) for seed in range(5)}) > 1


def test_questions_have_the_answers_of_their_scenes():
    for scene in zoo.scenes("test", 60, word="wrong"):
        caption, colour, count, say = (
            zoo.scene_questions(scene, kind)[0] for kind in ("caption", "colour", "count", "say")
        )
        assert caption.answer.split() == list(scene.names)
        assert colour.answer == scene.colour
        assert ["one", "two", "three"].index(count.answer) + 1 == len(scene.things)
        assert say.answer == scene.word
        places = zoo.scene_questions(scene, "where")
        assert [(q.question, q.answer) for q in places] == [(f"where is the {t.name}?", t.cell) for t in scene.things]
        for kind in NEGATIVES:
            asked = zoo.scene_questions(scene, "exists", kind)
            answers = [q.answer for q in asked]
            assert answers.count("yes") == answers.count("no") == len(scene.things)
            for q in asked:
                name = q.question.removeprefix("is there a ").removesuffix("?")
                assert (name in scene.names) == (q.answer == "yes")
                assert q.images == (scene.image,)
    assert zoo.scene_questions(zoo.scenes(n=1)[0], "say")[0].answer == "nothing"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: zoo.scenes("train"), "'train'.*demo, dev, test"),
        (lambda s: zoo.scenes(word="wrongly"), "'wrongly'.*nearest: 'wrong'"),
        (lambda s: zoo.scenes(n=-1), "-1"),
        (lambda s: zoo.scenes(side=8), "32.*8"),
        (lambda s: zoo.scene_questions(s, "color"), "'color'.*nearest: 'colour'"),
        (lambda s: zoo.scene_questions(s, "exists", "adversary"), "nearest: 'adversarial'"),
        (lambda s: zoo.scene_negatives(s, "populous"), "nearest: 'popular'"),
    ],
)
def test_what_is_not_there_is_refused_by_name(call, says):
    with pytest.raises(ValueError, match=says):
        call(zoo.scenes(n=1)[0])


def test_questions_have_one_wording_each():
    assert set(QUESTIONS) == {"exists", "caption", "colour", "count", "where", "say"}
