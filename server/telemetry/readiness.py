"""Whether jobs can be taken and run: the database and Ray are asked once a second at most, however many want to know."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from server.http.shared_answer import Shared
from server.ray.api import RayApi
from server.store.database import Database
from server.store.models import Job
from workers.client import RayError

FRESH_S = 1.0
WITHIN_S = 5.0

log = logging.getLogger(__name__)


class Readiness:
    """Of one server and its event loop."""

    def __init__(self, database: Database, ray: RayApi) -> None:
        self._database = database
        self._ray = ray
        self._obstacle = Shared(self._ask, FRESH_S)

    async def obstacle(self) -> str | None:
        """Why no jobs can be run, in words for anybody, as it was FRESH_S ago or later; None: they can.

        A question that is not answered is not joined by a second one.
        """
        try:
            async with asyncio.timeout(WITHIN_S):
                return await self._obstacle.get()
        except TimeoutError:
            return f"no answer within {WITHIN_S:g} s"

    async def _ask(self) -> str | None:
        try:
            await asyncio.to_thread(self._query)
            return None if await self._ray.ready() else "the cluster has no node yet"
        except SQLAlchemyError as error:  # where the database is, and as whom it is asked, is told to the log only
            log.warning("not ready: the database does not answer: %s", error)
            return "the database does not answer; the server's log says more"
        except RayError as error:
            log.warning("not ready: %s", error)
            return "Ray does not answer as it should; the server's log says more"

    def _query(self) -> None:
        with self._database.read() as session:
            session.scalar(select(Job.number).limit(1))  # of a table: SQLite answers SELECT 1 without its file
