"""VCD against its two readings made one after the other, without a cache, under pictures distorted by hand."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf

import steer
from steer.errors import InterventionError, UnknownNameError
from steer_attention._distorted import blanked, blurred, noised, shares
from tests.engine.families import FAMILIES, IMAGE, SPECIAL, text, whole
from tests.engine.helpers import randn
from tests.vectors.subjects import subject

from .by_hand import greedy, mixed
from .laws import check_decoding, check_neutral, check_saved
from .test_image_focus import left_padded

NEW = 5
OPEN = {"do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
LEFT, NOISE = 0.8630171064602814, 0.5051746964733322
"""sqrt(A) and sqrt(1 - A) after step 500, worked out apart from the plugin."""


def vcd(**options):
    return steer.create("vcd", **options)


def distorted(pixels, kind):
    """The same picture seen badly, for pixels of one picture."""
    if kind == "blank":
        return torch.zeros_like(pixels)
    if kind == "blur":
        return by_loops(pixels, 2)
    own = pixels.shape[-3:] if pixels.ndim > 3 else pixels.shape
    z = torch.randn(own, generator=torch.Generator().manual_seed(0))
    return LEFT * pixels + NOISE * z


def by_loops(pixels, reach):
    """Each pixel the mean of those at most `reach` rows and columns away."""
    out, (height, width) = pixels.double().clone(), pixels.shape[-2:]
    for i in range(height):
        for j in range(width):
            rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in (i, j))
            out[..., i, j] = pixels[..., rows, columns].double().mean((-2, -1))
    return out.to(pixels.dtype)


def truth_of(family, model, inputs, method):
    """The next token's log-probabilities after a whole sequence."""
    bad = {**inputs, "pixel_values": distorted(inputs["pixel_values"], method.distortion)}

    def last(sequence):
        with torch.no_grad():
            first, second = (model(**whole(family, one, sequence)).logits[:, -1] for one in (inputs, bad))
        return mixed(first, second, 1 + method.alpha, method.plausibility)

    return last


@pytest.mark.parametrize("kind", ["noise", "blank", "blur"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_5", "mllama"])
def test_written_tokens_are_those_of_two_readings_by_hand(name, kind):
    family, method = FAMILIES[name], vcd(distortion=kind)
    model, inputs = family.model(), family.prompt()
    if kind == "blur" and inputs["pixel_values"].ndim == 2:
        with pytest.raises(InterventionError, match="cannot be blurred"), steer.attach(model, method):
            model(**inputs)
        return
    wanted, scores = greedy(truth_of(family, model, inputs, method), inputs["input_ids"], NEW)
    with steer.attach(model, method):
        got = model.generate(**inputs, max_new_tokens=NEW, **OPEN)
    assert torch.equal(got.sequences, wanted)
    found = torch.stack(got.logits, 1).double().log_softmax(-1)
    torch.testing.assert_close(found, scores, atol=5e-3, rtol=2e-3)
    plain = model(**whole(family, inputs, wanted)).logits[:, -NEW - 1 : -1].double().log_softmax(-1)
    kept = found.isfinite()
    assert not kept.all()
    # Also after the first token, where a second stream that went on with the first one's cache would add nothing.
    for i in (0, NEW - 1):
        alone = plain[:, i].masked_fill(~kept[:, i], -torch.inf).log_softmax(-1)
        assert (found[:, i] - alone)[kept[:, i]].abs().max() > 1e-3 or kept[:, i].sum() == 1


def test_the_diffusion_is_the_published_one():
    """The product of 1 - beta_i, by a plain loop."""
    left = 1.0
    for i in range(1000):
        left *= 1 - (1e-5 + (5e-3 - 1e-5) / (1 + math.exp(6 - 12 * i / 999)))
        if i in (0, 500, 999):
            assert shares(i) == pytest.approx((math.sqrt(left), math.sqrt(1 - left)), rel=1e-9)
    assert shares(500) == pytest.approx((LEFT, NOISE), rel=1e-9)
    pixels = randn(1, 3, 64, 64) * 0 + 2.0
    z = (noised(500, 3)(pixels) - LEFT * 2) / NOISE
    assert abs(float(z.mean())) < 0.03
    assert float(z.std()) == pytest.approx(1, abs=0.03)
    assert not torch.equal(noised(500, 3)(pixels), noised(500, 4)(pixels))


BATCHES = [(3, 3, 8, 8), (3, 5, 3, 8, 8), (3, 2, 2, 3, 8, 8), (3, 16, 12)]
CHANGES = {"noise": noised(500, 0), "blank": blanked(), "blur": blurred(0.5)}


@pytest.mark.parametrize(
    ("shape", "kind"), [(s, kind) for s in BATCHES for kind in CHANGES if (len(s), kind) != (3, "blur")]
)
def test_a_picture_is_distorted_alike_in_every_batch(shape, kind):
    change = CHANGES[kind]
    pixels = randn(*shape)
    together = change(pixels)
    assert together.shape == pixels.shape
    for i in range(shape[0]):
        assert torch.equal(change(pixels[i : i + 1]), together[i : i + 1])
    if len(shape) == 5:
        fewer = change(pixels[:, :2])
        assert torch.equal(fewer, together[:, :2])


def test_tiles_have_noise_of_their_own_and_padding_stays_padding():
    pixels = randn(1, 3, 3, 8, 8)
    pixels[:, 2] = 0
    z = noised(900, 0)(pixels) - shares(900)[0] * pixels
    assert (z[:, 0] - z[:, 1]).abs().max() > 0.5
    for change in (noised(900, 0), blanked(), blurred(0.5)):
        assert not change(pixels)[:, 2].any()
        assert (change(pixels)[:, :2] != 0).any(dim=(-1, -2, -3)).all()
        assert change(pixels.half()).dtype == torch.float16
        assert (change(pixels.half())[:, :2] != 0).any(dim=(-1, -2, -3)).all()


@pytest.mark.parametrize("kind", ["noise", "blank", "blur"])
def test_a_model_that_drops_padding_pictures_still_sees_the_others(kind):
    """Two pictures in one prompt and one in the other, whose place for a second is all 0."""
    torch.manual_seed(0)
    sees = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.Idefics3Config(
        text_config={"model_type": "llama", **text(), **SPECIAL},
        vision_config={**sees, "image_size": 16, "patch_size": 4},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    model = hf.Idefics3ForConditionalGeneration(config).eval().requires_grad_(False)
    picture = [IMAGE] * 4
    ids = torch.tensor([[5, *picture, 7, *picture, 9, 11], [0] * 5 + [5, *picture, 13, 17]])
    pixels = randn(2, 2, 3, 16, 16)
    pixels[1, 1] = 0
    given = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with steer.attach(model, vcd(distortion=kind)):
        both = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=pixels, **given)
        alone = model.generate(input_ids=ids[1:, 5:], pixel_values=pixels[1:, :1], **given)
    assert torch.equal(both[1, -4:], alone[0, -4:])


def test_a_blur_is_a_mean_of_neighbours():
    pixels = randn(2, 2, 3, 9, 12)
    torch.testing.assert_close(blurred(0.5)(pixels), by_loops(pixels, 2), rtol=1e-5, atol=1e-6)


def test_the_first_picture_of_a_row_of_patches_is_as_alone():
    pixels = randn(32, 96)
    assert torch.equal(noised(500, 0)(pixels)[:16], noised(500, 0)(pixels[:16]))


@pytest.mark.parametrize(("name", "kind"), [("tiny-vlm", "noise"), ("tiny-vlm", "blur"), ("qwen2_5_vl", "blank")])
def test_it_holds_in_every_way_of_decoding(name, kind):
    check_decoding(subject(name), vcd(distortion=kind, alpha=3.0, step=900))


def test_sampling_and_beams_see_the_mix():
    family, method = FAMILIES["llava"], vcd(plausibility=0.3)
    model, inputs = family.model(), family.prompt(seed=2)
    length, last = inputs["input_ids"].shape[1], truth_of(family, model, inputs, method)
    with steer.attach(model, method):
        torch.manual_seed(0)
        more = {"do_sample": True, "num_return_sequences": 4, "top_k": 0}
        sampled = model.generate(**inputs, max_new_tokens=3, **{**OPEN, **more})
        beams = model.generate(
            **inputs, max_new_tokens=3, num_beams=3, length_penalty=0.0, output_scores=True, **OPEN
        )  # fmt: skip
    for row, logits in zip(sampled.sequences, torch.stack(sampled.logits, 1), strict=True):
        for i in range(3):
            scores = last(row[None, : length + i])[0]
            torch.testing.assert_close(logits[i].double().log_softmax(-1), scores, atol=5e-3, rtol=2e-3)
            assert scores[row[length + i]].isfinite()
    row = beams.sequences
    total = sum(float(last(row[:, : length + i])[0, row[0, length + i]]) for i in range(3))
    assert float(beams.sequences_scores) == pytest.approx(total, abs=2e-3)


def test_half_precision():
    model, inputs, found = FAMILIES["llava"].model(), left_padded("llava"), []
    for dtype in (torch.float32, torch.bfloat16):
        given = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
        with torch.no_grad(), steer.attach(model.to(dtype), vcd(plausibility=0.0)):
            found.append(model(**given).logits[:, -1].float())
    assert (found[0] - found[1]).norm() < 0.1 * found[0].norm()


def test_zero_changes_no_bit_and_everything_is_read_twice_otherwise():
    check_neutral(subject("tiny-vlm"), vcd(alpha=0.0))
    model, inputs = FAMILIES["llava"].model(), FAMILIES["llava"].prompt()
    for alpha, readings in ((0.0, 1), (1.0, 2)):
        count = []
        handle = model.model.language_model.register_forward_hook(lambda *_, count=count: count.append(1))
        with torch.no_grad(), steer.attach(model, vcd(alpha=alpha)):
            model(**inputs)
        handle.remove()
        assert len(count) == readings


def test_the_setting_that_answers_best_is_chosen_and_saved(tmp_path):
    """A model is asked for the answers that it gives under one setting: that one must win."""
    one = subject("tiny-vlm")
    queries = [*one.examples, *steer.zoo.examples("colour", "dev", n=16)]
    written = vcd(alpha=2.0, step=900).answer(one.model, one.processor, queries)
    asked = [steer.Example(q.question, w, q.images) for q, w in zip(queries, written, strict=True) if w]
    method = vcd(alpha=None, step=None).fit(one.model, one.processor, asked, progress=False)
    tried, accuracy = method.tensors["tried"], method.tensors["accuracy"]
    assert tried.shape == (13, 2)
    assert float(accuracy[tried.tolist().index([2.0, 900.0])]) == 1.0
    assert float(accuracy[0]) < 1.0
    chosen = [float(method.tensors[key]) for key in ("alpha", "step")]
    assert float(accuracy[tried.tolist().index(chosen)]) == 1.0
    check_saved(one, method, tmp_path / "both")
    few = vcd(alpha=None).fit(one.model, one.processor, asked, budget=2, dev=asked[:4], progress=False)
    assert set(few.tensors) == {"alpha", "tried", "accuracy"}
    assert few.tensors["tried"].tolist()[0] == [0.0, 500.0]
    assert len(few.tensors["tried"]) == 2


def test_errors():
    one = subject("tiny-vlm")
    with pytest.raises(UnknownNameError, match="'blank'"):
        vcd(distortion="blanck")
    wrong = [("step", 1000), ("step", 2.5), ("alpha", -1.0), ("alpha", math.inf), ("plausibility", -0.1), ("blur", 0.0)]
    for name, value in wrong:
        with pytest.raises(InterventionError, match=name):
            vcd(**{name: value})
    with pytest.raises(InterventionError, match='only "noise" has a step'):
        vcd(distortion="blank", step=None)
    with pytest.raises(steer.SteerError, match="needs no fitting"):
        vcd().fit(one.model, one.processor, one.examples)
    with pytest.raises(steer.SteerError, match="must be fitted first"):
        steer.attach(one.model, vcd(step=None))
    with pytest.raises(steer.SteerError, match="has no answer"):
        vcd(alpha=None).fit(one.model, one.processor, [steer.Example("what ?")])
