"""The outermost ASGI middleware: gives each request an id, counts it, and logs it with its outcome.

A request's id is the client's X-Request-ID where that is sane, else made here. It is in the answer, whatever that is, and on
every line that is logged meanwhile (:mod:`server.telemetry.logs`).
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from fastapi.routing import iter_route_contexts
from prometheus_client import Gauge
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("cafe.access")

HEADER = "X-Request-ID"
UNMATCHED = "unmatched"
"""The route of what matches none."""
DISCONNECTED = 499
"""Counted for a request whose client went before it was answered."""
_SANE = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_STREAM = b"text/event-stream"


request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request being answered."""


class RequestMetrics(Protocol):
    """The metrics that the middleware updates."""

    in_flight: Gauge
    event_streams: Gauge

    def request(self, method: str, route: str, status: int, seconds: float, *, stream: bool) -> None: ...


class RequestId:
    """Pure ASGI: an answer is passed on as it comes."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, routes: Sequence[BaseRoute]) -> None:
        """routes: the app's."""
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._templates: dict[int, str] = {}  # by identity: some of the routes cannot be hashed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id = _id_of(scope)
        request_id.set(own_id)  # the server runs each request in a context of its own, which ends with it
        own_header = (b"x-request-id", own_id.encode())
        status, stream = DISCONNECTED, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, stream
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = [*message.get("headers", ()), own_header]
                if any(name == b"content-type" and value.startswith(_STREAM) for name, value in headers):
                    stream = True
                    self._metrics.event_streams.inc()
            await send(message)

        started = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = 500  # is answered outside of here
            raise
        finally:
            seconds = time.perf_counter() - started
            self._metrics.in_flight.dec()
            if stream:
                self._metrics.event_streams.dec()
            route = self._template(scope)
            self._metrics.request(scope["method"], route, status, seconds, stream=stream)
            if log.isEnabledFor(logging.INFO):
                _log_access(scope, route, status, seconds)

    def _template(self, scope: Scope) -> str:
        """The path of the route that answered, e.g. /v1/jobs/{job_id}."""
        route = scope.get("route")
        if route is None:
            return UNMATCHED
        if not self._templates:
            self._templates = {id(each.original_route): each.path or UNMATCHED for each in iter_route_contexts(self._routes)}
        return self._templates.get(id(route), UNMATCHED)


def header() -> dict[str, str]:
    """The header of an answer that is made outside of the middleware."""
    own_id = request_id.get()
    return {HEADER: own_id} if own_id is not None else {}


def _id_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if _SANE.fullmatch(value) else secrets.token_hex(8)
    return secrets.token_hex(8)


def _log_access(scope: Scope, route: str, status: int, seconds: float) -> None:
    fields: dict[str, Any] = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 6)}
    job = scope.get("path_params", {}).get("job_id")
    if job is not None:
        fields["job_id"] = str(job)
    key_id = getattr(scope.get("state", {}).get("principal"), "key_id", None)
    if key_id is not None:
        fields["key_id"] = key_id
    # The path itself is not logged: it may be anything. Nor is what asks every few seconds whether all is well.
    level = logging.DEBUG if route in ("/healthz", "/readyz", "/metrics") and status < 400 else logging.INFO
    log.log(level, "%s %s %d", fields["method"], route, status, extra={"fields": fields})
