"""The in-process backend: a whole job on one device, without Ray or a server (`cafe run`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cafe_core.condense import condense
from cafe_core.config import CondenseSpec, DatasetInfo, resolve
from cafe_core.data import sources
from cafe_core.data.class_store import ClassStore
from cafe_core.distributed import Comm
from cafe_core.errors import SpecError
from cafe_core.evaluate import run_task
from cafe_core.job import EvaluationTask, Report, run_job
from cafe_core.jobdir import DataRoots, JobDir, JobFile, write_atomically


class LocalBackend:
    """One worker, which is this process."""

    def __init__(self, spec: CondenseSpec, directory: JobDir, store: Path) -> None:
        self._spec = spec
        self._directory = directory
        self._store = store
        self._device = torch.device("cuda" if spec.resources.gpus_per_worker > 0 else "cpu")
        torch.set_num_threads(spec.resources.cpus_per_worker)

    def condense(self, report: Report) -> None:
        """See :class:`cafe_core.job.Backend`."""
        report("phase", phase="condensing")
        store = ClassStore.open(self._store)
        condense(self._spec, store, Comm.single(), self._device, checkpoints=self._directory.checkpoints, report=report)

    def evaluate(
        self,
        tasks: Sequence[EvaluationTask],
        synthetic: Path,
        report: Report,  # noqa: ARG002
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """See :class:`cafe_core.job.Backend`."""
        for task in tasks:
            yield task, run_task(task, self._spec, self._store, synthetic, self._device)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class LocalJob:
    """A job that was accepted, to be run in this process."""

    job: JobFile
    directory: JobDir

    def run(self, report: Report) -> dict[str, Any]:
        """Run it to its end; returns the result. Raises CafeError for a job that failed."""

        def backend(_info: DatasetInfo, store: Path) -> LocalBackend:
            return LocalBackend(self.job.spec, self.directory, store)

        return run_job(self.job, self.directory, 1, backend, report)


def prepare(spec: dict[str, Any], out: Path, roots: DataRoots) -> LocalJob:
    """Check a job spec; the job's files will lie in `out`.

    A run that was broken off goes on from its last checkpoint when prepared again with the same spec and `out`.
    Raises pydantic.ValidationError, ValueError, SpecError or DatasetError for what is refused; nothing is written then.
    """
    sent = CondenseSpec.model_validate(spec)
    info = ClassStore.open(sources.prepare(sent.dataset, roots)).info
    resolved = resolve(sent, info, cluster_gpus=torch.cuda.device_count())
    if resolved.resources.gpus_per_worker > 0 and not torch.cuda.is_available():
        raise SpecError("this machine has no GPU that torch can use; 0 runs on the CPU", loc="resources.gpus_per_worker")
    one_worker = resolved.resources.model_copy(update={"workers": 1})
    resolved = resolved.model_copy(update={"resources": one_worker})
    directory = JobDir(out)
    job = JobFile(job_id=out.name or "local", spec=resolved, roots=roots)
    write_atomically(directory.job_file, job.model_dump_json(exclude_none=True, indent=2).encode())
    return LocalJob(job, directory)
