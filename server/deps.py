"""What routes are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request

from server.changes import Changes
from server.cluster_view import ClusterView
from server.database import Database
from server.ray_api import RayApi
from server.reconciler import Reconciler
from server.settings import Settings


@dataclass(frozen=True)
class Services:
    """Made when the app starts, closed when it ends."""

    settings: Settings
    database: Database
    ray: RayApi
    cluster: ClusterView
    changes: Changes
    reconciler: Reconciler

    def changed(self, job_id: str) -> None:
        """Tell all who wait for a job, and the reconciler, that it has changed. After its transaction."""
        self.changes.tell(job_id)
        self.reconciler.wake()


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
JobId = Annotated[str, Path(description="A job's `id`.", examples=["job_7q2xkd3m5nab4cvw"])]
