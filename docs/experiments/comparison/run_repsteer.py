"""repsteer: named sites, found by an adapter for each architecture in its list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import probes
import repsteer as rs
import torch
from models import GREEDY, LAYER, Case, vector
from probes import ROWS, Boom, Library
from reporting import report


class RealRows(rs.positions.PositionSelector):
    """`ROWS` counted from each row's first real token; of the package's own selectors none names rows so."""

    def select(self, activation: torch.Tensor, context: Any) -> torch.Tensor:
        real = context.current_attention_mask(activation)
        ranks = real.long().cumsum(-1) - 1
        return real & (ranks >= ROWS.start) & (ranks < ROWS.stop)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "real_rows"}


def steered(one: Case, *edits: rs.Intervention, compatibility: str = "dimension") -> Any:
    model = rs.models.from_model(one.model)
    # The default level compares model ids and revisions, which a model built here has not.
    return model, model.steer(rs.SteeringPlan(list(edits)), compatibility=compatibility)


def zero_head(one: Case) -> torch.Tensor:
    """A head's whole space is projected out of what all heads say; the site has no unit for one head."""
    basis = torch.eye(one.out.in_features)[one.span]
    edit = rs.Intervention(
        artifact=rs.artifacts.SubspaceArtifact(rs.ArtifactMetadata(), basis),
        operator=rs.operators.RemoveProjection(),
        positions=rs.positions.AllTokens(),
        strength=rs.schedules.Constant(1.0),
        site=rs.sites.head_result(layer=LAYER),
    )
    # Any other level takes one head's width for that of the site.
    with steered(one, edit, compatibility="incompatible")[1]:
        return one.logits()


def shift(positions: Any, **more: Any) -> rs.Intervention:
    return rs.Intervention(
        artifact=rs.DirectionArtifact(rs.ArtifactMetadata(), vector()),
        operator=rs.operators.Add(),
        positions=positions,
        strength=rs.schedules.Constant(1.0),
        site=rs.sites.resid_post(layer=0),
        **more,
    )


def written(one: Case, edit: rs.Intervention, **more: Any) -> torch.Tensor:
    model, session = steered(one, edit)
    with session:
        return model.generate(**one.inputs, **{**GREEDY, **more}).token_ids


def add_beams(one: Case) -> torch.Tensor:
    return written(one, shift(rs.positions.AllTokens()), num_beams=3)


def add_generated(one: Case) -> torch.Tensor:
    return written(one, shift(rs.positions.GeneratedTokens(), phase="decode"))


def add_rows(one: Case) -> torch.Tensor:
    rows = rs.positions.TokenIndices(range(ROWS.start, ROWS.stop))
    return written(one, shift(rows, phase="prefill"))


def padded(one: Case, batch: dict[str, torch.Tensor], positions: Any) -> torch.Tensor:
    with steered(one, shift(positions))[1]:
        return one.logits(**batch)


def add_padded(one: Case, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return padded(one, batch, RealRows())


def add_padded_columns(one: Case, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Its own indices are columns of the batch, the same in every row, padding counted."""
    return padded(one, batch, rs.positions.TokenIndices(range(ROWS.start, ROWS.stop)))


def fail_inside(one: Case) -> None:
    with steered(one, shift(rs.positions.AllTokens()))[1]:
        one.logits()
        raise Boom


def save(one: Case, folder: Path) -> None:
    site = rs.sites.resid_post(layer=0)
    rs.DirectionArtifact(rs.ArtifactMetadata(site=site), vector()).save(folder / "saved")


LIBRARY = Library(
    "repsteer", "InternVL", zero_head, add_beams, add_generated, add_rows, add_padded, None, fail_inside, save
)

if __name__ == "__main__":
    columns = replace(LIBRARY, add_padded=add_padded_columns)
    report(LIBRARY, add_padded_by_its_own_indices=lambda: probes.add_padded(columns))
