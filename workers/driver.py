"""One attempt of a job, from job.json to its last event: what a Ray Job runs.

Exit codes: 0 the attempt finished, 1 it failed, 128 + n it was cancelled by signal n (as a shell counts: SIGTERM 143).
Whatever happens, the attempt's last event says how it ended, and is written when nothing of it is held or running any
more. Only a driver that is killed outright writes none; Ray then ends its actors and gives its resources back. And one whose
attempt was given up meanwhile: it ends its workers and goes without a word, with exit code 1.
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
    """Run attempt number `attempt` of the job in `job_dir` on the Ray cluster at RAY_ADDRESS; returns the exit code."""
    # Ray keeps the logs of all drivers together: each line says whose it is.
    about = f"{job_dir.name} attempt {attempt}".replace("%", "%%")
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s {about}: %(message)s")
    directory = JobDir(job_dir)
    # The connection to Ray is left last, after the event: Ray kills a driver that it stops after 3 s.
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
    """The job's phases; `held` gets what is to be let go of at the very end."""
    fence = AttemptFence.of(directory, attempt)
    fence()
    job = JobFile.model_validate_json(directory.job_file.read_bytes())

    def make_backend() -> Backend:
        held.callback(_connect(interruption))
        from workers.backend import RayBackend
        from workers.stale_drivers import end_earlier_attempts

        end_earlier_attempts(job.job_id, attempt)
        return held.enter_context(closing(RayBackend(job, directory, f"{job.job_id}/attempt {attempt}", interruption)))

    result = run_job(job, directory, attempt, make_backend, events, fence=fence)
    interruption.disarm()  # the result is there: too late to cancel
    return result


def _connect(interruption: Interruption) -> Callable[[], None]:
    """Connect to the cluster; returns what disconnects.

    Ray is imported here, not above: bad data is refused a second sooner, and a signal meanwhile is already heard.
    """
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=True)
    except SystemExit as stopped:  # by Ray's own handler of SIGTERM, which ray.init installs first of all
        raise KeyboardInterrupt from stopped
    finally:
        interruption.install()
    return ray.shutdown
