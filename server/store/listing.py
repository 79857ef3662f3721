"""List jobs, newest first, in pages."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from server.errors import RefusedSpecError
from server.states import Status
from server.store.models import LARGEST_NUMBER, Job, JobLabel


@dataclass(frozen=True)
class Filter:
    """Which jobs to list; all conditions must hold."""

    status: Status | None = None
    kind: str | None = None
    labels: tuple[str, ...] = ()
    """`KEY=VALUE`, or `KEY` for any value."""
    owner: str | None = None
    """The id of an API key."""


def page(session: Session, wanted: Filter, *, limit: int, cursor: str | None) -> tuple[list[Job], str | None]:
    """Return up to `limit` jobs, and the cursor of the next page. Raises RefusedSpecError for an invalid cursor."""
    query: Select[Job] = select(Job).order_by(Job.number.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(Job.number < _number_in(cursor))
    if wanted.status is not None:
        query = query.where(Job.status == wanted.status.value)
    if wanted.owner is not None:
        query = query.where(Job.owner == wanted.owner)
    if wanted.kind is not None:
        query = query.where(Job.kind == wanted.kind)
    for label in wanted.labels:
        key, has_value, value = label.partition("=")
        having = select(JobLabel.job_id).where(JobLabel.key == key)
        query = query.where(Job.id.in_(having.where(JobLabel.value == value) if has_value else having))
    jobs = list(session.scalars(query))
    return jobs[:limit], _cursor_at(jobs[limit - 1].number) if len(jobs) > limit else None


def _cursor_at(number: int) -> str:
    return base64.urlsafe_b64encode(f"v1:{number}".encode()).decode().rstrip("=")


def _number_in(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        version, _, number = text.partition(":")
        if version == "v1" and number.isascii() and number.isdigit() and len(number) <= 18:
            return min(int(number), LARGEST_NUMBER)
    except (binascii.Error, ValueError):
        pass  # refused below, like any other invalid cursor
    raise RefusedSpecError.of("cursor", "not a cursor of this listing; use next_cursor of the previous page")
