"""Test that clients which follow a job miss no event when the server is killed and restarted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from server.ray.embedded import EmbeddedRay
from tests.reliability.scene import SPEC, Scene
from tests.reliability.served import ROOT, Server
from tests.reliability.streams import Reader, client, read_stream

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

RESTARTS = 5


def test_restarts_during_a_run_lose_no_event_and_do_not_end_cafe_watch(
    embedded_ray: EmbeddedRay, tmp_path: Path, notes: list[str]
) -> None:
    with Server(tmp_path / "data", CAFE_RAY_ADDRESS=embedded_ray.address, CAFE_RAY_TOKEN=embedded_ray.token) as server:
        scene = Scene(embedded_ray, server, SPEC | {"iterations": 150})
        scene.submit()
        watch = subprocess.Popen(
            [sys.executable, "-c", "from server.cli.main import main; main()", "watch", scene.job_id],
            env=os.environ | {"CAFE_URL": f"http://127.0.0.1:{server.port}"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        reader = Reader()
        following = threading.Thread(target=lambda: asyncio.run(_follow(server, scene.job_id, reader)))
        following.start()
        downtimes = []
        for number in range(RESTARTS):
            scene.await_iterations(10 + 20 * number)
            began = time.monotonic()
            server.kill()
            server.start()
            downtimes.append(time.monotonic() - began)
        assert scene.await_end()["status"] == "succeeded"
        following.join(30)
        printed, _ = watch.communicate(timeout=30)
        events = scene.events()
        notes.append(
            f"{RESTARTS} times kill -9 of the server during a run: ready again after "
            f"{', '.join(f'{seconds:.1f}' for seconds in sorted(downtimes))} s (the interpreter's start included); "
            f"{len(events)} events, all of them once in a stream that came back with Last-Event-ID; "
            f"`cafe watch` ended with {watch.returncode}."
        )
        assert reader.ids == [event["id"] for event in events] == list(range(1, len(events) + 1))
        assert reader.events == events
        assert [e["data"]["iteration"] for e in events if e["type"] == "iteration"] == list(range(1, 151))
        assert scene.job()["attempt"] == 1
        assert watch.returncode == 0, printed
        assert "150/150" in printed


async def _follow(server: Server, job_id: str, reader: Reader) -> None:
    async with client(str(server.api.base_url)) as http:
        await read_stream(http, job_id, reader, keep=True, connect=10_000)
