"""No body larger than its route takes is read to its end, whatever its headers say: 413 instead (ASGI middleware).

Nor one of JSON with more fields, lists and objects than a spec needs: 422. Reading them holds the event loop, and so every other
request; most of all where each is an error, as unknown fields are.
"""

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
MAX_PARTS = 10_000
"""Fields, lists and objects of a JSON body. Numbers and texts in lists need none: each list of a spec has its own."""


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
        is_json = "json" in Headers(scope=scope).get("content-type", "").lower()
        received = parts = 0

        async def receive_counted() -> Message:
            nonlocal received, parts
            message = await receive()
            body = message.get("body", b"")
            received += len(body)
            if received > limit:
                raise HTTPException(413, detail)  # an error like any other to the route that reads, so a problem
            if is_json:
                parts += sum(map(body.count, (b":", b"[", b"{")))  # those in texts as well: there are no more than that
            if parts > MAX_PARTS:
                raise HTTPException(422, f"the request's body has more than {MAX_PARTS} fields, lists and objects")
            return message

        await self._app(scope, receive_counted, send)
