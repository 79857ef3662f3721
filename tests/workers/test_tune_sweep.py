"""Test sweeps whose trials Ray Tune runs as separate jobs with their own gangs: recovery from faults, and clean-up."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.state import actors

from cafe_core.files import write_atomically
from cafe_core.jobs.jobdir import JobDir, JobFile
from cafe_core.jobs.sweep_job import sweep_trials
from cafe_core.spec.sweep import SweepSpec
from tests.workers import jobs
from tests.workers.conftest import SmallRay, actor_processes
from tests.workers.jobs import Driver, driving

VALIDATION = {"every": 3, "network": {"width": 8, "depth": 2}, "repeats": 1, "epochs": 1}
ITERATIONS = 40
"""Enough that a trial which has started is still running when a signal arrives."""
ONE_WORKER = {"workers": 1, "gpus_per_worker": 0}
TWO_WORKERS = {"workers": 2, "gpus_per_worker": 0}
EVALUATION = {"networks": [{"width": 8, "depth": 2}], "repeats": 2, "epochs": 2}


def sweep(values: list[float], *, space: str = "method.image_lr", **changes: Any) -> dict[str, Any]:
    """Return a sweep of two concurrent trials, by default with one worker each: every worker's start costs seconds."""
    base = {"evaluation": EVALUATION, "iterations": ITERATIONS, "resources": ONE_WORKER} | changes.pop("base", {})
    return {"kind": "sweep", "base": jobs.spec(**base), "space": {space: {"grid": values}}, "max_concurrent": 2} | changes


def outcomes(directory: JobDir) -> dict[int, dict[str, Any]]:
    lines = directory.trials_file.read_text().splitlines() if directory.trials_file.exists() else []
    return {outcome["number"]: outcome for outcome in map(json.loads, lines)}


def trial_events(directory: JobDir, number: int, type: str) -> list[dict[str, Any]]:
    path = directory.trial(number).attempt(1).events_file
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [event for line in lines if line.endswith("\n") if (event := json.loads(line))["type"] == type]


def iterations(directory: JobDir, number: int) -> list[int]:
    return [event["iteration"] for event in trial_events(directory, number, "iteration")]


def synthetic(directory: JobDir, number: int) -> bytes:
    return directory.trial(number).attempt(1).synthetic_file.read_bytes()


def gang(directory: JobDir, number: int) -> list[int]:
    """Return the pids of a trial's newest gang."""
    events = trial_events(directory, number, "workers")
    return [worker["pid"] for worker in events[-1]["workers"]] if events else []


def trial_drivers() -> list[int]:
    return [int(title.split()[0]) for title in actor_processes() if "TuneWorker" in title]


@pytest.fixture(scope="module")
def undisturbed(small_ray: SmallRay, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    """A sweep of three trials, of which number 1 fails."""
    directory = jobs.create_job(tmp_path_factory.mktemp("sweeps") / "job_undisturbed", cache, sweep([0.1, 1e30, 1.0]))
    with driving(directory, small_ray.address) as driver:
        assert driver.ends_with(0)["type"] == "finished"
    return directory


@pytest.mark.usefixtures("leaves_nothing")
def test_trials_are_separate_jobs_and_fail_separately(undisturbed: JobDir, cluster: str, cache: Path, tmp_path: Path) -> None:
    found = outcomes(undisturbed)
    assert {number: outcome["status"] for number, outcome in found.items()} == {0: "succeeded", 1: "failed", 2: "succeeded"}
    assert found[1]["error"]["code"] == "non_finite_loss"
    assert not trial_events(undisturbed, 1, "restart")
    result = json.loads(undisturbed.attempt(1).result_file.read_text())
    best = result["best"]["trial"]
    assert found[best]["metric"] == max(outcome["metric"] for outcome in found.values() if outcome["metric"] is not None)
    assert undisturbed.attempt(1).synthetic_file.read_bytes() == synthetic(undisturbed, best)
    assert result["trials"] == {"succeeded": 2, "stopped": 0, "failed": 1, "total": 3}
    assert not undisturbed.tune.exists()

    method = jobs.spec()["method"] | {"image_lr": 1.0}
    changes = {"evaluation": EVALUATION, "iterations": ITERATIONS, "resources": ONE_WORKER, "method": method}
    alone = jobs.create(tmp_path / "job_alone", cache, **changes)
    with driving(alone, cluster) as driver:
        assert driver.succeeds() == synthetic(undisturbed, 2)
    evaluation = json.loads(alone.attempt(1).result_file.read_text())["evaluation"]
    assert found[2]["metric"] == evaluation["networks"][0]["mean"]


@pytest.mark.usefixtures("leaves_nothing")
def test_lost_trial_driver_and_lost_worker_do_not_change_the_result(
    undisturbed: JobDir, cluster: str, cache: Path, tmp_path: Path
) -> None:
    directory = jobs.create_job(tmp_path / "job_lost", cache, sweep([0.1, 1.0]), timeout_s=10)
    with driving(directory, cluster) as driver:
        driver.wait_for(lambda: len(iterations(directory, 0)) >= 5)
        os.kill(gang(directory, 0)[0], signal.SIGKILL)
        driver.wait_for(lambda: len(iterations(directory, 1)) >= 5)
        os.kill(driver_of(gang(directory, 1)[0]), signal.SIGKILL)
        assert driver.ends_with(0)["type"] == "finished"
        reasons = {event["reason"] for event in driver.events("restart")}
    assert reasons == {"trial 0: worker 0 died", "trial 1: its driver died"}
    assert synthetic(directory, 0) == synthetic(undisturbed, 0)
    assert synthetic(directory, 1) == synthetic(undisturbed, 2)
    for number in (0, 1):
        assert iterations(directory, number).count(1) == 1  # from the last checkpoint, not from the start


def driver_of(worker: int) -> int:
    """Return the pid of the trial's driver from the name of one of its workers."""
    [name] = [actor["Name"] for actor in actors().values() if actor["Pid"] == worker]
    return int(name.partition("driver ")[2].partition("/")[0])


@pytest.mark.soak
@pytest.mark.usefixtures("leaves_nothing")
def test_frozen_trial_driver_is_replaced(undisturbed: JobDir, cluster: str, cache: Path, tmp_path: Path) -> None:
    directory = jobs.create_job(tmp_path / "job_frozen", cache, sweep([0.1]), timeout_s=4)
    with driving(directory, cluster) as driver:
        driver.wait_for(lambda: len(iterations(directory, 0)) >= 5)
        [frozen] = trial_drivers()
        os.kill(frozen, signal.SIGSTOP)
        assert driver.ends_with(0)["type"] == "finished"
        [restart] = driver.events("restart")
    assert restart["reason"].startswith("trial 0: its driver has not answered for")
    assert synthetic(directory, 0) == synthetic(undisturbed, 0)


@pytest.mark.usefixtures("leaves_nothing")
def test_killed_sweep_leaves_no_processes_and_next_attempt_repeats_no_finished_trial(
    undisturbed: JobDir, cluster: str, cache: Path, tmp_path: Path
) -> None:
    directory = jobs.create_job(tmp_path / "job_killed", cache, sweep([0.1, 1e30, 1.0], max_concurrent=1))
    with driving(directory, cluster) as driver:
        driver.wait_for(lambda: len(iterations(directory, 2)) >= 5)
        driver.process.kill()
        driver.process.wait()
        killed_at = time.monotonic()
        while actor_processes():
            assert time.monotonic() - killed_at < 20, actor_processes()
            time.sleep(0.05)
    assert outcomes(directory).keys() == {0, 1}
    done, before = iterations(directory, 2), directory.trials_file.read_text()
    with driving(directory, cluster, attempt=2) as second:
        assert second.ends_with(0)["type"] == "finished"
        assert [event["number"] for event in second.events("trial_started")] == [2]
    assert directory.trials_file.read_text().startswith(before)
    assert iterations(directory, 0) == list(range(1, ITERATIONS + 1))
    assert iterations(directory, 2)[len(done)] > 3
    assert synthetic(directory, 2) == synthetic(undisturbed, 2)


@pytest.mark.usefixtures("leaves_nothing")
def test_cancelling_a_sweep_with_a_frozen_worker_leaves_no_processes(cluster: str, cache: Path, tmp_path: Path) -> None:
    base = {"iterations": 10_000, "resources": TWO_WORKERS}
    directory = jobs.create_job(tmp_path / "job_cancelled", cache, sweep([0.1, 0.2, 0.3], base=base))
    with driving(directory, cluster) as driver:
        driver.wait_for(lambda: all(iterations(directory, number) for number in (0, 1)))
        os.kill(gang(directory, 0)[1], signal.SIGSTOP)
        os.killpg(driver.process.pid, signal.SIGTERM)  # as Ray stops a job
        signalled_at = time.monotonic()
        assert driver.ends_with(143)["type"] == "cancelled"
        assert time.monotonic() - signalled_at < 10
        assert not actor_processes()
    assert not directory.trials_file.read_text()


@pytest.mark.usefixtures("leaves_nothing")
def test_asha_stops_trial_and_its_gang(cluster: str, cache: Path, tmp_path: Path) -> None:
    """The second trial to reach a rung is worse, so it is stopped: one real image per class teaches less than twenty."""
    method = jobs.spec()["method"] | {"init": "real", "image_lr": 1e-6}
    base = {"iterations": 6, "validation": VALIDATION | {"epochs": 60, "every": 2}, "method": method}
    directory = jobs.create_job(
        tmp_path / "job_asha", cache, sweep([20, 1], space="ipc", base=base, scheduler="asha", max_concurrent=1)
    )
    with driving(directory, cluster) as driver:
        assert driver.ends_with(0)["type"] == "finished"
        validated = [(event["number"], event["iteration"]) for event in driver.events("trial_validated")]
    found = outcomes(directory)
    assert (found[0]["status"], found[1]["status"]) == ("succeeded", "stopped")
    assert (found[1]["iterations"], found[1]["error"]) == (2, None)
    assert validated == [(0, 2), (0, 4), (0, 6), (1, 2)]
    assert not trial_events(directory, 1, "finished")


def test_asha_uses_validations_of_previous_attempts(tmp_path: Path, cache: Path) -> None:
    from workers.sweep import asha

    base = {"iterations": 12, "validation": VALIDATION}
    directory = jobs.create_job(tmp_path / "job_asha", cache, sweep([0.1, 0.2, 0.3], base=base, scheduler="asha"))
    job = JobFile.model_validate_json(directory.job_file.read_bytes())
    assert isinstance(job.spec, SweepSpec)
    trials = sweep_trials(job, directory, job.spec)
    new: Any = SimpleNamespace(trial_id="new")

    def decision(iteration: int, accuracy: float) -> str:
        scheduler = asha(trials, directory)
        scheduler.on_trial_add(None, new)
        return str(scheduler.on_trial_result(None, new, {"iteration": iteration, "accuracy": accuracy}))

    assert decision(3, 50.0) == "CONTINUE"  # the first to come to a rung
    for number, means in ((0, [60, 70]), (1, [80])):
        validations = [{"iteration": 3 * (i + 1), "mean": mean, "accuracies": [mean]} for i, mean in enumerate(means)]
        write_atomically(directory.trial(number).validation_file, json.dumps(validations).encode())
    assert decision(3, 65.0) == "STOP"  # rung 3: below the median of 60 and 80
    assert decision(3, 75.0) == "CONTINUE"
    assert decision(6, 69.0) == "STOP"  # rung 6: below 70
    assert decision(6, 71.0) == "CONTINUE"
    assert decision(4, 69.0) == "STOP"  # a rung is judged when it is first reached or passed
    assert decision(12, 71.0) == "CONTINUE"


def test_events_of_a_sweep(undisturbed: JobDir) -> None:
    driver = Driver(process=None, directory=undisturbed, attempt=1, log=Path())  # type: ignore[arg-type]
    assert driver.phases() == ["preparing", "sweeping", "publishing"]
    assert {event["number"] for event in driver.events("trial_started")} == {0, 1, 2}
    assert sorted(event["done"] for event in driver.events("trial")) == [1, 2, 3]
