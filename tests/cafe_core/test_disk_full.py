"""A full disk while checkpointing, on a real small file system."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cafe_core.checkpoint import Checkpoint, checkpoint_files, latest_checkpoint, save_checkpoint
from cafe_core.errors import DiskFullError
from tests.cafe_core.made_data import make_spec, make_store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this machine mounts nothing: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint_whole(small_disk: Path, tmp_path: Path) -> None:
    spec = make_spec(make_store(tmp_path / "store", [4] * 10), ipc=10)
    images = torch.randn(100, 1, 8, 8, dtype=torch.float64)  # 51 kB, and as much of momentum

    def save(iteration: int) -> None:
        save_checkpoint(small_disk, Checkpoint(images + iteration, images, iteration), spec)

    save(1)
    save(2)  # 205 kB of 262
    with pytest.raises(DiskFullError, match=r"iteration 3 .*No space left on device.*earlier checkpoints are intact"):
        save(3)
    kept = latest_checkpoint(small_disk, spec)
    assert kept is not None
    assert kept.iteration == 2
    assert torch.equal(kept.images, images + 2)
    assert sorted(path.name for path in small_disk.iterdir()) == sorted(path.name for path in checkpoint_files(small_disk))

    checkpoint_files(small_disk)[-1].unlink()
    save(3)  # with room again it goes on
    assert latest_checkpoint(small_disk, spec).iteration == 3  # type: ignore[union-attr]
