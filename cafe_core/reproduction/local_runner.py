"""Run jobs on this machine in separate processes, one per GPU, or one per core without GPUs."""

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
from cafe_core.reproduction.jobs import Failed, Job, JobReport, Outcome, Workplace

_STDERR_TAIL = 400
"""Characters of a failed process's stderr to report."""


class LocalRunner:
    """Run jobs in processes of this machine. Implements :class:`cafe_core.reproduction.jobs.Runner`.

    An interrupted job resumes from its last checkpoint if it is run again with the same `workplace`.
    """

    def __init__(self, workplace: Workplace, roots: DataRoots, processes: int | None = None) -> None:
        """processes: number of concurrent jobs. Default: one per GPU, or one per core without GPUs."""
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
        """See :class:`cafe_core.reproduction.jobs.Runner`. Closing the iterator early terminates the running processes."""
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
            try:
                for line in process.stdout:
                    event = json.loads(line)
                    type_, data = event["type"], event["data"]
                    if progress := _progress_text(type_, data):
                        report(job.name, progress)
            except BaseException:
                process.terminate()
                raise
            finally:
                status = process.wait()  # Popen's context manager does not wait after a KeyboardInterrupt
                self._running.discard(process)
        if type_ == "finished":
            return self._workplace.finish(job.name, data["result"], self._events(job.name))
        if type_ == "failed":
            return Failed(job.name, data["reason"])
        stderr = errors.read_text(errors="replace").strip()[-_STDERR_TAIL:]
        return Failed(job.name, f"its process ended with {_exit(status)}: {stderr or 'no output on stderr'}")

    def _events(self, name: str) -> Iterator[dict[str, Any]]:
        events = self._workplace.directory(name).attempt(1).events_file
        with events.open(encoding="utf-8") as lines:
            for event in map(json.loads, lines):
                yield {"type": event["type"], "data": event}


def _start(order: Path, slot: dict[str, str], errors: IO[str]) -> subprocess.Popen[str]:
    packages = str(Path(cafe_core.__file__).parent.parent)  # works without installation
    path = os.pathsep.join([packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "cafe_core.reproduction.job_process", str(order)],
        stdin=subprocess.PIPE,  # never written to: its end tells the process that the runner has exited
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, **slot, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def visible_gpus() -> list[str]:
    """Return the GPUs for jobs as CUDA_VISIBLE_DEVICES names. Reads the driver's files, because importing torch takes seconds."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def _progress_text(type: str, data: dict[str, Any]) -> str | None:
    """Return a job's progress from one of its events."""
    match type:
        case "iteration":
            return f"iteration {data['iteration']}/{data['total']}"
        case "epoch":
            return f"epoch {data['epoch']}/{data['total']}"
        case "step":
            return f"{data['of']} {data['done']}/{data['total']}"
        case "evaluated":
            return f"network {data['done']}/{data['total']}, {data['accuracy']:.1f} %"
        case _:
            return None


def _exit(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
