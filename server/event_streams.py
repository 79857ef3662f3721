"""Stream the events of jobs as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

A stream uses two tasks and no thread. It waits until its job changes, then reads the events after the last one it sent.
Streams that need the same page at the same time share one read and its bytes. A stream reads the next page only when the client's
connection has accepted the previous one (backpressure), so a client that does not read costs the memory of one page.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Receive, Scope, Send

from server.errors import ApiError
from server.states import ENDED, Status
from server.store import serializers
from server.store.changes import Changes, wait_until_set
from server.store.database import Database
from server.store.events import events_after
from server.store.models import Event, Job

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
"""Send a comment after this much silence, so that proxies keep the connection and both sides notice a lost connection."""
RETRY_MS = 500
"""How long a browser waits before it reconnects."""
PAGE = 200
"""Events per read."""
READERS = 4
"""Maximum number of concurrent reads, because the other routes need the database too."""
SEND_TIMEOUT_S = 60.0
"""Timeout of sending to a client that does not read. The client may reconnect."""
CLOSE_TIMEOUT_S = 0.2
"""Timeout of ending the response."""

StillAllowed = Callable[[], Awaitable[bool]]
"""Return whether the client may still see the job. Raises ApiError if the database does not respond."""


@dataclass(frozen=True)
class Page:
    """Up to PAGE encoded events."""

    content: bytes
    last: int
    """Number of the last event in `content`; where it is empty, of the event before."""
    complete: bool
    """No more events will follow: the job has ended or was deleted."""
    more: bool
    """More events can be read immediately."""


class EventStreams:
    """Track all open streams of this server."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes
        self._readers = CapacityLimiter(READERS)
        self._reading: dict[tuple[str, int, int], asyncio.Task[Page]] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def open(self) -> int:
        """Return the number of open streams."""
        return len(self._writing)

    def close(self) -> None:
        """End all streams because the server stops. Clients resume with the next server."""
        self._closed = True
        for task in self._writing:
            task.cancel()

    async def read(self, job_id: str, after: int) -> Page:
        """Return the page after event `after`. Concurrent calls share one read as long as no job changes."""
        key = (job_id, after, self._changes.version)
        task = self._reading.get(key)
        if task is None:
            task = asyncio.create_task(self._read(job_id, after), name=f"events of {job_id}")
            self._reading[key] = task
            task.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(task)  # a cancelled caller must not cancel the others

    async def _read(self, job_id: str, after: int) -> Page:
        return await anyio.to_thread.run_sync(_page, self._database, job_id, after, limiter=self._readers)

    @contextlib.contextmanager
    def _counted(self, writing: asyncio.Task[None]) -> Iterator[None]:
        self._writing.add(writing)
        if self._closed:
            writing.cancel()
        try:
            yield
        finally:
            self._writing.discard(writing)

    async def _write(self, job_id: str, page: Page, send: Send, still_allowed: StillAllowed) -> None:
        """Send `page` and the pages after it until the job has ended."""
        loop = asyncio.get_running_loop()
        await _send(send, format_sse_event(retry=RETRY_MS) + page.content)
        sent_at = loop.time()
        with self._changes.watching(job_id) as changed:
            while not page.complete:
                changed.clear()
                if not await still_allowed():
                    return
                page = await self.read(job_id, page.last)
                if page.content:
                    await _send(send, page.content)
                    sent_at = loop.time()
                if page.more or page.complete:
                    continue
                await wait_until_set(changed, sent_at + HEARTBEAT_S - loop.time())
                if loop.time() >= sent_at + HEARTBEAT_S:
                    await _send(send, KEEPALIVE_COMMENT)
                    sent_at = loop.time()


class EventStream(EventSourceResponse):
    """Respond with `page`, then with events as they happen until the job ends, the server stops or a read fails."""

    def __init__(self, streams: EventStreams, job_id: str, page: Page, still_allowed: StillAllowed) -> None:
        super().__init__((), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Vary": "Accept"})
        self._streams = streams
        self._job_id = job_id
        self._page = page
        self._still_allowed = still_allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writing = asyncio.create_task(self._streams._write(self._job_id, self._page, send, self._still_allowed))
        leaving = asyncio.create_task(_left(receive))
        try:
            with self._streams._counted(writing):
                await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            writing.cancel()
            leaving.cancel()
            outcomes = await asyncio.gather(writing, leaving, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, SQLAlchemyError | ApiError):
                log.warning("event stream of job %s closed: %s", self._job_id, outcome)
            elif isinstance(outcome, Exception) and not isinstance(outcome, TimeoutError):
                raise outcome
        with contextlib.suppress(TimeoutError):  # the client may not read this either
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, content: bytes) -> None:
    """Send and wait until the connection accepts more. Raises TimeoutError if the client does not read."""
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await send({"type": "http.response.body", "body": content, "more_body": True})


async def _left(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _page(database: Database, job_id: str, after: int) -> Page:
    """Read a page. The job is read before its events, so that all events up to `last_event` exist."""
    with database.read() as session:
        row = session.execute(select(Job.status, Job.last_event).where(Job.id == job_id)).one_or_none()
        events: list[Event] = []
        if row is not None and row.last_event > after:
            events = events_after(session, job_id, after, PAGE)
    last = events[-1].number if events else after
    complete = row is None or (Status(row.status) in ENDED and last >= row.last_event)
    content = b"".join(map(_encoded, events))
    return Page(content, last, complete, more=row is not None and last < row.last_event)


def _encoded(event: Event) -> bytes:
    return format_sse_event(data_str=serializers.event(event).model_dump_json(), event=event.type, id=str(event.number))
