"""The processes that share a fit, as accelerate knows them."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState


def processes_of(model: Any) -> PartialState:
    """Who else is at work on this fit: several processes under a launcher, else this one alone.

    accelerate has to be told that the work is done on CPUs: otherwise several processes without an accelerator each
    believe that they are alone.
    """
    return PartialState(cpu=model.device.type in ("cpu", "meta"))
