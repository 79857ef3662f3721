"""No body larger than its route takes is read to its end, whatever its headers say: 413 instead (ASGI middleware)."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import problem_response

MAX_BODY_BYTES = 1 << 20
"""Of every request but an upload. A job spec has some kilobytes."""
FORM_BYTES = 64 << 10
"""What an upload's form may hold besides the file."""


class BodyLimit:
    """Refuses a body that announces too much before any of it is read, and one that turns out too large at that byte.

    `limit_of`: bytes that the request with a scope may send.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[Scope], int]) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope)
        detail = f"the request's body is larger than {limit} bytes, which this server takes here"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            await problem_response(413, detail)(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, detail)  # an error like any other to the route that reads, so a problem
            return message

        await self._app(scope, receive_counted, send)
