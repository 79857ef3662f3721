"""Test many jobs on one server, and many readers of one job's events. `make test` runs short forms, `make soak` full ones."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cafe_core.jobs.jobdir import EventLog
from server.ray.embedded import EmbeddedRay
from server.settings import Settings
from server.states import ENDED
from tests.reliability.ray_nodes import remaining_resources
from tests.reliability.scene import Scene
from tests.reliability.served import Server
from tests.reliability.streams import Reader, client, read_stream
from tests.server.conftest import Api, FakeRay, driver_of, running

TINY: dict[str, Any] = {
    "kind": "condense",
    "dataset": {"name": "digits"},
    "ipc": 1,
    "iterations": 1,
    "network": {"width": 4, "depth": 1},
    "method": {"batch_real": 4, "max_outer": 1, "max_inner": 1},
    "resources": {"workers": 1},
}
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.timeout(1800)


def request_times(request: Callable[[], httpx.Response], count: int = 200) -> list[float]:
    """Return how long each of `count` requests took in milliseconds, sorted."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        assert request().is_success
        taken.append(1000 * (time.perf_counter() - began))
    return sorted(taken)


def table_cells(taken: list[float]) -> str:
    """Return median, 95th percentile and maximum as cells of a table."""
    return f"{statistics.median(taken):.1f} | {taken[int(0.95 * len(taken))]:.1f} | {taken[-1]:.1f}"


def statuses(api: Api) -> Counter[str]:
    """Count the jobs in each state, over all pages of the listing."""
    found: Counter[str] = Counter()
    cursor = None
    while True:
        page = api.get("/v1/jobs", params={"limit": 500} | ({"cursor": cursor} if cursor else {})).json()
        found.update(job["status"] for job in page["data"])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def cancel_all(api: Api, job_ids: list[str]) -> None:
    """Cancel all jobs, newest first, so that no queued job starts when a running one is cancelled."""
    for job_id in reversed(job_ids):
        assert api.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)


def test_server_handles_200_queued_jobs(tmp_path: Path) -> None:
    ray = FakeRay()
    with running(Settings(data_dir=tmp_path, max_active_jobs=2), ray) as api:
        job_ids = [api.submit(TINY)["id"] for _ in range(200)]
        rng = random.Random(0)
        assert statistics.median(request_times(lambda: api.get("/v1/jobs"), 20)) < 1000
        assert statistics.median(request_times(lambda: api.get(f"/v1/jobs/{rng.choice(job_ids)}"), 50)) < 500
        for job_id in job_ids[:2]:
            api.await_status(job_id, "starting")
        assert len(ray.submissions) == 2
        cancel_all(api, job_ids)
        for job_id in job_ids[:2]:
            api.await_status(job_id, "cancelled")
        assert statuses(api) == {"cancelled": 200}
        assert sorted(ray.submissions) == sorted((job_id, 1) for job_id in job_ids[:2])


def server_on(ray: EmbeddedRay, data_dir: Path, **environ: str) -> Server:
    """Return a server that runs at most two jobs at a time."""
    bounds = {"CAFE_MAX_ACTIVE_JOBS": "2", "CAFE_REQUESTS_PER_MINUTE": "1000000", "CAFE_MAX_QUEUED_JOBS": "2000"}
    return Server(data_dir, CAFE_RAY_ADDRESS=ray.address, CAFE_RAY_TOKEN=ray.token, **bounds, **environ)


@pytest.mark.soak
def test_server_handles_1000_queued_jobs(embedded_ray: EmbeddedRay, tmp_path: Path, notes: list[str]) -> None:
    with server_on(embedded_ray, tmp_path / "data") as server:
        api = server.api
        before = server.process.memory_info().rss
        first = api.submit(TINY)["id"]  # the first submission imports modules
        job_ids = [first]
        submitting = request_times(lambda: _submit(api, job_ids), 999)
        queued = statuses(api)["queued"]
        rng = random.Random(0)
        lines = [
            ("POST /v1/jobs", table_cells(submitting)),
            ("GET /v1/jobs", table_cells(listing := request_times(lambda: api.get("/v1/jobs")))),
            ("GET /v1/jobs?limit=500", table_cells(request_times(lambda: api.get("/v1/jobs", params={"limit": 500}), 50))),
            ("GET /v1/jobs/{id}", table_cells(one := request_times(lambda: api.get(f"/v1/jobs/{rng.choice(job_ids)}")))),
        ]
        with_all = server.process.memory_info().rss
        began = time.monotonic()
        while statuses(api)["succeeded"] < 20:
            assert time.monotonic() - began < 900, statuses(api)
            time.sleep(1)
        ran = time.monotonic() - began
        cancel_all(api, job_ids)
        for job_id in job_ids:
            api.await_status(job_id, *(status.value for status in ENDED), timeout_s=60)
        ended = statuses(api)
        after = server.process.memory_info().rss
        while left := remaining_resources(embedded_ray.address, embedded_ray.token):
            assert time.monotonic() - began < 960, left
            time.sleep(0.5)
        request_lines = "\n".join(f"| {name} | {cells} |" for name, cells in lines)
        notes.append(
            f"1,000 jobs, {queued} of them queued, two running:\n\n"
            f"| request | median (ms) | 95th percentile (ms) | max (ms) |\n|---|---|---|---|\n{request_lines}\n\n"
            f"The server's resident memory: {before / MEBIBYTE:.0f} MiB before, {with_all / MEBIBYTE:.0f} MiB with all jobs, "
            f"{after / MEBIBYTE:.0f} MiB after.\n20 more ran to their end in {ran:.0f} s; "
            f"in the end {dict(ended)}, nothing left in Ray."
        )
        assert queued >= 900
        assert ended["succeeded"] + ended["cancelled"] == 1000
        assert ended["succeeded"] >= 20
        assert statistics.median(listing) < 50
        assert statistics.median(one) < 50
        assert after - before < 150 * MEBIBYTE


def _submit(api: Api, job_ids: list[str]) -> httpx.Response:
    response = api.post("/v1/jobs", json=TINY)
    job_ids.append(response.json()["id"])
    return response


async def _read_streams(base_url: str, job_id: str, count: int, meanwhile: Callable[[], Any]) -> list[Reader]:
    """Read all events of a job with `count` readers. When all are connected, call `meanwhile` in a thread."""
    readers = [Reader() for _ in range(count)]
    async with client(base_url) as http:
        reading = [asyncio.create_task(read_stream(http, job_id, reader)) for reader in readers]
        deadline = time.monotonic() + 120
        while not all(reader.ids for reader in readers):  # each has received the event of the job's creation
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await asyncio.to_thread(meanwhile)
        await asyncio.gather(*reading)
    return readers


def test_40_readers_receive_every_event_in_order(tmp_path: Path) -> None:
    ray = FakeRay()
    settings = Settings(data_dir=tmp_path)
    with running(settings, ray) as api:
        job_id = api.submit(TINY)["id"]
        api.await_status(job_id, "starting")

        def run() -> None:
            with driver_of(settings, job_id) as log:
                _write_events(log, 50)
            api.post(f"/v1/jobs/{job_id}/cancel")
            api.await_status(job_id, "cancelled")

        readers = asyncio.run(_read_streams(str(api.base_url), job_id, 40, run))
        last = api.get(f"/v1/jobs/{job_id}/events", params={"limit": 1000}).json()["data"][-1]["id"]
    assert last > 50
    assert all(reader.ids == list(range(1, last + 1)) for reader in readers)


def _write_events(log: EventLog, iterations: int) -> None:
    log("phase", phase="condensing")
    for number in range(1, iterations + 1):
        log("iteration", iteration=number, total=iterations)
        time.sleep(0.02)


@pytest.mark.soak
def test_500_readers_receive_every_event_of_a_running_job(embedded_ray: EmbeddedRay, tmp_path: Path, notes: list[str]) -> None:
    with server_on(embedded_ray, tmp_path / "data") as server:
        scene = Scene(embedded_ray, server)
        scene.submit()
        process = server.process
        before, files_before = process.memory_info().rss, process.num_fds()
        measured: dict[str, Any] = {}

        def meanwhile() -> None:
            one: list[float] = []
            rss, files = 0, 0
            while scene.job()["status"] not in {status.value for status in ENDED}:
                one += request_times(lambda: server.api.get(f"/v1/jobs/{scene.job_id}"), 5)
                rss, files = max(rss, process.memory_info().rss), max(files, process.num_fds())
                time.sleep(0.5)
            measured.update(one=sorted(one), rss=rss, files=files)

        readers = asyncio.run(_read_streams(str(server.api.base_url), scene.job_id, 500, meanwhile))
        events = scene.events()
        deadline = time.monotonic() + 30
        while process.num_fds() > files_before + 20:
            assert time.monotonic() < deadline, process.num_fds()
            time.sleep(0.2)
        notes.append(
            f"500 readers of one job's stream, {len(events)} events each:\n\n| GET /v1/jobs/{{id}} meanwhile | "
            f"median (ms) | 95th percentile (ms) | max (ms) |\n|---|---|---|---|\n| | {table_cells(measured['one'])} |\n\n"
            f"The server's resident memory: {before / MEBIBYTE:.0f} MiB before, {measured['rss'] / MEBIBYTE:.0f} MiB at most. "
            f"Its open files: {files_before} before, {measured['files']} at most, {process.num_fds()} after."
        )
        assert scene.job()["status"] == "succeeded"
        assert all(reader.ids == [event["id"] for event in events] for reader in readers)
        assert [event["id"] for event in events] == list(range(1, len(events) + 1))
        assert measured["files"] < files_before + 600
        assert measured["rss"] - before < 300 * MEBIBYTE
        assert statistics.median(measured["one"]) < 1000
