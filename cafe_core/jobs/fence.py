"""Fence off stale attempts: an attempt that was given up must not overwrite files of its successor.

A driver that was cut off from the network, or frozen, does not know that its attempt was given up, and may wake up while the next
attempt runs. Before the server submits an attempt, it rewrites job.json, which names the only attempt that may write. Everything
that writes shared or published files reads job.json right before the file changes. A stale attempt can still pass the check and
rename its file a moment later; that file is complete, and no server serves it.

This holds on NFS too: opening a file asks the file server, so the newest job.json is seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cafe_core.errors import StaleAttemptError
from cafe_core.jobs.jobdir import JobDir


@dataclass(frozen=True)
class AttemptFence:
    """Let one attempt write. A :data:`cafe_core.files.Fence`; pickled to the workers."""

    job_file: Path
    """The job's job.json. A trial of a sweep uses the sweep's."""
    attempt: int

    @classmethod
    def of(cls, directory: JobDir, attempt: int) -> AttemptFence:
        """Return the fence of an attempt of the job in `directory`."""
        return cls(directory.job_file, attempt)

    def __call__(self) -> None:
        """Raise StaleAttemptError if job.json names another attempt, or was deleted with its job."""
        try:
            # Earlier versions wrote job.json only for the first attempt, and without this field.
            current = json.loads(self.job_file.read_bytes()).get("attempt", 1)
        except FileNotFoundError as error:
            raise StaleAttemptError(f"{self.job_file} does not exist any more: the job was deleted") from error
        if current != self.attempt:
            raise StaleAttemptError(f"attempt {self.attempt} was given up: {self.job_file} names attempt {current}")
