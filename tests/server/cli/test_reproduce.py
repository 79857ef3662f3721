"""`cafe reproduce` on the command line, and its jobs on a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cafe_core.jobs import local
from cafe_core.jobs.job import run_job
from cafe_core.jobs.jobdir import EventLog, JobDir, JobFile
from cafe_core.reproduction.experiments import EXPERIMENTS
from cafe_core.reproduction.jobs import Failed, Finished, Job, Workplace
from cafe_core.reproduction.scales import SCALES
from server.cli import reproduce as reproduce_command
from server.cli.main import main
from server.cli.reproduce_runner import ServerRunner
from server.client import Client
from server.settings import Settings
from tests.server.conftest import Api, FakeRay, running
from workers.client import RayJob, RayJobState

NETWORK = {"name": "convnet", "width": 4, "depth": 1}


def tiny(**fields: Any) -> Job:
    """Return a job that takes seconds."""
    spec = {
        "kind": "condense",
        "dataset": {"name": "digits"},
        "ipc": 1,
        "iterations": 2,
        "network": NETWORK,
        "method": {"name": "cafe", "batch_real": 4, "max_outer": 1},
        "evaluation": {"networks": [NETWORK], "repeats": 2, "epochs": 2},
        "seed": 0,
    }
    return Job(spec | fields)


class WorkingRay(FakeRay):
    """A Ray that runs submitted jobs in threads of the test. `broken` makes attempts fail."""

    broken = False

    async def submit(self, job_dir: Path, job_id: str, attempt: int, *, python: str, cpus: float) -> None:
        await super().submit(job_dir, job_id, attempt, python=python, cpus=cpus)
        threading.Thread(target=self._run, args=(JobDir(job_dir), job_id, attempt)).start()

    def _run(self, directory: JobDir, job_id: str, attempt: int) -> None:
        log = EventLog(directory.attempt(attempt).events_file)
        if self.broken:
            log("failed", error={"code": "worker_lost", "message": "a worker was lost", "retryable": True})
            state = RayJobState.FAILED
        else:
            job = JobFile.model_validate_json(directory.job_file.read_bytes())
            log("finished", result=run_job(job, directory, attempt, lambda: local.LocalBackend(job, directory), log))
            state = RayJobState.SUCCEEDED
        log.close()
        self.jobs[job_id, attempt] = RayJob(state, "", 0)


@pytest.fixture
def working() -> WorkingRay:
    return WorkingRay()


@pytest.fixture
def server(settings: Settings, working: WorkingRay) -> Iterator[Api]:
    with running(settings, working) as client:
        yield client


@pytest.fixture
def client(server: Api) -> Iterator[Client]:
    api = Client(str(server.base_url))
    yield api
    api.close()


def silent(_name: str, _how_far: str) -> None:
    pass


def test_runs_jobs_on_a_server(tmp_path: Path, client: Client, working: WorkingRay) -> None:
    jobs = [tiny(), tiny(seed=1), Job(tiny().spec | {"ipc": 0})]
    workplace = Workplace(tmp_path / "out")
    outcomes = {o.name: o for o in ServerRunner(client, workplace, poll_s=0.1).run(jobs, silent)}
    refused = outcomes[jobs[2].name]
    assert isinstance(refused, Failed)
    assert refused.reason.startswith("ipc: ")
    for job in jobs[:2]:
        outcome = outcomes[job.name]
        assert isinstance(outcome, Finished)
        assert [row["n"] for row in outcome.networks()] == [2]
        assert outcome.condensing_s is not None
        assert outcome.synthetic_set().spec["seed"] == job.spec["seed"]
    assert len(working.submissions) == 2

    again = {o.name: o for o in ServerRunner(client, workplace, poll_s=0.1).run(jobs[:2], silent)}
    assert all(isinstance(o, Finished) and o.earlier for o in again.values())
    assert len(working.submissions) == 2


def test_interrupted_run_finds_its_jobs(tmp_path: Path, client: Client) -> None:
    job, workplace = tiny(), Workplace(tmp_path / "out")
    ServerRunner(client, workplace)._submit(job)  # and then the run was killed
    (outcome,) = ServerRunner(client, workplace, poll_s=0.1).run([job], silent)
    assert isinstance(outcome, Finished)
    assert len(client.jobs(None, None, (), 10)) == 1

    elsewhere = Workplace(tmp_path / "elsewhere")
    (outcome,) = ServerRunner(client, elsewhere, poll_s=0.1).run([job], silent)
    assert isinstance(outcome, Finished)
    assert len(client.jobs(None, None, (), 10)) == 2


def test_next_run_resumes_failed_job(tmp_path: Path, client: Client, working: WorkingRay) -> None:
    job, workplace = tiny(), Workplace(tmp_path / "out")
    working.broken = True
    (outcome,) = ServerRunner(client, workplace, poll_s=0.1).run([job], silent)
    assert outcome == Failed(job.name, "a worker was lost")
    working.broken = False
    (outcome,) = ServerRunner(client, workplace, poll_s=0.1).run([job], silent)
    assert isinstance(outcome, Finished)
    assert [attempt for _, attempt in working.submissions] == [1, 2]


def cafe(*arguments: str, **environ: str) -> Result:
    """Run `cafe ARGUMENTS`."""
    return CliRunner(env=environ).invoke(main, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("table7",), "'table7' is not one of 'table1'"),
        (("table2", "--scale", "huge"), "'huge' is not one of 'smoke', 'small', 'paper'"),
        (("table2", "--processes", "0"), "x>=1"),
        (("table2", "--server", "--data-dir", "somewhere"), "--processes and the data directories"),
        (("table2", "--server", "--processes", "2"), "--processes and the data directories"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], message: str) -> None:
    result = cafe("reproduce", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_failed_jobs_exit_with_1_and_are_explained_in_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST is absent and cannot be downloaded. Only one of the figure's three jobs is run: each imports torchvision."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there: each download fails immediately
    figure4 = EXPERIMENTS["figure4"](SCALES["small"])
    monkeypatch.setattr(reproduce_command, "EXPERIMENTS", {"figure4": lambda _: replace(figure4, cells=figure4.cells[:1])})
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir(mode=0o555)
    roots = ("--data-dir", str(tmp_path), "--torchvision-root", str(empty))
    result = cafe("reproduce", "figure4", "--scale", "small", "--out", str(out), *roots)
    assert result.exit_code == 1
    assert result.stdout.count("failed: dataset mnist: ") == 1
    assert "[1/1] " in result.stderr
    assert [cell["row"] for cell in json.loads((out / "figure4.json").read_text())["cells"]] == ["original images"]
    assert not (out / "figure4.png").exists()


def test_unreachable_server_exits_with_3(tmp_path: Path) -> None:
    result = cafe("--url", "http://127.0.0.1:9", "reproduce", "table2", "--server", "--out", str(tmp_path))
    assert result.exit_code == 3
