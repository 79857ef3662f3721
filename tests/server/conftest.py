"""A server over real HTTP and a real database, with a hand-written Ray that runs nothing by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from cafe_core.jobdir import AttemptDir, EventLog
from server.app import create_app
from server.ray_api import RayApi
from server.settings import Settings
from workers.client import RayCluster, RayJob, RayJobState, RayNode, RayRefusedError, RayUnreachableError

SPEC = {"kind": "condense", "dataset": {"name": "digits"}, "ipc": 1, "iterations": 10, "network": {"width": 8, "depth": 2}}


class FakeRay:
    """Keeps what is submitted; tests move it on. `down` makes it unreachable, `refuse` makes it refuse submissions.

    The first `deaf_to_stops` requests to stop a job go unheard, as before Ray has started what is to run its driver.
    """

    address = "http://ray.invalid"

    def __init__(self, cpus: float = 4.0) -> None:
        self.jobs: dict[tuple[str, int], RayJob] = {}
        self.submissions: list[tuple[str, int]] = []
        self.stops: list[tuple[str, int]] = []
        self.cpus = cpus
        self.down = False
        self.refuse = False
        self.stops_at_once = True
        self.deaf_to_stops = 0

    def _answer(self) -> None:
        if self.down:
            raise RayUnreachableError("Ray does not answer")

    async def submit(self, job_dir: Path, job_id: str, attempt: int, *, python: str) -> None:  # noqa: ARG002
        self._answer()
        assert (job_dir / "job.json").exists()
        if self.refuse:
            raise RayRefusedError(500, "no agent")
        self.submissions.append((job_id, attempt))
        self.jobs[job_id, attempt] = RayJob(RayJobState.RUNNING, "")

    async def job(self, job_id: str, attempt: int) -> RayJob | None:
        self._answer()
        return self.jobs.get((job_id, attempt))

    async def stop(self, job_id: str, attempt: int) -> bool:
        self._answer()
        self.stops.append((job_id, attempt))
        if len(self.stops) <= self.deaf_to_stops:
            return False
        if self.stops_at_once:
            self.jobs[job_id, attempt] = RayJob(RayJobState.STOPPED, "")
        return True

    async def delete(self, job_id: str, attempt: int) -> None:
        self._answer()
        self.jobs.pop((job_id, attempt), None)

    async def logs(self, job_id: str, attempt: int) -> str | None:
        self._answer()
        return "one\ntwo\nthree\n" if (job_id, attempt) in self.jobs else None

    async def ready(self) -> bool:
        self._answer()
        return True

    async def cluster(self) -> RayCluster:
        self._answer()
        node = RayNode("n1", "127.0.0.1", True, self.cpus, 0.0, self.cpus, 0.0, memory_bytes=8 << 30)
        return RayCluster("2.60.0", [node])

    async def close(self) -> None:
        pass


class Api(httpx.Client):
    """A client of a running server, with shortcuts."""

    def make(self, **fields: Any) -> dict[str, Any]:
        """POST a job that is taken."""
        response = self.post("/v1/jobs", json=SPEC | fields)
        assert response.status_code == 201, response.text
        job: dict[str, Any] = response.json()
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is."""
        job: dict[str, Any] = self.get(f"/v1/jobs/{job_id}").json()
        return job

    def await_status(self, job_id: str, *statuses: str, timeout_s: float = 20) -> dict[str, Any]:
        """The job once it is in one of these states."""
        return self.await_job(job_id, lambda job: job["status"] in statuses, timeout_s=timeout_s)

    def await_job(self, job_id: str, condition: Callable[[dict[str, Any]], bool], *, timeout_s: float = 20) -> dict[str, Any]:
        """The job once a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition(job := self.job(job_id)):
            assert time.monotonic() < deadline, f"after {timeout_s} s: {job}"
            time.sleep(0.03)
        return job


@contextmanager
def running(settings: Settings, ray: RayApi) -> Iterator[Api]:
    """A server on a free port, in a thread, until the end of the block."""
    config = uvicorn.Config(create_app(settings, ray), port=0, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with Api(base_url=f"http://127.0.0.1:{port}", timeout=40) as api:
            yield api
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def api(settings: Settings, ray: FakeRay) -> Iterator[Api]:
    with running(settings, ray) as client:
        yield client


@contextmanager
def driver_of(settings: Settings, job_id: str, attempt: int = 1) -> Iterator[EventLog]:
    """The event log that the attempt's driver would write."""
    log = EventLog(settings.job_dir(job_id).attempt(attempt).events_file)
    try:
        yield log
    finally:
        log.close()


def attempt_dir(settings: Settings, job_id: str, attempt: int = 1) -> AttemptDir:
    """Where the attempt's files are."""
    return settings.job_dir(job_id).attempt(attempt)
