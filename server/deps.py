"""What routes are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated

from fastapi import Depends, Path, Request

from server.auth.access import KeyRing
from server.event_streams import EventStreams
from server.http.heavy_work import HeavyWork
from server.ray.api import RayApi
from server.ray.cluster_view import ClusterView
from server.reconciler.leader_election import Leader
from server.reconciler.reconciler import Reconciler
from server.settings import Settings
from server.store.changes import Changes
from server.store.database import Database
from server.telemetry.readiness import Readiness


@dataclass(frozen=True)
class Services:
    """Made when the app starts, closed when it ends."""

    settings: Settings
    database: Database
    ray: RayApi
    cluster: ClusterView
    changes: Changes
    reconciler: Reconciler
    leader: Leader
    keys: KeyRing
    streams: EventStreams
    heavy: HeavyWork = field(default_factory=partial(HeavyWork, waiting_per_key=64))
    """Planning jobs and converting synthetic sets: each takes seconds at most."""
    upload_checks: HeavyWork = field(default_factory=partial(HeavyWork, waiting_per_key=16))
    """They may take minutes, and those that wait are on disk."""

    @cached_property
    def readiness(self) -> Readiness:
        """Whether jobs can be taken and run."""
        return Readiness(self.database, self.ray)

    def close(self) -> None:
        """Let nobody wait any longer: the server begins to stop. Streams end, and their clients resume with the next server."""
        self.changes.close()
        self.streams.close()

    def changed(self, job_id: str) -> None:
        """Tell all who wait for a job, and the reconciler, that it has changed. After its transaction."""
        self.changes.notify(job_id)
        self.reconciler.wake()


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
JobId = Annotated[str, Path(description="A job's `id`.", examples=["job_7q2xkd3m5nab4cvw"])]
