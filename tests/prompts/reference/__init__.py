"""Prompt learners from their equations, in plain torch: what `steer_prompts` is compared with. Nothing imports steer.

Each system has a file with `logits(clip, ...)` and `loss(clip, ...)` (ProGrad: `losses` and `gradients`). `learned` is
a dict of the trained tensors under the names in tests/golden/clip_prompts. Every text keeps all of its tokens, nothing
is kept from one call to the next. `golden` reads the files and needs transformers for the model; the rest is torch.
"""
