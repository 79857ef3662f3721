"""Test a full disk on a real, small file system."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cafe_core.algorithm.checkpoint import Checkpoint, Checkpoints
from cafe_core.algorithm.checkpoint_files import checkpoint_files
from cafe_core.data.roots import DataRoots
from cafe_core.errors import DiskFullError
from cafe_core.files import LineLog, read_lines
from cafe_core.jobs import local
from cafe_core.jobs.jobdir import EventLog
from tests.cafe_core.made_data import make_spec, make_store


@contextmanager
def small_disk(path: Path, kibibytes: int) -> Iterator[Path]:
    """Mount a small file system at `path`."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", path]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine cannot mount a file system: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_full_disk_raises_disk_full_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        fill_with_checkpoints(disk, tmp_path)


def fill_with_checkpoints(disk: Path, tmp_path: Path) -> None:
    spec = make_spec(make_store(tmp_path / "store", [4] * 10), ipc=10)
    images = torch.randn(100, 1, 8, 8, dtype=torch.float64)  # 51 kB, and as much of momentum

    def save(iteration: int) -> None:
        Checkpoints(disk).save(Checkpoint(images + iteration, images, iteration), spec)

    save(1)
    save(2)  # 205 kB of 262
    with pytest.raises(DiskFullError, match=r"iteration 3 .*earlier checkpoints are intact.*No space left on device"):
        save(3)
    kept = Checkpoints(disk).latest(spec)
    assert kept is not None
    assert kept.iteration == 2
    assert torch.equal(kept.images, images + 2)
    assert sorted(path.name for path in disk.iterdir()) == sorted(path.name for path in checkpoint_files(disk))

    checkpoint_files(disk)[-1].unlink()
    save(3)  # works once there is space again
    assert Checkpoints(disk).latest(spec).iteration == 3  # type: ignore[union-attr]


def test_job_fails_on_a_full_disk_and_resumes_once_there_is_space(tmp_path: Path) -> None:
    roots = DataRoots(datasets=tmp_path, uploads=tmp_path, downloads=tmp_path, cache=tmp_path / "cache")
    spec = {
        "dataset": {"name": "digits"},
        "ipc": 20,  # 51 kB of images, as much of momentum
        "iterations": 4,
        "checkpoint_every": 1,
        "method": {"batch_real": 4, "max_outer": 1},
        "network": {"width": 4, "depth": 1},
    }

    def silent(type: str, **data: Any) -> None:
        pass

    undisturbed = local.prepare(spec, tmp_path / "undisturbed", roots)
    undisturbed.run(silent)
    with small_disk(tmp_path / "disk", 280) as disk:
        job = local.prepare(spec, disk, roots)
        with pytest.raises(DiskFullError, match="the checkpoint of iteration 2 could not be written"):
            job.run(silent)
        assert [path.name for path in job.directory.checkpoint_files()] == [
            "checkpoint-00000001.safetensors",
            "checkpoint-00000000.safetensors",
        ]
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        job.run(silent)
        files = [each.directory.attempt(1).synthetic_file.read_bytes() for each in (job, undisturbed)]
        assert files[0] == files[1]


def test_event_about_the_full_disk_fits_into_the_reserve(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk, closing(EventLog(disk / "events.jsonl")) as events:
        events("phase", phase="condensing")
        (disk / "everything else").write_bytes(bytes(40 << 10))

        def fill_up() -> None:
            for _ in range(10_000):
                events("iteration", iteration=1)

        with pytest.raises(DiskFullError, match=r"events\.jsonl"):
            fill_up()
        events("failed", error=DiskFullError("the disk is full").as_dict())
        lines = (disk / "events.jsonl").read_text().splitlines()
        assert '"disk_full"' in lines[-1]
        assert all(line.endswith("}") for line in lines)


def test_log_on_a_full_disk_keeps_complete_records_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk, closing(LineLog(disk / "log.jsonl")) as log:

        def fill_up() -> None:
            for number in range(10_000):
                log.append({"number": number, "text": "x" * 1000})

        with pytest.raises(DiskFullError, match=r"log\.jsonl"):
            fill_up()
        found = read_lines(disk / "log.jsonl")
        assert [record["number"] for record in found] == list(range(len(found)))
        assert len(found) > 50
        assert (disk / "log.jsonl").read_bytes().endswith(b"}\n")
