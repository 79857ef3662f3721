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

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cafe_core.algorithm.checkpoint_files import checkpoint_files
from cafe_core.data.roots import DataRoots
from cafe_core.errors import DiskFullError
from cafe_core.files import LineLog, disk_full_named
from cafe_core.spec.job import JobSpec


def utc_now() -> str:
    """The time as RFC 3339 with microseconds, e.g. 2026-11-22T07:00:00.000000Z."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


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
