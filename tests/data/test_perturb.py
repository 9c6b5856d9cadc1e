"""Changed pictures: each operation against arithmetic on pixels, all of them against torchvision where it is there."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy
import pytest
from PIL import Image

import steer
from steer.data import flip, rand_augment, random_resized_crop
from steer.data.perturb import OPERATIONS, SIGNED

# torchvision's names for ours where they are more than another spelling of case and underscores.
THEIRS = {"colour": "Color", "posterise": "Posterize", "solarise": "Solarize", "equalise": "Equalize"}
THEIRS |= {"autocontrast": "AutoContrast", "shear_x": "ShearX", "shear_y": "ShearY"}
THEIRS |= {"translate_x": "TranslateX", "translate_y": "TranslateY"}


class Scripted:
    """A generator that gives the numbers that it was given, in turn."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth with some noise, so that every operation shows."""
    y, x = numpy.mgrid[:height, :width]
    smooth = numpy.stack([60 + 3 * x, 200 - 4 * y, 90 + x + y], axis=-1)
    noise = numpy.random.default_rng(seed).integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(numpy.uint8))


def array(image: Image.Image) -> numpy.ndarray:
    """(H, W, 3), int64."""
    return numpy.asarray(image).astype(int)


def applied(name: str, magnitude: int, image: Image.Image, sign: int = 1) -> Image.Image:
    """One operation, drawn by `rand_augment` itself from scripted numbers."""
    chosen = (list(OPERATIONS).index(name) + 0.5) / len(OPERATIONS)
    rng = Scripted(chosen, *([0.25 if sign == 1 else 0.75] if name in SIGNED else []))
    made = rand_augment(image, rng, n=1, magnitude=magnitude)
    assert not rng.numbers
    return made


@pytest.mark.parametrize("sign", [1, -1])
def test_translations_move_by_whole_pixels_into_black(sign):
    before = array(picture())
    after = array(applied("translate_x", 10, picture(), sign))
    moved = int(150 / 331 * 40 / 3)  # 6
    there, gone = (after[:, moved:], after[:, :moved]) if sign == 1 else (after[:, :-moved], after[:, -moved:])
    kept = before[:, :-moved] if sign == 1 else before[:, moved:]
    assert (there == kept).all()
    assert not gone.any()
    after = array(applied("translate_y", 30, picture(), sign))
    moved = int(150 / 331 * 30)  # 13
    assert (after[moved:] == before[:-moved]).all() if sign == 1 else (after[:-moved] == before[moved:]).all()


def test_shears_move_each_line_by_its_distance_from_the_corner():
    before = array(picture())
    for m, sign in ((30, 1), (30, -1), (10, 1)):
        slope = sign * 0.3 * m / 30
        after = array(applied("shear_x", m, picture(), sign))
        for y in range(30):
            # The centre of pixel (x, y) is at (x + 1/2, y + 1/2).
            source = numpy.floor(numpy.arange(40) + 0.5 + slope * (y + 0.5)).astype(int)
            wanted = numpy.where((source >= 0) & (source < 40), 1, 0)[:, None] * before[y, source.clip(0, 39)]
            assert (after[y] == wanted).all()
        after = array(applied("shear_y", m, picture().transpose(Image.Transpose.TRANSPOSE), sign))
        same = applied("shear_x", m, picture(), sign).transpose(Image.Transpose.TRANSPOSE)
        assert (after == array(same)).all()


def test_a_rotation_takes_every_pixel_from_where_the_angle_says():
    before, angle = array(picture(31, 31)), math.radians(10)
    after = array(applied("rotate", 10, picture(31, 31)))
    # Counter-clockwise on the screen, whose y points down, about the middle.
    y, x = numpy.mgrid[:31, :31] - 15.0
    source_x = x * math.cos(angle) - y * math.sin(angle) + 15
    source_y = x * math.sin(angle) + y * math.cos(angle) + 15
    inside = (source_x > 0) & (source_x < 30) & (source_y > 0) & (source_y < 30)
    wanted = before[source_y.round().astype(int).clip(0, 30), source_x.round().astype(int).clip(0, 30)]
    # Places halfway between two pixels may fall to either.
    assert (after == wanted).all(axis=-1)[inside].mean() > 0.99


@pytest.mark.parametrize("m, bits", [(0, 8), (3, 8), (4, 7), (10, 7), (15, 6), (30, 4)])
def test_posterising_keeps_the_upper_bits(m, bits):
    assert (array(applied("posterise", m, picture())) == array(picture()) & (256 - 2 ** (8 - bits))).all()


@pytest.mark.parametrize("m, threshold", [(0, 255), (10, 170), (30, 0)])
def test_solarising_inverts_what_is_bright(m, threshold):
    before = array(picture())
    assert (array(applied("solarise", m, picture())) == numpy.where(before < threshold, before, 255 - before)).all()


def grey(rgb: numpy.ndarray) -> numpy.ndarray:
    """ITU-R 601 luma, (H, W, 1), rounded as PIL does."""
    return (rgb @ numpy.array([0.299, 0.587, 0.114]) + 0.5).astype(int)[..., None]


@pytest.mark.parametrize("m, sign", [(10, 1), (10, -1), (30, 1), (30, -1)])
def test_enhancements_go_away_from_black_grey_and_the_mean(m, sign):
    before = array(picture())
    factor = 1 + sign * 0.9 * m / 30
    mean = int(grey(before).mean() + 0.5)
    for name, base in (("brightness", 0), ("colour", grey(before)), ("contrast", mean)):
        wanted = (base + factor * (before - base)).clip(0, 255)
        assert abs(array(applied(name, m, picture(), sign)) - wanted).max() <= 1 + 0.9 * (name != "brightness"), name
    sharp = [array(applied("sharpness", m, picture(), one))[1:-1, 1:-1] for one in (1, -1)]
    rough = [numpy.abs(numpy.diff(one, axis=1)).mean() for one in (sharp[1], before[1:-1, 1:-1], sharp[0])]
    assert rough == sorted(rough)
    assert rough[0] < rough[2]


def test_autocontrast_and_equalise_use_the_whole_range():
    flat = Image.fromarray((array(picture()) // 4 + 50).astype(numpy.uint8))
    stretched = array(applied("autocontrast", 10, flat))
    assert (stretched.min(axis=(0, 1)) == 0).all()
    assert (stretched.max(axis=(0, 1)) >= 254).all()
    levels = array(applied("equalise", 10, flat))
    # Even shares below each quarter of the range, as far as whole levels allow.
    assert all(abs((levels <= 255 * q).mean() - q) < 0.1 for q in (0.25, 0.5, 0.75))
    assert array(applied("identity", 10, flat)).tolist() == array(flat).tolist()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_torchvisions(name):
    auto = pytest.importorskip("torchvision.transforms.autoaugment")
    nearest = pytest.importorskip("torchvision.transforms").InterpolationMode.NEAREST
    theirs = THEIRS.get(name, name.capitalize())
    for size in ((40, 30), (33, 57), (224, 224)):
        image = picture(*size)
        magnitudes, signed = auto.RandAugment()._augmentation_space(31, size[::-1])[theirs]
        assert signed == (name in SIGNED)
        for m in (0, 1, 9, 10, 17, 30):
            for sign in (1, -1) if signed else (1,):
                value = sign * float(magnitudes[m] if magnitudes.ndim else 0)
                wanted = array(auto._apply_op(image, theirs, value, interpolation=nearest, fill=None))
                off = abs(array(applied(name, m, image, sign)) - wanted)
                # Its shears go through degrees and back, so a tie between two pixels may fall otherwise; its strengths
                # are fp32, and pixels are cut to whole levels.
                if name.startswith("shear"):
                    assert off.any(axis=-1).mean() <= 0.002, (size, m, sign)
                else:
                    assert off.max() <= (name in ("colour", "contrast", "sharpness")), (size, m, sign)


def test_the_operations_are_torchvisions():
    auto = pytest.importorskip("torchvision.transforms.autoaugment")
    assert [THEIRS.get(name, name.capitalize()) for name in OPERATIONS] == list(
        auto.RandAugment()._augmentation_space(31, (30, 40))
    )


def test_operations_and_signs_are_drawn_evenly(monkeypatch):
    drawn: Counter[tuple[str, int]] = Counter()
    for name in OPERATIONS:
        monkeypatch.setitem(
            OPERATIONS, name, lambda image, t, name=name: drawn.update([(name, round(t * 30))]) or image
        )
    rng = random.Random(0)
    for _ in range(1000):
        rand_augment(picture(2, 2), rng, n=14, magnitude=10)
    by_name = Counter()
    for (name, m), count in drawn.items():
        by_name[name] += count
        assert abs(m) == 10
        # 500 or 1000 expected; five standard deviations.
        assert abs(count - (500 if name in SIGNED else 1000)) < 160
    assert len(drawn) == 14 + len(SIGNED)
    assert sum(by_name.values()) == 14_000


def test_operations_follow_one_another():
    first, second = ((list(OPERATIONS).index(name) + 0.5) / 14 for name in ("solarise", "posterise"))
    made = rand_augment(picture(), Scripted(first, second), n=2, magnitude=20)
    assert array(made).tolist() == array(applied("posterise", 20, applied("solarise", 20, picture()))).tolist()
    assert array(rand_augment(picture(), Scripted(), n=0)).tolist() == array(picture()).tolist()


def test_a_crop_by_hand():
    # Half the area of 40 x 30 as a square: 24.49 pixels, rounded to 24, and places 17 x 7 to choose from.
    rng = Scripted((0.5 - 0.08) / 0.92, 0.5, 10.5 / 17, 3.5 / 7)
    wanted = array(picture())[3:27, 10:34]
    assert array(random_resized_crop(picture(), rng, size=24)).tolist() == wanted.tolist()
    # Ratio 4/3 with a quarter of the area: 20 x 15, whose corner 0, 0 is the first.
    rng = Scripted(0, 1, 0, 0)
    made = random_resized_crop(picture(), rng, scale=(0.25, 0.25), size=60)
    cut = picture().crop((0, 0, 20, 15))
    assert array(made).tolist() == array(cut.resize((60, 60), Image.Resampling.BICUBIC)).tolist()


def crops(size: tuple[int, int], times: int, monkeypatch, **options) -> list[tuple[int, int, int, int]]:
    """The boxes that are cut out."""
    boxes: list[tuple[int, int, int, int]] = []
    cut = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: boxes.append(box) or cut(self, box))
    rng = random.Random(0)
    for _ in range(times):
        assert random_resized_crop(picture(*size), rng, **options).size == (min(size),) * 2
    return boxes


def test_crops_have_areas_and_shapes_from_all_of_their_ranges(monkeypatch):
    boxes = numpy.array(crops((300, 300), 400, monkeypatch))
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    area, shape = width * height / 90_000, numpy.log(width / height) / math.log(4 / 3)
    assert 0.075 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    # Even between 0.08 and 1; the largest are redrawn where the shape does not fit.
    assert abs(area.mean() - 0.52) < 0.06
    assert abs(shape.mean()) < 0.1
    assert shape.min() < -0.9
    assert shape.max() > 0.9
    assert abs(shape).max() < 1.05
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= 300).all()
    # Places are even within what the size leaves.
    place = boxes[:, 0] / (300 - width).clip(1)
    assert abs(place.mean() - 0.5) < 0.06


MIDDLES = [((400, 30), (180, 0, 220, 30)), ((30, 400), (0, 180, 30, 220)), ((40, 30), (0, 0, 40, 30))]


@pytest.mark.parametrize("size, box", MIDDLES)
def test_a_shape_that_never_fits_takes_the_middle(size, box, monkeypatch):
    assert crops(size, 1, monkeypatch, scale=(1, 1)) == [box]


@pytest.mark.parametrize("size, box", MIDDLES)
def test_that_middle_is_torchvisions(size, box):
    transforms = pytest.importorskip("torchvision.transforms")
    top, left, height, width = transforms.RandomResizedCrop.get_params(picture(*size), (1, 1), (3 / 4, 4 / 3))
    assert (left, top, left + width, top + height) == box


def test_flips():
    assert array(flip(picture(), Scripted(0.49))).tolist() == array(picture())[:, ::-1].tolist()
    assert array(flip(picture(), Scripted(0.5))).tolist() == array(picture()).tolist()
    assert array(flip(picture(), Scripted(0.9), p=1)).tolist() == array(picture())[:, ::-1].tolist()
    assert array(flip(picture(), Scripted(0.0), p=0)).tolist() == array(picture()).tolist()


CHANGES = [random_resized_crop, flip, rand_augment]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [random.Random, numpy.random.default_rng])
def test_a_seed_gives_the_same_pictures_and_the_given_one_stays(change, make):
    image, before = picture(), array(picture())
    runs = [[array(change(image, rng)).tolist() for _ in range(8)] for rng in (make(5), make(5), make(6))]
    assert runs[0] == runs[1] != runs[2]
    assert (array(image) == before).all()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_any_mode_come_out_in_rgb(change, mode):
    image = picture().convert(mode)
    made = [change(one, random.Random(1)) for one in (image, image.convert("RGB"))]
    assert made[0].mode == "RGB"
    assert array(made[0]).tolist() == array(made[1]).tolist()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_the_smallest_pictures_survive_everything(size):
    rng = random.Random(0)
    for _ in range(60):
        for change in CHANGES:
            assert min(change(picture(*size), rng).size) == 1
    for name in OPERATIONS:
        assert applied(name, 30, picture(*size)).size == size


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: flip("x.png", random), "a str cannot be changed"),
        (lambda: flip(picture(), random, p=1.5), "p is 1.5"),
        (lambda: rand_augment(picture(), random, magnitude=31), "magnitude 0 to 30"),
        (lambda: rand_augment(picture(), random, n=-1), "n is -1"),
        (lambda: random_resized_crop(picture(), random, scale=(0, 1)), "scale is"),
        (lambda: random_resized_crop(picture(), random, scale=(0.5, 2)), "at most 1"),
        (lambda: random_resized_crop(picture(), random, ratio=(2, 1)), "ratio is"),
        (lambda: random_resized_crop(picture(), random, size=0), "size is 0"),
    ],
)
def test_what_cannot_be_done_says_so(call, reason):
    with pytest.raises(steer.SteerError, match=reason):
        call()
