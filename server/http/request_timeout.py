"""Every request comes to an answer in bounded time, whatever its client does or what the answer waits for (ASGI middleware).

An answer that has begun is not bounded: streams and downloads take as long as they take. The body of an upload has a bound per
chunk and a least pace instead. Headers are bounded by :mod:`server.http.connections`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import problem_response

CHUNK_S = 30.0
"""How long the next piece of an upload may be awaited."""
GRACE_S = 60.0
LEAST_BYTES_PER_S = 4096
"""On average over an upload, after GRACE_S: a body that drips keeps its connection for no longer."""

log = logging.getLogger(__name__)


class RequestTimeout:
    """Answers 503 for what has not begun to answer after `timeout_s`, 408 for an upload whose body does not come on.

    is_upload: whether a request's body may take longer. What is given up ends by itself, unheard: a thread cannot be ended.
    """

    def __init__(self, app: ASGIApp, timeout_s: float, is_upload: Callable[[Scope], bool]) -> None:
        self._app = app
        self._timeout_s = timeout_s
        self._is_upload = is_upload
        self._given_up: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._is_upload(scope):
            await self._app(scope, _in_time(receive), send)
        else:
            await self._bounded(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, given_up = asyncio.Event(), False

        async def send_while_awaited(message: Message) -> None:
            if given_up:
                raise asyncio.CancelledError
            begun.set()
            await send(message)

        async def answer() -> None:
            await self._app(scope, receive, send_while_awaited)

        answering = asyncio.create_task(answer())
        beginning = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait((answering, beginning), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if begun.is_set() or answering.done():
                await answering
                return
            given_up = True
            self._give_up(answering)
            detail = f"no answer within {self._timeout_s:g} s; what was asked for may still be done"
            await problem_response(503, detail, headers={"Retry-After": "5"})(scope, receive, send)
        finally:
            beginning.cancel()
            if not given_up and not answering.done():  # the connection's end, or the server's
                answering.cancel()
                await asyncio.wait((answering,))

    def _give_up(self, answering: asyncio.Task[None]) -> None:
        self._given_up.add(answering)
        answering.add_done_callback(self._ended)
        answering.cancel()

    def _ended(self, answering: asyncio.Task[None]) -> None:
        self._given_up.discard(answering)
        if not answering.cancelled() and (error := answering.exception()) is not None:
            log.error("a request that was given up has failed", exc_info=error)


def _in_time(receive: Receive) -> Receive:
    """`receive` for a body that must come on. It raises an HTTPException, which the route that reads answers as a problem."""
    started, received, complete = monotonic(), 0, False

    async def receive_in_time() -> Message:
        nonlocal received, complete
        if complete:
            return await receive()  # waits for the client to leave, while the upload is checked
        due = started + GRACE_S + received / LEAST_BYTES_PER_S
        try:
            async with asyncio.timeout(min(CHUNK_S, due - monotonic())):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "the upload does not come on; send it again, faster", {"Connection": "close"}) from error
        received += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        return message

    return receive_in_time
