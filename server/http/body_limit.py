"""ASGI middleware that limits the size of request bodies: 413 for too many bytes, 422 for too many fields in JSON.

Parsing a JSON body with very many fields, lists and objects blocks the event loop and therefore every other request, especially
if every field is invalid.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cafe_core.spec.json_text import MAX_PARTS
from server.errors import problem_response

MAX_BODY_BYTES = 1 << 20
"""Limit of every request except uploads. A job spec has a few kilobytes."""
FORM_BYTES = 64 << 10
"""Allowance for the rest of an upload's form besides the file."""


class BodyLimit:
    """Refuse a body by its Content-Length before it is read, and otherwise at the first byte beyond the limit.

    `limit_of` returns the maximum number of bytes for a request's scope.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[Scope], int]) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope)
        detail = f"request body too large: the limit is {limit} bytes"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            await problem_response(413, detail)(scope, receive, send)
            return
        is_json = "json" in Headers(scope=scope).get("content-type", "").lower()
        received = parts = 0

        async def receive_counted() -> Message:
            nonlocal received, parts
            message = await receive()
            body = message.get("body", b"")
            received += len(body)
            if received > limit:
                raise HTTPException(413, detail)  # raised in the route that reads the body, so it becomes a problem response
            if is_json:
                parts += sum(map(body.count, (b":", b"[", b"{")))  # an upper bound: characters in strings count as well
            if parts > MAX_PARTS:
                raise HTTPException(422, f"request body too complex: the limit is {MAX_PARTS} fields, lists and objects")
            return message

        await self._app(scope, receive_counted, send)
