"""Test, on a real cluster, that frozen supervisors of previous attempts are ended. An actor with the same name stands in."""

from __future__ import annotations

import os
import signal
import time

import pytest
import ray
from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE, SUPERVISOR_ACTOR_RAY_NAMESPACE

from tests.workers.conftest import is_running
from workers.client import submission_id
from workers.stale_drivers import end_previous_attempts

JOB_ID = "job_frozen"


class Supervisor:
    """Stands in for Ray's supervisor."""

    def pid(self) -> int:
        return os.getpid()


def supervising(attempt: int) -> int:
    """Start an actor with the name of an attempt's supervisor; return its pid."""
    name = JOB_ACTOR_NAME_TEMPLATE.format(job_id=submission_id(JOB_ID, attempt))
    options = {"name": name, "namespace": SUPERVISOR_ACTOR_RAY_NAMESPACE, "lifetime": "detached", "num_cpus": 0}
    actor = ray.remote(Supervisor).options(**options).remote()
    pid: int = ray.get(actor.pid.remote())
    return pid


@pytest.mark.usefixtures("cluster")
def test_ends_frozen_supervisors_of_previous_attempts_only() -> None:
    pids = {attempt: supervising(attempt) for attempt in (1, 3, 4)}
    os.kill(pids[1], signal.SIGSTOP)
    end_previous_attempts(JOB_ID, 3)
    deadline = time.monotonic() + 30
    while is_running(pids[1]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert is_running(pids[3])
    assert is_running(pids[4])
    end_previous_attempts(JOB_ID, 5)
