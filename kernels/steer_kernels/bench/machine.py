"""The machine a figure belongs to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "liger-kernel", "flash-linear-attention", "kvpress", "transformers")


def machine(device: torch.device) -> dict[str, Any]:
    """Device, cores, threads, how busy the machine was beforehand, caches, versions and the day."""
    cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if cuda else None
    return {
        "device": device_name(device),
        "type": device.type,
        "memory_gb": round(properties.total_memory / 2**30, 1) if properties else None,
        "cpu": cpu(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "cache_mb": round(cache(device) / 2**20, 1),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def slug(found: dict[str, Any]) -> str:
    """The machine in a file's name: `cpu`, `h100-80gb-hbm3`."""
    if found["type"] == "cpu":
        return "cpu"
    name = re.sub(r"^nvidia\s+", "", found["device"], flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's."""
    return str(torch.cuda.get_device_properties(device).name) if device.type == "cuda" else cpu()


def cpu() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache(device: torch.device) -> int:
    """Bytes of the last cache before memory; 32 MiB where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]])
    return max(sizes, default=32 * 2**20)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
