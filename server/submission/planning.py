"""Plan a submitted job: gather facts, accept the spec, compare it with the cluster, estimate its memory.

All reasons to refuse a job are checked here, before anything is stored or a worker is started. This module imports NumPy, so
routes import it lazily, in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cafe_core.data import catalog
from cafe_core.data.readers import absent
from cafe_core.errors import DatasetError, SpecError, SyntheticSetError
from cafe_core.evaluation.estimate import estimate_evaluation
from cafe_core.jobs.submission import Accepted, Facts, NamedSet, accept, datasets_needed, named_set, resources_needed, set_at
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.estimate import Estimate, estimate
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.extend import ExtendSpec
from cafe_core.spec.job import JobSpec, parse_job_spec
from cafe_core.spec.overrides import setting
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.sweep import SweepSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from server.auth.access import Principal
from server.auth.visibility import find_dataset, find_job
from server.errors import NotFoundError, RefusedSpecError, spec_refusal
from server.files.synthetic_sets import synthetic_set
from server.ray.capacity import jobs_held, memory_per_worker, too_large
from server.settings import Settings
from server.states import Status
from server.store import jobs
from server.store.database import Database
from workers.client import RayCluster

TRIAL_DRIVER_BYTES = 210 << 20
"""Memory of the driver that each trial of a sweep has (measured: 207 MiB resident)."""


@dataclass(frozen=True)
class Plan:
    """A job that can run, with its estimate."""

    accepted: Accepted
    estimate: Estimate
    """The estimate of the phase that needs the most memory; for a sweep, of the trial that needs the most."""
    memory_available: int
    """Memory available to each worker, in bytes."""


def plan(spec: JobSpec, settings: Settings, database: Database, cluster: RayCluster, principal: Principal) -> Plan:
    """Plan the job that `spec` asks for, from the jobs and datasets that `principal` may see.

    Raises RefusedSpecError, which names the invalid field.
    """
    try:
        facts = _gather(spec, settings, database, cluster, principal)
        accepted = accept(spec, facts)
    except (SpecError, ValueError) as error:
        raise spec_refusal(error) from error
    if isinstance(accepted.spec, SweepSpec):
        return _sweep_plan(accepted, accepted.spec, facts.datasets, cluster, settings.driver_cpus)
    resources = accepted.spec.resources
    if reason := too_large(resources, cluster, settings.driver_cpus):
        raise RefusedSpecError.of("resources", reason)
    needed, available = max(_estimates(accepted), key=_memory), memory_per_worker(resources, cluster)
    if needed.memory_bytes > available:
        raise RefusedSpecError.of("resources", _too_much(needed, available))
    return Plan(accepted, needed, available)


def _gather(spec: JobSpec, settings: Settings, database: Database, cluster: RayCluster, principal: Principal) -> Facts:
    """Look up everything that accepting `spec` depends on. Raises SpecError for a synthetic set that cannot be read."""
    input_set = None
    if (named := named_set(spec)) is not None:
        if named.job_id is not None:
            must_succeed = isinstance(spec, ExtendSpec)
            input_set = _set_of_job(named, named.job_id, settings, database, principal, must_succeed=must_succeed)
        elif named.path is not None:
            input_set = set_at(named.path, settings.roots, field=named.field)

    def describe(dataset: DatasetSpec) -> DatasetInfo:
        if dataset.id is not None:
            _check_visible(dataset.id, database, principal)
        return catalog.describe(dataset, settings.roots)

    datasets = DatasetFacts.gather(datasets_needed(spec, input_set), describe)
    concurrent = 1
    if isinstance(spec, SweepSpec):
        concurrent = jobs_held(resources_needed(spec, cluster.gpus), cluster, driver_cpus=settings.driver_cpus)
    return Facts(datasets, input_set, cluster.gpus, concurrent)


def _check_visible(dataset_id: str, database: Database, principal: Principal) -> None:
    """Raise DatasetError for an uploaded dataset that is missing, or that belongs to another key."""
    try:
        with database.read() as session:
            find_dataset(session, principal, dataset_id)
    except NotFoundError as error:
        raise DatasetError(absent(dataset_id)) from error


def _set_of_job(
    named: NamedSet, job_id: str, settings: Settings, database: Database, principal: Principal, *, must_succeed: bool
) -> SyntheticSet:
    """Return the synthetic set of a job in its current state. Raises SpecError."""
    loc = f"{named.field}.job_id"
    try:
        with database.read() as session:
            job = find_job(session, principal, job_id)
            rows = jobs.artifacts(session, job)
        if must_succeed and job.status != Status.SUCCEEDED:
            raise SpecError(f"{job_id} is {job.status}; only the set of a job that has succeeded can be extended", loc=loc)
        return synthetic_set(settings.job_dir(job_id), rows, job.attempt, parse_job_spec(job.spec))
    except NotFoundError as error:
        raise SpecError(error.detail, loc=loc) from error
    except SyntheticSetError as error:
        raise SpecError(error.message, loc=loc) from error


def _estimates(accepted: Accepted) -> list[Estimate]:
    """Estimate each phase of a condense or evaluate job."""
    found = [estimate(condensation, accepted.dataset) for condensation in accepted.condensations]
    if isinstance(accepted.spec, EvaluateSpec):
        judged = accepted.input_set
        ipc = judged.training_images_per_class if judged is not None else accepted.spec.synthetic.ipc
        found.append(estimate_evaluation(accepted.spec, accepted.dataset, ipc))
    return found


def _sweep_plan(accepted: Accepted, spec: SweepSpec, datasets: DatasetFacts, cluster: RayCluster, driver_cpus: float) -> Plan:
    """Check that each trial fits the cluster, and limit how many run concurrently by the needs of the largest trial."""
    for trial in accepted.trials:
        if reason := too_large(trial.spec.resources, cluster, driver_cpus):
            swept = [path for path in trial.overrides if path.split(".")[0] == "resources"]
            raise RefusedSpecError.of(
                f"space.{swept[0]}" if swept else "base.resources", f"with {setting(trial.overrides)}: {reason}"
            )
    needs = [
        (
            trial,
            estimate(trial.spec, datasets.described(trial.spec.dataset, "dataset")),
            memory_per_worker(trial.spec.resources, cluster),
        )
        for trial in accepted.trials
    ]
    lacking = [need for need in needs if need[1].memory_bytes > need[2]]
    if lacking:
        trial, needed, available = max(lacking, key=lambda need: _memory(need[1]))
        loc = "base.resources" if len(lacking) == len(needs) else "space"  # `space` if only some of its trials need too much
        raise RefusedSpecError.of(loc, f"with {setting(trial.overrides)}: {_too_much(needed, available)}")
    _, needed, available = max(needs, key=lambda need: _memory(need[1]))
    held = min(_trials_held(trial.spec.resources, needed, cluster, driver_cpus) for trial, needed, _ in needs)
    concurrent = min(spec.max_concurrent, max(1, held))
    return Plan(replace(accepted, spec=spec.model_copy(update={"max_concurrent": concurrent})), needed, available)


def _trials_held(resources: ResourcesSpec, needed: Estimate, cluster: RayCluster, driver_cpus: float) -> int:
    """Return how many trials like this one, each with its driver, fit the cluster at the same time."""
    return jobs_held(resources, cluster, needed.memory_bytes + TRIAL_DRIVER_BYTES // resources.workers, driver_cpus)


def _memory(needed: Estimate) -> int:
    return needed.memory_bytes


def _too_much(needed: Estimate, available: int) -> str:
    return (
        f"a worker would need about {_gib(needed.memory_bytes)} of memory, but has {_gib(available)}; use more workers, or a "
        "smaller batch_real, ipc, network or image_size"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
