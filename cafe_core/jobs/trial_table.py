"""Present the networks of an evaluation and the trials of a sweep as rows and as CSV.

This module only reads the logs, possibly while a driver appends to them. It does not import torch, because the API uses it too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cafe_core.evaluation.tasks import EvaluationTask
from cafe_core.files import read_lines
from cafe_core.jobs.backend import TrialOutcome
from cafe_core.spec.network import NetworkSpec

Row = dict[str, Any]

NETWORK_COLUMNS = ("source", "network", "index", "augment", "repeat", "accuracy")


# -- networks of an evaluation


def network_row(networks: Sequence[NetworkSpec], task: EvaluationTask, accuracy: float) -> Row:
    """Return the row of one network: its source, name, index in the spec, augmentation, repeat, and accuracy in percent."""
    values = (task.source, networks[task.network].name, task.network, task.augment, task.repeat, accuracy)
    return dict(zip(NETWORK_COLUMNS, values, strict=True))


def network_rows(log: Path, networks: Sequence[NetworkSpec]) -> list[Row]:
    """Return the networks in evaluation.jsonl, in the order in which they were first trained.

    Only networks trained on the newest set are part of the result. If one was trained twice, its last accuracy counts.
    """
    records = read_lines(log)
    accuracies = {EvaluationTask(**r["task"]): r["accuracy"] for r in records if r["set"] == records[-1]["set"]}
    return [network_row(networks, task, accuracy) for task, accuracy in accuracies.items()]


# -- trials of a sweep


def read_outcomes(log: Path) -> dict[int, TrialOutcome]:
    """Return the ended trials, which trials.jsonl holds, by number."""
    return {outcome.number: outcome for outcome in (TrialOutcome(**record) for record in read_lines(log))}


def best_outcome(outcomes: Iterable[TrialOutcome]) -> TrialOutcome | None:
    """Return the succeeded trial with the best metric; of equal ones, the one with the lowest number."""
    ended = [outcome for outcome in outcomes if outcome.status == "succeeded" and outcome.metric is not None]
    return max(ended, key=lambda outcome: (outcome.metric or 0.0, -outcome.number), default=None)


def trial_row(overrides: dict[str, Any], outcome: TrialOutcome) -> Row:
    """Return the row of one trial: its number, overrides and outcome."""
    ended = asdict(outcome)
    return {"trial": ended.pop("number"), "overrides": overrides, **ended}


# -- CSV


def networks_csv(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the header, then one line per network."""
    yield _line(NETWORK_COLUMNS)
    yield from (_line(row[column] for column in NETWORK_COLUMNS) for row in rows)


def trials_csv(space: Collection[str], rows: Iterable[Row]) -> Iterator[str]:
    """Yield the header, then one line per trial, with a column for each field of the space."""
    yield _line(["trial", *space, "status", "metric", "iterations", "seconds", "error"])
    for row in rows:
        values = [row["overrides"][path] for path in space]
        shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
        error = row["error"]["message"] if row["error"] else ""
        yield _line([row["trial"], *shown, row["status"], row["metric"], row["iterations"], row["seconds"], error])


def _line(values: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
