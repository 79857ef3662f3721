"""A uvicorn server that tells the app when shutdown begins, so that endless responses do not delay it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn


class GracefulServer(uvicorn.Server):
    """Serve like `uvicorn.Server(config)`, and call `on_shutdown` before waiting for responses in progress."""

    def __init__(self, config: uvicorn.Config, on_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_shutdown = on_shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and log the address also if the sockets are given."""
        await super().startup(sockets)
        if sockets:
            self._log_started_message(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End long polls and event streams first, then wait for the other responses in progress."""
        self._on_shutdown()
        await super().shutdown(sockets)
