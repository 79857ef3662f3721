"""Test that the Ray which a server started itself is restarted."""

from __future__ import annotations

import time

import httpx
import psutil
import pytest

from server.ray.embedded import EmbeddedRay
from server.ray.keeper import restarting


@pytest.mark.real_ray
def test_embedded_ray_is_restarted_at_the_same_address() -> None:
    with EmbeddedRay(num_cpus=1) as ray, restarting(ray):
        assert not ray.has_ended()
        address, before = ray.address, ray.pid
        [raylet] = [p for p in psutil.Process(before).children(recursive=True) if p.name() == "raylet"]
        raylet.kill()
        deadline = time.monotonic() + 90
        while psutil.pid_exists(before) or not is_ready(ray):
            assert time.monotonic() < deadline, ray.output()
            time.sleep(0.2)
        assert ray.address == address
        assert ray.pid != before
        assert not ray.has_ended()
        directory, after = ray.directory, psutil.Process(ray.pid)
    assert not after.is_running()
    assert not directory.exists()


def is_ready(ray: EmbeddedRay) -> bool:
    """Return whether Ray responds and its only node is alive."""
    try:
        headers = {"Authorization": f"Bearer {ray.token}"}
        nodes = httpx.get(f"{ray.address}/nodes", params={"view": "summary"}, headers=headers, timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return nodes.is_success and [n["raylet"].get("state") for n in nodes.json()["data"]["summary"]] == ["ALIVE"]
