"""Drivers that stop sending heartbeats while Ray reports them as running, and a Ray that does not stop a driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import server.reconciler.driver_watch
import server.reconciler.job_keeper
import server.reconciler.previous_attempt
from server.settings import Settings
from server.store.database import Database
from server.store.models import Attempt
from tests.server.conftest import Api, FakeRay, attempt_dir, driver_of, running
from tests.server.reconciler.test_lost_attempts import events
from tests.server.reconciler.test_reconciler import publish, submitted
from workers.client import RayJob, RayJobState

ROOT = Path(__file__).parents[3]
SILENCE_S = 2.0
BEATING = """
import sys, time
from pathlib import Path
import workers.heartbeat
from cafe_core.jobs.jobdir import JobDir
workers.heartbeat.EVERY_S = 0.1
with workers.heartbeat.sending_heartbeats(JobDir(Path(sys.argv[1])), int(sys.argv[2])):
    time.sleep(60)
"""
"""A process that looks like a driver from outside: it is busy and sends heartbeats."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(server.reconciler.job_keeper, "RAY_EVERY_S", 0.1)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"driver_silence_s": SILENCE_S})


@contextmanager
def beating(settings: Settings, job_id: str, attempt: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A process that sends heartbeats like the attempt's driver."""
    directory = settings.job_dir(job_id)
    command = [sys.executable, "-c", BEATING, str(directory.path), str(attempt)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 30
        heartbeat = directory.attempt(attempt).heartbeat_file
        while not heartbeat.exists() or not heartbeat.read_bytes():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def is_given_up(settings: Settings, job_id: str) -> bool:
    with closing(Database(settings.database)) as database, database.read() as session:
        return session.get_one(Attempt, (job_id, 1)).given_up_at is not None


def test_frozen_driver_is_replaced_and_a_live_one_is_not(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ray)
    with beating(settings, job_id) as driver:
        time.sleep(2 * SILENCE_S)
        assert ray.stops == []
        driver.send_signal(signal.SIGSTOP)
        api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
    assert ray.stops == [(job_id, 1)]
    [lost] = events(api, job_id, "lost")
    assert (lost["attempt"], lost["data"]["code"]) == (1, "driver_silent")
    assert "heartbeats" in lost["data"]["reason"]
    with beating(settings, job_id, 2):
        time.sleep(2 * SILENCE_S)
        assert ray.stops == [(job_id, 1)]
        publish(settings, job_id, 2)
        ray.jobs[job_id, 2] = RayJob(RayJobState.SUCCEEDED, "", 0)
        assert api.await_status(job_id, "succeeded")["attempt"] == 2


@pytest.mark.parametrize("heartbeat", [None, b""])
def test_driver_without_heartbeat_is_never_given_up(api: Api, ray: FakeRay, settings: Settings, heartbeat: bytes | None) -> None:
    job_id = submitted(api, ray)
    if heartbeat is not None:
        attempt_dir(settings, job_id).path.mkdir(parents=True)
        attempt_dir(settings, job_id).heartbeat_file.write_bytes(heartbeat)
    with driver_of(settings, job_id) as report:
        report("phase", phase="condensing")
    time.sleep(2 * SILENCE_S)
    assert api.job(job_id)["status"] == "running"
    assert ray.stops == []


def test_next_server_knows_why_a_silent_driver_was_stopped(settings: Settings, ray: FakeRay) -> None:
    ray.stops_at_once = False
    with running(settings, ray) as api:
        job_id = submitted(api, ray)
        with beating(settings, job_id) as driver:
            driver.send_signal(signal.SIGSTOP)
            api.await_job(job_id, lambda _: ray.stops != [])
    assert is_given_up(settings, job_id)
    ray.jobs[job_id, 1] = RayJob(RayJobState.STOPPED, "")
    with running(settings, ray) as api:
        api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
        assert [event["data"]["code"] for event in events(api, job_id, "lost")] == ["driver_silent"]


def test_next_server_stops_a_driver_given_up_by_its_predecessor(
    settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first server dies before it asks Ray."""
    with monkeypatch.context() as patched, running(settings, ray) as api:
        patched.setattr(server.reconciler.job_keeper.JobKeeper, "_stop", lambda *_: (_ for _ in ()).throw(SystemError("killed")))
        job_id = submitted(api, ray)
        with beating(settings, job_id) as driver:
            driver.send_signal(signal.SIGSTOP)
            api.await_job(job_id, lambda _: is_given_up(settings, job_id))
    assert ray.stops == []
    with running(settings, ray) as api:
        api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
    assert ray.stops == [(job_id, 1)]


def test_job_whose_drivers_keep_freezing_fails(settings: Settings, ray: FakeRay) -> None:
    with running(settings.model_copy(update={"max_lost_attempts": 0}), ray) as api:
        job_id = submitted(api, ray)
        with beating(settings, job_id) as driver:
            driver.send_signal(signal.SIGSTOP)
            error = api.await_status(job_id, "failed")["error"]
    assert (error["code"], error["retryable"]) == ("driver_silent", True)


@pytest.fixture
def ignores_stop(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """A Ray that accepts stop requests but keeps reporting the job as running: its supervisor is frozen."""
    monkeypatch.setattr(server.reconciler.driver_watch, "STOPS_WITHIN_S", 0.5)
    monkeypatch.setattr(server.reconciler.driver_watch, "EXIT_GRACE_S", 0.2)
    monkeypatch.setattr(server.reconciler.previous_attempt, "ENDS_WITHIN_S", 0.5)
    ray.stops_at_once = False
    return ray


def test_finished_job_succeeds_although_ray_does_not_stop_it(api: Api, ignores_stop: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ignores_stop)
    publish(settings, job_id)
    with driver_of(settings, job_id) as report:
        report("finished", result={"images": 10})
    assert api.await_status(job_id, "succeeded")["result"] == {"images": 10}
    assert ignores_stop.jobs[job_id, 1].state is RayJobState.RUNNING


def test_job_is_cancelled_although_ray_does_not_stop_it(api: Api, ignores_stop: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ignores_stop)
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    assert json.loads(settings.job_dir(job_id).job_file.read_bytes())["attempt"] == 0


def test_silent_driver_is_replaced_although_ray_does_not_stop_it(api: Api, ignores_stop: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ignores_stop)
    with beating(settings, job_id) as driver:
        driver.send_signal(signal.SIGSTOP)
        api.await_job(job_id, lambda _: (job_id, 2) in ignores_stop.submissions)
    assert [event["data"]["code"] for event in events(api, job_id, "lost")] == ["driver_silent"]
    assert json.loads(settings.job_dir(job_id).job_file.read_bytes())["attempt"] == 2
