"""Test reading the logs of trials while they are written and after a crash."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from cafe_core.evaluation.tasks import EvaluationTask
from cafe_core.jobs.backend import TrialOutcome
from cafe_core.jobs.trial_table import best_outcome, network_rows, networks_csv, read_outcomes, trial_row, trials_csv
from cafe_core.spec.network import NetworkSpec


def test_incomplete_line_is_ignored_but_kept_in_the_file(tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    assert read_outcomes(log) == {}
    ended = TrialOutcome(4, "succeeded", 70.0, 10, 1.0)
    content = json.dumps(asdict(ended)) + "\n" + '{"number": 5, "sta'
    log.write_text(content)
    assert read_outcomes(log) == {4: ended}
    assert log.read_text() == content  # the driver may still be writing the line
    log.write_text('{"set": "a", "task"')
    assert network_rows(log, [NetworkSpec()]) == []


def test_networks_of_the_same_name_have_different_indices(tmp_path: Path) -> None:
    log = tmp_path / "evaluation.jsonl"
    tasks = [EvaluationTask("synthetic", index, "none", 0) for index in (0, 1)]
    log.write_text("".join(json.dumps({"set": "a", "task": asdict(task), "accuracy": 50.0}) + "\n" for task in tasks))
    rows = network_rows(log, [NetworkSpec(depth=2), NetworkSpec(depth=3)])
    assert [(row["network"], row["index"]) for row in rows] == [("convnet", 0), ("convnet", 1)]


def test_network_that_was_trained_twice_is_one_row(tmp_path: Path) -> None:
    log = tmp_path / "evaluation.jsonl"
    tasks = [EvaluationTask("synthetic", 0, "none", repeat) for repeat in (0, 1, 0)]
    lines = [json.dumps({"set": "a", "task": asdict(task), "accuracy": 50.0 + n}) for n, task in enumerate(tasks)]
    log.write_text("\n".join(lines) + "\n")
    assert [(row["repeat"], row["accuracy"]) for row in network_rows(log, [NetworkSpec()])] == [(0, 52.0), (1, 51.0)]


def test_best_trial_is_the_first_of_the_best_succeeded_ones() -> None:
    outcomes = [
        TrialOutcome(3, "succeeded", 80.0, 10, 1.0),
        TrialOutcome(1, "succeeded", 80.0, 10, 1.0),
        TrialOutcome(0, "stopped", 90.0, 5, 1.0),
        TrialOutcome(2, "failed", None, None, 1.0),
    ]
    best = best_outcome(outcomes)
    assert best is not None
    assert best.number == 1
    assert best_outcome(outcomes[2:]) is None
    assert best_outcome([]) is None


def test_csv_tables() -> None:
    error = {"code": "non_finite_loss", "message": "the loss, alas, is NaN", "retryable": False}
    row = trial_row(
        {"method.init": "real", "compile": True, "method.layers": [0, 1]}, TrialOutcome(7, "failed", None, None, 1.5, error)
    )
    assert "".join(trials_csv(["method.init", "compile", "method.layers"], [row])).splitlines() == [
        "trial,method.init,compile,method.layers,status,metric,iterations,seconds,error",
        '7,real,true,"[0, 1]",failed,,,1.5,"the loss, alas, is NaN"',
    ]
    assert list(networks_csv([])) == ["source,network,index,augment,repeat,accuracy\n"]
