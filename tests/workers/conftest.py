"""One small Ray cluster for all tests of the workers: 4 logical CPUs, bound to loopback, in this process's care."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Ray reads these when it is imported. The second keeps it from looking for the machine's outward address to bind to:
# what Ray does on a laptop's operating system, and the only way to have all its ports on loopback.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

import psutil  # noqa: E402
import ray  # noqa: E402
from ray.util.placement_group import placement_group_table  # noqa: E402


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a running cluster, which this process is connected to."""
    context = ray.init(
        address="local", num_cpus=4, num_gpus=0, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="ERROR"
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all jobs keep their class stores."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def leaves_nothing(cluster: str) -> Iterator[None]:  # noqa: ARG001
    """Checks that, soon after the test, all CPUs are free again, with no placement group and no worker left."""
    yield
    deadline = time.monotonic() + 20
    while left := leftovers():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def leftovers() -> list[str]:
    """What jobs hold of the cluster now: placement groups, CPUs, processes of actors."""
    groups = [f"placement group {g['name']}" for g in placement_group_table().values() if g["state"] != "REMOVED"]
    taken = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    return groups + ([f"{taken} CPUs"] if taken else []) + [f"process {name}" for name in actor_processes()]


def is_running(pid: int) -> bool:
    """Whether the process can still do anything: one that has died and waits to be reaped cannot."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def actor_processes() -> list[str]:
    """Processes of workers in this cluster, which are all descendants of this process: Ray titles them after the actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if title.startswith("ray::") and any(name in title for name in ("ShardWorker", "/shard ", "TuneWorker")):
            found.append(f"{process.pid} {title}")
    return found
