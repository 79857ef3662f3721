"""`python -m tests.server.served DATA_DIR [FIELD=VALUE…]`: serve the API of a data directory in its own process, over a FakeRay.

Prints the port it listens on. uvicorn is configured as `cafe serve` configures it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from server.app import create_app
from server.serve import uvicorn_config
from server.settings import Settings
from tests.server.conftest import FakeRay


class Telling(uvicorn.Server):
    """Print the port once the server listens."""

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


def configured(arguments: list[str]) -> uvicorn.Config:
    """Return uvicorn's configuration; arguments: the command line's."""
    fields = dict(field.split("=", 1) for field in arguments[1:])
    settings = Settings.load({}, data_dir=Path(arguments[0]), **fields)
    return uvicorn_config(create_app(settings, FakeRay()), port=0)


if __name__ == "__main__":
    Telling(configured(sys.argv[1:])).run()  # until SIGTERM
