"""/v1/jobs/{id}/events and /logs: the events of a job and the output of its attempts."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from server import schemas
from server.auth.access import Principal, Reader
from server.auth.open_requests import mark_long_lived
from server.auth.visibility import find_job
from server.deps import JobId, Services, ServicesDep
from server.errors import NotAcceptableError, UnavailableError, problems
from server.event_streams import EventStream
from server.files.job_logs import read_log
from server.http.negotiation import preferred
from server.store import jobs, serializers
from server.store.events import events_after
from workers.client import RayError

router = APIRouter(prefix="/v1", tags=["jobs"])

JSON, EVENT_STREAM = "application/json", "text/event-stream"

TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of events, or a stream that ends after the last event of a job that has ended. If the stream ends "
        "earlier, reconnect with `Last-Event-ID`.",
        "content": {
            EVENT_STREAM: {
                "schema": {
                    "type": "string",
                    "description": "Server-sent events: `id` is the event's number, `event` its type, `data` the Event as "
                    "JSON. A comment is sent every 15 s.",
                    "contentMediaType": EVENT_STREAM,
                },
                "example": 'event: status\ndata: {"id":1,"attempt":1,"type":"status",…}\nid: 1\n\n',
            }
        },
    },
    204: {"description": "The job has ended and `Last-Event-ID` was its last event, so a browser stops reconnecting"},
}


@router.get("/jobs/{job_id}/events", response_model=schemas.EventPage, responses={**_STREAM, **problems(404, 406, 422, 503)})
async def get_events(
    job_id: JobId,
    principal: Reader,
    services: ServicesDep,
    request: Request,
    after: Annotated[int, Query(ge=0, le=2**53, description="Only events with a larger `id`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Maximum number of events of a page.")] = 100,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=2**53, description="Resume a stream after this `id`; takes precedence over `after`.")
    ] = None,
) -> Response:
    """Get the events of a job, oldest first.

    Returns a page as JSON, or a live stream with `Accept: text/event-stream`.
    """
    accept = ", ".join(request.headers.getlist("accept"))
    media_type = preferred(accept, (JSON, EVENT_STREAM))
    if media_type is None:
        raise NotAcceptableError(f"Accept must allow {JSON} or {EVENT_STREAM}; got {accept!r}")
    if media_type == JSON:
        content = (await run_in_threadpool(_page, services, principal, job_id, after, limit)).model_dump_json()
        return Response(content, media_type=JSON, headers={"Vary": "Accept"})
    await run_in_threadpool(_check, services, principal, job_id)
    page = await services.streams.read(job_id, after if last_event_id is None else last_event_id)
    if page.complete and not page.content and last_event_id is not None:
        return Response(status_code=204, headers={"Vary": "Accept"})
    mark_long_lived(request)
    return EventStream(services.streams, job_id, page, partial(services.keys.is_still_valid, principal))


def _page(services: Services, principal: Principal, job_id: str, after: int, limit: int) -> schemas.EventPage:
    with services.database.read() as session:
        find_job(session, principal, job_id)
        found = events_after(session, job_id, after, limit)
    return schemas.EventPage(data=[serializers.event(event) for event in found], next_after=found[-1].number if found else after)


def _check(services: Services, principal: Principal, job_id: str) -> None:
    with services.database.read() as session:
        find_job(session, principal, job_id)


@router.get("/jobs/{job_id}/logs", response_class=PlainTextResponse, responses={**TEXT, **problems(404, 422, 503)})
async def logs(
    job_id: JobId,
    principal: Reader,
    services: ServicesDep,
    attempt: Annotated[int | None, Query(ge=1, le=2**31, description="Number of the attempt. Default: the current one.")] = None,
    tail: Annotated[int | None, Query(ge=1, le=1_000_000, description="Return only this many lines from the end.")] = None,
) -> Response:
    """Get the output of an attempt's driver and workers."""
    number = await run_in_threadpool(_attempt_number, services, principal, job_id, attempt)
    pieces = await run_in_threadpool(read_log, services.settings.job_dir(job_id).attempt(number), tail)
    if pieces is not None:
        return StreamingResponse(pieces, media_type="text/plain")
    try:
        text = await services.ray.logs(job_id, number) or ""
    except RayError as error:
        raise UnavailableError(str(error)) from error
    lines = text.splitlines(keepends=True)
    return PlainTextResponse("".join(lines[-tail:] if tail else lines))


def _attempt_number(services: Services, principal: Principal, job_id: str, number: int | None) -> int:
    with services.database.read() as session:
        return jobs.attempt_of(session, find_job(session, principal, job_id), number).number
