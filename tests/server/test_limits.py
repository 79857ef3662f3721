"""What one API key may take: requests a minute, waiting jobs, the size of an upload, bytes in all."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest

import server.open_requests
import server.routes.jobs
from server.errors import TooManyRequestsError
from server.keys import KeyLimits, Scope
from server.limits import Buckets, Limits
from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.keyed import add_key, client_of, statuses


def npz(seed: int = 0) -> bytes:
    """A dataset of two classes; about 10 kB."""
    buffer = io.BytesIO()
    images = np.random.default_rng(seed).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(buffer, images=images, labels=np.arange(40) % 2)
    return buffer.getvalue()


def upload(client: Api, content: bytes) -> httpx.Response:
    return client.post("/v1/datasets", files={"file": ("made.npz", content)})


def test_a_bucket_gives_what_a_minute_brings() -> None:
    now = [0.0]
    buckets = Buckets(lambda: now[0])
    for _ in range(3):
        buckets.take("a", 3)
    with pytest.raises(TooManyRequestsError) as refused:
        buckets.take("a", 3)
    assert refused.value.headers == {"Retry-After": "20"}
    buckets.take("b", 3)  # another key's is its own
    now[0] = 19.9
    with pytest.raises(TooManyRequestsError):
        buckets.take("a", 3)
    now[0] = 20.1
    buckets.take("a", 3)
    now[0] = 3600.0
    for _ in range(3):
        buckets.take("a", 3)
    with pytest.raises(TooManyRequestsError):
        buckets.take("a", 3)


def test_a_keys_own_limits_win() -> None:
    settings = Settings(requests_per_minute=7, max_stored_bytes=9)
    assert Limits.of(KeyLimits(max_stored_bytes=3), settings) == Limits(7, 1000, settings.max_upload_bytes, 3)


def test_requests_beyond_a_minutes_are_told_when_to_come_again(settings: Settings, ray: FakeRay) -> None:
    key, other = (add_key(settings, Scope.READ, limits=KeyLimits(requests_per_minute=5)) for _ in range(2))
    with running(settings, ray) as api, client_of(api, key) as client, client_of(api, other) as another:
        answers = [client.get("/v1/jobs") for _ in range(7)]
        assert statuses(answers) == [200] * 5 + [429] * 2
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 12
        assert another.get("/v1/jobs").status_code == 200
        assert statuses([api.get("/readyz") for _ in range(8)]) == [200] * 8


STREAM = {"Accept": "text/event-stream"}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_key_keeps_as_many_streams_open_as_it_may_and_asks_besides(
    settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.open_requests, "MAX_LASTING", 2)
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


def test_a_key_has_as_many_plain_requests_answered_at_a_time_as_it_may(
    settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.open_requests, "MAX_PLAIN", 2)
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
        monkeypatch.setattr(server.routes.jobs.jobs, "page", slow)
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


def test_a_key_with_five_hundred_open_streams_can_still_ask(settings: Settings, ray: FakeRay) -> None:
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

        for stream in pool.map(opened, range(server.open_requests.MAX_LASTING)):
            streams.callback(stream.close)
        assert statuses([client.get(job), client.get("/v1/jobs"), client.get(job, params={"wait": 1})]) == [200, 200, 429]
        assert client.post(f"{job}/cancel").status_code == 202


def test_of_many_jobs_at_once_as_many_are_queued_as_may_be(settings: Settings, ray: FakeRay) -> None:
    settings = settings.model_copy(update={"max_queued_jobs": 3, "max_active_jobs": 1})
    ray.down = True  # all stay queued, but for the one that is being submitted
    key = add_key(settings, Scope.WRITE)
    with running(settings, ray) as api, client_of(api, key) as client, ThreadPoolExecutor(8) as pool:
        ray.down = False
        assert client.get("/v1/cluster").status_code == 200  # its size is known now
        ray.down = True
        answers = list(pool.map(lambda _: client.post("/v1/jobs", json=SPEC), range(16)))
        queued = client.get("/v1/jobs", params={"status": "queued"}).json()["data"]
        assert len(queued) == 3
        refused = [answer for answer in answers if answer.status_code != 201]
        assert len(refused) in (12, 13)
        assert all(answer.status_code == 429 and answer.headers["Retry-After"] == "30" for answer in refused)


def test_an_upload_larger_than_the_key_may_send_is_refused(settings: Settings, ray: FakeRay) -> None:
    content = npz()
    small, enough = (
        add_key(settings, Scope.WRITE, limits=KeyLimits(max_upload_bytes=size)) for size in (len(content) - 1, len(content))
    )
    with running(settings, ray) as api, client_of(api, small) as refused, client_of(api, enough) as taken:
        assert upload(refused, content).status_code == 413
        assert refused.post("/v1/datasets", files={"file": ("made.npz", bytes(200_000))}).status_code == 413  # before it is read
        assert upload(taken, content).status_code == 201
    assert len(list(settings.roots.uploads.glob("ds_*"))) == 1


def test_a_keys_upload_may_be_larger_than_the_servers_limit(settings: Settings, ray: FakeRay) -> None:
    settings = settings.model_copy(update={"max_upload_bytes": 1000})
    content = npz()
    assert len(content) > settings.max_upload_bytes
    key = add_key(settings, Scope.WRITE, limits=KeyLimits(max_upload_bytes=10_000_000))
    others = add_key(settings, Scope.WRITE)
    with running(settings, ray) as api, client_of(api, key) as client, client_of(api, others) as other:
        assert upload(client, content).status_code == 201
        assert upload(other, content).status_code == 413


def test_of_uploads_at_once_as_many_are_kept_as_there_is_room_for(settings: Settings, ray: FakeRay) -> None:
    content = npz()
    key = add_key(settings, Scope.WRITE, limits=KeyLimits(max_stored_bytes=2 * len(content) + 10))
    with running(settings, ray) as api, client_of(api, key) as client, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: upload(client, content), range(6)))
        assert sorted(statuses(answers)) == [201, 201, 413, 413, 413, 413]
        assert len(list(settings.roots.uploads.glob("ds_*"))) == 2
        stored = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        assert client.post("/v1/jobs", json=SPEC).status_code == 201  # there is some room left
        assert client.delete(f"/v1/datasets/{stored[0]}").status_code == 204
        assert upload(client, content).status_code == 201


def test_a_job_is_resumed_within_its_owners_limits_whoever_asks(settings: Settings, ray: FakeRay) -> None:
    content = npz()
    full = add_key(settings, Scope.WRITE, limits=KeyLimits(max_stored_bytes=len(content)))
    roomy = add_key(settings, Scope.WRITE)
    operator = add_key(settings, Scope.ADMIN, limits=KeyLimits(max_stored_bytes=1))
    with ExitStack() as stack:
        api = stack.enter_context(running(settings, ray))
        full_client, roomy_client, admin = (stack.enter_context(client_of(api, key)) for key in (full, roomy, operator))
        assert upload(roomy_client, content).status_code == 201
        resumed = [f"/v1/jobs/{client.make()['id']}" for client in (full_client, roomy_client)]
        for job in resumed:
            admin.post(f"{job}/cancel")
            admin.await_status(job.rpartition("/")[2], "cancelled")
        assert upload(full_client, content).status_code == 201
        assert statuses([admin.post(f"{job}/resume") for job in resumed]) == [413, 202]


def test_a_key_that_has_filled_its_room_starts_no_jobs(settings: Settings, ray: FakeRay) -> None:
    content = npz()
    key = add_key(settings, Scope.WRITE, limits=KeyLimits(max_stored_bytes=len(content)))
    with running(settings, ray) as api, client_of(api, key) as client:
        assert upload(client, content).status_code == 201
        refused = client.post("/v1/jobs", json=SPEC)
        assert refused.status_code == 413
        assert "delete datasets or jobs" in refused.json()["detail"]
