"""Fitting by gradient beside a frozen model: losses, options, and the base class of methods that are fitted so."""

from __future__ import annotations

from . import losses
from .learned import Learned
from .loop import NotFiniteError
from .options import Options
from .student import StateLoss

__all__ = ["Learned", "NotFiniteError", "Options", "StateLoss", "losses"]
