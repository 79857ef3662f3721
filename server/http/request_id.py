"""ASGI middleware outside of all that may refuse a request: assign each request an id, count it, and log it with its outcome.

The id is the client's X-Request-ID if it is valid, otherwise a new one. Every response has it, and every log line of the request
(:mod:`server.telemetry.logs`).
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextvars import ContextVar
from typing import Any, Protocol

from prometheus_client import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("cafe.access")

HEADER = "X-Request-ID"
UNMATCHED = "unmatched"
"""The route label of requests that match no route."""
DISCONNECTED = 499
"""Status of a request whose client disconnected before the response."""
_VALID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_STREAM = b"text/event-stream"


request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request being answered."""


class RequestMetrics(Protocol):
    """The metrics that the middleware updates."""

    in_flight: Gauge
    event_streams: Gauge

    def request(self, method: str, route: str, status: int, seconds: float, *, stream: bool) -> None: ...


class RequestId:
    """Pure ASGI middleware, so that responses are streamed unchanged."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id = _id_of(scope)
        request_id.set(own_id)  # uvicorn runs each request in its own context
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
            status = 500  # Starlette responds outside of this middleware
            raise
        finally:
            seconds = time.perf_counter() - started
            self._metrics.in_flight.dec()
            if stream:
                self._metrics.event_streams.dec()
            route = getattr(scope.get("route"), "path", "") or UNMATCHED  # a template, e.g. /v1/jobs/{job_id}
            self._metrics.request(scope["method"], route, status, seconds, stream=stream)
            if log.isEnabledFor(logging.INFO):
                _log_access(scope, route, status, seconds)


def header() -> dict[str, str]:
    """Return the header for a response that is made outside of the middleware."""
    own_id = request_id.get()
    return {HEADER: own_id} if own_id is not None else {}


def _id_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if _VALID.fullmatch(value) else secrets.token_hex(8)
    return secrets.token_hex(8)


def _log_access(scope: Scope, route: str, status: int, seconds: float) -> None:
    fields: dict[str, Any] = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 6)}
    job = scope.get("path_params", {}).get("job_id")
    if job is not None:
        fields["job_id"] = str(job)
    key_id = getattr(scope.get("state", {}).get("principal"), "key_id", None)
    if key_id is not None:
        fields["key_id"] = key_id
    # The path itself is not logged, since it may contain anything. Successful health checks are logged at debug level only.
    level = logging.DEBUG if route in ("/healthz", "/readyz", "/metrics") and status < 400 else logging.INFO
    log.log(level, "%s %s %d", fields["method"], route, status, extra={"fields": fields})
