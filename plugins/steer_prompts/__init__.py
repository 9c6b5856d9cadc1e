"""Learned prompts for vision-language models: the home of CoOp, CoCoOp, MaPLe and CoPrompt.

No method is here yet; the package is installed and found so that the road its methods will take is tested.
"""

from __future__ import annotations

import steer


@steer.hookimpl
def steer_register_methods(registry: object) -> None:
    """Register nothing yet."""
