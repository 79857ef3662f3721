"""/v1/jobs: submit, list, get, cancel, resume and delete jobs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from cafe_core.spec.dataset import DatasetNote
from cafe_core.spec.job import JobSpec
from cafe_core.spec.notes import job_notes
from cafe_core.spec.sweep import SweepSpec
from server import schemas
from server.auth.access import Principal, Reader, Writer
from server.auth.limits import check_queue
from server.auth.open_requests import mark_long_lived
from server.auth.visibility import find_job, listed_owner
from server.deps import JobId, Root, Services, ServicesDep
from server.errors import UnauthorizedError, problems
from server.files.inputs import stage_input
from server.files.job_files import bytes_in
from server.files.removal import stage_removal
from server.http.conditional import matches, not_modified
from server.http.spec_bodies import SpecRoute
from server.states import ENDED, Status
from server.store import jobs, listing, models, serializers
from server.store.changes import wait_until_set
from server.store.database import advisory_lock
from server.store.datasets_in_use import lock_datasets
from server.store.progress import total_of
from server.submission import planning
from server.submission.planning import Plan
from server.webhooks.sender import check_url
from workers.client import RayCluster, RayError

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=SpecRoute)

TRIALS_SHOWN = 20
"""Trials of a sweep that a dry run shows."""
PAGE_BYTES = 4 << 20
"""A page of jobs ends once it reaches this size: one job may have megabytes of spec and result."""
ROWS_AT_ONCE = 10
"""Jobs read at a time for a page, so a page has at most this many beyond PAGE_BYTES."""

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Not Modified: the ETag in If-None-Match still matches"}}


@router.post(
    "/jobs",
    status_code=201,
    response_model=schemas.Job,
    responses={
        200: {
            "model": schemas.Job | schemas.DryRun,
            "description": "The job that the same Idempotency-Key created before, or the outcome of a dry run",
        },
        **problems(400, 409, 413, 422, 503),
    },
)
async def submit(
    spec: Annotated[JobSpec, Body()],
    principal: Writer,
    services: ServicesDep,
    root: Root,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="Sending the same key and body again returns the same job.")
    ] = None,
    dry_run: Annotated[bool, Query(description="Resolve the spec and estimate its resources; store nothing.")] = False,
) -> Response:
    """Submit a job.

    Its `kind` is condense, evaluate, sweep or extend. With an `Idempotency-Key`, a repeated request returns the job of the first
    one.
    """
    check_url(spec.webhook, services.settings)
    body_sha256 = hashlib.sha256(spec.model_dump_json(exclude_unset=True).encode()).hexdigest()
    if idempotency_key is not None and not dry_run:
        known = await run_in_threadpool(_recall, services, principal, idempotency_key, body_sha256)
        if known is not None:
            return _job_response(known, root)
    capacity = await services.cluster.capacity()
    planned = await services.heavy.run_fair(principal.key_id, _plan, services, principal, spec, capacity)
    if dry_run:
        return Response(_dry_run(planned).model_dump_json(), media_type="application/json")
    job, created = await run_in_threadpool(_create, services, principal, planned, idempotency_key, body_sha256)
    if not created:
        return _job_response(job, root)
    services.changed(job.id)
    return _job_response(job, root, status_code=201, headers={"Location": f"{root}/v1/jobs/{job.id}"})


def _plan(services: Services, principal: Principal, spec: JobSpec, cluster: RayCluster) -> Plan:
    return planning.plan(spec, services.settings, services.database, cluster, principal)


def _recall(services: Services, principal: Principal, key: str, body_sha256: str) -> models.Job | None:
    with services.database.read() as session:
        return jobs.recall_key(session, key, body_sha256, owner=principal.key_id)


def _create(
    services: Services, principal: Principal, planned: Plan, key: str | None, body_sha256: str
) -> tuple[models.Job, bool]:
    """Create the job and store its idempotency key in one transaction; return (job, True).

    Returns (existing job, False) if a concurrent request has created a job with the same key.
    """
    job_id, accepted = models.new_id("job"), planned.accepted
    database, directory = services.database, services.settings.job_dir(job_id)
    with stage_input(database, directory, accepted.input_set) as keep, database.write() as session:
        if key is not None:
            advisory_lock(session, f"idempotency {principal.key_id or ''} {key}")
        if key is not None and (known := jobs.recall_key(session, key, body_sha256, owner=principal.key_id)) is not None:
            return known, False
        written = bytes_in(directory.path)
        check_queue(session, principal.key_id, services.settings, adding=written)
        lock_datasets(session, accepted.spec)
        job = jobs.create(session, job_id, accepted.spec, owner=principal.key_id, stored_bytes=written)
        if key is not None:
            jobs.remember_key(session, key, body_sha256, job)
        keep(session)
    return job, True


def _dry_run(planned: Plan) -> schemas.DryRun:
    estimates = schemas.Estimates(available_memory_bytes=planned.memory_available, **planned.estimate.model_dump())
    accepted = planned.accepted
    first = [trial.overrides for trial in accepted.trials[:TRIALS_SHOWN]]
    return schemas.DryRun(
        spec=accepted.spec.model_dump(mode="json", exclude_none=True),
        estimates=estimates,
        dataset=accepted.dataset,
        notes=_notes(planned),
        total=total_of(accepted.spec),
        trials=schemas.PlannedTrials(total=len(accepted.trials), first=first) if first else None,
    )


def _notes(planned: Plan) -> list[DatasetNote]:
    """Return the notes of the job, or of all trials of a sweep, without repetitions."""
    accepted = planned.accepted
    specs = [trial.spec for trial in accepted.trials] if isinstance(accepted.spec, SweepSpec) else [accepted.spec]
    notes = [note for spec in specs for note in job_notes(spec, accepted.dataset)]
    return [note for i, note in enumerate(notes) if note not in notes[:i]]


def _job_response(job: models.Job, root: str, *, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = serializers.job(job, root).model_dump_json()
    all_headers = {"ETag": serializers.job_etag(job), "Cache-Control": "no-cache", **(headers or {})}
    return Response(content, status_code, all_headers, media_type="application/json")


@router.get("/jobs", response_model=schemas.JobPage, responses=problems(422))
def list_jobs(
    principal: Reader,
    services: ServicesDep,
    root: Root,
    status: Annotated[Status | None, Query(description="Only jobs with this status.")] = None,
    kind: Annotated[schemas.JobKind | None, Query(description="Only jobs of this kind.")] = None,
    label: Annotated[
        list[str] | None, Query(max_length=64, description="`KEY=VALUE` or `KEY`. May be repeated: jobs must match all.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="Maximum number of jobs; a page of large jobs has fewer.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the previous page.")] = None,
) -> Response:
    """List jobs, newest first.

    Lists the jobs of the API key. A key of scope admin sees all jobs. `next_cursor` is null on the last page.
    """
    wanted = listing.Filter(status, kind, tuple(label or ()), listed_owner(principal))
    listed: list[str] = []
    with services.database.read() as session:
        while True:
            rows = min(limit - len(listed), ROWS_AT_ONCE)
            found, cursor = listing.page(session, wanted, limit=rows, cursor=cursor)
            # JSON takes a fraction of the memory of the objects.
            listed += [serializers.job(job, root).model_dump_json() for job in found]
            if cursor is None or len(listed) == limit or sum(map(len, listed)) >= PAGE_BYTES:
                break
    return Response(serializers.job_page(listed, next_cursor=cursor), media_type="application/json")


@router.get("/jobs/{job_id}", response_model=schemas.Job, responses={**NOT_MODIFIED, **problems(404, 422)})
async def get_job(
    job_id: JobId,
    request: Request,
    principal: Reader,
    services: ServicesDep,
    root: Root,
    wait: Annotated[
        float | None,
        Query(ge=0, le=30, description="Seconds to wait for a change since the ETag in If-None-Match, or else since now."),
    ] = None,
    if_none_match: Annotated[str | None, Header(description="An ETag: respond with 304 if it still matches.")] = None,
) -> Response:
    """Get a job.

    With `wait`, the server responds as soon as the job changes. If the job has ended and there is no If-None-Match, it responds
    immediately.
    """
    job = await run_in_threadpool(_get, services, principal, job_id)
    if wait and (job.state not in ENDED or if_none_match is not None):
        seen = if_none_match if if_none_match is not None else serializers.job_etag(job)
        mark_long_lived(request)
        job = await _changed_from(seen, job_id, request, principal, services, wait)
        if not await services.keys.is_still_valid(principal):
            raise UnauthorizedError("the API key was revoked during the request", "Bearer")
    if matches(if_none_match, serializers.job_etag(job)):
        return not_modified(serializers.job_etag(job))
    return _job_response(job, root)


async def _changed_from(
    seen: str, job_id: str, request: Request, principal: Principal, services: Services, wait: float
) -> models.Job:
    """Return the job once its ETag is not in `seen`, after `wait` seconds, or when the client has disconnected."""
    deadline = asyncio.get_running_loop().time() + wait
    with services.changes.watching(job_id) as changed:
        while True:
            changed.clear()
            job = await run_in_threadpool(_get, services, principal, job_id)
            left = 0 if services.changes.closed else deadline - asyncio.get_running_loop().time()
            if not matches(seen, serializers.job_etag(job)) or left <= 0 or await request.is_disconnected():
                return job
            await wait_until_set(changed, left)


def _get(services: Services, principal: Principal, job_id: str) -> models.Job:
    with services.database.read() as session:
        return find_job(session, principal, job_id)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=schemas.Job,
    responses={200: {"model": schemas.Job, "description": "The job had already ended"}, **problems(404, 422)},
)
def cancel(job_id: JobId, principal: Writer, services: ServicesDep, root: Root) -> Response:
    """Cancel a job.

    Idempotent. The result of its last checkpoint stays downloadable.
    """
    with services.database.write() as session:
        job = find_job(session, principal, job_id, lock=True)
        accepted = jobs.cancel(session, job)
    services.changed(job_id)
    return _job_response(job, root, status_code=202 if accepted else 200)


@router.post("/jobs/{job_id}/resume", status_code=202, response_model=schemas.Job, responses=problems(404, 409, 413, 422))
def resume(job_id: JobId, principal: Writer, services: ServicesDep, root: Root) -> Response:
    """Resume a failed or cancelled job.

    Starts a new attempt from the last checkpoint.
    """
    with services.database.write() as session:
        job = find_job(session, principal, job_id, lock=True)
        check_queue(session, job.owner, services.settings, adding=0)
        jobs.resume(session, job)
    services.changed(job_id)
    return _job_response(job, root, status_code=202)


@router.delete("/jobs/{job_id}", status_code=204, responses=problems(404, 409, 422))
async def delete(job_id: JobId, principal: Writer, services: ServicesDep) -> None:
    """Delete a job that has ended, with all its files."""
    attempts = await run_in_threadpool(_delete, services, principal, job_id)
    services.changed(job_id)
    with contextlib.suppress(RayError):  # the job itself is deleted; Ray drops its own record in time
        for attempt in range(1, attempts + 1):
            await services.ray.delete(job_id, attempt)


def _delete(services: Services, principal: Principal, job_id: str) -> int:
    with stage_removal(services.settings.job_dir(job_id).path) as set_aside, services.database.write() as session:
        job = find_job(session, principal, job_id, lock=True)
        jobs.delete(session, job)
        session.flush()
        set_aside()
    return job.attempt
