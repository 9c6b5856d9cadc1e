"""A saved memory in numbers: as JSON and as the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..memory.files import SavedMemory
from ..memory.kept import Kept


def summary(saved: SavedMemory) -> dict[str, Any]:
    """Everything that a folder says of itself, as plain data."""
    record, info = saved.record, saved.record["info"]
    return {
        "model_class": record["model_class"],
        "method": info.get("method"),
        "config": info.get("config"),
        "demonstrations": info.get("demonstrations"),
        "tokens": record["length"],
        "image_tokens": int(saved.tensors["images"].sum()),
        "next_position": record["next_position"],
        "dtype": record["dtype"],
        "bytes": sum(_bytes(saved, place) for place in range(len(record["layers"]))),
        "bytes_on_disk": record["tensors"]["bytes"],
        "certificate": info.get("certificate"),
        "layers": [_layer(saved, place) for place in range(len(record["layers"]))],
        "steer_version": record["steer_version"],
    }


def layer_rows(saved: SavedMemory) -> list[tuple[str, ...]]:
    """The table's rows, and one for all layers together."""
    layers = [_layer(saved, place) for place in range(len(saved.record["layers"]))]
    rows = [_cells(layer) for layer in layers]
    shares = [layer["share"] for layer in layers if layer["share"] is not None]
    mean = f"{sum(shares) / len(shares):.1%}" if shares else "-"
    return [*rows, ("all", "", "", mean, f"{sum(layer['bytes'] for layer in layers):,}", "", "")]


def certificate_lines(saved: SavedMemory) -> list[str]:
    """The certificate in words."""
    info = saved.record["info"]
    lines = [f"{saved.record['model_class']}, {saved.record['length']} tokens read, method {info.get('method', '-')}"]
    certificate = info.get("certificate")
    if not isinstance(certificate, Mapping):
        return [*lines, "no certificate"]
    for name, words in (("calibration", "on its demonstrations"), ("held_out", "on held-out questions")):
        found = certificate.get(name)
        if isinstance(found, Mapping):
            lines.append(
                f"certificate {words}: Jensen-Shannon divergence from the whole context {_number(found.get('mean'))} "
                f"nats in the mean, {_number(found.get('max'))} at most; same most likely token "
                f"{_number(found.get('agreement'))}; {found.get('tokens')} tokens"
            )
    if isinstance(whole := certificate.get("nbytes_whole"), int):
        lines.append(f"the whole context would take {whole:,} bytes")
    return lines


def _layer(saved: SavedMemory, place: int) -> dict[str, Any]:
    names = {place: int(index) for index, place in saved.record["places"].items()}
    data = saved.record["layers"][place]
    made = {"place": place, "layer": names.get(place), "class": data["class"], "bytes": _bytes(saved, place)}
    if data["class"] != Kept.__name__:
        return {**made, "seen": None, "kept": None, "least": None, "most": None, "share": None}
    counts = saved.layer(place).counts().float()
    real = saved.tensors["mask"].sum(-1, keepdim=True).clamp_min(1)
    numbers = {"kept": float(counts.mean()), "least": int(counts.min()), "most": int(counts.max())}
    return {**made, "seen": float(real.float().mean()), **numbers, "share": float((counts / real).mean())}


def _cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    name = str(layer["place"] if layer["layer"] is None else layer["layer"])
    if layer["share"] is None:
        return name, f"all, {layer['class']}", "-", "-", f"{layer['bytes']:,}", "-", "-"
    heads = f"{layer['least']}", f"{layer['most']}"
    return name, f"{layer['kept']:.1f}", f"{layer['seen']:.0f}", f"{layer['share']:.1%}", f"{layer['bytes']:,}", *heads


def _bytes(saved: SavedMemory, place: int) -> int:
    """On disk."""
    mine = [tensor for name, tensor in saved.tensors.items() if name.startswith(f"layers.{place}.")]
    return sum(tensor.numel() * tensor.element_size() for tensor in mine)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"
