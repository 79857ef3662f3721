"""Builds the app: wires the services together while it runs, and the routes to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from sqlalchemy import select
from starlette.types import Scope

from server import errors
from server.body_limit import FORM_BYTES, MAX_BODY_BYTES, BodyLimit
from server.changes import Changes
from server.cluster_view import ClusterView
from server.database import Database, Dataset, Job
from server.deps import Services
from server.ray_api import RayApi
from server.reconciler import Reconciler
from server.removal import finish_removals
from server.routes import artifacts, datasets, jobs, system
from server.settings import Settings
from server.uploads import finish_removals_of_uploads

VERSION = "0.1.0"

log = logging.getLogger(__name__)


def create_app(settings: Settings, ray: RayApi) -> FastAPI:
    """The API of one data directory and one Ray cluster. It closes `ray` when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        roots = settings.roots
        for directory in (settings.data_dir, roots.uploads, roots.cache, roots.downloads):
            directory.mkdir(parents=True, exist_ok=True)
        changes = Changes()
        database = Database(settings.database_url)
        _finish_removals(database, settings)
        reconciler = Reconciler(database, ray, settings, changes)
        app.state.services = Services(settings, database, ray, ClusterView(ray), changes, reconciler)
        reconciling = asyncio.create_task(reconciler.run(), name="reconciler")
        reconciling.add_done_callback(_log_failure)
        try:
            yield
        finally:
            reconciling.cancel()
            await asyncio.gather(reconciling, return_exceptions=True)
            await ray.close()
            database.close()

    app: FastAPI = FastAPIOffline(  # FastAPI, with the files of /docs served from here: no network is needed to read them
        title="CAFE as a service",
        version=VERSION,
        description="Dataset condensation by aligning features: POST a job, download a tiny synthetic training set.",
        lifespan=lifespan,
    )
    errors.install(app)

    def body_limit(scope: Scope) -> int:
        uploading = (scope["method"], scope["path"]) == ("POST", "/v1/datasets")
        return settings.max_upload_bytes + FORM_BYTES if uploading else MAX_BODY_BYTES

    app.add_middleware(BodyLimit, limit_of=body_limit)
    app.include_router(jobs.router, prefix="/v1")
    app.include_router(artifacts.router, prefix="/v1")
    app.include_router(datasets.router, prefix="/v1")
    app.include_router(system.cluster_router, prefix="/v1")
    app.include_router(system.health_router)

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            app.openapi_schema = errors.document(schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    return app


def _finish_removals(database: Database, settings: Settings) -> None:
    """Bring to an end what a server that died was deleting."""
    with database.read() as session:
        known_jobs, known_datasets = set(session.scalars(select(Job.id))), set(session.scalars(select(Dataset.id)))
    finish_removals(settings.data_dir / "jobs", known_jobs)
    finish_removals_of_uploads(settings.roots, known_datasets)


def _log_failure(task: asyncio.Task[None]) -> None:
    """Say at once that a task meant to run to the server's end has failed; /readyz says so as well."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s has failed: jobs are no longer looked after", task.get_name(), exc_info=error)
