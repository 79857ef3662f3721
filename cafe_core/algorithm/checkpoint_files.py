"""List the checkpoint files of a run. This module does not import torch, because the API uses it."""

from __future__ import annotations

from pathlib import Path


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the checkpoints in `directory`, newest first."""
    return sorted(directory.glob("checkpoint-*.safetensors"), reverse=True)


def newest_iteration(directory: Path) -> int:
    """Return the iteration of the newest checkpoint in `directory`; 0 without one."""
    files = checkpoint_files(directory)
    return int(files[0].stem.removeprefix("checkpoint-")) if files else 0
