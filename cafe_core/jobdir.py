"""Where a job's files lie: the contract between the server, which reads, and the driver, which writes.

::

    DATA_DIR/jobs/<job id>/
        job.json                    what to run: JobFile, written by the server before the first attempt
        dataset.json                DatasetInfo, as the driver found the data
        checkpoints/                checkpoint-<iteration>.safetensors, the newest two; shared by the attempts
        evaluation.jsonl            one line per network trained so far; shared by the attempts
        attempts/<n>/
            events.jsonl            what happened, one JSON object a line, appended by the driver
            artifacts/              synthetic.safetensors, preview.png, result.json; manifest.json last

An attempt has a result when, and only when, its manifest.json is there. No torch here: the API reads these.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cafe_core.config import CondenseSpec
from cafe_core.errors import DiskFullError


def utc_now() -> str:
    """The time as RFC 3339 with microseconds, e.g. 2026-11-22T07:00:00.000000Z."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """A full disk met within is raised as DiskFullError, which says where."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(f"{path} could not be written: {error.strerror}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, move into place: a reader sees the old file or the new one, whole.

    Raises DiskFullError where there is no space, OSError for another failure; nothing is left beside then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = beside.open("wb")
        with disk_full_named(path), file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def checkpoint_files(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, newest first."""
    return sorted(directory.glob("checkpoint-*.safetensors"), reverse=True)


class DataRoots(BaseModel):
    """Where images are looked for, on every machine that runs a driver or a worker."""

    model_config = ConfigDict(extra="forbid")

    datasets: Path
    """The dataset root: `dataset.path` is relative to it and may not leave it."""
    uploads: Path
    """Uploaded datasets: `<uploads>/<dataset id>/`."""
    downloads: Path
    """torchvision's root: MNIST/raw/…, cifar-10-batches-py/…; downloaded to where there is a network."""
    cache: Path
    """Class stores made from the above."""


class JobFile(BaseModel):
    """job.json."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    spec: CondenseSpec
    """Resolved."""
    roots: DataRoots
    max_restarts: int = 3
    """Times a gang is started again after a dead or hung worker, per attempt."""
    collective_timeout_s: float = 300.0
    """How long a collective, or a silent worker, is waited for."""


@dataclass(frozen=True)
class JobDir:
    """Paths of one job."""

    path: Path

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def dataset_file(self) -> Path:
        return self.path / "dataset.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint_files(self) -> list[Path]:
        """The checkpoints, newest first."""
        return checkpoint_files(self.checkpoints)

    @property
    def evaluation_file(self) -> Path:
        return self.path / "evaluation.jsonl"

    def attempt(self, number: int) -> AttemptDir:
        """The directory of attempt `number` (1, 2, …)."""
        return AttemptDir(self.path / "attempts" / str(number))


@dataclass(frozen=True)
class AttemptDir:
    """Paths of one attempt of a job."""

    path: Path

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def synthetic_file(self) -> Path:
        return self.artifacts / "synthetic.safetensors"

    @property
    def preview_file(self) -> Path:
        return self.artifacts / "preview.png"

    @property
    def result_file(self) -> Path:
        return self.artifacts / "result.json"

    @property
    def manifest_file(self) -> Path:
        return self.artifacts / "manifest.json"


class EventLog:
    """Appends events to a file, one JSON object a line, each flushed as it happens.

    A few blocks of the disk are kept in reserve, so that the event that says that the disk is full finds room.
    """

    _RESERVE_BYTES = 16 << 10

    def __init__(self, path: Path) -> None:
        """Raises DiskFullError where there is no space."""
        self._path = path
        self._reserve = path.with_name(f".{path.name}.reserve")
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._reserve.write_bytes(bytes(self._RESERVE_BYTES))
            self._file = path.open("ab", buffering=0)

    def __call__(self, type: str, **data: Any) -> None:
        """Append `{"time", "type", **data}`. NaN is refused: events are JSON.

        Raises DiskFullError where there is no space. The next event can then use the reserve.
        """
        line = json.dumps({"time": utc_now(), "type": type, **data}, allow_nan=False).encode() + b"\n"
        start = self._file.tell()
        try:
            with disk_full_named(self._path):
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except DiskFullError:
            self._file.truncate(start)  # no torn line
            self._file.seek(start)
            self._reserve.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._reserve.unlink(missing_ok=True)
