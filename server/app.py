"""Build the FastAPI app: services, middleware and routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from sqlalchemy import select
from starlette.types import Scope

from server import error_handlers
from server.auth import access
from server.auth.access import Gate, KeyRing
from server.deps import Services
from server.event_streams import EventStreams
from server.files.inputs import remove_abandoned
from server.files.removal import finish_removals
from server.files.uploads import finish_upload_removals
from server.http.body_limit import FORM_BYTES, MAX_BODY_BYTES, BodyLimit
from server.http.request_id import RequestId
from server.http.root_path import RootPath, route_path
from server.ray.api import RayApi
from server.ray.cluster_view import ClusterView
from server.reconciler.leader_election import Leader
from server.reconciler.presence import server_presence
from server.reconciler.reconciler import Reconciler
from server.routes import artifacts, dashboard, datasets, events, jobs, metrics, openapi_links, pools, system, trials
from server.settings import Settings
from server.store.changes import Changes
from server.store.database import Database
from server.store.models import Dataset, Job
from server.telemetry.commit_counts import count_commits
from server.telemetry.metrics import Metrics
from server.telemetry.scraping import Scraper
from server.telemetry.tracing import REQUEST_TELEMETRY
from server.webhooks.sender import WebhookSender

VERSION = "0.2.0"

log = logging.getLogger(__name__)


def create_app(settings: Settings, ray: RayApi) -> FastAPI:
    """Return the API of one data directory and one Ray cluster. Closes `ray` on shutdown."""
    registry_metrics = Metrics(VERSION)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        roots = settings.roots
        for directory in (settings.data_dir, roots.uploads, roots.cache, roots.downloads):
            directory.mkdir(parents=True, exist_ok=True)
        changes = Changes()
        database = Database(settings.database)
        database.migrate()
        count_commits(database.sessions, registry_metrics)
        reconciler = Reconciler(database, ray, settings, changes)
        leader = Leader(database, settings.data_dir / "reconciler.lock")
        app.state.services = Services(
            settings=settings,
            database=database,
            ray=ray,
            cluster=ClusterView(ray, settings),
            changes=changes,
            reconciler=reconciler,
            leader=leader,
            keys=KeyRing(database, settings),
            streams=EventStreams(database, changes),
        )
        app.state.scraper = Scraper(registry_metrics.registry, database, ray, lambda: leader.leads)
        sender = WebhookSender(database, settings)
        leading = asyncio.create_task(leader.run(reconciler.run, sender.run), name="reconciler")
        leading.add_done_callback(_log_failure)
        following = asyncio.create_task(changes.poll_other_servers(database), name="follow changes of other servers")
        following.add_done_callback(_log_failure)
        try:
            with server_presence(settings.data_dir / "servers.lock", partial(_tidy_up, database, settings)):
                yield
        finally:
            for task in (following, leading):
                task.cancel()
            await asyncio.gather(following, leading, return_exceptions=True)
            await ray.close()
            database.close()

    app: FastAPI = FastAPIOffline(  # serves the assets of /docs itself, so that /docs works without internet access
        title="CAFE as a service",
        version=VERSION,
        description="Dataset condensation by aligning features: submit a job, download a small synthetic training set.",
        lifespan=lifespan,
        telemetry=REQUEST_TELEMETRY,
    )
    error_handlers.install(app)

    def is_upload(scope: Scope) -> bool:
        return (scope["method"], route_path(scope)) == ("POST", "/v1/datasets")

    def body_limit(scope: Scope) -> int:
        return access.max_upload_bytes(scope, settings) + FORM_BYTES if is_upload(scope) else MAX_BODY_BYTES

    app.add_middleware(BodyLimit, limit_of=body_limit)
    app.add_middleware(Gate, settings=settings)  # outside BodyLimit, so that the body of a refused request is not read
    app.add_middleware(RequestId, metrics=registry_metrics)  # outside Gate, so that refused requests have an id as well
    app.add_middleware(RootPath, prefix=settings.root_path, trust_forwarded=settings.trust_forwarded_prefix)  # outermost
    app.include_router(system.health_router)  # first: FastAPI prepares later routes at the first request to one of them
    app.include_router(jobs.router)
    app.include_router(events.router)
    app.include_router(trials.router)
    app.include_router(artifacts.router)
    app.include_router(datasets.router)
    app.include_router(pools.router)
    app.include_router(system.cluster_router)
    app.include_router(dashboard.router)
    app.include_router(metrics.router)

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            app.openapi_schema = openapi_links.link(error_handlers.document(access.document(schema)))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    return app


def _tidy_up(database: Database, settings: Settings) -> None:
    """Finish deletions and undo incomplete creations of a server that crashed."""
    with database.read() as session:
        known_jobs, known_datasets = set(session.scalars(select(Job.id))), set(session.scalars(select(Dataset.id)))
    finish_removals(settings.data_dir / "jobs", known_jobs)
    remove_abandoned(settings.data_dir / "jobs", known_jobs)
    finish_upload_removals(settings.roots, known_datasets)


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log the failure of a background task that must run as long as the server. /readyz reports it as well."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("background task %r failed; jobs are no longer reconciled", task.get_name(), exc_info=error)
