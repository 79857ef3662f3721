"""Describe a measured figure and the machine it was measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Figure:
    """A measured figure: one line of the benchmark."""

    name: str
    value: float
    unit: str
    target: str | None = None

    def __str__(self) -> str:
        target = f"   (target {self.target})" if self.target else ""
        return f"{self.name:<72} {self.value:>12.4g} {self.unit}{target}"


def machine() -> dict[str, object]:
    """Return the hardware and the versions that the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
