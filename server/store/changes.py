"""Who waits for a change of a job is told when there is one, from whatever thread, or whatever server, it was made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from server.store.database import Database
from server.store.models import Job

log = logging.getLogger(__name__)

POLL_EVERY_S = 1.0
"""How often changes that another server made are looked for, while anybody waits for one."""
IDS_PER_QUERY = 500


async def wait_until_set(event: asyncio.Event, seconds: float) -> None:
    """Returns when `event` is set, or after `seconds`.

    Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Changes:
    """Belongs to one event loop, that of the server."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._version = 0
        self._watched_for_others: Counter[str] = Counter()
        self._anyone_watching = asyncio.Event()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the server stops: nobody is to wait any longer."""
        return self._closed

    def close(self) -> None:
        """Wake all who wait, for good. Belongs to the event loop's thread."""
        self._closed = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    def notify(self, job_id: str) -> None:
        """Wake all who wait for `job_id`. Any thread may call it, after its transaction."""
        self._loop.call_soon_threadsafe(self._wake, job_id)

    @property
    def version(self) -> int:
        """Grows with each change of any job: what began to be read at another count may be old."""
        return self._version

    def _wake(self, job_id: str) -> None:
        self._version += 1
        for event in self._waiting.get(job_id, ()):
            event.set()

    @contextmanager
    def watching(self, job_id: str, *, other_servers: bool = True) -> Iterator[asyncio.Event]:
        """An event that is set by changes from here on; the caller clears it before it looks again.

        other_servers: also by those that other servers make, at most about a second later.
        """
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        if other_servers:
            self._watched_for_others[job_id] += 1
            self._anyone_watching.set()
        if self._closed:
            event.set()
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if other_servers:
                self._watched_for_others[job_id] -= 1
                if not self._watched_for_others[job_id]:
                    del self._watched_for_others[job_id]
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def poll_other_servers(self, database: Database) -> None:
        """Until cancelled, wake those who wait for jobs that another server changed: one query a second, while anybody does.

        A change made here is seen once more, and version for nothing. So does a job seen for the first time: it may have changed
        between its watcher's last look and this one.
        """
        seen: dict[str, int | None] = {}
        ailing = False
        while True:
            if not self._watched_for_others:
                seen.clear()
                self._anyone_watching.clear()
                await self._anyone_watching.wait()
            wanted = list(self._watched_for_others)
            try:
                versions = await asyncio.to_thread(_versions, database, wanted)
                ailing = False
            except SQLAlchemyError as error:
                if not ailing:
                    log.warning("changes made by other servers are not seen now: %s", error)
                ailing = True
            else:
                for job_id in wanted:
                    if job_id not in seen or seen[job_id] != versions.get(job_id):
                        self._wake(job_id)
                seen = {job_id: versions.get(job_id) for job_id in wanted}
            await asyncio.sleep(POLL_EVERY_S)


def _versions(database: Database, job_ids: list[str]) -> dict[str, int]:
    """By job; one that is gone has none."""
    versions: dict[str, int] = {}
    with database.read() as session:
        for start in range(0, len(job_ids), IDS_PER_QUERY):
            some = job_ids[start : start + IDS_PER_QUERY]
            versions |= {row.id: row.version for row in session.execute(select(Job.id, Job.version).where(Job.id.in_(some)))}
    return versions
