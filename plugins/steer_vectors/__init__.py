"""In-context, task and function vectors: a static shift of hidden states that stands for demonstrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import steer

if TYPE_CHECKING:
    from steer.registry import MethodRegistry


@steer.hookimpl
def steer_register_methods(registry: MethodRegistry) -> None:
    """Register every method of this package."""
    from .function_vector import FunctionVector
    from .gate import Gate
    from .gate_retrieval import GateRetrieval
    from .gate_threshold import GateThreshold
    from .head_shift import HeadShift
    from .hificl import HiFICL
    from .hyper_icl import HyperICL
    from .icl import ICL
    from .icv import ICV
    from .joint import Joint
    from .live import LIVE
    from .mimic import MimIC
    from .mtv import MTV
    from .savs import SAVs
    from .task_vector import TaskVector

    heuristic = (ICL, ICV, TaskVector, FunctionVector, MTV, SAVs)
    learned = (LIVE, HeadShift, MimIC, HyperICL, HiFICL, Joint)
    for method in (*heuristic, *learned, Gate, GateThreshold, GateRetrieval):
        registry.add(method)
