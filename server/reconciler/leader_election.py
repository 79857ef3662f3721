"""Elect one server that reconciles the jobs of a database; the others serve the API and stand by.

The leader holds a lock: a PostgreSQL session advisory lock on a dedicated connection, or, with SQLite, flock on a file beside the
database. Both are released when the holder dies. The leader checks every second that it still holds the lock, and the other
servers try to acquire it at the same interval.

For a moment two servers may both believe that they lead, for example after a network partition. Correctness therefore does not
depend on the lock: every change to a job happens in a transaction that locks the job's row and checks its state again, a
submission has the same id on every server, and a driver writes only while job.json names its attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from server.store.database import Database

log = logging.getLogger(__name__)

EVERY_S = 1.0
"""Interval at which servers try to acquire the lock, and at which its holder checks that it still holds it."""
ANSWER_WITHIN_S = 3.0
"""A leader whose check takes longer than this steps down."""
LOCK_EXPIRES_AFTER_S = 8
"""PostgreSQL ends the session of a frozen or disconnected holder after this time. By then, the holder has stepped down."""
LEADER_LOCK = 0x0CAFE002
"""Key of the PostgreSQL advisory lock."""

Duty = Callable[[], Coroutine[Any, Any, None]]
Answer = TypeVar("Answer")


class Leader:
    """Run the duties that only one server at a time may perform."""

    def __init__(self, database: Database, lock_file: Path) -> None:
        """lock_file: the file to lock with SQLite."""
        is_file = database.engine.dialect.name == "sqlite"
        self._lock: _Lock = _FileLock(lock_file) if is_file else _PostgresLock(database)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leader")  # one thread: calls on the lock must not overlap
        self._leads = False
        self._ended = False

    @property
    def leads(self) -> bool:
        """Return whether this server is the leader."""
        return self._leads

    @property
    def ended(self) -> bool:
        """Return whether :meth:`run` has returned or failed. If so, this server will not lead again."""
        return self._ended

    async def run(self, *duties: Duty) -> None:
        """Run the duties while this server leads, and cancel them when it no longer leads. Runs until cancelled.

        Each duty is called again for each term. If one returns or fails, this method raises, and another server can lead.
        """
        try:
            while True:
                if await self._ask(self._lock.acquire):
                    await self._lead(duties)
                await asyncio.sleep(EVERY_S)
        finally:
            self._ended = True
            await self._in_thread(self._lock.release)
            self._thread.shutdown(wait=False)

    async def _lead(self, duties: tuple[Duty, ...]) -> None:
        log.info("this server is now the leader")
        self._leads = True
        lost = asyncio.create_task(self._until_lost(), name="leadership")
        tasks = [asyncio.create_task(duty(), name=getattr(duty, "__qualname__", "duty")) for duty in duties]
        try:
            done, _ = await asyncio.wait([lost, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task  # raises its exception
            if lost not in done:
                raise RuntimeError(f"{next(iter(done)).get_name()} has returned")
            log.warning("this server is no longer the leader: it has lost the lock or the database")
        finally:
            self._leads = False
            for task in (lost, *tasks):
                task.cancel()
            await asyncio.gather(lost, *tasks, return_exceptions=True)
        await self._in_thread(self._lock.release)

    async def _until_lost(self) -> None:
        while await self._ask(self._lock.still_held):
            await asyncio.sleep(EVERY_S)

    async def _ask(self, question: Callable[[], bool]) -> bool:
        """Return the result of `question`, or False after a timeout. Later calls wait until the thread is free."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await self._in_thread(question)
        except TimeoutError:
            return False

    async def _in_thread(self, call: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


class _Lock(Protocol):
    """A lock, used by one thread at a time. When its state cannot be determined, the methods return False."""

    def acquire(self) -> bool: ...

    def still_held(self) -> bool: ...

    def release(self) -> None: ...


class _FileLock:
    """flock on a file, for servers on one machine, as with SQLite."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def acquire(self) -> bool:
        file = self._path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def still_held(self) -> bool:
        """Return False also if the file was removed: the next server would lock a new file of the same name."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _PostgresLock:
    """A session advisory lock: it ends with its connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._warned = False

    def acquire(self) -> bool:
        try:
            if self._connection is None:
                self._connection = self._database.dedicated_connection()
                self._connection.exec_driver_sql(f"SET idle_session_timeout = '{LOCK_EXPIRES_AFTER_S}s'")
            acquired = self._connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({LEADER_LOCK})").scalar_one()
        except SQLAlchemyError as error:
            if not self._warned:
                log.warning("cannot request the leader lock: %s", error)
            self._warned = True
            self.release()
            return False
        self._warned = False
        return bool(acquired)

    def still_held(self) -> bool:
        """Return whether the session still responds: as long as it exists, it holds its locks."""
        if self._connection is None:
            return False
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError as error:
            log.warning("the leader lock is lost: %s", error)
            self.release()
            return False
        return True

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # a broken connection is closed as well
                connection.close()
