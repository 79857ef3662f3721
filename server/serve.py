"""Wires `cafe serve`: Ray, the app, uvicorn; and closes them in the order in which they depend on each other."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import click
import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from server.app import create_app
from server.auth import keys
from server.auth.access import is_loopback
from server.http.graceful import GracefulServer
from server.ray.embedded import EmbeddedRay
from server.ray.keeper import restarting
from server.settings import Settings
from server.store.database import Database
from server.telemetry import logs, tracing
from server.telemetry.logs import secrets_of
from workers.client import RayClient

MAX_HEADER_BYTES = 64 << 10
"""Maximum size of a request's headers. h11's default, 16 KiB, is less than a listing with many labels may need."""


def run_server(settings: Settings, host: str, port: int, *, share_port: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. A local Ray, where one was started, ends afterwards.

    share_port: let the same user's other servers listen on the port as well. One that is started so before the other is
    stopped takes over without a moment in which nobody listens.

    Raises click.UsageError for a host that others reach while there is no API key, for a port shared while each server
    would have a Ray of its own, for one that cannot be listened on, for another Ray without its token, and for a dataset
    root that shows what others keep; NewerDatabaseError; click.ClickException when the database does not answer.
    """
    try:
        settings.check_dataset_root()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    tempfile.tempdir = str(_made(settings.data_dir.absolute() / "spool"))
    has_keys = _has_keys(settings)  # before a Ray is started: it may be that the database cannot be used
    if not is_loopback(host) and not has_keys:
        raise click.UsageError(
            f"--host {host} is reached from outside, and this server has no API keys. Make one first, with the same data "
            "directory or CAFE_DATABASE_URL: cafe keys create NAME --scope admin"
        )
    if settings.ray_address is not None and settings.ray_token is None:
        raise click.UsageError(
            "--ray-address needs Ray's token: start that Ray with RAY_AUTH_MODE=token, since who reaches it without runs what "
            "they like on its machines, and say RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN here, too"
        )
    if share_port and settings.ray_address is None:
        raise click.UsageError("--share-port needs --ray-address: a local Ray, and its jobs, would end with one of the servers")
    with contextlib.suppress(KeyboardInterrupt), _terminated_as_interrupted(), contextlib.ExitStack() as stack:
        address = settings.ray_address
        token = settings.ray_token.get_secret_value() if settings.ray_token else None
        if address is None:
            click.echo("starting a local Ray …", err=True)
            ray = stack.enter_context(EmbeddedRay(num_cpus=settings.num_cpus))
            stack.enter_context(restarting(ray))
            address, token = ray.address, ray.token
            click.echo(f"Ray's dashboard: {address} (it asks for the token in {ray.token_file})", err=True)
        logs.configure(settings.log_format, [*secrets_of(settings), *filter(None, [token])])
        tracing.configure(os.environ)
        app = create_app(settings, RayClient(address, token))
        config = uvicorn_config(app, host=host, port=port)
        server = GracefulServer(config, on_shutdown=lambda: app.state.services.close())
        server.run([_shared(host, port)] if share_port else None)
        if not server.started:
            raise SystemExit(3)  # as uvicorn.run does


def uvicorn_config(app: FastAPI, *, host: str = "127.0.0.1", port: int) -> uvicorn.Config:
    """Return how uvicorn serves `app`. Slow clients and too many connections are for a reverse proxy to bound."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )


def _made(spool: Path) -> Path:
    """Where uploads lie until they are whole: on the disk that is to take them. /tmp may be small, or memory (in containers)."""
    spool.mkdir(parents=True, exist_ok=True)
    return spool


def _shared(host: str, port: int) -> socket.socket:
    """Bound, and not listened on yet: uvicorn does so when the app is ready, and until then others get the connections."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        raise click.UsageError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
    return listener


def _has_keys(settings: Settings) -> bool:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    try:
        database.migrate()
        with database.read() as session:
            return bool(keys.all_of(session))
    except SQLAlchemyError as error:
        raise click.ClickException(f"the database does not answer: {str(error).splitlines()[0]}") from error
    finally:
        database.close()


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
