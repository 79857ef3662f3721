"""Limits of an API key: request rate, queued jobs, upload size, stored bytes."""

from __future__ import annotations

import contextlib
import io
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from server.auth.keys import KeyLimits, Scope
from server.auth.limits import Buckets, Limits
from server.client import Client, RefusedError
from server.client import connection as api_connection
from server.errors import TooManyRequestsError
from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.keyed import add_key, client_of, statuses


def npz(seed: int = 0) -> bytes:
    """Return a dataset with two classes, about 10 kB."""
    buffer = io.BytesIO()
    images = np.random.default_rng(seed).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(buffer, images=images, labels=np.arange(40) % 2)
    return buffer.getvalue()


def upload(client: Api, content: bytes) -> httpx.Response:
    return client.post("/v1/datasets", files={"file": ("made.npz", content)})


def test_token_bucket_refills_per_minute() -> None:
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


def test_limits_of_a_key_take_precedence() -> None:
    settings = Settings(requests_per_minute=7, max_stored_bytes=9)
    assert Limits.of(KeyLimits(max_stored_bytes=3), settings) == Limits(7, 1000, settings.max_upload_bytes, 3)


def test_rate_limited_request_gets_retry_after(settings: Settings, ray: FakeRay) -> None:
    key, other = (add_key(settings, Scope.READ, limits=KeyLimits(requests_per_minute=5)) for _ in range(2))
    with running(settings, ray) as api, client_of(api, key) as client, client_of(api, other) as another:
        answers = [client.get("/v1/jobs") for _ in range(7)]
        assert statuses(answers) == [200] * 5 + [429] * 2
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 12
        assert another.get("/v1/jobs").status_code == 200
        assert statuses([api.get("/readyz") for _ in range(8)]) == [200] * 8


def test_client_retries_after_429(settings: Settings, ray: FakeRay) -> None:
    key = add_key(settings, Scope.READ, limits=KeyLimits(requests_per_minute=60))
    with running(settings, ray) as api, contextlib.closing(Client(str(api.base_url), key)) as client:
        started = time.monotonic()
        answers = [client.jobs(None, None, (), 1) for _ in range(61)]
        assert answers == [[]] * 61
        assert time.monotonic() - started > 0.9  # after 60 at once there is one a second


def test_client_gives_up_after_its_patience(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_connection, "RETRY_FOR_S", 5.0)
    key = add_key(settings, Scope.READ, limits=KeyLimits(requests_per_minute=1))
    with running(settings, ray) as api, contextlib.closing(Client(str(api.base_url), key)) as client:
        client.jobs(None, None, (), 1)
        with pytest.raises(RefusedError, match="rate limit exceeded"):
            client.jobs(None, None, (), 1)


@pytest.mark.both_databases
def test_concurrent_submissions_respect_queue_limit(settings: Settings, ray: FakeRay) -> None:
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


def test_refuses_upload_larger_than_limit_of_key(settings: Settings, ray: FakeRay) -> None:
    content = npz()
    small, enough = (
        add_key(settings, Scope.WRITE, limits=KeyLimits(max_upload_bytes=size)) for size in (len(content) - 1, len(content))
    )
    with running(settings, ray) as api, client_of(api, small) as refused, client_of(api, enough) as taken:
        assert upload(refused, content).status_code == 413
        assert refused.post("/v1/datasets", files={"file": ("made.npz", bytes(200_000))}).status_code == 413  # before it is read
        assert upload(taken, content).status_code == 201
    assert len(list(settings.roots.uploads.glob("ds_*"))) == 1


def test_limit_of_key_may_exceed_limit_of_server(settings: Settings, ray: FakeRay) -> None:
    settings = settings.model_copy(update={"max_upload_bytes": 1000})
    content = npz()
    assert len(content) > settings.max_upload_bytes
    key = add_key(settings, Scope.WRITE, limits=KeyLimits(max_upload_bytes=10_000_000))
    others = add_key(settings, Scope.WRITE)
    with running(settings, ray) as api, client_of(api, key) as client, client_of(api, others) as other:
        assert upload(client, content).status_code == 201
        assert upload(other, content).status_code == 413


@pytest.mark.both_databases
def test_concurrent_uploads_respect_storage_quota(settings: Settings, ray: FakeRay) -> None:
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


@pytest.mark.both_databases
def test_exhausted_storage_quota_refuses_jobs(settings: Settings, ray: FakeRay) -> None:
    content = npz()
    key = add_key(settings, Scope.WRITE, limits=KeyLimits(max_stored_bytes=len(content)))
    with running(settings, ray) as api, client_of(api, key) as client:
        assert upload(client, content).status_code == 201
        refused = client.post("/v1/jobs", json=SPEC)
        assert refused.status_code == 413
        assert "delete datasets or jobs" in refused.json()["detail"]
