"""End the drivers of a job's previous attempts if Ray has not.

Before it submits a new attempt, the server asks Ray to stop the previous one. Ray passes this on to the job supervisor, the actor
that started the driver. A frozen supervisor does not end its driver, whose workers then hold the resources that the new
attempt waits for.
"""

from __future__ import annotations

import logging

import ray
from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE, SUPERVISOR_ACTOR_RAY_NAMESPACE

from workers.client import submission_id

log = logging.getLogger(__name__)


def end_previous_attempts(job_id: str, attempt: int) -> None:
    """Kill the supervisors of all attempts before `attempt`. Ray ends their drivers and workers with them within seconds."""
    for number in range(1, attempt):
        try:
            name = JOB_ACTOR_NAME_TEMPLATE.format(job_id=submission_id(job_id, number))
            supervisor = ray.get_actor(name, namespace=SUPERVISOR_ACTOR_RAY_NAMESPACE)
        except ValueError:
            continue  # it has ended
        log.warning("attempt %d was given up but still runs; ending it", number)
        ray.kill(supervisor)
