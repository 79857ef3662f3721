"""Run one attempt of a job, from job.json to its last event. This is what a Ray Job executes.

Exit codes: 0 if the attempt finished, 1 if it failed, 128 + n if signal n cancelled it (as in a shell: 143 for SIGTERM).
The attempt's last event states how it ended. It is written after all workers have ended and all resources are released. There are
two exceptions. A driver that is killed writes no event; Ray then ends its actors and releases its resources. A driver whose
attempt was given up meanwhile ends its workers and exits with code 1, without an event.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from cafe_core.errors import CafeError, StaleAttemptError
from cafe_core.jobs.backend import Backend
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.job import run_job
from cafe_core.jobs.jobdir import EventLog, JobDir, JobFile
from workers.interruption import Interruption

log = logging.getLogger(__name__)


def run_attempt(job_dir: Path, attempt: int) -> int:
    """Run attempt number `attempt` of the job in `job_dir` on the Ray cluster at RAY_ADDRESS; return the exit code."""
    # Ray mixes the logs of all drivers, so each line names its job and attempt.
    about = f"{job_dir.name} attempt {attempt}".replace("%", "%%")
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s {about}: %(message)s")
    directory = JobDir(job_dir)
    # Disconnect from Ray after the last event, because disconnecting may take long and Ray kills a stopped driver after 3 s.
    with closing(EventLog(directory.attempt(attempt).events_file)) as events, Interruption() as interruption, ExitStack() as held:
        try:
            result = _run(directory, attempt, events, interruption, held)
        except KeyboardInterrupt:
            log.info("cancelled")
            events("cancelled")
            return 128 + (interruption.signal or signal.SIGTERM)
        except StaleAttemptError as error:
            log.warning("%s", error)
            return 1
        except CafeError as error:
            log.error("%s: %s", error.code, error)
            events("failed", error=error.as_dict())
            return 1
        except Exception as error:
            log.exception("the attempt failed unexpectedly")
            events("failed", error=CafeError(f"{type(error).__name__}: {error}").as_dict())
            return 1
        events("finished", result=result)
        return 0


def _run(directory: JobDir, attempt: int, events: EventLog, interruption: Interruption, held: ExitStack) -> dict[str, Any]:
    """Run the job's phases. Resources to release last are added to `held`."""
    fence = AttemptFence.of(directory, attempt)
    fence()
    job = JobFile.model_validate_json(directory.job_file.read_bytes())

    def make_backend() -> Backend:
        held.callback(_connect(interruption))
        from workers.backend import RayBackend
        from workers.stale_drivers import end_previous_attempts

        end_previous_attempts(job.job_id, attempt)
        return held.enter_context(closing(RayBackend(job, directory, f"{job.job_id}/attempt {attempt}", interruption)))

    result = run_job(job, directory, attempt, make_backend, events, fence=fence)
    interruption.disarm()  # the result is published: too late to cancel
    return result


def _connect(interruption: Interruption) -> Callable[[], None]:
    """Connect to the cluster; return a function that disconnects.

    Ray is imported here, so that an invalid dataset is refused a second earlier and signals are handled during the import.
    """
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=True)
    except SystemExit as stopped:  # raised by the SIGTERM handler that ray.init installs first
        raise KeyboardInterrupt from stopped
    finally:
        interruption.install()
    return ray.shutdown
