"""repsteer: named sites, found by an adapter for each architecture in its list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import repsteer as rs
import torch
from models import GREEDY, HEAD, LAYER, Case, vector
from probes import ROWS, Boom, Library
from reporting import report


def steered(one: Case, *edits: rs.Intervention) -> Any:
    model = rs.models.from_model(one.model)
    # The default level compares model ids and revisions, which a model built here has not.
    return model, model.steer(rs.SteeringPlan(list(edits)), compatibility="dimension")


def zero_head(one: Case) -> torch.Tensor:
    """A head's whole space is projected out of what it says."""
    basis = torch.eye(one.width)
    edit = rs.Intervention(
        artifact=rs.artifacts.SubspaceArtifact(rs.ArtifactMetadata(), basis),
        operator=rs.operators.RemoveProjection(),
        positions=rs.positions.AllTokens(),
        strength=rs.schedules.Constant(1.0),
        site=rs.sites.head_result(layer=LAYER, unit=HEAD),
    )
    with steered(one, edit)[1]:
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


def add_padded(one: Case, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Indices are columns of the batch, the same in every row, padding counted."""
    with steered(one, shift(rs.positions.TokenIndices(range(ROWS.start, ROWS.stop))))[1]:
        return one.logits(**batch)


def fail_inside(one: Case) -> None:
    with steered(one, shift(rs.positions.AllTokens()))[1]:
        one.logits()
        raise Boom


def save(one: Case, folder: Path) -> None:
    site = rs.sites.resid_post(layer=0)
    rs.DirectionArtifact(rs.ArtifactMetadata(site=site), vector()).save(folder / "saved")


if __name__ == "__main__":
    report(
        Library(
            "repsteer", "InternVL", zero_head, add_beams, add_generated, add_rows, add_padded, None, fail_inside, save
        )
    )
