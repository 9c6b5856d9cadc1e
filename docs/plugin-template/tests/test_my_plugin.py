"""What must hold, on a tiny model of each kind of architecture. Nothing is downloaded."""

import pytest
import steer
import torch
from steer import testing

from steer_my_plugin.method import MyPlugin


@pytest.mark.parametrize("architecture", testing.FAMILIES)
def test_every_promise_holds(architecture, tmp_path):
    model, inputs = testing.tiny(architecture)
    testing.check(MyPlugin(), model, inputs, tmp_path)


def test_it_does_what_a_hook_written_by_hand_does():
    """The arithmetic against plain torch: the one thing that nobody else can test for you."""
    model, inputs = testing.tiny("llava")
    tower = steer.inspect(model).tower()
    method = MyPlugin(layers=(1,), strength=0.5)
    method.tensors = {"vector": torch.randn(tower.width, generator=torch.Generator().manual_seed(0))}

    def by_hand(module, args, output):
        return output + 0.5 * method.tensors["vector"]

    hook = model.get_submodule(tower.layers[1].path).register_forward_hook(by_hand)
    truth = model(**inputs).logits
    hook.remove()
    with steer.attach(model, method):
        torch.testing.assert_close(model(**inputs).logits, truth, rtol=1e-5, atol=1e-5)


def test_it_is_installed_and_learns_from_examples():
    model, processor = steer.zoo.load("tiny-vlm")
    examples = steer.zoo.examples("colour", "demo", n=16)
    method = steer.create("my_plugin").fit(model, processor, examples, epochs=1, progress=False)
    assert type(method) is MyPlugin
    assert method.tensors["vector"].abs().max() > 0
