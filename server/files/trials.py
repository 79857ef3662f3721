"""Read the trials of a job (networks of an evaluation, settings of a sweep) from its files, also while it runs."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cafe_core.jobs.backend import TrialOutcome
from cafe_core.jobs.jobdir import JobDir
from cafe_core.jobs.trial_table import Row, network_rows, read_outcomes, trial_row
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.job import JobSpec
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import settings
from server.errors import NotFoundError

TAIL_BYTES = 1 << 16
"""How much of a trial's event log is read: enough to contain its last iteration."""


def rows_of(directory: JobDir, spec: JobSpec, running: Collection[int], *, after: int, limit: int | None) -> list[Row]:
    """Return at most `limit` of a job's trials after the first `after`: networks in training order, or a sweep's trials by
    number.

    running: the numbers of the started trials of a running sweep. Raises NotFoundError for a job without trials.
    """
    part = slice(after, None if limit is None else after + limit)
    if isinstance(spec, SweepSpec):
        outcomes = read_outcomes(directory.trials_file)
        planned = list(enumerate(settings(spec)))[part]
        return [_sweep_row(directory, number, overrides, outcomes, running) for number, overrides in planned]
    evaluation = spec.evaluation if isinstance(spec, CondenseSpec) else spec
    if evaluation is None:
        raise NotFoundError("the job has no trials: it is a condensation without an evaluation")
    return network_rows(directory.evaluation_file, evaluation.networks)[part]


def _sweep_row(
    directory: JobDir, number: int, overrides: dict[str, Any], outcomes: dict[int, TrialOutcome], running: Collection[int]
) -> Row:
    if number in outcomes:
        return trial_row(overrides, outcomes[number])
    row: Row = {"trial": number, "overrides": overrides, "status": "pending"}
    row |= dict.fromkeys(("metric", "iterations", "seconds", "error"))
    if number in running:
        trial = directory.trial(number)
        row |= {"status": "running", "metric": _best_validation(trial), "iterations": _last_iteration(trial)}
    return row


def _best_validation(trial: JobDir) -> float | None:
    validations = json.loads(trial.validation_file.read_bytes()) if trial.validation_file.exists() else []
    return max((validation["mean"] for validation in validations), default=None)


def _last_iteration(trial: JobDir) -> int | None:
    """Return the last completed iteration in the trial's log."""
    for line in reversed(_last_lines(trial.attempt(1).events_file)):
        event = json.loads(line)
        if event["type"] == "iteration":
            return int(event["iteration"])
    return None


def _last_lines(log: Path) -> list[bytes]:
    """Return the complete lines at the end of a log."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        start = max(0, log.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    return lines[1:] if start else lines
