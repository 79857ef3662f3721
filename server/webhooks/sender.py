"""Send webhooks, at least once each, as Standard Webhooks (https://www.standardwebhooks.com).

Pending deliveries are in the table `deliveries` (:mod:`server.store.deliveries`). One server at a time sends them. URLs come from
users and are not trusted: the sender connects to public addresses only (:mod:`server.webhooks.public_addresses`), does not follow
redirects, does not read response bodies, and ends a try after TIMEOUT_S. Owners take turns (:mod:`server.http.fair_turns`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import httpcore
import httpx
from sqlalchemy.exc import SQLAlchemyError

from server.errors import RefusedSpecError
from server.http.fair_turns import Turns
from server.settings import Settings
from server.store import deliveries, jobs
from server.store.database import Database
from server.store.deliveries import Due
from server.webhooks.public_addresses import PrivateAddressError, PublicNetwork

log = logging.getLogger(__name__)

POLL_EVERY_S = 1.0
MAX_CONCURRENT = 8
"""The number of concurrent tries."""
MAX_PER_OWNER = 2
"""Concurrent tries per API key, so that receivers that do not answer delay only their owner's webhooks."""
TIMEOUT_S = 15.0
CONNECT_S = 5.0
SECRET_FILE = "webhook-secret"
GONE = 410
"""The status with which a receiver refuses all further tries."""


@dataclass(frozen=True)
class _Message:
    """A message to send."""

    id: str
    job_id: str
    url: str
    body: bytes
    secret: str


@dataclass(frozen=True)
class _Outcome:
    """The outcome of a try; error is None if the receiver accepted the message."""

    error: str | None
    final: bool = False
    retry_after_s: float | None = None


def check_url(url: str | None, settings: Settings) -> None:
    """Raise RefusedSpecError for a webhook URL that this server would never send to."""
    if url is not None and not url.startswith("https:") and not settings.webhook_allow_private:
        raise RefusedSpecError.of("webhook", "must be an https URL; this server does not send to http URLs")


def signing_secret(settings: Settings, key_id: str | None) -> str:
    """Return the secret (`whsec_…`) that signs the webhooks of an API key's jobs; key_id None: of jobs without an owner."""
    derived = hmac.digest(_server_secret(settings), (key_id or "").encode(), "sha256")
    return "whsec_" + base64.b64encode(derived).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of the header `webhook-signature`."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def _server_secret(settings: Settings) -> bytes:
    """Return the configured secret, or create one. It is linked into place atomically, so concurrent servers agree on one."""
    if settings.webhook_secret is not None:
        return settings.webhook_secret.get_secret_value().encode()
    path = settings.data_dir / SECRET_FILE
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{SECRET_FILE}.{secrets.token_hex(6)}")
    try:
        _write_private(beside, secrets.token_urlsafe(32).encode())
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path.read_bytes()


def _write_private(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123 - Path.open has no mode
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class WebhookSender:
    """Send due webhooks while :meth:`run` is running."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._turns = Turns(MAX_CONCURRENT, MAX_PER_OWNER)
        self._tries: dict[str, asyncio.Task[None]] = {}
        self._settled = asyncio.Event()
        """Set when a try has ended, so that another may start."""
        self._http: httpcore.AsyncConnectionPool | None = None

    async def run(self) -> None:
        """Send webhooks until cancelled. The next sender repeats the tries that the cancellation interrupts."""
        try:
            while True:
                self._settled.clear()
                try:
                    await self._begin_due()
                except SQLAlchemyError:
                    log.exception("cannot look for due webhooks; retrying in %g s", POLL_EVERY_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_EVERY_S):  # not wait_for, which may lose a cancellation
                        await self._settled.wait()
        finally:
            tasks = list(self._tries.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            http, self._http = self._http, None
            if http is not None:
                await http.aclose()

    async def _begin_due(self) -> None:
        if self._turns.free_slots() == 0:
            return
        due = await asyncio.to_thread(self._due, set(self._tries))
        if not due:
            return
        if self._http is None:  # created for the first webhook: loading certificates would slow down startup
            self._http = await self._connections()
        http = self._http
        for this in self._turns.begin(due):
            self._tries[this.id] = asyncio.create_task(self._send(http, this), name=f"webhook {this.id}")

    async def _connections(self) -> httpcore.AsyncConnectionPool:
        tls = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
        network = PublicNetwork(allow_private=self._settings.webhook_allow_private)
        return httpcore.AsyncConnectionPool(
            ssl_context=tls, network_backend=network, max_connections=MAX_CONCURRENT, max_keepalive_connections=0
        )

    async def _send(self, http: httpcore.AsyncConnectionPool, due: Due) -> None:
        try:
            outcome = await self._try(http, due.id)
            if outcome is not None:
                await asyncio.to_thread(self._settle, due.id, outcome)
            self._settled.set()
        except SQLAlchemyError:
            log.exception("webhook %s: the database failed; the try will be repeated", due.id)
        finally:
            self._turns.end(due)
            del self._tries[due.id]

    async def _try(self, http: httpcore.AsyncConnectionPool, delivery_id: str) -> _Outcome | None:
        """Try to send once. Return the outcome, or None if there is nothing left to send. Raises SQLAlchemyError."""
        try:
            this = await asyncio.to_thread(self._begin_try, delivery_id)
            outcome = await post(http, this) if this is not None else None
        except SQLAlchemyError:
            raise
        # An unexpected error counts as a failed try, so that it is not repeated forever: an unreadable signing secret, a broken
        # TLS record (httpcore passes that SSLError through), a bug.
        except Exception as error:
            log.exception("webhook %s: unexpected error", delivery_id)
            return _Outcome(type(error).__name__)
        if this is not None and outcome is not None and outcome.error is not None:
            log.warning("webhook %s of job %s: %s", this.id, this.job_id, outcome.error)
        return outcome

    # The methods below block, so they are called in threads.

    def _due(self, exclude: set[str]) -> list[Due]:
        with self._database.read() as session:
            return deliveries.due(session, MAX_PER_OWNER, exclude)

    def _begin_try(self, delivery_id: str) -> _Message | None:
        with self._database.write() as session:
            delivery = deliveries.begin_try(session, delivery_id)
            if delivery is None:
                return None
            owner = jobs.get(session, delivery.job_id).owner
        secret = signing_secret(self._settings, owner)  # may write a file, so do it outside of the transaction
        return _Message(delivery.id, delivery.job_id, delivery.url, delivery.body.encode(), secret)

    def _settle(self, delivery_id: str, outcome: _Outcome) -> None:
        with self._database.write() as session:
            deliveries.settle(session, delivery_id, outcome.error, final=outcome.final, retry_after_s=outcome.retry_after_s)


async def post(http: httpcore.AsyncConnectionPool, this: _Message) -> _Outcome:
    """Send a message once and return the outcome."""
    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "cafe-webhooks/1",
        "connection": "close",
        "content-length": str(len(this.body)),
        "webhook-id": this.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(this.secret, this.id, timestamp, this.body),
    }
    # httpcore requires a Host header; it contains the name, not the address.
    url = httpx.URL(this.url)
    headers = {"host": url.netloc.decode("ascii"), **headers}
    timeouts = {"connect": CONNECT_S, "read": TIMEOUT_S, "write": TIMEOUT_S, "pool": TIMEOUT_S}
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            http.stream(
                "POST", this.url, headers=list(headers.items()), content=this.body, extensions={"timeout": timeouts}
            ) as response,
        ):
            return _judge(response.status, dict(response.headers).get(b"retry-after"))
    except PrivateAddressError as error:
        return _Outcome(str(error))
    except TimeoutError:
        return _Outcome(f"no answer within {TIMEOUT_S:g} s")
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol) as error:
        return _Outcome(f"{type(error).__name__}: {error}")


def _judge(status: int, retry_after: bytes | None) -> _Outcome:
    if 200 <= status < 300:
        return _Outcome(None)
    seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() and len(retry_after) < 9 else None
    return _Outcome(f"answered {status}", final=status == GONE, retry_after_s=seconds)
