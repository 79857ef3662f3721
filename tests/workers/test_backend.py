"""Test how the gang backend recovers from lost workers, with stand-ins for a condensation."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.node import Node
from ray._private.parameter import RayParams

from cafe_core.errors import GpuOutOfMemoryError
from cafe_core.jobs.jobdir import JobFile
from cafe_core.spec.resources import ResourcesSpec
from tests.workers import jobs
from tests.workers.standins import FillGpu, SumForever
from workers import gang_backend
from workers.cluster import capacity
from workers.gang_backend import GangBackend
from workers.interruption import Interruption

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Events(list[tuple[str, dict[str, Any]]]):
    """A report function that stores its events."""

    def __call__(self, type: str, **data: Any) -> None:
        self.append((type, data))

    def of(self, type: str) -> list[dict[str, Any]]:
        return [data for t, data in self if t == type]


def backend(tmp_path: Path, cache: Path, **changes: Any) -> GangBackend:
    directory = jobs.create(tmp_path / "job", cache, **changes)
    job = JobFile.model_validate_json(directory.job_file.read_bytes())
    return GangBackend(job, "job/attempt 1", Interruption())


TWO_WORKERS = ResourcesSpec(workers=2, gpus_per_worker=0)
CLASSES = range(3)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        pytest.param(signal.SIGKILL, "worker 1 died", marks=pytest.mark.soak),  # `make test` kills a worker in test_driver
        pytest.param(signal.SIGSTOP, "worker 1 has not answered", marks=pytest.mark.soak),
    ],
)
def test_restarts_gang_after_losing_a_worker(
    trouble: signal.Signals,
    reason: str,
    cache: Path,
    tmp_path: Path,
) -> None:
    events = Events()
    with closing(backend(tmp_path, cache, timeout_s=3)) as held:
        work = SumForever(timeout_s=3, once=tmp_path / "once", trouble=trouble, steps=10)
        held.run(work, TWO_WORKERS, CLASSES, events)
    [restart] = events.of("restart")
    assert restart["reason"].startswith(reason)
    assert (restart["restarts"], restart["workers"]) == (1, 2)
    assert [data["phase"] for data in events.of("phase")] == ["waiting_for_resources", "starting_workers", "condensing"] * 2
    assert len(events.of("workers")) == 2


@pytest.mark.soak
def test_restarts_gang_when_a_worker_stays_away_from_a_collective(
    cache: Path,
    tmp_path: Path,
) -> None:
    events = Events()
    with closing(backend(tmp_path, cache, timeout_s=2)) as held:
        held.run(SumForever(timeout_s=2, once=tmp_path / "once", steps=10), TWO_WORKERS, CLASSES, events)
    [restart] = events.of("restart")
    assert restart["reason"].startswith("worker 0")  # all that is known: rank 0 waited in vain
    assert restart["workers"] == 2


@pytest.mark.parametrize(("fits", "shares"), [(0.5, [0.5, 0.5]), (0.01, [])])
def test_condensation_uses_less_memory_after_a_gpu_was_full(
    fits: float,
    shares: list[float],
    cluster: str,  # noqa: ARG001
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gang_backend, "CondenseShard", partial(FillGpu, fits=fits))
    events = Events()
    condensation: Any = SimpleNamespace(spec=SimpleNamespace(resources=TWO_WORKERS), learned=CLASSES)
    ends = nullcontext() if shares else pytest.raises(GpuOutOfMemoryError)
    with closing(backend(tmp_path, cache, max_restarts=1)) as held, ends:
        held.condense(condensation, 10, events)
    assert [data["share"] for data in events.of("share") if data["share"] <= fits] == shares
    [restart] = events.of("restart")
    assert (restart["restarts"], restart["workers"]) == (1, 2)


@contextmanager
def second_node(cluster: str, cpus: int) -> Iterator[Node]:
    """Run a second node of the cluster on this machine."""
    facts = RayParams(
        gcs_address=cluster,
        num_cpus=cpus,
        num_gpus=0,
        object_store_memory=100 * 2**20,
        node_ip_address="127.0.0.1",
        min_worker_port=0,
        max_worker_port=0,
    )
    node = Node(facts, head=False, shutdown_at_exit=False, spawn_reaper=False)
    try:
        wait_for(lambda: capacity(ResourcesSpec(gpus_per_worker=0)) == 4 + cpus)
        yield node
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        wait_for(lambda: capacity(ResourcesSpec(gpus_per_worker=0)) == 4)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.soak
def test_restarts_gang_with_fewer_workers_after_losing_a_node(
    cluster: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gang_backend, "SHRINK_AFTER_S", 1.0)
    events = Events()
    resources = ResourcesSpec(workers=2, gpus_per_worker=0, cpus_per_worker=3)  # the first node's 4 CPUs hold one such worker
    with second_node(cluster, cpus=3) as node, closing(backend(tmp_path, cache)) as held:

        def lose_the_node() -> None:
            wait_for(lambda: bool(events.of("step")))
            node.kill_all_processes(check_alive=False, allow_graceful=False)

        saboteur = threading.Thread(target=lose_the_node)
        saboteur.start()
        held.run(SumForever(timeout_s=60, until_alone=True, steps=10), resources, CLASSES, events)
        saboteur.join()
    [restart] = events.of("restart")
    assert restart["workers"] == 1
    assert [len(data["workers"]) for data in events.of("workers")] == [2, 1]
    assert events.of("workers")[1]["workers"][0]["classes"] == [0, 1, 2]
