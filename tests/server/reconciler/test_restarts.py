"""`cafe serve` as a process that is killed and restarted on its port while a client follows a job."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cafe_core.spec.job import parse_job_spec
from server.client import Client
from server.settings import Settings
from server.states import Status
from server.store import jobs
from server.store.database import Database
from server.store.models import new_id
from tests.reliability.served import free_port
from tests.server.conftest import SPEC, driver_of

ROOT = Path(__file__).parents[3]


class Served:
    """A server on one port. Its Ray does not answer, so jobs progress only through their drivers' files."""

    def __init__(self, settings: Settings, *options: str, port: int | None = None) -> None:
        self._settings = settings
        self._options = options
        self._port = port or free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        code = "from server.cli.main import main; main()"
        options = ["--port", str(self._port), "--data-dir", str(self._settings.data_dir), "--ray-address", "http://127.0.0.1:9"]
        options += self._options
        environ = {"RAY_AUTH_TOKEN": "t"}
        if self._settings.database_url is not None:
            environ["CAFE_DATABASE_URL"] = self._settings.database_url.get_secret_value()
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        with (self._settings.data_dir / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, "serve", *options],
                env=os.environ | environ,
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )
        self._await_answer()

    def _await_answer(self) -> None:
        """Wait until this process, not another one on the port, listens."""
        assert self._process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._settings.data_dir / "server.log").read_text()
            if any(c.status == psutil.CONN_LISTEN for c in psutil.Process(self._process.pid).net_connections("tcp")):
                return
            time.sleep(0.01)
        raise AssertionError("no answer within a minute")

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def end(self, how: signal.Signals) -> float:
        """Send a signal and return the seconds until the process has ended."""
        assert self._process is not None
        asked = time.monotonic()
        self._process.send_signal(how)
        self._process.wait(30)
        return time.monotonic() - asked


@contextmanager
def serving(settings: Settings) -> Iterator[Served]:
    served = Served(settings)
    served.start()
    try:
        yield served
    finally:
        served.end(signal.SIGKILL)


def running_job(database: Database) -> str:
    """Create a job that is running according to the database."""
    with database.write() as session:
        job = jobs.create(session, new_id("job"), parse_job_spec(SPEC))
        jobs.transition(session, job, Status.STARTING)
        jobs.attempt_of(session, job).submitted_at = job.created_at
        return job.id


def test_client_follows_a_job_across_restarts(settings: Settings) -> None:
    count, restarts = 60, 2
    with serving(settings) as served:
        database = Database(settings.database)
        job_id = running_job(database)
        seen: list[dict[str, Any]] = []
        failed: list[BaseException] = []

        def watch() -> None:
            client = Client(served.url)
            try:
                seen.extend(client.follow(job_id))
            except BaseException as error:
                failed.append(error)
            finally:
                client.close()

        watching = threading.Thread(target=watch)
        watching.start()
        deadline = time.monotonic() + 60
        while not seen and not failed:  # the first request is not retried, so the first restart waits for it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with driver_of(settings, job_id) as report:
            report("phase", phase="condensing")
            for i in range(1, count + 1):
                report("iteration", iteration=i, total=count)
                if i % (count // restarts) == 0:
                    taken = served.end(signal.SIGTERM if i == count else signal.SIGKILL)
                    assert taken < 4  # an open stream would delay it by 5 s
                    served.start()
                time.sleep(0.02)
        deadline = time.monotonic() + 60
        while (job := httpx.get(f"{served.url}/v1/jobs/{job_id}", trust_env=False).json())["progress"]["done"] < count:
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
        with database.write() as session:  # like another server would
            jobs.transition(
                session,
                jobs.get(session, job_id, lock=True),
                Status.FAILED,
                error={"code": "x", "message": "x", "retryable": True},
            )
        database.close()
        watching.join(60)
        assert not failed, "".join(traceback.format_exception(failed[0]))
        assert [event["id"] for event in seen] == list(range(1, len(seen) + 1))
        assert [event["data"]["iteration"] for event in seen if event["type"] == "iteration"] == list(range(1, count + 1))
        assert seen[-1]["data"]["status"] == "failed"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restart_with_open_streams_is_fast(settings: Settings, how: signal.Signals) -> None:
    """Well below the 5 s that a stream which does not end would take, and in a few seconds on a busy machine."""
    with serving(settings) as served:
        database = Database(settings.database)
        job_id = running_job(database)
        database.close()
        headers = {"Accept": "text/event-stream"}
        with httpx.stream("GET", f"{served.url}/v1/jobs/{job_id}/events", headers=headers, trust_env=False) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("retry")
            began = time.monotonic()
            ended = served.end(how)
            served.start()
            print(f"{how.name}: ended after {ended:.2f} s, answers after {time.monotonic() - began:.2f} s")
            assert ended < 4


def test_server_with_shared_port_is_replaced_without_downtime(settings: Settings) -> None:
    """Every request is answered by one or the other server. A connection that the first had not accepted when it closed is
    reset before the request is sent; clients retry, as `cafe` does.
    """
    port = free_port()
    over = threading.Event()
    answered: list[float] = []
    refused: list[str] = []

    def ask() -> None:
        while not over.is_set():
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=20, trust_env=False).status_code == 200
                answered.append(time.monotonic())
            except httpx.TransportError as error:
                refused.append(repr(error))

    asking = threading.Thread(target=ask)
    first, second = (Served(settings, "--share-port", port=port) for _ in range(2))
    first.start()
    try:
        asking.start()
        second.start()
        first.end(signal.SIGTERM)
        before = len(answered)
        while len(answered) < before + 20:
            assert asking.is_alive()
            time.sleep(0.01)
    finally:
        over.set()
        asking.join()
        second.end(signal.SIGKILL)
    gap = max(later - earlier for earlier, later in itertools.pairwise(answered))
    print(f"{len(answered)} requests answered, {len(refused)} connections reset, at most {gap:.2f} s between two answers")
    assert len(refused) <= 1, refused


def test_port_is_shared_only_with_share_port_and_ray_address(settings: Settings) -> None:
    def refusal(*options: str) -> str:
        command = [
            sys.executable,
            "-c",
            "from server.cli.main import main; main()",
            "serve",
            "--data-dir",
            str(settings.data_dir),
            *options,
        ]
        done = subprocess.run(
            command, env=os.environ | {"RAY_AUTH_TOKEN": "t"}, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2, done
        return done.stderr

    assert "--share-port needs --ray-address" in refusal("--share-port")
    with serving(settings) as alone:
        port = alone.url.rpartition(":")[2]
        taken = refusal("--share-port", "--port", port, "--ray-address", "http://127.0.0.1:9")
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in taken
