"""Evaluate and sweep jobs while they run: progress, trials, synthetic set."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from safetensors.numpy import load

from cafe_core.evaluation.tasks import EvaluationTask
from cafe_core.files import write_atomically
from cafe_core.jobs.backend import TrialOutcome
from cafe_core.jobs.jobdir import EventLog
from server.files.trials import TAIL_BYTES
from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay, attempt_dir, driver_of
from tests.server.kinds import EVALUATE, HERDING, SWEEP, digits_set, end_trial, running_job, trained
from tests.server.routes.test_jobs_api import refused

FAILED = {"code": "non_finite_loss", "message": "the loss became NaN", "retryable": False}


def trials(api: Api, job_id: str, **params: Any) -> list[dict[str, Any]]:
    response = api.get(f"/v1/jobs/{job_id}/trials", params=params)
    assert response.status_code == 200, response.text
    rows: list[dict[str, Any]] = response.json()["data"]
    return rows


# -- evaluations


@pytest.mark.parametrize(
    "spec", [EVALUATE, EVALUATE | {"synthetic": HERDING}, SPEC | {"evaluation": {"networks": EVALUATE["networks"]}}]
)
def test_trials_of_evaluation_are_its_networks(api: Api, ray: FakeRay, settings: Settings, spec: dict[str, Any]) -> None:
    job_id = running_job(api, ray, spec)
    assert trials(api, job_id) == []
    directory = settings.job_dir(job_id)
    trained(directory, "a", EvaluationTask("synthetic", 0, "none", 0), 70.0)
    trained(directory, "a", EvaluationTask("random", 1, "dsa", 3), 61.5)
    with directory.evaluation_file.open("a") as log:
        log.write('{"set": "a", "ta')  # as it is being written
    rows = [
        {"source": "synthetic", "network": "convnet", "index": 0, "augment": "none", "repeat": 0, "accuracy": 70.0},
        {"source": "random", "network": "mlp", "index": 1, "augment": "dsa", "repeat": 3, "accuracy": 61.5},
    ]
    assert trials(api, job_id) == rows
    assert trials(api, job_id, limit=1) == rows[:1]
    table = api.get(f"/v1/jobs/{job_id}/trials", params={"format": "csv"})
    assert table.headers["content-type"].startswith("text/csv")
    assert table.headers["content-disposition"] == f'attachment; filename="{job_id}-trials.csv"'
    assert (
        table.text == "source,network,index,augment,repeat,accuracy\nsynthetic,convnet,0,none,0,70.0\nrandom,mlp,1,dsa,3,61.5\n"
    )


def test_measurements_of_other_set_are_ignored(api: Api, ray: FakeRay, settings: Settings) -> None:
    """An attempt that condenses again may produce a set with different bytes."""
    job_id = running_job(api, ray, EVALUATE)
    for judged, accuracy in (("first", 50.0), ("second", 60.0)):
        trained(settings.job_dir(job_id), judged, EvaluationTask("synthetic", 0, "none", 0), accuracy)
    assert [row["accuracy"] for row in trials(api, job_id)] == [60.0]


def test_condensation_without_evaluation_has_no_trials(api: Api) -> None:
    job_id = api.make()["id"]
    response = api.get(f"/v1/jobs/{job_id}/trials")
    refused(response, 404)
    assert "without an evaluation" in response.json()["detail"]
    refused(api.get("/v1/jobs/job_unknown/trials"), 404)


# -- sweeps


def test_trials_of_running_sweep_are_shown(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = running_job(api, ray, SWEEP)
    directory = settings.job_dir(job_id)
    pending = trials(api, job_id)
    assert [row["overrides"] for row in pending] == [{"method.beta": b, "seed": s} for b in (0.5, 1.0) for s in (0, 1)]
    assert {row["status"] for row in pending} == {"pending"}
    with driver_of(settings, job_id) as report:
        report("phase", phase="sweeping")
        report("trials", done=0, total=4)
        for number in (0, 1, 2):
            report("trial_started", number=number, overrides=pending[number]["overrides"])
        end_trial(directory, TrialOutcome(0, "succeeded", 81.5, 10, 2.5))
        report("trial", done=1, total=4)
        end_trial(directory, TrialOutcome(1, "failed", None, None, 1.0, FAILED))
        report("trial", done=2, total=4)
        job = api.await_job(job_id, lambda job: job["progress"]["done"] == 2)
    assert (job["status"], job["phase"], job["progress"]["total"]) == ("running", "sweeping", 4)
    trial = directory.trial(2)
    log = EventLog(trial.attempt(1).events_file)
    for iteration in (1, 2, 3):
        log("iteration", iteration=iteration, total=10)
    log("checkpoint", iteration=3, note="x" * TAIL_BYTES)  # so that not all of the log is read
    log("iteration", iteration=4, total=10)
    log.close()
    write_atomically(
        trial.validation_file, json.dumps([{"iteration": 2, "mean": m, "accuracies": []} for m in (70, 60)]).encode()
    )
    shown = [
        {key: row[key] for key in ("trial", "status", "metric", "iterations", "seconds", "error")} for row in trials(api, job_id)
    ]
    assert shown == [
        {"trial": 0, "status": "succeeded", "metric": 81.5, "iterations": 10, "seconds": 2.5, "error": None},
        {"trial": 1, "status": "failed", "metric": None, "iterations": None, "seconds": 1.0, "error": FAILED},
        {"trial": 2, "status": "running", "metric": 70.0, "iterations": 4, "seconds": None, "error": None},
        {"trial": 3, "status": "pending", "metric": None, "iterations": None, "seconds": None, "error": None},
    ]
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    assert [row["status"] for row in trials(api, job_id)] == ["succeeded", "failed", "pending", "pending"]
    api.post(f"/v1/jobs/{job_id}/resume")
    api.await_job(job_id, lambda _: (job_id, 2) in ray.submissions)
    assert trials(api, job_id)[2]["status"] == "pending"  # this attempt has not started it


def test_trials_are_paged(api: Api, ray: FakeRay) -> None:
    job_id = running_job(api, ray, SWEEP | {"space": {"method.beta": {"uniform": [0.1, 1.0]}}, "samples": 25})
    page = api.get(f"/v1/jobs/{job_id}/trials", params={"limit": 10}).json()
    assert page["next_after"] == 10
    rest = api.get(f"/v1/jobs/{job_id}/trials", params={"after": page["next_after"]}).json()
    assert rest["next_after"] == 25
    assert [row["trial"] for row in page["data"] + rest["data"]] == list(range(25))
    assert page["data"] + rest["data"] == trials(api, job_id)
    assert api.get(f"/v1/jobs/{job_id}/trials", params={"after": 25}).json() == {"data": [], "next_after": 25}
    for params in ({"limit": 0}, {"limit": 10_001}, {"after": -1}, {"format": "xml"}):
        assert list(refused(api.get(f"/v1/jobs/{job_id}/trials", params=params))) == list(params)


def test_csv_of_sweep_has_column_per_field(api: Api, ray: FakeRay, settings: Settings) -> None:
    space = {
        "method.init": {"grid": ["noise"]},
        "method.layers": {"grid": [[0, 1], [0, 2]]},
        "method.discrimination": {"grid": [True]},
    }
    job_id = running_job(api, ray, SWEEP | {"space": space})
    end_trial(settings.job_dir(job_id), TrialOutcome(1, "stopped", 50.0, 4, 1.0))
    rows = list(csv.reader(io.StringIO(api.get(f"/v1/jobs/{job_id}/trials", params={"format": "csv"}).text)))
    assert rows == [
        ["trial", "method.init", "method.layers", "method.discrimination", "status", "metric", "iterations", "seconds", "error"],
        ["0", "noise", "[0, 1]", "true", "pending", "", "", "", ""],
        ["1", "noise", "[0, 2]", "true", "stopped", "50.0", "4", "1.0", ""],
    ]


# -- synthetic sets


def level_of(content: bytes) -> float:
    return round(float(load(content)["images"].mean()), 3)


def test_running_sweep_serves_best_set_so_far(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = running_job(api, ray, SWEEP)
    directory = settings.job_dir(job_id)
    response = api.get(f"/v1/jobs/{job_id}/synthetic")
    refused(response, 404)
    assert "none of its trials has finished" in response.json()["detail"]
    end_trial(directory, TrialOutcome(2, "failed", None, None, 1.0, FAILED))
    refused(api.get(f"/v1/jobs/{job_id}/preview.png"), 404)
    for number, metric, level, best in ((1, 70.0, 0.1, 0.1), (3, 80.0, 0.3, 0.3), (0, 75.0, 0.2, 0.3)):
        end_trial(directory, TrialOutcome(number, "succeeded", metric, 10, 1.0), level)
        assert level_of(api.get(f"/v1/jobs/{job_id}/synthetic").content) == best
    assert api.get(f"/v1/jobs/{job_id}/preview.png").headers["content-type"] == "image/png"


def test_evaluation_serves_set_under_evaluation(api: Api, ray: FakeRay, settings: Settings) -> None:
    digits_set(0.4).save(settings.roots.datasets / "set.safetensors")
    given = running_job(api, ray, EVALUATE | {"synthetic": {"path": "set.safetensors"}})
    assert level_of(api.get(f"/v1/jobs/{given}/synthetic").content) == 0.4
    assert api.get(f"/v1/jobs/{given}/preview.png").status_code == 200

    chosen = running_job(api, ray, EVALUATE | {"synthetic": HERDING})
    response = api.get(f"/v1/jobs/{chosen}/synthetic")
    refused(response, 404)
    assert "herding has not selected any images" in response.json()["detail"]
    digits_set(0.6).save(attempt_dir(settings, chosen).synthetic_file)
    assert level_of(api.get(f"/v1/jobs/{chosen}/synthetic").content) == 0.6

    drawn = running_job(api, ray, EVALUATE)
    response = api.get(f"/v1/jobs/{drawn}/preview.png")
    refused(response, 404)
    assert "it evaluates real images (random)" in response.json()["detail"]


# -- progress


def test_validations_and_networks_count_as_progress(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = running_job(api, ray, SPEC | {"validation": {"every": 5}})
    with driver_of(settings, job_id) as report:
        report("phase", phase="validating")
        report("validated", iteration=5, total=10, mean=80.0, accuracies=[80.0])
        job = api.await_job(job_id, lambda job: job["progress"]["done"] == 5)
        assert (job["status"], job["phase"]) == ("running", "validating")
        report("evaluated", source="random", network="mlp", augment="none", repeat=0, accuracy=50.0, done=1, total=4, eta_s=3.0)
        job = api.await_job(job_id, lambda job: job["progress"]["total"] == 4)
        assert job["progress"] == {"done": 1, "total": 4, "eta_s": 3.0}
