"""`python -m tests.server.served DATA_DIR [FIELD=VALUE…]`: the API of a data directory as a process of its own, over a FakeRay.

Prints the port it listens on. As `cafe serve` runs it, but for Ray: with the same protocol and the same bounds on connections.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvicorn

from server.app import create_app
from server.http import connections
from server.http.connections import BACKLOG, KEEP_ALIVE_S, MAX_CONNECTIONS, MAX_HEADER_BYTES, BoundedConnection
from server.settings import Settings
from tests.server.conftest import FakeRay


class Telling(uvicorn.Server):
    """Prints its port when it listens."""

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


def configured(arguments: list[str]) -> uvicorn.Config:
    """arguments: the command line's."""
    connections.HEADERS_S = float(os.environ.get("TEST_HEADERS_S", connections.HEADERS_S))
    fields = dict(field.split("=", 1) for field in arguments[1:])
    settings = Settings.load({}, data_dir=Path(arguments[0]), **fields)
    return uvicorn.Config(
        create_app(settings, FakeRay()),
        port=0,
        http=BoundedConnection,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    Telling(configured(sys.argv[1:])).run()  # until SIGTERM
