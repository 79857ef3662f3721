"""Start one small Ray cluster for all tests of the workers: 4 logical CPUs, bound to loopback."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Ray reads these when it is imported. The second stops it from binding to the machine's external address, and is the only way to
# have all its ports on loopback.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

import psutil  # noqa: E402
import ray  # noqa: E402
from ray._private.node import Node  # noqa: E402
from ray.util.placement_group import placement_group_table  # noqa: E402

HOLD_NOTHING = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


class SmallRay:
    """A running cluster that this process is connected to."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.address = ""
        self.restarts = 0

    def start(self, tries: int = 3) -> None:
        """Start a cluster. On a busy machine it may need longer than the 30 s that Ray allows, which cannot be set."""
        try:
            with pytest.MonkeyPatch.context() as patch:  # which keeps the variables that Ray sets for drivers
                for name, value in self._environment.items():
                    patch.setenv(name, value)
                # Both processes use CPU time for as long as Ray runs. The product has no log monitor,
                # and no test scales the cluster.
                patch.setattr(Node, "start_log_monitor", lambda _node: None)
                patch.setattr(Node, "start_monitor", lambda _node: None)
                context = ray.init(
                    address="local",
                    num_cpus=4,
                    num_gpus=0,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    logging_level="ERROR",
                )
        except Exception as error:
            if tries == 1 or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            self.start(tries - 1)
        else:
            self.address = context.address_info["gcs_address"]

    def restart(self) -> None:
        ray.shutdown()
        self.start()
        self.restarts += 1


@pytest.fixture(scope="session")
def small_ray(forked_workers: dict[str, str], notes: list[str]) -> Iterator[SmallRay]:
    """Start the cluster of all tests."""
    running = SmallRay(forked_workers)
    running.start()
    yield running
    ray.shutdown()
    if running.restarts:
        notes.append(f"Ray miscounted its CPUs and was restarted {running.restarts} times")


@pytest.fixture
def cluster(small_ray: SmallRay) -> str:
    """The cluster's address."""
    return small_ray.address


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which all jobs keep their class stores."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def leaves_nothing(small_ray: SmallRay) -> Iterator[None]:
    """Check that soon after the test all CPUs are free, and no placement group or worker is left."""
    yield
    deadline = time.monotonic() + 20
    while left := [*leftovers(), *cpus_taken()]:
        if time.monotonic() > deadline and left == cpus_taken() and not processes_that_hold_any():
            small_ray.restart()
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def leftovers() -> list[str]:
    """Return what jobs still hold: placement groups and processes of actors."""
    groups = [f"placement group {g['name']}" for g in placement_group_table().values() if g["state"] != "REMOVED"]
    return groups + [f"process {name}" for name in actor_processes()]


def cpus_taken() -> list[str]:
    """Return the CPUs that Ray counts as taken.

    Ray 2.60 was once seen to miscount when a placement group was removed a few milliseconds after a worker in it had been killed,
    which Tune does: a CPU never became free, although no process held it. Such a cluster is restarted, and the tests' summary
    says so.
    """
    taken = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    return [f"{taken} CPUs"] if taken else []


def processes_that_hold_any() -> list[str]:
    """Return the cluster's processes that run an actor or a task. Ray puts this into their titles."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and not title.startswith(HOLD_NOTHING):
                found.append(title)
    return found


def is_running(pid: int) -> bool:
    """Return whether the process is alive. A zombie is not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def actor_processes() -> list[str]:
    """Return the workers' processes. They are descendants of this process, and Ray names them after the actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if title.startswith("ray::") and any(name in title for name in ("ShardWorker", "/shard ", "TuneWorker")):
            found.append(f"{process.pid} {title}")
    return found
