"""Every architecture at tiny size: one head times zero at `head_out` is that head's columns zeroed in the weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from steer.testing._configs import every_class

from .judge import head_edit


@pytest.mark.parametrize("kind", ("text", "vision", "other"))
@pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
def test_scaled_head_is_a_zeroed_weight(
    cls: type[nn.Module], kind: str, record_property: Callable[[str, object], None]
) -> None:
    found = head_edit(cls, kind)
    record_property("detail", found.detail)
    if found.status == "skip":
        pytest.skip(found.detail)
    assert found.status == "pass", found.detail
