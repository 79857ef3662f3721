"""Ends what runs the drivers of a job's earlier attempts, where Ray has not.

The server asks Ray to, before it submits a new attempt, and Ray asks the job supervisor: its actor that has started the driver.
One that is frozen, as its driver may be, ends nothing, and the driver's workers hold what the new attempt's wait for.
"""

from __future__ import annotations

import logging

import ray
from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE, SUPERVISOR_ACTOR_RAY_NAMESPACE

from workers.client import submission_id

log = logging.getLogger(__name__)


def end_earlier_attempts(job_id: str, attempt: int) -> None:
    """Kill their supervisors: Ray does so for certain, within seconds; the drivers and their workers go with them."""
    for number in range(1, attempt):
        try:
            name = JOB_ACTOR_NAME_TEMPLATE.format(job_id=submission_id(job_id, number))
            supervisor = ray.get_actor(name, namespace=SUPERVISOR_ACTOR_RAY_NAMESPACE)
        except ValueError:
            continue  # it has ended
        log.warning("attempt %d is still there, although it was given up: ending it", number)
        ray.kill(supervisor)
