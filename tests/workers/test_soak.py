"""Faults at random moments, many of them: what `make soak` runs."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.workers import jobs
from tests.workers.conftest import actor_processes
from tests.workers.jobs import driving

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("leaves_nothing")]

LONG = {"iterations": 60, "checkpoint_every": 4, "evaluation": None}


@pytest.mark.parametrize("seed", range(3))
def test_workers_lost_at_random_moments_change_nothing(seed: int, cluster: str, cache: Path, tmp_path: Path) -> None:
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
def test_a_driver_stopped_at_a_random_moment_leaves_nothing_and_can_be_resumed(
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
