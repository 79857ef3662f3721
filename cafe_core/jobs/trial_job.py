"""Run one trial of a sweep as a condense job in its own directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from cafe_core.errors import CafeError, StaleAttemptError
from cafe_core.files import write_atomically
from cafe_core.jobs.backend import Backend, Report, TrialOutcome
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.job import run_job
from cafe_core.jobs.jobdir import EventLog, JobDir, JobFile
from cafe_core.spec.trials import Trial

MakeBackend = Callable[[JobFile, JobDir], Backend]


def run_trial(
    trial: Trial, sweep: JobFile, directory: JobDir, fence: AttemptFence, make_backend: MakeBackend, on_event: Report
) -> TrialOutcome:
    """Run `trial` in `directory`, from its last checkpoint. If it has finished already, only read its result.

    Args:
        fence: that of the sweep.
        on_event: called with every event that is written to the trial's own log.

    A CafeError ends the trial, not the sweep, and becomes part of the outcome. Only StaleAttemptError is raised.
    """
    files = directory.attempt(1)
    if files.manifest_file.exists():
        return _succeeded(trial, json.loads(files.result_file.read_bytes()))
    job = JobFile(
        job_id=f"{sweep.job_id}/trial {trial.number}",
        spec=trial.spec,
        roots=sweep.roots,
        max_restarts=sweep.max_restarts,
        collective_timeout_s=sweep.collective_timeout_s,
    )
    write_atomically(directory.job_file, job.model_dump_json(exclude_none=True, indent=2).encode(), fence=fence)
    started = time.monotonic()
    with closing(EventLog(files.events_file)) as log:

        def report(type: str, **data: Any) -> None:
            log(type, **data)
            on_event(type, **data)

        try:
            result = run_job(job, directory, 1, lambda: make_backend(job, directory), report, fence=fence)
        except StaleAttemptError:
            raise
        except CafeError as error:
            log("failed", error=error.as_dict())
            seconds = round(time.monotonic() - started, 3)
            return TrialOutcome(trial.number, "failed", None, None, seconds, error.as_dict())
        log("finished", result=result)
    return _succeeded(trial, result)


def _succeeded(trial: Trial, result: dict[str, Any]) -> TrialOutcome:
    return TrialOutcome(trial.number, "succeeded", metric_of(result), result["iterations"], result["seconds"]["total"])


def metric_of(result: dict[str, Any]) -> float:
    """Return the number that trials are compared by, in percent.

    It is the mean accuracy of the best validation or, without validations, of the evaluation's first network.
    """
    if "validations" in result:
        return max(float(validation["mean"]) for validation in result["validations"])
    return float(result["evaluation"]["networks"][0]["mean"])
