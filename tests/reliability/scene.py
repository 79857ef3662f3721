"""One job on a real server and a real Ray, to which something happens."""

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
"""A few seconds of condensing on two workers, and a few of evaluating."""
WAIT_S = 240.0


class Ray(Protocol):
    """Where it runs."""

    @property
    def address(self) -> str: ...
    @property
    def token(self) -> str: ...


@dataclass
class Scene:
    """A job and what it runs on."""

    ray: Ray
    server: Server
    spec: dict[str, Any] = field(default_factory=lambda: SPEC)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Its Idempotency-Key."""
    job_id: str = ""
    fault_at: str = ""
    """When it happened, as events tell the time."""

    def submit(self) -> None:
        """POST the job; again, for a client that heard no answer, gives the same job."""
        response = self.server.api.post("/v1/jobs", json=self.spec, headers={"Idempotency-Key": self.key})
        assert response.status_code in (200, 201), response.text
        self.job_id = response.json()["id"]

    def happens_now(self) -> None:
        """Note the time of the fault."""
        self.fault_at = utc_now()

    def job(self) -> dict[str, Any]:
        """The job, once the server answers."""
        found: list[dict[str, Any]] = []

        def answered() -> bool:
            with contextlib.suppress(httpx.TransportError):
                response = self.server.api.get(f"/v1/jobs/{self.job_id}")
                if response.is_success:
                    found.append(response.json())
            return bool(found)

        self.wait_until(answered)
        return found[0]

    def events(self) -> list[dict[str, Any]]:
        """All events of the job."""
        events: list[dict[str, Any]] = []
        while True:
            parameters = {"after": events[-1]["id"] if events else 0, "limit": 1000}
            found = self.server.api.get(f"/v1/jobs/{self.job_id}/events", params=parameters).raise_for_status().json()["data"]
            if not found:
                return events
            events += found

    def wait_until(self, condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
        """Raises AssertionError with what is known of the job when it takes too long."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"{self.job_id} after {within_s:g} s:\n{self.server.printed()}"
            time.sleep(0.05)

    def amid_condensing(self, iterations: int = 12) -> None:
        """Submit it, and wait until so many iterations are done."""
        self.submit()
        self.await_iterations(iterations)
        job = self.job()
        assert (job["status"], job["phase"]) == ("running", "condensing"), job

    def await_iterations(self, count: int) -> None:
        """Wait until so many iterations are done."""
        self.wait_until(lambda: self.job()["progress"]["done"] >= count)

    def amid_evaluating(self) -> None:
        """Submit it, and wait until workers evaluate."""
        self.submit()

        def evaluates() -> bool:
            types = [e["data"].get("phase", e["type"]) for e in self.events()]
            return "evaluating" in types and "workers" in types[types.index("evaluating") :]

        self.wait_until(evaluates)

    def ended(self, within_s: float = WAIT_S) -> dict[str, Any]:
        """The job when it has ended."""
        self.wait_until(lambda: self.job()["status"] in ENDED, within_s)
        return self.job()

    def workers(self) -> list[dict[str, Any]]:
        """Rank, pid, node of the workers that started last."""
        workers: list[dict[str, Any]] = [e for e in self.events() if e["type"] == "workers"][-1]["data"]["workers"]
        return workers

    def pid_of(self, rank: int) -> int:
        """The process of a worker."""
        return next(int(worker["pid"]) for worker in self.workers() if worker["rank"] == rank)

    def wait_in_a_collective(self, rank: int) -> int:
        """Bring the worker into a collective that cannot end, by freezing the other one. Returns the other's pid."""
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
        """Those that have the job's id on their command line: driver and supervisor, workers (by their titles)."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self.job_id in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def driver(self) -> psutil.Process:
        """The newest driver's process; not what it has started (what writes its log has the same command line)."""
        found = {p.pid: p for p in self.processes() if "-m workers run" in " ".join(p.cmdline()) and "python" in p.name()}
        return max((p for p in found.values() if p.ppid() not in found), key=lambda process: process.create_time())

    def supervisor(self) -> psutil.Process:
        """Ray's actor that has started the newest driver."""
        [found] = [p for p in self.driver().parents() if p.cmdline()[0].startswith("ray::")]
        return found
