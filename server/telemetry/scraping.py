"""Answers /metrics: looks at the database, Ray and the reconciler, at most once a second and never for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry
from prometheus_client import exposition as text
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from server.ray.api import RayApi
from server.store.database import Database
from server.telemetry.job_metrics import JobsSeen, families, look
from workers.client import RayError

FRESH_S = 1.0
"""Scrapes within this time share a look."""
PATIENCE_S = 4.0
"""How long the database and Ray are waited for: Prometheus gives up after 10 s."""

TEXT_TYPE = text.CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Scraper(Collector):
    """The metrics of what stands outside of this process. Belongs to the event loop that it is used in."""

    def __init__(self, registry: CollectorRegistry, database: Database, ray: RayApi, leads: Callable[[], bool]) -> None:
        """leads: whether this server looks after jobs."""
        self._registry = registry
        self._database = database
        self._ray = ray
        self._leads = leads
        self._jobs: JobsSeen | None = None
        self._ray_up = False
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._reading: asyncio.Task[JobsSeen] | None = None
        registry.register(self)

    async def answer(self, accept: str) -> tuple[bytes, str]:
        """The metrics, and their media type: OpenMetrics where `accept`, a header, names it, else Prometheus's text."""
        async with self._looking:
            if time.monotonic() - self._looked_at > FRESH_S:
                self._jobs, self._ray_up = await asyncio.gather(self._look_at_jobs(), self._ask_ray())
                self._looked_at = time.monotonic()
        if "application/openmetrics-text" in accept:
            return await asyncio.to_thread(openmetrics.generate_latest, self._registry), OPENMETRICS_TYPE
        return await asyncio.to_thread(text.generate_latest, self._registry), TEXT_TYPE

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        yield GaugeMetricFamily("cafe_ray_up", "Whether Ray's jobs API answers and has a node.", value=self._ray_up)
        yield GaugeMetricFamily("cafe_database_up", "Whether the database answers.", value=self._jobs is not None)
        yield GaugeMetricFamily("cafe_reconciler_leader", "Whether this server looks after jobs.", value=self._leads())
        if self._jobs is not None:
            yield from families(self._jobs, datetime.now(UTC))

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry need not look in order to register it."""
        return iter(())

    async def _look_at_jobs(self) -> JobsSeen | None:
        """None when the database does not answer. A read that hangs is not joined by a second one."""
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._read))
        done, _ = await asyncio.wait({self._reading}, timeout=PATIENCE_S)
        if not done:
            return None
        reading, self._reading = self._reading, None
        try:
            return reading.result()
        except SQLAlchemyError:
            return None  # cafe_database_up says so; /readyz says why

    def _read(self) -> JobsSeen:
        with self._database.read() as session:
            return look(session)

    async def _ask_ray(self) -> bool:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._ray.ready()
        except (RayError, TimeoutError):
            return False
