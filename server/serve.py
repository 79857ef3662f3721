"""Start Ray, the app and uvicorn for `cafe serve`, and close them in reverse order."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import click
import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from server.addresses import is_loopback
from server.app import create_app
from server.auth import keys
from server.http.graceful import GracefulServer
from server.listeners import bound_sockets
from server.ray.embedded import EmbeddedRay
from server.ray.keeper import restarting
from server.settings import Settings
from server.store.database import Database
from server.telemetry import logs, tracing
from server.telemetry.logs import secrets_of
from workers.client import RayClient

MAX_HEADER_BYTES = 64 << 10
"""Maximum size of a request's headers. h11's default of 16 KiB is too small for a list request with many labels."""


def run_server(settings: Settings, host: str, port: int, *, share_port: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then stop the local Ray if one was started.

    share_port: allow other servers of the same user to listen on the port, so that a new server can replace an old one without
    downtime.

    Raises click.UsageError if the host is not loopback and there are no API keys, if the port is shared but Ray is local, if
    Ray's token is missing, and if the dataset root overlaps the data directory; CannotListenError; NewerDatabaseError;
    click.ClickException if the database does not respond.
    """
    try:
        settings.check_dataset_root()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    tempfile.tempdir = str(_create(settings.data_dir.absolute() / "spool"))
    has_keys = _has_keys(settings)  # before Ray is started, because the database may be unusable
    if not is_loopback(host) and not has_keys:
        raise click.UsageError(
            f"--host {host} is not loopback and this server has no API keys; create one first, with the same data directory or "
            "CAFE_DATABASE_URL: cafe keys create NAME --scope admin"
        )
    if settings.ray_address is not None and settings.ray_token is None:
        raise click.UsageError(
            "--ray-address needs Ray's token: start that Ray with RAY_AUTH_MODE=token and set RAY_AUTH_TOKEN_PATH or "
            "RAY_AUTH_TOKEN here. Without a token, anyone who can reach Ray can run code on its machines"
        )
    if share_port and settings.ray_address is None:
        raise click.UsageError("--share-port needs --ray-address: a local Ray and its jobs would stop with one of the servers")
    with contextlib.suppress(KeyboardInterrupt), _terminated_as_interrupted(), contextlib.ExitStack() as stack:
        sockets = bound_sockets(host, port, share=share_port)  # before Ray is started, which takes long
        for bound in sockets:
            stack.callback(bound.close)
        address = settings.ray_address
        token = settings.ray_token.get_secret_value() if settings.ray_token else None
        if address is None:
            click.echo("starting a local Ray …", err=True)
            ray = stack.enter_context(EmbeddedRay(num_cpus=settings.num_cpus))
            stack.enter_context(restarting(ray))
            address, token = ray.address, ray.token
            click.echo(f"Ray's dashboard: {address} (token in {ray.token_file})", err=True)
        logs.configure(settings.log_format, [*secrets_of(settings), *filter(None, [token])])
        tracing.configure(os.environ)
        app = create_app(settings, RayClient(address, token))
        config = uvicorn_config(app, host=host, port=port)
        server = GracefulServer(config, on_shutdown=lambda: app.state.services.close())
        server.run(sockets)
        if not server.started:
            raise SystemExit(3)  # as uvicorn.run does


def uvicorn_config(app: FastAPI, *, host: str = "127.0.0.1", port: int) -> uvicorn.Config:
    """Return uvicorn's configuration. A reverse proxy must handle slow clients and limit the number of connections."""
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


def _create(spool: Path) -> Path:
    """Create the directory of incomplete uploads. It is on the disk of the data directory: /tmp may be small, or in memory."""
    spool.mkdir(parents=True, exist_ok=True)
    return spool


def _has_keys(settings: Settings) -> bool:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    try:
        database.migrate()
        with database.read() as session:
            return bool(keys.all_of(session))
    except SQLAlchemyError as error:
        raise click.ClickException(f"the database does not respond: {str(error).splitlines()[0]}") from error
    finally:
        database.close()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM inside the block, so that everything started is stopped.

    Also handles the signal that uvicorn raises again after it has stopped.
    """

    def interrupt(_number: int, _frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
