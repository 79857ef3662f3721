"""Turn a driver's manifest into rows of the table `artifacts`: only files listed there are served."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.orm import Session

from cafe_core.jobs.jobdir import AttemptDir
from server.store.models import Artifact, Job


class ArtifactError(Exception):
    """The files of a result do not match its manifest; the message names the file."""


class Entry(BaseModel):
    """A line of manifest.json."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$")]
    """The name of a file beside the manifest."""
    size: int
    sha256: str
    media_type: str


class _Manifest(BaseModel):
    artifacts: list[Entry]


def read_manifest(attempt: AttemptDir) -> list[Entry]:
    """Return the entries of the attempt's manifest. Raises ArtifactError."""
    try:
        return _Manifest.model_validate_json(attempt.manifest_file.read_bytes()).artifacts
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"manifest.json cannot be read: {error}") from error


def checked_result(attempt: AttemptDir) -> tuple[list[Entry], dict[str, Any]]:
    """Return the manifest, after checking the size and hash of every file, and result.json. Raises ArtifactError."""
    entries = read_manifest(attempt)
    for entry in entries:
        _check(attempt.artifacts / entry.name, entry)
    try:
        result = json.loads(attempt.result_file.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"result.json cannot be read: {error}") from error
    if not isinstance(result, dict):
        raise ArtifactError("result.json is not a JSON object")
    return entries, result


def _check(path: Path, entry: Entry) -> None:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise ArtifactError(f"{entry.name} is listed in the manifest but cannot be read: {error.strerror}") from error
    if (size, sha256) != (entry.size, entry.sha256):
        raise ArtifactError(
            f"{entry.name} has {size} bytes and SHA-256 {sha256}; the manifest says {entry.size} and {entry.sha256}"
        )


def add_artifacts(session: Session, job: Job, entries: Sequence[Entry]) -> None:
    """Add the files of a succeeded job to the table, so that they are served."""
    session.add_all(Artifact(job_id=job.id, attempt=job.attempt, **entry.model_dump()) for entry in entries)
