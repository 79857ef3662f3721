"""Test the driver as Ray runs it, on a real cluster: recovery from faults, and clean-up."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cafe_core.jobs.jobdir import JobDir
from tests.workers import jobs
from tests.workers.conftest import SmallRay, actor_processes, is_running
from tests.workers.jobs import driving

pytestmark = pytest.mark.usefixtures("leaves_nothing")

CONDENSE: dict[str, Any] = {"evaluation": None}
ONE_WORKER: dict[str, Any] = {"resources": {"workers": 1, "gpus_per_worker": 0}}
"""For jobs whose number of workers does not matter: every worker's start costs seconds."""


@pytest.fixture(scope="module")
def undisturbed(small_ray: SmallRay, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    """A job of two workers that runs undisturbed, with an evaluation."""
    directory = jobs.create(tmp_path_factory.mktemp("jobs") / "job_undisturbed", cache)
    with driving(directory, small_ray.address) as driver:
        driver.succeeds()
    return directory


@pytest.fixture(scope="module")
def same_bytes(small_ray: SmallRay, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the synthetic file of a job of two workers that runs undisturbed, without an evaluation."""
    with driving(jobs.create(tmp_path_factory.mktemp("jobs") / "job_alone", cache, **CONDENSE), small_ray.address) as driver:
        return driver.succeeds()


def accuracies(directory: JobDir) -> list[float]:
    result = json.loads(directory.attempt(1).result_file.read_text())
    found: list[float] = result["evaluation"]["networks"][0]["accuracies"]
    return found


def test_undisturbed_job_reports_phases_and_progress(undisturbed: JobDir) -> None:
    events = [json.loads(line) for line in undisturbed.attempt(1).events_file.read_text().splitlines()]
    phases = ["preparing", "waiting_for_resources", "starting_workers", "condensing", "evaluating", "publishing"]
    assert [event["phase"] for event in events if event["type"] == "phase"] == phases
    workers, *evaluating = [event["workers"] for event in events if event["type"] == "workers"]
    assert [worker["rank"] for worker in workers] == [0, 1]
    assert evaluating[-1]  # one or two workers, because the first may finish the work before the second has started
    assert {worker["pid"] for worker in evaluating[-1]}.isdisjoint({worker["pid"] for worker in workers})
    assert [worker["classes"] for worker in workers] == [list(range(5)), list(range(5, 10))]
    assert {worker["device"] for worker in workers} == {"cpu"}
    assert len({worker["pid"] for worker in workers}) == 2
    assert [event["iteration"] for event in events if event["type"] == "iteration"] == list(range(1, 13))
    assert [event["done"] for event in events if event["type"] == "evaluated"] == list(range(1, 7))
    assert events[-1]["type"] == "finished"
    assert len(accuracies(undisturbed)) == 6
    assert int(undisturbed.attempt(1).heartbeat_file.read_bytes()) > 1


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_killed_worker_does_not_change_the_result(
    rank: int, cluster: str, cache: Path, tmp_path: Path, same_bytes: bytes
) -> None:
    with driving(jobs.create(tmp_path / "job_killed", cache, **CONDENSE), cluster) as driver:
        driver.wait_for_iterations(5)
        before = driver.pids()
        os.kill(before[rank], signal.SIGKILL)
        assert driver.succeeds() == same_bytes
        [restart] = driver.events("restart")
        assert (restart["reason"], restart["restarts"], restart["workers"]) == (f"worker {rank} died", 1, 2)
        assert not set(before) & set(driver.pids())
        iterations = [event["iteration"] for event in driver.events("iteration")]
        # It restarts from the last checkpoint (there is one every three iterations), not from the start.
        assert set(iterations) == set(range(1, 13))
        assert iterations.count(1) == 1


@pytest.mark.soak
def test_frozen_worker_is_detected_and_does_not_change_the_result(
    cluster: str, cache: Path, tmp_path: Path, same_bytes: bytes
) -> None:
    timeout_s = 5.0
    with driving(jobs.create(tmp_path / "job_frozen", cache, timeout_s=timeout_s, **CONDENSE), cluster) as driver:
        driver.wait_for_iterations(5)
        frozen = driver.pids()[1]
        os.kill(frozen, signal.SIGSTOP)
        frozen_at = time.time()
        assert driver.succeeds() == same_bytes
        [restart] = driver.events("restart")
        assert restart["reason"].startswith("worker 1 has not answered")
        # The collective's timeout, the wait for its cause, and the end of the old gang.
        assert datetime.fromisoformat(restart["time"]).timestamp() - frozen_at < timeout_s + 5
        assert not is_running(frozen)


@pytest.mark.soak
def test_frozen_driver_does_not_declare_its_workers_hung(cluster: str, cache: Path, tmp_path: Path, same_bytes: bytes) -> None:
    timeout_s = 3.0
    with driving(jobs.create(tmp_path / "job_frozen", cache, timeout_s=timeout_s, **CONDENSE), cluster) as driver:
        driver.wait_for_iterations(1)
        driver.process.send_signal(signal.SIGSTOP)
        time.sleep(timeout_s + 4)
        driver.process.send_signal(signal.SIGCONT)
        assert driver.succeeds() == same_bytes
        assert not driver.events("restart")


@pytest.mark.soak
@pytest.mark.parametrize("frozen", [False, True])
def test_killed_driver_leaves_no_processes_and_next_attempt_gives_the_same_result(
    frozen: bool, cluster: str, cache: Path, tmp_path: Path, same_bytes: bytes
) -> None:
    directory = jobs.create(tmp_path / "job_driver", cache, **CONDENSE)
    with driving(directory, cluster) as driver:
        driver.wait_for_iterations(5)
        if frozen:
            os.kill(driver.pids()[1], signal.SIGSTOP)
        driver.process.kill()
        driver.process.wait()
        killed_at = time.monotonic()
        while actor_processes():
            assert time.monotonic() - killed_at < 15, actor_processes()
            time.sleep(0.05)
        done = len(driver.events("iteration"))
    with driving(directory, cluster, attempt=2) as second:
        assert second.succeeds() == same_bytes
        first_iteration = second.events("iteration")[0]["iteration"]
        assert 1 < first_iteration <= done + 4  # the workers may have written another checkpoint before Ray ended them
        assert not second.events("restart")


@pytest.mark.parametrize(
    "phase",
    ["preparing", "waiting_for_resources", "starting_workers", "condensing", pytest.param("evaluating", marks=pytest.mark.soak)],
)
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_cancelling_in_any_phase_leaves_no_processes(
    phase: str, number: signal.Signals, cluster: str, cache: Path, tmp_path: Path
) -> None:
    workers = 2 if phase in ("starting_workers", "condensing") else 1
    cpus = 99 if phase == "waiting_for_resources" else 1
    resources = {"workers": workers, "gpus_per_worker": 0, "cpus_per_worker": cpus}
    evaluation = jobs.spec()["evaluation"] | {"repeats": 1000} if phase == "evaluating" else None
    iterations = 12 if phase == "evaluating" else 10_000
    directory = jobs.create(tmp_path / "job_cancelled", cache, resources=resources, iterations=iterations, evaluation=evaluation)
    if phase == "preparing":
        jobs.forget_stores(directory)
    with driving(directory, cluster) as driver:
        driver.wait_for(lambda: phase in driver.phases())
        if phase == "condensing":
            driver.wait_for_iterations(1)
        os.killpg(driver.process.pid, number)  # as Ray stops a job
        signalled_at = time.monotonic()
        assert driver.ends_with(128 + number)["type"] == "cancelled"
        assert time.monotonic() - signalled_at < 10  # about 1 s; Ray kills after 3 s, and a busy test machine is slow
        assert driver.phases()[-1] == phase
        # A worker that had not yet reported its process ends a moment after the driver.
        assert phase == "starting_workers" or not actor_processes()
    assert not directory.attempt(1).manifest_file.exists()


def test_cancelling_while_publishing_finishes_or_cancels(cluster: str, cache: Path, tmp_path: Path) -> None:
    with driving(jobs.create(tmp_path / "job_late", cache, iterations=1, **CONDENSE, **ONE_WORKER), cluster) as driver:
        driver.wait_for(lambda: "publishing" in driver.phases())
        driver.process.terminate()
        exit_code = driver.process.wait(60)
        assert {0: "finished", 143: "cancelled"}[exit_code] == driver.events()[-1]["type"]
        assert exit_code == 143 or driver.directory.attempt(1).manifest_file.exists()


def test_non_finite_loss_fails_the_job_without_restart(cluster: str, cache: Path, tmp_path: Path) -> None:
    method = jobs.spec()["method"] | {"image_lr": 1e30}
    directory = jobs.create(tmp_path / "job_nan", cache, **CONDENSE, **ONE_WORKER, method=method)
    with driving(directory, cluster) as driver:
        failed = driver.ends_with(1)
        assert failed["type"] == "failed"
        assert failed["error"]["code"] == "non_finite_loss"
        assert "iteration" in failed["error"]["message"]
        assert not driver.events("restart")
    assert list(directory.checkpoints.glob("*.safetensors"))


@pytest.mark.soak
def test_exceeding_the_restart_limit_fails_the_job_as_retryable(cluster: str, cache: Path, tmp_path: Path) -> None:
    directory = jobs.create(tmp_path / "job_lost", cache, max_restarts=1, iterations=10_000, **CONDENSE, **ONE_WORKER)
    with driving(directory, cluster) as driver:
        for gang in (1, 2):
            driver.wait_for(lambda gang=gang: len(driver.events("workers")) == gang)
            os.kill(driver.pids()[0], signal.SIGKILL)
        failed = driver.ends_with(1)
        assert (failed["error"]["code"], failed["error"]["retryable"]) == ("worker_lost", True)
        assert len(driver.events("restart")) == 1


@pytest.mark.soak
def test_worker_killed_while_evaluating_does_not_change_accuracies(
    cluster: str, cache: Path, tmp_path: Path, undisturbed: JobDir
) -> None:
    directory = jobs.create(tmp_path / "job_evaluating", cache)
    with driving(directory, cluster) as driver:
        driver.wait_for(lambda: len(driver.events("workers")) == 3)  # the gang; an evaluating one; two
        os.kill(driver.pids()[1], signal.SIGKILL)
        driver.succeeds()
        [restart] = driver.events("restart")
        assert (restart["reason"], restart["workers"]) == ("worker 1 died", 1)
    assert accuracies(directory) == accuracies(undisturbed)


def test_unreadable_job_file_fails_the_attempt(cluster: str, tmp_path: Path) -> None:
    directory = JobDir(tmp_path / "job_broken")
    directory.path.mkdir()
    directory.job_file.write_text('{"job_id": "job_broken"}')
    with driving(directory, cluster) as driver:
        failed = driver.ends_with(1)
        assert failed["error"]["code"] == "internal"
        assert "spec" in failed["error"]["message"]
