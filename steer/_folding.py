"""`steer.fold`: shifts that are the same at every token, as biases of an ordinary checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._fold import places, shifts, switches, verify
from ._fold.clone import Biases, clone
from ._sharding import sharding_of
from .errors import InterventionError, SessionError
from .intervention import Intervention
from .session import attach, map_of

if TYPE_CHECKING:
    from .method import Method


@dataclass(frozen=True)
class Folded:
    """A model that gives by itself what the session gave.

    Attributes:
        model: of the class of the model that was folded, on the same tensors but for the biases.
        biases: paths of the modules whose bias holds a shift.
        switches: fields of the config that were changed so that these modules have a bias, with their new values.
        difference: how far its outputs are from the session's on the inputs tried, relative to the largest.
        effect: how far the session's are from the plain model's, likewise.
    """

    model: Any
    biases: tuple[str, ...]
    switches: Mapping[str, bool]
    difference: float
    effect: float

    def save_pretrained(self, folder: str | os.PathLike[str], processor: Any = None) -> None:
        """Write the checkpoint as transformers does, the processor (or tokenizer) beside it if given.

        Raises:
            InterventionError: the model is quantised in a way that transformers does not write.
        """
        quantiser = getattr(self.model, "hf_quantizer", None)
        if quantiser is not None and not quantiser.is_serializable():
            kind = getattr(quantiser.quantization_config.quant_method, "value", "some method")
            raise InterventionError(
                f"{type(self.model).__name__} is quantised by {kind}, and transformers writes no such checkpoint; fold "
                "the model as it was before, save that, and quantise it when it is loaded"
            )
        self.model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)


def fold(
    model: Any, *items: Intervention | Method | Iterable[Intervention], inputs: Mapping[str, Any] | None = None
) -> Folded:
    """Fold constant shifts into biases: a checkpoint that needs no steer and costs nothing per token.

    Folded are `ops.Add` without gate, `keep_norm` and `relative`, at every position, at `head_out` (as W_O v),
    `attn_out`, `mlp_out`, `resid_out` and `resid_in`. A bias stands at every token of every request: prompt, picture
    and padding included. The bias is kept in the model's dtype, so that in bf16 the logits agree to about 1e-2.

    Where the module has no bias yet, the config's field that gives it one is looked for; other biases that come with
    that field are zero. The result is tried against a session, with the shift as it is and with it multiplied until it
    is well visible, and refused if they disagree.

    Args:
        model: a transformers model in eval mode, its weights in memory. It is not changed; the result shares its
            tensors, so that it takes no memory but for the biases, and training one trains the other.
        items: methods, interventions, or lists of them, as for `steer.attach`.
        inputs: for `model(**inputs)`, to try the result on; None makes up token ids (pixels for a vision model). Needed
            where these do not reach the tower in question.

    Returns:
        A Folded; `.model` to use, `.save_pretrained(folder)` to keep.

    Raises:
        InterventionError: something is no constant shift, or no bias of this model can take it; the message names it
            and says why.
        SessionError: the model is being steered right now.

    Source: a constant in front of a linear layer, or behind it, is a bias: W (x + v) + b = W x + (W v + b).
    """
    model_map = map_of(model)
    _check(model)
    session = attach(model, *items, model_map=model_map)
    if not session.interventions:
        raise InterventionError("there is nothing to fold: no intervention was given")
    wanted = shifts.read(session.interventions, session._labels, model_map)
    tried = verify.made_up_inputs(model) if inputs is None else inputs
    added = places.biases(model, wanted, tried)
    bare = {path: bias.label for path, bias in added.items() if model.get_submodule(path).bias is None}
    switched = switches.find(type(model), model.config, bare)
    made = clone(model, switched)
    held = Biases(made, {path: bias.amount for path, bias in added.items()})
    difference, effect = verify.measure(model, made, held, session.interventions, tried, model_map)
    changed = {str(switch): switch.value for switch in switched.switches}
    return Folded(made, tuple(added), changed, difference, effect)


def _check(model: Any) -> None:
    from transformers import PreTrainedModel

    from . import _installed

    if sharding_of(model) is not None:
        raise InterventionError(
            "a model that is spread by tensor parallelism (tp_plan) cannot be folded: this process has parts of its "
            "weights; load it whole, on the CPU if need be, and fold it there"
        )

    if not isinstance(model, PreTrainedModel):
        raise InterventionError(
            f"only a transformers model can be folded, got {type(model).__name__}; merge adapters into it first"
        )
    if model in _installed._models:
        raise SessionError("the model is being steered; fold it after the session has ended")
    if model.training:
        raise InterventionError("the model is in training mode, where dropout hides a fold's effect; call model.eval()")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InterventionError("some weights are not in memory (meta device or offloaded); load the model whole")
