"""Where checkpoints are. No torch here: the API lists them."""

from __future__ import annotations

from pathlib import Path


def checkpoint_files(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, newest first."""
    return sorted(directory.glob("checkpoint-*.safetensors"), reverse=True)
