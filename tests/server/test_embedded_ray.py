"""The server with a Ray of its own: everything real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from server.embedded_ray import EmbeddedRay
from server.settings import Settings
from tests.server.conftest import Api, running
from workers.client import RayClient

SMALL = {"iterations": 4, "checkpoint_every": 2, "method": {"batch_real": 8}, "resources": {"workers": 2}}
LONG = SMALL | {"iterations": 1_000_000, "checkpoint_every": 20}


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedRay]:
    with EmbeddedRay(num_cpus=2) as ray:
        yield ray


@pytest.fixture
def real(settings: Settings, embedded: EmbeddedRay) -> Iterator[Api]:
    with running(settings, RayClient(embedded.address, embedded.token)) as api:
        yield api


def of_session(embedded: EmbeddedRay) -> list[psutil.Process]:
    """Processes that belong to this Ray, by their command lines or their session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == embedded.pid or str(embedded.directory) in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def of_job(job_id: str) -> list[str]:
    """Processes that carry the job's id on their command line."""
    return [
        " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]) if job_id in " ".join(p.info["cmdline"] or [])
    ]


def test_it_is_bound_to_loopback_and_wants_its_token(embedded: EmbeddedRay) -> None:
    assert httpx.get(f"{embedded.address}/api/jobs/").status_code == 401
    assert httpx.get(f"{embedded.address}/api/jobs/", headers={"Authorization": "Bearer x"}).status_code == 403
    assert urlsplit(embedded.address).hostname == "127.0.0.1"
    assert embedded.token_file.stat().st_mode & 0o777 == 0o600
    listening = [
        connection.laddr
        for process in of_session(embedded)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    assert {address.ip for address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_a_job_from_post_to_download_and_no_token_in_any_record(real: Api, embedded: EmbeddedRay) -> None:
    cluster = real.get("/v1/cluster").json()
    assert (cluster["ray_version"], cluster["cpus"]["total"], len(cluster["nodes"])) == ("2.60.0", 2.0, 1)
    job = real.make(**SMALL, evaluation={"repeats": 1, "epochs": 2})
    done = real.await_status(job["id"], "succeeded", "failed", timeout_s=200)
    assert done["status"] == "succeeded", done["error"]
    assert done["progress"]["done"] == done["progress"]["total"]
    assert done["result"]["evaluation"]["networks"][0]["n"] == 1
    names = [artifact["name"] for artifact in real.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"]]
    assert names == ["preview.png", "result.json", "synthetic.safetensors"]
    assert "Running entrypoint" in real.get(f"/v1/jobs/{job['id']}/logs").text

    records = httpx.get(f"{embedded.address}/api/jobs/", headers={"Authorization": f"Bearer {embedded.token}"}).text
    assert job["id"] in records
    assert embedded.token not in records
    for process in of_session(embedded):
        assert embedded.token not in " ".join(process.cmdline())
    for path in embedded.directory.rglob("*.log"):
        assert embedded.token.encode() not in path.read_bytes()


def test_cancel_leaves_no_process_and_a_restarted_server_goes_on(settings: Settings, embedded: EmbeddedRay) -> None:
    with running(settings, RayClient(embedded.address, embedded.token)) as api:
        job_id = api.make(**LONG)["id"]
        api.await_job(job_id, lambda j: j["status"] == "running" and j["progress"]["done"] > 20, timeout_s=200)
    with running(settings, RayClient(embedded.address, embedded.token)) as api:
        before = api.job(job_id)["progress"]["done"]
        api.await_job(job_id, lambda j: j["progress"]["done"] > before + 20, timeout_s=60)
        assert of_job(job_id) != []
        assert api.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
        api.await_status(job_id, "cancelled", timeout_s=60)
        assert of_job(job_id) == []
        assert api.get(f"/v1/jobs/{job_id}/synthetic").status_code == 200
        submissions = httpx.get(f"{embedded.address}/api/jobs/", headers={"Authorization": f"Bearer {embedded.token}"}).json()
        assert [s["submission_id"] for s in submissions if str(s["submission_id"]).startswith(job_id)] == [f"{job_id}-1"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_server_however_that_dies(tmp_path: Path, how: signal.Signals) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--num-cpus", "1"]
    environ = os.environ | {"CAFE_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(Path(__file__).parents[2])}
    with (tmp_path / "output").open("w") as output:
        server = subprocess.Popen([*command, "--port", str(port)], env=environ, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/readyz"):
            assert server.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started = psutil.Process(server.pid).children(recursive=True)
        assert len(started) > 5
    finally:
        server.send_signal(how)
        assert server.wait(60) in (0, -how)
    _gone, alive = psutil.wait_procs(started, timeout=30)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert "Traceback" not in (tmp_path / "output").read_text()


def _answers(url: str) -> bool:
    try:
        return json.loads(httpx.get(url).content) == {"status": "ok"}
    except httpx.TransportError:
        return False
