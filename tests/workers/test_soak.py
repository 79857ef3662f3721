"""Test many faults at random moments (`make soak`)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from cafe_core.evaluation.tasks import EvaluationSetup, all_tasks
from cafe_core.spec.evaluation import EvaluationSpec
from tests.cafe_core.made_data import make_store
from tests.workers import jobs
from tests.workers.conftest import actor_processes
from tests.workers.jobs import driving
from tests.workers.test_tune_evaluation import NETWORKS, backend, workers
from tests.workers.test_tune_sweep import outcomes, sweep, synthetic

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("leaves_nothing")]

LONG = {"iterations": 60, "checkpoint_every": 4, "evaluation": None}


@pytest.mark.parametrize("seed", range(3))
def test_workers_lost_at_random_moments_do_not_change_the_result(seed: int, cluster: str, cache: Path, tmp_path: Path) -> None:
    with driving(jobs.create(tmp_path / "job_undisturbed", cache, **LONG), cluster) as driver:
        same_bytes = driver.succeeds()
    dice = random.Random(seed)
    faults = 0
    with driving(jobs.create(tmp_path / "job_faults", cache, timeout_s=5, max_restarts=1000, **LONG), cluster) as driver:
        while driver.process.poll() is None and faults < 8:
            gangs = len(driver.events("workers"))
            time.sleep(dice.uniform(0.2, 3.0))
            if not gangs or driver.process.poll() is not None or len(driver.events("workers")) > gangs:
                continue
            try:
                os.kill(dice.choice(driver.pids()), dice.choice([signal.SIGKILL, signal.SIGSTOP]))
            except ProcessLookupError:
                continue  # its gang was being replaced
            faults += 1
            driver.wait_for(lambda g=gangs: len(driver.events("workers")) > g or driver.process.poll() is not None, within_s=120)
        assert driver.succeeds() == same_bytes
    assert faults >= 3


@pytest.mark.parametrize("seed", range(20))
def test_driver_stopped_at_a_random_moment_leaves_no_processes_and_resumes(
    seed: int, cluster: str, cache: Path, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    directory = jobs.create(tmp_path / "job_stopped", cache)
    with driving(directory, cluster) as driver:
        time.sleep(dice.uniform(0.5, 12))
        if driver.process.poll() is None:
            os.killpg(driver.process.pid, dice.choice([signal.SIGTERM, signal.SIGKILL]))
        driver.process.wait(30)
        deadline = time.monotonic() + 20
        while actor_processes():
            assert time.monotonic() < deadline, actor_processes()
            time.sleep(0.1)
    with driving(directory, cluster, attempt=2) as second:
        second.succeeds()


@pytest.mark.parametrize("seed", range(5))
def test_evaluating_workers_lost_at_random_moments_do_not_change_accuracies(
    seed: int,
    cluster: str,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    spec = EvaluationSpec(networks=NETWORKS, repeats=150, epochs=60, whole_epochs=20, baselines=["whole"])
    store = make_store(tmp_path / "store", [12] * 3, side=16).path
    tasks, setup = all_tasks(spec, "random"), EvaluationSetup(spec, seed=seed, store=store, synthetic=None, ipc=2)
    with closing(backend(tmp_path / "undisturbed")) as held:
        expected = dict(held.evaluate(tasks, setup, workers(2), lambda *_, **__: None))
    dice = random.Random(seed)
    living: list[int] = []
    restarts: list[str] = []
    over = threading.Event()

    def report(type: str, **data: Any) -> None:
        if type == "workers":
            living[:] = [worker["pid"] for worker in data["workers"]]
        if type == "restart":
            restarts.append(data["reason"])

    def sabotage() -> None:
        while not over.wait(dice.uniform(0.0, 3.0)):
            if living:
                with suppress(ProcessLookupError):
                    os.kill(dice.choice(living), dice.choice([signal.SIGKILL, signal.SIGSTOP]))

    saboteur = threading.Thread(target=sabotage)
    saboteur.start()
    with closing(backend(tmp_path / "disturbed", timeout_s=3, max_restarts=1000)) as held:
        measured = list(held.evaluate(tasks, setup, workers(2), report))
    over.set()
    saboteur.join()
    assert len(measured) == len(tasks)
    assert dict(measured) == expected
    assert len(restarts) >= 3


@pytest.mark.parametrize("seed", range(3))
def test_sweep_that_loses_processes_at_random_moments_gives_the_same_result(
    seed: int, cluster: str, cache: Path, tmp_path: Path
) -> None:
    spec = sweep([0.1, 0.5, 1.0], base={"iterations": 1000})  # long enough for ten faults
    undisturbed = jobs.create_job(tmp_path / "job_undisturbed", cache, spec)
    with driving(undisturbed, cluster) as driver:
        driver.ends_with(0)
    dice = random.Random(seed)
    directory = jobs.create_job(tmp_path / "job_faults", cache, spec, timeout_s=5, max_restarts=1000)
    faults = attempts = 0
    ended = False
    while not ended:
        attempts += 1
        with driving(directory, cluster, attempt=attempts) as driver:
            while driver.process.poll() is None and faults < 10:
                time.sleep(dice.uniform(0.2, 4.0))
                if victims := [int(title.split()[0]) for title in actor_processes()]:
                    with suppress(ProcessLookupError):
                        if faults % 5 == 4:
                            driver.process.kill()
                        else:
                            os.kill(dice.choice(victims), dice.choice([signal.SIGKILL, signal.SIGSTOP]))
                        faults += 1
            ended = driver.process.wait(300) == 0
        deadline = time.monotonic() + 20
        while actor_processes():
            assert time.monotonic() < deadline, actor_processes()
            time.sleep(0.1)
    assert (faults, attempts) == (10, 3)
    assert [synthetic(directory, n) for n in range(3)] == [synthetic(undisturbed, n) for n in range(3)]
    assert {number: o["metric"] for number, o in outcomes(directory).items()} == {
        number: o["metric"] for number, o in outcomes(undisturbed).items()
    }
