from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.reconciler.leader_election import Leader
from server.settings import Settings
from server.store.database import Database
from tests.postgres import PostgresCluster
from tests.server.conftest import Api, FakeRay, driver_of, running
from workers.client import RayJob, RayJobState

pytestmark = pytest.mark.both_databases

LEADING_PROCESS = """
import asyncio, sys
from pathlib import Path
from server.store.database import Database
from server.reconciler.leader_election import Leader

async def duty():
    print("leads", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("stopped", flush=True)

asyncio.run(Leader(Database(sys.argv[1]), Path(sys.argv[2])).run(duty))
"""


def lock_file(settings: Settings) -> Path:
    return settings.data_dir / "reconciler.lock"


@contextmanager
def another_leader(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """A process that leads and does nothing else."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", LEADING_PROCESS, settings.database, str(lock_file(settings))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "leads\n"
            yield process
        finally:
            process.kill()


def leads(api: Api) -> bool:
    return "cafe_reconciler_leader 1.0" in api.get("/metrics").text


def eventually(condition: Callable[[], bool], *, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)


def test_one_of_two_servers_leads_and_both_serve(settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as follower:  # alone for now
        eventually(lambda: leads(follower))
        with running(settings, ray) as other:
            assert other.get("/readyz").status_code == 200
            assert not leads(other)
            ids = [api.make()["id"] for api in (follower, other, follower, other)]
            for job_id in ids:
                other.await_job(job_id, lambda _, job_id=job_id: (job_id, 1) in ray.submissions)  # type: ignore[misc]
            version = other.get(f"/v1/jobs/{ids[0]}").headers["ETag"]
            with driver_of(settings, ids[0]) as report:
                report("phase", phase="condensing")
            seen = other.get(f"/v1/jobs/{ids[0]}?wait=20", headers={"If-None-Match": version})
            assert seen.status_code == 200  # it learns of the other server's change
            other.await_status(ids[0], "running")
            assert other.post(f"/v1/jobs/{ids[0]}/cancel").status_code == 202
            other.await_status(ids[0], "cancelled")
            assert [leads(follower), leads(other)] == [True, False]
    assert sorted(ray.submissions) == sorted((job_id, 1) for job_id in ids)
    assert ray.stops == [(ids[0], 1)]


def test_standby_takes_over_when_the_leader_stops(settings: Settings, ray: FakeRay) -> None:
    with contextlib.ExitStack() as first_server:
        first = first_server.enter_context(running(settings, ray))
        eventually(lambda: leads(first))
        with running(settings, ray) as second:
            job_id = first.make()["id"]
            first.await_job(job_id, lambda _: (job_id, 1) in ray.submissions)
            with driver_of(settings, job_id) as report:
                report("phase", phase="condensing")
                report("iteration", iteration=1, total=10)
                second.await_job(job_id, lambda job: job["progress"]["done"] == 1)
                first_server.close()
                report("iteration", iteration=2, total=10)
                second.await_job(job_id, lambda job: job["progress"]["done"] == 2)
            assert leads(second)
            events = second.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["data"]["iteration"] for event in events if event["type"] == "iteration"] == [1, 2]
    assert ray.submissions == [(job_id, 1)]


def test_standby_takes_over_from_a_killed_leader(settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as api:
        pass  # creates the tables
    with another_leader(settings) as leader, running(settings, ray) as api:
        job_id = api.make()["id"]
        time.sleep(1.5)
        assert (api.job(job_id)["status"], leads(api), ray.submissions) == ("queued", False, [])
        leader.kill()
        killed = time.monotonic()
        eventually(lambda: ray.submissions == [(job_id, 1)])
        assert time.monotonic() - killed < 10  # about one second on an idle machine
        assert leads(api)
        ray.jobs[job_id, 1] = RayJob(RayJobState.RUNNING, "")
        api.post(f"/v1/jobs/{job_id}/cancel")
        api.await_status(job_id, "cancelled")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_frozen_leader_is_replaced_and_steps_down(settings: Settings, ray: FakeRay) -> None:
    with another_leader(settings) as leader:
        os.kill(leader.pid, signal.SIGSTOP)
        with running(settings, ray) as api:
            job_id = api.make()["id"]
            eventually(lambda: leads(api), within_s=40)
            api.await_job(job_id, lambda _: ray.submissions == [(job_id, 1)])
            os.kill(leader.pid, signal.SIGCONT)
            assert leader.stdout is not None
            assert leader.stdout.readline() == "stopped\n"
            assert leads(api)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_database_outage_is_reported_and_survived(settings: Settings, ray: FakeRay, postgres: PostgresCluster) -> None:
    with running(settings, ray) as api:
        job_id = api.make()["id"]
        api.await_job(job_id, lambda _: (job_id, 1) in ray.submissions)
        with postgres.down():
            for method, path in (("GET", f"/v1/jobs/{job_id}"), ("GET", "/v1/jobs"), ("POST", f"/v1/jobs/{job_id}/cancel")):
                answer = api.request(method, path)
                assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), answer.text
                assert int(answer.headers["Retry-After"]) > 0
            assert api.get("/readyz").status_code == 503
            assert api.get("/healthz").status_code == 200
            with driver_of(settings, job_id) as report:
                report("phase", phase="condensing")
        api.await_status(job_id, "running")
        eventually(lambda: api.get("/readyz").status_code == 200)  # answers are cached for a second
        queued = api.make()["id"]
        api.await_job(queued, lambda _: (queued, 1) in ray.submissions)
    assert sorted(ray.submissions) == sorted([(job_id, 1), (queued, 1)])


def test_duties_are_cancelled_when_leadership_is_lost(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.reconciler.leader_election.EVERY_S", 0.05)
    settings.data_dir.mkdir()
    database = Database(settings.database)
    started: list[str] = []
    ended: list[str] = []

    async def duty() -> None:
        started.append("duty")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("duty")

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)

    async def lead() -> None:
        leader, standby = (Leader(database, lock_file(settings)) for _ in range(2))
        first, second = (asyncio.create_task(one.run(duty, duty)) for one in (leader, standby))
        await until(lambda: len(started) == 2)
        assert leader.leads != standby.leads
        holder = leader if leader.leads else standby
        await holder._in_thread(holder._lock.release)  # as if its connection broke
        # the other may lead before this one checks its lock, so the order of starts and ends is open
        await until(lambda: len(started) == 4 and len(ended) == 2)
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert (leader.leads, standby.leads, leader.ended) == (False, False, True)
        assert len(ended) == len(started) == 4

    asyncio.run(lead())
    database.close()


def test_failed_duty_ends_leadership_and_another_server_leads(settings: Settings) -> None:
    settings.data_dir.mkdir()
    database = Database(settings.database)
    led = asyncio.Event()

    async def broken() -> None:
        raise SystemError("a bug")

    async def works() -> None:
        led.set()
        await asyncio.Event().wait()

    async def lead() -> None:
        failing, standby = (Leader(database, lock_file(settings)) for _ in range(2))
        with pytest.raises(SystemError, match="a bug"):
            await failing.run(broken)
        assert (failing.ended, failing.leads) == (True, False)
        task = asyncio.create_task(standby.run(works))
        async with asyncio.timeout(20):
            await led.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(lead())
    database.close()
