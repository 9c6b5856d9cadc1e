"""The model card that is saved beside a method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from .files import SavedMethod
    from .method import Method


def card(method: Method, saved: SavedMethod) -> str:
    """A stub in the hub's format: front matter, what it is, how to load it, what it was made from."""
    plugin = saved.plugin.get("distribution", "steer-vlm")
    packages = "steer-vlm" if plugin in ("steer-vlm", "unknown") else f"steer-vlm {plugin}"
    return f"""---
library_name: steer
tags:
- steer
- {json.dumps(method.name)}
---

# {method.name}

{method.summary}

Paper: {method.paper}

```python
# pip install {packages}
import steer

method = steer.load("this folder or its hub id", model)
with steer.attach(model, method):
    model.generate(**inputs)
```

## Configuration

{_block(_short(saved.config))}

## What it was made from

{_block(_short(saved.provenance) or "nothing: this method learns nothing")}

Saved with steer {__version__}. Write here what it is for, how it was evaluated and where it fails.
"""


def _block(data: Any) -> str:
    return f"```json\n{json.dumps(data, indent=2, default=str)}\n```"


def _short(data: Any) -> Any:
    """Without layer-by-layer fingerprints, of which their digests say enough."""
    if isinstance(data, Mapping):
        return {key: _digest(value) if key == "fingerprint" else _short(value) for key, value in data.items()}
    return [_short(item) for item in data] if isinstance(data, list | tuple) else data


def _digest(fingerprint: Any) -> Any:
    return fingerprint.get("digest") if isinstance(fingerprint, Mapping) else fingerprint
