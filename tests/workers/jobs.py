"""Create small jobs, and run the driver in a separate process, as Ray does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cafe_core.data import sources
from cafe_core.data.roots import DataRoots
from cafe_core.files import write_atomically
from cafe_core.jobs.jobdir import JobDir, JobFile
from cafe_core.jobs.submission import Facts, accept, datasets_needed
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.job import parse_job_spec
from tests.workers.conftest import ROOT


def spec(**changes: Any) -> dict[str, Any]:
    """A condensation of the digits that takes a few seconds."""
    return {
        "dataset": {"name": "digits"},
        "ipc": 1,
        "iterations": 12,
        "checkpoint_every": 3,
        "network": {"width": 8, "depth": 2},
        "method": {"batch_real": 32, "max_outer": 4, "max_inner": 4},
        "resources": {"workers": 2, "gpus_per_worker": 0},
        "evaluation": {"networks": [{"width": 8, "depth": 2}], "repeats": 6, "epochs": 10},
    } | changes


def create(path: Path, cache: Path, *, timeout_s: float = 60, max_restarts: int = 3, **changes: Any) -> JobDir:
    """Create the directory of such a job, as the server does."""
    return create_job(path, cache, spec(**changes), timeout_s=timeout_s, max_restarts=max_restarts)


def create_job(path: Path, cache: Path, sent: dict[str, Any], *, timeout_s: float = 60, max_restarts: int = 3) -> JobDir:
    """Create the directory of a job of any kind."""
    roots = DataRoots(datasets=path / "datasets", uploads=path / "uploads", downloads=path / "downloads", cache=cache)
    parsed = parse_job_spec(sent)
    datasets = DatasetFacts.gather(datasets_needed(parsed, None), lambda dataset: sources.open_store(dataset, roots).info)
    accepted = accept(parsed, Facts(datasets, concurrent=2))
    job = JobFile(job_id=path.name, spec=accepted.spec, roots=roots, collective_timeout_s=timeout_s, max_restarts=max_restarts)
    write_atomically(path / "job.json", job.model_dump_json(exclude_none=True).encode())
    return JobDir(path)


@dataclass
class Driver:
    """A running driver."""

    process: subprocess.Popen[bytes]
    directory: JobDir
    attempt: int
    log: Path

    def events(self, type: str | None = None) -> list[dict[str, Any]]:
        """Return its events so far."""
        path = self.directory.attempt(self.attempt).events_file
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in events if type is None or event["type"] == type]

    def phases(self) -> list[str]:
        return [event["phase"] for event in self.events("phase")]

    def pids(self) -> list[int]:
        """Return the pids of the newest gang."""
        return [worker["pid"] for worker in self.events("workers")[-1]["workers"]]

    def wait_for(self, condition: Callable[[], Any], within_s: float = 180) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.02)

    def wait_for_iterations(self, count: int) -> None:
        self.wait_for(lambda: len(self.events("iteration")) >= count)

    def ends_with(self, exit_code: int, within_s: float = 240) -> dict[str, Any]:
        """Wait for the exit code; return the last event."""
        assert self.process.wait(within_s) == exit_code, self.log.read_text()[-4000:]
        return self.events()[-1]

    def succeeds(self) -> bytes:
        """Wait until the job succeeds; return the bytes of its synthetic file."""
        assert self.ends_with(0)["type"] == "finished"
        assert self.directory.attempt(self.attempt).manifest_file.exists()
        return self.directory.attempt(self.attempt).synthetic_file.read_bytes()


@contextmanager
def driving(directory: JobDir, cluster: str, attempt: int = 1) -> Iterator[Driver]:
    """Run `python -m workers run` on `cluster`, and kill it at the end. Attempts after the first take over the job."""
    if attempt > 1:
        hand_over(directory, attempt)
    log = directory.path / f"driver-{attempt}.log"
    command = [sys.executable, "-m", "workers", "run", "--job-dir", str(directory.path), "--attempt", str(attempt)]
    environment = os.environ | {"RAY_ADDRESS": cluster}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield Driver(process, directory, attempt, log)
        finally:
            process.kill()
            process.wait()


def hand_over(directory: JobDir, attempt: int) -> None:
    """Let only this attempt write from now on, as the server does."""
    job = JobFile.model_validate_json(directory.job_file.read_bytes()).model_copy(update={"attempt": attempt})
    write_atomically(directory.job_file, job.model_dump_json(exclude_none=True).encode())


def forget_stores(directory: JobDir) -> None:
    """Give a job its own empty cache."""
    job = JobFile.model_validate_json(directory.job_file.read_bytes())
    job = job.model_copy(update={"roots": job.roots.model_copy(update={"cache": directory.path / "cache"})})
    write_atomically(directory.job_file, job.model_dump_json(exclude_none=True).encode())
