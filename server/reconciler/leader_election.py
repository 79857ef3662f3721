"""One server at a time looks after the jobs of a database; the others serve the API and stand by.

Who holds a lock leads. It is PostgreSQL's session advisory lock, on a connection of its own, or with SQLite flock on a file
beside it: both are let go when their holder dies, however it dies. The leader looks every second whether it still holds the
lock, and whoever does not hold it asks for it as often.

For a moment two servers may both believe that they lead, when the database or a server was away. So nothing relies on the
lock for being right: every change of a job is made in a transaction that holds the job's row and looks at its state again, a
submission has one name for all servers, and a driver writes only while its job's file names its attempt.
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
"""How often the lock is asked for, and its holder looks whether it still holds it."""
PATIENCE_S = 3.0
"""A leader that has had no answer for so long no longer leads."""
FORGOTTEN_AFTER_S = 8
"""When PostgreSQL takes the lock from a holder that is silent: frozen, or cut off. Later than the holder gives it up itself."""
LEADING = 0x0CAFE002
"""PostgreSQL's advisory lock."""

Duty = Callable[[], Coroutine[Any, Any, None]]
Answer = TypeVar("Answer")


class Leader:
    """Runs what only one server at a time may do."""

    def __init__(self, database: Database, lock_file: Path) -> None:
        """lock_file: for SQLite."""
        is_file = database.engine.dialect.name == "sqlite"
        self._lock: _Lock = _FileLock(lock_file) if is_file else _PostgresLock(database)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leader")  # one at a time: a lock has one state
        self._leads = False
        self._ended = False

    @property
    def leads(self) -> bool:
        """Whether this server is the one."""
        return self._leads

    @property
    def ended(self) -> bool:
        """Whether :meth:`run` has returned or failed: then this server will not lead any more."""
        return self._ended

    async def run(self, *duties: Duty) -> None:
        """Until cancelled: whenever this server leads, run the duties, and cancel them as soon as it does not.

        A duty is called anew each time. When one returns or fails, this ends or fails with it, and another server leads.
        """
        try:
            while True:
                if await self._ask(self._lock.take):
                    await self._lead(duties)
                await asyncio.sleep(EVERY_S)
        finally:
            self._ended = True
            await self._in_thread(self._lock.release)
            self._thread.shutdown(wait=False)

    async def _lead(self, duties: tuple[Duty, ...]) -> None:
        log.info("this server looks after the jobs now")
        self._leads = True
        lost = asyncio.create_task(self._until_lost(), name="leadership")
        tasks = [asyncio.create_task(duty(), name=getattr(duty, "__qualname__", "duty")) for duty in duties]
        try:
            done, _ = await asyncio.wait([lost, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task  # raises what it failed with
            if lost not in done:
                raise RuntimeError(f"{next(iter(done)).get_name()} has returned")
            log.warning("this server no longer looks after the jobs: it has lost the lock, or the database")
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
        """False also where there is no answer in time. What is asked meanwhile waits for its turn."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._in_thread(question)
        except TimeoutError:
            return False

    async def _in_thread(self, call: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


class _Lock(Protocol):
    """Called by one thread at a time. A question that cannot be answered is answered with no."""

    def take(self) -> bool: ...

    def still_held(self) -> bool: ...

    def release(self) -> None: ...


class _FileLock:
    """flock: of one machine, as SQLite is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def take(self) -> bool:
        file = self._path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def still_held(self) -> bool:
        """Not when the file was removed: the next server would lock another one of the same name."""
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
    """A session's: it ends with the connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._complained = False

    def take(self) -> bool:
        try:
            if self._connection is None:
                self._connection = self._database.connect_alone()
                self._connection.exec_driver_sql(f"SET idle_session_timeout = '{FORGOTTEN_AFTER_S}s'")
            taken = self._connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({LEADING})").scalar_one()
        except SQLAlchemyError as error:
            if not self._complained:
                log.warning("the lock of the server that looks after the jobs cannot be asked for: %s", error)
            self._complained = True
            self.release()
            return False
        self._complained = False
        return bool(taken)

    def still_held(self) -> bool:
        """A session that answers has its locks."""
        if self._connection is None:
            return False
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError as error:
            log.warning("the lock of the server that looks after the jobs is lost: %s", error)
            self.release()
            return False
        return True

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # it may be broken: then it is closed as well
                connection.close()
