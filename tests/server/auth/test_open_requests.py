"""Limits of a key's open requests: event streams and long polls, and plain requests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

import server.auth.open_requests
import server.routes.jobs
from server.auth.keys import KeyLimits, Scope
from server.settings import Settings
from tests.server.conftest import FakeRay, running
from tests.server.keyed import add_key, client_of, statuses

STREAM = {"Accept": "text/event-stream"}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stream_limit_does_not_block_plain_requests(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.auth.open_requests, "MAX_LONG_LIVED", 2)
    key, other = (add_key(settings, Scope.WRITE) for _ in range(2))
    with running(settings, ray) as api, client_of(api, key) as client, client_of(api, other) as another, ExitStack() as streams:
        job, others = (f"/v1/jobs/{each.make()['id']}" for each in (client, another))
        first, second = (streams.enter_context(ExitStack()) for _ in range(2))
        for each in (first, second):
            each.enter_context(client.stream("GET", f"{job}/events", headers=STREAM))
        refused = [client.get(f"{job}/events", headers=STREAM), client.get(job, params={"wait": 5})]
        assert [(answer.status_code, answer.headers["Retry-After"]) for answer in refused] == [(429, "5")] * 2
        assert statuses([client.get(job), client.get(f"{job}/events"), client.post(f"{job}/cancel")]) == [200, 200, 202]
        assert another.get(others, params={"wait": 0.1}).status_code == 200
        first.close()
        until(lambda: client.get(job, params={"wait": 0.1}).status_code == 200)  # the server learns of it a moment later


def test_limits_concurrent_plain_requests_per_key(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.auth.open_requests, "MAX_PLAIN", 2)
    asked, may_answer = threading.Semaphore(0), threading.Event()

    def slow(*_: Any, **__: Any) -> tuple[list[Any], None]:
        asked.release()
        assert may_answer.wait(20)
        return [], None

    key, other = (add_key(settings, Scope.WRITE) for _ in range(2))
    with (
        running(settings, ray) as api,
        client_of(api, key) as client,
        client_of(api, other) as another,
        ThreadPoolExecutor(2) as pool,
    ):
        job, others = (f"/v1/jobs/{each.make()['id']}" for each in (client, another))
        monkeypatch.setattr(server.routes.jobs.listing, "page", slow)
        listings = [pool.submit(client.get, "/v1/jobs") for _ in range(2)]
        try:
            assert asked.acquire(timeout=20)
            assert asked.acquire(timeout=20)
            refused = client.get(job)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
            assert another.get(others).status_code == 200
        finally:
            may_answer.set()
        assert statuses([listing.result() for listing in listings]) == [200, 200]
        until(lambda: client.get(job).status_code == 200)


def test_key_with_maximum_streams_can_send_plain_requests(settings: Settings, ray: FakeRay) -> None:
    key = add_key(settings, Scope.WRITE, limits=KeyLimits(requests_per_minute=10_000))
    with running(settings, ray) as api, client_of(api, key) as client, ThreadPoolExecutor(16) as pool, ExitStack() as streams:
        job = f"/v1/jobs/{client.make()['id']}"
        until(lambda: ray.submissions != [])
        asking = (
            f"GET {job}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nAccept: text/event-stream\r\n\r\n"
        )

        def opened(_: int) -> socket.socket:
            stream = socket.create_connection(("127.0.0.1", api.base_url.port or 0), timeout=60)
            stream.sendall(asking.encode())
            assert stream.recv(64).startswith(b"HTTP/1.1 200 ")
            return stream

        for stream in pool.map(opened, range(server.auth.open_requests.MAX_LONG_LIVED)):
            streams.callback(stream.close)
        assert statuses([client.get(job), client.get("/v1/jobs"), client.get(job, params={"wait": 1})]) == [200, 200, 429]
        assert client.post(f"{job}/cancel").status_code == 202
