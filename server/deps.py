"""Services that routes depend on."""

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
    """Services of the app, created at startup and closed at shutdown."""

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
    """For planning jobs and converting synthetic sets, which takes seconds."""
    upload_checks: HeavyWork = field(default_factory=partial(HeavyWork, waiting_per_key=16))
    """For validating uploads, which may take minutes. Waiting uploads are kept on disk."""

    @cached_property
    def readiness(self) -> Readiness:
        """Return the check of whether jobs can be accepted and run."""
        return Readiness(self.database, self.ray)

    def close(self) -> None:
        """End long polls and event streams because the server stops. Clients resume with the next server."""
        self.changes.close()
        self.streams.close()

    def changed(self, job_id: str) -> None:
        """Notify waiting requests and the reconciler that a job has changed. Call it after the transaction."""
        self.changes.notify(job_id)
        self.reconciler.wake()


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root


Root = Annotated[str, Depends(_root)]
"""The path prefix of a proxy in front of the server, or nothing; every link begins with it."""
ServicesDep = Annotated[Services, Depends(_services)]
JobId = Annotated[str, Path(description="The `id` of a job.", examples=["job_7q2xkd3m5nab4cvw"])]
