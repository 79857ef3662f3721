"""uvicorn, telling the app that it begins to stop: answers without an end would hold it up."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from server.deps import Services


class GracefulServer(uvicorn.Server):
    """Serves `app` as `uvicorn.Server(config)` does."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._served = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for answers in progress; those that wait for a change, or stream changes, are ended first."""
        services: Services = self._served.state.services
        services.close()
        await super().shutdown(sockets)
