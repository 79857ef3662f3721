"""What an evaluation's networks and a sweep's trials came to, as rows and as CSV. No torch: artifacts and the API have them.

Logs are only read here, also while a driver appends to them.
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
    """What a network was trained on, which it is (its kind's name and place in the spec), and its accuracy in percent."""
    values = (task.source, networks[task.network].name, task.network, task.augment, task.repeat, accuracy)
    return dict(zip(NETWORK_COLUMNS, values, strict=True))


def network_rows(log: Path, networks: Sequence[NetworkSpec]) -> list[Row]:
    """The networks in evaluation.jsonl, in the order in which they were first trained. Those of another set than the last one are
    not part of the result; of one that was trained twice, the last accuracy is."""
    records = read_lines(log)
    accuracies = {EvaluationTask(**r["task"]): r["accuracy"] for r in records if r["set"] == records[-1]["set"]}
    return [network_row(networks, task, accuracy) for task, accuracy in accuracies.items()]


# -- trials of a sweep


def read_outcomes(log: Path) -> dict[int, TrialOutcome]:
    """The trials in trials.jsonl, which have ended, by number."""
    return {outcome.number: outcome for outcome in (TrialOutcome(**record) for record in read_lines(log))}


def best_outcome(outcomes: Iterable[TrialOutcome]) -> TrialOutcome | None:
    """The trial with the best metric among those that ran to their end; of equals the first."""
    ended = [outcome for outcome in outcomes if outcome.status == "succeeded" and outcome.metric is not None]
    return max(ended, key=lambda outcome: (outcome.metric or 0.0, -outcome.number), default=None)


def trial_row(overrides: dict[str, Any], outcome: TrialOutcome) -> Row:
    """A trial's number, setting and outcome."""
    ended = asdict(outcome)
    return {"trial": ended.pop("number"), "overrides": overrides, **ended}


# -- CSV


def networks_csv(rows: Iterable[Row]) -> Iterator[str]:
    """Lines: the columns' names, then a line a network."""
    yield _line(NETWORK_COLUMNS)
    yield from (_line(row[column] for column in NETWORK_COLUMNS) for row in rows)


def trials_csv(space: Collection[str], rows: Iterable[Row]) -> Iterator[str]:
    """Lines: the columns' names, then a line a trial; a column for each field of the space."""
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
