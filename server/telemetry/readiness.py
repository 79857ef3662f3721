"""Check whether jobs can be accepted and run. The database and Ray are queried at most once per second."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from server.http.shared_result import SharedResult
from server.ray.api import RayApi
from server.store.database import Database
from server.store.models import Job
from workers.client import RayError

FRESH_S = 1.0
WITHIN_S = 5.0

log = logging.getLogger(__name__)


class Readiness:
    """Readiness of one server. Belongs to one event loop."""

    def __init__(self, database: Database, ray: RayApi) -> None:
        self._database = database
        self._ray = ray
        self._obstacle = SharedResult(self._ask, FRESH_S)

    async def obstacle(self) -> str | None:
        """Return why jobs cannot be run, without internal details; None if they can. At most FRESH_S old.

        A query that hangs is not repeated.
        """
        try:
            async with asyncio.timeout(WITHIN_S):
                return await self._obstacle.get()
        except TimeoutError:
            return f"no response from the database or Ray within {WITHIN_S:g} s"

    async def _ask(self) -> str | None:
        try:
            await asyncio.to_thread(self._query)
            return None if await self._ray.ready() else "the Ray cluster has no node yet"
        except SQLAlchemyError as error:  # address and user of the database go to the log only
            log.warning("not ready: the database does not respond: %s", error)
            return "the database does not respond; see the server's log"
        except RayError as error:
            log.warning("not ready: %s", error)
            return "Ray does not respond as expected; see the server's log"

    def _query(self) -> None:
        with self._database.read() as session:
            session.scalar(select(Job.number).limit(1))  # reads a table: SQLite answers SELECT 1 without opening its file
