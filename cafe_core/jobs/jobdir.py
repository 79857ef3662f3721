"""Where a job's files lie: the contract between the server, which reads, and the driver, which writes.

::

    DATA_DIR/jobs/<job id>/
        job.json                    what to run, and which attempt may write: JobFile, written anew before each attempt
        dataset.json                DatasetInfo, as the driver found the data
        checkpoints/                checkpoint-<iteration>.safetensors, the newest two; shared by the attempts
        validation.json             how each validated checkpoint did; best.safetensors is the best one's synthetic set
        evaluation.jsonl            one line per network trained so far; shared by the attempts
        input.safetensors           of an evaluate job: the set that is judged, as it was when the job was submitted
        trials.jsonl, trials/<n>/   of a sweep: one line per trial that has ended; each trial's own job directory
        tune/                       Ray Tune's own state
        attempts/<n>/
            events.jsonl            what happened, one JSON object a line, appended by the driver
            heartbeat               how often the driver has shown that it lives (`workers.heartbeat`)
            driver.log              what the driver printed; bounded: driver.log.1 holds what came before
            artifacts/              result.json and the files of the job's kind; manifest.json last

An attempt has a result when, and only when, its manifest.json is there. No torch here: the API reads these.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cafe_core.errors import DiskFullError
from cafe_core.spec.config import JobSpec


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


Fence = Callable[[], None]
"""Called before something is written; raises where it may not be. See :class:`cafe_core.jobs.fence.AttemptFence`."""


def unfenced() -> None:
    """The fence of what no other attempt writes."""


def write_atomically(path: Path, content: bytes, *, fence: Fence = unfenced) -> None:
    """Write beside, flush to disk, move into place: a reader sees the old file or the new one, whole, also after a crash.

    The fence is asked before a directory is made, and right before the move. Raises what it raises, DiskFullError where there
    is no space, OSError for another failure; nothing is left beside then.
    """
    fence()
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # an attempt on another machine may write the same
    try:
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = beside.open("wb")
        with disk_full_named(path), file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fence()
        beside.replace(path)
        _sync_directory(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Flush its names to disk: without, a move may be undone by a power cut, and a later one not."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


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
    spec: JobSpec
    """Resolved."""
    roots: DataRoots
    attempt: int = 1
    """The attempt that may write; any other that still runs was given up."""
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

    @property
    def input_file(self) -> Path:
        return self.path / "input.safetensors"

    @property
    def validation_file(self) -> Path:
        return self.path / "validation.json"

    @property
    def validated_file(self) -> Path:
        """The set under validation."""
        return self.path / "validated.safetensors"

    @property
    def best_file(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def trials_file(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def tune(self) -> Path:
        return self.path / "tune"

    def trial(self, number: int) -> JobDir:
        """The directory of trial `number` (0, 1, …) of a sweep."""
        return JobDir(self.path / "trials" / str(number))

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
    def heartbeat_file(self) -> Path:
        """What changes while the driver lives; empty until it first does."""
        return self.path / "heartbeat"

    @property
    def log_file(self) -> Path:
        """What the driver, and its workers through it, printed last."""
        return self.path / "driver.log"

    @property
    def older_log_file(self) -> Path:
        """What came before it, once the log has grown long."""
        return self.path / "driver.log.1"

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


class LineLog:
    """A file of JSON objects, one a line, each there as a whole or not at all, whatever ends the process or fills the disk."""

    def __init__(self, path: Path, *, fence: Fence = unfenced) -> None:
        """Goes on with the file at `path`. A last line torn by a crash is no record, and is cut off. Raises DiskFullError.

        fence: asked before each change of the file, this first one included.
        """
        self._path = path
        self._fence = fence
        fence()
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        self._file.truncate(len(_whole_lines(path)))

    def append(self, record: Mapping[str, Any]) -> None:
        """NaN is refused. Raises what the fence raises, and DiskFullError where there is no space; nothing is left of it then."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self._fence()
        start = os.fstat(self._file.fileno()).st_size
        try:
            with disk_full_named(self._path):
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except DiskFullError:
            self._file.truncate(start)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a :class:`LineLog`, also while it is written: a last line that is not yet whole is left out."""
    return [json.loads(line) for line in _whole_lines(path).splitlines()]


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


class EventLog:
    """Appends events to a file, one JSON object a line, each flushed as it happens.

    A few blocks of the disk are kept in reserve, so that the event that says that the disk is full finds room.
    """

    _RESERVE_BYTES = 16 << 10

    def __init__(self, path: Path) -> None:
        """Raises DiskFullError where there is no space."""
        self._reserve = path.with_name(f".{path.name}.reserve")
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._reserve.write_bytes(bytes(self._RESERVE_BYTES))
        self._log = LineLog(path)

    def __call__(self, type: str, **data: Any) -> None:
        """Append `{"time", "type", **data}`. NaN is refused: events are JSON.

        Raises DiskFullError where there is no space. The next event can then use the reserve.
        """
        try:
            self._log.append({"time": utc_now(), "type": type, **data})
        except DiskFullError:
            self._reserve.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Close the file."""
        self._log.close()
        self._reserve.unlink(missing_ok=True)
