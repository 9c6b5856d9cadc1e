"""PEFT: modules found by the names that the user gives; it changes what weights do, and prompts, not activations."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import torch
from models import KINDS, Case, case
from probes import Boom, Found, Library
from reporting import report


def adapted(one: Case, config: peft.PeftConfig) -> peft.PeftModel:
    return peft.get_peft_model(one.model, config)


def lora(one: Case) -> peft.LoraConfig:
    """On the output projection of every text layer, by a regular expression over paths."""
    layers, out = one.layers_path.replace(".", r"\."), one.out_path.replace(".", r"\.")
    return peft.LoraConfig(r=2, target_modules=rf"{layers}\.\d+\.{out}", init_lora_weights=False)


def fail_inside(one: Case) -> None:
    model = adapted(one, lora(one))
    try:
        model(**one.inputs)
        raise Boom
    finally:
        model.unload()


def save(one: Case, folder: Path) -> None:
    adapted(one, lora(one)).save_pretrained(folder)


def lora_everywhere() -> Found:
    """An adapter on the text layers' output projections trains in how many of the eight."""
    done, failed = [], []
    for name in KINDS:
        one = case(name)
        try:
            model = adapted(one, lora(one))
            output = model(**one.inputs)
            (output.logits if hasattr(output, "logits") else output.logits_per_image).sum().backward()
            trained = [p for p in model.parameters() if p.requires_grad]
            ok = bool(trained) and all(p.grad is not None for p in trained)
        except Exception as error:
            failed.append(f"{name} ({type(error).__name__})")
            continue
        (done if ok else failed).append(name)
    return not failed, f"{len(done)} of {len(KINDS)}" + (f"; not {', '.join(failed)}" if failed else "")


def merged() -> Found:
    """A merged adapter gives the adapted model's logits, and is a plain model."""
    one = case("LLaVA")
    model = adapted(one, lora(one))
    with torch.no_grad():
        wanted = model(**one.inputs).logits
        plain = copy.deepcopy(model).merge_and_unload()
        apart = float((plain(**one.inputs).logits - wanted).abs().max())
    return apart <= 1e-5, f"{apart:.1e} from the adapted model, a {type(plain).__name__}"


def prefix_on_vlm() -> Found:
    """Prefix tuning on a model that sees."""
    one = case("LLaVA")
    model = adapted(one, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    before = one.model(**one.inputs).logits
    moved = float((model(**one.inputs).logits - before).abs().max())
    return moved > 1e-3, f"moved the logits by {moved:.2g}"


def prompt_on_clip() -> Found:
    """Learned context for CLIP's text half, by prompt tuning."""
    one = case("CLIP")
    before = one.logits()
    model = adapted(one, peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3))
    after = model(**one.inputs).logits_per_image
    moved = float((after - before).abs().max())
    return after.shape == before.shape and moved > 1e-6, f"moved the scores by {moved:.2g}"


def prompt_on_clip_text() -> Found:
    """The same around the text half alone."""
    one = case("CLIP")
    model = peft.get_peft_model(
        one.model.text_model, peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    )
    given = {name: one.inputs[name] for name in ("input_ids", "attention_mask")}
    return True, f"features {tuple(model(**given).pooler_output.shape)}"


if __name__ == "__main__":
    report(
        Library("peft", fail_inside=fail_inside, save=save),
        lora_everywhere=lora_everywhere,
        merged=merged,
        prefix_on_vlm=prefix_on_vlm,
        prompt_on_clip=prompt_on_clip,
        prompt_on_clip_text=prompt_on_clip_text,
    )
