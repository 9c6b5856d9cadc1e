"""What a quantised model cannot do is one clear error, and what it can is right."""

from __future__ import annotations

import pytest
import torch

import steer

from .precisions import distance, precise


@pytest.fixture
def folded() -> steer.Folded:
    """A constant shift folded into the int8 model: its projections have float biases."""
    model = precise("tiny-vlm", "int8").model
    v = torch.randn(steer.inspect(model).tower().width, generator=torch.Generator().manual_seed(0))
    return steer.fold(model, steer.Intervention(steer.sites.resid_out([1]), steer.ops.Add(v)))


def test_a_fold_of_a_quantised_model_is_right_in_memory(folded):
    model, ids = precise("tiny-vlm", "int8").model, torch.arange(5, 15)[None]
    shift = folded.model.get_submodule(folded.biases[0]).bias
    with torch.no_grad(), steer.attach(model, steer.Intervention(steer.sites.mlp_out([1]), steer.ops.Add(shift))):
        truth = model(input_ids=ids).logits
    with torch.no_grad():
        assert distance(folded.model(input_ids=ids).logits, truth) < 1e-5
        assert distance(model(input_ids=ids).logits, truth) > 1e-2


def test_it_is_not_written_as_a_checkpoint(folded, tmp_path):
    with pytest.raises(
        steer.SteerError, match=r"LlavaForConditionalGeneration is quantised by quanto.* fold the model"
    ):
        folded.save_pretrained(tmp_path / "out", precise("tiny-vlm", "int8").processor)
    assert not (tmp_path / "out").exists()


def test_a_memory_of_the_unquantised_model_is_not_the_quantised_ones(tmp_path):
    whole, processor = steer.zoo.load()
    shots = steer.zoo.examples("colour", "demo", 4)
    memory = steer.create("streaming_llm").build(whole, processor, shots, certify=False, progress=False)
    memory.save(tmp_path, processor)
    memory.unbind()
    with pytest.raises(steer.errors.FingerprintError, match="made with other weights"):
        steer.memory.Memory.load(tmp_path, precise("tiny-vlm", "int8").model)
