"""Test evaluations by Ray Tune: the same accuracies whatever happens, and each network once."""

from __future__ import annotations

import json
import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from cafe_core.errors import SyntheticSetError, WorkerLostError
from cafe_core.evaluation.run import train_networks
from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask, all_tasks
from cafe_core.jobs.backend import TRAINING
from cafe_core.jobs.jobdir import JobDir, JobFile
from cafe_core.spec.evaluation import EvaluationSpec
from cafe_core.spec.network import NetworkSpec
from cafe_core.spec.resources import ResourcesSpec
from tests.cafe_core.made_data import make_store
from tests.workers import jobs
from tests.workers.conftest import SmallRay
from tests.workers.jobs import driving
from tests.workers.standins import TrainInSteps
from workers import backend as backend_module
from workers.backend import RayBackend
from workers.evaluation import split_tasks
from workers.interruption import Interruption

pytestmark = pytest.mark.usefixtures("leaves_nothing")

NETWORKS = [NetworkSpec(width=4, depth=1).resolved(), NetworkSpec(name="mlp", width=4).resolved()]
LONG = 60
"""Epochs of trainings that last long enough to be disturbed: a few seconds in total."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("made") / "store", [12] * 3, side=16).path


def an_evaluation(store: Path, *, epochs: int = 3) -> tuple[list[EvaluationTask], EvaluationSetup]:
    """Twelve networks, trained on random real images and on all of them."""
    spec = EvaluationSpec(networks=NETWORKS, repeats=3, epochs=epochs, whole_epochs=epochs, baselines=["whole"])
    return all_tasks(spec, "random"), EvaluationSetup(spec, seed=5, store=store, synthetic=None, ipc=2)


def workers(count: int) -> ResourcesSpec:
    return ResourcesSpec(workers=count, gpus_per_worker=0)


def backend(tmp_path: Path, *, timeout_s: float = 60, max_restarts: int = 3) -> RayBackend:
    """A backend of a job of which only these two numbers matter."""
    directory = jobs.create(tmp_path / "job", tmp_path / "cache", timeout_s=timeout_s, max_restarts=max_restarts)
    job = JobFile.model_validate_json(directory.job_file.read_bytes())
    return RayBackend(job, directory, "job/attempt 1", Interruption())


class Saboteur(list[tuple[str, dict[str, Any]]]):
    """A report function that stores events, and sends a signal to workers number `first` to `last` as they start."""

    def __init__(self, trouble: signal.Signals, first: int, last: int) -> None:
        super().__init__()
        self._trouble = trouble
        self._victims = set(range(first, last + 1))

    def __call__(self, type: str, **data: Any) -> None:
        self.append((type, data))
        if type == "workers":
            for worker in data["workers"]:
                if worker["rank"] in self._victims:
                    self._victims.remove(worker["rank"])
                    os.kill(worker["pid"], self._trouble)

    def of(self, type: str) -> list[dict[str, Any]]:
        return [data for t, data in self if t == type]


def undisturbed() -> Saboteur:
    return Saboteur(signal.SIGKILL, first=0, last=-1)


@pytest.fixture(scope="module")
def in_process(store: Path) -> dict[int, dict[EvaluationTask, float]]:
    """The accuracies by number of epochs, measured without Ray."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    measured = {}
    for epochs in (3, LONG):
        tasks, setup = an_evaluation(store, epochs=epochs)
        measured[epochs] = {t: a for task in tasks for t, a in train_networks([task], setup, torch.device("cpu"))}
    torch.set_num_threads(threads)
    return measured


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.soak), 2, pytest.param(4, marks=pytest.mark.soak)])
def test_any_number_of_workers_gives_the_same_accuracies(
    count: int,
    cluster: str,  # noqa: ARG001
    store: Path,
    tmp_path: Path,
    in_process: dict[int, dict[EvaluationTask, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_module, "TrainNetworks", TrainInSteps)
    tasks, setup = an_evaluation(store)
    events = undisturbed()
    with closing(backend(tmp_path)) as held:
        measured = list(held.evaluate(tasks, setup, workers(count), events))
    assert len(measured) == len(tasks)
    assert dict(measured) == in_process[3]
    assert {worker["rank"] for data in events.of("workers") for worker in data["workers"]} <= set(range(count))
    assert not events.of("restart")
    trained = [task for data in events.of(TRAINING) for task in data["step"].tasks]
    assert sorted(map(str, trained)) == sorted(map(str, tasks)), "each training reports its steps"


@pytest.mark.parametrize(
    ("trouble", "reason", "timeout_s"),
    [(signal.SIGKILL, "died", 60), pytest.param(signal.SIGSTOP, "has not answered for", 2, marks=pytest.mark.soak)],
)
def test_lost_worker_does_not_change_accuracies(
    trouble: signal.Signals,
    reason: str,
    timeout_s: float,
    cluster: str,  # noqa: ARG001
    store: Path,
    tmp_path: Path,
    in_process: dict[int, dict[EvaluationTask, float]],
) -> None:
    tasks, setup = an_evaluation(store, epochs=LONG)
    events = Saboteur(trouble, first=1, last=1)
    with closing(backend(tmp_path, timeout_s=timeout_s)) as held:
        measured = list(held.evaluate(tasks, setup, workers(2), events))
    assert len(measured) == len(tasks)  # no network twice
    assert dict(measured) == in_process[LONG]
    [restart] = events.of("restart")
    assert restart["reason"].startswith(f"worker 1 {reason}")
    assert (restart["restarts"], restart["workers"]) == (1, 1)


@pytest.mark.soak
def test_exceeding_the_restart_limit_ends_the_job(cluster: str, store: Path, tmp_path: Path) -> None:  # noqa: ARG001
    tasks, setup = an_evaluation(store, epochs=LONG)
    events = Saboteur(signal.SIGKILL, first=0, last=99)
    with closing(backend(tmp_path, max_restarts=2)) as held, pytest.raises(WorkerLostError, match="2 restarts"):
        list(held.evaluate(tasks, setup, workers(1), events))
    assert len(events.of("restart")) == 2


def test_unusable_synthetic_set_ends_the_job(cluster: str, store: Path, tmp_path: Path) -> None:  # noqa: ARG001
    (tmp_path / "set.safetensors").write_bytes(b"no set")
    spec = EvaluationSpec(networks=NETWORKS, repeats=3, epochs=1)
    setup = EvaluationSetup(spec, seed=5, store=store, synthetic=tmp_path / "set.safetensors", ipc=None)
    events = undisturbed()
    with closing(backend(tmp_path)) as held, pytest.raises(SyntheticSetError):
        list(held.evaluate(all_tasks(spec), setup, workers(1), events))
    assert not events.of("restart")


@pytest.mark.soak
def test_evaluation_reports_that_it_waits_for_resources(
    cluster: str,  # noqa: ARG001
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_module, "NOTICE_S", 0.5)
    taken = placement_group([{"CPU": 4}], name="another job")
    assert taken.wait(30)
    phases = []

    def report(type: str, **data: Any) -> None:
        if type == "phase":
            phases.append(data["phase"])
            if data["phase"] == "waiting_for_resources":
                remove_placement_group(taken)

    tasks, setup = an_evaluation(store)
    with closing(backend(tmp_path)) as held:
        assert len(list(held.evaluate(tasks, setup, workers(2), report))) == len(tasks)
    assert phases == ["waiting_for_resources", "evaluating"]


def test_evaluation_without_tasks_starts_no_workers(store: Path, tmp_path: Path) -> None:
    _, setup = an_evaluation(store)
    with closing(backend(tmp_path)) as held:
        assert list(held.evaluate([], setup, workers(2), undisturbed())) == []


def evaluated(directory: JobDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in directory.evaluation_file.read_text().splitlines()]


EVALUATE = {
    "kind": "evaluate",
    "synthetic": {"dataset": {"name": "digits"}, "selection": "random", "ipc": 1},
    "networks": [{"width": 8, "depth": 2}],
    "repeats": 12,
    "epochs": 200,
    "resources": {"workers": 2, "gpus_per_worker": 0},
}


@pytest.mark.soak
def test_killed_driver_leaves_no_processes_and_next_attempt_repeats_no_network(cluster: str, cache: Path, tmp_path: Path) -> None:
    directory = jobs.create_job(tmp_path / "job_evaluate", cache, EVALUATE)
    with driving(directory, cluster) as driver:
        driver.wait_for(lambda: len(driver.events("evaluated")) >= 3)
        driver.process.kill()
        driver.process.wait()
    before = evaluated(directory)
    with driving(directory, cluster, attempt=2) as second:
        assert second.ends_with(0)["type"] == "finished"
        assert second.phases() == ["preparing", "evaluating", "publishing"]
        assert len(second.events("evaluated")) == 12 - len(before)
    after = evaluated(directory)
    assert after[: len(before)] == before
    assert sorted(record["task"]["repeat"] for record in after) == list(range(12))


VALIDATION = {"every": 4, "network": {"width": 8, "depth": 2}, "repeats": 3, "epochs": 5}


@pytest.fixture(scope="module")
def validations(small_ray: SmallRay, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the validations of a job that runs undisturbed."""
    directory = jobs.create(tmp_path_factory.mktemp("jobs") / "job_validation", cache, validation=VALIDATION, evaluation=None)
    with driving(directory, small_ray.address) as driver:
        driver.succeeds()
        gang = ["waiting_for_resources", "starting_workers"]
        assert driver.phases() == ["preparing", *gang, *["condensing", "validating"] * 3, "publishing"]
        assert len(driver.events("workers")) == 1
    return directory.validation_file.read_bytes()


def test_validation_uses_the_gang(validations: bytes) -> None:
    """The fixture checks the phases."""
    assert [found["iteration"] for found in json.loads(validations)] == [4, 8, 12]


@pytest.mark.soak
def test_worker_killed_while_validating_does_not_change_accuracies(
    cluster: str, cache: Path, tmp_path: Path, validations: bytes
) -> None:
    directory = jobs.create(tmp_path / "job_killed", cache, validation=VALIDATION, evaluation=None)
    with driving(directory, cluster) as driver:
        driver.wait_for(lambda: "validating" in driver.phases())
        os.kill(driver.pids()[1], signal.SIGKILL)
        driver.succeeds()
        assert len(driver.events("restart")) == 1
    assert directory.validation_file.read_bytes() == validations


def test_split_tasks() -> None:
    spec = EvaluationSpec(networks=NETWORKS, repeats=40, baselines=["random", "whole"])
    tasks = all_tasks(spec)
    on_cpus = split_tasks(tasks, workers(2))
    assert sorted(map(str, tasks)) == sorted(str(task) for chunk in on_cpus for task in chunk)
    assert [len(chunk) for chunk in on_cpus[:80]] == [1] * 80
    assert {chunk[0].source for chunk in on_cpus[:80]} == {"whole"}
    assert max(len(chunk) for chunk in on_cpus) == 5  # 160 others in at least 2 × 16
    assert [(chunk[0].source, chunk[0].network) for chunk in on_cpus[80:84]] == [
        ("synthetic", 0),
        ("synthetic", 1),
        ("random", 0),
        ("random", 1),
    ]
    assert {len({(t.source, t.network, t.augment) for t in chunk}) for chunk in on_cpus} == {1}

    on_gpus = split_tasks(tasks, ResourcesSpec(workers=2, gpus_per_worker=1))
    assert {len(chunk) for chunk in on_gpus} == {20}
    assert len(split_tasks(tasks[:6], ResourcesSpec(workers=4, gpus_per_worker=1))) >= 4
