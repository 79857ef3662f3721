"""Run a whole job in this process on one device, without Ray or a server (`cafe run`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.checkpoint_files import newest_iteration
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.gpu_memory import free_memory
from cafe_core.algorithm.model import Budget
from cafe_core.data import sources
from cafe_core.data.class_store import ClassStore
from cafe_core.data.roots import DataRoots
from cafe_core.errors import GpuOutOfMemoryError, SpecError
from cafe_core.evaluation.run import train_networks
from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask, chunks
from cafe_core.files import write_atomically
from cafe_core.jobs.backend import SMALLER_CHUNKS, SMALLEST_MEMORY_SHARE, TRAINING, Condensation, Report, TrialOutcome
from cafe_core.jobs.extend import load_extension
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.job import run_job
from cafe_core.jobs.jobdir import JobDir, JobFile
from cafe_core.jobs.submission import Facts, accept, datasets_needed, named_set, set_at
from cafe_core.jobs.trial_job import run_trial
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.extend import ExtendSpec
from cafe_core.spec.job import JobSpec, parse_job_spec
from cafe_core.spec.resources import MAX_CPUS, ResourcesSpec
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import Trial
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

log = logging.getLogger(__name__)

ENSEMBLE = 20
"""Maximum number of networks that a GPU trains at once."""


class LocalBackend:
    """Run all work in this process. Implements :class:`cafe_core.jobs.backend.Backend`."""

    def __init__(self, job: JobFile, directory: JobDir) -> None:
        self._job = job
        self._directory = directory
        self._restarts = 0
        self._memory_share = 1.0
        """Share of the usual memory budget of a condensation."""

    def condense(self, condensation: Condensation, until: int, report: Report) -> None:
        """See :class:`cafe_core.jobs.backend.Backend`."""
        report("phase", phase="condensing")
        spec = condensation.spec
        device = _use_device(spec.resources)
        store = ClassStore.open(condensation.store)
        while True:
            try:
                condense(
                    spec,
                    store,
                    Comm.single(),
                    device,
                    checkpoints=Checkpoints(condensation.checkpoints, condensation.fence),
                    report=report,
                    budget=Budget.of(device, spec.resources.gpus_per_worker * self._memory_share),
                    until=until,
                    cache=condensation.artifact_cache,
                    extension=load_extension(condensation, rank=0),
                )
            except GpuOutOfMemoryError as error:
                if self._restarts >= self._job.max_restarts or self._memory_share <= SMALLEST_MEMORY_SHARE:
                    raise
                log.warning("%s", error.message)
                self._restarts += 1
                self._memory_share /= 2
                report("restart", reason=SMALLER_CHUNKS, restarts=self._restarts, workers=1)
            else:
                return
            free_memory()

    def evaluate(
        self,
        tasks: Sequence[EvaluationTask],
        setup: EvaluationSetup,
        resources: ResourcesSpec,
        report: Report,
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """See :class:`cafe_core.jobs.backend.Backend`."""
        device = _use_device(resources)
        for chunk in chunks(tasks, ENSEMBLE):
            yield from train_networks(chunk, setup, device, step_done=lambda step: report(TRAINING, step=step))

    def run_trials(self, trials: Sequence[Trial], finished: Mapping[int, TrialOutcome], report: Report) -> Iterator[TrialOutcome]:
        """See :class:`cafe_core.jobs.backend.Backend`. Trials run one after the other."""
        fence = AttemptFence.of(self._directory, self._job.attempt)
        for trial in trials:
            if trial.number not in finished:
                report("trial_started", number=trial.number, overrides=trial.overrides)
                yield run_trial(trial, self._job, self._directory.trial(trial.number), fence, LocalBackend, _ignore_event)

    def close(self) -> None:
        """Do nothing, because no resources are held."""


def _use_device(resources: ResourcesSpec) -> torch.device:
    """Set the number of CPU threads, and return the device to compute on."""
    torch.set_num_threads(resources.cpus_per_worker)
    return torch.device("cuda" if resources.gpus_per_worker > 0 else "cpu")


def _ignore_event(_type: str, **_data: Any) -> None:
    """Do nothing: the trial's own log has the event."""


@dataclass(frozen=True)
class LocalJob:
    """A job that was accepted and can run in this process."""

    job: JobFile
    directory: JobDir

    def run(self, report: Report) -> dict[str, Any]:
        """Run the job, put the files of its result directly into its directory, and return the result.

        Raises CafeError if it fails.
        """
        result = run_job(self.job, self.directory, self.job.attempt, lambda: LocalBackend(self.job, self.directory), report)
        attempt = self.directory.attempt(self.job.attempt)
        for file in attempt.artifacts.iterdir():
            if file != attempt.manifest_file:
                write_atomically(self.directory.path / file.name, file.read_bytes())
        return result


def prepare(spec: dict[str, Any], out: Path, roots: DataRoots) -> LocalJob:
    """Check a job spec, and create the job in the directory `out`.

    An interrupted run continues from its last checkpoint when prepared again with the same spec and `out`.

    Raises pydantic.ValidationError, ValueError or SpecError, and writes nothing, if the spec is invalid or `out` holds the files
    of another job.
    """
    parsed = parse_job_spec(spec)
    directory = JobDir(out)
    accepted = accept(
        parsed, _gather(parsed, roots, directory)
    )  # checks everything that a server checks, including the number of workers
    one_worker = _one_worker(accepted.spec)
    resources = [c.resources for c in accepted.condensations]
    if isinstance(accepted.spec, EvaluateSpec):
        resources.append(accepted.spec.resources)
    if any(r.gpus_per_worker > 0 for r in resources) and not torch.cuda.is_available():
        loc = "base.resources.gpus_per_worker" if isinstance(accepted.spec, SweepSpec) else "resources.gpus_per_worker"
        raise SpecError("torch finds no usable GPU on this machine; set it to 0 to run on the CPU", loc=loc)
    job = JobFile(job_id=out.name or "local", spec=one_worker, roots=roots)
    _check_same_job(directory, job)
    if accepted.input_set is not None:
        accepted.input_set.save(directory.input_file)
    write_atomically(directory.job_file, job.model_dump_json(exclude_none=True, indent=2).encode())
    return LocalJob(job, directory)


def _gather(spec: JobSpec, roots: DataRoots, directory: JobDir) -> Facts:
    """Build the class stores that `spec` needs; load the set to evaluate or extend. Raises SpecError for a job id."""
    input_set = None
    if (named := named_set(spec)) is not None:
        if named.job_id is not None:
            message = f"{named.job_id} is a job of a server, which `cafe run` does not use; give a path instead"
            raise SpecError(message, loc=f"{named.field}.job_id")
        assert named.path is not None
        if isinstance(spec, ExtendSpec) and directory.input_file.exists():
            input_set = _base_of_earlier_run(named.path, roots, directory)
        else:
            input_set = set_at(named.path, roots, field=named.field)
    datasets = DatasetFacts.gather(datasets_needed(spec, input_set), lambda dataset: sources.open_store(dataset, roots).info)
    return Facts(datasets, input_set, gpus=torch.cuda.device_count())


def _base_of_earlier_run(path: str, roots: DataRoots, directory: JobDir) -> SyntheticSet:
    """Return the set that an earlier run into the directory extends. Raises SpecError if `path` holds another set now.

    The checkpoints hold its images, so it must not change; but its file may be gone.
    """
    kept = SyntheticSet.load(directory.input_file)
    try:
        now = set_at(path, roots, field="base")
    except SpecError:
        return kept
    if now.to_safetensors_bytes() != kept.to_safetensors_bytes():
        differs = f"{directory.path} holds the files of a job that extends another set"
        raise SpecError(f"{differs}; choose another directory or delete it", loc="base.path")
    return kept


def _check_same_job(directory: JobDir, job: JobFile) -> None:
    """Raise SpecError if the directory holds the files of another job, whose results would be mistaken for this job's."""
    if not directory.job_file.exists():
        return
    try:
        existing = JobFile.model_validate_json(directory.job_file.read_bytes())
    except ValidationError as error:
        raise SpecError(
            f"{directory.path} holds a job.json that cannot be read; choose another directory or delete it"
        ) from error
    one, other = _identifying_fields(existing.spec), _identifying_fields(job.spec)
    changed = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    if changed:
        differs = f"{directory.path} holds the files of a job that differs in {', '.join(changed)}"
        raise SpecError(f"{differs}; choose another directory or delete it")
    reached = newest_iteration(directory.checkpoints)
    if isinstance(job.spec, CondenseSpec) and job.spec.iterations < reached:
        raise SpecError(
            f"{directory.path} already holds the images of iteration {reached}, later than {job.spec.iterations}; choose another "
            "directory or delete it",
            loc="iterations",
        )


def _identifying_fields(spec: JobSpec) -> dict[str, Any]:
    """Return the fields that must not change between runs into the same directory.

    A condensation without validations may continue to more iterations, not to fewer than it has reached. It may be evaluated
    differently: accuracies are stored under the hash of the evaluated set.
    """
    may_change = {"name", "labels", "resources"}
    if isinstance(spec, CondenseSpec) and spec.validation is None:
        may_change |= {"iterations", "checkpoint_every", "compile", "evaluation"}
    return spec.model_dump(mode="json", exclude=may_change)


def _one_worker(spec: JobSpec) -> JobSpec:
    """Return the same job with one worker, which uses all cores unless the spec says how many.

    Raises SpecError for a scheduler that needs several trials at once.
    """
    if isinstance(spec, SweepSpec):
        if spec.scheduler != "fifo":
            raise SpecError(
                "asha compares trials that run at the same time; submit the sweep to a server, or use fifo", loc="scheduler"
            )
        return spec.model_copy(update={"base": _one_worker(spec.base)})
    resources = spec.resources.model_copy(update={"workers": 1})
    if "cpus_per_worker" not in resources.model_fields_set:
        resources = resources.model_copy(
            update={"cpus_per_worker": min(torch.get_num_threads(), MAX_CPUS)}
        )  # OMP_NUM_THREADS limits it
    return spec.model_copy(update={"resources": resources})
