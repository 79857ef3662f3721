"""/v1/jobs: submit, list, look at, cancel, resume, delete; events and logs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool

from cafe_core.config import JobSpec
from server import database, jobs, present, schemas
from server.changes import wait_until_set
from server.deps import JobId, Services, ServicesDep
from server.errors import UnavailableError, problems
from server.http_cache import matches, not_modified
from server.job_keeper import log_file
from server.planning import Plan, plan
from server.removal import removal_of
from server.states import ENDED, Status
from workers.client import RayError

router = APIRouter(tags=["jobs"])

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Not Modified: as the ETag in If-None-Match says"}}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.post(
    "/jobs",
    status_code=201,
    response_model=schemas.Job,
    responses={
        200: {"model": schemas.Job | schemas.DryRun, "description": "The job this key made before; or a dry run's outcome"},
        **problems(400, 413, 422, 503),
    },
)
async def submit(
    spec: JobSpec,
    services: ServicesDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    dry_run: Annotated[bool, Query(description="Resolve and estimate only; nothing is stored.")] = False,
) -> Response:
    """Submit a job. With an `Idempotency-Key`, sending it again gives the same job."""
    body_sha256 = hashlib.sha256(spec.model_dump_json(exclude_unset=True).encode()).hexdigest()
    if idempotency_key is not None and not dry_run:
        known = await run_in_threadpool(_recall, services, idempotency_key, body_sha256)
        if known is not None:
            return _job_response(known)
    planned = await run_in_threadpool(plan, spec, services.settings.roots, await services.cluster.capacity())
    if dry_run:
        return JSONResponse(_dry_run(planned).model_dump(mode="json", exclude_none=True))
    job, created = await run_in_threadpool(_create, services, planned, idempotency_key, body_sha256)
    if not created:
        return _job_response(job)
    services.changed(job.id)
    return _job_response(job, status_code=201, headers={"Location": f"/v1/jobs/{job.id}"})


def _recall(services: Services, key: str, body_sha256: str) -> database.Job | None:
    with services.database.read() as session:
        return jobs.recall_key(session, key, body_sha256)


def _create(services: Services, planned: Plan, key: str | None, body_sha256: str) -> tuple[database.Job, bool]:
    """The job and its key in one transaction; (the job that the key has made meanwhile, False) where it has."""
    with services.database.write() as session:
        if key is not None and (known := jobs.recall_key(session, key, body_sha256)) is not None:
            return known, False
        job = jobs.create(session, planned.spec)
        if key is not None:
            jobs.remember_key(session, key, body_sha256, job)
    return job, True


def _dry_run(planned: Plan) -> schemas.DryRun:
    estimates = schemas.Estimates(available_memory_bytes=planned.memory_available, **planned.estimate.model_dump())
    return schemas.DryRun(spec=planned.spec, estimates=estimates, dataset=planned.dataset)


def _job_response(job: database.Job, *, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = present.job(job).model_dump_json()
    all_headers = {"ETag": present.job_etag(job), "Cache-Control": "no-cache", **(headers or {})}
    return Response(content, status_code, all_headers, media_type="application/json")


@router.get("/jobs", responses=problems(422))
def list_jobs(
    services: ServicesDep,
    status: Status | None = None,
    kind: Annotated[str | None, Query(max_length=16)] = None,
    label: Annotated[list[str] | None, Query(description="`KEY=VALUE`, or `KEY`; may be repeated: all must hold.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> schemas.JobPage:
    """Jobs, newest first."""
    with services.database.read() as session:
        found, following = jobs.page(session, jobs.Filter(status, kind, tuple(label or ())), limit=limit, cursor=cursor)
    return schemas.JobPage(data=[present.job(job) for job in found], next_cursor=following)


@router.get("/jobs/{job_id}", response_model=schemas.Job, responses={**NOT_MODIFIED, **problems(404, 422)})
async def get_job(
    job_id: JobId,
    request: Request,
    services: ServicesDep,
    wait: Annotated[
        float | None,
        Query(ge=0, le=30, description="Seconds to wait for a change: from the ETag in If-None-Match, or else from now."),
    ] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A job. `wait` answers early on a change, and at once for a job that has ended (without If-None-Match)."""
    job = await run_in_threadpool(_get, services, job_id)
    if wait and (job.state not in ENDED or if_none_match is not None):
        seen = if_none_match if if_none_match is not None else present.job_etag(job)
        job = await _changed_from(seen, job_id, request, services, wait)
    if matches(if_none_match, present.job_etag(job)):
        return not_modified(present.job_etag(job))
    return _job_response(job)


async def _changed_from(seen: str, job_id: str, request: Request, services: Services, wait: float) -> database.Job:
    """The job once its ETag is not among `seen`, or after `wait` seconds, or when the client has gone."""
    deadline = asyncio.get_running_loop().time() + wait
    with services.changes.watching(job_id) as changed:
        while True:
            changed.clear()
            job = await run_in_threadpool(_get, services, job_id)
            left = deadline - asyncio.get_running_loop().time()
            if not matches(seen, present.job_etag(job)) or left <= 0 or await request.is_disconnected():
                return job
            await wait_until_set(changed, left)


def _get(services: Services, job_id: str) -> database.Job:
    with services.database.read() as session:
        return jobs.get(session, job_id)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=schemas.Job,
    responses={200: {"model": schemas.Job, "description": "It had ended already"}, **problems(404, 422)},
)
def cancel(job_id: JobId, services: ServicesDep) -> Response:
    """Cancel a job. What its last checkpoint yields stays downloadable. Asking again changes nothing."""
    with services.database.write() as session:
        job = jobs.get(session, job_id, lock=True)
        accepted = jobs.cancel(session, job)
    services.changed(job_id)
    return _job_response(job, status_code=202 if accepted else 200)


@router.post("/jobs/{job_id}/resume", status_code=202, response_model=schemas.Job, responses=problems(404, 409, 422))
def resume(job_id: JobId, services: ServicesDep) -> Response:
    """A new attempt from the last checkpoint, for a failed or cancelled job."""
    with services.database.write() as session:
        job = jobs.get(session, job_id, lock=True)
        jobs.resume(session, job)
    services.changed(job_id)
    return _job_response(job, status_code=202)


@router.delete("/jobs/{job_id}", status_code=204, responses=problems(404, 409, 422))
async def delete(job_id: JobId, services: ServicesDep) -> None:
    """Delete an ended job with all its files."""
    attempts = await run_in_threadpool(_delete, services, job_id)
    services.changed(job_id)
    with contextlib.suppress(RayError):  # Ray's record of it is Ray's to forget; ours is gone
        for attempt in range(1, attempts + 1):
            await services.ray.delete(job_id, attempt)


def _delete(services: Services, job_id: str) -> int:
    with removal_of(services.settings.job_dir(job_id).path) as set_aside, services.database.write() as session:
        job = jobs.get(session, job_id, lock=True)
        jobs.delete(session, job)
        session.flush()
        set_aside()
    return job.attempt


@router.get("/jobs/{job_id}/events", responses=problems(404, 422))
def list_events(
    job_id: JobId,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, le=2**53, description="Events with a larger `id`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> schemas.EventPage:
    """What happened to a job, oldest first."""
    with services.database.read() as session:
        jobs.get(session, job_id)
        found = jobs.events_after(session, job_id, after, limit)
    return schemas.EventPage(data=[present.event(event) for event in found], next_after=found[-1].number if found else after)


@router.get("/jobs/{job_id}/logs", response_class=PlainTextResponse, responses={**TEXT, **problems(404, 422, 503)})
async def logs(
    job_id: JobId,
    services: ServicesDep,
    attempt: Annotated[int | None, Query(ge=1, le=2**31, description="Default: the current one.")] = None,
    tail: Annotated[int | None, Query(ge=1, le=1_000_000, description="The last so many lines only.")] = None,
) -> PlainTextResponse:
    """What an attempt's driver and workers printed."""
    number = await run_in_threadpool(_attempt_number, services, job_id, attempt)
    kept = log_file(services.settings.job_dir(job_id).attempt(number))
    if await run_in_threadpool(kept.exists):
        text = await run_in_threadpool(kept.read_text, "utf-8", "replace")
    else:
        try:
            text = await services.ray.logs(job_id, number) or ""
        except RayError as error:
            raise UnavailableError(str(error)) from error
    lines = text.splitlines(keepends=True)
    return PlainTextResponse("".join(lines[-tail:] if tail else lines))


def _attempt_number(services: Services, job_id: str, number: int | None) -> int:
    with services.database.read() as session:
        return jobs.attempt_of(session, jobs.get(session, job_id), number).number
