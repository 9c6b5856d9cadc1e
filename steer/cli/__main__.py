"""`python -m steer.cli`, for `accelerate launch --multi_gpu -m steer.cli fit ...`."""

from __future__ import annotations

from . import main

if __name__ == "__main__":
    main()
