"""The command line. One file per command; plugins add theirs through `steer_add_commands`."""

from __future__ import annotations

from .app import build_app, main

__all__ = ["build_app", "main"]
