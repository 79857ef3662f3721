"""Measure the time to a job's first step in the service, and the service's overhead over the same job in one process."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cafe_core.data.roots import DataRoots
from server.cli.demo import running_server
from server.client import Client
from tests.benchmarks.figures import Figure

SPEC = {
    "kind": "condense",
    "dataset": {"name": "digits"},
    "ipc": 10,
    "iterations": 60,
    "method": {"batch_real": 128, "max_outer": 1},
    "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1},
}


def _by_service(api: Client) -> tuple[float, float]:
    """Return (seconds from POST to the end of the first outer step, seconds from there to the last)."""
    posted = time.time()
    job = api.submit(SPEC)
    ends = [datetime.fromisoformat(event["time"]).timestamp() for event in api.follow(job["id"]) if event["type"] == "iteration"]
    return ends[0] - posted, ends[-1] - ends[0]


def _in_process(directory: Path) -> float:
    """Run the same job by `cafe run`; return the seconds from the first outer step to the last."""
    from cafe_core.jobs import local

    roots = DataRoots(datasets=directory, uploads=directory, downloads=directory, cache=directory / "cache")
    ends: list[float] = []

    def report(type: str, **_: Any) -> None:
        if type == "iteration":
            ends.append(time.time())

    local.prepare(SPEC, directory / "out", roots).run(report)
    return ends[-1] - ends[0]


def measure() -> list[Figure]:
    """Run a job that builds the class store, then alternate three rounds of each kind and take the best round of each."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        first_steps, service, process = [], [], []
        with running_server(directory / "server") as url:
            api = Client(url)
            _by_service(api)
            for turn in range(3):
                first_step, taken = _by_service(api)
                first_steps.append(first_step)
                service.append(taken)
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    process.append(pool.submit(_in_process, directory / f"run {turn}").result())
            api.close()
    return [
        Figure("warm service: POST to the end of the first outer step", min(first_steps), "s", "≤ 8"),
        Figure("59 iterations by the service", min(service), "s"),
        Figure("59 iterations by `cafe run`", min(process), "s"),
        Figure("service overhead beyond start-up", 100 * (min(service) / min(process) - 1), "%", "≤ 5"),
    ]
