"""Connections that a client cannot keep without asking anything: uvicorn bounds the pause between requests, this the headers."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 20.0
"""From the connection, or the first byte of a further request, to the end of the headers."""
MAX_HEADER_BYTES = 64 << 10
MAX_CONNECTIONS = 2000
"""Of one server; more are answered 503. An event stream keeps one, and a long poll."""
KEEP_ALIVE_S = 15
BACKLOG = 1024


class BoundedConnection(H11Protocol):
    """Closes a connection whose request's headers do not arrive within `HEADERS_S`."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._answering():
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEADERS_S, self._late)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _late(self) -> None:
        self._waiting = None
        if not self._answering():
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
