"""Test that a stale driver, which wakes up after its attempt was given up, ends and changes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cafe_core.files import read_lines
from cafe_core.jobs.jobdir import JobDir
from tests.workers import jobs
from tests.workers.conftest import SmallRay, is_running
from tests.workers.jobs import Driver, driving

pytestmark = pytest.mark.usefixtures("leaves_nothing")

SPEC = {
    "iterations": 30,
    "resources": {"workers": 1, "gpus_per_worker": 0},
    "evaluation": jobs.spec()["evaluation"] | {"repeats": 30},
}


@pytest.fixture(scope="module")
def undisturbed(small_ray: SmallRay, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    directory = jobs.create(tmp_path_factory.mktemp("jobs") / "job_undisturbed", cache, **SPEC)
    with driving(directory, small_ray.address) as driver:
        driver.succeeds()
    return directory


@contextmanager
def frozen(driver: Driver, *, with_workers: bool) -> Iterator[None]:
    """Freeze the driver, and optionally its workers, inside the `with` block."""
    pids = [driver.process.pid, *(driver.pids() if with_workers else [])]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("phase", "with_workers"),
    [
        ("condensing", True),
        pytest.param("evaluating", False, marks=pytest.mark.soak),
        pytest.param("condensing", False, marks=pytest.mark.soak),
        pytest.param("evaluating", True, marks=pytest.mark.soak),
    ],
)
def test_stale_driver_that_wakes_up_during_the_next_attempt_changes_nothing(
    phase: str, with_workers: bool, cluster: str, cache: Path, tmp_path: Path, undisturbed: JobDir
) -> None:
    directory = jobs.create(tmp_path / "job_frozen", cache, **SPEC)
    count = "iteration" if phase == "condensing" else "evaluated"
    with driving(directory, cluster) as stale:
        stale.wait_for(lambda: len(stale.events(count)) >= 5, within_s=120)
        workers = [psutil.Process(pid) for pid in stale.pids()]
        with frozen(stale, with_workers=with_workers), driving(directory, cluster, attempt=2) as second:
            second.wait_for(lambda: second.events(count), within_s=120)
            os.kill(stale.process.pid, signal.SIGCONT)
            for worker in workers:
                worker.resume()
            assert second.succeeds() == undisturbed.attempt(1).synthetic_file.read_bytes()
        assert stale.process.wait(60) == 1
        assert not {"finished", "failed", "cancelled"} & {event["type"] for event in stale.events()}
        assert "was given up" in stale.log.read_text()
    assert not directory.attempt(1).manifest_file.exists()
    assert measured(directory) == measured(undisturbed)
    assert len(read_lines(directory.evaluation_file)) == len(measured(undisturbed))  # no network twice


def measured(directory: JobDir) -> dict[tuple[object, ...], float]:
    """Return the accuracy of every network of the job's evaluation."""
    return {tuple(line["task"].values()): line["accuracy"] for line in read_lines(directory.evaluation_file)}


def test_stale_driver_that_starts_late_does_nothing(cluster: str, cache: Path, tmp_path: Path) -> None:
    directory = jobs.create(tmp_path / "job_late", cache)
    jobs.hand_over(directory, 2)
    with driving(directory, cluster) as late:
        assert late.process.wait(60) == 1
        assert late.events() == []
    assert not directory.checkpoints.exists()
