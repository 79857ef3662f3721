"""Collect the metrics for /metrics: query the database, Ray and the reconciler, at most once per second and with a timeout."""

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
from server.telemetry.job_metrics import JobsSeen, families, read_jobs
from workers.client import RayError

FRESH_S = 1.0
"""Scrapes within this time share one query."""
TIMEOUT_S = 4.0
"""Timeout of queries to the database and Ray. Prometheus's own timeout is 10 s."""

TEXT_TYPE = text.CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Scraper(Collector):
    """Collect the metrics of the database, Ray and the reconciler. Belongs to one event loop."""

    def __init__(self, registry: CollectorRegistry, database: Database, ray: RayApi, leads: Callable[[], bool]) -> None:
        """leads: whether this server runs the reconciler."""
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
        """Return the metrics and their media type: OpenMetrics if the Accept header names it, otherwise Prometheus's text."""
        async with self._looking:
            if time.monotonic() - self._looked_at > FRESH_S:
                self._jobs, self._ray_up = await asyncio.gather(self._read_jobs(), self._ask_ray())
                self._looked_at = time.monotonic()
        if "application/openmetrics-text" in accept:
            return await asyncio.to_thread(openmetrics.generate_latest, self._registry), OPENMETRICS_TYPE
        return await asyncio.to_thread(text.generate_latest, self._registry), TEXT_TYPE

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the last query. The registry calls this."""
        yield GaugeMetricFamily("cafe_ray_up", "Whether Ray's jobs API responds and has a node.", value=self._ray_up)
        yield GaugeMetricFamily("cafe_database_up", "Whether the database responds.", value=self._jobs is not None)
        yield GaugeMetricFamily("cafe_reconciler_leader", "Whether this server runs the reconciler.", value=self._leads())
        if self._jobs is not None:
            yield from families(self._jobs, datetime.now(UTC))

    def describe(self) -> Iterator[Metric]:
        """Yield nothing, so that registering this collector does not collect."""
        return iter(())

    async def _read_jobs(self) -> JobsSeen | None:
        """Read the database; None if it does not respond. A read that hangs is not repeated."""
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._read))
        done, _ = await asyncio.wait({self._reading}, timeout=TIMEOUT_S)
        if not done:
            return None
        reading, self._reading = self._reading, None
        try:
            return reading.result()
        except SQLAlchemyError:
            return None  # shown by cafe_database_up and explained by /readyz

    def _read(self) -> JobsSeen:
        with self._database.read() as session:
            return read_jobs(session)

    async def _ask_ray(self) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._ray.ready()
        except (RayError, TimeoutError):
            return False
