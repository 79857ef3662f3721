"""Keeps an attempt that was given up from writing over what the next one does.

A driver that was cut off, or frozen, does not know that its attempt was given up: it may wake up while the next one runs. The
server writes job.json anew before it submits an attempt, and there names the one attempt that may write. Whoever writes files
that attempts share, or publishes, looks there right before the file changes. What is left open is the moment between looking
and the move: what is written then is whole, and no server serves it.

On NFS too the newest job.json is seen: opening a file asks the file server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cafe_core.errors import StaleAttemptError
from cafe_core.jobs.jobdir import JobDir


@dataclass(frozen=True)
class AttemptFence:
    """Lets one attempt write; a :data:`cafe_core.files.Fence`. Pickled to the workers."""

    job_file: Path
    """Of the job; for a sweep's trial the sweep's."""
    attempt: int

    @classmethod
    def of(cls, directory: JobDir, attempt: int) -> AttemptFence:
        """Of an attempt of the job in `directory`."""
        return cls(directory.job_file, attempt)

    def __call__(self) -> None:
        """Raises StaleAttemptError where job.json names another attempt, or is gone with its job."""
        try:
            # A job.json of a server that did not name attempts yet belongs to the first.
            current = json.loads(self.job_file.read_bytes()).get("attempt", 1)
        except FileNotFoundError as error:
            raise StaleAttemptError(f"{self.job_file} is gone: the job was deleted") from error
        if current != self.attempt:
            raise StaleAttemptError(f"attempt {self.attempt} was given up: {self.job_file} names attempt {current}")
