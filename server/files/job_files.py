"""Find the result files of a job, and measure the size of its directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cafe_core.jobs.jobdir import AttemptDir, JobDir
from server.store.models import Artifact


@dataclass(frozen=True)
class Result:
    """The result of a succeeded job: its attempt, and the files of the attempt that are served."""

    attempt: AttemptDir
    artifacts: Sequence[Artifact]

    def find(self, name: str) -> tuple[Artifact, Path] | None:
        """Return an artifact and its path. Only names in the table are found, so a name cannot lead to another file."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact, self.attempt.artifacts / artifact.name
        return None


def result_of(directory: JobDir, rows: Sequence[Artifact]) -> Result | None:
    """Return the result that a job's rows of the table `artifacts` describe; None if there are none."""
    return Result(directory.attempt(rows[0].attempt), rows) if rows else None


def bytes_in(directory: Path) -> int:
    """Return the total size of the files below a directory; 0 if it does not exist.

    Files that disappear meanwhile or cannot be read are skipped, so that measuring never prevents a job from ending.
    """
    size = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(f"{parent}/{name}").st_size
    return size
