"""Runs jobs on this machine: each in a process of its own, one per GPU, or where there is none one per core."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any

import cafe_core
from cafe_core.data.roots import DataRoots
from cafe_core.files import write_atomically
from cafe_core.reproduction.jobs import Failed, Job, JobReport, Outcome, Workplace, condensing_seconds

_LAST_WORDS = 400
"""Characters shown of what a process that died had said."""


class LocalRunner:
    """Runs jobs in this machine's processes. Implements :class:`cafe_core.reproduction.jobs.Runner`.

    A job that was broken off goes on from its last checkpoint when it is run again with the same `workplace`.
    """

    def __init__(self, workplace: Workplace, roots: DataRoots, processes: int | None = None) -> None:
        """processes: at the same time. Default: one per GPU, else one per core."""
        self._workplace = workplace
        self._roots = roots
        gpus = visible_gpus()
        count = processes or len(gpus) or len(os.sched_getaffinity(0))
        self._slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for slot in range(count):
            self._slots.put({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})
        self._count = count
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = False

    def run(self, jobs: Sequence[Job], report: JobReport) -> Iterator[Outcome]:
        """See :class:`cafe_core.reproduction.jobs.Runner`. Left early, it ends the processes that run."""
        remaining = []
        for job in jobs:
            if finished := self._workplace.finished(job.name):
                yield finished
            else:
                remaining.append(job)
        pool = ThreadPoolExecutor(self._count)
        try:
            futures: list[Future[Outcome]] = [pool.submit(self._run_one, job, report) for job in remaining]
            for future in as_completed(futures):
                yield future.result()
        finally:
            self._stopping = True
            for process in list(self._running):
                process.terminate()
            pool.shutdown(cancel_futures=True)

    def _run_one(self, job: Job, report: JobReport) -> Outcome:
        slot = self._slots.get()
        try:
            return self._run_in_process(job, slot, report)
        finally:
            self._slots.put(slot)

    def _run_in_process(self, job: Job, slot: dict[str, str], report: JobReport) -> Outcome:
        directory = self._workplace.directory(job.name).path
        order, errors = directory / "order.json", directory / "stderr.txt"
        content = {"spec": job.spec, "out": str(directory), "roots": self._roots.model_dump(mode="json")}
        write_atomically(order, json.dumps(content, indent=2).encode())
        type_, data = "", dict[str, Any]()
        with errors.open("w") as file, _start(order, slot, file) as process:
            self._running.add(process)
            if self._stopping:
                process.terminate()
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                type_, data = event["type"], event["data"]
                if said := _in_words(type_, data):
                    report(job.name, said)
            status = process.wait()
            self._running.discard(process)
        if type_ == "finished":
            return self._workplace.finish(job.name, data["result"], self._condensing_seconds(job.name))
        if type_ == "failed":
            return Failed(job.name, data["reason"])
        last_words = errors.read_text(errors="replace").strip()[-_LAST_WORDS:]
        return Failed(job.name, f"its process ended with {_exit(status)}: {last_words or 'it said nothing'}")

    def _condensing_seconds(self, name: str) -> float | None:
        events = self._workplace.directory(name).attempt(1).events_file
        with events.open(encoding="utf-8") as lines:
            return condensing_seconds({"type": event["type"], "data": event} for event in map(json.loads, lines))


def _start(order: Path, slot: dict[str, str], errors: IO[str]) -> subprocess.Popen[str]:
    packages = str(Path(cafe_core.__file__).parent.parent)  # also where they were not installed
    path = os.pathsep.join([packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "cafe_core.reproduction.job_process", str(order)],
        stdin=subprocess.PIPE,  # never written to: its end tells the process that this one is gone
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, **slot, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def visible_gpus() -> list[str]:
    """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them. Asks the driver's files: torch takes seconds to import."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def _in_words(type: str, data: dict[str, Any]) -> str | None:
    """How far a job is, from one of its events."""
    match type:
        case "iteration":
            return f"iteration {data['iteration']}/{data['total']}"
        case "epoch":
            return f"epoch {data['epoch']}/{data['total']}"
        case "evaluated":
            return f"network {data['done']}/{data['total']}, {data['accuracy']:.1f} %"
        case _:
            return None


def _exit(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
