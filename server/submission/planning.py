"""From a spec as sent to the job that would run: accepted, held against the cluster, estimated.

Everything that can be refused is refused here, before anything is stored or a worker taken. Numpy comes with it: whoever plans
a job imports this then, in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cafe_core.data import catalog
from cafe_core.data.readers import absent
from cafe_core.errors import DatasetError, SpecError, SyntheticSetError
from cafe_core.evaluation.estimate import estimate_evaluation
from cafe_core.jobs.submission import Accepted, Site, accept
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.estimate import Estimate, estimate
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.job import JobSpec, parse_job_spec
from cafe_core.spec.overrides import setting
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import Describe
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from server.auth.access import Principal
from server.auth.visibility import find_dataset, find_job
from server.errors import NotFoundError, RefusedSpecError, spec_refusal
from server.files.synthetic_sets import synthetic_set
from server.ray.capacity import jobs_held, memory_per_worker, too_large
from server.settings import Settings
from server.store import jobs
from server.store.database import Database
from workers.client import RayCluster

TRIAL_DRIVER_BYTES = 210 << 20
"""Each trial of a sweep has a driver of its own (one had 207 MiB resident)."""


@dataclass(frozen=True)
class Plan:
    """A job that can run. `memory_available`: bytes, per worker."""

    accepted: Accepted
    estimate: Estimate
    """Of the phase, or of a sweep the trial, that holds most."""
    memory_available: int


def plan(spec: JobSpec, settings: Settings, database: Database, cluster: RayCluster, principal: Principal) -> Plan:
    """The job that `spec` asks for, with what `principal` sees. Raises RefusedSpecError, which names the field and says why."""
    site = _site(settings, database, cluster, principal)
    try:
        accepted = accept(spec, site)
    except (SpecError, ValueError) as error:
        raise spec_refusal(error) from error
    if isinstance(accepted.spec, SweepSpec):
        return _sweep_plan(accepted, accepted.spec, site.describe, cluster, settings.driver_cpus)
    resources = accepted.spec.resources
    if reason := too_large(resources, cluster, settings.driver_cpus):
        raise RefusedSpecError.of("resources", reason)
    needed, available = max(_estimates(accepted), key=_memory), memory_per_worker(resources, cluster)
    if needed.memory_bytes > available:
        raise RefusedSpecError.of("resources", _too_much(needed, available))
    return Plan(accepted, needed, available)


def _site(settings: Settings, database: Database, cluster: RayCluster, principal: Principal) -> Site:
    described: dict[str, DatasetInfo] = {}

    def describe(dataset: DatasetSpec) -> DatasetInfo:
        key = dataset.model_dump_json()
        if key not in described:
            if dataset.id is not None:
                check_visible(dataset.id)
            described[key] = catalog.describe(dataset, settings.roots)
        return described[key]

    def check_visible(dataset_id: str) -> None:
        try:
            with database.read() as session:
                find_dataset(session, principal, dataset_id)
        except NotFoundError as error:
            raise DatasetError(absent(dataset_id)) from error

    def set_of_job(job_id: str) -> SyntheticSet:
        try:
            with database.read() as session:
                job = find_job(session, principal, job_id)
                rows = jobs.artifacts(session, job)
            return synthetic_set(settings.job_dir(job_id), rows, job.attempt, parse_job_spec(job.spec))
        except NotFoundError as error:
            raise SpecError(error.detail, loc="synthetic.job_id") from error
        except SyntheticSetError as error:
            raise SpecError(error.message, loc="synthetic.job_id") from error

    def fits(resources: ResourcesSpec) -> int:
        return jobs_held(resources, cluster, driver_cpus=settings.driver_cpus)

    return Site(settings.roots, describe, set_of_job, fits, gpus=cluster.gpus)


def _estimates(accepted: Accepted) -> list[Estimate]:
    """Of each phase of a condense or evaluate job."""
    found = [estimate(condensation, accepted.dataset) for condensation in accepted.condensations]
    if isinstance(accepted.spec, EvaluateSpec):
        ipc = accepted.judged.ipc if accepted.judged is not None else accepted.spec.synthetic.ipc
        found.append(estimate_evaluation(accepted.spec, accepted.dataset, ipc))
    return found


def _sweep_plan(accepted: Accepted, spec: SweepSpec, describe: Describe, cluster: RayCluster, driver_cpus: float) -> Plan:
    """Every trial must fit the cluster by itself; as many run at once as it holds of the largest, if the spec allows as many."""
    for trial in accepted.trials:
        if reason := too_large(trial.spec.resources, cluster, driver_cpus):
            swept = [path for path in trial.overrides if path.split(".")[0] == "resources"]
            raise RefusedSpecError.of(
                f"space.{swept[0]}" if swept else "base.resources", f"with {setting(trial.overrides)}: {reason}"
            )
    needs = [
        (trial, estimate(trial.spec, describe(trial.spec.dataset)), memory_per_worker(trial.spec.resources, cluster))
        for trial in accepted.trials
    ]
    lacking = [need for need in needs if need[1].memory_bytes > need[2]]
    if lacking:
        trial, needed, available = max(lacking, key=lambda need: _memory(need[1]))
        loc = "base.resources" if len(lacking) == len(needs) else "space"  # the settings make no difference, or do
        raise RefusedSpecError.of(loc, f"with {setting(trial.overrides)}: {_too_much(needed, available)}")
    _, needed, available = max(needs, key=lambda need: _memory(need[1]))
    held = min(_trials_held(trial.spec.resources, needed, cluster, driver_cpus) for trial, needed, _ in needs)
    concurrent = min(spec.max_concurrent, max(1, held))
    return Plan(replace(accepted, spec=spec.model_copy(update={"max_concurrent": concurrent})), needed, available)


def _trials_held(resources: ResourcesSpec, needed: Estimate, cluster: RayCluster, driver_cpus: float) -> int:
    """How many trials like this one the cluster holds at the same time, each with its driver."""
    return jobs_held(resources, cluster, needed.memory_bytes + TRIAL_DRIVER_BYTES // resources.workers, driver_cpus)


def _memory(needed: Estimate) -> int:
    return needed.memory_bytes


def _too_much(needed: Estimate, available: int) -> str:
    return (
        f"a worker would hold about {_gib(needed.memory_bytes)}, but has {_gib(available)}: take more workers, "
        "a smaller batch_real, ipc, network or image_size"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
