"""Attempts lost with Ray, its node or its driver are retried; results are served only if they are complete."""

from __future__ import annotations

import errno
import json
import os
from contextlib import closing
from typing import Any

import pytest

import server.reconciler.job_keeper
import server.reconciler.previous_attempt
from cafe_core.jobs.job import write_manifest
from cafe_core.jobs.jobdir import JobFile
from server.settings import Settings
from server.store.database import Database
from server.store.models import Attempt
from tests.server.conftest import Api, FakeRay, attempt_dir, driver_of, running
from tests.server.reconciler.test_reconciler import publish, submitted
from workers.client import RayJob, RayJobState

KILLED = RayJob(RayJobState.FAILED, "killed", -9)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RETRY_PAUSE_S", 0.0)


def lose(ray: FakeRay, job_id: str, attempt: int, *, forgotten: bool) -> None:
    if forgotten:
        del ray.jobs[job_id, attempt]
    else:
        ray.jobs[job_id, attempt] = KILLED


def events(api: Api, job_id: str, type: str) -> list[dict[str, Any]]:
    page = api.get(f"/v1/jobs/{job_id}/events", params={"limit": 1000}).json()["data"]
    return [event for event in page if event["type"] == type]


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("phase", ["waiting_for_resources", "condensing"])
def test_lost_attempt_is_retried(api: Api, ray: FakeRay, settings: Settings, forgotten: bool, phase: str) -> None:
    job_id = submitted(api, ray)
    with driver_of(settings, job_id) as report:
        report("phase", phase=phase)
    api.await_job(job_id, lambda j: j["phase"] == phase)
    lose(ray, job_id, 1, forgotten=forgotten)
    api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
    job = api.job(job_id)
    assert (job["attempt"], job["phase"], job["error"], job["finished_at"]) == (2, None, None, None)
    assert JobFile.model_validate_json(settings.job_dir(job_id).job_file.read_bytes()).attempt == 2
    [lost] = events(api, job_id, "lost")
    assert (lost["attempt"], lost["data"]["code"]) == (1, "ray_lost" if forgotten else "driver_died")
    assert ("no longer knows it" if forgotten else "exit code -9") in lost["data"]["reason"]
    with driver_of(settings, job_id) as stale:  # the first attempt's driver still runs and writes
        stale("phase", phase="publishing")
        publish(settings, job_id, 1)
        stale("finished", result={"images": 10})
    with driver_of(settings, job_id, 2) as report:
        report("phase", phase="condensing")
        api.await_status(job_id, "running")
        assert api.get(f"/v1/jobs/{job_id}/artifacts").json() == {"data": []}
        publish(settings, job_id, 2)
    ray.jobs[job_id, 2] = RayJob(RayJobState.SUCCEEDED, "", 0)
    assert api.await_status(job_id, "succeeded")["attempt"] == 2
    assert "publishing" not in [event["data"]["phase"] for event in events(api, job_id, "phase")]
    with closing(Database(settings.database)) as database, database.read() as session:
        causes = [session.get_one(Attempt, (job_id, number)).cause for number in (1, 2)]
    assert causes == ["submitted", "lost"]


def test_only_consecutive_losses_without_progress_are_counted(settings: Settings, ray: FakeRay) -> None:
    with running(settings.model_copy(update={"max_lost_attempts": 2}), ray) as api:
        job_id = submitted(api, ray)
        for attempt in range(1, 6):
            api.await_job(job_id, lambda _, attempt=attempt: (job_id, attempt) in ray.submissions)
            with driver_of(settings, job_id, attempt) as report:
                report("phase", phase="condensing")
                report("iteration", iteration=1, total=10)  # not progress: the next attempt repeats it
                if attempt == 3:
                    report("checkpoint", iteration=5, file="checkpoint-00000005.safetensors")
            lose(ray, job_id, attempt, forgotten=attempt % 2 == 0)
        error = api.await_status(job_id, "failed")["error"]
        assert (error["code"], error["retryable"]) == ("driver_died", True)
        assert "2 attempts before it" in error["message"]
        assert len(events(api, job_id, "lost")) == 4
        api.post(f"/v1/jobs/{job_id}/resume")
        api.await_job(job_id, lambda _: (job_id, 6) in ray.submissions)
        lose(ray, job_id, 6, forgotten=False)
        api.await_job(job_id, lambda _: (job_id, 7) in ray.submissions)  # a resume resets the count


def test_attempt_is_not_lost_while_ray_is_down_or_starting(api: Api, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RAY_EVERY_S", 0.02)
    job_id = submitted(api, ray)
    ray.down = True
    looks = ray.looks
    while ray.looks < looks + 5:
        assert api.job(job_id)["attempt"] == 1
    ray.jobs, before = {}, ray.jobs
    ray.has_nodes, ray.down = False, False
    looks = ray.looks
    while ray.looks < looks + 5:
        assert api.job(job_id)["status"] == "starting"
    ray.jobs, ray.has_nodes = before, True
    looks = ray.looks
    while ray.looks < looks + 5:
        assert api.job(job_id)["attempt"] == 1
    assert ray.submissions == [(job_id, 1)]


@pytest.fixture
def reappeared(api: Api, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job whose first attempt was lost, still runs, and is known to Ray again before it accepts the second one."""
    monkeypatch.setattr(server.reconciler.job_keeper, "RAY_EVERY_S", 0.05)
    job_id = submitted(api, ray)
    ray.refuse, ray.stops_at_once = True, False
    lose(ray, job_id, 1, forgotten=True)
    api.await_job(job_id, lambda job: job["attempt"] == 2)
    ray.jobs[job_id, 1] = RayJob(RayJobState.RUNNING, "")
    api.await_job(job_id, lambda _: ray.stops != [])
    ray.refuse = False
    return job_id


def test_reappearing_attempt_ends_before_the_next_one_starts(api: Api, ray: FakeRay, reappeared: str) -> None:
    looks = ray.looks
    while ray.looks < looks + 6:  # two questions per step, one for each attempt
        assert api.job(reappeared)["status"] == "starting"
    assert ray.submissions == [(reappeared, 1)]
    assert ray.stops == [(reappeared, 1)]
    ray.jobs[reappeared, 1] = RayJob(RayJobState.STOPPED, "")
    api.await_job(reappeared, lambda _: (reappeared, 2) in ray.submissions)
    assert ray.jobs[reappeared, 2].state is RayJobState.RUNNING


def test_waiting_for_a_previous_attempt_is_bounded(
    api: Api, ray: FakeRay, reappeared: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server.reconciler.previous_attempt, "ENDS_WITHIN_S", 0.5)
    monkeypatch.setattr(server.reconciler.previous_attempt, "STOP_EVERY_S", 0.1)
    api.await_job(reappeared, lambda _: (reappeared, 2) in ray.submissions)
    assert ray.jobs[reappeared, 1].state is RayJobState.RUNNING
    assert len(ray.stops) > 1
    assert "attempt 1 is still running" in caplog.text


def test_cancels_job_that_waits_for_its_previous_attempt(api: Api, ray: FakeRay, reappeared: str) -> None:
    api.post(f"/v1/jobs/{reappeared}/cancel")
    api.await_status(reappeared, "cancelled")
    assert ray.submissions == [(reappeared, 1)]


@pytest.mark.parametrize("forgotten", [False, True])
def test_cancelling_job_with_lost_attempt_is_cancelled(api: Api, ray: FakeRay, forgotten: bool) -> None:
    ray.stops_at_once = False
    job_id = submitted(api, ray)
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_job(job_id, lambda _: ray.stops != [])
    lose(ray, job_id, 1, forgotten=forgotten)
    assert api.await_status(job_id, "cancelled")["attempt"] == 1
    assert ray.submissions == [(job_id, 1)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: d.result_file.unlink(), "result.json is listed in the manifest"),
        (lambda d: d.result_file.write_text('{"images": 11}'), "result.json has 14 bytes and SHA-256"),
        (lambda d: d.manifest_file.write_text("{"), "manifest.json cannot be read"),
        (lambda d: d.manifest_file.write_text('{"artifacts": []}') and d.result_file.write_text("1"), "not a JSON object"),
        (lambda d: d.manifest_file.write_text(json.dumps(OUTSIDE)), "manifest.json cannot be read"),
    ],
)
def test_damaged_result_fails_the_job_and_is_not_served(
    api: Api, ray: FakeRay, settings: Settings, damage: Any, said: str
) -> None:
    job_id = submitted(api, ray)
    publish(settings, job_id)
    damage(attempt_dir(settings, job_id))
    ray.jobs[job_id, 1] = RayJob(RayJobState.SUCCEEDED, "", 0)
    error = api.await_status(job_id, "failed")["error"]
    assert (error["code"], error["retryable"]) == ("damaged_result", True)
    assert said in error["message"]
    assert api.get(f"/v1/jobs/{job_id}/artifacts").json() == {"data": []}
    api.post(f"/v1/jobs/{job_id}/resume")
    api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
    publish(settings, job_id, 2)
    ray.jobs[job_id, 2] = RayJob(RayJobState.SUCCEEDED, "", 0)
    api.await_status(job_id, "succeeded")
    assert [artifact["name"] for artifact in api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]] == ["result.json"]


OUTSIDE = {"artifacts": [{"name": "../../../job.json", "size": 1, "sha256": "", "media_type": "text/plain"}]}


def test_file_added_after_the_end_is_not_served(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ray)
    publish(settings, job_id)
    ray.jobs[job_id, 1] = RayJob(RayJobState.SUCCEEDED, "", 0)
    api.await_status(job_id, "succeeded")
    directory = attempt_dir(settings, job_id)
    (directory.artifacts / "later.csv").write_text("a")
    write_manifest(directory)
    assert [artifact["name"] for artifact in api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]] == ["result.json"]
    assert api.get(f"/v1/jobs/{job_id}/artifacts/later.csv").status_code == 404


def test_job_ends_although_the_disk_is_full(api: Api, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logs cannot be kept, but the job ends, so that it can be deleted to free space."""
    job_id = submitted(api, ray)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    assert api.delete(f"/v1/jobs/{job_id}").status_code == 204
