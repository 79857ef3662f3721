"""Run a sweep: many condense jobs, each in its own directory; publish the best one's synthetic set."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cafe_core.data.class_store import ClassStore
from cafe_core.errors import SweepError
from cafe_core.files import Fence, LineLog, read_lines, write_atomically
from cafe_core.jobs.backend import Attempt, TrialOutcome
from cafe_core.jobs.job_data import check_unchanged, job_store
from cafe_core.jobs.jobdir import JobDir, JobFile
from cafe_core.jobs.trial_table import best_outcome, read_outcomes, trial_row, trials_csv
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import Trial, datasets_of, trials


def run(attempt: Attempt, spec: SweepSpec) -> dict[str, Any]:
    """Run every trial that no previous attempt finished, and return the result.

    Raises SweepError if no trial succeeded, and CafeError for an error that ends the sweep itself.
    """
    started = time.monotonic()
    check_unchanged(attempt, described(attempt.job, attempt.directory, spec.base.dataset))
    planned = sweep_trials(attempt.job, attempt.directory, spec)
    drop_retryable_failures(attempt.directory.trials_file, attempt.fence)
    outcomes = read_outcomes(attempt.directory.trials_file)
    attempt.report("phase", phase="sweeping")
    attempt.report("trials", done=len(outcomes), total=len(planned))
    with closing(LineLog(attempt.directory.trials_file, fence=attempt.fence)) as log:
        for outcome in attempt.backend.run_trials(planned, dict(outcomes), attempt.report):
            outcomes[outcome.number] = outcome
            log.append(asdict(outcome))
            overrides = planned[outcome.number].overrides
            attempt.report("trial", **asdict(outcome), overrides=overrides, done=len(outcomes), total=len(planned))

    rows = [trial_row(trial.overrides, outcomes[trial.number]) for trial in planned]
    write_atomically(attempt.files.artifacts / "trials.json", json.dumps(rows, indent=2).encode(), fence=attempt.fence)
    write_atomically(attempt.files.artifacts / "trials.csv", "".join(trials_csv(spec.space, rows)).encode(), fence=attempt.fence)
    best = best_outcome(outcomes.values())
    if best is None:
        raise _no_trial_succeeded(outcomes)
    winner = attempt.directory.trial(best.number).attempt(1)
    for path in (winner.synthetic_file, winner.preview_file):
        write_atomically(attempt.files.artifacts / path.name, path.read_bytes(), fence=attempt.fence)
    counts = {status: sum(o.status == status for o in outcomes.values()) for status in ("succeeded", "stopped", "failed")}
    winning = planned[best.number]
    return {
        "metric": "validation" if winning.spec.validation is not None else "evaluation",
        "best": trial_row(winning.overrides, best) | {"result": json.loads(winner.result_file.read_bytes())},
        "trials": counts | {"total": len(planned)},
        "seconds": {"total": round(time.monotonic() - started, 3)},
    }


def sweep_trials(job: JobFile, directory: JobDir, spec: SweepSpec) -> list[Trial]:
    """Return all trials of the sweep; build the class store of every dataset. Raises SpecError, DatasetError."""
    return trials(spec, DatasetFacts((dataset, described(job, directory, dataset)) for dataset in datasets_of(spec)))


def described(job: JobFile, directory: JobDir, dataset: DatasetSpec) -> DatasetInfo:
    """Build the class store of a dataset, and return its description. Raises SpecError, DatasetError."""
    return ClassStore.open(job_store(directory, dataset, job.roots)).info


def drop_retryable_failures(log: Path, fence: Fence) -> None:
    """Remove trials from trials.jsonl whose error was temporary, such as a full disk, so that this attempt runs them again."""
    records = read_lines(log)
    kept = [record for record in records if record["error"] is None or not record["error"]["retryable"]]
    if len(kept) < len(records):
        write_atomically(log, b"".join(json.dumps(record).encode() + b"\n" for record in kept), fence=fence)


def _no_trial_succeeded(outcomes: Mapping[int, TrialOutcome]) -> SweepError:
    """Return the error of a sweep without a best trial, with the trials' reasons."""
    errors = [outcome.error for outcome in outcomes.values() if outcome.error is not None]
    reasons = "; ".join(sorted({error["message"] for error in errors})[:3])
    stopped = len(outcomes) - len(errors)
    rest = f" and {stopped} were stopped early" if stopped else ""
    return SweepError(
        f"no trial succeeded: {len(errors)} of {len(outcomes)} failed{rest}: {reasons}",
        retryable=any(error["retryable"] for error in errors),
    )
