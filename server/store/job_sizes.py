"""How many bytes a job keeps on disk, as `jobs.stored_bytes` has it. Settings.max_stored_bytes says what counts, and when."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sqlalchemy import select, update

from server.settings import Settings
from server.states import ENDED
from server.store.database import Database
from server.store.models import Job


def bytes_in(directory: Path) -> int:
    """What the files in a directory, and below it, hold; 0 where there is none.

    What goes meanwhile, or cannot be looked at, does not count: no job's end is to fail of it.
    """
    size = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(f"{parent}/{name}").st_size
    return size


def measure_those_of_earlier_versions(database: Database, settings: Settings) -> None:
    """At the start: measure the ended jobs that were made before their sizes were kept."""
    unmeasured = select(Job.id).where(Job.stored_bytes.is_(None), Job.status.in_([status.value for status in ENDED]))
    with database.read() as session:
        found = list(session.scalars(unmeasured))
    for job_id in found:
        size = bytes_in(settings.job_dir(job_id).path)
        with database.write() as session:
            session.execute(update(Job).where(Job.id == job_id, Job.stored_bytes.is_(None)).values(stored_bytes=size))
