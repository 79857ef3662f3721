"""/dashboard/: a read-only proxy of Ray's dashboard for keys of scope admin. A browser sends the key as the password.

Only GET and HEAD requests to the listed paths are forwarded, not paths that change something or run code (submitting jobs,
profiling a worker). Ray's token is added to the request, and only a few harmless headers of the browser are forwarded.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from server.auth.access import DASHBOARD, Admin
from server.deps import Root, ServicesDep
from server.errors import NotFoundError

router = APIRouter(include_in_schema=False)

#: Read-only paths of Ray 2.60, from its `ray/dashboard/**/*.py` (`@routes.get`). No segment may be `.` or `..`.
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
_REQUEST_HEADERS = ("accept", "accept-encoding", "if-none-match", "if-modified-since", "range")
_RESPONSE_HEADERS = ("content-type", "content-length", "content-encoding", "content-disposition", "etag", "last-modified", "vary")


@router.get(DASHBOARD)
@router.head(DASHBOARD)
async def to_dashboard(_: Admin, root: Root) -> Response:
    """Redirect to the path with a slash, which the page's own links are relative to."""
    return RedirectResponse(f"{root}{DASHBOARD}/")


@router.get(f"{DASHBOARD}/api/authentication_mode")
async def authentication_mode(_: Admin) -> Response:
    """Tell the page not to ask for Ray's token, which this server adds itself."""
    return JSONResponse({"authentication_mode": "disabled"})


@router.get(DASHBOARD + "/{path:path}")
@router.head(DASHBOARD + "/{path:path}")
async def dashboard(path: str, request: Request, _: Admin, services: ServicesDep) -> Response:
    """Pass a request on to Ray's dashboard. Raises NotFoundError for other paths, RayError if Ray does not respond."""
    if not _READABLE.fullmatch(path):
        raise NotFoundError("only the read-only paths of Ray's dashboard are available here")
    headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
    headers.setdefault("accept-encoding", "identity")
    target = "/" + quote(path, safe="/")
    answer = await services.ray.read(request.method, target, request.url.query, headers)
    kept = {name: answer.headers[name] for name in _RESPONSE_HEADERS if name in answer.headers}
    kept |= {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "SAMEORIGIN"}
    return StreamingResponse(_body(answer), answer.status_code, kept)


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the raw body, and close the response even if the browser disconnects."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
