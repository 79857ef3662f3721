"""Run a job on a real server and a real Ray, and observe it while a fault happens."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import psutil

from cafe_core.jobs.jobdir import utc_now
from server.states import ENDED
from tests.reliability.served import Server

SPEC: dict[str, Any] = {
    "kind": "condense",
    "dataset": {"name": "digits"},
    "ipc": 1,
    "iterations": 40,
    "checkpoint_every": 5,
    "network": {"width": 16, "depth": 2},
    "method": {"batch_real": 32, "max_outer": 4, "max_inner": 4},
    "resources": {"workers": 2},
    "evaluation": {"networks": [{"width": 16, "depth": 2}], "repeats": 4, "epochs": 60},
}
"""A job that condenses for a few seconds on two workers, and evaluates for a few seconds."""
WAIT_S = 240.0


class Ray(Protocol):
    """A running Ray."""

    @property
    def address(self) -> str: ...
    @property
    def token(self) -> str: ...


@dataclass
class Scene:
    """A job, and the server and Ray that run it."""

    ray: Ray
    server: Server
    spec: dict[str, Any] = field(default_factory=lambda: SPEC)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The Idempotency-Key of the submission."""
    job_id: str = ""
    fault_at: str = ""
    """When the fault happened, in the format of the events' times."""

    def submit(self) -> None:
        """Submit the job. A repeated submission, like that of a client that got no response, returns the same job."""
        response = self.server.api.post("/v1/jobs", json=self.spec, headers={"Idempotency-Key": self.key})
        assert response.status_code in (200, 201), response.text
        self.job_id = response.json()["id"]

    def record_fault_time(self) -> None:
        """Record the current time as that of the fault."""
        self.fault_at = utc_now()

    def job(self) -> dict[str, Any]:
        """Return the job. Wait until the server responds."""
        found: list[dict[str, Any]] = []

        def is_available() -> bool:
            with contextlib.suppress(httpx.TransportError):
                response = self.server.api.get(f"/v1/jobs/{self.job_id}")
                if response.is_success:
                    found.append(response.json())
            return bool(found)

        self.wait_until(is_available)
        return found[0]

    def events(self) -> list[dict[str, Any]]:
        """Return all events of the job."""
        events: list[dict[str, Any]] = []
        while True:
            parameters = {"after": events[-1]["id"] if events else 0, "limit": 1000}
            found = self.server.api.get(f"/v1/jobs/{self.job_id}/events", params=parameters).raise_for_status().json()["data"]
            if not found:
                return events
            events += found

    def wait_until(self, condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
        """Wait until a condition holds. Raises AssertionError with the output of the server after `within_s`."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"{self.job_id} after {within_s:g} s:\n{self.server.output()}"
            time.sleep(0.05)

    def start_condensing(self, iterations: int = 12) -> None:
        """Submit the job and wait until so many iterations are done."""
        self.submit()
        self.await_iterations(iterations)
        job = self.job()
        assert (job["status"], job["phase"]) == ("running", "condensing"), job

    def await_iterations(self, count: int) -> None:
        """Wait until so many iterations are done."""
        self.wait_until(lambda: self.job()["progress"]["done"] >= count)

    def start_evaluating(self) -> None:
        """Submit the job and wait until its workers evaluate."""
        self.submit()

        def is_evaluating() -> bool:
            types = [e["data"].get("phase", e["type"]) for e in self.events()]
            return "evaluating" in types and "workers" in types[types.index("evaluating") :]

        self.wait_until(is_evaluating)

    def await_end(self, within_s: float = WAIT_S) -> dict[str, Any]:
        """Wait until the job has ended, and return it."""
        self.wait_until(lambda: self.job()["status"] in ENDED, within_s)
        return self.job()

    def workers(self) -> list[dict[str, Any]]:
        """Return rank, pid and node of the workers that started last."""
        workers: list[dict[str, Any]] = [e for e in self.events() if e["type"] == "workers"][-1]["data"]["workers"]
        return workers

    def pid_of(self, rank: int) -> int:
        """Return the process ID of a worker."""
        return next(int(worker["pid"]) for worker in self.workers() if worker["rank"] == rank)

    def block_in_collective(self, rank: int) -> int:
        """Freeze the other worker, and wait until this one waits for it in a collective. Return the other's process ID."""
        other = self.pid_of(1 - rank)
        os.kill(other, signal.SIGSTOP)
        waiting = psutil.Process(self.pid_of(rank))

        def idle() -> bool:
            before = waiting.cpu_times()
            time.sleep(0.3)
            after = waiting.cpu_times()
            return after.user + after.system - before.user - before.system < 0.05

        self.wait_until(idle, 20)
        return other

    def processes(self) -> list[psutil.Process]:
        """Return the processes with the job's ID in the command line or title: driver, supervisor and workers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self.job_id in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def driver(self) -> psutil.Process:
        """Return the process of the newest driver, not its child that writes the log and has the same command line."""
        found = {p.pid: p for p in self.processes() if "-m workers run" in " ".join(p.cmdline()) and "python" in p.name()}
        return max((p for p in found.values() if p.ppid() not in found), key=lambda process: process.create_time())

    def supervisor(self) -> psutil.Process:
        """Return the process of Ray's job supervisor, which started the newest driver."""
        [found] = [p for p in self.driver().parents() if p.cmdline()[0].startswith("ray::")]
        return found
