from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select

import server.store.deliveries
import server.webhooks.public_addresses
import server.webhooks.sender
from server.auth.keys import Scope
from server.http.fair_turns import Turns
from server.settings import Settings
from server.store.database import Database
from server.store.deliveries import Due
from server.store.models import Delivery
from server.webhooks.sender import WebhookSender, signing_secret
from tests.server.conftest import Api, FakeRay, running
from tests.server.keyed import add_key, client_of
from tests.server.webhooks.receiver import receiving


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", webhook_allow_private=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.webhooks.sender, "POLL_EVERY_S", 0.05)
    monkeypatch.setattr(server.store.deliveries, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(server.store.deliveries, "WAIT_FACTOR", 1.0)


def ended(api: Api, url: str) -> dict[str, Any]:
    """Create a job with this webhook and cancel it."""
    job_id = api.make(webhook=url)["id"]
    api.post(f"/v1/jobs/{job_id}/cancel")
    return api.await_status(job_id, "cancelled")


def verify(settings: Settings, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """Verify a message like a receiver does according to the standard."""
    key = base64.b64decode(signing_secret(settings, None).removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"].split(",") == ["v1", expected]
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    content: dict[str, Any] = json.loads(body)
    return content


def test_sends_webhook_when_a_job_ends(api: Api, settings: Settings) -> None:
    with receiving() as receiver:
        job = ended(api, receiver.url)
        receiver.await_tries(1)
        time.sleep(0.5)
        assert len(receiver.received) == 1  # not sent again once accepted
    headers, body = receiver.received[0]
    content = verify(settings, headers, body)
    assert headers["content-type"] == "application/json"
    assert content["type"] == "job.cancelled"
    assert content["data"] == job


def test_sends_webhook_again_after_a_resume(api: Api) -> None:
    with receiving() as receiver:
        job = ended(api, receiver.url)
        receiver.await_tries(1)
        api.post(f"/v1/jobs/{job['id']}/resume")
        api.post(f"/v1/jobs/{job['id']}/cancel")
        receiver.await_tries(2)
    first, second = receiver.received
    assert first[0]["webhook-id"] != second[0]["webhook-id"]
    assert json.loads(second[1])["data"]["attempt"] == 2


def test_documented_verification_accepts_only_genuine_messages(api: Api, settings: Settings) -> None:
    text = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text(encoding="utf-8")
    documented: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], documented)
    check = documented["verify"]
    with receiving() as receiver:
        ended(api, receiver.url)
        receiver.await_tries(1)
    headers, body = receiver.received[0]
    secret = signing_secret(settings, None)
    check(secret, headers, body)
    for wrong in (
        (signing_secret(settings, "key_other"), headers, body),
        (secret, headers, body + b" "),
        (secret, headers | {"webhook-id": "msg_other"}, body),
        (secret, headers | {"webhook-timestamp": "1"}, body),
    ):
        with pytest.raises(ValueError, match=r"too old|wrong"):
            check(*wrong)


@pytest.mark.parametrize("failure", [500, 404, 302, 307])
def test_failed_try_is_repeated_with_the_same_id(api: Api, settings: Settings, failure: int) -> None:
    with receiving(failure, failure, 200) as receiver:
        ended(api, receiver.url)
        receiver.await_tries(3)
        time.sleep(0.3)
    assert len(receiver.received) == 3  # no redirect was followed
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    for headers, body in receiver.received:
        verify(settings, headers, body)


def test_status_410_ends_the_tries(api: Api) -> None:
    with receiving(410) as receiver:
        ended(api, receiver.url)
        receiver.await_tries(1)
        time.sleep(0.5)
        assert len(receiver.received) == 1


def test_gives_up_after_a_day(api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(500) as receiver:
        job_id = ended(api, receiver.url)["id"]
        receiver.await_tries(2)
        monkeypatch.setattr(server.store.deliveries, "GIVE_UP_AFTER", timedelta(0))
        given_up = await_delivery(settings, job_id, lambda delivery: delivery.next_try_at is None)
        assert given_up.delivered_at is None
        tries = len(receiver.received)
        time.sleep(0.5)
        assert len(receiver.received) == tries


def test_hanging_receiver_delays_no_other_receiver(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.webhooks.sender, "TIMEOUT_S", 1.0)
    with receiving("hang") as hanging, receiving() as receiver:
        ended(api, hanging.url)
        hanging.await_tries(1)
        ended(api, receiver.url)
        receiver.await_tries(1)
        hanging.await_tries(2)


def test_hanging_receivers_delay_no_other_owner(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.webhooks.sender, "TIMEOUT_S", 60.0)  # longer than the test waits for the other owner's
    slow_key, other_key = (add_key(settings, Scope.WRITE, name=name) for name in ("slow", "other"))
    with (
        receiving("hang") as hanging,
        receiving() as receiver,
        running(settings, ray) as api,
        client_of(api, slow_key) as slow,
        client_of(api, other_key) as other,
    ):
        for _ in range(server.webhooks.sender.MAX_CONCURRENT):
            ended(slow, hanging.url)
        hanging.await_tries(server.webhooks.sender.MAX_PER_OWNER)
        for _ in range(4):
            ended(other, receiver.url)
        receiver.await_tries(4)
        assert len(hanging.received) == server.webhooks.sender.MAX_PER_OWNER


def test_jobs_without_key_count_as_one_owner(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.webhooks.sender, "TIMEOUT_S", 60.0)
    with receiving("hang") as hanging:
        for _ in range(4):
            ended(api, hanging.url)
        hanging.await_tries(server.webhooks.sender.MAX_PER_OWNER)
        time.sleep(0.5)
        assert len(hanging.received) == server.webhooks.sender.MAX_PER_OWNER


def test_owners_take_turns() -> None:
    turns = Turns(max_running=3, per_owner=2)
    waiting = [Due(id=f"{owner or '-'}{number}", owner=owner) for owner in ("a", "b", None, "c") for number in range(4)]

    def begin() -> list[Due]:
        begun = turns.begin(waiting)
        for one in begun:
            waiting.remove(one)
        return begun

    begun = begin()
    assert [one.id for one in begun] == ["a0", "b0", "-0"]
    order = []
    while begun:
        turns.end(begun.pop(0))
        begun += (more := begin())
        order += [one.id for one in more]
    assert order == ["c0", "a1", "b1", "-1", "c1", "a2", "b2", "-2", "c2", "a3", "b3", "-3", "c3"]
    waiting += [Due(id=str(number), owner="a") for number in range(4)]
    assert [one.id for one in begin()] == ["0", "1"]  # not a third one, although no other owner waits


@pytest.mark.parametrize("loop_iterations", range(4))
def test_sender_stops_when_cancelled_as_a_try_ends(tmp_path: Path, loop_iterations: int) -> None:
    """asyncio.wait_for in Python 3.11 loses a cancellation that arrives together with the event it waits for."""
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.database)
    database.migrate()

    async def stopped() -> bool:
        sender = WebhookSender(database, settings)
        sending = asyncio.create_task(sender.run())
        await asyncio.sleep(0.5)  # nothing is due, so it waits
        sender._settled.set()
        for _ in range(loop_iterations):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending], timeout=5)
        ended = sending.cancelled()
        sending.cancel()
        return ended

    try:
        assert asyncio.run(stopped())
    finally:
        database.close()


@dataclass
class Broken:
    """A receiver that sends a broken TLS record."""

    url: str
    tries: int = 0


@contextmanager
def broken_tls(directory: Path) -> Iterator[tuple[Broken, ssl.SSLContext]]:
    """Yield the receiver and an SSL context that trusts its certificate."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate, key)

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            tls = own.wrap_socket(self.request, server_side=True, do_handshake_on_connect=True)
            tls.recv(65536)
            receiver.tries += 1
            bare = socket.socket(fileno=tls.detach())
            with bare:
                bare.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)  # a record that cannot be decrypted
                bare.recv(65536)

    server_ = ThreadingTCPServer(("127.0.0.1", 0), Handler)
    receiver = Broken(f"https://localhost:{server_.server_address[1]}/")
    thread = threading.Thread(target=server_.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver, ssl.create_default_context(cafile=certificate)
    finally:
        server_.shutdown()
        thread.join()
        server_.server_close()


def await_delivery(settings: Settings, job_id: str, condition: Callable[[Delivery], bool]) -> Delivery:
    """Wait until a condition on the job's delivery holds and return it."""
    database = Database(settings.database)
    deadline = time.monotonic() + 20
    try:
        while True:
            with database.read() as session:
                delivery = session.scalars(select(Delivery).where(Delivery.job_id == job_id)).one()
            if condition(delivery):
                return delivery
            assert time.monotonic() < deadline, f"{delivery.tries} tries, {delivery.error}"
            time.sleep(0.05)
    finally:
        database.close()


def test_unexpected_error_counts_as_a_failed_try(
    settings: Settings, ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with broken_tls(tmp_path) as (broken, trusting), receiving() as receiver:
        monkeypatch.setattr(httpx, "create_ssl_context", lambda **_: trusting)
        with running(settings, ray) as api:
            job_id = ended(api, broken.url)["id"]
            tried = await_delivery(settings, job_id, lambda delivery: delivery.tries >= 3)
            assert tried.error == "SSLError"
            assert broken.tries >= 3
            monkeypatch.setattr(server.store.deliveries, "GIVE_UP_AFTER", timedelta(0))
            given_up = await_delivery(settings, job_id, lambda delivery: delivery.next_try_at is None)
            assert given_up.delivered_at is None
            ended(api, receiver.url)  # other webhooks are still sent
            receiver.await_tries(1)
            assert api.get("/readyz").status_code == 200  # this server still leads
    logged = [record for record in caplog.records if record.name == "server.webhooks.sender" and record.exc_info]
    assert {(record.levelno, record.exc_info[0]) for record in logged if record.exc_info} == {(logging.ERROR, ssl.SSLError)}


def test_unreadable_secret_counts_as_a_failed_try(api: Api, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    (settings.data_dir / server.webhooks.sender.SECRET_FILE).mkdir()
    with receiving() as receiver:
        job_id = ended(api, receiver.url)["id"]
        tried = await_delivery(settings, job_id, lambda delivery: delivery.tries >= 2)
        assert (tried.error, receiver.received) == ("IsADirectoryError", [])
        assert any(record.exc_info and record.exc_info[0] is IsADirectoryError for record in caplog.records)
        (settings.data_dir / server.webhooks.sender.SECRET_FILE).rmdir()
        receiver.await_tries(1)


def test_response_body_is_not_read(api: Api) -> None:
    with receiving("flood") as receiver:
        ended(api, receiver.url)
        receiver.await_tries(1)
        assert receiver.released.wait(10)  # the connection was closed
        time.sleep(0.3)
        assert len(receiver.received) == 1


def test_tries_continue_after_a_restart(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        server.store.deliveries, "RESERVATION", timedelta(seconds=1)
    )  # the first server's end may interrupt a try
    with receiving(500, 500, 200) as receiver:
        with running(settings, ray) as api:
            ended(api, receiver.url)
            receiver.await_tries(1)
        with running(settings, ray):
            receiver.await_tries(3)
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com/", "https://user:secret@example.com/", "https://", "https://example.com/" + "x" * 2048, "example.com"],
)
def test_refuses_invalid_webhook_url(api: Api, url: str) -> None:
    refused = api.post("/v1/jobs", json={"dataset": {"name": "digits"}, "ipc": 1, "webhook": url})
    assert refused.status_code == 422
    assert [error["loc"] for error in refused.json()["errors"]] == ["webhook"]


def test_plain_http_needs_webhook_allow_private(tmp_path: Path, ray: FakeRay) -> None:
    with running(Settings(data_dir=tmp_path / "open"), ray) as api:
        spec = {"dataset": {"name": "digits"}, "ipc": 1, "iterations": 1}
        assert api.post("/v1/jobs", json=spec | {"webhook": "http://example.com/"}).status_code == 422
        assert api.post("/v1/jobs?dry_run=true", json=spec | {"webhook": "https://example.com/"}).status_code == 200


def test_each_key_has_its_own_secret(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    secrets = [signing_secret(settings, key_id) for key_id in (None, "key_a", "key_b")]
    assert len(set(secrets)) == 3
    assert all(len(base64.b64decode(secret.removeprefix("whsec_"))) == 32 for secret in secrets)
    assert stat.S_IMODE((tmp_path / server.webhooks.sender.SECRET_FILE).stat().st_mode) == 0o600
    assert [signing_secret(settings, key_id) for key_id in (None, "key_a", "key_b")] == secrets
    given = Settings(data_dir=tmp_path, webhook_secret=SecretStr("x" * 32))
    assert signing_secret(given, "key_a") != secrets[1]
