"""Wires `cafe serve`: Ray, the app, uvicorn; and closes them in the order in which they depend on each other."""

from __future__ import annotations

import contextlib
import signal
import types
from collections.abc import Iterator

import click
import uvicorn

from server.app import create_app
from server.embedded_ray import EmbeddedRay
from server.settings import Settings
from workers.client import RayClient


def run_server(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. A local Ray, where one was started, ends afterwards."""
    with contextlib.suppress(KeyboardInterrupt), _terminated_as_interrupted(), contextlib.ExitStack() as stack:
        address = settings.ray_address
        token = settings.ray_token.get_secret_value() if settings.ray_token else None
        if address is None:
            click.echo("starting a local Ray …", err=True)
            ray = stack.enter_context(EmbeddedRay(num_cpus=settings.num_cpus))
            address, token = ray.address, ray.token
            click.echo(f"Ray's dashboard: {address} (it asks for the token in {ray.token_file})", err=True)
        app = create_app(settings, RayClient(address, token))
        uvicorn.run(app, host=host, port=port, log_level="info", access_log=False, timeout_graceful_shutdown=5)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt within, so that what was started is ended.

    uvicorn raises the signal that stopped it once more when it has stopped: that ends here as well.
    """

    def interrupt(_number: int, _frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
