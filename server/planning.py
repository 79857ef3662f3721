"""From a spec as sent to the job that would run: resolved, checked against the data and the cluster, estimated.

Everything that can be refused is refused here, before anything is stored or a worker taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from cafe_core import estimate
from cafe_core.config import DatasetInfo, JobSpec, resolve
from cafe_core.data import catalog
from cafe_core.errors import DatasetError, SpecError
from cafe_core.jobdir import DataRoots
from server.capacity import memory_per_worker, too_large
from server.errors import RefusedSpecError, spec_refusal
from workers.client import RayCluster


@dataclass(frozen=True)
class Plan:
    """A job that can run. `memory_available`: bytes, per worker."""

    spec: JobSpec
    """Resolved."""
    dataset: DatasetInfo
    estimate: estimate.Estimate
    memory_available: int


def plan(spec: JobSpec, roots: DataRoots, cluster: RayCluster) -> Plan:
    """The job that `spec` asks for. Raises RefusedSpecError, which names the field and says why."""
    try:
        dataset = catalog.describe(spec.dataset, roots)
    except (SpecError, DatasetError) as error:
        raise spec_refusal(error) from error
    try:
        resolved = resolve(spec, dataset, cluster_gpus=cluster.gpus)
    except ValueError as error:
        raise spec_refusal(error) from error
    if reason := too_large(resolved.resources, cluster):
        raise RefusedSpecError.of("resources", reason)
    needed = estimate.estimate(resolved, dataset)
    available = memory_per_worker(resolved.resources, cluster)
    if needed.memory_bytes > available:
        raise RefusedSpecError.of(
            "resources",
            f"a worker would hold about {_gib(needed.memory_bytes)}, but has {_gib(available)}: take more workers, "
            "a smaller batch_real, ipc, network or image_size",
        )
    return Plan(resolved, dataset, needed, available)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
