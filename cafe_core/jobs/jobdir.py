"""Define the layout of a job's directory: the contract between the driver, which writes it, and the server, which reads it.

::

    DATA_DIR/jobs/<job id>/
        job.json                    JobFile: what to run, and which attempt may write; rewritten before each attempt
        dataset.json                DatasetInfo, as the driver of the first attempt found the data
        reader-version              version of the readers of own data that found it; absent for the first version
        checkpoints/                checkpoint-<iteration>.safetensors, the newest two; shared by the attempts
        validation.json             the accuracies of each validated checkpoint; best.safetensors: the best one's synthetic set
        evaluation.jsonl            one line per network trained so far; shared by the attempts
        input.safetensors           evaluate jobs: the set to evaluate, copied when the job was submitted
        trials.jsonl, trials/<n>/   sweeps: one line per ended trial; each trial's own job directory
        tune/                       Ray Tune's own state
        attempts/<n>/
            events.jsonl            the driver's events, one JSON object per line
            heartbeat               a counter that the driver increments while it runs (`workers.heartbeat`)
            driver.log              the driver's output, bounded; driver.log.1 holds the output before it
            artifacts/              result.json and the files of the job's kind; manifest.json last

An attempt has a result if and only if its manifest.json exists. This module does not import torch, because the API reads
these files.
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
from cafe_core.files import LineLog, raising_disk_full
from cafe_core.spec.job import JobSpec


def utc_now() -> str:
    """Return the time as RFC 3339 with microseconds, e.g. 2026-11-22T07:00:00.000000Z."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class JobFile(BaseModel):
    """The content of job.json."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    spec: JobSpec
    """Resolved."""
    roots: DataRoots
    attempt: int = 1
    """The only attempt that may write. Any other attempt that still runs was given up."""
    max_restarts: int = 3
    """How often, per attempt, a gang is restarted after a worker died or hung, or its GPU ran out of memory."""
    collective_timeout_s: float = 300.0
    """Timeout of a collective, and of a worker that does not answer."""


@dataclass(frozen=True)
class JobDir:
    """The paths of one job."""

    path: Path

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def dataset_file(self) -> Path:
        return self.path / "dataset.json"

    @property
    def reader_version_file(self) -> Path:
        return self.path / "reader-version"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint_files(self) -> list[Path]:
        """Return the checkpoints, newest first."""
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
        """Return the path of the set that is being validated."""
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
        """Return the directory of trial `number` (0, 1, …) of a sweep."""
        return JobDir(self.path / "trials" / str(number))

    @property
    def sweep(self) -> JobDir | None:
        """Return the directory of the sweep that this trial belongs to; None if it is not a trial."""
        return JobDir(self.path.parent.parent) if self.path.parent.name == "trials" else None

    def attempt(self, number: int) -> AttemptDir:
        """Return the directory of attempt `number` (1, 2, …)."""
        return AttemptDir(self.path / "attempts" / str(number))


@dataclass(frozen=True)
class AttemptDir:
    """The paths of one attempt of a job."""

    path: Path

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def heartbeat_file(self) -> Path:
        """Return the path of the driver's counter, which changes while the driver runs; empty until the first heartbeat."""
        return self.path / "heartbeat"

    @property
    def log_file(self) -> Path:
        """Return the path of the latest output of the driver and its workers."""
        return self.path / "driver.log"

    @property
    def older_log_file(self) -> Path:
        """Return the path of the output before `log_file`, which exists once that file has reached its size limit."""
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
    """Append events to a file, one JSON object per line, and flush each one.

    A reserve file keeps a few disk blocks, so that there is room for the event that reports a full disk.
    """

    _RESERVE_BYTES = 16 << 10

    def __init__(self, path: Path) -> None:
        """Create the file and its reserve. Raises DiskFullError if the disk is full."""
        self._reserve = path.with_name(f".{path.name}.reserve")
        with raising_disk_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._reserve.write_bytes(bytes(self._RESERVE_BYTES))
        self._log = LineLog(path)

    def __call__(self, type: str, **data: Any) -> None:
        """Append `{"time", "type", **data}`. Raises ValueError for NaN, which JSON does not have.

        Raises DiskFullError if the disk is full. This frees the reserve for the next event.
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
