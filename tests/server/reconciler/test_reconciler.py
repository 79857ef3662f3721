from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import server.files.job_json
import server.reconciler.driver_watch
import server.reconciler.job_keeper
import server.reconciler.job_record
import server.reconciler.reconciler
from cafe_core.errors import StaleAttemptError
from cafe_core.files import write_atomically
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.job import write_manifest
from cafe_core.jobs.jobdir import JobFile
from cafe_core.spec.job import parse_job_spec
from server.files import job_json
from server.settings import Settings
from server.states import Status
from server.store import jobs
from server.store.database import Database
from tests.server.conftest import SPEC, Api, FakeRay, attempt_dir, driver_of, running
from workers.client import RayJob, RayJobState


def submitted(api: Api, ray: FakeRay, **fields: object) -> str:
    """Submit a job and wait until Ray has it."""
    job_id: str = api.make(**fields)["id"]
    api.await_job(job_id, lambda _: (job_id, 1) in ray.submissions)
    return job_id


def publish(settings: Settings, job_id: str, attempt: int = 1) -> None:
    """Write the result of a driver that has finished."""
    directory = attempt_dir(settings, job_id, attempt)
    directory.artifacts.mkdir(parents=True)
    directory.result_file.write_text('{"images": 10}')
    write_manifest(directory)


@pytest.mark.both_databases
def test_job_from_submission_to_success(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ray)
    file = JobFile.model_validate_json(settings.job_dir(job_id).job_file.read_bytes())
    assert (file.job_id, file.max_restarts, file.spec.iterations) == (job_id, 3, 10)
    assert "null" not in settings.job_dir(job_id).job_file.read_text()
    with driver_of(settings, job_id) as report:
        report("phase", phase="waiting_for_resources")
        assert api.await_job(job_id, lambda j: j["phase"] == "waiting_for_resources")["status"] == "starting"
        report("phase", phase="condensing")
        assert api.await_job(job_id, lambda j: j["phase"] == "condensing")["status"] == "running"
        report("iteration", iteration=10, total=10, eta_s=0.0)
        report("phase", phase="evaluating")
        report("evaluated", network="convnet", accuracy=50.0, done=1, total=4, eta_s=9.0)
        job = api.await_job(job_id, lambda j: j["phase"] == "evaluating" and j["progress"]["total"] == 4)
        assert job["progress"] == {"done": 1, "total": 4, "eta_s": 9.0}
        publish(settings, job_id)
        report("finished", result={"images": 10})
    time.sleep(0.5)
    assert api.job(job_id)["status"] == "running"  # its driver is still releasing its workers
    ray.jobs[job_id, 1] = RayJob(RayJobState.SUCCEEDED, "", 0)
    job = api.await_status(job_id, "succeeded")
    assert job["result"] == {"images": 10}
    assert job["created_at"] < job["started_at"] < job["finished_at"]
    assert (job["phase"], job["error"], job["progress"]["eta_s"]) == (None, None, None)


def test_event_is_stored_once_its_line_is_complete(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ray)
    path = attempt_dir(settings, job_id).events_file
    path.parent.mkdir(parents=True)
    line = json.dumps({"time": "2026-01-01T00:00:00Z", "type": "iteration", "iteration": 1, "total": 10}) + "\n"
    with path.open("w") as file:
        file.write("no event at all\n" + line + line[:20])  # as a full disk may leave it, then half a line
        file.flush()
        api.await_job(job_id, lambda j: j["progress"]["done"] == 1)
        time.sleep(0.4)
        file.write(line[20:].replace('"iteration": 1', '"iteration": 2'))
        file.flush()
        api.await_job(job_id, lambda j: j["progress"]["done"] == 2)
    events = api.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [e["data"]["iteration"] for e in events if e["type"] == "iteration"] == [1, 2]


@pytest.mark.parametrize(
    ("ended", "last_word", "code"),
    [
        (RayJob(RayJobState.STOPPED, ""), None, "stopped"),
        (RayJob(RayJobState.FAILED, "", 1), {"code": "disk_full", "message": "no space", "retryable": True}, "disk_full"),
        (None, {"code": "disk_full", "message": "no space", "retryable": True}, "disk_full"),
    ],
)
def test_failed_job_has_the_reason_and_can_be_resumed(
    api: Api, ray: FakeRay, settings: Settings, ended: RayJob | None, last_word: dict[str, object] | None, code: str
) -> None:
    job_id = submitted(api, ray)
    if last_word is not None:
        with driver_of(settings, job_id) as report:
            report("failed", error=last_word)
    if ended is None:
        ray.jobs.clear()
    else:
        ray.jobs[job_id, 1] = ended
    error = api.await_status(job_id, "failed")["error"]
    assert (error["code"], error["retryable"]) == (code, True)

    assert api.post(f"/v1/jobs/{job_id}/resume").json()["error"] is None
    api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
    with driver_of(settings, job_id, 2) as report:
        report("phase", phase="condensing")
    api.await_status(job_id, "running")
    publish(settings, job_id, 2)
    ray.jobs[job_id, 2] = RayJob(RayJobState.SUCCEEDED, "", 0)
    assert api.await_status(job_id, "succeeded")["attempt"] == 2


@pytest.mark.both_databases
def test_restarted_server_continues(settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as api:
        job_id = submitted(api, ray)
        with driver_of(settings, job_id) as report:
            report("phase", phase="condensing")
        api.await_status(job_id, "running")
    with driver_of(settings, job_id) as report:
        report("iteration", iteration=7, total=10)  # while no server runs
    with running(settings, ray) as api:
        api.await_job(job_id, lambda j: j["progress"]["done"] == 7)
        publish(settings, job_id)
        ray.jobs[job_id, 1] = RayJob(RayJobState.SUCCEEDED, "", 0)
        api.await_status(job_id, "succeeded")
        events = api.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [e["type"] for e in events].count("phase") == 1
    assert ray.submissions == [(job_id, 1)]


@pytest.mark.both_databases
def test_submission_with_lost_answer_is_adopted(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server dies after Ray accepted a job and before recording that; the next one does not submit it twice."""
    with monkeypatch.context() as patched, running(settings, ray) as api:
        patched.setattr(
            server.reconciler.job_record.JobRecord, "mark_submitted", lambda _: (_ for _ in ()).throw(SystemError("killed"))
        )
        job_id = submitted(api, ray)
    with running(settings, ray) as api:
        api.await_job(job_id, lambda _: True)
        time.sleep(0.5)
        assert api.job(job_id)["status"] == "starting"
        ray.jobs.clear()
        api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)  # so the first was recorded as submitted
    assert ray.submissions == [(job_id, 1), (job_id, 2)]


@pytest.mark.both_databases
def test_next_server_completes_a_cancellation(settings: Settings, ray: FakeRay) -> None:
    ray.stops_at_once = False
    with running(settings, ray) as api:
        job_id = submitted(api, ray)
        api.post(f"/v1/jobs/{job_id}/cancel")
        api.await_job(job_id, lambda _: ray.stops != [])
        assert api.job(job_id)["status"] == "cancelling"
    ray.stops_at_once, asked = True, len(ray.stops)
    with running(settings, ray) as api:
        api.await_status(job_id, "cancelled")
    assert ray.stops == [(job_id, 1)] * (asked + 1)


def test_unreceived_stop_request_is_repeated(api: Api, ray: FakeRay) -> None:
    ray.ignored_stops = 2
    job_id = submitted(api, ray)
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    assert ray.stops == [(job_id, 1)] * 3


def test_stop_request_is_repeated_at_intervals(api: Api, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.driver_watch, "STOP_EVERY_S", 1.0)
    monkeypatch.setattr(server.reconciler.job_keeper, "RAY_SOON_S", 0.01)
    ray.stops_at_once = False
    job_id = submitted(api, ray)
    started = time.monotonic()
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_job(job_id, lambda _: len(ray.stops) == 2)
    ray.stops_at_once = True
    api.await_status(job_id, "cancelled")
    assert len(ray.stops) == 3
    assert time.monotonic() - started > 2


def test_cancel_while_ray_is_unreachable(api: Api, ray: FakeRay) -> None:
    job_id = submitted(api, ray)
    ray.down = True
    assert api.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelling"
    time.sleep(0.5)
    assert api.job(job_id)["status"] == "cancelling"
    ray.down = False
    api.await_status(job_id, "cancelled")


def test_job_fails_when_ray_keeps_refusing_it(api: Api, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RAY_EVERY_S", 0.05)
    monkeypatch.setattr(server.reconciler.job_keeper, "SUBMIT_WITHIN_S", 0.3)
    ray.refuse = True
    error = api.await_status(api.make()["id"], "failed")["error"]
    assert error["code"] == "submission_failed"
    assert "no agent" in error["message"]


def test_late_submission_after_cancel_may_not_write(api: Api, ray: FakeRay, settings: Settings) -> None:
    ray.refuse = True
    job_id = api.make()["id"]
    api.await_job(job_id, lambda _: settings.job_dir(job_id).job_file.exists())
    fence = AttemptFence.of(settings.job_dir(job_id), 1)
    fence()
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    with pytest.raises(StaleAttemptError):
        fence()
    ray.refuse = False
    api.post(f"/v1/jobs/{job_id}/resume")
    api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
    AttemptFence.of(settings.job_dir(job_id), 2)()


def test_hanging_disk_blocks_no_other_request(
    api: Api, ray: FakeRay, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(path: Path, content: bytes, **options: Any) -> None:
        hangs.set()
        assert goes_on.wait(60)
        write_atomically(path, content, **options)

    monkeypatch.setattr(server.files.job_json, "write_atomically", hang)
    job_id = api.make()["id"]
    try:
        assert hangs.wait(20)
        other = api.make()["id"]  # a write: SQLite has one writer at a time
        assert api.post(f"/v1/jobs/{other}/cancel").status_code == 202
        assert not settings.job_dir(job_id).job_file.exists()
    finally:
        goes_on.set()
    api.await_job(job_id, lambda _: (job_id, 1) in ray.submissions)


def test_server_dies_before_job_json_is_written(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_arguments: Any, **_options: Any) -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patched, running(settings, ray) as api:
        patched.setattr(server.files.job_json, "write_atomically", die)
        job_id = api.make()["id"]
        api.await_status(job_id, "starting")
    assert not settings.job_dir(job_id).job_file.exists()
    with running(settings, ray) as api:
        api.await_job(job_id, lambda _: ray.submissions == [(job_id, 1)])
    assert JobFile.model_validate_json(settings.job_dir(job_id).job_file.read_bytes()).attempt == 1


def test_delayed_job_json_does_not_overwrite_a_newer_one(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a frozen server comes late: another one has retried the attempt meanwhile."""
    settings.data_dir.mkdir()
    database, fsync = Database(settings.database), os.fsync
    database.migrate()
    with database.write() as session:
        jobs.transition(session, jobs.create(session, "job_a", parse_job_spec(SPEC)), Status.STARTING)

    def another_attempt(file: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        fsync(file)
        with database.write() as session:
            job = jobs.get(session, "job_a", lock=True)
            jobs.retry_lost(session, job, {"code": "driver_died", "message": "killed"})
            jobs.transition(session, job, Status.STARTING)
        job_json.authorize_attempt(database, settings, "job_a", 2)

    monkeypatch.setattr(os, "fsync", another_attempt)
    with pytest.raises(StaleAttemptError, match="attempt 1 of job job_a is over"):
        job_json.authorize_attempt(database, settings, "job_a", 1)
    AttemptFence.of(settings.job_dir("job_a"), 2)()
    assert [path.name for path in settings.job_dir("job_a").path.iterdir()] == ["job.json"]
    with pytest.raises(StaleAttemptError, match="was deleted"):
        job_json.authorize_attempt(database, settings, "job_b", 1)
    assert not settings.job_dir("job_b").path.exists()
    database.close()


def test_job_whose_job_json_cannot_be_written_fails(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RAY_EVERY_S", 0.05)
    monkeypatch.setattr(server.reconciler.job_keeper, "SUBMIT_WITHIN_S", 0.3)
    with running(settings.model_copy(update={"max_active_jobs": 1}), ray) as api:
        first, second, third = submitted(api, ray), api.make()["id"], api.make()["id"]
        in_the_way = settings.job_dir(second).path
        in_the_way.write_text("a file")
        ray.jobs[first, 1] = RayJob(RayJobState.STOPPED, "")
        job = api.await_status(second, "failed")
        assert (job["error"]["code"], job["error"]["retryable"]) == ("submission_failed", True)
        assert "job.json could not be written: " in job["error"]["message"]
        assert str(settings.data_dir) not in job["error"]["message"]
        api.await_job(third, lambda _: (third, 1) in ray.submissions)
        in_the_way.unlink()
        api.post(f"/v1/jobs/{second}/resume")
        ray.jobs[third, 1] = RayJob(RayJobState.STOPPED, "")
        api.await_job(second, lambda _: (second, 2) in ray.submissions)


def test_full_disk_at_start_is_reported(api: Api, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RAY_EVERY_S", 0.05)
    monkeypatch.setattr(server.reconciler.job_keeper, "SUBMIT_WITHIN_S", 0.3)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        job_id = api.make()["id"]
        error = api.await_status(job_id, "failed")["error"]
    assert (error["code"], error["retryable"]) == ("disk_full", True)
    assert "No space left on device" in error["message"]
    assert ray.submissions == []
    api.post(f"/v1/jobs/{job_id}/resume")
    api.await_job(job_id, lambda _: ray.submissions == [(job_id, 2)])


def test_temporarily_full_disk_does_not_fail_the_job(api: Api, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RAY_EVERY_S", 0.05)
    fsync, tries = os.fsync, 0

    def full_at_first(file: int) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full_at_first)
    job_id = submitted(api, ray)
    assert api.job(job_id)["status"] == "starting"


def test_lingering_driver_is_stopped(api: Api, ray: FakeRay, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.driver_watch, "EXIT_GRACE_S", 0.2)
    job_id = submitted(api, ray)
    publish(settings, job_id)
    with driver_of(settings, job_id) as report:
        report("finished", result={"images": 10})
    api.await_status(job_id, "succeeded")
    assert ray.stops == [(job_id, 1)]


@pytest.mark.both_databases
def test_active_jobs_are_limited(settings: Settings, ray: FakeRay) -> None:
    with running(settings.model_copy(update={"max_active_jobs": 2}), ray) as api:
        made = [api.make()["id"] for _ in range(4)]
        api.await_job(made[1], lambda _: len(ray.submissions) == 2)
        time.sleep(0.4)
        assert [api.job(job_id)["status"] for job_id in made] == ["starting", "starting", "queued", "queued"]
        ray.jobs[made[0], 1] = RayJob(RayJobState.STOPPED, "")
        api.await_status(made[2], "starting")
        assert api.job(made[3])["status"] == "queued"


def test_server_stops_while_events_arrive(settings: Settings, ray: FakeRay) -> None:
    """Repeated, because a cancellation must not be lost when an event arrives at the same time."""
    with running(settings, ray) as api:
        job_id = submitted(api, ray)
    ended = threading.Event()

    def write() -> None:
        with driver_of(settings, job_id) as report:
            while not ended.wait(0.001):
                report("iteration", iteration=1, total=10)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            with running(settings, ray) as api:
                api.await_job(job_id, lambda j: j["progress"]["done"] == 1)
    finally:
        ended.set()
        writer.join()


def rename_table(settings: Settings, old: str, new: str) -> None:
    """Rename a table, so that every query of it fails until it is renamed back."""
    database = Database(settings.database)
    with database.write() as session:
        session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
    database.close()


@pytest.mark.both_databases
def test_failing_database_makes_the_server_unready(
    api: Api, ray: FakeRay, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server.reconciler.reconciler, "POLL_EVERY_S", 0.05)
    submitted(api, ray)  # from now on the reconciler polls often
    rename_table(settings, "jobs", "elsewhere")
    deadline = time.monotonic() + 20
    while "cannot list the jobs" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    unready = api.get("/readyz")
    assert (unready.status_code, unready.headers["content-type"]) == (503, "application/problem+json")
    assert "the database does not" in unready.json()["detail"]
    assert "jobs" not in unready.json()["detail"]  # /readyz is public: details go to the log only
    assert "not ready: the database does not" in caplog.text
    assert api.get("/healthz").status_code == 200
    rename_table(settings, "elsewhere", "jobs")
    deadline = time.monotonic() + 20
    while api.get("/readyz").status_code != 200:  # answers are cached for a second
        assert time.monotonic() < deadline
        time.sleep(0.02)
    submitted(api, ray)


def test_server_without_reconciler_is_unready(
    settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise SystemError("a bug")

    monkeypatch.setattr(server.reconciler.reconciler, "wait_until_set", broken)
    with running(settings, ray) as api:
        deadline = time.monotonic() + 20
        while (unready := api.get("/readyz")).status_code == 200:  # the reconciler has not failed yet
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert unready.status_code == 503
        assert "reconciler has stopped" in unready.json()["detail"]
    assert "'reconciler' failed" in caplog.text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sqlite_is_in_wal_mode(api: Api, ray: FakeRay, settings: Settings) -> None:
    submitted(api, ray)
    assert Path(f"{settings.database.removeprefix('sqlite:///')}-wal").exists()
