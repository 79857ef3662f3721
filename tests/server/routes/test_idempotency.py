from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.routes.test_datasets_api import LABELS, npz

pytestmark = pytest.mark.both_databases

TIMES = 200


@pytest.mark.parametrize("servers", [1, 2])
def test_concurrent_posts_with_same_key_create_one_job(settings: Settings, ray: FakeRay, api: Api, servers: int) -> None:
    if servers == 1:
        answers = post_at_once([api])
    else:
        with running(settings, ray) as other:
            answers = post_at_once([api, other])
    unexpected = [answer for answer in answers if answer[0] not in (200, 201)]
    assert unexpected == []
    assert [status for status, _ in answers].count(201) == 1
    ids = {job_id for _, job_id in answers}
    assert [job["id"] for job in api.get("/v1/jobs").json()["data"]] == list(ids)
    api.await_job(ids.pop(), lambda _: ray.submissions != [])
    assert len(ray.submissions) == 1


def post_at_once(servers: list[Api]) -> list[tuple[int, str]]:
    """Post the same job from 50 threads; return the status and the job's ID, or the refusal, of each response."""

    def post(number: int) -> tuple[int, str]:
        # A connection of its own: the connection pool of a server's client is smaller than 50.
        url = servers[number % len(servers)].base_url.join("/v1/jobs")
        while True:
            answer = httpx.post(url, json=SPEC, headers={"Idempotency-Key": "k"}, timeout=120, verify=False)
            if answer.status_code != 503:  # a busy machine keeps SQLite's only writer waiting; clients retry
                return answer.status_code, answer.json().get("id", answer.text)

    with ThreadPoolExecutor(50) as pool:
        return list(pool.map(post, range(TIMES)))


def test_concurrent_posts_with_same_key_and_other_body_are_refused(api: Api) -> None:
    def post(ipc: int) -> int:
        return api.post("/v1/jobs", json=SPEC | {"ipc": ipc}, headers={"Idempotency-Key": "k"}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(post, range(1, 9)))
    assert sorted(statuses) == [201] + [422] * 7
    assert len(api.get("/v1/jobs").json()["data"]) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/jobs?cursor=djE6OTk5OTk5OTk5OTk5OTk5OTk5", 200),  # v1: and 18 nines
        ("/v1/jobs/{id}/events?after=9007199254740992", 200),
        ("/v1/jobs/{id}/logs?attempt=2147483648", 404),
    ],
)
def test_numbers_too_large_for_database_are_no_server_error(api: Api, path: str, status: int) -> None:
    assert api.get(path.format(id=api.make()["id"])).status_code == status


@pytest.mark.parametrize("path", ["/v1/jobs/job%00", "/v1/jobs?label=a%00b", "/v1/jobs?kind=%00", "/v1/datasets/%00"])
def test_nul_character_matches_nothing_or_is_refused(api: Api, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code in (200, 404, 422)
    assert answer.json().get("data", []) == []


@pytest.mark.parametrize(
    "fields", [{"name": "a\x00b"}, {"labels": {"k": "a\x00b"}}, {"labels": {"a\x00b": "v"}}, {"name": "\ud800"}]
)
def test_unusual_texts_are_stored(api: Api, fields: dict[str, object]) -> None:
    """SQLite stores NUL and PostgreSQL refuses it; either way there is a response and no incomplete job."""
    answer = api.post("/v1/jobs", content=json.dumps(SPEC | fields), headers={"Content-Type": "application/json"})
    assert answer.status_code in (201, 422)
    assert len(api.get("/v1/jobs").json()["data"]) == (answer.status_code == 201)


@pytest.mark.parametrize("attempt", range(5))
def test_dataset_is_either_deleted_or_used_by_new_job(api: Api, attempt: int) -> None:  # noqa: ARG001
    images = np.zeros((4, 8, 8), np.uint8)
    content = npz(images=images, labels=LABELS, test_images=images, test_labels=LABELS)
    dataset = api.post("/v1/datasets", files={"file": ("a.npz", content)}).json()["id"]
    spec = SPEC | {"dataset": {"id": dataset}}
    with ThreadPoolExecutor(9) as pool:
        posts = [pool.submit(api.post, "/v1/jobs", json=spec) for _ in range(4)]
        deleted = pool.submit(api.delete, f"/v1/datasets/{dataset}")
        posts += [pool.submit(api.post, "/v1/jobs", json=spec) for _ in range(4)]
    made = [post.result().status_code for post in posts]
    assert set(made) <= {201, 409, 422}
    assert deleted.result().status_code == (409 if 201 in made else 204)
