"""The server as a process with real Rays: its own, and one that outlives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from server.ray.embedded import EmbeddedRay
from server.settings import Settings
from tests.server.conftest import Api, running
from workers.client import RayClient, submission_id

JOB = {
    "iterations": 20,
    "checkpoint_every": 2,
    "method": {"batch_real": 32, "max_outer": 4, "max_inner": 4},
    "resources": {"workers": 1},
}
ENDLESS = JOB | {"iterations": 1_000_000}
START_WITHIN_S = 120

# Two Rays start and stop in one test: a minute, several on a busy machine.
pytestmark = [pytest.mark.real_ray, pytest.mark.timeout(600)]


@dataclass
class Served:
    """`cafe serve` as a process."""

    process: subprocess.Popen[bytes]
    api: Api
    log: Path

    def ended_by(self, how: signal.Signals) -> None:
        """End it with a signal."""
        self.process.send_signal(how)
        assert self.process.wait(60) in (0, -how)
        assert "Traceback" not in self.log.read_text()


@contextmanager
def serving(data_dir: Path, *options: str, **environ: str) -> Iterator[Served]:
    """Run `cafe serve` on a free port, at most until the end of the block."""
    data_dir.mkdir(exist_ok=True)
    log = data_dir / f"server-{time.monotonic_ns()}.log"
    command = [
        sys.executable,
        "-c",
        "from server.cli.main import main; main()",
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(data_dir),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options], env=os.environ | environ, cwd=Path(__file__).parents[3], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_WITHIN_S
        while (found := re.search(r"running on (http://127\.0\.0\.1:[1-9]\d*)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        with Api(base_url=found[1], timeout=40) as api:
            assert api.get("/readyz").json() == {"status": "ok"}
            yield Served(process, api, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def real(settings: Settings, embedded_ray: EmbeddedRay) -> Iterator[Api]:
    with running(settings, RayClient(embedded_ray.address, embedded_ray.token)) as api:
        yield api


@pytest.fixture(scope="module")
def undisturbed(embedded_ray: EmbeddedRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, dict[str, Any]]]:
    """A job that ran without interruption, and its server."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("undisturbed"))
    with running(settings, RayClient(embedded_ray.address, embedded_ray.token)) as api:
        job = api.make(**JOB)
        yield api, succeeded(api, job["id"])


def succeeded(api: Api, job_id: str) -> dict[str, Any]:
    job = api.await_status(job_id, "succeeded", "failed", timeout_s=200)
    assert job["status"] == "succeeded", job["error"]
    return job


def await_iterations(api: Api, job_id: str, iterations: int = 5) -> int:
    """Wait until at least `iterations` of a job are done and return how many are."""
    job = api.await_job(job_id, lambda j: j["progress"]["done"] >= iterations, timeout_s=120)
    assert (job["status"], job["phase"]) == ("running", "condensing")
    done: int = job["progress"]["done"]
    return done


def synthetic_file(api: Api, job_id: str) -> bytes:
    response = api.get(f"/v1/jobs/{job_id}/artifacts/synthetic.safetensors")
    assert response.status_code == 200
    return response.content


def iterations_of(api: Api, job_id: str, attempt: int) -> list[int]:
    """Return the iterations that an attempt has reported."""
    events = api.get(f"/v1/jobs/{job_id}/events", params={"limit": 1000}).json()["data"]
    return [event["data"]["iteration"] for event in events if event["type"] == "iteration" and event["attempt"] == attempt]


def submissions(ray: EmbeddedRay) -> list[str]:
    """Return the ids of all jobs submitted to Ray."""
    records = httpx.get(f"{ray.address}/api/jobs/", headers={"Authorization": f"Bearer {ray.token}"}).json()
    return [record["submission_id"] for record in records]


def of_session(embedded_ray: EmbeddedRay) -> list[psutil.Process]:
    """Return the processes of this Ray, by their command line, session or log files (workers that are forks)."""
    forks = {process.pid for process in psutil.Process().children(recursive=True)}
    directory = str(embedded_ray.directory)
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            in_session = os.getsid(process.pid) == embedded_ray.pid or directory in line
            if in_session or (process.pid in forks and any(file.path.startswith(directory) for file in process.open_files())):
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def of_job(job_id: str) -> list[str]:
    """Return the command lines that contain the job's id."""
    return [
        " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]) if job_id in " ".join(p.info["cmdline"] or [])
    ]


def test_binds_to_loopback_and_requires_its_token(embedded_ray: EmbeddedRay) -> None:
    assert httpx.get(f"{embedded_ray.address}/api/jobs/").status_code == 401
    assert httpx.get(f"{embedded_ray.address}/api/jobs/", headers={"Authorization": "Bearer x"}).status_code == 403
    assert urlsplit(embedded_ray.address).hostname == "127.0.0.1"
    assert embedded_ray.token_file.stat().st_mode & 0o777 == 0o600
    listening = [
        connection.laddr
        for process in of_session(embedded_ray)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    assert {address.ip for address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_job_from_post_to_download_without_leaking_the_token(
    undisturbed: tuple[Api, dict[str, Any]], embedded_ray: EmbeddedRay
) -> None:
    api, job = undisturbed
    cluster = api.get("/v1/cluster").json()
    assert (cluster["ray_version"], cluster["cpus"]["total"], len(cluster["nodes"])) == ("2.60.0", 2.0, 1)
    assert job["progress"]["done"] == job["progress"]["total"]
    names = [artifact["name"] for artifact in api.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"]]
    assert names == ["preview.png", "result.json", "synthetic.safetensors"]
    assert f"{job['id']} attempt 1: built" in api.get(f"/v1/jobs/{job['id']}/logs").text

    records = httpx.get(f"{embedded_ray.address}/api/jobs/", headers={"Authorization": f"Bearer {embedded_ray.token}"}).text
    assert job["id"] in records
    assert embedded_ray.token not in records
    for process in of_session(embedded_ray):
        assert embedded_ray.token not in " ".join(process.cmdline())
    for path in embedded_ray.directory.rglob("*.log"):
        assert embedded_ray.token.encode() not in path.read_bytes()


def test_cancel_leaves_no_process(real: Api) -> None:
    at_once = real.make(**ENDLESS)["id"]
    assert real.post(f"/v1/jobs/{at_once}/cancel").json()["status"] in ("cancelled", "cancelling")
    real.await_status(at_once, "cancelled", timeout_s=60)
    submitted = real.make(**ENDLESS)["id"]
    real.await_status(submitted, "starting")  # Ray may have it without having started anything for it
    real.post(f"/v1/jobs/{submitted}/cancel")
    real.await_status(submitted, "cancelled", timeout_s=60)
    computing = real.make(**ENDLESS)["id"]
    await_iterations(real, computing)
    assert of_job(computing) != []
    assert real.post(f"/v1/jobs/{computing}/cancel").status_code == 202
    real.await_status(computing, "cancelled", timeout_s=60)
    assert [line for job_id in (at_once, submitted, computing) for line in of_job(job_id)] == []
    assert real.get(f"/v1/jobs/{computing}/synthetic").status_code == 200


def test_job_continues_while_its_server_restarts(
    tmp_path: Path, embedded_ray: EmbeddedRay, undisturbed: tuple[Api, dict[str, Any]]
) -> None:
    ray = {"CAFE_RAY_ADDRESS": embedded_ray.address, "CAFE_RAY_TOKEN": embedded_ray.token}
    with serving(tmp_path, **ray) as server:
        job_id = server.api.make(**JOB)["id"]
        before = await_iterations(server.api, job_id)
        server.ended_by(signal.SIGKILL)
    with serving(tmp_path, **ray) as server:
        assert server.api.job(job_id)["progress"]["done"] >= before
        job = succeeded(server.api, job_id)
        assert job["attempt"] == 1
        assert iterations_of(server.api, job_id, 1) == list(range(1, JOB["iterations"] + 1))
        assert synthetic_file(server.api, job_id) == synthetic_file(undisturbed[0], undisturbed[1]["id"])
        assert [each for each in submissions(embedded_ray) if each.startswith(job_id)] == [submission_id(job_id, 1)]
        server.ended_by(signal.SIGTERM)
    assert submissions(embedded_ray) != []  # the server does not stop an external Ray


@pytest.mark.soak
def test_job_continues_after_server_and_embedded_ray_are_killed(tmp_path: Path, undisturbed: tuple[Api, dict[str, Any]]) -> None:
    with serving(tmp_path, "--num-cpus", "2") as server:
        job_id = server.api.make(**JOB)["id"]
        before = await_iterations(server.api, job_id)
        started = started_by(server)
        server.ended_by(signal.SIGKILL)
    assert still_alive(started) == []
    assert of_job(job_id) == []

    with serving(tmp_path, "--num-cpus", "2") as server:
        assert server.api.get(f"/v1/jobs/{job_id}/synthetic").status_code == 200  # from the checkpoint
        assert succeeded(server.api, job_id)["attempt"] == 2
        resumed = iterations_of(server.api, job_id, 2)
        assert resumed[0] >= before - 1  # checkpoints are two apart
        assert resumed == list(range(resumed[0], JOB["iterations"] + 1))
        assert synthetic_file(server.api, job_id) == synthetic_file(undisturbed[0], undisturbed[1]["id"])
        started = started_by(server)
        server.ended_by(signal.SIGTERM)
    assert still_alive(started) == []


def started_by(server: Served) -> list[psutil.Process]:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert len(processes) > 5
    return processes


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that still run after half a minute."""
    _gone, alive = psutil.wait_procs(processes, timeout=30)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
