"""/dashboard/: Ray's dashboard, to be looked at by keys of scope admin. A browser opens it with the key as the password.

Only what is listed here is passed on, by GET and HEAD: what changes something or runs code (submitting jobs, profiling a
worker) is not there. Ray's token is added on the way to Ray, and nothing of what the browser sent but a few harmless headers.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from server.auth.access import DASHBOARD, Admin
from server.deps import ServicesDep
from server.errors import NotFoundError

router = APIRouter(include_in_schema=False)

#: Ray 2.60's paths that only tell something, from its `ray/dashboard/**/*.py` (`@routes.get`). No segment may be `.` or `..`.
_NAME = r"(?!\.{1,2}(?:/|$))[^/]+"
_READABLE = re.compile(
    rf"""
    | favicon\.ico | static/{_NAME}(/{_NAME})* | speedscope-1\.5\.3/{_NAME}
    | timezone | events | cluster_id | usage_stats_enabled | nodes(/{_NAME})? | logical/actors(/{_NAME})?
    | api/(version | ray/version | cluster_status | grafana_health | prometheus_health)
    | api/jobs/({_NAME}(/logs)?)?
    | api/data/datasets/{_NAME} | api/serve/applications/ | api/train/v2/runs(/v1)?
    | api/v0/(actors | cluster_events | cluster_metadata | jobs | nodes | objects | placement_groups)
    | api/v0/(platform_events | tasks | workers)
    | api/v0/(actors | objects | tasks)/summarize | api/v0/tasks/timeline | api/v0/logs(/(file | stream))?
    """,
    re.VERBOSE,
)
_ASKED = ("accept", "accept-encoding", "if-none-match", "if-modified-since", "range")
_ANSWERED = ("content-type", "content-length", "content-encoding", "content-disposition", "etag", "last-modified", "vary")


@router.get(DASHBOARD)
@router.head(DASHBOARD)
async def to_dashboard(_: Admin) -> Response:
    """Its own addresses are relative to the slash."""
    return RedirectResponse(f"{DASHBOARD}/")


@router.get(f"{DASHBOARD}/api/authentication_mode")
async def authentication_mode(_: Admin) -> Response:
    """The page is to ask nobody for Ray's token: this server has it."""
    return JSONResponse({"authentication_mode": "disabled"})


@router.get(DASHBOARD + "/{path:path}")
@router.head(DASHBOARD + "/{path:path}")
async def dashboard(path: str, request: Request, _: Admin, services: ServicesDep) -> Response:
    """What Ray's dashboard answers. Raises NotFoundError for what may not be asked, RayError where Ray does not answer."""
    if not _READABLE.fullmatch(path):
        raise NotFoundError("Ray's dashboard is only looked at here: this is not a part of it that can be")
    headers = {name: request.headers[name] for name in _ASKED if name in request.headers}
    headers.setdefault("accept-encoding", "identity")
    target = "/" + quote(path, safe="/")
    answer = await services.ray.read(request.method, target, request.url.query, headers)
    kept = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
    kept |= {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "SAMEORIGIN"}
    return StreamingResponse(_body(answer), answer.status_code, kept)


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """As it came, compressed or not; closed also when the browser leaves."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
