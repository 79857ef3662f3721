"""Fixtures: a server over real HTTP with a real database and a fake Ray that runs nothing by itself."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import make_url

from cafe_core.jobs.jobdir import AttemptDir, EventLog
from server.app import create_app
from server.http.graceful import GracefulServer
from server.ray.api import RayApi
from server.settings import Settings
from server.store.database import Database
from tests.postgres import ABSENT, PostgresCluster, binaries, postgres_cluster
from workers.client import RayCluster, RayJob, RayJobState, RayNode, RayRefusedError, RayUnreachableError

SPEC = {"kind": "condense", "dataset": {"name": "digits"}, "ipc": 1, "iterations": 10, "network": {"width": 8, "depth": 2}}


class FakeRay:
    """Stores submitted jobs; tests change their states. `down` makes it unreachable, `refuse` makes it refuse submissions.

    The first `ignored_stops` stop requests have no effect, as while Ray has not yet started a job's supervisor.
    """

    address = "http://ray.invalid"

    def __init__(self, cpus: float = 4.0) -> None:
        self.jobs: dict[tuple[str, int], RayJob] = {}
        self.submissions: list[tuple[str, int]] = []
        self.stops: list[tuple[str, int]] = []
        self.cpus = cpus
        self.looks = 0
        self.has_nodes = True
        self.down = False
        self.refuse = False
        self.stops_at_once = True
        self.ignored_stops = 0

    def _answer(self) -> None:
        if self.down:
            raise RayUnreachableError("Ray does not answer")

    async def submit(self, job_dir: Path, job_id: str, attempt: int, *, python: str, cpus: float) -> None:  # noqa: ARG002
        self._answer()
        assert (job_dir / "job.json").exists()
        if self.refuse:
            raise RayRefusedError(500, "no agent")
        self.submissions.append((job_id, attempt))
        self.jobs[job_id, attempt] = RayJob(RayJobState.RUNNING, "")

    async def job(self, job_id: str, attempt: int) -> RayJob | None:
        self.looks += 1
        self._answer()
        return self.jobs.get((job_id, attempt))

    async def stop(self, job_id: str, attempt: int) -> bool:
        self._answer()
        self.stops.append((job_id, attempt))
        if len(self.stops) <= self.ignored_stops:
            return False
        if self.stops_at_once and (job_id, attempt) in self.jobs:
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
        return self.has_nodes

    async def cluster(self) -> RayCluster:
        self._answer()
        node = RayNode("n1", "127.0.0.1", True, self.cpus, 0.0, self.cpus, 0.0, memory_bytes=8 << 30)
        return RayCluster("2.60.0", [node])

    async def close(self) -> None:
        pass


class Api(httpx.Client):
    """An HTTP client of a running server, with shortcuts."""

    def __init__(self, **options: Any) -> None:
        """Connect without TLS: loading the certificate authorities would take a tenth of a second in every test."""
        super().__init__(verify=False, **options)

    def make(self, **fields: Any) -> dict[str, Any]:
        """POST a condense job and return it."""
        return self.submit(SPEC | fields)

    def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        """POST a job and return it."""
        response = self.post("/v1/jobs", json=spec)
        assert response.status_code == 201, response.text
        job: dict[str, Any] = response.json()
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the current state of a job."""
        job: dict[str, Any] = self.get(f"/v1/jobs/{job_id}").json()
        return job

    def await_status(self, job_id: str, *statuses: str, timeout_s: float = 20) -> dict[str, Any]:
        """Wait until the job has one of these states and return it."""
        return self.await_job(job_id, lambda job: job["status"] in statuses, timeout_s=timeout_s)

    def await_job(self, job_id: str, condition: Callable[[dict[str, Any]], bool], *, timeout_s: float = 20) -> dict[str, Any]:
        """Wait until a condition on the job holds and return it."""
        deadline = time.monotonic() + timeout_s
        while not condition(job := self.job(job_id)):
            assert time.monotonic() < deadline, f"after {timeout_s} s: {job}"
            time.sleep(0.03)
        return job


class PromptServer(GracefulServer):
    """Checks for shutdown every 5 ms instead of every 100 ms: the tests start a thousand servers."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.005)


@contextmanager
def running(settings: Settings, ray: RayApi) -> Iterator[Api]:
    """Run a server on a free port in a thread until the end of the block."""
    place_database(settings)
    app = create_app(settings, ray)
    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    server = PromptServer(config, on_shutdown=lambda: app.state.services.close())
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that has a database on SQLite and on PostgreSQL, unless it names one itself.

    `make test` runs a test on PostgreSQL only where it is marked `both_databases`: because it locks rows, runs transactions
    beside each other, or exercises SQL that differs. `make soak` runs all of them on PostgreSQL.
    """
    named = any("database_url" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "database_url" not in metafunc.fixturenames or named:
        return
    marks = [] if metafunc.definition.get_closest_marker("both_databases") else [pytest.mark.soak]
    metafunc.parametrize("database_url", ["sqlite", pytest.param("postgresql", marks=marks)], indirect=True)


@cache
def migrated_sqlite() -> bytes:
    """Return a SQLite database with the tables of the newest migration. Copying it is much faster than migrating."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "cafe.sqlite3")
        database = Database(f"sqlite:///{path}")
        database.migrate()
        database.close()
        assert [file.name for file in path.parent.iterdir()] == [path.name]  # no write-ahead log is left beside it
        return path.read_bytes()


def place_database(settings: Settings) -> None:
    """Give a new data directory a migrated SQLite database; do nothing where a database is named or present."""
    url = make_url(settings.database)
    if url.get_backend_name() != "sqlite" or url.database is None or Path(url.database).exists():
        return
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    Path(url.database).write_bytes(migrated_sqlite())


@pytest.fixture(autouse=True)
def _keep_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore Python's temporary directory after each test: `cafe serve` changes it for its process."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """A PostgreSQL cluster with a template database `migrated` that has the tables and no connections."""
    if binaries() is None:
        pytest.skip(ABSENT)
    with postgres_cluster() as cluster:
        database = Database(cluster.create("migrated"))
        database.migrate()
        database.close()
        yield cluster


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The setting `database_url`: None for SQLite, or the URL of a migrated PostgreSQL database for this test."""
    if request.param == "sqlite":
        yield None
        return
    cluster: PostgresCluster = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    yield cluster.create(name, template="migrated")
    cluster.drop(name)


@pytest.fixture
def settings(tmp_path: Path, database_url: str | None) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=database_url)  # type: ignore[arg-type]  # pydantic converts the string


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def api(settings: Settings, ray: FakeRay) -> Iterator[Api]:
    with running(settings, ray) as client:
        yield client


@contextmanager
def driver_of(settings: Settings, job_id: str, attempt: int = 1) -> Iterator[EventLog]:
    """Write events like the attempt's driver would."""
    log = EventLog(settings.job_dir(job_id).attempt(attempt).events_file)
    try:
        yield log
    finally:
        log.close()


def attempt_dir(settings: Settings, job_id: str, attempt: int = 1) -> AttemptDir:
    """Return the directory of an attempt."""
    return settings.job_dir(job_id).attempt(attempt)
