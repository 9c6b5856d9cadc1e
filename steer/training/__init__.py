"""Fitting by gradient beside a frozen model: losses, options, and the base class of methods that are fitted so."""

from __future__ import annotations

from . import losses
from ._frozen import frozen
from ._identity import identity
from ._shard import shard
from .learned import Learned
from .loop import Job, NotFiniteError, run
from .options import Options
from .student import StateLoss

__all__ = ["Job", "Learned", "NotFiniteError", "Options", "StateLoss", "frozen", "identity", "losses", "run", "shard"]
