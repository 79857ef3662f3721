"""Wake waiting requests and streams when a job changes, from any thread and on any server."""

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
"""How often the database is polled for changes by other servers, while anything waits for one."""
IDS_PER_QUERY = 500


async def wait_until_set(event: asyncio.Event, seconds: float) -> None:
    """Wait until `event` is set, at most `seconds`.

    This does not use asyncio.wait_for, which before Python 3.12 loses a cancellation that arrives together with the event.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Changes:
    """Notifications of changed jobs. Belongs to the server's event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._version = 0
        self._polled: Counter[str] = Counter()
        """The number of watchers per job that also wait for changes by other servers."""
        self._any_polled = asyncio.Event()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Return whether the server is shutting down, so that nothing should wait any longer."""
        return self._closed

    def close(self) -> None:
        """Wake all waiters permanently. Call it in the event loop's thread."""
        self._closed = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    def notify(self, job_id: str) -> None:
        """Wake everything that waits for `job_id`. Thread-safe; call it after the transaction has committed."""
        self._loop.call_soon_threadsafe(self._wake, job_id)

    @property
    def version(self) -> int:
        """Return a number that grows with every change: a read that began at a lower version may be stale."""
        return self._version

    def _wake(self, job_id: str) -> None:
        self._version += 1
        for event in self._waiting.get(job_id, ()):
            event.set()

    @contextmanager
    def watching(self, job_id: str, *, other_servers: bool = True) -> Iterator[asyncio.Event]:
        """Yield an event that is set by every change from now on; clear it before reading the job again.

        other_servers: include changes made by other servers, with a delay of about a second.
        """
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        if other_servers:
            self._polled[job_id] += 1
            self._any_polled.set()
        if self._closed:
            event.set()
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if other_servers:
                self._polled[job_id] -= 1
                if not self._polled[job_id]:
                    del self._polled[job_id]
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def poll_other_servers(self, database: Database) -> None:
        """Wake the waiters of jobs that another server has changed, with one query per second while anything waits.

        A change made by this server wakes its waiters a second time. The first poll of a job also wakes its waiters, because the
        job may have changed between their last read and the poll.
        """
        seen: dict[str, int | None] = {}
        failing = False
        while True:
            if not self._polled:
                seen.clear()
                self._any_polled.clear()
                await self._any_polled.wait()
            wanted = list(self._polled)
            try:
                versions = await asyncio.to_thread(_versions, database, wanted)
                failing = False
            except SQLAlchemyError as error:
                if not failing:
                    log.warning("cannot poll for changes made by other servers: %s", error)
                failing = True
            else:
                for job_id in wanted:
                    if job_id not in seen or seen[job_id] != versions.get(job_id):
                        self._wake(job_id)
                seen = {job_id: versions.get(job_id) for job_id in wanted}
            await asyncio.sleep(POLL_EVERY_S)


def _versions(database: Database, job_ids: list[str]) -> dict[str, int]:
    """Return the version of each job's row; deleted jobs are missing."""
    versions: dict[str, int] = {}
    with database.read() as session:
        for start in range(0, len(job_ids), IDS_PER_QUERY):
            some = job_ids[start : start + IDS_PER_QUERY]
            versions |= {row.id: row.version for row in session.execute(select(Job.id, Job.version).where(Job.id.in_(some)))}
    return versions
