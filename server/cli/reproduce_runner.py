"""Run the jobs of a reproduction on a server and its cluster."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from cafe_core.files import write_atomically
from cafe_core.reproduction.jobs import Failed, Job, JobReport, Outcome, Workplace
from server.cli.watching import FAILED_STATUSES
from server.client import Client, RefusedError
from server.client.client import ENDED

_POLL_S = 2.0
_POLLED_JOBS = 12
"""Number of jobs to poll: the oldest ones, which the server runs first. That is 360 requests per minute, below the default
rate limit of 600."""


class ServerRunner:
    """Submit jobs to a server and download their results. Implements :class:`cafe_core.reproduction.jobs.Runner`.

    Each job has an Idempotency-Key that depends on `workplace`, so a repeated run finds the jobs of an interrupted one.
    """

    def __init__(self, api: Client, workplace: Workplace, poll_s: float = _POLL_S) -> None:
        self._api = api
        self._workplace = workplace
        self._poll_s = poll_s

    def run(self, jobs: Sequence[Job], report: JobReport) -> Iterator[Outcome]:
        """Run the jobs, see :class:`cafe_core.reproduction.jobs.Runner`. Raises UnreachableError.

        If the caller stops early, the jobs continue on the server.
        """
        submitted: dict[str, str] = {}  # name -> id on the server
        for job in jobs:
            if finished := self._workplace.finished(job.name):
                yield finished
                continue
            try:
                submitted[job.name] = self._submit(job)
            except RefusedError as error:
                yield Failed(job.name, _reason(error))
        while submitted:
            for name, job_id in list(submitted.items())[:_POLLED_JOBS]:
                answer = self._api.with_retries(self._api.job, job_id)
                if answer["status"] in ENDED:
                    del submitted[name]
                    yield self._outcome(name, answer)
                elif answer["status"] == "running":
                    report(name, f"{answer['phase']} {answer['progress']['done']}/{answer['progress']['total']}")
            if submitted:
                time.sleep(self._poll_s)

    def _submit(self, job: Job) -> str:
        """Submit a job, or resume it if an earlier run submitted it and it failed; return its id."""
        key = f"reproduce-{self._run_id()}-{job.name}"
        answer = self._api.submit(job.spec | {"name": job.name}, key)
        if answer["status"] in FAILED_STATUSES:
            answer = self._api.resume(answer["id"])
        job_id: str = answer["id"]
        return job_id

    def _run_id(self) -> str:
        """Return the id of the workplace, created at the first submission."""
        path = self._workplace.out / "run-id"
        if not path.exists():
            write_atomically(path, uuid.uuid4().hex.encode())
        return path.read_text()

    def _outcome(self, name: str, job: dict[str, Any]) -> Outcome:
        if job["status"] in FAILED_STATUSES:
            return Failed(name, job["error"]["message"] if job["error"] else job["status"])
        for _ in self._api.download(job["id"], self._workplace.artifacts(name)):
            pass
        return self._workplace.finish(name, job["result"], self._api.events(job["id"]))


def _reason(error: RefusedError) -> str:
    return "; ".join(f"{e['loc']}: {e['msg']}" for e in error.errors or []) or error.detail
