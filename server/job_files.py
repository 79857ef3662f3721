"""What of a job's directory is served: its artifacts, and the synthetic set of its result or its latest checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from cafe_core.config import DatasetInfo, JobSpec
from cafe_core.errors import SyntheticSetError
from cafe_core.jobdir import AttemptDir, JobDir
from cafe_core.synthetic import SyntheticSet, from_checkpoint


class ManifestEntry(BaseModel):
    """A line of manifest.json."""

    name: str
    size: int
    sha256: str
    media_type: str


class _Manifest(BaseModel):
    artifacts: list[ManifestEntry]


@dataclass(frozen=True)
class Result:
    """An attempt with a result, and its manifest."""

    attempt: AttemptDir
    entries: list[ManifestEntry]

    def find(self, name: str) -> tuple[ManifestEntry, Path] | None:
        """An artifact and its file. Only what the manifest lists is found, so a name never leads elsewhere."""
        for entry in self.entries:
            if entry.name == name:
                return entry, self.attempt.artifacts / entry.name
        return None


def result_of(directory: JobDir, attempts: int) -> Result | None:
    """The result of the newest of `attempts` attempts that has one."""
    for number in range(attempts, 0, -1):
        attempt = directory.attempt(number)
        if attempt.manifest_file.exists():
            manifest = _Manifest.model_validate(json.loads(attempt.manifest_file.read_bytes()))
            return Result(attempt, manifest.artifacts)
    return None


def synthetic_set(directory: JobDir, attempts: int, spec: JobSpec) -> SyntheticSet | None:
    """The job's result, or else what its newest readable checkpoint yields; None before the first.

    Raises SyntheticSetError when there are checkpoints but none can be read.
    """
    result = result_of(directory, attempts)
    if result is not None:
        return SyntheticSet.load(result.attempt.synthetic_file)
    damage: Exception | None = None
    # A running driver removes old checkpoints: one that is listed may be gone when it is opened, with a newer one there.
    for _ in range(2):
        for path in directory.checkpoint_files():
            try:
                info = DatasetInfo.model_validate_json(directory.dataset_file.read_bytes())
                return from_checkpoint(path, info, spec)
            except (SyntheticSetError, FileNotFoundError) as error:
                damage = error
    if damage is not None:
        raise SyntheticSetError(f"no checkpoint of the job can be read: {damage}") from damage
    return None
