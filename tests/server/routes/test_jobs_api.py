from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay, driver_of, running

PROBLEM = "application/problem+json"


def refused(response: Any, status: int = 422) -> dict[str, str]:
    """Return {loc: msg} of a refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    assert problem["title"]
    return {error["loc"]: error["msg"] for error in problem.get("errors", [])}


def test_submit(api: Api) -> None:
    response = api.post("/v1/jobs", json=SPEC | {"name": "n", "labels": {"team": "a"}})
    job = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert job["kind"] == "condense"
    assert (job["name"], job["labels"], job["status"], job["attempt"]) == ("n", {"team": "a"}, "queued", 1)
    assert job["progress"] == {"done": 0, "total": 10, "eta_s": None}
    assert (job["result"], job["error"], job["started_at"], job["finished_at"]) == (None, None, None, None)
    assert job["spec"]["method"]["max_outer"] == 2  # resolved
    assert job["spec"]["resources"] == {"workers": 1, "gpus_per_worker": 0.0, "cpus_per_worker": 1}
    assert "evaluation" not in job["spec"]
    assert job["created_at"].endswith("Z")


def test_best_method_is_written_into_the_accepted_job(api: Api) -> None:
    response = api.post("/v1/jobs", json={"dataset": {"name": "digits"}, "ipc": 1, "method": "best"})
    assert response.status_code == 201
    spec = response.json()["spec"]
    assert (spec["method"]["name"], spec["method"]["batch_real"], spec["iterations"]) == ("cafe", 128, 100)
    wanted = {"dataset": {"name": "digits", "image_size": 32}, "ipc": 1, "method": "best"}
    spec = api.post("/v1/jobs", json=wanted).json()["spec"]
    assert (spec["method"]["name"], spec["method"]["factor"], spec["iterations"]) == ("dance", 2, 78)


@pytest.mark.parametrize(
    ("change", "loc", "msg"),
    [
        ({"ipc": 0}, "ipc", "greater than or equal to 1"),
        ({"surprise": 1}, "surprise", "unknown field"),
        ({"method": {"betta": 1}}, "method.betta", "unknown field"),
        ({"kind": "bake"}, "kind", "condense"),
        ({"dataset": {"name": "digits", "id": "ds_a"}}, "dataset", "exactly one"),
        ({"dataset": {"path": "../secret"}}, "dataset.path", "dataset root"),
        ({"dataset": {"path": "nowhere"}}, "dataset.path", "nowhere"),
        ({"dataset": {"id": "ds_unknown"}}, "dataset", "never uploaded"),
        ({"dataset": {"path": "ipc"}}, "dataset", "ipc: class 'a' has no training images"),
        ({"dataset": {"path": "dataset.zip"}}, "dataset", "dataset.zip is not a readable .zip"),
        ({"dataset": {"path": "leads_out"}}, "dataset.path", "leads_out: train/a is a link"),
        ({"resources": {"workers": 2, "gpus_per_worker": 0.5}}, "resources.gpus_per_worker", "several workers that condense"),
        ({"network": {"norm": "batch"}}, "network.norm", "batch statistics"),
        ({"method": {"layers": [9]}}, "method.layers", "must be increasing"),
        ({"resources": {"workers": 11}}, "resources.workers", "10 classes"),
        ({"resources": {"workers": 5}}, "resources", "at most 4"),
        ({"resources": {"gpus_per_worker": 1}}, "resources", "0 GPUs"),
        ({"ipc": 10000, "network": {"width": 4096, "depth": 1}}, "resources", "GiB"),
    ],
)
def test_refuses_impossible_spec_with_field(api: Api, settings: Settings, change: dict[str, Any], loc: str, msg: str) -> None:
    own = settings.roots.datasets  # of names that look like fields
    (own / "ipc" / "train" / "a").mkdir(parents=True)
    (own / "dataset.zip").write_bytes(b"no archive")
    (own / "leads_out" / "train").mkdir(parents=True)
    (own / "leads_out" / "train" / "a").symlink_to("/etc")
    errors = refused(api.post("/v1/jobs", content=json.dumps(SPEC | change), headers={"Content-Type": "application/json"}))
    assert msg in errors[loc]
    assert api.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'"a"', b"\xff", b'{"ipc":' + b"1" * 5000 + b"}", b'{"ipc": Infinity}'])
def test_refuses_body_that_is_not_a_spec(api: Api, body: bytes) -> None:
    refused(api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("media_type", [None, "application/x-www-form-urlencoded", "application/yaml", "text/plain"])
def test_body_that_is_not_declared_as_json_names_the_header(api: Api, media_type: str | None) -> None:
    """`curl -d` sends such a body if no header is given."""
    headers = {"Content-Type": media_type} if media_type else {}
    errors = refused(api.post("/v1/jobs", content=json.dumps(SPEC), headers=headers))
    assert "Content-Type: application/json" in errors[""]


def test_refuses_lone_surrogates(api: Api) -> None:
    body = b'{"kind": "condense", "dataset": {"name": "digits"}, "ipc": 1, "\\ud800": 1, "name": "\\ud800"}'
    refused(api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}))


def test_dry_run_resolves_and_stores_nothing(api: Api) -> None:
    response = api.post("/v1/jobs?dry_run=true", json=SPEC)
    assert response.status_code == 200
    answer = response.json()
    assert answer["spec"]["method"]["query_per_class"] == 256
    assert answer["dataset"]["class_names"] == [str(digit) for digit in range(10)]
    assert 0 < answer["estimates"]["memory_bytes"] < answer["estimates"]["available_memory_bytes"] == 8 << 30
    assert api.get("/v1/jobs").json()["data"] == []


@pytest.mark.both_databases
def test_idempotency_key_creates_one_job(api: Api) -> None:
    headers = {"Idempotency-Key": "k1"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.post("/v1/jobs", json=SPEC, headers=headers), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(api.get("/v1/jobs").json()["data"]) == 1
    assert "different body" in refused(api.post("/v1/jobs", json=SPEC | {"seed": 1}, headers=headers))["Idempotency-Key"]
    assert api.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k2"}).status_code == 201


def test_idempotency_key_of_refused_spec_can_be_reused(api: Api) -> None:
    refused(api.post("/v1/jobs", json=SPEC | {"ipc": 0}, headers={"Idempotency-Key": "k"}))
    refused(api.post("/v1/jobs", json=SPEC | {"resources": {"workers": 9}}, headers={"Idempotency-Key": "k"}))
    assert api.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"}).status_code == 201


@pytest.mark.both_databases
def test_list_is_paged_newest_first_and_filtered(api: Api, ray: FakeRay) -> None:
    ray.down = True  # nothing moves on
    ray.cpus = 4
    api.get("/v1/jobs")
    made = []
    ray.down = False
    for i in range(5):
        made.append(api.make(name=str(i), labels={"even": str(i % 2 == 0), "odd=": "x"})["id"])
    first = api.get("/v1/jobs", params={"limit": 2}).json()
    second = api.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    api.make(name="later")  # does not shift the pages
    third = api.get("/v1/jobs", params={"limit": 2, "cursor": second["next_cursor"]}).json()
    listed = [job["id"] for page in (first, second, third) for job in page["data"]]
    assert listed == made[::-1]
    assert third["next_cursor"] is None

    def names(**params: Any) -> list[str]:
        return [job["name"] for job in api.get("/v1/jobs", params=params).json()["data"]]

    assert names(label="even=True") == ["4", "2", "0"]
    assert names(label=["even=True", "odd"]) == []
    assert names(label="even") == ["4", "3", "2", "1", "0"]
    assert names(kind="sweep") == []
    assert names(status="succeeded") == []
    assert "later" in names(kind="condense")


@pytest.mark.parametrize("cursor", ["!", "abc", "djE6LTE", "djE6OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "é"])
def test_refuses_invalid_cursor(api: Api, cursor: str) -> None:
    assert "cursor" in refused(api.get("/v1/jobs", params={"cursor": cursor}))


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 501}, {"status": "done"}, {"kind": "nope"}, {"kind": ""}])
def test_bad_filters_are_refused(api: Api, params: dict[str, Any]) -> None:
    assert set(refused(api.get("/v1/jobs", params=params))) == set(params)


@pytest.mark.both_databases
def test_etag(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = api.make()["id"]
    api.await_job(job_id, lambda job: job["status"] == "starting" and ray.submissions != [])
    time.sleep(0.3)
    response = api.get(f"/v1/jobs/{job_id}")
    etag = response.headers["etag"]
    assert etag.startswith('"')
    again = api.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    with driver_of(settings, job_id) as report:
        report("iteration", iteration=1, total=10)
    api.await_job(job_id, lambda job: job["progress"]["done"] == 1)
    assert api.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.both_databases
def test_long_poll_returns_on_change_and_blocks_no_other(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = api.make()["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    time.sleep(0.3)
    etag = api.get(f"/v1/jobs/{job_id}").headers["etag"]

    def wait() -> tuple[float, int]:
        started = time.monotonic()
        answer = api.get(f"/v1/jobs/{job_id}", params={"wait": 20}, headers={"If-None-Match": etag})
        return time.monotonic() - started, answer.status_code

    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(wait) for _ in range(60)]  # more than the server has threads
        time.sleep(0.5)
        started = time.monotonic()
        assert api.get("/healthz").status_code == 200
        assert api.get("/v1/jobs").status_code == 200
        assert time.monotonic() - started < 2
        with driver_of(settings, job_id) as report:
            report("phase", phase="preparing")
        answers = [each.result() for each in waiting]
    assert {status for _, status in answers} == {200}
    assert max(seconds for seconds, _ in answers) < 10


def test_wait_times_out_with_the_job_or_304(api: Api, ray: FakeRay) -> None:
    job_id = api.make()["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    time.sleep(0.3)
    etag = api.get(f"/v1/jobs/{job_id}").headers["etag"]
    started = time.monotonic()
    assert api.get(f"/v1/jobs/{job_id}", params={"wait": 0.3}).status_code == 200
    assert api.get(f"/v1/jobs/{job_id}", params={"wait": 0.3}, headers={"If-None-Match": etag}).status_code == 304
    assert 0.6 <= time.monotonic() - started < 5
    assert "wait" in refused(api.get(f"/v1/jobs/{job_id}", params={"wait": 31}))


@pytest.mark.both_databases
def test_cancel_resume_delete(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = api.make()["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    refused(api.delete(f"/v1/jobs/{job_id}"), 409)
    refused(api.post(f"/v1/jobs/{job_id}/resume"), 409)
    assert api.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    api.await_status(job_id, "cancelled")
    again = api.post(f"/v1/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert ray.stops == [(job_id, 1)]

    resumed = api.post(f"/v1/jobs/{job_id}/resume")
    assert resumed.status_code == 202
    assert (resumed.json()["attempt"], resumed.json()["status"]) == (2, "queued")
    api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")

    assert settings.job_dir(job_id).path.exists()
    assert api.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert not settings.job_dir(job_id).path.exists()
    for path in ("", "/events", "/logs", "/artifacts", "/synthetic", "/preview.png"):
        refused(api.get(f"/v1/jobs/{job_id}{path}"), 404)
    refused(api.delete(f"/v1/jobs/{job_id}"), 404)
    assert ray.jobs == {}


@pytest.mark.both_databases
def test_cancels_queued_job_at_once(settings: Settings, ray: FakeRay) -> None:
    with running(settings.model_copy(update={"max_active_jobs": 1}), ray) as api:
        first, second = api.make()["id"], api.make()["id"]
        api.await_job(first, lambda _: ray.submissions != [])
        answer = api.post(f"/v1/jobs/{second}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
        assert ray.submissions == [(first, 1)]


@pytest.mark.both_databases
def test_events_are_numbered_and_paged(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = api.make()["id"]
    with driver_of(settings, job_id) as report:
        report("phase", phase="condensing")
        for i in range(1, 6):
            report("iteration", iteration=i, total=10)
    api.await_job(job_id, lambda job: job["progress"]["done"] == 5)
    first = api.get(f"/v1/jobs/{job_id}/events", params={"limit": 4}).json()
    rest = api.get(f"/v1/jobs/{job_id}/events", params={"after": first["next_after"]}).json()
    events = first["data"] + rest["data"]
    assert [event["id"] for event in events] == list(range(1, 10))
    assert [event["type"] for event in events] == ["status", "status", "phase", "status"] + ["iteration"] * 5
    assert [event["data"]["status"] for event in events if event["type"] == "status"] == ["queued", "starting", "running"]
    assert events[-1]["data"] == {"iteration": 5, "total": 10}
    assert api.get(f"/v1/jobs/{job_id}/events", params={"after": 9}).json() == {"data": [], "next_after": 9}
    api.await_job(job_id, lambda _: ray.submissions == [(job_id, 1)])


def test_logs(api: Api, ray: FakeRay) -> None:
    job_id = api.make()["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    response = api.get(f"/v1/jobs/{job_id}/logs")
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text == "one\ntwo\nthree\n"
    assert api.get(f"/v1/jobs/{job_id}/logs", params={"tail": 1, "attempt": 1}).text == "three\n"
    refused(api.get(f"/v1/jobs/{job_id}/logs", params={"attempt": 2}), 404)
    ray.down = True
    refused(api.get(f"/v1/jobs/{job_id}/logs"), 503)
    ray.down = False
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    ray.jobs.clear()  # Ray was started anew
    assert api.get(f"/v1/jobs/{job_id}/logs").text == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/jobs/job_a", 404), ("PUT", "/v1/jobs", 405), ("GET", "/v1/jobs/a/cancel", 405)],
)
def test_every_error_is_a_problem(api: Api, method: str, path: str, status: int) -> None:
    response = api.request(method, path)
    refused(response, status)
    if status == 405:
        assert response.headers["allow"]


def test_serves_stored_data_while_ray_is_down(settings: Settings) -> None:
    ray = FakeRay()
    ray.down = True
    with running(settings, ray) as api:
        assert api.get("/healthz").json() == {"status": "ok"}
        refused(api.get("/readyz"), 503)
        refused(api.get("/v1/cluster"), 503)
        unavailable = api.post("/v1/jobs", json=SPEC)
        refused(unavailable, 503)
        assert unavailable.headers["retry-after"]
        ray.down = False
        deadline = time.monotonic() + 20
        while api.get("/readyz").status_code != 200:  # an answer is shared for a second
            assert time.monotonic() < deadline
            time.sleep(0.02)
        cluster = api.get("/v1/cluster").json()
        assert cluster["cpus"] == {"total": 4.0, "free": 4.0}
        assert cluster["nodes"][0]["memory_bytes"] == 8 << 30
        ray.down = True
        time.sleep(2.1)
        job = api.make()  # the cluster's size is remembered
        time.sleep(0.5)
        assert api.job(job["id"])["status"] == "starting"
        ray.down = False
        api.await_job(job["id"], lambda _: ray.submissions == [(job["id"], 1)])


def test_docs_page_needs_no_network(api: Api) -> None:
    page = api.get("/docs").text
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert [file for file in files if "://" in file] == []
    assert len(files) >= 3
    for file in files:
        assert api.get(file).status_code == 200


def test_openapi_documents_every_status_and_has_valid_references(api: Api) -> None:
    schema = api.get("/openapi.json").json()
    assert api.get("/docs").status_code == 200
    components = schema["components"]["schemas"]
    references = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                references.add(value["$ref"].removeprefix("#/components/schemas/"))
            for item in value.values():
                collect(item)
        elif isinstance(value, list):
            for item in value:
                collect(item)

    collect(schema)
    assert references <= set(components)
    assert "HTTPValidationError" not in components
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")):
                    assert list(response["content"]) == [PROBLEM], (path, method, status)
    assert {"200", "201", "413", "422", "503"} <= set(schema["paths"]["/v1/jobs"]["post"]["responses"])


@pytest.mark.both_databases
def test_concurrent_changes_of_one_job_are_all_kept(api: Api, ray: FakeRay) -> None:
    job_id = api.make()["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(api.post(f"/v1/jobs/{job_id}/cancel").status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 202}
    api.await_status(job_id, "cancelled")
    events = api.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["data"]["status"] for event in events].count("cancelling") == 1
